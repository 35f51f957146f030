from __future__ import annotations

import pytest

from cbemail.imap import utf7


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("INBOX", b"INBOX"),
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 5.1.3
        ("Entwürfe & Co", b"Entw&APw-rfe &- Co"),
        ("&", b"&-"),
        ("ü&ü", b"&APw-&-&APw-"),
        ("😀", b"&2D3eAA-"),
        ("tab\there", b"tab&AAk-here"),
        ("", b""),
    ],
)
def test_a_name_is_spelled_the_one_way_the_rfc_allows(text: str, wire: bytes):
    assert utf7.encode(text) == wire
    assert utf7.decode(wire) == text


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"Tom & Jerry", "Tom & Jerry"),
        (b"&", "&"),
        (b"&AAA", "&AAA"),
        (b"&A-", "&A-"),
        (b"&2D0-", "&2D0-"),  # half of a surrogate pair
        ("Entwürfe".encode(), "Entwürfe"),
        ("Entwürfe".encode("latin-1"), "Entwürfe"),
        (b"\xff&APw-", "\xffü"),
    ],
)
def test_what_is_no_modified_utf7_is_kept_as_it_stands(wire: bytes, text: str):
    assert utf7.decode(wire) == text
