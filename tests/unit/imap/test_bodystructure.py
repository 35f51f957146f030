from __future__ import annotations

import pytest

from cbemail.imap.bodystructure import MAX_DEPTH, MAX_PARTS, read_body_structure
from cbemail.imap.protocol import ImapSyntaxError, Part, Value
from cbemail.imap.values import parse_values

TEXT = b'("TEXT" "PLAIN" ("CHARSET" "utf-8") NIL NIL "7BIT" 42 3 NIL NIL NIL NIL)'
IMAGE = b'("IMAGE" "PNG" NIL "<i@x>" NIL "BASE64" 77 NIL ("INLINE" ("FILENAME" "a.png")) NIL NIL)'
ENVELOPE = b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)"


def read(raw: bytes) -> Part:
    (value,) = parse_values([raw])
    return read_body_structure(value)


def message(body: bytes, *, tail: bytes = b"9 NIL NIL NIL NIL") -> bytes:
    return b'("MESSAGE" "RFC822" NIL NIL NIL "7BIT" 300 %b %b %b)' % (ENVELOPE, body, tail)


def multipart(*bodies: bytes, subtype: bytes = b"MIXED") -> bytes:
    return b'(%b "%b" ("BOUNDARY" "b") NIL NIL NIL)' % (b"".join(bodies), subtype)


def ids(part: Part) -> list[tuple[str, str]]:
    return [(node.id, f"{node.type}/{node.subtype}") for node in part.walk()]


# ---- as it should be


def test_a_message_that_is_no_multipart_is_part_one():
    part = read(TEXT)

    assert part == Part(
        id="1",
        type="text",
        subtype="plain",
        parameters={"charset": b"utf-8"},
        encoding="7bit",
        size=42,
    )


def test_a_leaf_tells_its_content_id_and_disposition():
    part = read(IMAGE)

    assert part.content_id == b"<i@x>"
    assert (part.encoding, part.size) == ("base64", 77)
    assert part.disposition == "inline"
    assert part.disposition_parameters == {"filename": b"a.png"}


def test_parts_are_numbered_as_the_rfc_numbers_its_example():
    # RFC 9051 6.4.5
    inner = multipart(TEXT, IMAGE)
    root = multipart(
        TEXT,
        b'("APPLICATION" "OCTET-STREAM" NIL NIL NIL "BASE64" 5)',
        message(inner),
        multipart(IMAGE, message(multipart(TEXT, multipart(TEXT, TEXT, subtype=b"ALTERNATIVE")))),
    )

    assert ids(read(root)) == [
        ("", "multipart/mixed"),
        ("1", "text/plain"),
        ("2", "application/octet-stream"),
        ("3", "message/rfc822"),
        ("", "multipart/mixed"),
        ("3.1", "text/plain"),
        ("3.2", "image/png"),
        ("4", "multipart/mixed"),
        ("4.1", "image/png"),
        ("4.2", "message/rfc822"),
        ("", "multipart/mixed"),
        ("4.2.1", "text/plain"),
        ("4.2.2", "multipart/alternative"),
        ("4.2.2.1", "text/plain"),
        ("4.2.2.2", "text/plain"),
    ]


def test_an_attached_message_of_one_part_has_a_part_one():
    assert ids(read(multipart(TEXT, message(TEXT)))) == [
        ("", "multipart/mixed"),
        ("1", "text/plain"),
        ("2", "message/rfc822"),
        ("2.1", "text/plain"),
    ]


def test_a_message_that_is_nothing_but_another_message_is_part_one_of_itself():
    assert ids(read(message(multipart(TEXT, IMAGE)))) == [
        ("1", "message/rfc822"),
        ("", "multipart/mixed"),
        ("1.1", "text/plain"),
        ("1.2", "image/png"),
    ]


def test_an_attached_message_has_a_disposition_behind_its_body():
    part = read(message(TEXT, tail=b'9 NIL ("attachment" ("filename" "a.eml")) NIL NIL'))

    assert part.disposition == "attachment"
    assert part.disposition_parameters == {"filename": b"a.eml"}


def test_a_multipart_tells_its_parameters_and_disposition():
    part = read(b'(%b "ALTERNATIVE" ("BOUNDARY" "x") ("INLINE" NIL) NIL)' % TEXT)

    assert (part.subtype, part.parameters) == ("alternative", {"boundary": b"x"})
    assert part.disposition == "inline"


# ---- as real servers have sent it


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'(NIL NIL NIL NIL NIL "7BIT" 5 1)', "text/plain"),
        (b'(NIL "PDF" NIL NIL NIL "7BIT" 5)', "application/pdf"),
        (b'("TEXT" NIL NIL NIL NIL NIL NIL)', "text/plain"),
        (b'("IMAGE" NIL NIL NIL NIL NIL NIL)', "image/octet-stream"),
        (b'("TEXT")', "text/plain"),
        (b'("mixed" ("boundary" "x"))', "multipart/mixed"),
        (b'("multipart" "alternative" NIL NIL NIL "7BIT" 0)', "multipart/alternative"),
        (b"(%b)" % TEXT, "multipart/mixed"),
        (b"(%b NIL NIL)" % TEXT, "multipart/mixed"),
        (b'("text" "plain" "us-ascii" NIL NIL "7BIT" "12" 1)', "text/plain"),
        (b'("text" "plain" ("charset") NIL NIL () () ())', "text/plain"),
        (b'("MESSAGE" "RFC822" NIL NIL NIL "7BIT" 300)', "message/rfc822"),
        (b'("MESSAGE" "RFC822" NIL NIL NIL "7BIT" 300 NIL NIL 3)', "message/rfc822"),
        (b'("MESSAGE" "RFC822" NIL NIL NIL "7BIT" 300 () () 3)', "message/rfc822"),
        (b'("MESSAGE" "DELIVERY-STATUS" NIL NIL NIL "7BIT" 300)', "message/delivery-status"),
    ],
)
def test_missing_and_misplaced_fields_leave_a_part_that_can_be_shown(raw: bytes, expected: str):
    part = read(raw)

    assert f"{part.type}/{part.subtype}" == expected
    assert part.id == ("" if part.is_multipart else "1")


@pytest.mark.parametrize(
    "raw",
    [
        b'("text" "csv" NIL NIL NIL "7bit" 5 NIL ("attachment" ("filename" "a")) NIL)',  # no lines
        b'("image" "png" NIL NIL NIL "7bit" 5 3 NIL ("attachment" ("filename" "a")) NIL)',
        b'("image" "png" NIL NIL NIL "7bit" 5 ("attachment" ("filename" "a")))',  # no MD5
    ],
)
def test_a_disposition_is_found_where_a_server_has_moved_it(raw: bytes):
    part = read(raw)

    assert part.disposition == "attachment"
    assert part.disposition_parameters == {"filename": b"a"}


@pytest.mark.parametrize(
    ("given", "disposition"),
    [
        (b'"attachment"', "attachment"),
        (b'("attachment")', "attachment"),
        (b'("attachment" "filename")', "attachment"),
        (b'("ATTACHMENT" ("filename"))', "attachment"),
        (b'"something"', None),
        (b"()", None),
        (b"(NIL NIL)", None),
    ],
)
def test_half_a_disposition_is_better_than_none(given: bytes, disposition: str | None):
    part = read(b'("image" "png" NIL NIL NIL "7bit" 5 NIL %b NIL)' % given)

    assert (part.disposition, part.disposition_parameters) == (disposition, {})


def test_languages_are_no_disposition():
    assert read(b'("image" "png" NIL NIL NIL "7bit" 5 NIL NIL ("en" "de"))').disposition is None


def test_an_empty_body_keeps_its_number():
    assert ids(read(b'(() %b "mixed")' % TEXT)) == [
        ("", "multipart/mixed"),
        ("1", "text/plain"),
        ("2", "text/plain"),
    ]


def test_of_two_parameters_with_one_name_the_first_counts():
    part = read(b'("text" "plain" ("NAME" "a" "name" "b" NIL "c" "x" NIL) NIL NIL "7bit" 5 1)')

    assert part.parameters == {"name": b"a"}


# ---- bounds


@pytest.mark.parametrize("value", [None, b"text", []])
def test_what_is_no_structure_at_all_is_a_syntax_error(value: Value):
    with pytest.raises(ImapSyntaxError):
        read_body_structure(value)


def test_a_tree_is_cut_at_a_number_of_parts():
    leaf: Value = [b"text", b"plain"]

    wide = read_body_structure([*([leaf] * (3 * MAX_PARTS)), b"mixed"])
    square = read_body_structure([*([[*([leaf] * 100), b"mixed"]] * 100), b"mixed"])

    assert len(list(wide.walk())) == MAX_PARTS + 1
    assert len(list(square.walk())) <= MAX_PARTS + 1


@pytest.mark.parametrize("depth", [10_000, MAX_DEPTH + 1])
def test_a_tree_is_cut_at_a_depth(depth: int):
    parts: Value = [b"text", b"plain"]
    messages: Value = [b"text", b"plain"]
    for _ in range(depth):
        parts = [parts, b"mixed"]
        messages = [b"message", b"rfc822", None, None, None, None, None, [], messages]

    for value in (parts, messages):
        assert len(list(read_body_structure(value).walk())) == MAX_DEPTH + 1
