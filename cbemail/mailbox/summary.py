"""A message as a list shows it: one row, made from one FETCH response."""

from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from cbemail.imap.protocol import (
    ANSWERED,
    DRAFT,
    FLAGGED,
    SEEN,
    FetchData,
    Flag,
    FolderPath,
    Part,
    Uid,
)
from cbemail.mailbox.kind import Kind, kind_of
from cbemail.mailbox.snippets import read_snippet
from cbemail.mailbox.structure import Layout, lay_out, part_filename, part_media_type
from cbemail.mime.address import Address
from cbemail.mime.headers import SummaryHeaders, read_summary_headers, safe_filename
from cbemail.mime.words import decode_text

# One FETCH gives all of a row. The header is capped: a field of megabytes is an attack, and 64 KB hold any real one.
SUMMARY_ITEMS = (
    b"FLAGS INTERNALDATE RFC822.SIZE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (DATE FROM TO CC BCC REPLY-TO SUBJECT"
    b" MESSAGE-ID IN-REPLY-TO REFERENCES AUTO-SUBMITTED PRECEDENCE X-FAILED-RECIPIENTS)]<0.65536>"
)


# Says which connection saw the message first: no property of the message, and gone from RFC 9051.
RECENT = Flag("\\Recent")


class AttachmentInfo(Struct, frozen=True):
    """One attachment. ``id`` is the IMAP part number; ``size`` is in octets once decoded, estimated from the encoded
    size where the encoding tells no better."""

    id: Annotated[str, Meta(examples=["2"])]
    filename: str | None
    content_type: str
    size: int
    inline: bool
    content_id: str | None


class Flags(Struct, frozen=True):
    """Flags as IMAP has them, and the usual ones by name."""

    flags: list[Flag]
    read: bool
    flagged: bool
    answered: bool
    draft: bool

    @classmethod
    def of(cls, flags: tuple[Flag, ...]) -> "Flags":
        kept = [flag for flag in flags if flag != RECENT]
        return cls(kept, SEEN in flags, FLAGGED in flags, ANSWERED in flags, DRAFT in flags)


class Summary(Struct, frozen=True, rename={"from_": "from"}):
    """One message in a list. ``message_id`` and ``in_reply_to`` with their angle brackets; ``size`` in octets.

    ``kind`` is ``message`` unless the message says that it is a report on a delivery (``bounce``), that it was read
    (``receipt``), an ``invitation`` to an event, or the answer of an absent person's mailbox (``auto_reply``).
    ``snippet`` is there where it was asked for: the first words of the text, 200 characters at most.
    """

    uid: Uid
    folder: FolderPath
    kind: Kind
    message_id: str | None
    in_reply_to: str | None
    subject: str | None
    from_: Address | None
    to: list[Address]
    cc: list[Address]
    bcc: list[Address]
    reply_to: list[Address]
    date: datetime | None
    received_at: datetime | None
    size: int
    read: bool
    flagged: bool
    answered: bool
    draft: bool
    flags: list[Flag]
    has_attachments: bool
    attachments: list[AttachmentInfo]
    snippet: str | UnsetType = UNSET


class Unreadable(Struct, frozen=True):
    """A message whose row could not be made: it is told, and the page is good without it."""

    uid: Uid
    folder: FolderPath
    error: str


def summarise(row: FetchData, folder: FolderPath, *, snippet: bool = False) -> Summary | Unreadable:
    """The row of one message, from a FETCH of `SUMMARY_ITEMS`; with its snippet, of `snippets.snippet_items` too."""
    assert row.uid is not None  # noqa: S101 - fetch() gives rows by their UID
    if row.defect is not None or row.body_structure is None or "HEADER.FIELDS" not in row.sections:
        return Unreadable(row.uid, folder, row.defect or "the mail server did not describe it")
    headers = read_summary_headers(row.sections["HEADER.FIELDS"])
    layout = lay_out(row.body_structure)
    fields = summary_fields(row, folder, headers, layout)
    if snippet:
        fields["snippet"] = read_snippet(row, layout)
    return Summary(**fields)


def with_flags(summary: Summary, flags: tuple[Flag, ...], *, snippet: bool = False) -> Summary:
    """``summary`` as it is under ``flags``, with its snippet or without."""
    now = Flags.of(flags)
    if now.flags == summary.flags and snippet == (summary.snippet is not UNSET):
        return summary
    return structs.replace(
        summary,
        flags=now.flags,
        read=now.read,
        flagged=now.flagged,
        answered=now.answered,
        draft=now.draft,
        snippet=summary.snippet if snippet else UNSET,
    )


def summary_fields(
    row: FetchData, folder: FolderPath, headers: SummaryHeaders, layout: Layout
) -> dict[str, Any]:
    """The values of a Summary by field name; a message in full has them too."""
    flags = Flags.of(row.flags or ())
    attachments = [describe(part, inline=part.id in layout.inline) for part in layout.attachments]
    return {
        "uid": row.uid,
        "folder": folder,
        "kind": kind_of(row.body_structure, layout, headers),
        "message_id": headers.message_id,
        "in_reply_to": headers.in_reply_to,
        "subject": headers.subject,
        "from_": headers.from_,
        "to": headers.to,
        "cc": headers.cc,
        "bcc": headers.bcc,
        "reply_to": headers.reply_to,
        "date": headers.date,
        "received_at": row.internal_date.astimezone(UTC) if row.internal_date else None,
        "size": row.size or 0,
        "flags": flags.flags,
        "read": flags.read,
        "flagged": flags.flagged,
        "answered": flags.answered,
        "draft": flags.draft,
        "has_attachments": any(not attachment.inline for attachment in attachments),
        "attachments": attachments,
    }


def describe(part: Part, *, inline: bool) -> AttachmentInfo:
    filename = part_filename(part)
    return AttachmentInfo(
        id=part.id,
        filename=safe_filename(filename, fallback="attachment") if filename else None,
        content_type=part_media_type(part),
        size=decoded_size(part),
        inline=inline,
        content_id=decode_text(part.content_id).strip("<> ") if part.content_id else None,
    )


def decoded_size(part: Part) -> int:
    """Octets after decoding. Base64 in lines of 76 turns 57 octets into 78; other encodings hardly change a size."""
    return part.size * 57 // 78 if part.encoding == "base64" else part.size
