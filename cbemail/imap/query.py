"""The query language of ``q`` -> SEARCH keys: ``from:ann subject:"q3 report" is:unread newer:7d larger:1M -word``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from msgspec import Struct, field

from cbemail.errors import InvalidRequest
from cbemail.imap import wire
from cbemail.imap.wire import Argument

MAX_TERMS = 50  # of one query: each is a scan of the folder to some servers
MAX_TEXT = 1_000  # octets of one text
MAX_SIZE = (1 << 32) - 1  # octets: RFC 9051 "number"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TERM = re.compile(
    r"""\s*+(?P<no>-?)(?:(?P<operator>[A-Za-z_]++):)?+(?:"(?P<quoted>[^"]*+)"|(?P<bare>[^\s"]*+))(?=\s|$)"""
)
_SIZE = re.compile(r"(\d{1,10})([kmg]?)b?", re.IGNORECASE | re.ASCII)
_AGE = re.compile(r"(\d{1,5})([dwmy])", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DAYS = {"d": 1, "w": 7, "m": 30, "y": 365}

Keys = tuple[Argument, ...]


class Query(Struct):
    """What a query asks for: ``words`` are those for Gmail's index, with a ``-`` before what must not be there."""

    keys: list[Argument] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    has_attachments: bool | None = None


def read_query(query: str, *, today: date, gmail: bool) -> Query:
    """What ``query`` asks for; with ``gmail`` its words are left to the caller rather than made keys.

    Raises:
        InvalidRequest: it is no query; the detail is a hint.
    """
    asked = Query()
    for count, term in enumerate(_terms(query)):
        if count == MAX_TERMS:
            raise _wrong_query(f"A query can have at most {MAX_TERMS} terms.")
        negated = bool(term["no"])
        operator = (term["operator"] or "").lower()
        value = term["bare"] if term["quoted"] is None else term["quoted"]
        if operator == "has":
            asked.has_attachments = _attachments(value, asked.has_attachments, negated=negated)
            continue
        keys = _term_keys(operator, value, today)
        if gmail and not operator:
            asked.words.append(f'{"-" if negated else ""}"{value}"')
        else:
            asked.keys += (b"NOT", *keys) if negated else keys
    return asked


def _attachments(value: str, known: bool | None, *, negated: bool) -> bool:  # noqa: FBT001 - a state, not a switch
    if value.lower() not in {"attachment", "attachments"}:
        raise _wrong_query('The only thing to ask with "has:" is "has:attachment".')
    if known is negated:
        raise _wrong_query("The query asks for messages with and without attachments.")
    return not negated


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
        return b"TEXT", searched_text(value, "#/q")
    return _OPERATORS[operator](value, today)


def _text_term(key: bytes) -> Callable[[str, date], Keys]:
    return lambda value, _today: (key, searched_text(value, "#/q"))


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


def _keyword_term(value: str, _today: date) -> Keys:
    wire.flag_list(
        [value], pointer="#/q"
    )  # as in STORE: RFC 9051 "flag-keyword", or an InvalidRequest
    if value.startswith("\\"):
        raise _wrong_query('A system flag is asked for by its state, such as "is:flagged".')
    return (b"(KEYWORD %b)" % value.encode("ascii"),)  # in parentheses, since it may end in "}"


_STATES = {
    "read": b"SEEN",
    "unread": b"UNSEEN",
    "flagged": b"FLAGGED",
    "starred": b"FLAGGED",
    "unflagged": b"UNFLAGGED",
    "answered": b"ANSWERED",
    "unanswered": b"UNANSWERED",
    "draft": b"DRAFT",
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
    "bcc": _text_term(b"BCC"),
    "subject": _text_term(b"SUBJECT"),
    "body": _text_term(b"BODY"),
    "is": _state_term,
    "keyword": _keyword_term,
    "newer": _age_term(b"SINCE"),
    "older": _age_term(b"BEFORE"),
    "since": _date_term(b"SINCE"),
    "before": _date_term(b"BEFORE"),
    "larger": _size_term(b"LARGER"),
    "smaller": _size_term(b"SMALLER"),
}


def _wrong_query(detail: str) -> InvalidRequest:
    return InvalidRequest.at("#/q", detail)


def searched_text(text: str, pointer: str) -> Argument:
    """``text`` as the argument of a key; an InvalidRequest at ``pointer`` where it cannot be searched for."""
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
