"""RFC 2047 encoded words: header octets -> text, and text -> words."""

import re
from binascii import a2b_base64, a2b_qp, b2a_base64

from cbemail.mime import limits
from cbemail.mime.charset import decode_octets

# charset, optional language (RFC 2231 5), encoding, text. Text may hold spaces: many senders leave them in.
# Each `=?` is read at most up to the next `?`s, so hostile input costs linear time.
_WORD = re.compile(rb"=\?([!-)+->@-~]{1,40}+)(?:\*[!->@-~]*+)?\?([bBqQ])\?([^?]*+)\?=")
_NOT_BASE64 = bytes(
    set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
)
_BREAKS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
# RFC 2047 5 (3): what may stand in a word inside a phrase, the narrowest place
_Q_LITERAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_WRAPPING = len("=?utf-8?q??=")


def decode_text(raw: bytes) -> str:
    """An unstructured header value, or a phrase, as one line of text.

    Adjacent words of one charset are joined before the charset is decoded: senders cut words inside multi-octet
    characters. Control characters, line breaks among them, become a space, so that nothing decoded can end a line.
    """
    raw = raw[: limits.FIELD]
    if b"=?" not in raw:
        return one_line(decode_octets(raw, None))
    texts: list[str] = []
    run: list[bytes] = []  # octets of adjacent words in `charset`
    charset = b""
    end = 0
    for word in _WORD.finditer(raw):
        between = raw[end : word.start()]
        adjacent = bool(run) and not between.strip()
        if run and not (adjacent and word[1].lower() == charset):
            texts.append(decode_octets(b"".join(run), charset.decode("ascii")))
            run = []
        if not adjacent:
            texts.append(decode_octets(between, None))
        charset, end = word[1].lower(), word.end()
        run.append(_decode_word(word[2], word[3]))
    if run:
        texts.append(decode_octets(b"".join(run), charset.decode("ascii")))
    texts.append(decode_octets(raw[end:], None))
    return one_line("".join(texts))


def one_line(text: str) -> str:
    """``text`` without control characters, line breaks and lone surrogates, stripped."""
    if not text.isprintable():
        text = _SURROGATES.sub("\ufffd", _BREAKS.sub(" ", text))
    return text.strip()


def is_one_line(text: str) -> bool:
    """Whether ``text`` can stand in a header field: no control character, line break or lone surrogate in it."""
    return text.isprintable() or not (_BREAKS.search(text) or _SURROGATES.search(text))


def _decode_word(encoding: bytes, text: bytes) -> bytes:
    if encoding in b"qQ":
        return a2b_qp(text, header=True)
    return decode_base64(text)


def decode_base64(text: bytes) -> bytes:
    """Base64 that need not be padded, clean or complete."""
    text = text.translate(None, _NOT_BASE64)
    if len(text) % 4 == 1:  # six bits make no octet
        text = text[:-1]
    return a2b_base64(text + b"=" * (-len(text) % 4))


def encode_words(text: str, *, first: int = limits.LINE) -> list[str]:
    """``text`` as encoded words in UTF-8, none longer than ``first`` (the first one) or a line.

    A word never ends inside a character (RFC 2047 5), and is Q or B, whichever is shorter for the whole text.
    """
    q_costs = [1 if c in _Q_LITERAL or c == " " else 3 * len(c.encode()) for c in text]
    base64 = sum(q_costs) * 3 > len(text.encode()) * 4
    costs = [len(c.encode()) for c in text] if base64 else q_costs
    words: list[str] = []
    start, used, room = 0, 0, _room(first, base64=base64)
    for index, cost in enumerate(costs):
        if used + cost > room and index > start:
            words.append(_encode_word(text[start:index], base64=base64))
            start, used, room = index, 0, _room(limits.LINE - 1, base64=base64)
        used += cost
    words.append(_encode_word(text[start:], base64=base64))
    return words


def _room(width: int, *, base64: bool) -> int:
    return (width - _WRAPPING) // 4 * 3 if base64 else width - _WRAPPING


def _encode_word(text: str, *, base64: bool) -> str:
    if base64:
        return f"=?utf-8?b?{b2a_base64(text.encode(), newline=False).decode()}?="
    coded = (
        c
        if c in _Q_LITERAL
        else "_"
        if c == " "
        else "".join(f"={octet:02X}" for octet in c.encode())
        for c in text
    )
    return f"=?utf-8?q?{''.join(coded)}?="
