"""Whatever the values are, a merged message is the single message with them in it, and holds nobody else's."""

from datetime import UTC, datetime
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from html import escape

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cbemail.mime.address import Address
from cbemail.mime.compose import compose
from cbemail.mime.draft import Attachment, Draft
from cbemail.mime.headers import read_summary_headers
from cbemail.outbox.content import MessageTemplate, Recipient
from cbemail.outbox.expressions import TemplateError
from cbemail.outbox.merge import Merge, MergeError
from cbemail.outbox.template import Template

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN = Address("Ann", "ann@example.com")
BOB = Address("Bob", "bob@example.com")

SIGNS = """
    Bcc:\u00a0e@x.y : " ' <b> & ; =?utf-8?q?=0D=0A?= {{other}} {%if\u00a0other%} }} %} --=_ ü a"""
BREAKS = ["\r\n", "\n", "\r", "\0", "\u2028", "\x85", "\x0b", "\ud800", " "]
HOSTILE = st.lists(st.sampled_from([*SIGNS.split(" "), *BREAKS]), max_size=8).map("".join)
VALUE = st.text(max_size=60) | HOSTILE
LINE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)
OTHER = "THE OTHER ONE'S SECRET"

TEMPLATE = MessageTemplate(
    sender=ANN,
    subject="About {{ a }}",
    text="Dear {{ a }},\n{{ b }}",
    html="<p title='{{ b }}'>Dear {{ a }},</p>",
    headers={"X-A": "{{ a }}"},
    attachments=[Attachment("x-{{ a }}.bin", b"x")],
)
MERGE = Merge(TEMPLATE)
LIQUID = Merge(
    MessageTemplate(
        sender=ANN,
        subject="About {{ a }}{% if other %}{{ other }}{% endif %}",
        text="Dear {% if b %}{{ a }}{% endif %},\n{{ b }}",
        html="<p title='{{ b }}'>Dear {% for x in (1..1) %}{{ a }}{% endfor %},</p>",
        headers={"X-A": "{{ a | append: '' }}"},
        attachments=[Attachment("x-{{ a | append: '' }}.bin", b"x")],
    )
)
EXPECTED = ["Content-Type", "Date", "From", "MIME-Version", "Message-ID", "Subject", "To", "X-A"]


def recipient(a: str, b: str) -> Recipient:
    return Recipient("bob@example.com", to=[BOB], variables={"a": a, "b": b})


def payload(part: Message) -> bytes:
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets


@pytest.mark.parametrize("merge", [MERGE, LIQUID], ids=["simple", "liquid"])
@given(a=VALUE, b=VALUE)
@example(a="x\r\nBcc: e@x", b="")
@example(a="{{ b }}", b="{{ a }}")
def test_no_value_adds_a_field_a_line_or_a_secret(merge: Merge, a: str, b: str):
    merge.render(recipient(OTHER, OTHER), message_id="<0@b.c>", date=NOW)
    who = recipient(a, b)

    try:
        content = merge.render(who, message_id="<1@b.c>", date=NOW).content
    except MergeError:
        with pytest.raises(MergeError) as refused:
            merge.check(who)
        assert refused.value.code == "invalid-variables"
        return

    merge.check(who)
    message = message_from_bytes(content)
    assert sorted(message.keys()) == EXPECTED
    assert read_summary_headers(content).bcc == []
    assert content.isascii()
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    parts = list(message.walk())
    assert [part.get_content_type() for part in parts] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "application/octet-stream",
    ]
    for octets in [content, *map(payload, parts[2:])]:
        assert OTHER.encode() not in octets


@given(a=LINE, b=st.text(st.characters(codec="utf-8"), max_size=100))
def test_every_value_reads_back_from_where_it_was_put(a: str, b: str):
    assume(len(f"x-{a}.bin".encode()) <= 255)

    content = MERGE.render(recipient(a, b), message_id="<1@b.c>", date=NOW).content

    message = message_from_bytes(content)
    _, _, text, html, file = message.walk()
    subject = message["Subject"].replace("\r\n", "")
    assert str(make_header(decode_header(subject))) == f"About {a}".strip()
    assert payload(text) == lines(f"Dear {a},\n{b}").encode()
    assert payload(html) == lines(f"<p title='{escape(b)}'>Dear {escape(a)},</p>").encode()
    assert file.get_filename() == f"x-{a}.bin"


def lines(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return text if text.endswith("\r\n") else text + "\r\n"


@pytest.mark.parametrize("merge", [MERGE, LIQUID], ids=["simple", "liquid"])
@given(a=LINE, b=st.text(st.characters(codec="utf-8"), max_size=100))
def test_a_merged_message_is_octet_by_octet_the_single_one(merge: Merge, a: str, b: str):
    draft = Draft(
        sender=ANN,
        message_id="<1@b.c>",
        date=NOW,
        to=[BOB],
        subject=f"About {a}",
        text=f"Dear {a},\n{b}",
        html=f"<p title='{escape(b)}'>Dear {escape(a)},</p>",
        headers={"X-A": a},
        attachments=[Attachment(f"x-{a}.bin", b"x")],
    )

    assert merge.render(recipient(a, b), message_id="<1@b.c>", date=NOW) == compose(draft)


PIECES = """
    {{ }} {% %} {{- -%} name x.y x[0] ['a'] | default: "d" 'd' ' " if elsif else endif unless endunless case when
    endcase for in (1..3) (1..99999999) reversed limit:2 endfor break continue assign = == != < > and or contains
    comment endcomment # upcase append: join: split: size first replace: times: 3 -1 2.5 true nil empty blank , . - ( )
    [ ] forloop.index nobody date: truncate: round: capitalize raw endraw include doc * \\ ü \ue000 <b> &"""
FRAGMENT = st.sampled_from([*PIECES.split(), " ", "\n"]) | st.text(max_size=3)
TAG = st.sampled_from(["{{ %s }}", "{%% %s %%}", "%s"])
SOURCE = st.lists(
    st.builds(lambda tag, inner: tag % " ".join(inner), TAG, st.lists(FRAGMENT, max_size=5)),
    max_size=5,
).map("".join)
BLOCK = st.sampled_from(
    ["{%% if %s %%}a{%% endif %%}", "{%% for i in %s %%}{{ i }}{%% endfor %%}", "{{ %s }}"]
)
SENSIBLE = st.builds(
    lambda block, inner: block % " ".join(inner), BLOCK, st.lists(FRAGMENT, min_size=1, max_size=5)
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=5,
)


@given(source=SOURCE | SENSIBLE | st.text(max_size=40), name=JSON, x=JSON, escaped=st.booleans())
def test_a_template_either_is_refused_or_makes_a_text_or_says_why_not(
    source: str, name: object, x: object, *, escaped: bool
):
    try:
        said = Template.compile(source, html=escaped).render({"name": name, "x": x, "i": 1})
    except TemplateError as error:
        said = error.detail
    except ValueError as error:  # compiling
        said = str(error)

    assert "object at 0x" not in said
