"""Whatever is composed reads back, here and in a parser that is not ours; and nothing given adds a line."""

from datetime import UTC, datetime
from email import message_from_bytes
from email.header import decode_header, make_header

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.errors import InvalidRequest
from cbemail.mime import limits
from cbemail.mime.address import Address, envelope_address, parse_address, read_addresses
from cbemail.mime.compose import compose
from cbemail.mime.draft import Attachment, Draft
from cbemail.mime.fields import encode_addresses, encode_field
from cbemail.mime.headers import read_summary_headers
from cbemail.mime.words import decode_text

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN = Address("Ann", "ann@example.com")
BOB = Address(None, "bob@example.com")

LINE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=200)
HOSTILE = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            "\r\n",
            "\n",
            "\r",
            "\0",
            "\u2028",
            "\x85",
            "\x0b",
            "Bcc: e@x.y",
            "=?utf-8?q?=0D=0A?=",
            ":",
            '"',
            "a",
            " ",
        ]
    ),
    max_size=8,
).map("".join)
LOCAL = st.from_regex(r"[a-z0-9!#$%&'*+/=?^_`{|}~äß-]{1,20}(\.[a-z0-9]{1,9})?", fullmatch=True)
DOMAIN = st.sampled_from(["example.com", "b.c", "müller.de", "xn--mller-kva.de"])
ADDRESS = st.builds(lambda local, domain: f"{local}@{domain}", LOCAL, DOMAIN)


@given(st.sampled_from(["Subject", "X-A", "X" * 76]), LINE)
def test_any_line_of_text_reads_back_from_a_field(name: str, value: str):
    field = encode_field(name, value)

    unfolded = field.removesuffix(b"\r\n").replace(b"\r\n", b"").partition(b":")[2]
    assert b"\n" not in unfolded
    assert decode_text(unfolded) == value.strip()
    assert max(map(len, field.split(b"\r\n"))) <= limits.LINE_HARD


@given(
    st.lists(
        st.builds(Address, LINE.map(str.strip).map(lambda name: name or None), ADDRESS),
        min_size=1,
        max_size=5,
    )
)
def test_any_addresses_read_back_from_a_field(addresses: list[Address]):
    field = encode_addresses("To", addresses)

    read = read_addresses(field.removesuffix(b"\r\n").replace(b"\r\n", b"").removeprefix(b"To:"))
    assert read == [Address(each.name, envelope_address(each.address)) for each in addresses]


@given(ADDRESS, st.text(max_size=5))
def test_an_address_that_is_accepted_is_exactly_the_one_given(address: str, addition: str):
    try:
        accepted = parse_address(address + addition)
    except ValueError:
        return

    assert accepted.name is None
    assert "@" in accepted.address
    if (address + addition).isascii():
        assert accepted.address == (address + addition).strip(" ")
    assert not set(envelope_address(accepted.address)) & set(' \t\r\n<>,;:()[]"\\\0')


# What means something to a reader of addresses, and whole addresses among it.
PIECES = [
    "<",
    ">",
    '"',
    "\\",
    "(",
    ")",
    ",",
    ";",
    ":",
    "@",
    " ",
    "a",
    "ü",
    "\0",
    "\r\n",
    "=?utf-8?q?",
]
WRITTEN = st.lists(st.sampled_from(PIECES) | ADDRESS | ADDRESS.map("<{}>".format), max_size=8)


@given(WRITTEN.map("".join))
def test_whatever_is_written_for_an_address_is_one_to_every_reader_or_refused(text: str):
    try:
        accepted = parse_address(text)
    except ValueError:
        return

    field = encode_addresses("To", [accepted])

    read = read_addresses(field.removesuffix(b"\r\n").replace(b"\r\n", b"").removeprefix(b"To:"))
    assert read == [Address(accepted.name, envelope_address(accepted.address))]


FILE = st.builds(
    Attachment,
    filename=LINE.map(lambda name: name[:60] + ".bin"),
    content=st.binary(max_size=300),
    content_type=st.sampled_from(["", "text/plain", "image/png; x=y"]),
    content_id=st.sampled_from([None, "a", "b@c"]),
)
BODY = st.text(st.characters(codec="utf-8"), max_size=400)


@given(subject=LINE, text=BODY, html=st.none() | BODY, files=st.lists(FILE, max_size=3))
def test_a_composed_message_reads_back_in_another_parser(
    subject: str, text: str, html: str | None, files: list[Attachment]
):
    draft = Draft(
        sender=ANN,
        message_id="<1@b.c>",
        date=NOW,
        to=[BOB],
        subject=subject,
        text=text,
        html=html,
        attachments=files,
    )

    content = compose(draft).content

    assert content.isascii()
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    message = message_from_bytes(content)
    assert (
        str(make_header(decode_header(message["Subject"].replace("\r\n", "")))) == subject.strip()
    )
    leaves = [part for part in message.walk() if not part.is_multipart()]
    assert leaves[0].get_payload(decode=True) == lines(text).encode()
    if html is not None:
        rich = next(part for part in leaves if part.get_content_type() == "text/html")
        assert rich.get_payload(decode=True) == lines(html).encode()
    contents = [part.get_payload(decode=True) for part in leaves[1 if html is None else 2 :]]
    assert sorted(map(repr, contents)) == sorted(repr(file.content) for file in files)


def lines(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return text if text.endswith("\r\n") else text + "\r\n"


EXPECTED = {
    "From",
    "To",
    "Reply-To",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
}


@given(
    subject=HOSTILE,
    name=HOSTILE,
    header=HOSTILE | st.just("X-A"),
    value=HOSTILE,
    message_id=HOSTILE | st.just("<1@b.c>"),
    filename=HOSTILE,
    content_type=HOSTILE,
    content_id=st.none() | HOSTILE,
)
def test_no_value_adds_a_field_or_a_line(
    subject: str,
    name: str,
    header: str,
    value: str,
    message_id: str,
    filename: str,
    content_type: str,
    content_id: str | None,
):
    draft = Draft(
        sender=Address(name, "a@b.c"),
        message_id=message_id,
        date=NOW,
        to=[Address(name, "b@c.d")],
        reply_to=[Address(name, "c@d.e")],
        subject=subject,
        text="x",
        headers={header: value},
        attachments=[Attachment(filename, b"y", content_type, content_id)],
    )

    try:
        content = compose(draft).content
    except InvalidRequest:
        return

    message = message_from_bytes(content)
    assert sorted(message.keys()) == sorted(EXPECTED | {header})
    part = list(message.walk())[-1]
    allowed = {"Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID"}
    assert set(part.keys()) <= allowed
    assert len(part.keys()) == len(set(part.keys()))
    assert read_summary_headers(content).bcc == []


@pytest.mark.parametrize("field", ["subject", "message_id"])
@given(hostile=HOSTILE.filter(lambda text: "\n" in text or "\r" in text))
def test_a_line_break_in_a_value_is_always_refused(field: str, hostile: str):
    draft = Draft(sender=ANN, message_id="<1@b.c>", date=NOW, to=[BOB])

    with pytest.raises(InvalidRequest):
        compose(msgspec.structs.replace(draft, **{field: hostile}))
