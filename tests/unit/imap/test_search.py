from __future__ import annotations

from datetime import date

import msgspec
import pytest

from cbemail.errors import InvalidRequest
from cbemail.imap.search import MAX_TERMS, SearchFilter, compile_search
from cbemail.imap.wire import Argument, Command, Literal, encode

TODAY = date(2026, 3, 15)


def spelled(wanted: SearchFilter) -> bytes:
    """The keys as one line; only for searches without a literal."""
    arguments = compile_search(wanted, today=TODAY).arguments
    (line,) = encode(b"A", Command("SEARCH", arguments), literal_plus=False, literal_minus=False)
    return line.removeprefix(b"A SEARCH ").removesuffix(b"\r\n")


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (SearchFilter(), b"ALL"),
        (SearchFilter(q="  "), b"ALL"),
        (SearchFilter(read=True, flagged=False, answered=False), b"SEEN UNFLAGGED UNANSWERED"),
        (SearchFilter(read=False, flagged=True, answered=True), b"UNSEEN FLAGGED ANSWERED"),
        (SearchFilter(from_="ann", to="bob", cc="cid"), b'FROM "ann" TO "bob" CC "cid"'),
        (SearchFilter(subject='x" DELETED'), b'SUBJECT "x\\" DELETED"'),
        (SearchFilter(text="ALL OR", body="a)"), b'TEXT "ALL OR" BODY "a)"'),
        (SearchFilter(since=date(2026, 2, 1)), b"SINCE 1-Feb-2026"),
        (SearchFilter(before=date(2026, 2, 1)), b"BEFORE 1-Feb-2026"),
        (SearchFilter(larger=0, smaller=4_294_967_295), b"LARGER 0 SMALLER 4294967295"),
        (SearchFilter(header=("List-Id", "x y")), b'HEADER "List-Id" "x y"'),
        (SearchFilter(header=("List-Id", "")), b'HEADER "List-Id" ""'),
        (SearchFilter(read=True, q="hello"), b'SEEN TEXT "hello"'),
    ],
)
def test_a_filter_is_the_conjunction_of_its_fields(wanted: SearchFilter, keys: bytes):
    assert spelled(wanted) == keys


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("hello world", b'TEXT "hello" TEXT "world"'),
        ('"hello world"', b'TEXT "hello world"'),
        ("-hello", b'NOT TEXT "hello"'),
        ('-"hello world"', b'NOT TEXT "hello world"'),
        ("from:ann to:bob cc:cid", b'FROM "ann" TO "bob" CC "cid"'),
        ('subject:"q3 report" body:x', b'SUBJECT "q3 report" BODY "x"'),
        ("FROM:Ann -from:bob", b'FROM "Ann" NOT FROM "bob"'),
        ("is:unread is:read", b"UNSEEN SEEN"),
        ("is:Flagged is:starred is:answered", b"FLAGGED FLAGGED ANSWERED"),
        ("-is:flagged", b"NOT FLAGGED"),
        ("newer:7d older:2w", b"SINCE 8-Mar-2026 BEFORE 1-Mar-2026"),
        ("newer:1m older:1y", b"SINCE 13-Feb-2026 BEFORE 15-Mar-2025"),
        ("since:2026-01-01 before:2026-02-01", b"SINCE 1-Jan-2026 BEFORE 1-Feb-2026"),
        ("larger:1M smaller:10k", b"LARGER 1048576 SMALLER 10240"),
        ("larger:5000 smaller:3GB", b"LARGER 5000 SMALLER 3221225472"),
        ("12:30 a-b *%(){}", b'TEXT "12:30" TEXT "a-b" TEXT "*%(){}"'),
        ('"from:ann"', b'TEXT "from:ann"'),
        ("--x", b'NOT TEXT "-x"'),
        ("\tone\n two ", b'TEXT "one" TEXT "two"'),
    ],
)
def test_a_query_is_the_conjunction_of_its_terms(query: str, keys: bytes):
    assert spelled(SearchFilter(q=query)) == keys


@pytest.mark.parametrize(
    ("query", "field", "asked"),
    [
        ("has:attachment", None, True),
        ("-has:attachments", None, False),
        ("has:attachment has:attachment", True, True),
        (None, False, False),
        ("x", True, True),
        ("x", None, None),
    ],
)
def test_attachments_are_left_to_the_caller(
    query: str | None,
    field: bool | None,  # noqa: FBT001
    asked: bool | None,  # noqa: FBT001
):
    program = compile_search(SearchFilter(q=query, has_attachments=field), today=TODAY)

    assert program.has_attachments is asked
    assert program.arguments == ((b"TEXT", b'"x"') if query == "x" else (b"ALL",))


@pytest.mark.parametrize(
    ("wanted", "arguments"),
    [
        (SearchFilter(subject="grün"), (b"SUBJECT", Literal("grün".encode()))),
        (SearchFilter(q="from:李"), (b"FROM", Literal("李".encode()))),
        (SearchFilter(text="😀", read=True), (b"SEEN", b"TEXT", Literal("😀".encode()))),
        (SearchFilter(header=("X-A", "ü")), (b"HEADER", b'"X-A"', Literal("ü".encode()))),
    ],
)
def test_text_beyond_ascii_is_a_literal_and_needs_a_charset(
    wanted: SearchFilter, arguments: tuple[Argument, ...]
):
    program = compile_search(wanted, today=TODAY)

    assert (program.charset, program.arguments) == ("UTF-8", arguments)


def test_a_long_text_in_ascii_needs_no_charset():
    program = compile_search(SearchFilter(text="a" * 1_000), today=TODAY)

    assert program.charset is None
    assert program.arguments == (b"TEXT", Literal(b"a" * 1_000))


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        (SearchFilter(subject=""), "#/subject"),
        (SearchFilter(subject="a\r\nA1 EXPUNGE"), "#/subject"),
        (SearchFilter(from_="a\0"), "#/from"),
        (SearchFilter(to="\x7f"), "#/to"),
        (SearchFilter(cc="\ud800"), "#/cc"),
        (SearchFilter(text="a" * 1_001), "#/text"),
        (SearchFilter(body="ü" * 501), "#/body"),
        (SearchFilter(larger=-1), "#/larger"),
        (SearchFilter(smaller=1 << 32), "#/smaller"),
        (SearchFilter(header=("", "x")), "#/header"),
        (SearchFilter(header=("a b", "x")), "#/header"),
        (SearchFilter(header=("a:", "x")), "#/header"),
        (SearchFilter(header=("a", "x\n")), "#/header"),
        (SearchFilter(q="has:attachment", has_attachments=False), "#/q"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_where_it_stood(wanted: SearchFilter, pointer: str):
    with pytest.raises(InvalidRequest) as refusal:
        compile_search(wanted, today=TODAY)

    assert [error.pointer for error in refusal.value.errors] == [pointer]


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("form:ann", "operators"),
        ("http://example.org", "quotes"),
        ("from:", "empty"),
        ('from:""', "empty"),
        ("-", "empty"),
        ('""', "empty"),
        ('"open', "quote"),
        ('from:"open', "quote"),
        ('a"b"', "quote"),
        ('"a"b', "quote"),
        ("is:old", "is:"),
        ("has:money", "has:attachment"),
        ("has:attachment -has:attachment", "with and without"),
        ("newer:7", "7d"),
        ("older:-7d", "7d"),
        ("older:٣d", "7d"),
        ("newer:99999y", "calendar"),
        ("since:2026-02-30", "2026-01-31"),
        ("before:yesterday", "2026-01-31"),
        ("larger:big", "10k"),
        ("larger:9999999999", "10k"),
        ("smaller:4G", "10k"),
        ("a\0b", "control"),
        ("a" * 1_001, "1000"),
        ("x " * (MAX_TERMS + 1), "50"),
    ],
)
def test_a_query_that_is_not_understood_is_refused_with_a_hint(query: str, hint: str):
    with pytest.raises(InvalidRequest) as refusal:
        compile_search(SearchFilter(q=query), today=TODAY)

    assert refusal.value.errors[0].pointer == "#/q"
    assert hint in refusal.value.detail


def test_as_many_terms_as_allowed_are_allowed():
    assert spelled(SearchFilter(q="x " * MAX_TERMS)).count(b"TEXT") == MAX_TERMS


def test_a_filter_is_what_the_api_calls_it():
    wanted = msgspec.json.decode(b'{"from": "ann", "since": "2026-02-01"}', type=SearchFilter)

    assert wanted == SearchFilter(from_="ann", since=date(2026, 2, 1))
