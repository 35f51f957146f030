"""What a client looks for -> SEARCH keys (RFC 9051 6.4.4). Every text is quoted or a literal, by `wire`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from msgspec import Struct

from cbemail.errors import InvalidRequest
from cbemail.imap import wire
from cbemail.imap.wire import Argument, Literal

MAX_TERMS = 50  # of one query: each is a scan of the folder to some servers
MAX_TEXT = 1_000  # octets of one text
MAX_SIZE = (1 << 32) - 1  # octets: RFC 9051 "number"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FIELD_NAME = re.compile(r"[!-9;-~]{1,100}")  # RFC 5322 3.6.8
_TERM = re.compile(
    r"""\s*+(?P<no>-?)(?:(?P<operator>[A-Za-z_]++):)?+(?:"(?P<quoted>[^"]*+)"|(?P<bare>[^\s"]*+))(?=\s|$)"""
)
_SIZE = re.compile(r"(\d{1,10})([kmg]?)b?", re.IGNORECASE | re.ASCII)
_AGE = re.compile(r"(\d{1,5})([dwmy])", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DAYS = {"d": 1, "w": 7, "m": 30, "y": 365}

Keys = tuple[Argument, ...]


class SearchFilter(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}
):
    """What all found messages have in common; a field that is None asks for nothing.

    Dates are those of arrival (INTERNALDATE), ``since`` included, ``before`` not. ``q`` is a small language on top:
    ``from:ann subject:"q3 report" is:unread has:attachment newer:7d larger:1M -word "a phrase"``.
    """

    read: bool | None = None
    flagged: bool | None = None
    answered: bool | None = None
    from_: str | None = None
    to: str | None = None
    cc: str | None = None
    subject: str | None = None
    text: str | None = None
    body: str | None = None
    since: date | None = None
    before: date | None = None
    larger: int | None = None
    smaller: int | None = None
    has_attachments: bool | None = None
    header: tuple[str, str] | None = None
    q: str | None = None


class SearchProgram(Struct, frozen=True):
    """The keys to put behind ``UID SEARCH``, its RETURN, and CHARSET where there is one.

    ``has_attachments`` is what IMAP has no key for; the caller looks at BODYSTRUCTURE.
    """

    arguments: Keys
    charset: str | None = None
    has_attachments: bool | None = None


def compile_search(wanted: SearchFilter, *, today: date) -> SearchProgram:
    """Turn ``wanted`` into SEARCH keys; ``today`` is what ``newer:`` and ``older:`` count from.

    Raises:
        InvalidRequest: a text, size or term cannot be searched for; the pointer names the field.
    """
    keys = [*_flag_keys(wanted), *_text_keys(wanted), *_limit_keys(wanted)]
    has_attachments = wanted.has_attachments
    if wanted.q is not None:
        terms, asked = _query(wanted.q, today)
        keys += terms
        if asked is not None and has_attachments not in {None, asked}:
            raise _wrong_query("The query and has_attachments ask for opposite things.")
        has_attachments = has_attachments if asked is None else asked
    is_ascii = all(key.data.isascii() for key in keys if isinstance(key, Literal))
    return SearchProgram(tuple(keys) or (b"ALL",), None if is_ascii else "UTF-8", has_attachments)


def _flag_keys(wanted: SearchFilter) -> Iterator[Argument]:
    for asked, key in (
        (wanted.read, b"SEEN"),
        (wanted.flagged, b"FLAGGED"),
        (wanted.answered, b"ANSWERED"),
    ):
        if asked is not None:
            yield key if asked else b"UN" + key


def _text_keys(wanted: SearchFilter) -> Iterator[Argument]:
    for key, pointer, text in (
        (b"FROM", "#/from", wanted.from_),
        (b"TO", "#/to", wanted.to),
        (b"CC", "#/cc", wanted.cc),
        (b"SUBJECT", "#/subject", wanted.subject),
        (b"TEXT", "#/text", wanted.text),
        (b"BODY", "#/body", wanted.body),
    ):
        if text is not None:
            yield key
            yield _text(text, pointer)
    if wanted.header is not None:
        name, value = wanted.header
        if not _FIELD_NAME.fullmatch(name):
            raise InvalidRequest.at(
                "#/header", 'A header field is named by printable ASCII, such as "List-Id".'
            )
        yield b"HEADER"
        yield wire.astring(name)
        # RFC 9051: the empty text finds every message that has the field.
        yield _text(value, "#/header") if value else b'""'


def _limit_keys(wanted: SearchFilter) -> Iterator[Argument]:
    for key, day in ((b"SINCE", wanted.since), (b"BEFORE", wanted.before)):
        if day is not None:
            yield key
            yield wire.search_date(day)
    for key, pointer, size in (
        (b"LARGER", "#/larger", wanted.larger),
        (b"SMALLER", "#/smaller", wanted.smaller),
    ):
        if size is not None:
            if not 0 <= size <= MAX_SIZE:
                raise InvalidRequest.at(pointer, f"A size is 0 to {MAX_SIZE} octets.")
            yield key
            yield b"%d" % size


# ---- the query language


def _query(query: str, today: date) -> tuple[list[Argument], bool | None]:
    """The keys of ``query``, and what it asks of attachments."""
    keys: list[Argument] = []
    has_attachments: bool | None = None
    for count, term in enumerate(_terms(query)):
        if count == MAX_TERMS:
            raise _wrong_query(f"A query can have at most {MAX_TERMS} terms.")
        negated = bool(term["no"])
        operator = (term["operator"] or "").lower()
        value = term["bare"] if term["quoted"] is None else term["quoted"]
        if operator == "has":
            if value.lower() not in {"attachment", "attachments"}:
                raise _wrong_query('The only thing to ask with "has:" is "has:attachment".')
            if has_attachments not in {None, not negated}:
                raise _wrong_query("The query asks for messages with and without attachments.")
            has_attachments = not negated
            continue
        if negated:
            keys.append(b"NOT")
        keys += _term_keys(operator, value, today)
    return keys, has_attachments


def _terms(query: str) -> Iterator[re.Match[str]]:
    query = query.rstrip()
    position = 0
    while position < len(query):
        term = _TERM.match(query, position)
        if term is None:
            raise _wrong_query(
                'A quote in a query opens a phrase, ends it, and stands at a word\'s edge: "like this".'
            )
        yield term
        position = term.end()


def _term_keys(operator: str, value: str, today: date) -> Keys:
    if operator and operator not in _OPERATORS:
        known = ", ".join(f"{name}:" for name in sorted([*_OPERATORS, "has"]))
        raise _wrong_query(
            f"A query knows the operators {known}. Put other words with a colon in quotes."
        )
    if not value:
        raise _wrong_query("A term of the query is empty: write a word behind its operator.")
    if not operator:
        return b"TEXT", _text(value, "#/q")
    return _OPERATORS[operator](value, today)


def _text_term(key: bytes) -> Callable[[str, date], Keys]:
    return lambda value, _today: (key, _text(value, "#/q"))


def _date_term(key: bytes) -> Callable[[str, date], Keys]:
    def compile_term(value: str, _today: date) -> Keys:
        try:
            return key, wire.search_date(date.fromisoformat(value))
        except ValueError as exc:
            raise _wrong_query("A date in a query is written 2026-01-31.") from exc

    return compile_term


def _age_term(key: bytes) -> Callable[[str, date], Keys]:
    def compile_term(value: str, today: date) -> Keys:
        age = _AGE.fullmatch(value)
        if not age:
            raise _wrong_query(
                "An age in a query is written 7d, 2w, 3m or 1y: days, weeks, months, years."
            )
        try:
            day = today - timedelta(days=int(age[1]) * _DAYS[age[2].lower()])
        except OverflowError as exc:
            raise _wrong_query("An age in a query goes back to before the calendar.") from exc
        return key, wire.search_date(day)

    return compile_term


def _size_term(key: bytes) -> Callable[[str, date], Keys]:
    def compile_term(value: str, _today: date) -> Keys:
        size = _SIZE.fullmatch(value)
        octets = int(size[1]) * _UNITS[size[2].lower()] if size else MAX_SIZE + 1
        if octets > MAX_SIZE:
            raise _wrong_query("A size in a query is written 5000, 10k, 5M or 1G, up to 4G.")
        return key, b"%d" % octets

    return compile_term


_STATES = {
    "read": b"SEEN",
    "unread": b"UNSEEN",
    "flagged": b"FLAGGED",
    "starred": b"FLAGGED",
    "unflagged": b"UNFLAGGED",
    "answered": b"ANSWERED",
    "unanswered": b"UNANSWERED",
}


def _state_term(value: str, _today: date) -> Keys:
    key = _STATES.get(value.lower())
    if key is None:
        raise _wrong_query(f'Behind "is:" stands one of {", ".join(_STATES)}.')
    return (key,)


_OPERATORS: dict[str, Callable[[str, date], Keys]] = {
    "from": _text_term(b"FROM"),
    "to": _text_term(b"TO"),
    "cc": _text_term(b"CC"),
    "subject": _text_term(b"SUBJECT"),
    "body": _text_term(b"BODY"),
    "is": _state_term,
    "newer": _age_term(b"SINCE"),
    "older": _age_term(b"BEFORE"),
    "since": _date_term(b"SINCE"),
    "before": _date_term(b"BEFORE"),
    "larger": _size_term(b"LARGER"),
    "smaller": _size_term(b"SMALLER"),
}


def _wrong_query(detail: str) -> InvalidRequest:
    return InvalidRequest.at("#/q", detail)


def _text(text: str, pointer: str) -> Argument:
    if not text:
        raise InvalidRequest.at(pointer, "The text to search for is empty.")
    if _CONTROL.search(text):
        raise InvalidRequest.at(
            pointer, "The text to search for cannot hold line ends or other control characters."
        )
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
        raise InvalidRequest.at(
            pointer, f"The text to search for can have at most {MAX_TEXT} octets."
        )
    try:
        return wire.astring(text)
    except InvalidRequest as exc:
        raise InvalidRequest.at(pointer, exc.detail) from exc
