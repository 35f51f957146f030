"""One MIME part, as IMAP gives it, to octets and text: transfer encodings, charsets, format=flowed. Total and linear."""

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, a2b_qp, a2b_uu
from typing import Protocol

from cbemail.mime import limits
from cbemail.mime.charset import decode_charset

_NOT_BASE64 = bytes(
    set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
)
# White space before the end of a soft line break is transport padding (RFC 2045 6.7 (3)), within reason.
_SOFT_BREAK = re.compile(rb"=[ \t]{0,32}\r?\n")
_STRAY_EQUALS = re.compile(rb"=(?![0-9A-Fa-f]{2}|[ \t]{0,32}\r?\n)")
_UNDECIDED = re.compile(rb"=(?:[0-9A-Fa-f]|[ \t]{0,32}\r?)\Z")
_LONGEST_UNDECIDED = 34
# The beginning of one in UTF-8 (RFC 3629). In other charsets it may be a whole one, and is no loss at a cut.
_HALF_CHARACTER = re.compile(
    rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z"
)


def decode_transfer(data: bytes, encoding: str) -> bytes:
    """A whole part without its Content-Transfer-Encoding; see `TransferDecoder`."""
    decoder = TransferDecoder(encoding)
    return decoder.feed(data) + decoder.finish()


def read_text(
    data: bytes,
    *,
    encoding: str,
    charset: str | None,
    flowed: bool,
    delsp: bool,
    whole: bool = True,
) -> str:
    """The text of a text part, with ``\\n`` line ends; what lies beyond `limits.TEXT` is left out.

    Where ``data`` is not the ``whole`` part, half a character at its end does not count: it would be taken for a sign
    that all of the text is in another charset.
    """
    octets = decode_transfer(data, encoding)
    if not whole or len(octets) > limits.TEXT:
        octets = _HALF_CHARACTER.sub(b"", octets[: limits.TEXT])
    text = decode_charset(octets, charset)
    return unflow(text, delsp=delsp) if flowed else text


def unflow(text: str, *, delsp: bool) -> str:
    """format=flowed text with each paragraph on one line (RFC 3676 4); ``delsp`` is its DelSp parameter."""
    paragraphs: list[list[str]] = []
    open_depth = -1  # the quote depth of a paragraph that goes on, if one does
    for line in text.split("\n"):
        content = line.lstrip(">")
        depth = len(line) - len(content)
        content = content.removeprefix(" ")  # space-stuffing
        signature = content == "-- "
        flows = content.endswith(" ") and not signature
        part = content[:-1] if flows and delsp else content
        if depth == open_depth and not signature:
            paragraphs[-1].append(part)
        else:
            paragraphs.append([">" * depth + " " if depth and part else ">" * depth, part])
        open_depth = depth if flows else -1
    return "\n".join("".join(parts) for parts in paragraphs)


# ---- transfer encodings


class TransferDecoder:
    """Undoes a Content-Transfer-Encoding (RFC 2045 6) piece by piece.

    The octets are the same however the input is cut. Damage never raises: what is not in the alphabet is skipped, a
    broken escape stays as it is, and an unknown encoding is none.
    """

    def __init__(self, encoding: str) -> None:
        self._decoder = _DECODERS.get(encoding.strip().lower(), _Identity)()

    def feed(self, chunk: bytes) -> bytes:
        """The octets that ``chunk`` decides."""
        return self._decoder.feed(chunk)

    def finish(self) -> bytes:
        """The octets that only the end of the part decides."""
        return self._decoder.finish()


class _Decoder(Protocol):
    def feed(self, chunk: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class _Identity:
    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> bytes:
        return b""


class _Base64:
    def __init__(self) -> None:
        self._quantum = b""  # up to three characters of an unfinished one
        self._padded = False

    def feed(self, chunk: bytes) -> bytes:
        if self._padded:
            return b""
        data = self._quantum + chunk.translate(None, _NOT_BASE64)
        if b"=" in data:
            data = self._before_padding(data)
        whole = len(data) & ~3
        self._quantum = data[whole:]
        return a2b_base64(data[:whole])

    def finish(self) -> bytes:
        if len(self._quantum) < 2:  # six bits make no octet
            return b""
        return a2b_base64(self._quantum + b"=" * (4 - len(self._quantum)))

    def _before_padding(self, data: bytes) -> bytes:
        """Padding ends the data: what follows is a mailing list's footer. A ``=`` where none can be is noise."""
        noise = 0
        at = data.find(b"=")
        while at >= 0:
            if (at - noise) % 4 >= 2:
                self._padded = True
                data = data[:at]
                break
            noise += 1
            at = data.find(b"=", at + 1)
        return data.replace(b"=", b"")


class _QuotedPrintable:
    def __init__(self) -> None:
        self._undecided = b""

    def feed(self, chunk: bytes) -> bytes:
        data = self._undecided + chunk
        self._undecided = b""
        at = data.rfind(b"=", max(0, len(data) - _LONGEST_UNDECIDED))
        if at >= 0 and _UNDECIDED.match(data, at):
            data, self._undecided = data[:at], data[at:]
        if b"=" not in data:
            return data
        # Stray signs first: a soft break taken out must not make an escape of what stood around it. What is left
        # is escapes only, which the C decoder does at once; on strays it would lose text up to the next line.
        return a2b_qp(_SOFT_BREAK.sub(b"", _STRAY_EQUALS.sub(b"=3D", data)))

    def finish(self) -> bytes:
        rest, self._undecided = self._undecided, b""
        return rest if rest[1:].isalnum() else b""  # half an escape, or a soft break cut short


class _Uuencode:
    def __init__(self) -> None:
        self._line = bytearray()
        self._inside = False

    def feed(self, chunk: bytes) -> bytes:
        self._line += chunk
        if b"\n" not in chunk:
            return b""
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        return b"".join([self._decode(bytes(line.rstrip(b"\r"))) for line in lines])

    def finish(self) -> bytes:
        return self.feed(b"\n")

    def _decode(self, line: bytes) -> bytes:
        if not self._inside:
            self._inside = line.startswith(b"begin ")
            return b""
        if line == b"end":
            self._inside = False
        if line in (b"end", b"", b"`"):
            return b""
        try:
            return a2b_uu(line)
        except BinasciiError:
            return self._by_its_length(line)

    @staticmethod
    def _by_its_length(line: bytes) -> bytes:
        """Some encoders pad a line: its first character says how much of it counts."""
        counted = (((line[0] - 32) & 63) * 4 + 5) // 3
        try:
            return a2b_uu(line[:counted])
        except BinasciiError:
            return b""


_DECODERS: dict[str, type[_Decoder]] = {
    "base64": _Base64,
    "quoted-printable": _QuotedPrintable,
    "x-uuencode": _Uuencode,
    "x-uue": _Uuencode,
    "uuencode": _Uuencode,
}
