"""One message in full: its summary, bodies and header, decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from msgspec import Struct, structs

from cbemail.errors import MessageNotFound
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import fetch, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import (
    SEEN,
    FetchData,
    Flag,
    FolderPath,
    Part,
    Uid,
    UidSet,
    UidValidity,
)
from cbemail.imap.repeating import repeatable
from cbemail.mailbox.body import BODY_OCTETS, Body, read_body
from cbemail.mailbox.bounce import REPORT_OCTETS, Bounce, bounce_sections, read_bounce
from cbemail.mailbox.cache import Cache
from cbemail.mailbox.cache_key import Shape
from cbemail.mailbox.stored_cache import StoredCache
from cbemail.mailbox.structure import Layout, lay_out
from cbemail.mailbox.summary import Summary, summary_fields
from cbemail.mime.headers import SummaryHeaders, read_header_block, read_summary_headers
from cbemail.mime.quoted import without_history
from cbemail.mime.words import decode_text
from cbemail.timing import spent_on
from cbemail.turns import off_the_loop

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


# Messages that were read, of all sessions, and the largest that is kept: what is shown of a message never changes, but
# for its flags (RFC 9051 section 2.3.1.1).
READ_OCTETS = 16 * 1024 * 1024
LARGEST_READ = 512 * 1024
_MESSAGE_OCTETS = 4_000  # of a message's objects, beside what was fetched of it

PartUrl = Callable[[FolderPath, Uid, str, str], str]  # folder, UID, part id, content id -> URL


class HeaderLine(Struct, frozen=True):
    name: str
    value: str


class Message(Summary, frozen=True, kw_only=True, rename={"from_": "from"}):
    """A message in full: its summary, bodies and header. ``html`` is None where there is none; ``truncated`` tells that
    a body is longer than what is shown of it (`raw` has it all). ``bounce`` says what a ``kind`` of ``bounce`` is about.
    """

    text: str | None
    html: str | None
    headers: list[HeaderLine]
    references: list[str]
    uid_validity: UidValidity
    truncated: bool
    bounce: Bounce | None


class MessageReader:
    """Messages in full. Nothing here changes one, but for ``mark_read``. Of one that was read before, only the flags are
    asked for."""

    def __init__(
        self, pool: ImapPool, directory: FolderDirectory, behind: StoredCache | None
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._read = Cache(_READ, READ_OCTETS, overhead=_MESSAGE_OCTETS, behind=behind)

    async def message(
        self,
        session_id: SessionId,
        folder_name: str,
        uid: Uid,
        *,
        mark_read: bool = False,
        raw_html: bool = False,
        reply_only: bool = False,
        part_url: PartUrl,
    ) -> Message:
        """One message, decoded. ``part_url`` says what a ``cid:`` in the HTML becomes; ``reply_only`` leaves the history
        that is quoted out of the text.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder (any more).
        """
        folder = await self._directory.resolve(session_id, folder_name)
        name = (folder, uid)
        if self._read.get(session_id, name) is None:
            await self._read.recall(session_id, [name])

        async def read(imap: ImapConnection) -> _Read:
            found = await self._known(session_id, imap, folder, uid)
            if found is None:
                found = await self._fetched(session_id, imap, folder, uid)
            flags = found.row.flags or ()
            if mark_read and SEEN not in flags:
                await store_flags(imap, UidSet([uid]), add=[SEEN])
                found = found.under((*flags, SEEN))
            return found

        found = await repeatable(self._pool, session_id, folder, read, lazily=True)
        content_ids = {
            part.id: decode_text(part.content_id).strip("<> ")
            for part in found.layout.attachments
            if part.content_id is not None
        }
        urls = {cid: part_url(folder, uid, part_id, cid) for part_id, cid in content_ids.items()}
        make = partial(_message, found, urls, raw_html=raw_html, reply_only=reply_only)
        with spent_on("parse"):
            octets = len(found.row.sections.get("HEADER", b""))
            return await off_the_loop(octets + sum(map(len, found.sections.values())), make)

    def forget(self, session_id: SessionId) -> None:
        """The session is gone."""
        self._read.forget(session_id)

    async def _known(
        self, session_id: SessionId, imap: ImapConnection, folder: FolderPath, uid: Uid
    ) -> _Read | None:
        """A message that was read before, under its flags of now.

        A server may give the flags of a message that is gone, and only then tell that it is (Dovecot does): where it has
        told of anything, it is asked again.
        """
        known = self._read.get(session_id, (folder, uid))
        if known is None:
            return None
        before = imap.selected.news if imap.selected is not None else 0
        row = await self._row(session_id, imap, uid, b"FLAGS")
        assert imap.selected is not None  # noqa: S101 - by the read, at the latest
        if imap.selected.news != before:
            row = await self._row(session_id, imap, uid, b"FLAGS")
        if known.uid_validity != imap.selected.uid_validity:
            return None
        return known.under(row.flags or ())

    async def _fetched(
        self, session_id: SessionId, imap: ImapConnection, folder: FolderPath, uid: Uid
    ) -> _Read:
        row = await self._row(session_id, imap, uid, _MESSAGE_ITEMS)
        assert imap.selected is not None  # noqa: S101 - by the read, at the latest
        layout = lay_out(row.body_structure or Part("1", "text", "plain", size=BODY_OCTETS))
        sections = await self._body_sections(imap, uid, row, layout)
        header = row.sections.get("HEADER", b"")
        row = structs.replace(row, sections={"HEADER": header})
        found = _Read(row, folder, imap.selected.uid_validity, layout, sections)
        octets = len(header) + sum(map(len, sections.values()))
        if octets <= LARGEST_READ and row.defect is None:
            self._read.put(session_id, (folder, uid), found)
        return found

    async def _row(
        self, session_id: SessionId, imap: ImapConnection, uid: Uid, items: bytes
    ) -> FetchData:
        row = (await fetch(imap, [uid], items)).get(uid)
        self._directory.require_shown(session_id, imap)
        if row is None:
            path = imap.selected.path if imap.selected is not None else ""
            raise MessageNotFound(f"There is no message {uid} in {path}.")
        return row

    async def _body_sections(
        self, imap: ImapConnection, uid: Uid, row: FetchData, layout: Layout
    ) -> dict[str, bytes]:
        """The encoded octets of every part shown as text, and of what a bounce reports; what the first look did not bring
        is fetched now."""
        wanted = {part.id: part for part in (*layout.text, *layout.html)}
        sections = {
            part_id: row.sections[part_id]
            for part_id in wanted
            if part_id in row.sections and len(row.sections[part_id]) < FIRST_LOOK_OCTETS
        }
        missing = [part_id for part_id in wanted if part_id not in sections]
        octets = min(BODY_OCTETS, ALL_BODIES_OCTETS // max(1, len(missing)))
        sizes = dict.fromkeys(missing, octets)
        sizes |= dict.fromkeys(bounce_sections(row.body_structure), REPORT_OCTETS)
        if sizes:
            items = " ".join(f"BODY.PEEK[{name}]<0.{size}>" for name, size in sizes.items())
            rest = (await fetch(imap, [uid], items.encode())).get(uid)
            if rest is None:
                raise MessageNotFound("The message was deleted while it was read.")
            sections |= {name: rest.sections.get(name, b"") for name in sizes}
        return sections


class _Read(Struct, frozen=True):
    """What the server said of one message, still encoded."""

    row: FetchData
    folder: FolderPath
    uid_validity: UidValidity
    layout: Layout
    sections: dict[str, bytes]

    def under(self, flags: tuple[Flag, ...]) -> _Read:
        """The same message under these flags."""
        return structs.replace(self, row=structs.replace(self.row, flags=flags))


# By folder and UID: of which UIDVALIDITY it is, the value says, since that is known only when the folder is selected.
_READ = Shape("message", _Read)


def _message(
    found: _Read, cid_urls: Mapping[str, str], *, raw_html: bool, reply_only: bool
) -> Message:
    block = found.row.sections.get("HEADER", b"")
    headers: SummaryHeaders = read_summary_headers(block)
    body: Body = read_body(found.layout, found.sections, cid_urls, raw_html=raw_html)
    fields: dict[str, Any] = summary_fields(found.row, found.folder, headers, found.layout)
    is_bounce = fields["kind"] == "bounce"
    return Message(
        **fields,
        text=without_history(body.text) if reply_only and body.text is not None else body.text,
        html=body.html,
        headers=[HeaderLine(f.name, decode_text(f.value)) for f in read_header_block(block)],
        references=headers.references,
        uid_validity=found.uid_validity,
        truncated=any(
            len(found.sections.get(part.id, b"")) < part.size
            for part in (*found.layout.text, *found.layout.html)
        ),
        bounce=read_bounce(found.row.body_structure, found.sections, headers)
        if is_bounce
        else None,
    )
