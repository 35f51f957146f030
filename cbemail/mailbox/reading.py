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
from cbemail.imap.protocol import SEEN, FetchData, FolderPath, Part, Uid, UidSet, UidValidity
from cbemail.imap.repeating import repeatable
from cbemail.mailbox.body import BODY_OCTETS, Body, read_body
from cbemail.mailbox.structure import Layout, lay_out
from cbemail.mailbox.summary import Summary, summary_fields
from cbemail.mime.headers import SummaryHeaders, read_header_block, read_summary_headers
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


PartUrl = Callable[[FolderPath, Uid, str, str], str]  # folder, UID, part id, content id -> URL


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


class MessageReader:
    """Messages in full. Nothing here changes one, but for ``mark_read``."""

    def __init__(self, pool: ImapPool, directory: FolderDirectory) -> None:
        self._pool = pool
        self._directory = directory

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
