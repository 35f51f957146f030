"""Readers of received mail are total: any octets give bounded values that JSON can carry."""

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cbemail.mime import limits
from cbemail.mime.address import read_addresses
from cbemail.mime.charset import decode_charset
from cbemail.mime.headers import (
    decode_parameter,
    read_date,
    read_header_block,
    read_message_ids,
    read_summary_headers,
    safe_filename,
)
from cbemail.mime.html import html_to_text, sanitise
from cbemail.mime.markup import balance
from cbemail.mime.parse import TransferDecoder, decode_transfer, unflow
from cbemail.mime.words import decode_text, is_one_line


def soup(*pieces: bytes) -> st.SearchStrategy[bytes]:
    """Octets that are mostly the pieces a reader gives a meaning to."""
    piece = st.sampled_from(pieces) | st.binary(max_size=6)
    return st.lists(piece, max_size=40).map(b"".join)


HEADER = soup(
    *(
        b'"',
        b"(",
        b")",
        b"<",
        b">",
        b",",
        b";",
        b":",
        b"@",
        b"\\",
        b"[",
        b"]",
        b"\r\n",
        b"\r\n ",
        b" ",
        b"a",
        b"b.c",
    ),
    *(
        b"=?utf-8?q?",
        b"=?iso-2022-jp?b?",
        b"=?utf-7?B?",
        b"=C3",
        b"GyRC",
        b"?=",
        b"=?",
        b"From: ",
        b"Date: ",
        b"*",
        b"'",
    ),
    *(
        b"2 Jan 2026 03:04:05 +0100",
        b"2026-01-02T",
        b"Jan",
        b"-9999",
        b"99",
        b"\xff",
        b"\xc3",
        b"\0",
        b"\xe2\x80\xa8",
    ),
)


@given(HEADER)
def test_any_header_block_is_read(block: bytes):
    values = [
        read_summary_headers(block),
        read_header_block(block),
        read_addresses(block),
        read_message_ids(block),
    ]

    assert msgspec.json.encode([*values, read_date(block)])


@given(HEADER)
def test_decoded_header_text_is_one_line(raw: bytes):
    assert is_one_line(decode_text(raw))
    for address in read_addresses(raw):
        assert is_one_line(address.address)
        assert is_one_line(address.name or "")


@given(st.dictionaries(st.sampled_from(["n", "n*", "n*0", "n*0*", "n*1", "n*1*", "n*2*"]), HEADER))
def test_any_parameters_give_a_name_that_is_safe(parameters: dict[str, bytes]):
    name = safe_filename(decode_parameter(parameters, "n"), fallback="part")

    assert 0 < len(name.encode()) <= limits.FILENAME
    assert name.isprintable()
    assert not set(name) & set('/\\:"<>|?*')
    assert name.strip(". ")


CHARSETS = st.sampled_from(
    [
        "utf-8",
        "us-ascii",
        "utf-16",
        "utf-16-be",
        "utf-32",
        "iso-2022-jp",
        "hz-gb-2312",
        "gb2312",
        "big5",
        "euc-kr",
        "x",
    ]
)


@given(st.binary(), CHARSETS | st.text(max_size=20))
def test_any_octets_of_any_charset_are_text(data: bytes, charset: str):
    text = decode_charset(data, charset)

    assert "\0" not in text
    assert "\r" not in text
    assert msgspec.json.encode(text)


@given(
    st.sampled_from(["base64", "quoted-printable", "x-uuencode", "7bit"]),
    soup(
        b"=",
        b"=4",
        b"=41",
        b"=\r\n",
        b"= \n",
        b"\r",
        b"\n",
        b"begin 644 a\n",
        b"%2&%L;&\\\n",
        b"end\n",
        b"SGFs",
        b"bG8=",
    ),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_cutting_a_part_anywhere_changes_nothing(encoding: str, data: bytes, cuts: list[int]):
    decoder = TransferDecoder(encoding)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]

    pieces = [decoder.feed(data[a:b]) for a, b in pairwise(places)]

    assert b"".join([*pieces, decoder.finish()]) == decode_transfer(data, encoding)


@given(st.text(alphabet=">- \nab"), st.booleans())
def test_unflowing_moves_no_words(text: str, delsp: bool):  # noqa: FBT001 - Hypothesis names it
    words = text.replace(">", "").replace(" ", "").split()

    assert "".join(unflow(text, delsp=delsp).replace(">", "").split()) == "".join(words)


TAGS = """
    <b> </b> <i> </i> <p> </p> <div> </div> <a/href=http://x> </a> <a> <pre> </pre> <table> </table> <tr> <td> </td> <th>
    <tbody> <caption> </caption> <col> <colgroup> <ul> </ul> <li> <dl> <dt> <dd> <h1> <h2> </h1> <br> <hr>
    <img/src=cid:a> <svg> </svg> <style> </style> <!-- --> <select> <textarea> <font/color=1> <center>
    <p/style='color:red;background:url(x)'> <b/title='</b>'> < > " ' & &lt; &#10; &nbsp; x"""
MARKUP = st.lists(
    st.sampled_from([*TAGS.split(), "\n", " ", "\xa0"]) | st.text(max_size=3), max_size=30
).map("".join)


@given(MARKUP)
def test_sanitising_twice_changes_nothing(html: str):
    clean = sanitise(html, cid_urls={"a": "/a?b&c"})

    assert sanitise(clean, cid_urls={"a": "/a?b&c"}) == clean


@given(MARKUP)
def test_balancing_twice_changes_nothing(html: str):
    assert balance(balance(html)) == balance(html)


@given(MARKUP)
def test_any_html_has_a_text(html: str):
    text = html_to_text(html)

    assert text == text.strip("\n")
    assert "\n\n\n" not in text
    assert msgspec.json.encode(text)
