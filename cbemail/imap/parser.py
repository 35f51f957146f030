"""Responses as nouns: frames -> what the server said (RFC 9051 section 7).

Total: whatever the octets, the answer is a value or `ImapSyntaxError`. Lenient where real servers are sloppy and
nothing is lost by it: spaces too many, lower case, a missing text, raw 8-bit.
"""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise

from cbemail.imap import utf7
from cbemail.imap.bodystructure import read_body_structure
from cbemail.imap.framing import Frame
from cbemail.imap.protocol import (
    INBOX,
    Appended,
    Continuation,
    ESearchData,
    FetchData,
    Flag,
    FolderPath,
    ImapSyntaxError,
    ListData,
    Part,
    Relocated,
    Response,
    ResponseCode,
    StatusData,
    StatusResponse,
    Uid,
    UidValidity,
    Untagged,
    Value,
    VanishedData,
)
from cbemail.imap.values import (
    Ranges,
    parse_values,
    read_list,
    read_moment,
    read_number,
    read_ranges,
    read_text,
    read_uid,
)

MAX_RELOCATED = 100_000  # UIDs of a COPYUID to expand: "1:4294967295" is short, and 200 GB

_UNTAGGED = re.compile(rb"\* ++(?:(\d{1,10}+) ++)?([A-Za-z][^ ()\"\[]*+)")
_STATUS = re.compile(
    rb"(?:\*|([^ (){%*\"\\+]++)) ++(OK|NO|BAD|BYE|PREAUTH)(?: ++|$)(.*+)", re.IGNORECASE | re.DOTALL
)
# The second is for a server that put half a quoted string, or a quote of its own, between the brackets.
_CODE = re.compile(rb'\[([^ \]]++) *+((?:[^"\]]++|"(?:[^"\\]|\\.)*+")*+)\] *+', re.DOTALL)
_PLAIN_CODE = re.compile(rb"\[([^ \]]++) *+([^\]]*+)\] *+")
_UID = re.compile(rb'[^"]*?\bUID (\d{1,10})\b', re.IGNORECASE)

_SECTION = re.compile(rb"(?:BODY|BINARY)(?:\.PEEK)?\[([^ \]]*+)[^\]]*+\](?:<\d*+>)?", re.IGNORECASE)
_WHOLE = {b"RFC822": "", b"RFC822.HEADER": "HEADER", b"RFC822.TEXT": "TEXT"}
_STATUS_ITEMS = (b"MESSAGES", b"UNSEEN", b"UIDNEXT", b"UIDVALIDITY")  # in StatusData's order


def parse_response(frame: Frame) -> Response:
    """Read one response.

    A FETCH whose values cannot be read is still an answer, with its ``defect`` and what can be told of its UID:
    a single message that the server stumbles over must not take the whole mailbox with it.

    Raises:
        ImapSyntaxError: this is no IMAP response.
    """
    if not frame or len(frame) % 2 == 0:
        raise ImapSyntaxError("a response is not complete")
    line = frame[0]
    if line.startswith(b"+"):
        return Continuation(line[1:].removeprefix(b" "))
    status = _STATUS.fullmatch(line)
    if status:
        return _status_response(*status.groups())
    head = _UNTAGGED.match(line)
    if not head:
        raise ImapSyntaxError("a response has no tag and no name")
    number = None if head[1] is None else int(head[1])
    name = head[2].decode("ascii", "replace").upper()
    if name == "THREAD":  # as deep as conversations are: `threads` reads it without going down
        return Untagged(name, number, [line[head.end() :]])
    try:
        values = parse_values([line[head.end() :], *frame[1:]])
    except ImapSyntaxError as exc:
        if name != "FETCH":
            raise
        uid = _UID.match(line)
        known: list[Value] = [[b"UID", uid[1]]] if uid else []
        return Untagged(name, number, known, str(exc))
    return Untagged(name, number, values)


def parse_code(text: bytes) -> tuple[ResponseCode | None, bytes]:
    """The response code at the head of a status text, if there is one, and the text behind it."""
    match = _CODE.match(text) or _PLAIN_CODE.match(text)
    if not match:
        return None, text
    name = match[1].decode("ascii", "replace").upper()
    return ResponseCode(name, match[2].strip()), text[match.end() :]


def _status_response(tag: bytes | None, status: bytes, text: bytes) -> StatusResponse:
    name = status.decode("ascii").upper()
    if tag is not None and name in {"BYE", "PREAUTH"}:
        raise ImapSyntaxError("a tagged response is neither OK nor NO nor BAD")
    code, text = parse_code(text)
    return StatusResponse(
        name, None if tag is None else tag.decode("latin-1"), code, text.decode("utf-8", "replace")
    )


def fetch_data(untagged: Untagged) -> FetchData:
    """Read a FETCH response. Never raises: what cannot be read is the ``defect`` of one message.

    A section that the server answered with NIL is not there. An unreadable INTERNALDATE or RFC822.SIZE is no
    defect but is missing: a message is worth showing without them.
    """
    items: list[Value] = []
    if untagged.values and isinstance(untagged.values[0], list):
        items = untagged.values[0]
    reader = _FetchReader(untagged.defect)
    for name, value in zip(items[::2], items[1::2], strict=False):
        if not isinstance(name, bytes):
            reader.spoil("an item has no name")
            break
        reader.take(name.upper(), value)
    if len(items) % 2 or not untagged.values:
        reader.spoil("an item has no value")
    return FetchData(
        uid=reader.uid or _uid_among(items),
        flags=reader.flags,
        internal_date=reader.internal_date,
        size=reader.size,
        body_structure=reader.body_structure,
        preview=reader.preview,
        thread_id=reader.thread_id,
        modseq=reader.modseq,
        sections=reader.sections,
        defect=reader.defect,
    )


def list_data(untagged: Untagged) -> ListData:
    """Read a LIST or LSUB response.

    Raises:
        ImapSyntaxError: there is no name in it.
    """
    if len(untagged.values) < 3:
        raise ImapSyntaxError("a LIST response has no name")
    attributes, delimiter, name = untagged.values[:3]
    path, spelling = _mailbox(name)
    return ListData(
        path=path,
        delimiter=read_text(delimiter) if isinstance(delimiter, bytes) and delimiter else None,
        attributes=frozenset(
            read_text(item).lower() for item in read_list(attributes) if isinstance(item, bytes)
        ),
        spelling=spelling,
    )


def status_data(untagged: Untagged) -> StatusData:
    """Read a STATUS response.

    Raises:
        ImapSyntaxError: there is no name in it, or no list of items.
    """
    if len(untagged.values) < 2:
        raise ImapSyntaxError("a STATUS response has no items")
    path, _ = _mailbox(untagged.values[0])
    items = read_list(untagged.values[-1])
    known = {
        name.upper(): _number_or_none(value)
        for name, value in zip(items[::2], items[1::2], strict=False)
        if isinstance(name, bytes) and name.upper() in _STATUS_ITEMS
    }
    return StatusData(path, *(known.get(name) for name in _STATUS_ITEMS))


def search_uids(untagged: Untagged) -> list[Uid]:
    """Read a SEARCH response, as it was answered: in the server's order, which may be any.

    Raises:
        ImapSyntaxError: there is something else than numbers in it.
    """
    # The one list that may stand here is CONDSTORE's (MODSEQ …).
    return [read_uid(value) for value in untagged.values if not isinstance(value, list)]


def esearch_data(untagged: Untagged) -> ESearchData:
    """Read an ESEARCH response.

    Raises:
        ImapSyntaxError: an item is not what its name says.
    """
    given = list(untagged.values)
    tag = None
    if given and isinstance(given[0], list):  # (TAG "A7")
        correlator = given.pop(0)
        if correlator and isinstance(correlator[-1], bytes):
            tag = read_text(correlator[-1])
    uid = bool(given) and isinstance(given[0], bytes) and given[0].upper() == b"UID"
    if uid:
        del given[0]
    items = {
        name.upper(): value
        for name, value in zip(given[::2], given[1::2], strict=False)
        if isinstance(name, bytes)
    }
    lowest, highest, count = (
        read_number(items[name]) if name in items else None for name in (b"MIN", b"MAX", b"COUNT")
    )
    found = read_ranges(items[b"ALL"]) if b"ALL" in items else ()
    return ESearchData(tag, uid, lowest, highest, count, found)


def vanished_data(untagged: Untagged) -> VanishedData:
    """Read a VANISHED response.

    Raises:
        ImapSyntaxError: there is no set of UIDs in it.
    """
    earlier = bool(untagged.values) and isinstance(untagged.values[0], list)  # (EARLIER)
    if len(untagged.values) != 1 + earlier:
        raise ImapSyntaxError("a VANISHED response has no UIDs")
    return VanishedData(earlier, read_ranges(untagged.values[-1]))


def expunged(untagged: Untagged) -> int:
    """How many messages fewer there are after this response."""
    if untagged.name == "EXPUNGE":
        return 1
    if untagged.name != "VANISHED":
        return 0
    vanished = vanished_data(untagged)
    return 0 if vanished.earlier else vanished.count


def copyuid(code: ResponseCode) -> Relocated | None:
    """Read COPYUID. What does not add up tells us nothing, and is None."""
    fields = code.arguments.split()
    if code.name != "COPYUID" or len(fields) != 3:
        return None
    try:
        validity = read_number(fields[0])
        sources, destinations = read_ranges(fields[1]), read_ranges(fields[2])
    except ImapSyntaxError:
        return None
    count = _count(sources)
    if count != _count(destinations) or count > MAX_RELOCATED:
        return None
    pairs = zip(_expanded(sources), _expanded(destinations), strict=True)
    return Relocated(UidValidity(validity), dict(pairs))


def appenduid(code: ResponseCode) -> Appended:
    """Read APPENDUID of one message. What cannot be read tells us nothing."""
    fields = code.arguments.split()
    if code.name != "APPENDUID" or len(fields) != 2:
        return Appended()
    try:
        return Appended(read_uid(fields[1]), UidValidity(read_number(fields[0])))
    except ImapSyntaxError:
        return Appended()


def capabilities(told: Untagged | ResponseCode) -> frozenset[str]:
    """What a CAPABILITY response or response code names, in capitals."""
    if isinstance(told, ResponseCode):
        return frozenset(read_text(told.arguments).upper().split())
    return frozenset(read_text(value).upper() for value in told.values if isinstance(value, bytes))


def permanent_flags(code: ResponseCode) -> frozenset[str]:
    r"""What PERMANENTFLAGS names, ``\*`` included where new keywords may be made."""
    return frozenset(read_text(code.arguments).strip("() ").split())


class _FetchReader:
    """Takes one item of a FETCH response after the other, and keeps the first thing that was wrong."""

    __slots__ = (
        "body_structure",
        "defect",
        "flags",
        "internal_date",
        "modseq",
        "preview",
        "sections",
        "size",
        "thread_id",
        "uid",
    )

    def __init__(self, defect: str | None) -> None:
        self.defect = defect
        self.uid: Uid | None = None
        self.flags: tuple[Flag, ...] | None = None
        self.internal_date: datetime | None = None
        self.size: int | None = None
        self.body_structure: Part | None = None
        self.preview: bytes | None = None
        self.thread_id: int | None = None
        self.modseq: int | None = None
        self.sections: dict[str, bytes] = {}

    def spoil(self, defect: str) -> None:
        self.defect = self.defect or defect

    def take(self, name: bytes, value: Value) -> None:
        try:
            self._take(name, value)
        except ImapSyntaxError as exc:
            self.spoil(str(exc))

    def _take(self, name: bytes, value: Value) -> None:
        if name == b"UID":
            self.uid = read_uid(value)
        elif name == b"FLAGS":
            self.flags = tuple(
                Flag(read_text(flag)) for flag in read_list(value) if isinstance(flag, bytes)
            )
        elif name == b"RFC822.SIZE":
            self.size = _number_or_none(value)
        elif name == b"INTERNALDATE":
            self.internal_date = read_moment(value)
        elif name in {b"BODYSTRUCTURE", b"BODY"}:
            self.body_structure = read_body_structure(value)
        elif name == b"PREVIEW":
            self.preview = value if isinstance(value, bytes) else None
        elif name == b"X-GM-THRID":
            self.thread_id = _number_or_none(value)
        elif name == b"MODSEQ":
            self.modseq = _number_or_none(next(iter(read_list(value)), None))
        elif name.startswith((b"BODY", b"BINARY", b"RFC822")):
            self._take_section(name, value)

    def _take_section(self, name: bytes, value: Value) -> None:
        section = _SECTION.fullmatch(name)
        key = section[1].decode("ascii", "replace") if section else _WHOLE.get(name)
        if key is None or value is None:
            return
        if not isinstance(value, bytes):
            raise ImapSyntaxError("a section is no string")
        self.sections[key] = value


def _uid_among(items: list[Value]) -> Uid | None:
    """The UID of a response whose names and values have lost step with each other."""
    for name, value in pairwise(items):
        if isinstance(name, bytes) and name.upper() == b"UID":
            try:
                return read_uid(value)
            except ImapSyntaxError:
                continue
    return None


def _number_or_none(value: Value) -> int | None:
    try:
        return read_number(value)
    except ImapSyntaxError:
        return None


def _mailbox(name: Value) -> tuple[FolderPath, bytes | None]:
    """A mailbox name, and its octets where nothing but them names it again."""
    raw = b"NIL" if name is None else name  # unquoted, NIL is a mailbox like any other
    if not isinstance(raw, bytes) or not raw:
        raise ImapSyntaxError("a mailbox has no name")
    if raw.upper() == b"INBOX":  # RFC 9051 5.1: in whatever case
        return INBOX, None
    path = utf7.decode(raw)
    return FolderPath(path), None if utf7.encode(path) == raw else raw


def _count(ranges: Ranges) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _expanded(ranges: Ranges) -> list[Uid]:
    return [Uid(uid) for first, last in ranges for uid in range(first, last + 1)]
