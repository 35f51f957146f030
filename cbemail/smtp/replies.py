"""What an SMTP server says: its replies (RFC 5321 4.2), their enhanced codes (RFC 3463), and what they mean.

Classification looks at the reply code first, then at the enhanced code. The text is never looked at: it is prose,
in any language, for the log.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

MAX_REPLY = (
    32 * 1024
)  # octets, all lines together; a real EHLO or a talkative refusal has a few hundred


class Phase(StrEnum):
    """How far a mail transaction has come. Up to BODY nothing can have been delivered (RFC 5321 4.1.1.4)."""

    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    FINAL = (
        "final"  # the final dot has been written: from here on only a reply tells what became of it
    )


class Verdict(StrEnum):
    """What a reply means for the message, or for the one recipient it answers."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"  # not now: the same may succeed later
    THROTTLED = "throttled"  # likewise, and fewer connections or messages a minute are wanted
    TOO_MANY_RECIPIENTS = "too-many-recipients"  # this recipient belongs in a further transaction
    FAILED = "failed"  # never, for this recipient
    CONTENT_REFUSED = "content-refused"  # never, because of what the message says
    MESSAGE_TOO_BIG = "message-too-big"
    CREDENTIALS = "credentials"  # the login is not, or no longer, good
    ACCOUNT = "account"  # the sending account may not send just now, to anybody


class Reply(Struct, frozen=True):
    """One complete reply. ``text`` is the server's, line by line, for the log and never for a client."""

    code: int
    enhanced: str | None = None
    text: str = ""

    @classmethod
    def of(cls, code: int, text: str) -> "Reply":
        """Find the enhanced code, where there is one, at the front of the text (RFC 2034 section 3).

        >>> Reply.of(550, "5.1.1 <joe@example.org> no such user").enhanced
        '5.1.1'
        """
        match = _ENHANCED.match(text)
        return cls(code, match[0] if match else None, text)

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def negative(self) -> bool:
        return self.code >= 400


class ReplySyntaxError(ValueError):
    """What came is no SMTP reply, or has no end."""


class ReplyParser:
    """Octets in, in whatever pieces they arrive; complete replies out.

    >>> parser = ReplyParser()
    >>> list(parser.feed(b"250-mail.example.org\\r\\n250 PIPE"))
    []
    >>> list(parser.feed(b"LINING\\r\\n"))
    [Reply(code=250, enhanced=None, text='mail.example.org\\nPIPELINING')]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[bytes] = []  # of the reply that has begun
        self._size = 0  # of those lines

    @property
    def idle(self) -> bool:
        """No reply has begun."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> Iterator[Reply]:
        """The replies that this piece completes, one by one: those before a syntax error still count.

        Raises:
            ReplySyntaxError: the stream is no longer to be trusted; the parser must not be fed again.
        """
        self._buffer += data
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            reply = self._line(bytes(self._buffer[start:end]).removesuffix(b"\r"))
            start = end + 1
            if reply is not None:
                yield reply
        del self._buffer[:start]
        self._bound(len(self._buffer))

    def _line(self, line: bytes) -> Reply | None:
        self._bound(len(line))
        if not self._lines and len(line) <= _SHORT:
            return _short_reply(line) or self._line_of_many(line)
        return self._line_of_many(line)

    def _line_of_many(self, line: bytes) -> Reply | None:
        match = _LINE.match(line)
        if match is None:
            raise ReplySyntaxError("no reply line")
        self._lines.append(line[4:])
        self._size += len(line)
        if match[2] == b"-":
            return None
        # Were the lines to disagree on the code, the last one holds: Postfix reads it so as well.
        text = b"\n".join(self._lines).decode("utf-8", "replace")
        self._lines, self._size = [], 0
        return Reply.of(int(match[1]), text)

    def _bound(self, more: int) -> None:
        if self._size + more > MAX_REPLY:
            raise ReplySyntaxError("reply too long")


# RFC 5321 4.2 and 4.2.1: a bare code, without so much as a space, is to be understood too.
_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])|$)")
_SHORT = 80  # octets


@lru_cache(maxsize=256)
def _short_reply(line: bytes) -> Reply | None:
    """A reply of this one line, if it is one. Of a mail merge, most are what the server said a thousand times before."""
    match = _LINE.match(line)
    if match is None or match[2] == b"-":
        return None
    return Reply.of(int(match[1]), line[4:].decode("utf-8", "replace"))


_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])")


# ---- what it means

_CREDENTIALS_CODES = {525, 530, 534, 535, 538}  # RFC 4954 section 6, RFC 5248 2.4
_CREDENTIALS_ENHANCED = {
    "5.7.8",
    "5.7.9",
    "5.7.139",
}  # 5.7.139: Exchange, password login switched off
_ACCOUNT = {
    (550, "5.4.5"),  # Gmail: the day's messages are used up
    (550, "5.7.60"),  # Exchange: may not send as this sender
}
_ACCOUNT_UNLESS_RCPT = {  # in answer to RCPT these speak of the recipient's mailbox
    (552, "5.2.2"),
    (554, "5.2.2"),  # the sender's mailbox is full
    (554, "5.2.0"),  # Exchange: the submission quota is used up
}
_TOO_BIG_ENHANCED = {"5.3.4", "5.2.3"}
_TOO_MANY = {(452, "4.5.3"), (452, "5.5.3"), (552, "5.5.3"), (550, "5.5.3"), (554, "5.5.3")}


def classify(reply: Reply, phase: Phase) -> Verdict:
    """What to do about a reply; ``phase`` is what it answers, for one code can mean two things.

    >>> classify(Reply(552, "5.2.2"), Phase.RCPT), classify(Reply(552, "5.2.2"), Phase.FINAL)
    (<Verdict.FAILED: 'failed'>, <Verdict.ACCOUNT: 'account'>)
    """
    if reply.positive:
        return Verdict.ACCEPTED
    if reply.code in _CREDENTIALS_CODES or reply.enhanced in _CREDENTIALS_ENHANCED:
        return Verdict.CREDENTIALS
    if phase is Phase.RCPT and (reply.code, reply.enhanced) in _TOO_MANY:
        return Verdict.TOO_MANY_RECIPIENTS  # RFC 5321 4.5.3.1.10
    if reply.code < 500:
        return _temporary(reply)
    return _permanent(reply, phase)


def _temporary(reply: Reply) -> Verdict:
    enhanced = reply.enhanced or ""
    match reply.code:
        case 421 if enhanced.startswith("4.7."):
            return Verdict.THROTTLED
        case 432 if enhanced == "4.3.2":
            return Verdict.THROTTLED
        case 450 if enhanced == "4.2.1":
            return Verdict.THROTTLED
        case _:
            return Verdict.DEFERRED


def _permanent(reply: Reply, phase: Phase) -> Verdict:
    key = (reply.code, reply.enhanced)
    if reply.code == 503:  # bad sequence: the connection is confused, not the message
        return Verdict.DEFERRED
    if key in _ACCOUNT or (key in _ACCOUNT_UNLESS_RCPT and phase is not Phase.RCPT):
        return Verdict.ACCOUNT
    if reply.enhanced in _TOO_BIG_ENHANCED:
        return Verdict.MESSAGE_TOO_BIG
    if phase is Phase.RCPT:
        return Verdict.FAILED
    if key == (552, None):  # RFC 1870 6.1 and 6.3, said by a server without enhanced codes
        return Verdict.MESSAGE_TOO_BIG
    if phase in (Phase.BODY, Phase.FINAL) and (reply.enhanced or "").startswith("5.7."):
        return Verdict.CONTENT_REFUSED
    return Verdict.FAILED


# ---- how it is told

_BY_ENHANCED = {  # subject and detail (RFC 3463, RFC 7505, RFC 5248); the class is told by the verdict
    "1.1": "The mailbox does not exist.",
    "1.2": "The domain of the address does not exist.",
    "1.3": "The address is not valid.",
    "1.6": "The mailbox has moved.",
    "1.7": "The sender's address is not valid.",
    "1.8": "The sender's domain does not exist.",
    "1.10": "The domain accepts no mail.",
    "2.1": "The mailbox is not accepting messages.",
    "2.2": "The mailbox is full.",
    "2.3": "The message is larger than the mailbox accepts.",
    "3.4": "The message is larger than the server accepts.",
    "4.4": "No way to the domain of the address was found.",
    "4.6": "The message went round in a loop.",
    "5.3": "The message has too many recipients.",
    "6.7": "An address is not in ASCII, and the server takes no others.",
    "7.1": "The server's policy does not allow it.",
    "7.8": "The login was not accepted.",
    "7.9": "The login needs an app password or OAuth2.",
    "7.60": "The account may not send with this sender.",
    "7.139": "Login by password is switched off for this account.",
}
_BY_VERDICT = {
    Verdict.ACCEPTED: "The server accepted it.",
    Verdict.DEFERRED: "The server cannot take it just now.",
    Verdict.THROTTLED: "The server asks for fewer messages at a time.",
    Verdict.TOO_MANY_RECIPIENTS: "The message has too many recipients.",
    Verdict.FAILED: "The server refused it.",
    Verdict.CONTENT_REFUSED: "The server refused the content of the message.",
    Verdict.MESSAGE_TOO_BIG: "The message is larger than the server accepts.",
    Verdict.CREDENTIALS: "The login was not accepted.",
    Verdict.ACCOUNT: "The sending account has reached its limit.",
}


def explain(reply: Reply, phase: Phase) -> str:
    """One sentence of ours that is safe to show: none of it is the server's.

    >>> explain(Reply(550, "5.1.1", "joe? never heard of him"), Phase.RCPT)
    'The mailbox does not exist.'
    """
    verdict = classify(reply, phase)
    by_verdict = _BY_VERDICT[verdict]
    if reply.positive:
        return by_verdict
    if verdict is Verdict.CREDENTIALS and reply.enhanced not in _CREDENTIALS_ENHANCED:
        return by_verdict  # 5.7.1 and the like, which elsewhere speak of the message
    return _BY_ENHANCED.get((reply.enhanced or "").partition(".")[2], by_verdict)
