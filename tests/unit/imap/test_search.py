from __future__ import annotations

from datetime import date

import msgspec
import pytest

from cbemail.errors import InvalidRequest
from cbemail.imap.query import MAX_TERMS
from cbemail.imap.search import SearchFilter, compile_search, in_other_charset
from cbemail.imap.wire import Argument, Command, Literal, encode

TODAY = date(2026, 3, 15)


def spelled(wanted: SearchFilter, *, gmail: bool = False) -> bytes:
    """The keys as one line; only for searches without a literal."""
    arguments = compile_search(wanted, today=TODAY, gmail=gmail).arguments
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
        ("bcc:bob is:draft", b'BCC "bob" DRAFT'),
        ("keyword:$Work -keyword:a}", b"(KEYWORD $Work) NOT (KEYWORD a})"),
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
    ("wanted", "keys"),
    [
        (SearchFilter(), b"ALL"),
        (SearchFilter(q="from:ann is:unread"), b'FROM "ann" UNSEEN'),
        (SearchFilter(text="q3"), b'TEXT "q3"'),
        (SearchFilter(q="q3"), rb'X-GM-RAW "in:anywhere \"q3\""'),
        (SearchFilter(q='-"a b" c'), rb'X-GM-RAW "in:anywhere -\"a b\" \"c\""'),
        (SearchFilter(q="OR"), rb'X-GM-RAW "in:anywhere \"OR\""'),
        (SearchFilter(has_attachments=True), b'X-GM-RAW "in:anywhere has:attachment"'),
        (SearchFilter(q="-has:attachment"), b'X-GM-RAW "in:anywhere -has:attachment"'),
        (
            SearchFilter(read=True, q="from:ann q3 has:attachment"),
            rb'SEEN FROM "ann" X-GM-RAW "in:anywhere \"q3\" has:attachment"',
        ),
    ],
)
def test_gmail_is_asked_for_words_and_attachments_in_its_own_language(
    wanted: SearchFilter, keys: bytes
):
    assert spelled(wanted, gmail=True) == keys
    assert compile_search(wanted, today=TODAY, gmail=True).has_attachments is None


def test_words_beyond_ascii_reach_gmail_in_utf_8():
    program = compile_search(SearchFilter(q="Grüße"), today=TODAY, gmail=True)

    text = Literal('in:anywhere "Grüße"'.encode())
    assert (program.charset, program.arguments) == ("UTF-8", (b"X-GM-RAW", text))


@pytest.mark.parametrize(
    ("wanted", "takes_all"),
    [
        (SearchFilter(), True),
        (SearchFilter(q=" "), True),
        (SearchFilter(read=True), False),
        (SearchFilter(has_attachments=False), False),
    ],
)
def test_a_filter_that_asks_for_nothing_takes_all(wanted: SearchFilter, takes_all: bool):  # noqa: FBT001
    assert compile_search(wanted, today=TODAY).takes_all is takes_all


@pytest.mark.parametrize(
    ("text", "named", "charset", "octets"),
    [
        ("Grüße", b"(US-ASCII ISO-8859-1)", "ISO-8859-1", b"Gr\xfc\xdfe"),
        ("Grüße", b'("KOI8-R" "windows-1252")', "windows-1252", b"Gr\xfc\xdfe"),
        ("Привет", b"(ISO-8859-1 KOI8-R)", "KOI8-R", b"\xf0\xd2\xc9\xd7\xc5\xd4"),
        ("Grüße", b"(UTF-8 UTF-16 base64 no-such ISO-8859-15)", "ISO-8859-15", b"Gr\xfc\xdfe"),
    ],
)
def test_a_refused_charset_is_replaced_by_one_that_has_the_characters(
    text: str, named: bytes, charset: str, octets: bytes
):
    program = compile_search(SearchFilter(read=True, subject=text), today=TODAY)

    other = in_other_charset(program, named)

    assert (other.charset, other.arguments) == (charset, (b"SEEN", b"SUBJECT", Literal(octets)))


@pytest.mark.parametrize(
    "named", [b"", b"(US-ASCII)", b"(UTF-8)", b"utf-8", b"({5} * \\)", b"(KOI8-R)"]
)
def test_where_no_charset_that_is_named_has_the_characters_ascii_is_suggested(named: bytes):
    program = compile_search(SearchFilter(subject="Grüße"), today=TODAY)

    with pytest.raises(InvalidRequest, match="ASCII"):
        in_other_charset(program, named)


def test_a_charset_is_replaced_once():
    program = compile_search(SearchFilter(subject="Ã¼"), today=TODAY)

    with pytest.raises(InvalidRequest):
        in_other_charset(in_other_charset(program, b"(ISO-8859-1)"), b"(ISO-8859-15)")


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
        ("keyword:\\Seen", "is:flagged"),
        ('keyword:"a b"', "one word"),
        ("keyword:é", "one word"),
        ('keyword:"(ALL"', "one word"),
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
