"""Header fields as written: checked, encoded (RFC 2047, RFC 2231) and folded. Nothing given can add a line or a field."""

import re
from collections.abc import Iterable
from urllib.parse import quote

from cbemail.mime import limits
from cbemail.mime.address import Address, envelope_address
from cbemail.mime.words import encode_words, is_one_line

_NAME = re.compile(r"[!-9;-~]{1,76}")
_ORDINARY = re.compile(r"[!-~](?:[ -~]*[!-~])?")  # what nearly all values are: ASCII, as it stands
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_SPECIAL_IN_QUOTES = re.compile(r'(["\\])')
_SPACES = re.compile(r" ++")
_ATTRIBUTE_CHARACTERS = "!#$&+-.^_`{|}~"  # RFC 2231 7, with letters and digits
_LONGEST_QUOTED = 60  # a longer parameter value goes RFC 2231's way, as a non-ASCII one does
_SHORTEST_WORD = 30  # an encoded word narrower than this is not worth starting on a line
_LONGEST_ADDRESS_FIELD = len("Reply-To: ")


def check_field_name(name: str) -> str:
    """``name``, if it can name a header field (RFC 5322 3.6.8). Raises ValueError with a sentence."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "A header name is 1 to 76 printable ASCII characters, without space and colon."
        )
    return name


def check_field_value(value: str) -> str:
    """``value``, if it can stand in a header field as it is. Raises ValueError with a sentence."""
    if not is_one_line(value):
        raise ValueError("The value must not hold line breaks or control characters.")
    return value


def encode_field(name: str, value: str) -> bytes:
    """An unstructured field, folded, with its CRLF; non-ASCII text as encoded words (RFC 2047).

    Text that only looks like an encoded word is encoded too, so that it reads back as it was written.

    Raises:
        ValueError: the name or the value cannot stand in a header.
    """
    check_field_name(name)
    if (
        len(name) + len(value) + 2 <= limits.LINE
        and _ORDINARY.fullmatch(value)
        and "=?" not in value
    ):
        return f"{name}: {value}\r\n".encode("ascii")  # as the rules below have it, for a fifth
    value = check_field_value(value).strip()
    if value.isascii() and "=?" not in value:
        lines = _fold(f"{name}: {value}".rstrip(), len(name) + 2)
        if max(map(len, lines)) <= limits.LINE_HARD:
            return "\r\n".join(lines).encode("ascii") + b"\r\n"
    room = limits.LINE - len(name) - 2
    if room < _SHORTEST_WORD:
        start, room = f"{name}:\r\n ", limits.LINE - 1
    else:
        start = f"{name}: "
    return (start + "\r\n ".join(encode_words(value, first=room))).encode("ascii") + b"\r\n"


def encode_addresses(name: str, addresses: Iterable[Address]) -> bytes:
    """An address field (RFC 5322 3.4), folded, with its CRLF.

    ASCII but for a non-ASCII local part, which has no other form and needs SMTPUTF8 (RFC 6532).

    Raises:
        ValueError: a domain has no ASCII form, or a display name holds a control character.
    """
    mailboxes = [_mailbox(address) for address in addresses]
    for mailbox in mailboxes[:-1]:
        mailbox[-1] += ","
    lines = [f"{name}:"]
    for piece in (piece for mailbox in mailboxes for piece in mailbox):
        if len(lines[-1]) + 1 + len(piece) > limits.LINE and (len(lines) > 1 or " " in lines[0]):
            lines.append("")
        lines[-1] += f" {piece}"
    return "\r\n".join(lines).encode() + b"\r\n"


def encode_parameter(name: str, value: str) -> bytes:
    """``name="value"``, or RFC 2231's ``name*=`` for what is long, not ASCII, or looks like an encoded word.

    Raises:
        ValueError: the value holds a control character, or does not fit a line.
    """
    check_field_value(value)
    if value.isascii() and len(value) <= _LONGEST_QUOTED and "=?" not in value:
        return f'{name}="{_escape(value)}"'.encode("ascii")
    encoded = f"{name}*=utf-8''{quote(value, safe=_ATTRIBUTE_CHARACTERS)}"
    if len(encoded) + 2 > limits.LINE_HARD:
        raise ValueError("The value is too long.")
    return encoded.encode("ascii")


def encode_message_ids(name: str, message_ids: Iterable[str]) -> bytes:
    """An In-Reply-To or References field of ids that passed `is_message_id`, one a line (RFC 5322 3.6.4)."""
    return (f"{name}: " + "\r\n ".join(message_ids) + "\r\n").encode("ascii")


def is_message_id(text: str) -> bool:
    """Whether ``text`` can be written as a message id: odd ones of others must be quoted back as they are."""
    return _MESSAGE_ID.fullmatch(text) is not None


def _mailbox(address: Address) -> list[str]:
    """The pieces of a mailbox a line may end between."""
    spec = envelope_address(address.address)
    if not address.name:
        return [spec]
    return [*_phrase(check_field_value(address.name)), f"<{spec}>"]


def _phrase(name: str) -> list[str]:
    if not name.isascii() or "=?" in name:
        return encode_words(name, first=limits.LINE - _LONGEST_ADDRESS_FIELD)
    return [name] if _ATOMS.fullmatch(name) else [f'"{_escape(name)}"']


def _escape(text: str) -> str:
    return _SPECIAL_IN_QUOTES.sub(r"\\\1", text)


def _fold(line: str, start: int) -> list[str]:
    """``line`` cut before spaces behind ``start``, where it is longer than a line should be.

    Unfolding removes the line end alone (RFC 5322 2.2.3), so every space stays where it was.
    """
    lines = []
    cut = begin = 0
    for spaces in _SPACES.finditer(line, start):
        if spaces.start() - begin > limits.LINE and cut > begin:
            lines.append(line[begin:cut])
            begin = cut
        cut = spaces.start()
    if len(line) - begin > limits.LINE and cut > begin:
        lines.append(line[begin:cut])
        begin = cut
    return [*lines, line[begin:]]
