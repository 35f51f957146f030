"""Delivery reports as mail systems write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.mime import limits
from cbemail.mime.delivery import DeliveryReport, DeliveryStatus, read_delivery_report

POSTFIX = b"""Reporting-MTA: dns; mail.example.org
X-Postfix-Queue-ID: 4XyZ
Arrival-Date: Mon,  5 Jan 2026 10:00:00 +0000 (UTC)

Final-Recipient: rfc822; joe@example.net
Original-Recipient: rfc822;info@example.org
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.net
Diagnostic-Code: smtp; 550 5.1.1 <joe@example.net>: User unknown; sorry
"""

GMAIL = b"""Reporting-MTA: dns; googlemail.com
Received-From-MTA: dns; joe@example.org
X-Original-Message-ID: <sent@mail.example.org>

Final-Recipient: rfc822; nobody@example.net
Action: failed
Status: 4.4.1
Diagnostic-Code: smtp; The recipient server did not accept our requests to connect.
Last-Attempt-Date: Mon, 05 Jan 2026 02:00:00 -0800 (PST)
"""

EXCHANGE = b"""Reporting-MTA: dns;AM0PR01.eurprd01.prod.exchangelabs.com

Final-recipient: RFC822; nobody@example.net
Action: Failed
Status: 5.1.10 (recipient not found)
Diagnostic-code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound
X-Display-Name: nobody
"""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            POSTFIX,
            DeliveryReport(
                [
                    DeliveryStatus(
                        "info@example.org",
                        "failed",
                        "5.1.1",
                        "550 5.1.1 <joe@example.net>: User unknown; sorry",
                    )
                ],
                None,
            ),
        ),
        (
            GMAIL,
            DeliveryReport(
                [
                    DeliveryStatus(
                        "nobody@example.net",
                        "failed",
                        "4.4.1",
                        "The recipient server did not accept our requests to connect.",
                    )
                ],
                "<sent@mail.example.org>",
            ),
        ),
        (
            EXCHANGE,
            DeliveryReport(
                [
                    DeliveryStatus(
                        "nobody@example.net",
                        "failed",
                        "5.1.10",
                        "550 5.1.10 RESOLVER.ADR.RecipientNotFound",
                    )
                ],
                None,
            ),
        ),
    ],
    ids=["Postfix", "Gmail", "Exchange"],
)
def test_a_report_says_who_did_not_get_the_mail_and_why(
    report: bytes, expected: DeliveryReport, line_end: bytes
):
    assert read_delivery_report(report.replace(b"\n", line_end)) == expected


def test_an_address_in_unicode_is_decoded():
    report = rb"Final-Recipient: utf-8; \x{71}\x{E9}@ex\x{E4}mple.net" + b"\nAction: failed\n"

    assert read_delivery_report(report).recipients[0].address == "qé@exämple.net"


def test_a_group_that_names_nobody_is_about_nobody():
    report = b"Reporting-MTA: dns; x\n\nAction: failed\nStatus: 5.0.0\n\nFinal-Recipient: rfc822;\n"

    assert read_delivery_report(report) == DeliveryReport([], None)


def test_what_is_no_status_or_has_no_type_is_told_as_far_as_it_goes():
    report = b"Final-Recipient: joe@example.net\nStatus: bad\nDiagnostic-Code: 550 no; really no\n"

    assert read_delivery_report(report).recipients == [
        DeliveryStatus("joe@example.net", None, None, "550 no; really no")
    ]


def test_a_report_on_very_many_is_read_in_part():
    report = b"Reporting-MTA: dns; x\n\n" + b"Final-Recipient: rfc822; a@b.c\n\n" * 5_000

    assert 0 < len(read_delivery_report(report).recipients) <= limits.REPORTED


@given(st.binary())
def test_any_octets_are_a_report(data: bytes):
    report = read_delivery_report(data)

    assert all(each.address for each in report.recipients)
