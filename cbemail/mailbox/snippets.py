"""The first words of messages: from the server, where it knows them (RFC 8970), else from the first octets of their text.

A server's own preview costs no more octets than it has. Where there is none, a message costs up to `TEXT_OCTETS`, or up
to `HTML_OCTETS` where it is HTML only, whose first words may stand behind a style sheet; both are known from then on.
"""

from collections.abc import Iterable, Mapping

from msgspec import structs

from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import fetch_each
from cbemail.imap.protocol import FetchData, Part, Uid
from cbemail.mailbox.body import decode_part
from cbemail.mailbox.structure import Layout, lay_out
from cbemail.mime.html import html_to_text
from cbemail.mime.snippet import make_snippet, shorten

TEXT_OCTETS = 2_048
HTML_OCTETS = 16_384
_BLANK = 2  # octets of a part that has nothing but a line end


def snippet_items(capabilities: Iterable[str]) -> bytes:
    """What to fetch with a row for its snippet: section 1, on the guess that it is the text, where the server has no
    preview."""
    return b" PREVIEW" if "PREVIEW" in capabilities else b" BODY.PEEK[1]<0.%d>" % TEXT_OCTETS


async def complete(
    imap: ImapConnection, rows: Mapping[Uid, FetchData], wanted: Iterable[Uid]
) -> dict[Uid, FetchData]:
    """``rows``, of which those ``wanted`` have the text that `read_snippet` needs: what the guess did not bring is fetched,
    in one flight."""
    missing: dict[bytes, list[Uid]] = {}
    for uid in wanted:
        row = rows.get(uid)
        part = _unread_text(row) if row is not None else None
        if part is not None:
            item = f"BODY.PEEK[{part.id}]<0.{_octets(part)}>".encode()
            missing.setdefault(item, []).append(uid)
    if not missing:
        return dict(rows)
    told = await fetch_each(imap, missing)
    return {
        uid: structs.replace(row, sections=row.sections | told[uid].sections)
        if uid in told
        else row
        for uid, row in rows.items()
    }


def read_snippet(row: FetchData, layout: Layout) -> str:
    """The first words of a message; empty where it has no text."""
    if row.preview is not None:
        return shorten(row.preview.decode("utf-8", "replace"))
    part = _text_of(layout)
    if part is None:
        return ""
    text = decode_part(part, row.sections.get(part.id, b""))
    return make_snippet(html_to_text(text) if part.subtype == "html" else text)


def _unread_text(row: FetchData) -> Part | None:
    """The part whose first words are still to be fetched."""
    if row.preview is not None or row.body_structure is None:
        return None
    part = _text_of(lay_out(row.body_structure))
    if part is None or len(row.sections.get(part.id, b"")) >= min(part.size, _octets(part)):
        return None
    return part


def _text_of(layout: Layout) -> Part | None:
    """The first part with anything to read. Some senders put an empty text beside their HTML."""
    return next((part for part in (*layout.text, *layout.html) if part.size > _BLANK), None)


def _octets(part: Part) -> int:
    return HTML_OCTETS if part.subtype == "html" else TEXT_OCTETS
