"""What an outgoing message is made of, and the rules every value of it must keep before it is composed.

An error names the value by its JSON pointer in the body of `POST /api/send`, since that is where it came from.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from mimetypes import MimeTypes
from pathlib import PurePosixPath
from urllib.parse import quote

from msgspec import Struct

from cbemail.errors import InvalidRequest
from cbemail.mime import limits
from cbemail.mime.address import Address, check_address, check_display_name
from cbemail.mime.fields import check_field_name, check_field_value, is_message_id


class Attachment(Struct, frozen=True):
    """A file to send. An empty ``content_type`` is told from the file name's extension."""

    filename: str
    content: bytes
    content_type: str = ""
    content_id: str | None = None  # without angle brackets; an HTML body shows it as `cid:…`


class Draft(Struct, frozen=True):
    """Everything an outgoing message is made of. ``bcc`` is written only where a draft is kept for later."""

    sender: Address
    message_id: str
    date: datetime
    to: list[Address] = []
    cc: list[Address] = []
    bcc: list[Address] = []
    reply_to: list[Address] = []
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = []
    headers: dict[str, str] = {}
    in_reply_to: str | None = None
    references: list[str] = []


# ---- header fields the caller may not write, and where to say it instead


_FIELD_FOR = {
    "from": "from",
    "to": "to",
    "cc": "cc",
    "bcc": "bcc",
    "reply-to": "reply_to",
    "subject": "subject",
    "message-id": "message_id",
    "in-reply-to": "reply",
    "references": "reply",
    "date": "send_at",
}
_RESERVED_NAMES = """
    sender mime-version return-path received received-spf delivered-to envelope-to authentication-results
    apparently-to"""
_RESERVED = frozenset(_RESERVED_NAMES.split())
_RESERVED_PREFIXES = ("content-", "resent-", "arc-", "dkim-", "domainkey-")

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_CONTENT_TYPE = re.compile(
    rf"(?P<type>{_WORD}/{_WORD})(?: *; *{_WORD}=(?:{_WORD}|\"(?:[ !#-\[\]-~]|\\[ -~])*+\"))*"
)
_LONGEST_CONTENT_TYPE = 255
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,250}")
_SET_MESSAGE_ID = re.compile(r"<[!-;=?A-~]{1,120}@[!-;=?A-~]{1,120}>")


def check_draft(draft: Draft) -> None:
    """Refuse what cannot be written, or would be read as something else than it was given as.

    Raises:
        InvalidRequest: with the pointer of the first wrong value.
    """
    _check_addresses(draft)
    _check_headers(draft.headers)
    with _at("#/subject"):
        check_field_value(draft.subject)
    check_message_id(draft.message_id)
    for pointer, message_id in _thread(draft):
        if not is_message_id(message_id):
            raise InvalidRequest.at(pointer, "A message id is written in angle brackets, in ASCII.")
    for pointer, text in (("#/body", draft.text), ("#/html", draft.html)):
        with _at(pointer):
            _check_encodable(text or "")
    for index, attachment in enumerate(draft.attachments):
        _check_attachment(f"#/attachments/{index}", attachment)


def check_message_id(message_id: str) -> None:
    """Refuse a Message-ID that is not in the form we give our own (RFC 5322 3.6.4). Raises InvalidRequest."""
    if not _SET_MESSAGE_ID.fullmatch(message_id):
        raise InvalidRequest.at(
            "#/message_id", "A message id is written <unique@domain>, in ASCII."
        )


def content_type_of(attachment: Attachment) -> str:
    """The given content type, else what the file's extension stands for, else application/octet-stream."""
    if attachment.content_type:
        return attachment.content_type
    extension = PurePosixPath(attachment.filename).suffix.lower()
    return _EXTENSIONS.get(extension, "application/octet-stream")


# The table that comes with Python, which is the same on every machine, and what has come up since.
_EXTENSIONS = MimeTypes(filenames=()).types_map[True] | {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".ics": "text/calendar",
    ".gz": "application/gzip",
    ".webp": "image/webp",
    ".heic": "image/heic",
}


@contextmanager
def _at(pointer: str) -> Iterator[None]:
    try:
        yield
    except ValueError as exc:
        raise InvalidRequest.at(pointer, str(exc)) from exc


def _check_addresses(draft: Draft) -> None:
    lists: Sequence[tuple[str, list[Address]]] = (
        ("#/to", draft.to),
        ("#/cc", draft.cc),
        ("#/bcc", draft.bcc),
        ("#/reply_to", draft.reply_to),
    )
    _check_address("#/from", draft.sender)
    for pointer, addresses in lists:
        for index, address in enumerate(addresses):
            _check_address(f"{pointer}/{index}", address)


def _check_address(pointer: str, address: Address) -> None:
    with _at(f"{pointer}/name"):
        check_display_name(address.name or "")
    with _at(pointer):
        check_address(address)


def _check_headers(headers: dict[str, str]) -> None:
    if len(headers) > limits.CUSTOM_HEADERS:
        raise InvalidRequest.at(
            "#/headers", f"At most {limits.CUSTOM_HEADERS} headers can be added."
        )
    for name, value in headers.items():
        with _at(pointer_to_header(name)):
            check_field_name(name)
            _check_allowed(name)
            check_field_value(value)


def _check_allowed(name: str) -> None:
    key = name.lower()
    if key in _FIELD_FOR:
        raise ValueError(f"{name} cannot be set here; use the field `{_FIELD_FOR[key]}`.")
    if key in _RESERVED or key.startswith(_RESERVED_PREFIXES):
        raise ValueError(
            f"{name} is written by this service and by mail servers, and cannot be set."
        )


def pointer_to_header(name: str) -> str:
    """Where a header that is set stands in a request: RFC 6901 3 and 6, a reference token in a URI fragment."""
    token = name.replace("~", "~0").replace("/", "~1")
    escaped = quote(token, safe="~!$&'()*+,;=:@", errors="replace")
    return f"#/headers/{escaped}"


def _thread(draft: Draft) -> Iterator[tuple[str, str]]:
    if draft.in_reply_to is not None:
        yield "#/in_reply_to", draft.in_reply_to
    for index, reference in enumerate(draft.references):
        yield f"#/references/{index}", reference


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("The text holds half a surrogate pair, which is no character.") from exc


def _check_attachment(pointer: str, attachment: Attachment) -> None:
    with _at(f"{pointer}/filename"):
        check_filename(attachment.filename)
    if attachment.content_type:
        with _at(f"{pointer}/content_type"):
            _check_content_type(attachment.content_type)
    if attachment.content_id is not None and not _CONTENT_ID.fullmatch(attachment.content_id):
        raise InvalidRequest.at(
            f"{pointer}/content_id",
            "A content id is 1 to 250 ASCII characters, without spaces and angle brackets.",
        )


def check_filename(filename: str) -> None:
    """Refuse what cannot name an attachment. Raises ValueError with a sentence."""
    check_field_value(filename)
    if not filename.strip() or len(filename.encode()) > limits.FILENAME:
        raise ValueError(f"A file name has 1 to {limits.FILENAME} octets.")


def _check_content_type(content_type: str) -> None:
    match = _CONTENT_TYPE.fullmatch(content_type)
    if match is None or len(content_type) > _LONGEST_CONTENT_TYPE:
        raise ValueError("A content type is written type/subtype, with parameters if need be.")
    kind = match["type"].lower()
    if kind.startswith(("multipart/", "message/")) and kind != "message/rfc822":
        raise ValueError(
            "An attachment cannot be multipart, and of message types message/rfc822 only."
        )
