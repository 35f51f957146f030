from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest
from msgspec import structs

from cbemail.errors import InvalidRequest
from cbemail.mime.address import Address
from cbemail.mime.compose import Composed, compose
from cbemail.mime.draft import Attachment, Draft
from cbemail.outbox.content import MessageTemplate, Recipient
from cbemail.outbox.merge import Merge, MergeError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN = Address("Ann", "ann@example.com")
BOB = Address("Bob Ü", "bob@example.net")
TEMPLATE = MessageTemplate(sender=ANN, subject="Hello {{ name }}", text="Dear {{ name }},\n")
PNG = Attachment("a.png", b"\x89PNG\n", content_id="logo@x")


def template(**changes: object) -> MessageTemplate:
    return structs.replace(TEMPLATE, **changes)


def recipient(**variables: Any) -> Recipient:
    return Recipient("bob@example.net", to=[BOB], variables=variables)


def rendered(message: MessageTemplate, who: Recipient) -> Composed:
    merge = Merge(message)
    merge.check(who)
    return merge.render(who, message_id="<1@b.c>", date=NOW)


def parsed(message: MessageTemplate, who: Recipient) -> Message:
    return message_from_bytes(rendered(message, who).content)


def body(message: Message, content_type: str) -> str:
    part = next(part for part in message.walk() if part.get_content_type() == content_type)
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


def filenames(message: Message) -> list[str | None]:
    return [part.get_filename() for part in message.walk() if part.get_content_disposition()]


def draft(**changes: object) -> Draft:
    whole = Draft(sender=ANN, message_id="<1@b.c>", date=NOW, to=[BOB])
    return structs.replace(whole, **changes)


# ---- the same as a single message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({}, {"subject": "Hello Zoë", "text": "Dear Zoë,\n"}),
        (
            {"html": "<p>Dear {{ name }}{{ sign }}"},
            {"subject": "Hello Zoë", "text": "Dear Zoë,\n", "html": "<p>Dear Zoë&lt;3"},
        ),
        (
            {"text": "Hi", "html": "<p>Hi", "subject": "Hi"},
            {"text": "Hi", "html": "<p>Hi", "subject": "Hi"},
        ),
        ({"text": None, "html": "<p>Hi"}, {"html": "<p>Hi", "subject": "Hello Zoë"}),
        ({"text": None, "html": None}, {"subject": "Hello Zoë"}),
        (
            {"headers": {"X-A": "{{ name }} = {{ n }}", "X-B": "b"}, "reply_to": [BOB]},
            {
                "headers": {"X-A": "Zoë = 3", "X-B": "b"},
                "reply_to": [BOB],
                "subject": "Hello Zoë",
                "text": "Dear Zoë,\n",
            },
        ),
        (
            {
                "text": "x",
                "subject": "",
                "html": "<img src='cid:logo@x'>{{ name }}",
                "attachments": [PNG, Attachment("{{ name }}-{{ n }}.pdf", b"%PDF")],
            },
            {
                "text": "x",
                "html": "<img src='cid:logo@x'>Zoë",
                "attachments": [PNG, Attachment("Zoë-3.pdf", b"%PDF")],
            },
        ),
        (
            {
                "text": "x",
                "subject": "",
                "html": "{% if n > 2 %}<img src='cid:logo@x'>{% endif %}",
                "attachments": [
                    structs.replace(PNG, filename="{{ n }}.png"),
                    Attachment("{{ n }}.eml", b"Subject: x\n\ny"),
                    Attachment("{{ n }}.eml", b"Subject: \xfc\n\ny"),
                    Attachment("{{ n }}.eml", b"x", "text/plain"),
                    Attachment("a.eml", b"Subject: x\n\ny"),
                    Attachment("x.{{ type }}", b"x"),
                ],
            },
            {
                "text": "x",
                "html": "<img src='cid:logo@x'>",
                "attachments": [
                    structs.replace(PNG, filename="3.png"),
                    Attachment("3.eml", b"Subject: x\n\ny"),
                    Attachment("3.eml", b"Subject: \xfc\n\ny"),
                    Attachment("3.eml", b"x", "text/plain"),
                    Attachment("a.eml", b"Subject: x\n\ny"),
                    Attachment("x.csv", b"x"),
                ],
            },
        ),
    ],
)
def test_a_merged_message_is_the_single_one_with_its_values(
    written: dict[str, object], meant: dict[str, object]
):
    merge = Merge(template(**written))
    who = recipient(name="Zoë", n=3, sign="<3", type="csv")

    for _ in range(2):  # the second finds everything encoded
        merge.check(who)
        assert merge.render(who, message_id="<1@b.c>", date=NOW) == compose(draft(**meant))


def test_each_recipient_gets_their_own_message_in_any_order():
    merge = Merge(template(html="{{ name }}", attachments=[Attachment("{{ name }}.txt", b"x")]))

    first = [merge.render(recipient(name=n), message_id="<1@b.c>", date=NOW) for n in "abc"]
    again = [merge.render(recipient(name=n), message_id="<1@b.c>", date=NOW) for n in "cba"]

    assert first == again[::-1]
    assert len({message.content for message in first}) == 3


def test_a_recipients_message_is_to_those_it_names():
    carl = Address(None, "carl@example.org")
    who = Recipient("bob@example.net", to=[BOB, ANN], cc=[carl], variables={"name": "Bob"})

    message = parsed(TEMPLATE, who)

    assert message["To"] == "=?utf-8?b?Qm9iIMOc?= <bob@example.net>, Ann <ann@example.com>"
    assert message["Cc"] == "carl@example.org"
    assert "Bcc" not in message


def test_who_is_in_bcc_alone_gets_a_message_to_nobody():
    message = parsed(TEMPLATE, Recipient("bcc@example.net", variables={"name": "Bob"}))

    assert message["To"] == "undisclosed-recipients:;"
    assert b"bcc@example.net" not in bytes(message)


@pytest.mark.parametrize(
    ("sender", "to", "cc"),
    [("ä@b.c", "a@b.c", "a@b.c"), ("a@b.c", "ä@b.c", "a@b.c"), ("a@b.c", "a@b.c", "ä@b.c")],
)
def test_a_local_part_that_is_not_ascii_needs_smtputf8(sender: str, to: str, cc: str):
    who = Recipient(to, to=[Address(None, to)], cc=[Address(None, cc)], variables={"name": "x"})

    assert rendered(template(sender=Address(None, sender)), who).needs_smtputf8
    assert not rendered(TEMPLATE, recipient(name="x")).needs_smtputf8


# ---- the text of HTML


@pytest.mark.parametrize(
    "html",
    [
        "<p>Dear {{ name }},<p>see <a href='{{ url }}'>here</a>.",
        "<p>Dear {% if name %}{{ name }}{% endif %},<p>see <a href='{{ url }}'>here</a>.",
        "<p>Dear {{ name | default: 'x  y' }},<p>see <a href=\"{{url|default:'#'}}\">here</a>.",
    ],
)
def test_html_alone_gets_a_text_with_the_same_values(html: str):
    message = parsed(
        template(text=None, html=html), recipient(name="Zoë & Co", url="https://x.y/?a=1&b=2")
    )

    assert body(message, "text/plain") == (
        "Dear Zoë & Co,\r\n\r\nsee here (https://x.y/?a=1&b=2).\r\n"
    )
    assert "Dear Zoë &amp; Co" in body(message, "text/html")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<a href='{{ url }}'>{{ url }}</a>", "https://x.y\r\n"),
        ("<a href='https://{{ host }}/a'>go</a>", "go (https://x.y/a)\r\n"),
        ("https://{{ host }} <a href='{{ url }}'>go</a>", "https://x.y go (https://x.y)\r\n"),
    ],
)
def test_a_link_made_of_values_keeps_its_address(html: str, text: str):
    message = parsed(
        template(text=None, html=html, subject=""), recipient(url="https://x.y", host="x.y")
    )

    assert body(message, "text/plain") == text


# ---- what is wrong with a template


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"subject": "{{ 7*7 }}"}, "#/template/subject"),
        ({"subject": "a\r\nBcc: e@x {{ name }}"}, "#/template/subject"),
        ({"text": "{{ name"}, "#/template/body"),
        ({"text": "\ud800"}, "#/template/body"),
        ({"html": "{% if x %}"}, "#/template/html"),
        ({"headers": {"X-A": "{{ }}"}}, "#/template/headers/X-A"),
        ({"headers": {"X-A/b": "{{ }}"}}, "#/template/headers/X-A~1b"),
        ({"headers": {"X-A\r\nBcc": "{{ name }}"}}, "#/template/headers/X-A%0D%0ABcc"),
        ({"headers": {"Bcc": "{{ name }}"}}, "#/template/headers/Bcc"),
        ({"headers": {"{{ name }}": "x"}}, "#/template/headers/%7B%7B%20name%20%7D%7D"),
        ({"headers": {"X-A": "{{ name }}\n"}}, "#/template/headers/X-A"),
        ({"headers": {f"X-{n}": "x" for n in range(101)}}, "#/template/headers"),
        ({"attachments": [PNG, Attachment("{{ a b }}", b"")]}, "#/template/attachments/1/filename"),
        ({"attachments": [Attachment(" ", b"")]}, "#/template/attachments/0/filename"),
        ({"attachments": [Attachment("{{ n }}\n", b"")]}, "#/template/attachments/0/filename"),
        (
            {"attachments": [Attachment("{{ n }}", b"", "text")]},
            "#/template/attachments/0/content_type",
        ),
        (
            {"attachments": [Attachment("{{ n }}", b"", "text/plain", "<x>")]},
            "#/template/attachments/0/content_id",
        ),
        ({"reply_to": [Address(None, "a@b@c")]}, "#/template/reply_to/0"),
        ({"sender": Address("a\nb", "a@b.c")}, "#/template/from/name"),
    ],
)
def test_a_wrong_template_is_refused_where_it_is_wrong(changes: dict[str, object], pointer: str):
    with pytest.raises(InvalidRequest) as refused:
        Merge(template(**changes))

    (error,) = refused.value.errors
    assert error.pointer == pointer
    assert error.detail == refused.value.detail


# ---- what is wrong with a recipient's variables


def refusals(message: MessageTemplate, who: Recipient) -> set[tuple[str, str]]:
    """What checking and rendering say: the same, or the batch was accepted for nothing."""
    merge = Merge(message)
    said = set()
    with pytest.raises(MergeError) as checked:
        merge.check(who)
    said.add((checked.value.code, checked.value.detail))
    with pytest.raises(MergeError) as tried:
        merge.render(who, message_id="<1@b.c>", date=NOW)
    said.add((tried.value.code, tried.value.detail))
    return said


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "{{ nick }}", "text": "x"},
        {"subject": "x", "text": "{{ nick }}"},
        {"subject": "x", "text": "x", "html": "{{ nick }}"},
        {"subject": "x", "text": None, "html": "{{ nick }}"},
        {"subject": "x", "text": "{% if name %}{{ nick }}{% endif %}"},
        {"subject": "x", "text": "x", "headers": {"X-A": "{{ nick }}"}},
        {"subject": "x", "text": "x", "attachments": [Attachment("{{ nick }}", b"")]},
    ],
)
def test_a_missing_variable_is_named_wherever_it_is_missing(changes: dict[str, object]):
    assert refusals(template(**changes), recipient(name="Bob")) == {
        ("missing-variable", "The variable nick is missing.")
    }


def test_all_the_variables_that_are_missing_are_named_at_once():
    merge = Merge(template(text="{{ name }} {{ city }}{{ x | default: 'x' }}"))

    with pytest.raises(MergeError) as refused:
        merge.check(recipient())

    assert refused.value.detail == "The variables name, city are missing."


HOSTILE = ["a\r\nBcc: e@x", "a\nb", "a\rb", "\u2028", "\x85", "\x0b", "\0", "\ud800"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "x {{ name }}"},
        {"subject": "{% if name %}{{ name }}{% endif %}"},
        {"subject": "", "headers": {"X-A": "{{ name }}"}},
        {"subject": "", "attachments": [Attachment("{{ name }}.txt", b"")]},
    ],
)
def test_no_value_puts_a_line_or_a_control_character_in_a_header(
    changes: dict[str, object], value: str
):
    ((code, _),) = refusals(template(text="x", **changes), recipient(name=value))

    assert code == "invalid-variables"


@pytest.mark.parametrize(
    ("changes", "variables", "code"),
    [
        ({"text": "{{ name }}"}, {"name": ["a"]}, "invalid-variables"),
        ({"text": "{{ name }}"}, {"name": "\ud800"}, "invalid-variables"),
        ({"text": "{{ name | upcase }}"}, {"name": "\ud800"}, "invalid-variables"),
        ({"text": "{{ name | date: '%d' }}"}, {"name": "x"}, "invalid-variables"),
        ({"text": "{{ name }}" * 2_000}, {"name": "x" * 60_000}, "too-large"),
        ({"html": "{{ name }}" * 200}, {"name": "'" * 60_000}, "too-large"),
        ({"text": "{% for i in (1..1000000000) %}{% endfor %}"}, {}, "too-large"),
        ({"headers": {"X-A": "{{ name }}"}}, {"name": "x" * 60_000}, "too-large"),
        (
            {"attachments": [Attachment("{{ name }}", b"")]},
            {"name": "x" * 256},
            "invalid-variables",
        ),
        ({"attachments": [Attachment("{{ name }}", b"")]}, {"name": " "}, "invalid-variables"),
    ],
)
def test_values_that_do_not_fit_reject_the_recipient(
    changes: dict[str, object], variables: dict[str, Any], code: str
):
    ((said, _),) = refusals(template(subject="", **changes), recipient(**variables))

    assert said == code


def test_a_list_may_be_replaced_by_a_default():
    message = template(subject="", text="{{ tags | default: 'none' }}")

    assert body(parsed(message, recipient(tags=[])), "text/plain") == "none\r\n"


def test_an_encoded_word_in_a_value_stays_text():
    message = rendered(TEMPLATE, recipient(name="=?utf-8?q?=0D=0ABcc:x?="))

    assert b"\r\nBcc:" not in message.content
    assert compose(draft(subject="Hello =?utf-8?q?=0D=0ABcc:x?=", text="x")).content.split(
        b"\r\nDate"
    )[0] in (message.content)


def test_an_address_that_cannot_be_written_is_told():
    who = Recipient("a@b.c", to=[Address("a\nb", "a@b.c")], variables={"name": "x"})

    with pytest.raises(MergeError) as refused:
        Merge(TEMPLATE).render(who, message_id="<1@b.c>", date=NOW)

    assert refused.value.code == "invalid-address"


@pytest.mark.parametrize("message_id", ["1@b.c", "<1@b.c>\r\nBcc: e@x", ""])
def test_a_message_id_is_checked_as_that_of_a_single_message_is(message_id: str):
    with pytest.raises(InvalidRequest):
        Merge(TEMPLATE).render(recipient(name="x"), message_id=message_id, date=NOW)


# ---- looking at it


def test_a_preview_shows_what_would_be_sent():
    message = template(
        text=None,
        html="<p>Dear {{ name }}",
        attachments=[Attachment("{{ name }}.pdf", b"%PDF")],
    )
    who = recipient(name="A & B")

    preview = Merge(message).preview(who, index=3, bcc=[ANN])

    assert (preview.index, preview.to, preview.cc, preview.bcc) == (3, [BOB], [], [ANN])
    assert preview.subject == "Hello A & B"
    assert preview.text == "Dear A & B"
    assert preview.html == "<p>Dear A &amp; B"
    assert preview.attachments == ["A & B.pdf"]
    assert abs(preview.size - len(rendered(message, who).content)) < 60


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"html": "<p>" + "x" * 20_000},
        {"text": None, "html": "<p>" + "x" * 20_000},
        {"attachments": [Attachment("a", b"x" * 300_000)]},
    ],
)
def test_the_size_of_a_message_is_known_about_before_it_is_made(changes: dict[str, object]):
    message = template(**changes)

    octets = len(rendered(message, recipient(name="Bob")).content)

    assert octets * 0.8 < Merge(message).static_octets < octets * 1.2 + 1_000
