"""A folder as clients see it: a page of it, a message in full, and its parts as they stream by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import (
    AttachmentNotFound,
    CursorExpired,
    MessageNotFound,
    UpstreamError,
)
from cbemail.ids import SessionId
from cbemail.imap.connection import Completion, ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import fetch, fetch_command, fetch_page, store_flags
from cbemail.imap.parser import fetch_data
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import (
    SEEN,
    FetchData,
    FolderPath,
    Part,
    Uid,
    UidSet,
    UidValidity,
)
from cbemail.imap.repeating import begin, repeatable
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.body import BODY_OCTETS, Body, read_body
from cbemail.mailbox.cache import Shelf, SummaryCache
from cbemail.mailbox.finding import find
from cbemail.mailbox.structure import (
    Layout,
    lay_out,
    part_content_type,
    part_filename,
)
from cbemail.mailbox.summary import (
    SUMMARY_ITEMS,
    Summary,
    Unreadable,
    summarise,
    summary_fields,
    with_flags,
)
from cbemail.mime.headers import (
    SummaryHeaders,
    read_header_block,
    read_summary_headers,
    safe_filename,
)
from cbemail.mime.parse import TransferDecoder
from cbemail.mime.words import decode_text
from cbemail.timing import spent_on
from cbemail.turns import Turn, off_the_loop

# A message in one round trip where it is plain text, in two where it is not: section 1 is fetched on the guess that it
# is the text, which for most mail it is.
FIRST_LOOK_OCTETS = 65_536
ALL_BODIES_OCTETS = (
    BODY_OCTETS * 3 // 2
)  # of the text parts of one message together, however many it has
HEADER_OCTETS = (
    262_144  # the longest header shown; RFC 5322 knows no limit, mail servers stop at 64 KB to 1 MB
)
_MESSAGE_ITEMS = (
    f"FLAGS INTERNALDATE RFC822.SIZE BODYSTRUCTURE BODY.PEEK[HEADER]<0.{HEADER_OCTETS}>"
    f" BODY.PEEK[1]<0.{FIRST_LOOK_OCTETS}>"
).encode()


PartUrl = Callable[[FolderPath, Uid, str, str], str]  # folder, UID, part id, content id -> URL


class Position(Struct, frozen=True):
    """Where a page ended: the next one holds lower UIDs, and only of this UIDVALIDITY."""

    uid_validity: UidValidity
    uid: Uid


class Page(Struct, frozen=True):
    """Rows, newest first; ``total`` counts all that fit the filter; ``end`` is None on the last page."""

    folder: FolderPath
    uid_validity: UidValidity
    total: int
    messages: list[Summary | Unreadable]
    end: Position | None


class _FetchedPage(Struct, frozen=True):
    """A page as the server gave it: its rows are read after its connection is free for others."""

    uid_validity: UidValidity
    total: int
    rows: list[FetchData]
    known: dict[Uid, Summary]
    end: Position | None


class HeaderLine(Struct, frozen=True):
    name: str
    value: str


class Message(Summary, frozen=True, rename={"from_": "from"}):
    """A message in full: its summary, bodies and header. ``html`` is None where there is none; ``truncated`` tells that
    a body is longer than what is shown of it (`raw` has it all)."""

    text: str | None
    html: str | None
    headers: list[HeaderLine]
    references: list[str]
    uid_validity: UidValidity
    truncated: bool


class PartStream(Struct, frozen=True):
    """Octets on their way. ``size`` is None where it is not known before the end."""

    filename: str
    content_type: str
    size: int | None
    chunks: AsyncIterator[bytes]


class MailboxView:
    """Reading: nothing here changes a message, but for ``mark_read``."""

    def __init__(
        self, pool: ImapPool, directory: FolderDirectory, cache: SummaryCache, clock: Clock
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._cache = cache
        self._clock = clock

    async def page(
        self,
        session_id: SessionId,
        folder_name: str,
        criteria: SearchFilter,
        *,
        limit: int,
        after: Position | None,
    ) -> Page:
        """Up to ``limit`` messages that fit ``criteria``, the highest UIDs first, below where ``after`` ended.

        UIDs never move, so what arrives or is expunged between two pages neither repeats nor hides a row.

        Raises:
            CursorExpired: the folder was recreated since ``after`` was given out.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def read(imap: ImapConnection) -> _FetchedPage:
            assert imap.selected is not None  # noqa: S101 - leased with a folder
            validity = imap.selected.uid_validity
            if after is not None and after.uid_validity != validity:
                raise CursorExpired(
                    "The folder was recreated on the mail server: start the listing again."
                )
            self._directory.show(session_id, imap)
            found = await find(imap, criteria, today=self._clock().date())
            uids = found.newest(limit + 1, below=after.uid if after is not None else None)
            shown = uids[:limit]
            shelf = Shelf(session_id, folder, validity)
            known = {u: row for u in shown if (row := self._cache.get(shelf, u)) is not None}
            unknown = [u for u in shown if u not in known]
            rows = await fetch_page(imap, list(known), unknown, SUMMARY_ITEMS) if shown else {}
            end = Position(validity, shown[-1]) if len(uids) > limit else None
            present = [rows[u] for u in shown if u in rows]
            return _FetchedPage(validity, found.count, present, known, end)

        fetched = await repeatable(self._pool, session_id, folder, read)
        with spent_on("parse"):
            messages = await self._summaries(session_id, folder, fetched)
        return Page(folder, fetched.uid_validity, fetched.total, messages, fetched.end)

    async def _summaries(
        self, session_id: SessionId, folder: FolderPath, fetched: _FetchedPage
    ) -> list[Summary | Unreadable]:
        """The rows of a page: of what is known only the flags are new, and what is new is known from now on."""
        shelf = Shelf(session_id, folder, fetched.uid_validity)
        messages: list[Summary | Unreadable] = []
        turn = Turn()
        for row in fetched.rows:
            await turn.share()
            known = fetched.known.get(row.uid) if row.uid is not None else None
            if known is not None:
                messages.append(with_flags(known, row.flags or ()))
                continue
            summary = summarise(row, folder)
            if isinstance(summary, Summary):
                self._cache.put(shelf, summary, len(row.sections["HEADER.FIELDS"]))
            messages.append(summary)
        return messages

    async def message(
        self,
        session_id: SessionId,
        folder_name: str,
        uid: Uid,
        *,
        mark_read: bool = False,
        raw_html: bool = False,
        part_url: PartUrl,
    ) -> Message:
        """One message, decoded. ``part_url`` says what a ``cid:`` in the HTML becomes.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder (any more).
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def read(imap: ImapConnection) -> _Read:
            assert imap.selected is not None  # noqa: S101 - leased with a folder
            self._directory.require_shown(session_id, imap)
            row = (await fetch(imap, [uid], _MESSAGE_ITEMS)).get(uid)
            if row is None:
                raise MessageNotFound(f"There is no message {uid} in {folder}.")
            layout = lay_out(row.body_structure or Part("1", "text", "plain", size=BODY_OCTETS))
            sections = await self._body_sections(imap, uid, row, layout)
            if mark_read and SEEN not in (row.flags or ()):
                await store_flags(imap, UidSet([uid]), add=[SEEN])
                row = structs.replace(row, flags=(*(row.flags or ()), SEEN))
            return _Read(row, folder, imap.selected.uid_validity, layout, sections)

        found = await repeatable(self._pool, session_id, folder, read)
        content_ids = {
            part.id: decode_text(part.content_id).strip("<> ")
            for part in found.layout.attachments
            if part.content_id is not None
        }
        urls = {cid: part_url(folder, uid, part_id, cid) for part_id, cid in content_ids.items()}
        make = partial(_message, found, urls, raw_html=raw_html)
        with spent_on("parse"):
            octets = len(found.row.sections.get("HEADER", b""))
            return await off_the_loop(octets + sum(map(len, found.sections.values())), make)

    async def _body_sections(
        self, imap: ImapConnection, uid: Uid, row: FetchData, layout: Layout
    ) -> dict[str, bytes]:
        """The encoded octets of every part shown as text; what the first look did not bring is fetched now."""
        wanted = {part.id: part for part in (*layout.text, *layout.html)}
        sections = {
            part_id: row.sections[part_id]
            for part_id in wanted
            if part_id in row.sections and len(row.sections[part_id]) < FIRST_LOOK_OCTETS
        }
        missing = [part_id for part_id in wanted if part_id not in sections]
        if missing:
            octets = min(BODY_OCTETS, ALL_BODIES_OCTETS // len(missing))
            items = " ".join(f"BODY.PEEK[{part_id}]<0.{octets}>" for part_id in missing)
            rest = (await fetch(imap, [uid], items.encode())).get(uid)
            if rest is None:
                raise MessageNotFound("The message was deleted while it was read.")
            sections |= {part_id: rest.sections.get(part_id, b"") for part_id in missing}
        return sections

    @asynccontextmanager
    async def raw(
        self, session_id: SessionId, folder_name: str, uid: Uid
    ) -> AsyncIterator[PartStream]:
        """The message byte for byte, as it streams from the server, for as long as the block runs.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def start(imap: ImapConnection, stack: AsyncExitStack) -> PartStream:
            self._directory.require_shown(session_id, imap)
            if uid not in await fetch(imap, [uid], b"RFC822.SIZE"):  # while it is still early
                raise MessageNotFound(f"There is no message {uid} in {folder}.")
            size, octets = await _stream(imap, stack, folder, uid, "")
            return PartStream(f"{uid}.eml", "message/rfc822", size, octets)

        async with begin(self._pool, session_id, folder, start) as part:
            yield part

    @asynccontextmanager
    async def attachment(
        self, session_id: SessionId, folder_name: str, uid: Uid, part_id: str
    ) -> AsyncIterator[PartStream]:
        """One part, decoded as it streams from the server, for as long as the block runs.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder.
            AttachmentNotFound: it has no part ``part_id``, or that part only holds others.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def start(imap: ImapConnection, stack: AsyncExitStack) -> PartStream:
            self._directory.require_shown(session_id, imap)
            part = await _find_part(imap, folder, uid, part_id)
            _, octets = await _stream(imap, stack, folder, uid, part.id)
            return PartStream(
                filename=safe_filename(part_filename(part), fallback=_fallback_name(part)),
                content_type=part_content_type(part),
                size=None,
                chunks=_decoded(octets, part.encoding),
            )

        async with begin(self._pool, session_id, folder, start) as part:
            yield part


class _Read(Struct, frozen=True):
    """What the server said of one message, still encoded."""

    row: FetchData
    folder: FolderPath
    uid_validity: UidValidity
    layout: Layout
    sections: dict[str, bytes]


def _message(found: _Read, cid_urls: Mapping[str, str], *, raw_html: bool) -> Message:
    block = found.row.sections.get("HEADER", b"")
    headers: SummaryHeaders = read_summary_headers(block)
    body: Body = read_body(found.layout, found.sections, cid_urls, raw_html=raw_html)
    fields: dict[str, Any] = summary_fields(found.row, found.folder, headers, found.layout)
    return Message(
        **fields,
        text=body.text,
        html=body.html,
        headers=[HeaderLine(f.name, decode_text(f.value)) for f in read_header_block(block)],
        references=headers.references,
        uid_validity=found.uid_validity,
        truncated=any(
            len(found.sections.get(part.id, b"")) < part.size
            for part in (*found.layout.text, *found.layout.html)
        ),
    )


async def _find_part(imap: ImapConnection, folder: FolderPath, uid: Uid, part_id: str) -> Part:
    row = (await fetch(imap, [uid], b"BODYSTRUCTURE")).get(uid)
    if row is None:
        raise MessageNotFound(f"There is no message {uid} in {folder}.")
    for part in row.body_structure.walk() if row.body_structure is not None else ():
        if part.id == part_id and not part.is_multipart:
            return part
    raise AttachmentNotFound(f"Message {uid} has no part {part_id[:32]}.")


async def _stream(
    imap: ImapConnection, stack: AsyncExitStack, folder: FolderPath, uid: Uid, section: str
) -> tuple[int, AsyncIterator[bytes]]:
    """The section's size and octets, which the server may send as a literal or in line."""
    command = fetch_command(UidSet([uid]), f"BODY.PEEK[{section}]".encode())
    stream = await stack.enter_async_context(imap.streaming(command))
    await stream.started()
    if stream.size is not None:
        return stream.size, aiter(stream)
    value = _section_of(await stream.completion(), uid, section)
    if value is None:
        raise MessageNotFound(f"There is no message {uid} in {folder}.")
    return len(value), _once(value)


def _section_of(completion: Completion, uid: Uid, section: str) -> bytes | None:
    """A section's value in a completion; an empty one where the server gave NIL."""
    for response in completion.untagged("FETCH"):
        row = fetch_data(response)
        if row.uid == uid and row.defect is not None:
            raise UpstreamError("The mail server's answer cannot be understood.", protocol="imap")
        if row.uid == uid and section in row.sections:
            return row.sections[section]
    return None


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _decoded(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    decoder = TransferDecoder(encoding)
    async for chunk in chunks:
        with spent_on("parse"):
            data = decoder.feed(chunk)
        if data:
            yield data
    data = decoder.finish()
    if data:
        yield data


def _fallback_name(part: Part) -> str:
    extension = {"message/rfc822": "eml", "text/plain": "txt", "text/html": "html"}
    kind = f"{part.type}/{part.subtype}"
    return f"part-{part.id}.{extension.get(kind, 'bin')}"
