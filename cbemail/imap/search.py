"""What a client looks for -> SEARCH keys (RFC 9051 6.4.4). Every text is quoted or a literal, by `wire`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from msgspec import Struct, structs

from cbemail.errors import InvalidRequest
from cbemail.imap import wire
from cbemail.imap.query import MAX_SIZE, Keys, Query, read_query, searched_text
from cbemail.imap.wire import Argument, Literal

MAX_CHARSETS = 20  # that a server names, and we try

_FIELD_NAME = re.compile(r"[!-9;-~]{1,100}")  # RFC 5322 3.6.8
_CHARSET = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")
_ALL: Keys = (b"ALL",)
_UTF_8 = "UTF-8"


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

    @property
    def takes_all(self) -> bool:
        """Whether every message fits."""
        return self.arguments == _ALL and self.has_attachments is None


def compile_search(wanted: SearchFilter, *, today: date, gmail: bool = False) -> SearchProgram:
    """Turn ``wanted`` into SEARCH keys; ``today`` is what ``newer:`` and ``older:`` count from.

    Args:
        gmail: the server has X-GM-EXT-1: words and attachments are asked of the index behind Gmail's own search box.
            All the other terms are the keys that they are elsewhere, so that a query means the same everywhere.

    Raises:
        InvalidRequest: a text, size or term cannot be searched for; the pointer names the field.
    """
    keys = [*_flag_keys(wanted), *_text_keys(wanted), *_limit_keys(wanted)]
    query = read_query(wanted.q, today=today, gmail=gmail) if wanted.q is not None else Query()
    has_attachments = wanted.has_attachments
    if query.has_attachments is not None:
        if has_attachments not in {None, query.has_attachments}:
            raise InvalidRequest.at("#/q", "The query and has_attachments ask for opposite things.")
        has_attachments = query.has_attachments
    keys += query.keys
    if gmail:
        keys += _gmail_keys(query.words, has_attachments)
        has_attachments = None
    is_ascii = all(key.data.isascii() for key in keys if isinstance(key, Literal))
    return SearchProgram(tuple(keys) or _ALL, None if is_ascii else _UTF_8, has_attachments)


def in_other_charset(program: SearchProgram, named: bytes) -> SearchProgram:
    """``program``, whose charset was refused, in the first that its texts can be written in of those that BADCHARSET has
    ``named`` (RFC 9051 section 7.1).

    Raises:
        InvalidRequest: there is none, or the server has refused one that it named.
    """
    names = [name.decode("ascii") for name in _CHARSET.findall(named)[:MAX_CHARSETS]]
    for charset in names if program.charset == _UTF_8 else ():
        try:
            arguments = tuple(_respelled(argument, charset) for argument in program.arguments)
        except (LookupError, UnicodeError):  # Python does not know it, or it lacks a character
            continue
        if charset.upper() != _UTF_8:
            return structs.replace(program, arguments=arguments, charset=charset)
    raise InvalidRequest(
        "This mail server cannot search for such characters: search for text in ASCII."
    )


def _respelled(argument: Argument, charset: str) -> Argument:
    if not isinstance(argument, Literal):
        return argument
    text = argument.data.decode("utf-8")
    octets = text.encode(charset)
    if b"\0" in octets:  # RFC 9051 section 4.3: no literal holds one
        raise UnicodeError(charset)
    return Literal(octets)


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
            yield searched_text(text, pointer)
    if wanted.header is not None:
        name, value = wanted.header
        if not _FIELD_NAME.fullmatch(name):
            raise InvalidRequest.at(
                "#/header", 'A header field is named by printable ASCII, such as "List-Id".'
            )
        yield b"HEADER"
        yield wire.astring(name)
        # RFC 9051: the empty text finds every message that has the field.
        yield searched_text(value, "#/header") if value else b'""'


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


def _gmail_keys(words: list[str], has_attachments: bool | None) -> Keys:  # noqa: FBT001 - a state, not a switch
    """One X-GM-RAW with all that is asked of Gmail's index, within the folder that is selected: without ``in:anywhere``
    it would leave out what is in the bin or is spam, there too."""
    terms = list(words)
    if has_attachments is not None:
        terms.append("has:attachment" if has_attachments else "-has:attachment")
    return (b"X-GM-RAW", wire.astring(" ".join(["in:anywhere", *terms]))) if terms else ()
