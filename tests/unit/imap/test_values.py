from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cbemail.imap.protocol import ImapSyntaxError, Value
from cbemail.imap.values import MAX_DEPTH, parse_values, read_moment, read_ranges, read_uid


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b"", []),
        (b"  a \t b  ", [b"a", b"b"]),
        (b"NIL nil NiL NILS", [None, None, None, b"NILS"]),
        (b'"NIL" ""', [b"NIL", b""]),
        (b'"a \\"b\\" \\\\"', [b'a "b" \\']),
        (b'"(" ")" "a\\)"', [b"(", b")", b"a)"]),
        (b"(a (b) () NIL)(c)", [[b"a", [b"b"], [], None], [b"c"]]),
        (b"(\\Seen \\* $Label1 [x", None),
        (b"(\\Seen \\* $Label1 [x)", [[b"\\Seen", b"\\*", b"$Label1", b"[x"]]),
        (b"BODY[] body[header.fields (A B)]<0>", [b"BODY[]", b"body[header.fields (A B)]<0>"]),
        (b"BODY[ BODY[1]", [b"BODY[", b"BODY[1]"]),
        (b"BINARY.PEEK[1.2] BODY[ x]", [b"BINARY.PEEK[1.2]", b"BODY[ x]"]),
        ('"Grüße" grün'.encode(), ["Grüße".encode(), "grün".encode()]),
        (b'"\xff"\x00\x01', [b"\xff", b"\x00\x01"]),
        (b')"', None),
        (b'"open', None),
        (b'"open\\"', None),
        (b'"open\\', None),
        (b'"', None),
        (b"(", None),
        (b"a)", None),
    ],
)
def test_values_are_strings_lists_and_nil(line: bytes, values: list[Value] | None):
    if values is None:
        with pytest.raises(ImapSyntaxError):
            parse_values([line])
    else:
        assert parse_values([line]) == values


def test_a_literal_is_a_value_whatever_it_holds():
    assert parse_values([b"(a ", b'NIL ")\r\n', b" b ", b"", b")"]) == [
        [b"a", b'NIL ")\r\n', b"b", b""]
    ]


def test_parentheses_are_read_to_a_depth_and_no_further():
    assert parse_values([b"(" * MAX_DEPTH + b")" * MAX_DEPTH])
    with pytest.raises(ImapSyntaxError):
        parse_values([b"(" * (MAX_DEPTH + 1) + b")" * (MAX_DEPTH + 1)])


@pytest.mark.parametrize(
    ("raw", "moment"),
    [
        (b" 1-Feb-2026 10:00:00 +0130", datetime(2026, 2, 1, 8, 30, tzinfo=UTC)),
        (b"01-feb-2026 23:59:59 -0800", datetime(2026, 2, 2, 7, 59, 59, tzinfo=UTC)),
        (b"31-Feb-2026 10:00:00 +0000", None),
        (b" 1-Feb-2026 10:00:00 +2500", None),
        (b" 1-Jan-0001 00:00:00 +0100", None),
        (b" 1-Jan-0000 00:00:00 +0000", None),
        (b" 1-Abc-2026 10:00:00 +0000", None),
        (b" 1-Feb-2026 10:00:60 +0000", None),
        (b"\xd9\xa1-Feb-2026 10:00:00 +0000", None),
        (b"", None),
        (None, None),
        ([], None),
    ],
)
def test_a_moment_is_in_utc_or_it_is_none(raw: Value, moment: datetime | None):
    assert read_moment(raw) == moment


@pytest.mark.parametrize(
    "value",
    [
        b"0",
        b"4294967296",
        b"-1",
        b"1_0",
        b" 1",
        b"",
        b"x",
        b"9" * 5_000,
        "²".encode(),
        None,
        [],
    ],
)
def test_a_uid_is_a_number_of_32_bits_and_not_zero(value: Value):
    with pytest.raises(ImapSyntaxError):
        read_uid(value)


def test_ranges_are_not_expanded_and_their_ends_may_come_in_any_order():
    assert read_ranges(b"1:4294967295,7,9:8") == ((1, 4294967295), (7, 7), (8, 9))


@pytest.mark.parametrize("value", [b"", b",", b"1,", b"1:", b":2", b"1:*", b"1:2:3", None, [b"1"]])
def test_what_is_no_set_of_numbers_is_refused(value: Value):
    with pytest.raises(ImapSyntaxError):
        read_ranges(value)
