"""The values of a response: octets -> strings, numbers, lists (RFC 9051 section 4). Total, as `parser` is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeAlias

from cbemail.imap.framing import Frame
from cbemail.imap.protocol import ImapSyntaxError, Uid, Value

MAX_DEPTH = 512  # of parentheses: a part in a part takes up to three, and servers nest parts 100 deep at most
MAX_NUMBER = (1 << 63) - 1  # RFC 9051 section 9, number64
MAX_UID = (1 << 32) - 1

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # first and last of each

# A parenthesis; a quoted string, perhaps unended; BODY[…]<0> with the spaces inside it; an atom.
_TOKEN = re.compile(
    rb'[()]|"[^"\\]*+(?:\\.[^"\\]*+)*+"?+'
    rb'|(?i:BODY|BINARY)(?i:\.PEEK)?\[[^][]*+\][^ \t()"]*+'
    rb'|[^ \t()"]++',
    re.DOTALL,
)
_QUOTED = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_DATE = re.compile(
    r" *(\d{1,2})-([A-Za-z]{3})-(\d{4}) +(\d\d):(\d\d):(\d\d) +([+-])(\d\d)(\d\d) *", re.ASCII
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
    )
}

_OPEN, _CLOSE, _QUOTE = b'()"'


def parse_values(frame: Frame) -> list[Value]:
    """Read the values of ``frame``, in order.

    >>> parse_values([b'FLAGS (\\\\Seen) BODY[HEADER.FIELDS (TO)]<0> "a \\\\"b\\\\"" NIL ', b"raw", b""])
    [b'FLAGS', [b'\\\\Seen'], b'BODY[HEADER.FIELDS (TO)]<0>', b'a "b"', None, b'raw']

    Raises:
        ImapSyntaxError: a parenthesis or quote has no partner, or the parentheses are too deep.
    """
    top: list[Value] = []
    outer: list[list[Value]] = []
    for index, segment in enumerate(frame):
        if index % 2:
            top.append(segment)
            continue
        for token in _TOKEN.findall(segment):
            first = token[0]
            if first == _OPEN:
                if len(outer) == MAX_DEPTH:
                    raise ImapSyntaxError("parentheses are nested too deeply")
                outer.append(top)
                top = []
            elif first == _CLOSE:
                if not outer:
                    raise ImapSyntaxError("a parenthesis closes what was not open")
                outer[-1].append(top)
                top = outer.pop()
            else:
                top.append(token if first != _QUOTE and len(token) != 3 else _value(token))
    if outer:
        raise ImapSyntaxError("a parenthesis is not closed")
    return top


def read_number(value: Value) -> int:
    if isinstance(value, bytes) and value.isdigit() and len(value) <= 20:
        found = int(value)
        if found <= MAX_NUMBER:
            return found
    raise ImapSyntaxError("a number is none")


def read_uid(value: Value) -> Uid:
    if isinstance(value, bytes) and value.isdigit() and len(value) <= 20:
        found = int(value)
        if 0 < found <= MAX_UID:
            return Uid(found)
    raise ImapSyntaxError("a UID is none, or out of bounds")


def read_ranges(value: Value) -> Ranges:
    """A set of numbers, unexpanded, in the order given."""
    if not isinstance(value, bytes) or value.translate(None, b"0123456789:,"):
        raise ImapSyntaxError("a set of numbers is none")
    found = []
    try:
        for item in value.split(b","):  # there may be a hundred thousand
            first, colon, last = item.partition(b":")
            start = int(first)
            end = int(last) if colon else start
            found.append((start, end) if start <= end else (end, start))  # RFC 9051: "4:2" is "2:4"
    except ValueError as exc:  # int() does not say more than that
        raise ImapSyntaxError("a number of a set is none") from exc
    if any(start < 1 or end > MAX_UID for start, end in found):
        raise ImapSyntaxError("a number of a set is out of bounds")
    return tuple(found)


def read_moment(value: Value) -> datetime | None:
    """A date-time in UTC, or None where it is not one."""
    match = _DATE.fullmatch(read_text(value)) if isinstance(value, bytes) else None
    month = _MONTHS.get(match[2].lower()) if match else None
    if match is None or month is None:
        return None
    day, _, year, hour, minute, second, sign, zone_hours, zone_minutes = match.groups()
    offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        local = datetime(
            int(year), month, int(day), int(hour), int(minute), int(second), tzinfo=zone
        )
        return local.astimezone(UTC)
    except (ValueError, OverflowError):  # 31-Feb, a leap second, a zone of 25 hours, the year 0
        return None


def read_list(value: Value) -> list[Value]:
    """The values of a list; NIL is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ImapSyntaxError("there is no list where one must be")
    return value


def read_text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _value(token: bytes) -> bytes | None:
    if token[0] != _QUOTE:
        return None if token.upper() == b"NIL" else token
    if b"\\" not in token:
        if len(token) > 1 and token[-1] == _QUOTE:
            return token[1:-1]
    elif _QUOTED.fullmatch(token):
        return _ESCAPED.sub(rb"\1", token[1:-1])
    raise ImapSyntaxError("a quoted string is not closed")
