"""From a row of a batch to an envelope: opens what is sealed, and renders or fetches the message."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from cbemail.mime.address import envelope_address, needs_smtputf8
from cbemail.outbox.content import (
    Content,
    Recipient,
    StoredMessage,
    decode_content,
    decode_recipient,
    place_of_content,
    place_of_row,
)
from cbemail.outbox.merge import Merge
from cbemail.outbox.sealing import BatchKey, SealError
from cbemail.outbox.sent import Original
from cbemail.smtp.envelope import Envelope
from cbemail.store.batch_records import BatchRecord, MessageRow
from cbemail.store.batches import BatchRepository
from cbemail.turns import off_the_loop


class Job(Struct, frozen=True):
    """One SMTP transaction: a message, and the rows that are its recipients. ``room``: octets of memory it holds."""

    rows: list[MessageRow]
    envelope: Envelope
    original: Original | None = None
    room: int = 0


class Workshop:
    """Makes the messages of one batch. A template is compiled once and kept; a stored message is read when its turn
    comes, and not kept."""

    def __init__(self, repository: BatchRepository, record: BatchRecord, key: BatchKey) -> None:
        self._repository = repository
        self._record = record
        self._key = key
        self._merge: Merge | None = None
        self._sender = ""
        self._loading = asyncio.Lock()

    async def octets(self, number: int) -> int:
        """About how large a message of this content is, before it is made."""
        if self._merge is not None:
            return self._merge.static_octets
        return await self._repository.content_octets(self._record.number, number)

    async def make(self, rows: Sequence[MessageRow], date: datetime) -> Job:
        """The transaction for rows of one message.

        Raises:
            MergeError, SealError, InvalidRequest: this message cannot be made, today or any day.
        """
        recipients = [self.recipient(row) for row in rows]
        content = self._merge or await self._load(rows[0].content)
        if isinstance(content, StoredMessage):
            sender, octets, smtputf8 = content.sender, content.content, content.smtputf8
            original = content.original
        else:
            composed = content.render(recipients[0], message_id=rows[0].message_id, date=date)
            sender, octets, smtputf8 = self._sender, composed.content, composed.needs_smtputf8
            original = None
        addresses = tuple(recipient.address for recipient in recipients)
        utf8 = smtputf8 or needs_smtputf8(sender) or any(map(needs_smtputf8, addresses))
        return Job(list(rows), Envelope(sender, addresses, octets, utf8), original)

    def recipient(self, row: MessageRow) -> Recipient:
        return open_recipient(self._key, row)

    async def _load(self, number: int) -> Merge | StoredMessage:
        async with self._loading:  # or every sender would compile the template for itself
            if self._merge is not None:
                return self._merge
            pieces = await self._repository.load_content(self._record.number, number)
            size = sum(map(len, pieces))
            content = await off_the_loop(size, lambda: self._open(number, pieces))
            if isinstance(content, StoredMessage):
                return content
            self._sender = envelope_address(content.sender.address)
            self._merge = await off_the_loop(size, lambda: Merge(content))
            return self._merge

    def _open(self, number: int, pieces: Sequence[bytes]) -> Content:
        if not pieces:
            raise SealError("the content is gone")
        opened = [
            self._key.open(place_of_content(number, piece), sealed)
            for piece, sealed in enumerate(pieces)
        ]
        content: Content = decode_content(b"".join(opened))
        return content


def open_recipient(key: BatchKey, row: MessageRow) -> Recipient:
    """Raises SealError."""
    return decode_recipient(key.open(place_of_row(row.row), row.sealed))
