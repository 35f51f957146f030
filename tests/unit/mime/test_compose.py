from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from email.policy import SMTPUTF8

import msgspec
import pytest

from cbemail.errors import InvalidRequest
from cbemail.mime import limits
from cbemail.mime.address import Address
from cbemail.mime.compose import compose, new_message_id
from cbemail.mime.draft import Attachment, Draft

DRAFT = Draft(
    sender=Address("Ann", "ann@example.com"),
    message_id="<1@example.com>",
    date=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    to=[Address(None, "bob@example.com")],
    subject="Hello",
    text="Hi Bob\n",
)


def draft(**changes: object) -> Draft:
    return msgspec.structs.replace(DRAFT, **changes)


def parsed(message: Draft) -> Message:
    return message_from_bytes(compose(message).content)


def children(part: Message) -> list[Message]:
    payload = part.get_payload()
    assert isinstance(payload, list)
    return [child for child in payload if isinstance(child, Message)]


def shape(part: Message) -> object:
    """The tree of content types, as nested lists."""
    if part.get_content_maintype() == "multipart":
        return [part.get_content_subtype(), *map(shape, children(part))]
    return part.get_content_type()


def refusal(message: Draft) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        compose(message)
    (error,) = refused.value.errors
    assert error.detail == refused.value.detail
    return error


def test_a_plain_message_is_written_as_is():
    assert compose(DRAFT).content == (
        b"From: Ann <ann@example.com>\r\nTo: bob@example.com\r\nSubject: Hello\r\n"
        b"Date: Fri, 02 Jan 2026 03:04:05 +0000\r\nMessage-ID: <1@example.com>\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n\r\nHi Bob\r\n"
    )


PNG = Attachment("a.png", b"\x89PNG", content_id="logo@x")
PDF = Attachment("a.pdf", b"%PDF")


@pytest.mark.parametrize(
    ("changes", "tree"),
    [
        ({}, "text/plain"),
        ({"text": None}, "text/plain"),
        ({"html": "<p>x"}, ["alternative", "text/plain", "text/html"]),
        ({"attachments": [PDF]}, ["mixed", "text/plain", "application/pdf"]),
        ({"attachments": [PNG]}, ["mixed", "text/plain", "image/png"]),
        (
            {"html": "x", "attachments": [PNG]},
            ["mixed", ["alternative", "text/plain", "text/html"], "image/png"],
        ),
        (
            {"html": "<img src='cid:logo@x'>", "attachments": [PNG, PDF]},
            [
                "mixed",
                ["alternative", "text/plain", ["related", "text/html", "image/png"]],
                "application/pdf",
            ],
        ),
        (
            {"html": "<img src='cid:logo%40x'>", "attachments": [PNG]},
            ["alternative", "text/plain", ["related", "text/html", "image/png"]],
        ),
    ],
)
def test_the_parts_are_put_together_as_readers_expect(changes: dict[str, object], tree: object):
    assert shape(parsed(draft(**changes))) == tree


def test_html_alone_gets_a_text_alternative():
    message = parsed(draft(text=None, html="<p>Hi <b>Bob</b></p><p>x</p>"))
    text, html = children(message)

    assert text.get_payload(decode=True) == b"Hi Bob\r\n\r\nx\r\n"
    assert html.get_payload(decode=True) == b"<p>Hi <b>Bob</b></p><p>x</p>\r\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain", "7bit"),
        (".\nFrom x\n.\r\n", "7bit"),
        ("Grüße aus der schönen Stadt Köln am Rhein", "quoted-printable"),
        ("x" * 999, "quoted-printable"),
        ("a\0b", "quoted-printable"),
        ("Привет мир", "base64"),
        ("漢字", "base64"),
        ("", "7bit"),
    ],
)
def test_text_is_sent_in_the_plainest_encoding_that_holds_it(text: str, encoding: str):
    message = parsed(draft(text=text))

    assert message["Content-Transfer-Encoding"] == encoding
    body = message.get_payload(decode=True)
    assert isinstance(body, bytes)
    assert body.decode().replace("\r\n", "\n").removesuffix("\n") == text.replace(
        "\r\n", "\n"
    ).removesuffix("\n")


@pytest.mark.parametrize(
    "hostile", ["\n.\r\n", "\r.\r\n", "\r\n.\r", "\n.\n", "a\rb\nc", "\r\n.\r\nMAIL FROM:<a@b>"]
)
def test_only_crlf_ends_a_line(hostile: str):
    content = compose(
        draft(
            text=hostile,
            html=hostile,
            attachments=[Attachment("a.eml", b"A: 1\n\n" + hostile.encode())],
        )
    ).content

    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")


def test_bcc_is_written_only_where_a_draft_is_kept():
    message = draft(bcc=[Address(None, "secret@example.com")])

    assert b"secret" not in compose(message).content
    assert b"Bcc: secret@example.com\r\n" in compose(message, keep_bcc=True).content


def test_a_message_to_bcc_alone_says_so():
    message = draft(to=[], bcc=[Address(None, "secret@example.com")])

    assert b"\r\nTo: undisclosed-recipients:;\r\n" in compose(message).content
    assert b"undisclosed" not in compose(message, keep_bcc=True).content


def test_smtputf8_is_needed_for_what_the_header_names():
    joerg = [Address("Jörg", "jörg@example.com")]

    assert compose(draft(cc=joerg)).needs_smtputf8
    assert compose(draft(bcc=joerg), keep_bcc=True).needs_smtputf8
    assert not compose(draft(bcc=joerg)).needs_smtputf8
    assert "<jörg@example.com>".encode() in compose(draft(cc=joerg)).content


def test_a_forwarded_message_is_not_encoded():
    original = b"Subject: x\nContent-Type: text/plain\n\nhi\n"
    message = parsed(draft(attachments=[Attachment("a.eml", original, "message/rfc822")]))
    part = children(message)[1]

    assert part["Content-Transfer-Encoding"] == "7bit"
    assert children(part)[0]["Subject"] == "x"


@pytest.mark.parametrize("original", [b"Subject: \xc3\xbc\r\n\r\n", b"A: " + b"x" * 999, b"A: \0"])
def test_a_forwarded_message_that_needs_eight_bits_goes_as_a_file(original: bytes):
    part = children(parsed(draft(attachments=[Attachment("a.eml", original, "message/rfc822")])))[1]

    assert part.get_content_type() == "application/octet-stream"
    assert part.get_payload(decode=True) == original


def test_a_boundary_is_none_that_the_content_holds():
    first = message_from_bytes(compose(draft(html="x")).content).get_boundary()
    assert first is not None
    prefix = first.rpartition(".")[0]

    again = draft(text=f"--{first}\n--{prefix}", html="x")

    assert parsed(again).get_boundary() != first
    assert shape(parsed(again)) == ["alternative", "text/plain", "text/html"]


def test_the_same_draft_gives_the_same_octets():
    message = draft(html="x", attachments=[PDF])

    assert compose(message) == compose(message)


def test_a_reply_names_what_it_answers():
    message = parsed(draft(in_reply_to="<0@x>", references=["<r@x>", "<0@x>"]))

    assert message["In-Reply-To"] == "<0@x>"
    assert message["References"] == "<r@x>\r\n <0@x>"


def test_headers_of_the_caller_are_added():
    message = parsed(draft(headers={"X-Campaign": "spring", "List-Unsubscribe": "<https://x.y/u>"}))

    assert message["X-Campaign"] == "spring"
    assert message["List-Unsubscribe"] == "<https://x.y/u>"


CONTROL = "a\r\nBcc: e@x.y"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"subject": CONTROL}, "#/subject"),
        ({"sender": Address(CONTROL, "a@b.c")}, "#/from/name"),
        ({"sender": Address(None, "a@b.c>\r\n")}, "#/from"),
        ({"to": [Address(None, "a@b.c"), Address(None, "a@b.c,d@e.f")]}, "#/to/1"),
        ({"cc": [Address(None, "x")]}, "#/cc/0"),
        ({"bcc": [Address(None, "x")]}, "#/bcc/0"),
        ({"reply_to": [Address(CONTROL, "a@b.c")]}, "#/reply_to/0/name"),
        ({"message_id": "<a@b>\r\nX: y"}, "#/message_id"),
        ({"message_id": "a@b"}, "#/message_id"),
        ({"in_reply_to": "<a@b>\r\nX: y"}, "#/in_reply_to"),
        ({"references": ["<a@b>", "<a b>"]}, "#/references/1"),
        ({"headers": {"X-A": CONTROL}}, "#/headers/X-A"),
        ({"headers": {"X-A\r\nBcc": "e@x"}}, "#/headers/X-A%0D%0ABcc"),
        ({"headers": {"X-A: b": "c"}}, "#/headers/X-A:%20b"),
        ({"headers": {"X/~": CONTROL}}, "#/headers/X~1~0"),
        ({"headers": {f"X-{n}": "x" for n in range(101)}}, "#/headers"),
        ({"text": "\ud800"}, "#/body"),
        ({"html": "\ud800"}, "#/html"),
        ({"attachments": [Attachment(CONTROL, b"")]}, "#/attachments/0/filename"),
        ({"attachments": [Attachment("", b"")]}, "#/attachments/0/filename"),
        ({"attachments": [Attachment("ü" * 128, b"")]}, "#/attachments/0/filename"),
        (
            {"attachments": [Attachment("a", b"", "text/plain\r\nX: y")]},
            "#/attachments/0/content_type",
        ),
        ({"attachments": [Attachment("a", b"", "text")]}, "#/attachments/0/content_type"),
        (
            {"attachments": [Attachment("a", b"", "multipart/mixed")]},
            "#/attachments/0/content_type",
        ),
        (
            {"attachments": [PDF, Attachment("a", b"", content_id="a>\r\nX: y")]},
            "#/attachments/1/content_id",
        ),
    ],
)
def test_a_value_that_could_change_the_message_is_refused_where_it_stands(
    changes: dict[str, object], pointer: str
):
    assert refusal(draft(**changes))[0] == pointer


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bcc", "`bcc`"),
        ("From", "`from`"),
        ("SUBJECT", "`subject`"),
        ("Reply-To", "`reply_to`"),
        ("References", "`reply`"),
    ]
    + [("Date", "`send_at`")]
    + [
        (name, "cannot be set")
        for name in ("Sender", "Content-Type", "MIME-Version", "DKIM-Signature", "Received")
    ]
    + [
        (name, "cannot be set")
        for name in ("Resent-To", "ARC-Seal", "Return-Path", "Authentication-Results")
    ],
)
def test_a_header_with_a_meaning_of_its_own_is_not_the_callers(name: str, hint: str):
    pointer, detail = refusal(draft(headers={name: "x"}))

    assert pointer == f"#/headers/{name}"
    assert hint in detail


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("a.PDF", "application/pdf"),
        ("a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
    ],
)
def test_a_content_type_not_given_is_told_from_the_extension(filename: str, content_type: str):
    part = children(parsed(draft(attachments=[Attachment(filename, b"x")])))[1]

    assert part.get_content_type() == content_type


def test_a_content_type_keeps_its_parameters():
    content_type = 'text/calendar; method=REQUEST; charset="utf-8"'
    part = children(parsed(draft(attachments=[Attachment("a.ics", b"x", content_type)])))[1]

    assert part["Content-Type"] == content_type


def test_an_international_file_name_is_read_back_by_another_parser():
    name = "Übersicht " * 10 + ".pdf"
    message = message_from_bytes(
        compose(draft(attachments=[Attachment(name, b"x")])).content, policy=SMTPUTF8
    )

    (part,) = message.iter_attachments()
    assert part.get_filename() == name


def test_message_ids_differ_and_name_the_domain():
    first, second = new_message_id("müller.de"), new_message_id("müller.de")

    assert first != second
    assert first.endswith("@xn--mller-kva.de>")
    assert compose(draft(message_id=first)).message_id == first


def test_no_line_is_longer_than_smtp_allows():
    content = compose(
        draft(
            text="x" * 5000,
            html="<p>" + "y" * 5000,
            subject="z" * 3000,
            headers={"X-A": "w" * 3000},
            attachments=[Attachment("ü" * 127, b"v" * 5000)],
            references=[f"<{n}{'r' * 800}@x>" for n in range(20)],
        )
    ).content

    assert max(map(len, content.split(b"\r\n"))) <= limits.LINE_HARD
    assert content.isascii()
