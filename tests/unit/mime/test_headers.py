from datetime import UTC, datetime

import msgspec
import pytest

from cbemail.mime import limits
from cbemail.mime.address import Address
from cbemail.mime.headers import (
    HeaderField,
    SummaryHeaders,
    decode_parameter,
    read_date,
    read_header_block,
    read_message_ids,
    read_summary_headers,
    safe_filename,
)
from cbemail.mime.words import decode_text


def test_a_header_block_is_unfolded_and_ends_at_the_empty_line():
    block = b"A: 1\r\nB : two\r\n  lines\r\nC:\r\n\r\nD: body\r\n"

    assert read_header_block(block) == [
        HeaderField("A", b"1"),
        HeaderField("B", b"two  lines"),
        HeaderField("C", b""),
    ]


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r"])
def test_any_line_end_ends_a_line(line_end: bytes):
    block = b"A: 1\nB: 2\n".replace(b"\n", line_end)

    assert read_header_block(block) == [HeaderField("A", b"1"), HeaderField("B", b"2")]


def test_lines_that_are_no_field_are_skipped():
    block = b"From a@b.c Thu Jan  1 00:00:00 1970\nA: 1\nno field here\nB: 2\n\xff: 3\n"

    assert [name for name, _ in read_header_block(block)] == ["A", "B"]


def test_a_header_block_is_bounded_in_octets_fields_and_each_value():
    assert len(read_header_block(b"A: 1\n" * 100_000)) == limits.HEADER_FIELDS
    (field,) = read_header_block(b"A: " + b"x" * (1 << 22))
    assert len(field.value) == limits.FIELD


def test_a_summary_has_the_usual_fields_decoded():
    block = (
        b"Message-ID: <1@x>\r\nIn-Reply-To: <0@x>\r\nReferences: <r@x>\r\n <0@x>\r\n"
        b"Subject: =?iso-8859-1?Q?Gr=FC=DFe?=\r\nFrom: Ann <a@b.c>\r\nTo: b@c.d\r\nto: c@d.e\r\n"
        b"Cc: d@e.f\r\nBcc: e@f.g\r\nReply-To: r@b.c\r\nDate: Fri, 2 Jan 2026 03:04:05 +0100\r\n\r\n"
    )

    assert read_summary_headers(block) == SummaryHeaders(
        message_id="<1@x>",
        in_reply_to="<0@x>",
        references=["<r@x>", "<0@x>"],
        subject="Grüße",
        from_=Address("Ann", "a@b.c"),
        to=[Address(None, "b@c.d"), Address(None, "c@d.e")],
        cc=[Address(None, "d@e.f")],
        bcc=[Address(None, "e@f.g")],
        reply_to=[Address(None, "r@b.c")],
        date=datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC),
    )


def test_a_summary_of_nothing_is_empty():
    assert read_summary_headers(b"") == SummaryHeaders()
    assert msgspec.to_builtins(SummaryHeaders())["from"] is None


def test_of_two_subjects_the_first_counts_and_a_sender_stands_in_for_from():
    summary = read_summary_headers(b"Subject: one\nSubject: two\nSender: s@b.c\n")

    assert summary.subject == "one"
    assert summary.from_ == Address(None, "s@b.c")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", "plain"),
        (b"=?utf-8?Q?a_b=3Dc?=", "a b=c"),
        (b"=?UTF-8?b?w7w=?=", "ü"),
        (b"=?utf-8*de?q?=C3=BC?=", "ü"),
        (b"a =?utf-8?q?b?= c", "a b c"),
        (b"=?utf-8?q?a?= =?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?a?=\r\n =?iso-8859-1?q?=FC?=", "aü"),
        (b"=?utf-8?b?w7zD?= =?utf-8?b?vMO8?=", "üüü"),
        (b"=?utf-8?q?=C3?= =?utf-8?b?vA==?=", "ü"),
        (b"=?iso-2022-jp?b?GyRCJUYlOSVIGyhC?=", "テスト"),
        (b"=?utf-8?b?SGFsbG8?=", "Hallo"),
        (b"=?utf-8?b?SGFsb?=", "Hal"),
        (b"=?nonsense?q?=FC?=", "ü"),
        (b"=?nonsense?q?=C3=BC?=", "ü"),
        (b"=?utf-7?q?+ADw-script+AD4-?=", "+ADw-script+AD4-"),
        (b"=?rot13?q?uryyb?=", "uryyb"),
        (b"J\xc3\xb6rg", "Jörg"),
        (b"J\xf6rg \x80", "Jörg €"),
        (b"=?utf-8?q?two words?=", "two words"),
        (b"foo=?utf-8?q?bar?=baz", "foobarbaz"),
        (b"=?utf-8?q?a=0D=0ABcc:_x?=", "a Bcc: x"),
        (b"a\0b\x1b[31m\tc", "a b [31m c"),
        (b"=?utf-8?x?a?= =?utf-8?q?", "=?utf-8?x?a?= =?utf-8?q?"),
        (b"=?utf-16be?b?2AA=?=", "\ufffd"),
    ],
)
def test_header_text_is_decoded(raw: bytes, text: str):
    assert decode_text(raw) == text


@pytest.mark.parametrize(
    "unit", [b"=?", b"=?a?q?", b"=?a?b?AA?= ", b"=?a*", b"=?=", b"?", b"=?a?q?x?=y"]
)
def test_a_long_run_of_broken_words_is_read_to_its_end(unit: bytes):
    assert len(decode_text(unit * (limits.FIELD // len(unit)))) <= limits.FIELD


@pytest.mark.parametrize(
    ("raw", "moment"),
    [
        (b"Fri, 2 Jan 2026 03:04:05 +0100", (2026, 1, 2, 2, 4, 5)),
        (b"2 Jan 2026 03:04 GMT", (2026, 1, 2, 3, 4)),
        (b"Fri,  2 January 2026 3:04:05 -0230 (comment)", (2026, 1, 2, 5, 34, 5)),
        (b"Fri, 02 Jan 26 03:04:05 EST", (2026, 1, 2, 8, 4, 5)),
        (b"2 Jan 99 03:04:05 +0000", (1999, 1, 2, 3, 4, 5)),
        (b"2 Jan 126 03:04:05 +0000", (2026, 1, 2, 3, 4, 5)),
        (b"Fri Jan  2 03:04:05 2026", (2026, 1, 2, 3, 4, 5)),
        (b"Fri Jan  2 03:04:05 PST 2026", (2026, 1, 2, 11, 4, 5)),
        (b"2026-01-02T03:04:05.678Z", (2026, 1, 2, 3, 4, 5)),
        (b"2026-01-02 03:04:05 +02:00", (2026, 1, 2, 1, 4, 5)),
        (b"Wed, 31 Dec 2025 23:59:60 +0000", (2025, 12, 31, 23, 59, 59)),
        (b"02-Jan-2026 03:04:05 +0000", (2026, 1, 2, 3, 4, 5)),
        (b"2 Jan 2026 03:04:05 XYZ", (2026, 1, 2, 3, 4, 5)),
    ],
)
def test_a_date_is_read_as_utc(raw: bytes, moment: tuple[int, ...]):
    assert read_date(raw) == datetime(*moment, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"yesterday",
        b"32 Jan 2026 03:04:05 +0000",
        b"2 Foo 2026 03:04:05 +0000",
        b"2 Jan 2026 25:04:05 +0000",
        b"2 Jan 1969 03:04:05 +0000",
        b"1 Jan 1970 00:00:00 +0100",
        b"31 Dec 9999 23:59:59 -0100",
        b"2 Jan 0000 03:04:05 +0000",
        b"0000-00-00T00:00:00Z",
    ],
)
def test_what_tells_no_time_is_no_date(raw: bytes):
    assert read_date(raw) is None


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (b"<a@b>", ["<a@b>"]),
        (b"<a@b>\r\n <c@d> (x) <e@f>", ["<a@b>", "<c@d>", "<e@f>"]),
        (b"a@b", ["<a@b>"]),
        (b'Your message of "Mon" <a@b>', ["<a@b>"]),
        (b"Ann's message of Monday", []),
        (b"<a\r\n b@c>", ["<ab@c>"]),
        (b"<>", []),
        (b"<a\0@b>", ["<a@b>"]),
    ],
)
def test_message_ids_are_found(raw: bytes, ids: list[str]):
    assert read_message_ids(raw) == ids


def test_of_too_many_references_the_root_and_the_latest_are_kept():
    ids = read_message_ids(b" ".join(b"<%d@x>" % n for n in range(1000)))

    assert len(ids) == limits.MESSAGE_IDS
    assert (ids[0], ids[1], ids[-1]) == ("<0@x>", "<901@x>", "<999@x>")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, None),
        ({"filename": b"a.txt"}, "a.txt"),
        ({"filename": b"=?utf-8?q?=C3=BC.txt?="}, "ü.txt"),
        ({"filename": b"\xc3\xbc.txt"}, "ü.txt"),
        ({"filename": b"\xfc.txt"}, "ü.txt"),
        ({"filename*": b"iso-8859-1'de'%FC%20.txt"}, "ü .txt"),
        ({"filename*": b"%C3%BC.txt"}, "ü.txt"),
        ({"filename*": b"UTF-8''%C3%BC.txt", "filename": b"u.txt"}, "ü.txt"),
        ({"filename*0": b"long-", "filename*1": b"name.txt"}, "long-name.txt"),
        ({"filename*0*": b"utf-8''%C3", "filename*1*": b"%BC", "filename*2": b"%.txt"}, "ü%.txt"),
        ({"filename*1": b"lost", "filename": b"kept"}, "kept"),
        ({"filename*": b"nonsense''%C3%BC%0D%0A"}, "ü"),
    ],
)
def test_a_parameter_is_decoded_whichever_way_it_was_encoded(
    parameters: dict[str, bytes], expected: str | None
):
    assert decode_parameter(parameters, "filename") == expected


def test_ten_thousand_continuations_are_cut_short():
    parameters = {f"filename*{n}": b"x" for n in range(10_000)}

    assert decode_parameter(parameters, "filename") == "x" * limits.PARAMETER_SEGMENTS


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("Übersicht 2026.pdf", "Übersicht 2026.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\x.txt", "x.txt"),
        ("C:x.txt", "C_x.txt"),
        ('a"\r\nSet-Cookie: x=1', "a_  Set-Cookie_ x=1"),
        ("\u202egpj.exe", "gpj.exe"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("console.log", "console.log"),
        (".htaccess", ".htaccess"),
        ("a.txt. .", "a.txt"),
        ("..", "part-1"),
        ("/", "part-1"),
        ("\u202e", "part-1"),
        ("", "part-1"),
        (None, "part-1"),
        ("📎 50%;.txt", "📎 50%;.txt"),
    ],
)
def test_a_file_name_is_made_safe(name: str | None, safe: str):
    assert safe_filename(name, fallback="part-1") == safe


def test_a_long_file_name_keeps_its_extension_and_whole_characters():
    name = safe_filename("ü" * 5000 + ".pdf", fallback="x")

    assert name == "ü" * 125 + ".pdf"
    assert len(name.encode()) <= limits.FILENAME
    assert len(safe_filename("a." + "b" * 5000, fallback="x")) == limits.FILENAME
