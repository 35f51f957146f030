"""How an envelope is spelled: no address and no content can say more than itself."""

import pytest

from cbemail.smtp.envelope import (
    Envelope,
    Extensions,
    mail_command,
    normalise,
    rcpt_command,
    stuff_dots,
)

# ---- addresses


@pytest.mark.parametrize(
    "address",
    [
        "c@d.co",
        "first.last+tag@sub.example.org",
        "docomo..dots.@example.jp",
        '"a b"@x',
        '"a\\"b>"@x.example',
        "a@[127.0.0.1]",
        "a@[IPv6:2001:db8::1]",
        "x@xn--bcher-kva.example",
        "!#$%&'*+-/=?^_`{|}~@example.org",
    ],
)
def test_a_mailbox_reaches_the_wire_as_it_is(address: str) -> None:
    assert rcpt_command(address) == b"RCPT TO:<" + address.encode() + b">\r\n"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "c",
        "@d.co",
        "c@",
        "c@d.co\tx",
        "c@d.co x",
        "c@d.co\n",
        "c@d.co,e@f.co",
        "c@d.co> NOTIFY=NEVER",
        "<c@d.co>\r\nRCPT TO:<x@y>",
        "<c@d.co>",
        "Bar <b@x.y>",
        "@a,@b:c@d",
        "g: a@b, c@d;",
        "c@d.co\0",
        '"a\r\nb"@x',
        '"a"b"@x',
        '"a\\"@x',
        "a@d.co@e.co",
        "a@bücher.example",
        "a@-d.co",
        "a@d..co",
        "a@[127.0.0.1",
        "a@[x>]",
        "jörg@x.example",
        "c@d.co\u2028",
        "x" * 250 + "@d.co",
        "a@" + "d" * 64 + ".co",
    ],
)
def test_what_is_no_mailbox_never_reaches_the_wire(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        rcpt_command(address)
    with pytest.raises(ValueError, match="address"):
        mail_command(Envelope(address, (), b""), 0, Extensions())


def test_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    command = rcpt_command("jörg@xn--bcher-kva.example", smtputf8=True)

    assert command == "RCPT TO:<jörg@xn--bcher-kva.example>\r\n".encode()


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u00a0", "\u3000", "\ud800", "\x7f"])
def test_smtputf8_lets_no_separator_in(character: str) -> None:
    with pytest.raises(ValueError, match="address"):
        rcpt_command(f"j{character}rg@x.example", smtputf8=True)


# ---- parameters of MAIL

ALL = Extensions(pipelining=True, eight_bit=True, smtputf8=True, size_offered=True)


def test_mail_has_no_parameter_that_was_not_offered() -> None:
    envelope = Envelope("a@b.co", ("c@d.co",), "é".encode())

    assert mail_command(envelope, 5, Extensions()) == b"MAIL FROM:<a@b.co>\r\n"


def test_mail_declares_size_and_eight_bit_content() -> None:
    envelope = Envelope("a@b.co", ("c@d.co",), "é".encode())

    assert mail_command(envelope, 5, ALL) == b"MAIL FROM:<a@b.co> SIZE=5 BODY=8BITMIME\r\n"


def test_mail_declares_nothing_that_is_not_so() -> None:
    envelope = Envelope("a@b.co", ("c@d.co",), b"plain")

    assert mail_command(envelope, 7, ALL) == b"MAIL FROM:<a@b.co> SIZE=7\r\n"


def test_mail_asks_for_smtputf8_when_the_envelope_does() -> None:
    envelope = Envelope("jörg@b.co", ("c@d.co",), b"plain", smtputf8=True)

    assert mail_command(envelope, 7, ALL) == "MAIL FROM:<jörg@b.co> SIZE=7 SMTPUTF8\r\n".encode()


# ---- EHLO


@pytest.mark.parametrize(
    ("parameter", "limit"),
    [
        ("26214400", 26214400),
        ("0", None),
        ("", None),
        ("many", None),
        ("-1", None),
        ("9" * 99, None),
    ],
)
def test_a_size_limit_is_a_positive_number_or_none(parameter: str, limit: int | None) -> None:
    extensions = Extensions.of({"size": parameter})

    assert extensions == Extensions(size_offered=True, max_size=limit)


# ---- content


@pytest.mark.parametrize(
    ("content", "normal"),
    [
        (b"", b"\r\n"),
        (b"a", b"a\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb", b"a\r\nb\r\n"),
        (b"a\rb\r", b"a\r\nb\r\n"),
        (b"a\r\r\nb", b"a\r\n\r\nb\r\n"),
        (b"a\n\rb\n", b"a\r\n\r\nb\r\n"),
    ],
)
def test_only_crlf_ends_a_line(content: bytes, normal: bytes) -> None:
    assert normalise(content) == normal


def test_content_that_is_right_already_is_not_copied() -> None:
    content = b"Subject: x\r\n\r\nhello\r\n"

    assert stuff_dots(normalise(content)) is content


def test_every_leading_dot_is_doubled_and_no_other() -> None:
    assert stuff_dots(b".\r\n..a\r\nb.c\r\n.d\r\n") == b"..\r\n...a\r\nb.c\r\n..d\r\n"
