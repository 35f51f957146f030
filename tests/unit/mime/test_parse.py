import base64
import binascii
import codecs

import msgspec
import pytest

from cbemail.mime import limits
from cbemail.mime.charset import decode_charset
from cbemail.mime.parse import TransferDecoder, decode_transfer, read_text, unflow


@pytest.mark.parametrize(
    ("encoding", "data", "octets"),
    [
        ("BASE64", b"SGFs\r\nbG8=\r\n", b"Hallo"),
        ("base64", b"SGFsbG8", b"Hallo"),
        ("base64", b"SGFsb", b"Hal"),
        ("base64", b"S*G\0F s\xffbG8=", b"Hallo"),
        ("base64", b"=SGFs=bG8=", b"Hallo"),
        ("base64", b"SGFsbG8=\r\n_____\r\nList footer\r\n", b"Hallo"),
        ("base64", b"====", b""),
        ("quoted-printable", b"a=3Db=C3=bc", b"a=b\xc3\xbc"),
        ("quoted-printable", b"so=\r\nft =\nbreak= \t\r\n.", b"soft break."),
        ("quoted-printable", b"100% = =zz =4=\r\n1", b"100% = =zz =41"),
        ("quoted-printable", b"=\rlost?\r\n", b"=\rlost?\r\n"),
        ("quoted-printable", b"end=", b"end"),
        ("quoted-printable", b"end=4", b"end=4"),
        ("quoted-printable", b"a_b", b"a_b"),
        ("x-uuencode", b"text\r\nbegin 644 a.txt\r\n%2&%L;&\\\r\n`\r\nend\r\nmore", b"Hallo"),
        ("x-uuencode", b"begin 644 a\n\xff\xff\xff\n\nend\n", b""),
        ("7bit", b"as\r\n=41 is", b"as\r\n=41 is"),
        ("nonsense", b"as is", b"as is"),
        (" Binary ", b"\0\xff", b"\0\xff"),
    ],
)
def test_a_transfer_encoding_is_undone_and_damage_survived(
    encoding: str, data: bytes, octets: bytes
):
    assert decode_transfer(data, encoding) == octets


def test_uuencoded_lines_with_padding_behind_them_are_read():
    line = binascii.b2a_uu(b"Hallo").rstrip(b"\n")

    assert decode_transfer(b"begin 644 a\n" + line + b"xx\nend\n", "x-uuencode") == b"Hallo"


def test_a_large_attachment_comes_through_in_pieces():
    octets = bytes(range(256)) * 4000
    encoded = base64.encodebytes(octets)
    decoder = TransferDecoder("base64")

    pieces = [decoder.feed(encoded[at : at + 777]) for at in range(0, len(encoded), 777)]

    assert b"".join([*pieces, decoder.finish()]) == octets
    assert all(pieces), "a piece was held back"


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        (b"a\xc3\xbc", "utf-8", "aü"),
        (b"a\xfc", "iso-8859-1", "aü"),
        (b"\x93a\x94", "ISO-8859-1", "“a”"),
        (b"a\xc3\xbc", None, "aü"),
        (b"a\xfc", None, "aü"),
        (b"a\xc3\xbc", "us-ascii", "aü"),
        (b"a\xfc", "us-ascii", "aü"),
        (b"a\xfc", "utf-8", "aü"),
        ("Grüße aus Köln".encode() + b"\xc3", "utf-8", "Grüße aus Köln\ufffd"),
        ("漢字".encode("gb18030"), "gb2312", "漢字"),
        ("テスト①".encode("cp932"), "shift_jis", "テスト①"),
        ("한글".encode("cp949"), "ks_c_5601-1987", "한글"),
        ("Привет".encode("koi8_r"), "KOI8-R", "Привет"),
        ("Привет".encode("cp1251"), "windows-1251", "Привет"),
        ("שלום".encode("iso8859_8"), "iso-8859-8-i", "שלום"),
        (codecs.BOM_UTF8 + b"a", None, "a"),
        (codecs.BOM_UTF16_LE + "aü".encode("utf-16-le"), "utf-8", "aü"),
        (b"+ADw-script+AD4-", "utf-7", "+ADw-script+AD4-"),
        (b"uryyb", "rot13", "uryyb"),
        (b"\\u0041", "unicode_escape", "\\u0041"),
        (b"xn--mller-kva", "punycode", "xn--mller-kva"),
        (b"a", "undefined", "a"),
        (b"a", "x" * 100_000, "a"),
        (b"a", "\0../../codec", "a"),
        (b"a", "mbcs", "a"),
        (b"a\0b", "utf-8", "a\ufffdb"),
        (b"a\r\nb\rc\nd", "utf-8", "a\nb\nc\nd"),
        (b"\xed\xa0\x80", "utf-8", "í\xa0€"),
    ],
)
def test_a_body_is_decoded_whatever_charset_is_claimed(data: bytes, charset: str | None, text: str):
    decoded = decode_charset(data, charset)

    assert decoded == text
    msgspec.json.encode(decoded)


def test_the_text_of_a_part_is_bounded():
    text = read_text(
        b"x" * (limits.TEXT + 9), encoding="7bit", charset=None, flowed=False, delsp=False
    )

    assert len(text) == limits.TEXT


@pytest.mark.parametrize("cut", range(1, 5))
def test_half_a_character_at_a_cut_does_not_change_the_charset_of_all(cut: int):
    octets = "é: ".encode() + b"x" * 100 + "😀😀".encode()[:-cut]

    text = read_text(
        octets, encoding="8bit", charset="utf-8", flowed=False, delsp=False, whole=False
    )

    assert text == "é: " + "x" * 100 + "😀"


def test_the_text_of_a_part_is_decoded_and_unflowed():
    text = read_text(
        b"Gr=FC=DFe =\r\naus \r\nK=F6ln\r\n",
        encoding="quoted-printable",
        charset="latin1",
        flowed=True,
        delsp=False,
    )

    assert text == "Grüße aus Köln\n"


@pytest.mark.parametrize(
    ("flowed", "plain"),
    [
        ("one \ntwo\nthree", "one two\nthree"),
        ("> a \n> b\n>> c \n> d", "> a b\n>> c \n> d"),
        (" >not a quote\n From", ">not a quote\nFrom"),
        ("text \n-- \nAnn", "text \n-- \nAnn"),
        ("> text \n> -- \n> Ann", "> text \n> -- \n> Ann"),
        (">\n> a", ">\n> a"),
        ("", ""),
    ],
)
def test_flowed_text_is_joined_to_paragraphs(flowed: str, plain: str):
    assert unflow(flowed, delsp=False) == plain


def test_with_delsp_the_space_of_a_flowed_line_goes():
    assert unflow("漢 \n字\nx", delsp=True) == "漢字\nx"
