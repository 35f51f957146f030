"""Outgoing messages: a draft in, octets that are ready for SMTP and APPEND out (RFC 5322, RFC 2045 to 2049).

A builder of its own, since `email.message` takes milliseconds for what takes some tens of microseconds here, and lets
a header name carry a line break.
"""

import re
import secrets
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterator
from email.utils import format_datetime
from hashlib import sha256
from itertools import count
from typing import NamedTuple
from urllib.parse import quote

from msgspec import Struct

from cbemail.mime import limits
from cbemail.mime.address import envelope_address, needs_smtputf8
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
    root = _root(draft)
    boundary = _unused_boundary(draft.message_id, root)
    header = _header(draft, keep_bcc=keep_bcc)
    content = b"".join([header, b"MIME-Version: 1.0\r\n", *_write(root, boundary)])
    in_header = [draft.sender, *draft.to, *draft.cc, *draft.reply_to]
    if keep_bcc:
        in_header += draft.bcc
    smtputf8 = any(needs_smtputf8(address.address) for address in in_header)
    return Composed(content, draft.message_id, smtputf8)


def _header(draft: Draft, *, keep_bcc: bool) -> bytes:
    fields = [encode_addresses("From", [draft.sender])]
    for name, addresses in (
        ("To", draft.to),
        ("Cc", draft.cc),
        ("Bcc", draft.bcc if keep_bcc else []),
        ("Reply-To", draft.reply_to),
    ):
        if addresses:
            fields.append(encode_addresses(name, addresses))
    if not (draft.to or draft.cc or keep_bcc):  # some servers refuse a message that is to nobody
        fields.append(b"To: undisclosed-recipients:;\r\n")
    fields.append(encode_field("Subject", draft.subject))
    fields.append(f"Date: {format_datetime(draft.date)}\r\n".encode("ascii"))
    fields.append(f"Message-ID: {draft.message_id}\r\n".encode("ascii"))
    if draft.in_reply_to is not None:
        fields.append(encode_message_ids("In-Reply-To", [draft.in_reply_to]))
    if draft.references:
        fields.append(encode_message_ids("References", draft.references))
    fields += [encode_field(name, value) for name, value in draft.headers.items()]
    return b"".join(fields)


# ---- the tree of parts


class _Leaf(NamedTuple):
    """``fields`` and ``body`` as they will be written; ``verbatim``: the body is not in a transfer encoding."""

    fields: bytes
    body: bytes
    verbatim: bool


class _Multipart(NamedTuple):
    subtype: bytes
    parts: list["_Leaf | _Multipart"]


_Part = _Leaf | _Multipart


def _root(draft: Draft) -> _Part:
    inline: list[_Leaf] = []
    files: list[_Leaf] = []
    for attachment in draft.attachments:
        is_inline = _is_shown(attachment, draft.html)
        (inline if is_inline else files).append(_attachment(attachment, inline=is_inline))
    body = _body(draft, inline)
    return _Multipart(b"mixed", [body, *files]) if files else body


def _body(draft: Draft, inline: list[_Leaf]) -> _Part:
    if draft.html is None:
        return _text("plain", draft.text or "")
    html: _Part = _text("html", draft.html)
    if inline:
        html = _Multipart(b'related; type="text/html"', [html, *inline])
    text = draft.text if draft.text is not None else html_to_text(draft.html)
    return _Multipart(b"alternative", [_text("plain", text), html])


def _is_shown(attachment: Attachment, html: str | None) -> bool:
    if attachment.content_id is None or html is None:
        return False
    return f"cid:{attachment.content_id}" in html or f"cid:{quote(attachment.content_id)}" in html


_LINE_END = re.compile(r"\r\n|\r|\n")
_LINE_END_OCTETS = re.compile(rb"\r\n|\r|\n")


def _text(subtype: str, text: str) -> _Leaf:
    lines = _LINE_END.sub("\r\n", text)
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
    fields = b"Content-Type: text/%b; charset=utf-8\r\nContent-Transfer-Encoding: %b\r\n"
    return _Leaf(fields % (subtype.encode("ascii"), encoding), body, encoding == b"7bit")


def _attachment(attachment: Attachment, *, inline: bool) -> _Leaf:
    content_type, encoding, body = content_type_of(attachment), "base64", attachment.content
    if content_type.lower().startswith("message/rfc822"):
        body = _LINE_END_OCTETS.sub(b"\r\n", body)
        if _is_seven_bit(body):
            encoding = "7bit"
        else:
            # RFC 2046 5.2.1 allows no encoding, and eight bits may not pass: it goes as a file, octet for octet.
            content_type, body = "application/octet-stream", attachment.content
    disposition = "inline" if inline else "attachment"
    filename = encode_parameter("filename", attachment.filename).decode("ascii")
    fields = (
        f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n"
        f"Content-Disposition: {disposition};\r\n {filename}\r\n"
    )
    if attachment.content_id is not None:
        fields += f"Content-ID: <{attachment.content_id}>\r\n"
    verbatim = encoding == "7bit"
    return _Leaf(fields.encode("ascii"), body if verbatim else _base64(body), verbatim)


def _is_seven_bit(octets: bytes) -> bool:
    """RFC 2045 2.7: ASCII but NUL, in lines of at most 998 octets. The line ends are known to be CRLF."""
    if not octets.isascii() or b"\0" in octets:
        return False
    return max(map(len, octets.split(b"\r\n"))) <= limits.LINE_HARD


def _base64(octets: bytes) -> bytes:
    encoded = b2a_base64(octets, newline=False)
    lines = [encoded[at : at + limits.LINE] for at in range(0, len(encoded), limits.LINE)]
    return b"\r\n".join([*lines, b""])


# ---- octets


def _unused_boundary(message_id: str, root: _Part) -> bytes:
    """A boundary no part holds. ``=_`` stands in no encoded part, so only the others need a look."""
    verbatim = [leaf.body for leaf in _leaves(root) if leaf.verbatim]
    digests = (sha256(f"{attempt} {message_id}".encode()).hexdigest() for attempt in count())
    boundaries = (b"=_" + digest[:32].encode("ascii") for digest in digests)
    return next(each for each in boundaries if not any(each in body for body in verbatim))


def _leaves(part: _Part) -> Iterator[_Leaf]:
    if isinstance(part, _Leaf):
        yield part
    else:
        for each in part.parts:
            yield from _leaves(each)


def _write(part: _Part, boundary: bytes, level: int = 1) -> Iterator[bytes]:
    """The octets of a part; multiparts inside each other have boundaries of the same length, none a prefix."""
    if isinstance(part, _Leaf):
        yield part.fields
        yield b"\r\n"
        yield part.body
        return
    own = b"%b.%d" % (boundary, level)
    yield b'Content-Type: multipart/%b;\r\n boundary="%b"\r\n\r\n' % (
        part.subtype,
        own,
    )
    for each in part.parts:
        yield b"--%b\r\n" % own
        yield from _write(each, boundary, level + 1)
        yield b"\r\n"
    yield b"--%b--\r\n" % own
