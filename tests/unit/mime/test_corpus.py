"""Messages that have troubled mail parsers: each is read without an exception, and shows as JSON."""

import os
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path

import msgspec
import pytest

from cbemail.mime import limits
from cbemail.mime.address import Address
from cbemail.mime.compose import compose
from cbemail.mime.draft import Draft
from cbemail.mime.headers import (
    decode_parameter,
    read_header_block,
    read_summary_headers,
    safe_filename,
)
from cbemail.mime.html import html_to_text, sanitise
from cbemail.mime.parse import decode_transfer, read_text
from cbemail.mime.reply import quote_text, reply_recipients, reply_subject, threading_of
from cbemail.mime.words import decode_text

CORPUS = os.environ.get("CBEMAIL_CORPUS")
FILES = sorted(path for path in Path(CORPUS).rglob("*") if path.is_file()) if CORPUS else []
ME = Address(None, "me@example.com")

pytestmark = pytest.mark.skipif(not FILES, reason="CBEMAIL_CORPUS is not set")


def json_of(value: object) -> bytes:
    return msgspec.json.encode(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_header_of_a_troublesome_message_is_read(path: Path):
    octets = path.read_bytes()

    fields = read_header_block(octets)
    summary = read_summary_headers(octets)

    assert len(fields) <= limits.HEADER_FIELDS
    assert json_of([(name, decode_text(value)) for name, value in fields])
    assert msgspec.json.decode(json_of(summary))["subject"] == summary.subject


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_parts_of_a_troublesome_message_are_read(path: Path):
    for part in message_from_bytes(path.read_bytes()).walk():
        fields = {
            name.lower(): value for name, value in reversed(read_header_block(part.as_bytes()))
        }
        encoding = fields.get("content-transfer-encoding", b"7bit").decode("ascii", "replace")
        content_type = fields.get("content-type", b"text/plain")
        payload = part.get_payload()
        if not isinstance(payload, str):
            continue
        body = payload.encode("utf-8", "surrogateescape")
        charset = content_type.partition(b"charset=")[2].strip(b'" ').decode("latin-1")

        text = read_text(
            body, encoding=encoding, charset=charset, flowed=b"flowed" in content_type, delsp=True
        )
        clean = sanitise(text, cid_urls={"x": "/x"})

        assert json_of([text, clean, html_to_text(text)])
        assert sanitise(clean, cid_urls={"x": "/x"}) == clean
        assert decode_transfer(body, encoding) is not None
        name = decode_parameter({"filename": fields.get("content-disposition", b"")}, "filename")
        assert len(safe_filename(name, fallback="part").encode()) <= limits.FILENAME


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_troublesome_message_can_be_replied_to(path: Path):
    original = read_summary_headers(path.read_bytes())
    in_reply_to, references = threading_of(original)
    to, cc = reply_recipients(original, {ME.address}, "reply_all")

    composed = compose(
        Draft(
            sender=ME,
            message_id="<1@example.com>",
            date=datetime(2026, 1, 2, tzinfo=UTC),
            to=to,
            cc=cc,
            subject=reply_subject(original.subject, "reply"),
            text=quote_text("x", original),
            in_reply_to=in_reply_to,
            references=references,
        )
    )

    assert read_summary_headers(composed.content).references == references
