"""`/api/send`: through a real Postfix where it shall arrive, through a scripted server where it shall not."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import json
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import httpx
import pytest

from tests.fakes.script import CUT, NORMAL, STALL, Reply
from tests.fakes.scripted_smtp import Captured, ScriptedSmtp
from tests.integration.conftest import Mailbox, credentials, letter, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix


def parsed(captured: Captured) -> EmailMessage:
    """What arrived, read by a parser that is not ours."""
    message = email.message_from_bytes(captured.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


@pytest.fixture
async def scripted(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session whose SMTP server is the scripted one."""
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with logged_in(base_url, body) as mailbox:
        yield mailbox


# ---- what arrives


async def test_a_message_arrives_as_it_was_written(mailbox: Mailbox, postfix: Postfix) -> None:
    response = await mailbox.post(
        "/api/send",
        {
            "to": "Jörg Müller <joerg@example.org>",
            "cc": [{"name": "Ann", "address": "ann@example.org"}],
            "subject": "Grüße aus Köln",
            "body": "Ein Satz mit Umlauten: äöü.\n.\nUnd ein Punkt.",
            "headers": {"X-Campaign": "spring"},
            "attachments": [
                {"filename": "Büro.bin", "content": base64.b64encode(b"\x00\x01bytes").decode()}
            ],
        },
    )

    result = response.json()
    assert response.status_code == 200, response.text
    assert result["state"] == "sent"
    assert sorted(result["accepted"]) == ["ann@example.org", "joerg@example.org"]
    [captured] = [
        m
        for m in postfix.wait_for("joerg@example.org", 1)
        if result["message_id"].encode() in m.content
    ]
    message = parsed(captured)
    assert message["Subject"] == "Grüße aus Köln"
    assert message["To"].addresses[0].display_name == "Jörg Müller"
    assert message["From"].addresses[0].addr_spec == mailbox.user
    assert message["X-Campaign"] == "spring"
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n").rstrip() == (
        "Ein Satz mit Umlauten: äöü.\n.\nUnd ein Punkt."
    )
    [attachment] = message.iter_attachments()
    assert attachment.get_filename() == "Büro.bin"
    assert attachment.get_content() == b"\x00\x01bytes"


async def test_html_alone_gets_a_text_alternative(mailbox: Mailbox, postfix: Postfix) -> None:
    await mailbox.post(
        "/api/send",
        {"to": "html@example.org", "subject": "x", "html": "<p>Hello <b>there</b></p>"},
    )

    message = parsed(postfix.wait_for("html@example.org")[0])
    assert message.get_content_type() == "multipart/alternative"
    plain = message.get_body(("plain",))
    assert plain is not None
    assert "Hello there" in plain.get_content()


async def test_bcc_reaches_its_recipient_and_stands_in_no_copy(
    mailbox: Mailbox, postfix: Postfix
) -> None:
    await mailbox.post(
        "/api/send",
        {"to": "open@example.org", "bcc": "hidden@example.org", "subject": "x", "body": "y"},
    )

    to, bcc = postfix.wait_for("open@example.org")[0], postfix.wait_for("hidden@example.org")[0]
    for copy in (to, bcc):
        assert b"hidden@example.org" not in copy.content.split(b"\r\n\r\n", 1)[0].split(b"To: ")[-1]
        assert parsed(copy)["Bcc"] is None


async def test_an_international_domain_is_sent_as_its_a_label(
    mailbox: Mailbox, postfix: Postfix
) -> None:
    response = await mailbox.post(
        "/api/send", {"to": "joe@bücher.example", "subject": "x", "body": "y"}
    )

    assert response.status_code == 200, response.text
    assert postfix.wait_for("joe@xn--bcher-kva.example")


async def test_a_copy_is_filed_in_sent(mailbox: Mailbox, postfix: Postfix) -> None:
    response = await mailbox.post(
        "/api/send", {"to": "copy@example.org", "subject": "Filed", "body": "y"}
    )

    saved = response.json()["saved"]
    assert saved["folder"] == "Sent"
    copy = (await mailbox.get(f"/api/mailbox/messages/{saved['uid']}", folder="\\Sent")).json()
    assert copy["subject"] == "Filed"
    assert copy["message_id"] == response.json()["message_id"]
    assert copy["read"] is True


async def test_no_copy_is_filed_where_none_is_wanted(mailbox: Mailbox) -> None:
    response = await mailbox.post(
        "/api/send",
        {"to": "copy@example.org", "subject": "x", "body": "y", "save_to_sent": False},
    )

    assert response.json()["saved"] is None
    assert (await mailbox.get("/api/mailbox/messages", folder="Sent")).json()["total"] == 0


async def test_what_was_sent_can_be_asked_for(mailbox: Mailbox, scripted: Mailbox) -> None:
    sent = (await mailbox.post("/api/send", {"to": "a@example.org", "body": "y"})).json()

    own = await mailbox.get(f"/api/send/{sent['id']}")
    others = await scripted.get(f"/api/send/{sent['id']}")

    assert own.json() == sent
    assert others.status_code == 404


# ---- replies


async def test_a_reply_is_threaded_quotes_and_flags_the_original(
    mailbox: Mailbox, dovecot: Dovecot, postfix: Postfix
) -> None:
    original = letter("Plans", "Shall we?", Message_ID="<plans@example.org>", Cc="bob@example.org")
    [uid] = dovecot.append(mailbox.user, original)

    response = await mailbox.post(
        "/api/send", {"reply": {"uid": uid, "mode": "reply_all"}, "body": "Yes."}
    )

    assert response.status_code == 200, response.text
    message = parsed(
        next(
            m
            for m in postfix.wait_for("ann@example.org")
            if response.json()["message_id"].encode() in m.content
        )
    )
    assert message["Subject"] == "Re: Plans"
    assert message["In-Reply-To"] == "<plans@example.org>"
    assert message["References"] == "<plans@example.org>"
    assert "bob@example.org" in message["Cc"]
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().startswith("Yes.")
    assert "> Shall we?" in body.get_content()
    answered = (await mailbox.get(f"/api/mailbox/messages/{uid}")).json()
    assert answered["answered"] is True
    assert answered["read"] is False


async def test_a_forward_carries_the_attachments(
    mailbox: Mailbox, dovecot: Dovecot, postfix: Postfix
) -> None:
    original = EmailMessage()
    original["From"], original["To"], original["Subject"] = "a@example.org", "b@example.org", "Doc"
    original.set_content("See attached.")
    original.add_attachment(b"%PDF-1", maintype="application", subtype="pdf", filename="a.pdf")
    [uid] = dovecot.append(mailbox.user, original.as_bytes(policy=email.policy.SMTP))

    response = await mailbox.post(
        "/api/send",
        {
            "to": "forwarded@example.org",
            "reply": {"uid": uid, "mode": "forward"},
            "html": "<p>FYI</p>",
        },
    )

    assert response.status_code == 200, response.text
    message = parsed(postfix.wait_for("forwarded@example.org")[0])
    assert message["Subject"] == "Fwd: Doc"
    [attachment] = message.iter_attachments()
    assert attachment.get_filename() == "a.pdf"
    assert attachment.get_content() == b"%PDF-1"
    flags = (await mailbox.get(f"/api/mailbox/messages/{uid}")).json()["flags"]
    assert "$Forwarded" in flags


async def test_a_reply_to_what_is_gone_is_a_404_and_sends_nothing(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    response = await scripted.post(
        "/api/send", {"reply": {"uid": 999, "mode": "reply"}, "body": "x"}
    )

    assert response.status_code == 404
    assert response.json()["code"] == "message-not-found"
    assert smtp_server.messages == []


# ---- what the server says


async def test_a_refused_recipient_is_told_beside_those_accepted(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<no@", b"550 5.1.1 <no@example.org> no such user\r\n")

    response = await scripted.post(
        "/api/send", {"to": ["no@example.org", "yes@example.org"], "body": "x"}
    )

    result = response.json()
    assert response.status_code == 200
    assert result["accepted"] == ["yes@example.org"]
    [rejected] = result["rejected"]
    assert (rejected["address"], rejected["status"], rejected["enhanced"]) == (
        "no@example.org",
        550,
        "5.1.1",
    )
    assert "no such user" not in rejected["detail"]


async def test_every_recipient_refused_is_a_422_that_names_them(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT", b"550 5.1.1 no such user\r\n", b"550 5.1.1 no such user\r\n")

    response = await scripted.post(
        "/api/send", {"to": ["a@example.org", "b@example.org"], "body": "x"}
    )

    assert response.status_code == 422
    assert response.json()["code"] == "recipients-rejected"
    assert [r["address"] for r in response.json()["rejected"]] == ["a@example.org", "b@example.org"]
    assert smtp_server.messages == []


async def test_a_lost_reply_to_the_final_dot_is_uncertain_and_stays_so(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", CUT)

    response = await scripted.post("/api/send", {"to": "a@example.org", "body": "x"})

    result = response.json()
    assert response.status_code == 202
    assert result["state"] == "uncertain"
    assert len(smtp_server.messages) == 1, "it must not be sent again by itself"
    assert (await scripted.get(f"/api/send/{result['id']}")).json()["state"] == "uncertain"


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_a_connection_lost_before_the_message_is_handed_over_is_a_503(
    scripted: Mailbox, smtp_server: ScriptedSmtp, verb: str
) -> None:
    smtp_server.on(verb, CUT, CUT)

    response = await scripted.post("/api/send", {"to": "a@example.org", "body": "x"})

    assert response.status_code == 503
    assert response.json()["code"] == "upstream-unavailable"
    assert "retry-after" in response.headers
    assert smtp_server.messages == []


async def test_a_warm_connection_that_died_costs_no_message(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    await scripted.post("/api/send", {"to": "a@example.org", "body": "first"})
    smtp_server.on("MAIL", CUT, NORMAL)

    response = await scripted.post("/api/send", {"to": "a@example.org", "body": "second"})

    assert response.status_code == 200
    assert len(smtp_server.messages) == 2


async def test_temporary_trouble_is_a_503_and_permanent_refusal_a_422(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", b"451 4.3.0 try later\r\n", b"554 5.7.1 spam\r\n")

    later = await scripted.post("/api/send", {"to": "a@example.org", "body": "x"})
    never = await scripted.post("/api/send", {"to": "a@example.org", "body": "x"})

    assert later.status_code == 503
    assert never.status_code == 422
    assert never.json()["rejected"][0]["status"] == 554


async def test_credentials_that_smtp_no_longer_takes_make_the_session_stale(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("AUTH", b"535 5.7.8 no\r\n")
    smtp_server.hang_up()

    response = await scripted.post("/api/send", {"to": "a@example.org", "body": "x"})

    assert response.status_code == 424
    assert response.json()["code"] == "credentials-stale"
    session = (await scripted.get(f"/api/sessions/{scripted.session_id}")).json()
    assert session["state"] == "credentials_stale"


# ---- idempotency


async def test_the_same_key_and_body_send_once_and_answer_twice(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    body = {"to": "a@example.org", "subject": "once", "body": "x"}
    scripted.client.headers["Idempotency-Key"] = "key-1"

    first = await scripted.post("/api/send", body)
    second = await scripted.post("/api/send", dict(reversed(body.items())))
    other = await scripted.post("/api/send", body | {"subject": "another"})

    assert first.status_code == second.status_code == 200
    assert second.content == first.content
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency-mismatch"
    assert len(smtp_server.messages) == 1


async def test_a_key_in_use_is_a_conflict_and_racing_clients_send_once(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    scripted.client.headers["Idempotency-Key"] = "race"
    body = {"to": "a@example.org", "body": "x"}

    responses = await asyncio.gather(*(scripted.post("/api/send", body) for _ in range(20)))

    assert {r.status_code for r in responses} <= {200, 409}
    assert any(r.status_code == 200 for r in responses)
    assert all(r.headers.get("retry-after") for r in responses if r.status_code == 409)
    assert len(smtp_server.messages) == 1
    assert (await scripted.post("/api/send", body)).headers["idempotency-replayed"] == "true"


async def test_a_key_whose_send_came_to_nothing_may_be_used_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    scripted.client.headers["Idempotency-Key"] = "again"
    smtp_server.on("MAIL", CUT, CUT, NORMAL)
    body = {"to": "a@example.org", "body": "x"}

    failed = await scripted.post("/api/send", body)
    sent = await scripted.post("/api/send", body)

    assert failed.status_code == 503
    assert sent.status_code == 200
    assert "idempotency-replayed" not in sent.headers


async def test_a_key_whose_outcome_is_uncertain_never_sends_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    scripted.client.headers["Idempotency-Key"] = "lost"
    smtp_server.on(".", CUT)
    body = {"to": "a@example.org", "body": "x"}

    first = await scripted.post("/api/send", body)
    second = await scripted.post("/api/send", body)

    assert first.status_code == second.status_code == 202
    assert second.json() == first.json()
    assert len(smtp_server.messages) == 1


async def test_a_client_that_hangs_up_does_not_stop_a_message_on_its_way(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    reached = asyncio.Event()
    release = asyncio.Event()

    async def hold(_: bytes) -> Reply:
        reached.set()
        await release.wait()
        return NORMAL

    smtp_server.on("DATA", hold)
    scripted.client.headers["Idempotency-Key"] = "gone"
    body = {"to": "a@example.org", "body": "x"}
    request = asyncio.create_task(scripted.post("/api/send", body))
    await reached.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)

    running = await scripted.post("/api/send", body)
    release.set()
    while (answer := await scripted.post("/api/send", body)).status_code == 409:
        pass

    assert running.status_code == 409
    assert answer.status_code == 200
    assert answer.headers["idempotency-replayed"] == "true"
    assert len(smtp_server.messages) == 1


# ---- bad input


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"to": "a@example.org\r\nRCPT TO:<b@example.org>"}, "#/to"),
        ({"to": ["ok@example.org", "a@example.org,b@example.org"]}, "#/to/1"),
        ({"to": "a@example.org> NOTIFY=NEVER"}, "#/to"),
        ({"to": "a@example.org\tx"}, "#/to"),
        ({"to": "x: a@example.org, b@example.org;"}, "#/to"),
        ({"to": []}, "#/to"),
        ({"from": "someone@else.example"}, "#/from"),
        ({"subject": "x\r\nBcc: e@example.org"}, "#/subject"),
        ({"subject": "x\u2028y"}, "#/subject"),
        ({"subject": "x\u0000y"}, "#/subject"),
        ({"headers": {"X-A": "b\nBcc: e@example.org"}}, "#/headers/X-A"),
        ({"headers": {"X-A\r\nBcc": "e@example.org"}}, None),
        ({"headers": {"X-A: b": "c"}}, None),
        ({"headers": {"Bcc": "e@example.org"}}, "#/headers/Bcc"),
        ({"headers": {"From": "e@example.org"}}, "#/headers/From"),
        ({"headers": {"Content-Type": "text/html"}}, "#/headers/Content-Type"),
        ({"headers": {"DKIM-Signature": "x"}}, "#/headers/DKIM-Signature"),
        ({"message_id": "<a@b>\r\nBcc: e@example.org"}, "#/message_id"),
        (
            {"attachments": [{"filename": 'a"\r\nX: y', "content": "YQ=="}]},
            "#/attachments/0/filename",
        ),
        (
            {"attachments": [{"filename": "a", "content": "YQ==", "content_type": "a/b\r\nX: y"}]},
            "#/attachments/0/content_type",
        ),
        (
            {"attachments": [{"filename": "a", "content": "YQ==", "content_id": "a>\r\nX: y"}]},
            "#/attachments/0/content_id",
        ),
        ({"attachments": [{"filename": "a", "content": "not base64!"}]}, "#/attachments/0/content"),
        ({"bodi": "typo"}, "#/bodi"),
        ({"text": "given twice"}, "#/text"),
        ({"send_at": "2030-01-01T00:00:00Z"}, None),
    ],
)
async def test_what_could_break_out_is_a_422_and_nothing_is_sent(
    scripted: Mailbox, smtp_server: ScriptedSmtp, change: dict[str, Any], pointer: str | None
) -> None:
    body = {"to": "a@example.org", "subject": "x", "body": "y"} | change

    response = await scripted.post("/api/send", body)

    assert response.status_code == 422, response.text
    assert response.json()["code"] == "invalid-request"
    if pointer is not None:
        assert response.json()["errors"][0]["pointer"] == pointer
    assert smtp_server.messages == []


async def test_an_encoded_word_in_a_value_stays_the_text_it_is(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    trick = "=?utf-8?q?=0D=0ABcc:_e@example.org?="

    response = await scripted.post(
        "/api/send", {"to": "a@example.org", "subject": trick, "body": "y"}
    )

    assert response.status_code == 200
    message = parsed(smtp_server.messages[0])
    assert message["Bcc"] is None
    assert smtp_server.messages[0].recipients == ["a@example.org"]


async def test_a_message_over_the_limit_is_a_413(scripted: Mailbox) -> None:
    content = base64.b64encode(b"x" * (20 * 1024 * 1024)).decode()
    body = {"to": "a@example.org", "attachments": [{"filename": "big", "content": content}]}

    response = await scripted.client.post("/api/send", content=json.dumps(body).encode())

    assert response.status_code == 415
    response = await scripted.post("/api/send", body)
    assert response.status_code == 413
    assert response.json()["code"] == "payload-too-large"


async def test_a_silent_server_is_not_waited_for_longer_than_an_answer_may_take(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp, client: httpx.AsyncClient
) -> None:
    smtp_server.on("connect", STALL)
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")

    request = asyncio.create_task(client.post("/api/sessions", json=body))
    await asyncio.wait({request}, timeout=0.5)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)

    assert (await client.get("/healthz")).status_code == 200


async def test_a_login_refused_after_its_credentials_were_replaced_makes_nothing_stale(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    """The refusal is of the old password: the session has the new one by then, and the message goes out with it."""
    release = asyncio.Event()

    async def refuse_late(_: bytes) -> Reply:
        await release.wait()
        return b"535 5.7.8 no\r\n"

    smtp_server.on("AUTH", refuse_late, NORMAL)
    smtp_server.hang_up()
    logins = smtp_server.count("AUTH")
    sending = asyncio.create_task(scripted.post("/api/send", {"to": "a@example.org", "body": "x"}))
    await smtp_server.heard("AUTH", logins + 1)

    replaced = await scripted.client.put(
        f"/api/sessions/{scripted.session_id}/credentials", json={"password": "secret"}
    )
    release.set()

    assert replaced.status_code == 200
    assert (await sending).status_code == 200
    session = (await scripted.get(f"/api/sessions/{scripted.session_id}")).json()
    assert session["state"] == "active"
