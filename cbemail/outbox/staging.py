"""Putting a batch that is being accepted on disk: its contents, and a row for each recipient, all of it sealed."""

import secrets
from contextlib import aclosing

from cbemail.errors import PayloadTooLarge
from cbemail.mime.compose import new_message_id
from cbemail.outbox.content import (
    Content,
    MessageTemplate,
    Recipient,
    StoredMessage,
    encode_content,
    encode_recipient,
    place_of_content,
    place_of_row,
)
from cbemail.outbox.recipients import Unfit
from cbemail.outbox.sealing import SEAL_OCTETS, BatchKey
from cbemail.outbox.sieve import Fit, Sieve, recipient_of
from cbemail.store.batch_records import LARGEST_VALUE, BatchRecord, NewMessageRow
from cbemail.store.records import SendState
from cbemail.store.staged_batches import StagedBatches
from cbemail.turns import Turn, off_the_loop

# Of a batch on disk: column names are written once in a file, and here for every recipient.
MAX_OCTETS = 2 << 30
_ROWS = 2_000  # a transaction; half as many cost half as much again, each
_CONTENTS = 100
_GROUP_OCTETS = 4 << 20
_PIECE = LARGEST_VALUE - SEAL_OCTETS  # octets of a content that are sealed as one


def content_octets(content: Content) -> int:
    """About how large a content is."""
    if isinstance(content, StoredMessage):
        return len(content.content)
    texts = len(content.text or "") + len(content.html or "")
    return texts + sum(len(attachment.content) for attachment in content.attachments)


class Staging:
    """Writes a batch that is not published yet: its contents, and its rows in groups."""

    def __init__(
        self,
        staged: StagedBatches,
        record: BatchRecord,
        key: BatchKey,
        template: MessageTemplate | None,
    ) -> None:
        self._staged = staged
        self._batch = record.number
        self._key = key
        self._template = template
        self._due = record.send_at or record.created_at
        self._rows: list[NewMessageRow] = []  # these two wait to be written
        self._contents: list[tuple[int, list[bytes]]] = []
        self._waiting = 0  # octets of them
        self._octets = 0  # of the batch
        self._row = 0
        self._domain = ""
        if template is not None:
            domain = template.sender.address.rpartition("@")[2]
            self._domain = new_message_id(domain).rpartition("@")[2]

    async def fill(self, sieve: Sieve) -> None:
        """Store all that comes through the sieve. Raises PayloadTooLarge where it is more than a batch may have."""
        if self._template is not None:
            await self._add_content(0, self._template)
        turn = Turn()
        async with aclosing(sieve.pieces()) as pieces:
            async for piece in pieces:
                for each in piece:
                    await turn.share()
                    if isinstance(each, Unfit):
                        self._reject(each)
                    else:
                        if each.entry.message is not None:
                            await self._add_content(each.entry.position, each.entry.message)
                        self._queue(each)
                    if self._is_full():
                        await self._write()
        await self._write()

    def _queue(self, fit: Fit) -> None:
        entry = fit.entry
        message_id = entry.message_id or f"<{secrets.token_hex(16)}@{self._domain}"
        known = fit.recipient
        for index, mailbox in enumerate(fit.mailboxes):
            if index:
                known = encode_recipient(recipient_of(entry, mailbox))
            self._add(
                NewMessageRow(
                    row=self._row,
                    position=entry.position,
                    content=0 if entry.message is None else entry.position,
                    state=SendState.QUEUED,
                    message_id=message_id,
                    sealed=self._key.seal(place_of_row(self._row), known),
                    next_attempt_at=self._due,
                )
            )

    def _reject(self, unfit: Unfit) -> None:
        known = encode_recipient(Recipient(unfit.to, unfit.key))
        self._add(
            NewMessageRow(
                row=self._row,
                position=unfit.position,
                content=0,
                state=SendState.REJECTED,
                message_id="",
                sealed=self._key.seal(place_of_row(self._row), known),
                code=unfit.code,
                detail=unfit.detail,
            )
        )

    def _add(self, row: NewMessageRow) -> None:
        self._row += 1
        self._rows.append(row)
        self._count(len(row.sealed))

    def _is_full(self) -> bool:
        many = len(self._rows) >= _ROWS or len(self._contents) >= _CONTENTS
        return many or self._waiting >= _GROUP_OCTETS

    async def _add_content(self, number: int, content: Content) -> None:
        pieces = await off_the_loop(content_octets(content), lambda: self._sealed(number, content))
        self._contents.append((number, pieces))
        self._count(sum(map(len, pieces)))

    def _sealed(self, number: int, content: Content) -> list[bytes]:
        encoded = encode_content(content)
        return [
            self._key.seal(place_of_content(number, piece), encoded[start : start + _PIECE])
            for piece, start in enumerate(range(0, len(encoded), _PIECE))
        ]

    def _count(self, octets: int) -> None:
        self._waiting += octets
        self._octets += octets
        if self._octets > MAX_OCTETS:
            raise PayloadTooLarge(
                "Written out for every recipient, the batch takes more than 2 GB: send it in parts."
            )

    async def _write(self) -> None:
        rows, self._rows = self._rows, []
        contents, self._contents = self._contents, []
        self._waiting = 0
        small = [(number, 0, pieces[0]) for number, pieces in contents if len(pieces) == 1]
        if small:
            await self._staged.add_contents(self._batch, small)
        for number, pieces in contents:
            if len(pieces) > 1:
                await self._staged.add_content(self._batch, number, pieces)
        if rows:
            await self._staged.add_messages(self._batch, rows)
