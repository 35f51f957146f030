"""What is handed to an SMTP server, and how it is spelled on the wire: commands without a loophole, a body with one end.

Pure. Everything that reaches a server as a line goes through here, so that no address can add a parameter or a
line, and no content can end its message early and begin another (SMTP smuggling).
"""

import re
from collections.abc import Mapping

from msgspec import Struct


class Envelope(Struct, frozen=True):
    """One message for one transaction: MAIL FROM, RCPT TO and content.

    Addresses are in envelope form, ``local@domain`` with the domain in A-labels. A local part that is not ASCII
    needs ``smtputf8`` (RFC 6531), as does content with such header fields.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    smtputf8: bool = False


class Extensions(Struct, frozen=True):
    """What of the server's EHLO matters for a transaction."""

    pipelining: bool = False  # RFC 2920
    eight_bit: bool = False  # 8BITMIME, RFC 6152
    smtputf8: bool = False  # RFC 6531
    size_offered: bool = False  # SIZE, RFC 1870
    max_size: int | None = None  # octets; None when the server names no limit

    @classmethod
    def of(cls, ehlo: Mapping[str, str]) -> "Extensions":
        """Read them from EHLO's keywords, in lower case, and their parameters."""
        limit = ehlo.get("size", "").strip()
        return cls(
            pipelining="pipelining" in ehlo,
            eight_bit="8bitmime" in ehlo,
            smtputf8="smtputf8" in ehlo,
            size_offered="size" in ehlo,
            # RFC 1870 section 4: zero, or nothing, is no fixed limit. The length bound keeps int() cheap.
            max_size=int(limit) or None if re.fullmatch(r"[0-9]{1,20}", limit) else None,
        )


# ---- commands

# RFC 5321 4.1.2, and dots wherever real mailboxes have them. Nothing else may stand in an address on the wire.
_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~.-"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Za-z0-9:.-]+\])"
# RFC 6531 3.3 adds every character beyond ASCII; controls, spaces, line separators and lone surrogates stay out.
_BEYOND_ASCII = r"[^\x00-\x9f\s\u2028\u2029\ud800-\udfff]"
_ASCII_ADDRESS = re.compile(rf"(?:[{_ATEXT}]+|{_QUOTED})@{_DOMAIN}")
_UTF8_ADDRESS = re.compile(rf"(?:(?:[{_ATEXT}]|{_BEYOND_ASCII})+|{_QUOTED})@{_DOMAIN}")
_MAX_ADDRESS = 254  # octets: a path has 256 with its brackets (RFC 5321 4.5.3.1.3)


def _path(address: str, *, smtputf8: bool) -> bytes:
    pattern = _UTF8_ADDRESS if smtputf8 else _ASCII_ADDRESS
    if not pattern.fullmatch(address):
        raise ValueError("not an address in envelope form")
    path = address.encode()
    if len(path) > _MAX_ADDRESS:
        raise ValueError("address too long")
    return path


def mail_command(envelope: Envelope, size: int, extensions: Extensions) -> bytes:
    """MAIL FROM with the parameters that are needed and offered; ``size`` is the content's in octets."""
    command = b"MAIL FROM:<" + _path(envelope.sender, smtputf8=envelope.smtputf8) + b">"
    if extensions.size_offered:
        command += b" SIZE=%d" % size
    # Without 8BITMIME eight-bit content goes as it is: the few servers left without the keyword pass it on.
    if extensions.eight_bit and not envelope.content.isascii():
        command += b" BODY=8BITMIME"
    if envelope.smtputf8:
        command += b" SMTPUTF8"
    return command + b"\r\n"


def rcpt_command(address: str, *, smtputf8: bool = False) -> bytes:
    """RCPT TO for exactly this mailbox.

    >>> rcpt_command("c@d.example")
    b'RCPT TO:<c@d.example>\\r\\n'
    >>> rcpt_command("c@d.example> NOTIFY=NEVER")
    Traceback (most recent call last):
    ValueError: not an address in envelope form
    """
    return b"RCPT TO:<" + _path(address, smtputf8=smtputf8) + b">\r\n"


# ---- content

_LINE_END = re.compile(rb"\r\n|\r|\n")


def normalise(content: bytes) -> bytes:
    """The content with CRLF line ends only, the last line ended too (RFC 5321 2.3.8).

    A bare CR or LF is what servers disagree about: one takes ``LF . LF`` for the end of the message, the next
    does not, and whatever follows becomes a second message. None leaves here.
    """
    crlf = content.count(b"\r\n")
    if content.count(b"\n") != crlf or content.count(b"\r") != crlf:
        content = _LINE_END.sub(b"\r\n", content)
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def stuff_dots(content: bytes) -> bytes:
    """Normalised content with each line's leading dot doubled (RFC 5321 4.5.2)."""
    if b"\n." in content:
        content = content.replace(b"\n.", b"\n..")
    return b"." + content if content.startswith(b".") else content
