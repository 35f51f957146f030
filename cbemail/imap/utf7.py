"""Modified UTF-7, the spelling of mailbox names on the wire (RFC 3501 5.1.3)."""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

_SHIFTED_TEXT = re.compile(r"[^ -~]+")
_SHIFT = re.compile(r"&([A-Za-z0-9+,]*+)-")


def encode(text: str) -> bytes:
    """Spell ``text`` in printable ASCII, the one way the RFC allows.

    >>> encode("Entwürfe & Co")
    b'Entw&APw-rfe &- Co'

    Raises:
        UnicodeEncodeError: ``text`` holds half of a surrogate pair, which no spelling can carry.
    """
    return _SHIFTED_TEXT.sub(_shift, text.replace("&", "&-")).encode("ascii")


def decode(raw: bytes) -> str:
    """Read a mailbox name, whatever a server made of it.

    Octets that are no modified UTF-7 stay as they are: a bare ``&``, and raw UTF-8, which some servers send
    (anything else above ASCII is read as Latin-1, so the result can always be shown). Such a name does not
    encode back to ``raw``; ``parser.list_data`` remembers the spelling of those.

    >>> decode(b"Entw&APw-rfe"), decode(b"Tom & Jerry"), decode("Entwürfe".encode())
    ('Entwürfe', 'Tom & Jerry', 'Entwürfe')
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return _SHIFT.sub(_unshift, text)


def _shift(run: re.Match[str]) -> str:
    base64 = b2a_base64(run[0].encode("utf-16-be"), newline=False).decode("ascii")
    return f"&{base64.rstrip('=').replace('/', ',')}-"


def _unshift(run: re.Match[str]) -> str:
    base64: str = run[1].replace(",", "/")
    if not base64:
        return "&"
    try:
        return a2b_base64(base64 + "=" * (-len(base64) % 4)).decode("utf-16-be")
    except (Base64Error, UnicodeDecodeError):
        return run[0]
