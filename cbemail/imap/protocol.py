"""The nouns of IMAP (RFC 9051, RFC 3501): what parsers give and connections take. Pure values, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NewType

from msgspec import Struct

Uid = NewType("Uid", int)  # RFC 9051 2.3.1.1: unique in a mailbox, with its UIDVALIDITY, for ever
SeqNum = NewType("SeqNum", int)  # RFC 9051 2.3.1.2: a position, which moves with every EXPUNGE
UidValidity = NewType("UidValidity", int)
Flag = NewType(
    "Flag", str
)  # a system flag (``\Seen``) or a keyword (``$Forwarded``), RFC 9051 2.3.2
FolderPath = NewType(
    "FolderPath", str
)  # a mailbox name in Unicode; only `wire` turns it into modified UTF-7

INBOX = FolderPath("INBOX")
SEEN, ANSWERED, FLAGGED, DELETED, DRAFT = (
    Flag("\\Seen"),
    Flag("\\Answered"),
    Flag("\\Flagged"),
    Flag("\\Deleted"),
    Flag("\\Draft"),
)


class UidSet:
    """A set of message UIDs, written the way RFC 9051 section 9 writes it.

    Adjacent UIDs collapse into ranges, so naming ten thousand messages costs a few bytes on the wire rather than
    sixty thousand. An empty set has no IMAP spelling and cannot be built: a caller with nothing to do must not send
    a command at all.

    >>> str(UidSet([7, 1, 2, 3]))
    '1:3,7'
    >>> UidSet([])
    Traceback (most recent call last):
    ValueError: a UID set cannot be empty
    """

    __slots__ = ("_uids",)

    def __init__(self, uids: Iterable[int]) -> None:
        self._uids = sorted(set(uids))
        if not self._uids:
            raise ValueError("a UID set cannot be empty")
        if self._uids[0] < 1 or self._uids[-1] > 2**32 - 1:
            raise ValueError("a UID is a non-zero unsigned 32-bit number")

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last of each run of adjacent UIDs, ascending."""
        start = previous = self._uids[0]
        for uid in self._uids[1:]:
            if uid != previous + 1:
                yield start, previous
                start = uid
            previous = uid
        yield start, previous

    def __str__(self) -> str:
        return ",".join(
            str(first) if first == last else f"{first}:{last}" for first, last in self.ranges()
        )

    def __iter__(self) -> Iterator[Uid]:
        return iter(Uid(uid) for uid in self._uids)

    def __len__(self) -> int:
        return len(self._uids)

    def __contains__(self, uid: object) -> bool:
        return uid in self._uids


# ---- what a server says (produced by `parser`)


class ImapSyntaxError(ValueError):
    """The server sent what is no IMAP, or more of it than we hold: the connection is of no use."""


# A parsed IMAP value: an atom, number or string is ``bytes`` as it stood on the wire (quotes and escapes undone,
# a literal's octets as they are), NIL is ``None``, a parenthesised list is a ``list`` of values.
Value = Any


class ResponseCode(Struct, frozen=True):
    """``[NAME arguments]`` of a status response (RFC 9051 7.1): the name in capitals, the rest unparsed."""

    name: str
    arguments: bytes = b""


class StatusResponse(Struct, frozen=True):
    """OK, NO, BAD, BYE or PREAUTH; ``tag`` is None when untagged. ``text`` is for the log, never for a client."""

    status: str
    tag: str | None = None
    code: ResponseCode | None = None
    text: str = ""


class Continuation(Struct, frozen=True):
    """``+ text``: the server waits for a literal or the next step of AUTHENTICATE."""

    text: bytes = b""


class Untagged(Struct, frozen=True):
    """``* [number] NAME values``: any untagged response that is no status, e.g. EXISTS, FETCH, LIST, SEARCH.

    ``values`` is what stood behind the name: for FETCH ``[[b"UID", b"7", b"FLAGS", [b"\\\\Seen"], …]]``.
    ``defect`` is only for a FETCH whose values are no IMAP: one message is unreadable, the connection is not.
    """

    name: str
    number: int | None = None
    values: list[Value] = []
    defect: str | None = None


Response = StatusResponse | Continuation | Untagged


class ListData(Struct, frozen=True):
    """One LIST or LSUB response (RFC 9051 7.3.1).

    ``spelling`` is the name's own octets where modified UTF-7 of ``path`` is not they (raw UTF-8, a bare ``&``):
    ``wire.mailbox(path, spelling)`` names the folder again the way the server does. Elsewhere it is None.
    """

    path: FolderPath
    delimiter: str | None
    attributes: frozenset[str]  # lower-case, e.g. "\\noselect", "\\haschildren", "\\sent"
    spelling: bytes | None = None


class StatusData(Struct, frozen=True):
    """One STATUS response (RFC 9051 7.3.4); an item the server did not give is None."""

    path: FolderPath
    messages: int | None = None
    unseen: int | None = None
    uid_next: int | None = None
    uid_validity: int | None = None


class ESearchData(Struct, frozen=True):
    """One ESEARCH response (RFC 9051 7.3.4); a number the server did not give is None.

    ``all`` stays first-last ranges: a server may name four thousand million UIDs in a dozen octets. It is empty
    where nothing was found, and where it was not asked for.
    """

    tag: str | None = None
    uid: bool = False  # the numbers are UIDs, not sequence numbers
    min: int | None = None
    max: int | None = None
    count: int | None = None
    all: tuple[tuple[int, int], ...] = ()


class VanishedData(Struct, frozen=True):
    """One VANISHED response (RFC 7162 section 3.2.10): UIDs that are no longer there, as first-last ranges.

    With ``earlier`` they are what was asked for, and some may never have been there; without, these very messages have
    been expunged just now, in place of as many EXPUNGE responses.
    """

    earlier: bool
    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)


class SelectData(Struct):
    """The selected mailbox, kept true by the untagged EXISTS, EXPUNGE and VANISHED that follow."""

    path: FolderPath
    uid_validity: UidValidity
    exists: int = 0
    news: int = 0  # how often messages were told to have come or gone
    uid_next: int | None = None
    highest_modseq: int | None = None  # RFC 7162; None: not asked for, or not kept (NOMODSEQ)
    permanent_flags: frozenset[str] | None = (
        None  # None: the server did not say, so all may be stored
    )
    read_only: bool = False

    @property
    def emptied(self) -> bool:
        """Whether all that was in it has gone since it was selected. It may have been deleted: Cyrus lets an empty one be
        searched for ever, though there is a new one of that name."""
        return not self.exists and self.news > 0


class FetchData(Struct, frozen=True):
    """One FETCH response (RFC 9051 7.5.2). An item that was not asked for, or not given, is None."""

    uid: Uid | None
    flags: tuple[Flag, ...] | None = None
    internal_date: datetime | None = None
    size: int | None = None  # octets, RFC822.SIZE
    body_structure: Part | None = None
    preview: bytes | None = None  # RFC 8970, in UTF-8
    thread_id: int | None = None  # X-GM-THRID, Gmail's
    modseq: int | None = None  # RFC 7162: when its flags were last changed
    sections: dict[str, bytes] = {}  # "1.2", "HEADER", "" (the whole message) -> octets; capitals
    defect: str | None = None  # what could not be understood, when something could not


class Relocated(Struct, frozen=True):
    """The messages that a copy or move has taken: source UID -> UID in the destination, as COPYUID (RFC 4315) told, or
    None where the server does not tell."""

    uid_validity: UidValidity | None = None
    uids: dict[Uid, Uid | None] = {}


class Appended(Struct, frozen=True):
    """APPENDUID (RFC 4315); both None where the server cannot tell."""

    uid: Uid | None = None
    uid_validity: UidValidity | None = None


class Part(Struct, frozen=True):
    """One node of a BODYSTRUCTURE tree (RFC 9051 7.5.2). Strings as the server sent them, still encoded.

    ``id`` is the section part specifier (RFC 9051 6.4.5): ``"1"``, ``"2.1"``; a multipart that is the whole body
    of a message, outermost or attached, has no number of its own and the empty id. Type, subtype, encoding,
    disposition and parameter names are lower-case.
    """

    id: str
    type: str
    subtype: str
    parameters: dict[str, bytes] = {}
    content_id: bytes | None = None
    encoding: str = "7bit"
    size: int = 0  # octets, still encoded
    disposition: str | None = None
    disposition_parameters: dict[str, bytes] = {}
    children: tuple[Part, ...] = ()  # of a multipart, or the one body of a message/rfc822

    @property
    def is_multipart(self) -> bool:
        return self.type == "multipart"

    def walk(self) -> Iterator[Part]:
        """This part and everything below it, depth first, without recursion: the depth is the sender's choice."""
        stack = [self]
        while stack:
            part = stack.pop()
            yield part
            stack.extend(reversed(part.children))
