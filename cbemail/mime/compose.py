"""Outgoing messages: a draft in, octets that are ready for SMTP and APPEND out (RFC 5322, RFC 2045 to 2049).

A builder of its own, since `email.message` takes milliseconds for what takes some tens of microseconds here, and lets
a header name carry a line break.
"""

import re
import secrets
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterator, Sequence
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote

from msgspec import Struct

from cbemail.mime import limits
from cbemail.mime.address import Address, envelope_address, needs_smtputf8
from cbemail.mime.draft import Attachment, Draft, check_draft, content_type_of
from cbemail.mime.fields import encode_addresses, encode_field, encode_message_ids, encode_parameter
from cbemail.mime.html import html_to_text


class Composed(Struct, frozen=True):
    """A message as octets: CRLF line ends only, no line over 998, seven bits unless ``needs_smtputf8``."""

    content: bytes
    message_id: str
    needs_smtputf8: (
        bool  # for the header; the envelope may need it for itself (`address.needs_smtputf8`)
    )


def new_message_id(domain: str) -> str:
    """A Message-ID nobody has and nobody can guess, at the sender's domain."""
    return f"<{secrets.token_hex(16)}@{envelope_address('x@' + domain)[2:]}>"


def compose(draft: Draft, *, keep_bcc: bool = False) -> Composed:
    """The message of ``draft``. The same draft gives the same octets.

    HTML gets a text alternative; attachments the HTML refers to by ``cid:`` go with it, the others behind. Bcc is
    written only with ``keep_bcc``, for a draft that is stored: what is sent must not name them.

    Raises:
        InvalidRequest: a value cannot be written; the pointer is that of `POST /api/send`.
    """
    check_draft(draft)
    content = assemble(_header(draft, keep_bcc=keep_bcc), _root(draft), draft.message_id)
    in_header = [draft.sender, *draft.to, *draft.cc, *draft.reply_to]
    if keep_bcc:
        in_header += draft.bcc
    smtputf8 = any(needs_smtputf8(address.address) for address in in_header)
    return Composed(content, draft.message_id, smtputf8)


# ---- the header


class Header(NamedTuple):
    """The fields of a header in the order they are written. ``sender``, ``reply_to``, ``subject`` and ``more`` are
    whole fields, encoded: of the messages of a mail merge most are the same."""

    sender: bytes
    to: Sequence[Address]
    cc: Sequence[Address]
    reply_to: bytes
    subject: bytes
    date: datetime
    message_id: str
    more: bytes
    bcc: Sequence[Address] | None = None  # None: it is sent, and must not name them

    def write(self) -> bytes:
        fields = [self.sender]
        if self.to:
            fields.append(encode_addresses("To", self.to))
        if self.cc:
            fields.append(encode_addresses("Cc", self.cc))
        if self.bcc:
            fields.append(encode_addresses("Bcc", self.bcc))
        fields.append(self.reply_to)
        if not (self.to or self.cc) and self.bcc is None:
            # Some servers refuse a message that is to nobody.
            fields.append(b"To: undisclosed-recipients:;\r\n")
        message_id = f"Message-ID: {self.message_id}\r\n".encode("ascii")
        return b"".join([*fields, self.subject, _date_field(self.date), message_id, self.more])


@lru_cache(maxsize=8)
def _date_field(date: datetime) -> bytes:
    """Of a mail merge, thousands have the same."""
    return f"Date: {format_datetime(date)}\r\n".encode("ascii")


def _header(draft: Draft, *, keep_bcc: bool) -> bytes:
    more = []
    if draft.in_reply_to is not None:
        more.append(encode_message_ids("In-Reply-To", [draft.in_reply_to]))
    if draft.references:
        more.append(encode_message_ids("References", draft.references))
    more += [encode_field(name, value) for name, value in draft.headers.items()]
    return Header(
        sender=encode_addresses("From", [draft.sender]),
        to=draft.to,
        cc=draft.cc,
        bcc=draft.bcc if keep_bcc else None,
        reply_to=encode_addresses("Reply-To", draft.reply_to) if draft.reply_to else b"",
        subject=encode_field("Subject", draft.subject),
        date=draft.date,
        message_id=draft.message_id,
        more=b"".join(more),
    ).write()


# ---- the tree of parts


class Leaf(NamedTuple):
    """``fields`` and ``body`` as they will be written; ``verbatim``: the body is not in a transfer encoding."""

    fields: bytes
    body: bytes
    verbatim: bool


class Multipart(NamedTuple):
    subtype: bytes
    parts: list["Leaf | Multipart"]


Part = Leaf | Multipart


def tree(text: Leaf, html: Leaf | None, inline: Sequence[Leaf], files: Sequence[Leaf]) -> Part:
    """The parts of a message in their places; ``inline`` are shown by the HTML."""
    body: Part = text
    if html is not None:
        shown = Multipart(b'related; type="text/html"', [html, *inline]) if inline else html
        body = Multipart(b"alternative", [text, shown])
    return Multipart(b"mixed", [body, *files]) if files else body


def _root(draft: Draft) -> Part:
    inline: list[Leaf] = []
    files: list[Leaf] = []
    for attachment in draft.attachments:
        shown = is_shown(attachment, draft.html)
        (inline if shown else files).append(encode_file(attachment).leaf(attachment, inline=shown))
    html = None if draft.html is None else text_leaf("html", draft.html)
    text = draft.text
    if text is None:
        text = "" if draft.html is None else html_to_text(draft.html)
    return tree(text_leaf("plain", text), html, inline, files)


def is_shown(attachment: Attachment, html: str | None) -> bool:
    """Whether ``html`` refers to the attachment."""
    if attachment.content_id is None or html is None:
        return False
    return f"cid:{attachment.content_id}" in html or f"cid:{quote(attachment.content_id)}" in html


_LINE_END = re.compile(r"\r\n|\r|\n")
_LINE_END_OCTETS = re.compile(rb"\r\n|\r|\n")


def text_leaf(subtype: str, text: str) -> Leaf:
    """A ``text/…`` part, in the transfer encoding that suits it."""
    lines = _LINE_END.sub("\r\n", text) if "\r" in text else text.replace("\n", "\r\n")
    if not lines.endswith("\r\n"):
        lines += "\r\n"
    octets = lines.encode()
    encoding, body = b"7bit", octets
    if not _is_seven_bit(octets):
        # Readable on the way as long as it is mostly ASCII; base64 is shorter for what is mostly not.
        escaped = (len(octets) - len(lines)) * 2
        if escaped * 4 <= len(octets):
            encoding, body = b"quoted-printable", b2a_qp(octets, istext=True)
        else:
            encoding, body = b"base64", _base64(octets)
    return Leaf(_text_fields(subtype, encoding), body, encoding == b"7bit")


@lru_cache(maxsize=8)
def _text_fields(subtype: str, encoding: bytes) -> bytes:
    fields = b"Content-Type: text/%b; charset=utf-8\r\nContent-Transfer-Encoding: %b\r\n"
    return fields % (subtype.encode("ascii"), encoding)


class EncodedFile(NamedTuple):
    """An attachment's content, encoded once for all the messages it goes with."""

    content_type: str
    encoding: str
    body: bytes

    def leaf(self, attachment: Attachment, *, inline: bool) -> Leaf:
        """The part that carries it under the attachment's name."""
        disposition = "inline" if inline else "attachment"
        filename = encode_parameter("filename", attachment.filename).decode("ascii")
        fields = (
            f"Content-Type: {self.content_type}\r\nContent-Transfer-Encoding: {self.encoding}\r\n"
            f"Content-Disposition: {disposition};\r\n {filename}\r\n"
        )
        if attachment.content_id is not None:
            fields += f"Content-ID: <{attachment.content_id}>\r\n"
        return Leaf(fields.encode("ascii"), self.body, self.encoding == "7bit")


def encode_file(attachment: Attachment) -> EncodedFile:
    content_type, content = content_type_of(attachment), attachment.content
    if content_type.lower().startswith("message/rfc822"):
        message = _LINE_END_OCTETS.sub(b"\r\n", content)
        if _is_seven_bit(message):
            return EncodedFile(content_type, "7bit", message)
        # RFC 2046 5.2.1 allows no encoding, and eight bits may not pass: it goes as a file, octet for octet.
        content_type = "application/octet-stream"
    return EncodedFile(content_type, "base64", _base64(content))


def _is_seven_bit(octets: bytes) -> bool:
    """RFC 2045 2.7: ASCII but NUL, in lines of at most 998 octets. The line ends are known to be CRLF."""
    if not octets.isascii() or b"\0" in octets:
        return False
    start = 0  # of a line; from there on, the last line end within reach of it
    while len(octets) - start > limits.LINE_HARD:
        start = octets.rfind(b"\n", start, start + limits.LINE_HARD + len("\r\n")) + 1
        if not start:
            return False
    return True


def _base64(octets: bytes) -> bytes:
    encoded = b2a_base64(octets, newline=False)
    lines = [encoded[at : at + limits.LINE] for at in range(0, len(encoded), limits.LINE)]
    return b"\r\n".join([*lines, b""])


# ---- octets


def assemble(header: bytes, root: Part, message_id: str) -> bytes:
    """The whole message."""
    boundary = b""
    if not isinstance(root, Leaf):
        verbatim = [leaf.body for leaf in _leaves(root) if leaf.verbatim]
        boundary = _unused_boundary(message_id, verbatim)
    pieces = [header, b"MIME-Version: 1.0\r\n"]
    _write(root, boundary, 1, pieces)
    return b"".join(pieces)


def _unused_boundary(message_id: str, verbatim: Sequence[bytes]) -> bytes:
    """A boundary no part holds. ``=_`` stands in no encoded part, so only the ``verbatim`` ones need a look."""
    attempt = 0
    while True:
        digest = sha256(f"{attempt} {message_id}".encode()).hexdigest()
        boundary = b"=_" + digest[:32].encode("ascii")
        if not any(boundary in body for body in verbatim):
            return boundary
        attempt += 1


def _leaves(part: Part) -> Iterator[Leaf]:
    if isinstance(part, Leaf):
        yield part
    else:
        for each in part.parts:
            yield from _leaves(each)


def _write(part: Part, boundary: bytes, level: int, pieces: list[bytes]) -> None:
    """The octets of a part; multiparts inside each other have boundaries of the same length, none a prefix."""
    if isinstance(part, Leaf):
        pieces += (part.fields, b"\r\n", part.body)
        return
    own = b"%b.%d" % (boundary, level)
    head = b'Content-Type: multipart/%b;\r\n boundary="%b"\r\n\r\n'
    pieces.append(head % (part.subtype, own))
    for each in part.parts:
        pieces.append(b"--%b\r\n" % own)
        _write(each, boundary, level + 1, pieces)
        pieces.append(b"\r\n")
    pieces.append(b"--%b--\r\n" % own)
