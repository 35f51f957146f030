from email import message_from_bytes
from email.header import decode_header, make_header

import pytest

from cbemail.mime import limits
from cbemail.mime.address import Address
from cbemail.mime.fields import (
    check_field_name,
    check_field_value,
    encode_addresses,
    encode_field,
    encode_parameter,
)


@pytest.mark.parametrize(
    "name", ["", "X A", "X:A", "X-A\r\nBcc", "X\0", "X-Ä", "X" * 77, "X\x7f", "A: b"]
)
def test_a_name_that_would_end_early_is_no_field_name(name: str):
    with pytest.raises(ValueError, match="header name"):
        check_field_name(name)


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nb",
        "a\nb",
        "a\rb",
        "a\0b",
        "\x0b",
        "\x1f",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\ud800",
    ],
)
def test_a_value_with_a_control_character_is_refused(value: str):
    with pytest.raises(ValueError, match="control characters"):
        check_field_value(value)
    with pytest.raises(ValueError, match="control characters"):
        encode_field("X-A", value)


def test_short_ascii_stays_as_it_is():
    assert encode_field("Subject", "Hello  there") == b"Subject: Hello  there\r\n"
    assert encode_field("Subject", "") == b"Subject:\r\n"


@pytest.mark.parametrize(
    "value",
    [
        "Grüße " * 40,
        "漢字" * 100,
        "📎" * 90,
        "plain words " * 90,
        "x" * 2000,
        "=?utf-8?q?=0D=0ABcc:x?=",
        "a  b" * 400,
    ],
)
@pytest.mark.parametrize("name", ["Subject", "X" * 76])
def test_any_value_reads_back_and_no_line_is_too_long(name: str, value: str):
    field = encode_field(name, value)

    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert all(line[:1] == b" " for line in lines[1:])
    assert max(map(len, lines)) <= (
        limits.LINE + 1 if len(name) < limits.LINE else limits.LINE_HARD
    )
    unfolded = message_from_bytes(field)[name].replace("\r\n", "")
    assert str(make_header(decode_header(unfolded))) == value.strip()


def test_addresses_are_quoted_encoded_and_folded_as_needed():
    field = encode_addresses(
        "To",
        [
            Address("Ann Lee", "a@b.c"),
            Address("Lee, Ann", "a@b.c"),
            Address('say "hi" \\', "a@b.c"),
            Address("Jörg", "j@müller.de"),
            Address("=?utf-8?q?x?=", "a@b.c"),
            Address(None, "a@b.c"),
        ],
    )

    assert field == (
        b'To: Ann Lee <a@b.c>, "Lee, Ann" <a@b.c>, "say \\"hi\\" \\\\" <a@b.c>,\r\n'
        b" =?utf-8?b?SsO2cmc=?= <j@xn--mller-kva.de>, =?utf-8?b?PT91dGYtOD9xP3g/PQ==?=\r\n"
        b" <a@b.c>, a@b.c\r\n"
    )


def test_only_a_non_ascii_local_part_is_written_in_utf8():
    assert encode_addresses("To", [Address("Jörg", "jörg@x.de")]).endswith(
        "<jörg@x.de>\r\n".encode()
    )


def test_a_display_name_cannot_add_a_line():
    with pytest.raises(ValueError, match="control characters"):
        encode_addresses("To", [Address("A\r\nBcc: x", "a@b.c")])


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("a.txt", b'filename="a.txt"'),
        ('a"b\\.txt', b'filename="a\\"b\\\\.txt"'),
        ("ü;'%*.txt", b"filename*=utf-8''%C3%BC%3B%27%25%2A.txt"),
        ("=?utf-8?q?x?=", b"filename*=utf-8''%3D%3Futf-8%3Fq%3Fx%3F%3D"),
    ],
)
def test_a_parameter_is_quoted_or_encoded(value: str, encoded: bytes):
    assert encode_parameter("filename", value) == encoded


def test_a_parameter_that_does_not_fit_a_line_is_refused():
    with pytest.raises(ValueError, match="too long"):
        encode_parameter("filename", "x" * 1000)
