"""What kind of message a structure and a header make."""

import pytest

from cbemail.imap.protocol import Part
from cbemail.mailbox.kind import Kind, kind_of
from cbemail.mailbox.structure import lay_out
from cbemail.mime.address import Address
from cbemail.mime.headers import SummaryHeaders

TEXT = Part("1", "text", "plain", size=10)
ABSENCE = SummaryHeaders(is_automatic_reply=True)


def multipart(subtype: str, *children: Part, **parameters: bytes) -> Part:
    named = {name.replace("_", "-"): value for name, value in parameters.items()}
    return Part("", "multipart", subtype, named, children=children)


def calendar(method: bytes | None, part_id: str = "2") -> Part:
    return Part(part_id, "text", "calendar", {} if method is None else {"method": method})


def kind(root: Part, headers: SummaryHeaders | None = None) -> Kind:
    return kind_of(root, lay_out(root), headers or SummaryHeaders())


@pytest.mark.parametrize("subtype", ["report", "mixed"])
@pytest.mark.parametrize(
    ("notification", "expected"),
    [
        ("delivery-status", "bounce"),
        ("global-delivery-status", "bounce"),
        ("disposition-notification", "receipt"),
        ("feedback-report", "message"),
    ],
)
def test_a_report_is_known_by_its_part_for_machines(
    notification: str, expected: Kind, subtype: str
):
    assert kind(multipart(subtype, TEXT, Part("2", "message", notification))) == expected


def test_a_report_without_that_part_is_known_by_what_it_says_it_is():
    assert kind(multipart("report", TEXT, report_type=b"Delivery-Status")) == "bounce"
    assert kind(multipart("mixed", TEXT, report_type=b"delivery-status")) == "message"


def test_a_bounce_that_was_forwarded_is_a_message():
    bounce = multipart("report", TEXT, Part("2.2", "message", "delivery-status"))
    attached = Part("2", "message", "rfc822", children=(bounce,))

    assert kind(multipart("mixed", TEXT, attached)) == "message"


@pytest.mark.parametrize("subtype", ["alternative", "mixed"])
def test_a_calendar_request_is_an_invitation(subtype: str):
    assert kind(multipart(subtype, TEXT, calendar(b"request"))) == "invitation"
    assert kind(calendar(b"REQUEST", "1")) == "invitation"


@pytest.mark.parametrize("method", [b"REPLY", b"CANCEL", b"PUBLISH", None])
def test_what_else_a_calendar_sends_is_a_message(method: bytes | None):
    assert kind(multipart("alternative", TEXT, calendar(method))) == "message"


def test_an_automatic_reply_is_one_unless_it_is_something_more():
    assert kind(TEXT, ABSENCE) == "auto_reply"
    report = multipart("report", TEXT, Part("2", "message", "delivery-status"))
    assert kind(report, ABSENCE) == "bounce"


def test_a_header_that_names_failed_recipients_makes_a_bounce():
    headers = SummaryHeaders(failed_recipients=[Address(None, "joe@example.net")])

    assert kind(TEXT, headers) == "bounce"
