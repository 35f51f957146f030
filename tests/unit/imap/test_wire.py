from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from cbemail.errors import InvalidRequest
from cbemail.imap.protocol import FolderPath
from cbemail.imap.wire import (
    MAX_QUOTED,
    Argument,
    Command,
    Group,
    Literal,
    astring,
    encode,
    flag_list,
    internal_date,
    mailbox,
    search_date,
)


def sent(command: Command, *, plus: bool = False, minus: bool = False) -> list[bytes]:
    return encode(b"A1", command, literal_plus=plus, literal_minus=minus)


# ---- strings and mailbox names


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("joe smith", b'"joe smith"'),
        ("", b'""'),
        ('say "hi" \\o/', b'"say \\"hi\\" \\\\o/"'),
        ("a{5}", b'"a{5}"'),
        ("x\r\nA1 EXPUNGE", Literal(b"x\r\nA1 EXPUNGE")),
        ("grüße", Literal("grüße".encode())),
        ("a" * (MAX_QUOTED - 1), b'"' + b"a" * (MAX_QUOTED - 1) + b'"'),
        ("a" * MAX_QUOTED, Literal(b"a" * MAX_QUOTED)),
    ],
)
def test_text_is_quoted_or_where_that_cannot_be_a_literal(text: str, argument: Argument):
    assert astring(text) == argument


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_imap_cannot_carry_is_refused(text: str):
    with pytest.raises(InvalidRequest):
        astring(text)


@pytest.mark.parametrize(
    ("path", "argument"),
    [
        ("Sent Items", b'"Sent Items"'),
        ("Entwürfe", b'"Entw&APw-rfe"'),
        ('INBOX" (X', b'"INBOX\\" (X"'),
        ("INBOX (CONDSTORE)", b'"INBOX (CONDSTORE)"'),
        ("a{5}", b'"a{5}"'),
        ("a{5+}", b'"a{5+}"'),
        ("\\", b'"\\\\"'),
        ("..", b'".."'),
        ("*", b'"*"'),
        ("会" * 500, Literal(b"&" + b"TxpPGk8a" * 166 + b"TxpPGg-")),
    ],
)
def test_a_mailbox_name_is_one_string_whatever_it_says(path: str, argument: Argument):
    assert mailbox(FolderPath(path)) == argument


@pytest.mark.parametrize(
    "path",
    ["", "a" * 1_001, "INBOX\r\nA1 DELETE Sent", "a\0", "a\n", "a\x7f", "a\x85", "\ud800"],
)
def test_a_name_no_mailbox_can_have_is_refused_where_it_stood(path: str):
    with pytest.raises(InvalidRequest) as refusal:
        mailbox(FolderPath(path), pointer="#/destination")

    assert [error.pointer for error in refusal.value.errors] == ["#/destination"]


def test_a_mailbox_is_named_in_the_servers_own_spelling():
    assert mailbox(FolderPath("Tom & Jerry"), b"Tom & Jerry") == b'"Tom & Jerry"'
    assert mailbox(FolderPath("Grüße"), "Grüße".encode()) == Literal("Grüße".encode())


# ---- flags and dates


def test_flags_stand_in_parentheses():
    assert flag_list(["\\Seen", "$Forwarded", "NonJunk"]) == b"(\\Seen $Forwarded NonJunk)"
    assert flag_list([]) == b"()"


@pytest.mark.parametrize(
    "flag",
    [
        "",
        "\\",
        "\\*",
        "\\Recent",
        "\\rECENT",
        "a b",
        "a)",
        "(a",
        "a]",
        "a{5}",
        'a"b',
        "a\r\n",
        "a%",
        "*",
        "grün",
        "a\\b",
        "\\\\Seen",
        "\0",
        "a" * 201,
    ],
)
def test_what_is_no_flag_of_a_client_is_refused(flag: str):
    with pytest.raises(InvalidRequest) as refusal:
        flag_list(["\\Seen", flag], pointer="#/add_flags")

    assert refusal.value.errors[0].pointer == "#/add_flags"


def test_a_search_date_is_english_and_has_four_digits_of_year():
    assert search_date(date(2026, 2, 1)) == b"1-Feb-2026"
    assert search_date(date(987, 12, 31)) == b"31-Dec-0987"


def test_an_internal_date_keeps_its_zone():
    west = timezone(timedelta(hours=-3, minutes=-30))

    assert internal_date(datetime(2026, 12, 31, 23, 59, 1, tzinfo=west)) == (
        b'"31-Dec-2026 23:59:01 -0330"'
    )
    assert internal_date(datetime(987, 1, 2, tzinfo=UTC)) == b'" 2-Jan-0987 00:00:00 +0000"'


def test_an_internal_date_without_a_zone_is_our_bug():
    with pytest.raises(ValueError, match="zone"):
        internal_date(datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test


# ---- commands


def test_a_command_is_its_words_between_single_spaces():
    command = Command("UID FETCH", (b"1:3,7", b"(FLAGS BODY.PEEK[HEADER.FIELDS (TO)])"))

    assert sent(command) == [b"A1 UID FETCH 1:3,7 (FLAGS BODY.PEEK[HEADER.FIELDS (TO)])\r\n"]
    assert sent(Command("NOOP")) == [b"A1 NOOP\r\n"]


def test_a_group_puts_parentheses_around_strings_and_literals():
    command = Command("ID", (Group((b'"name"', Literal(b"x\ny"), Group((b"NIL",)))),))

    assert sent(command, plus=True) == [b'A1 ID ("name" {3+}\r\nx\ny (NIL))\r\n']


def test_a_synchronising_literal_waits_for_the_server():
    command = Command("LOGIN", (Literal("jörg".encode()), Literal(b"p\rw")))

    assert sent(command) == [b"A1 LOGIN {5}\r\n", "jörg {3}\r\n".encode(), b"p\rw\r\n"]


def test_with_literal_plus_there_is_nothing_to_wait_for():
    command = Command("APPEND", (b'"Sent"', Literal(b"a" * 5_000)))

    assert sent(command, plus=True) == [
        b'A1 APPEND "Sent" {5000+}\r\n' + b"a" * 5_000 + b"\r\n",
    ]


def test_with_literal_minus_only_a_small_literal_goes_at_once():
    small, great = Literal(b"a" * 4_096), Literal(b"b" * 4_097)

    assert sent(Command("X", (small, great)), minus=True) == [
        b"A1 X {4096+}\r\n" + small.data + b" {4097}\r\n",
        great.data + b"\r\n",
    ]


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"a\r\nA2 NOOP",
        b"a\n",
        b"a\0",
        b"a{5}",
        b"}",
        b'"a" {3}',
        b'"open',
        b'"a\\"',
        b'"a\\b"',
        b"gr\xc3\xbcn",
    ],
)
def test_bytes_that_are_not_plain_syntax_are_our_bug_and_not_sent(argument: bytes):
    with pytest.raises(ValueError, match="argument"):
        sent(Command("X", (argument,)))
    with pytest.raises(ValueError, match="argument"):
        sent(Command("X", (Group((argument,)),)))


@pytest.mark.parametrize("name", ["", "noop", "NOOP\r\nA2 X", "UID FETCH 1", "A  B", "{5}"])
def test_a_command_name_is_one_or_two_words(name: str):
    with pytest.raises(ValueError, match="no command"):
        sent(Command(name))


@pytest.mark.parametrize("name", ["LOGIN", "AUTHENTICATE"])
@pytest.mark.parametrize("secret", ["hunter2", "hünter2"])
def test_no_log_line_holds_a_secret(name: str, secret: str):
    command = Command(name, (astring("ann"), astring(secret)))

    for line in (command.for_log(), repr(command), f"{command}"):
        assert "unter2" not in line
        assert "ann" not in line
    assert "hünter2" not in repr(astring("hünter2"))


def test_a_log_line_is_short_and_shows_no_literal():
    command = Command("APPEND", (b'"Sent"', Group((b"\\Seen",)), Literal(b"Dear Ann")))

    assert command.for_log() == 'APPEND "Sent" (\\Seen) {8}'
    assert len(Command("UID FETCH", (b"1," * 500 + b"2",)).for_log()) == 200


def test_a_command_knows_about_how_much_there_is_to_send():
    assert Command("APPEND", (b'"Sent"', Group((b"a",)), Literal(b"x" * 70_000))).octets == 70_009
