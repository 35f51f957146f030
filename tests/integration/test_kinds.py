"""What kind of message a message is, and what a bounce is about; the words of a reply without its history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, letter
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import MESSAGES, PLAINTEXT, Box, good, open_box, verbs
from tests.integration.test_messages import mime


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture
async def box(base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp) -> AsyncIterator[Box]:
    async with open_box(dovecot, base_url, smtp_server) as box:
        yield box


def part(content_type: str, *lines: str) -> bytes:
    return "\r\n".join([f"Content-Type: {content_type}", "", *lines]).encode()


def report(kind: str, *parts: bytes) -> bytes:
    head = "From: Mail Delivery System <MAILER-DAEMON@example.org>\r\nSubject: Report\r\nAuto-Submitted: auto-replied"
    content = mime(part("text/plain", "A report."), *parts, kind="report", head=head)
    return content.replace(b"multipart/report;", f"multipart/report; report-type={kind};".encode())


STATUS = part(
    "message/delivery-status",
    "Reporting-MTA: dns; mail.example.org",
    "",
    "Original-Recipient: rfc822;info@example.org",
    "Final-Recipient: rfc822; joe@example.net",
    "Action: failed",
    "Status: 5.1.1",
    "Diagnostic-Code: smtp; 550 5.1.1 <joe@example.net>: Recipient address",
    "    rejected: User unknown",
    "",
    "Final-Recipient: rfc822; ann@example.net",
    "Action: delayed",
    "Status: 4.4.1 (no answer)",
    "",
)
RETURNED = part("message/rfc822", "Message-ID: <sent@example.org>", "Subject: Hello", "", "Hello.")
RETURNED_HEADER = part("text/rfc822-headers", "Subject: Hello", "Message-ID: <sent@example.org>")
RECEIPT = part("message/disposition-notification", "Final-Recipient: rfc822; joe@example.net")
REQUEST = part("text/calendar; method=REQUEST; charset=utf-8", "BEGIN:VCALENDAR")


async def read(box: Box, uid: int, **params: Any) -> dict[str, Any]:
    return good(await box.get(f"{MESSAGES}/{uid}", **params))


async def test_a_list_tells_the_kind_of_each_message(box: Box) -> None:
    alternative = mime(part("text/plain", "Come!"), REQUEST, kind="alternative")
    expected = [
        (letter("a letter"), "message"),
        (report("delivery-status", STATUS, RETURNED), "bounce"),
        (letter("failed", X_Failed_Recipients="joe@example.net"), "bounce"),
        (report("disposition-notification", RECEIPT), "receipt"),
        (alternative, "invitation"),
        (letter("I am away", Auto_Submitted="auto-replied"), "auto_reply"),
    ]
    box.append(*(message for message, _ in expected))

    rows = (await box.page())["messages"]

    assert [row["kind"] for row in rows[::-1]] == [kind for _, kind in expected]
    for row in rows:
        assert (await read(box, row["uid"]))["kind"] == row["kind"]


@pytest.mark.parametrize("returned", [RETURNED, RETURNED_HEADER], ids=["whole", "header"])
async def test_a_bounce_says_for_whom_why_and_which_message(box: Box, returned: bytes) -> None:
    box.append(report("delivery-status", STATUS, returned))

    message = await read(box, 1)

    assert message["bounce"] == {
        "recipients": [
            {
                "address": "info@example.org",
                "action": "failed",
                "status": "5.1.1",
                "diagnostic": "550 5.1.1 <joe@example.net>: Recipient address    rejected: User unknown",
            },
            {
                "address": "ann@example.net",
                "action": "delayed",
                "status": "4.4.1",
                "diagnostic": None,
            },
        ],
        "message_id": "<sent@example.org>",
    }
    assert message["text"] == "A report."


async def test_a_bounce_without_a_report_says_what_its_header_does(box: Box) -> None:
    box.append(
        letter(
            "Mail delivery failed",
            X_Failed_Recipients="joe@example.net, ann@example.net",
            In_Reply_To="<sent@example.org>",
        )
    )

    bounce = (await read(box, 1))["bounce"]

    assert [each["address"] for each in bounce["recipients"]] == [
        "joe@example.net",
        "ann@example.net",
    ]
    assert bounce["message_id"] == "<sent@example.org>"


async def test_a_bounce_whose_report_is_empty_is_still_read(box: Box) -> None:
    box.append(
        report("delivery-status", part("message/delivery-status", "")), report("delivery-status")
    )

    for uid in (1, 2):
        message = await read(box, uid)
        assert (message["kind"], message["bounce"]) == (
            "bounce",
            {"recipients": [], "message_id": None},
        )


async def test_a_letter_has_no_bounce_and_costs_no_more_for_it(box: Box) -> None:
    box.append(mime(part("text/plain", "See what I got."), RETURNED))
    await box.page()
    box.said()

    message = await read(box, 1)

    assert message["bounce"] is None
    assert verbs(box.said()) == [b"UID FETCH"]


async def test_the_text_of_a_reply_is_read_without_its_history(box: Box) -> None:
    text = "Yes.\r\n\r\nOn Mon, 5 Jan 2026, Ann <ann@example.org> wrote:\r\n> Shall we?"
    box.append(letter("Re: Lunch", text))

    whole = await read(box, 1)
    reply = await read(box, 1, reply_only="true")

    assert "> Shall we?" in whole["text"]
    assert reply["text"] == "Yes."
    assert reply == whole | {"text": "Yes."}
