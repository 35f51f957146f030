"""`/api/send` that answers before the message has gone: at once with `respond-async`, or for a later hour."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from cbemail.outbox.dispatch import Policy
from cbemail.outbox.retry import RetryPolicy
from tests.fakes.script import CUT, NORMAL, Reply
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, letter, logged_in, serving
from tests.integration.dovecot import Dovecot
from tests.integration.gate import Gate
from tests.integration.mailboxes import problem
from tests.integration.postfix import Postfix
from tests.integration.service import ServiceProcess

SEND = "/api/send"
ASYNC = {"Prefer": "respond-async"}
CONFLICT: tuple[int, str, list[str]] = (409, "batch-state", [])
CLIENTS, KEYS, RIVALS = 50, 200, 10  # so many of the clients are after each key
_PATIENCE = 30


@pytest.fixture
async def base_url(environ: dict[str, str]) -> AsyncIterator[str]:
    async with serving(environ, Policy(retry=RetryPolicy(delays=(1,), spread=0))) as url:
        yield url


async def queued(mailbox: Mailbox, message: dict[str, Any], **headers: str) -> httpx.Response:
    """A message that is taken, to be sent without anybody waiting."""
    response = await mailbox.client.post(SEND, json=message, headers=ASYNC | headers)
    assert response.status_code == 202, response.text
    return response


async def until(mailbox: Mailbox, send: dict[str, Any], *states: str) -> dict[str, Any]:
    """The message once it is in one of these states."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(_PATIENCE):
        while True:
            response = await mailbox.get(f"{SEND}/{send['id']}")
            assert response.status_code == 200, response.text
            found: dict[str, Any] = response.json()
            if found["state"] in states:
                return found
            await asyncio.wait({never}, timeout=0.02)


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


def to(*addresses: str, **more: Any) -> dict[str, Any]:
    return {"to": list(addresses), "subject": "s", "body": "x"} | more


# ---- at once


async def test_a_queued_message_is_answered_at_once_and_arrives(
    mailbox: Mailbox, postfix: Postfix
) -> None:
    whom = f"queued.{mailbox.user}"

    response = await queued(mailbox, to(whom, bcc=f"b{whom}", subject="Grüße"))
    answer = response.json()
    sent = await until(mailbox, answer, "sent")

    assert response.headers["location"] == f"{SEND}/{answer['id']}"
    assert response.headers["preference-applied"] == "respond-async"
    assert answer | {"state": "queued", "accepted": [], "rejected": [], "saved": None} == answer
    assert sorted(sent["accepted"]) == [f"b{whom}", whom]
    assert sent["message_id"] == answer["message_id"]
    assert sent["response"].startswith("250 ")
    for address in (whom, f"b{whom}"):
        [captured] = postfix.wait_for(address)
        message = email.message_from_bytes(captured.content, policy=email.policy.default)
        assert message["Subject"] == "Grüße"
        assert message["Message-ID"] == answer["message_id"]
        assert message["Bcc"] is None


async def test_each_recipient_of_a_queued_message_has_its_own_outcome(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<b@", b"550 5.1.1 who?\r\n")
    smtp_server.on("RCPT TO:<c@", b"450 4.2.0 later\r\n", NORMAL)

    answer = (await queued(scripted, to("a@example.org", "b@example.org", "c@example.org"))).json()
    first = await until(scripted, answer, "deferred")
    last = await until(scripted, answer, "sent")

    assert first["accepted"] == ["a@example.org"]
    assert last["accepted"] == ["a@example.org", "c@example.org"]
    [rejected] = last["rejected"]
    assert (rejected["address"], rejected["status"], rejected["enhanced"]) == (
        *("b@example.org", 550, "5.1.1"),
    )
    copies = sorted(to for message in smtp_server.messages for to in message.recipients)
    assert copies == ["a@example.org", "c@example.org"]


async def test_a_queued_message_whose_answer_was_lost_is_uncertain_and_not_sent_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", CUT, NORMAL)

    answer = (await queued(scripted, to("a@example.org"))).json()
    found = await until(scripted, answer, "uncertain")

    assert found["accepted"] == []
    assert len(smtp_server.messages) == 1


async def test_a_queued_message_leaves_a_copy_and_flags_what_it_answers(
    mailbox: Mailbox, dovecot: Dovecot, postfix: Postfix
) -> None:
    [uid] = dovecot.append(mailbox.user, letter("Plans", Message_ID="<plans@example.org>"))

    answer = (
        await queued(mailbox, {"reply": {"uid": uid, "mode": "reply"}, "body": "Yes."})
    ).json()
    await until(mailbox, answer, "sent")
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(_PATIENCE):
        while not (await mailbox.get(f"/api/mailbox/messages/{uid}")).json()["answered"]:
            await asyncio.wait({never}, timeout=0.02)

    [copy] = (await mailbox.get("/api/mailbox/messages", folder="Sent")).json()["messages"]
    assert (copy["subject"], copy["message_id"]) == ("Re: Plans", answer["message_id"])


async def test_a_queued_message_survives_a_restart(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT", b"450 4.2.0 later\r\n", NORMAL)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url, logged_in(base_url, account) as mailbox:
        answer = (await queued(mailbox, to("a@example.org"))).json()
        await until(mailbox, answer, "deferred")

    soon = Policy(retry=RetryPolicy(delays=(1,), spread=0))
    async with (
        serving(environ, soon) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=mailbox.client.headers) as client,
    ):
        again = Mailbox(mailbox.user, mailbox.session_id, mailbox.refresh_token, client)
        found = await until(again, answer, "deferred", "sent")

    assert found["id"] == answer["id"]
    assert found["message_id"] == answer["message_id"]


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        (to(), "#/to"),
        (to("nobody"), "#/to/0"),
        (to("a@example.org", send_at="soon"), "#/send_at"),
        (to("a@example.org", send_at="2031-01-01T00:00:00"), "#/send_at"),
        (to("a@example.org", send_at="2999-01-01T00:00:00Z"), "#/send_at"),
    ],
)
async def test_what_is_wrong_is_said_before_anything_is_queued(
    scripted: Mailbox, smtp_server: ScriptedSmtp, message: dict[str, Any], pointer: str
) -> None:
    response = await scripted.client.post(SEND, json=message, headers=ASYNC)

    assert problem(response) == (422, "invalid-request", [pointer])
    assert smtp_server.messages == []


# ---- at an hour


async def test_a_message_waits_for_its_hour(scripted: Mailbox, smtp_server: ScriptedSmtp) -> None:
    moments: list[datetime] = []

    def note(_: bytes) -> Reply:
        moments.append(datetime.now(UTC))
        return NORMAL

    smtp_server.on(".", note)
    send_at = datetime.now(UTC) + timedelta(seconds=2)

    response = await scripted.post(SEND, to("a@example.org", send_at=send_at.isoformat()))
    waiting = (await scripted.get(f"{SEND}/{response.json()['id']}")).json()
    await until(scripted, response.json(), "sent")

    assert response.status_code == 202, response.text
    assert response.json()["state"] == waiting["state"] == "queued"
    assert "preference-applied" not in response.headers
    [moment] = moments
    assert moment >= send_at
    [captured] = smtp_server.messages
    message = email.message_from_bytes(captured.content, policy=email.policy.default)
    assert message["Date"].datetime >= send_at


async def test_an_hour_that_has_passed_is_now(scripted: Mailbox) -> None:
    response = await scripted.post(SEND, to("a@example.org", send_at="2000-01-01T00:00:00Z"))

    assert (response.status_code, response.json()["state"]) == (200, "sent")


async def test_a_scheduled_message_is_no_batch_in_the_list(scripted: Mailbox) -> None:
    await scripted.post(SEND, to("a@example.org", send_at=in_an_hour()))

    assert (await scripted.get(merges.BATCHES)).json()["batches"] == []


# ---- cancelled


async def test_a_message_that_waits_can_be_cancelled_for_good(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    message = to("a@example.org", "b@example.org", send_at=in_an_hour())
    answer = (await scripted.post(SEND, message)).json()

    cancelled = await scripted.delete(f"{SEND}/{answer['id']}")
    again = await scripted.delete(f"{SEND}/{answer['id']}")
    shown = await scripted.get(f"{SEND}/{answer['id']}")

    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["accepted"] == cancelled.json()["rejected"] == []
    assert shown.json() == again.json() == cancelled.json()
    assert smtp_server.messages == []


async def test_a_message_that_waits_for_another_try_can_be_cancelled(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<b@", b"450 4.2.0 later\r\n")
    answer = (await queued(scripted, to("a@example.org", "b@example.org"))).json()
    await until(scripted, answer, "deferred")

    cancelled = (await scripted.delete(f"{SEND}/{answer['id']}")).json()

    assert cancelled["accepted"] == ["a@example.org"]
    assert cancelled["state"] == "sent", "one recipient has it"


async def test_what_is_sent_or_on_its_way_cannot_be_cancelled(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    at_once = (await scripted.post(SEND, to("a@example.org"))).json()
    gate = Gate(smtp_server)
    answer = (await queued(scripted, to("b@example.org"))).json()
    await smtp_server.heard(".", 2)

    refused = [
        await scripted.delete(f"{SEND}/{answer['id']}"),
        await scripted.delete(f"{SEND}/{at_once['id']}"),
    ]
    gate.open()
    await until(scripted, answer, "sent")
    refused.append(await scripted.delete(f"{SEND}/{answer['id']}"))

    assert [problem(response) for response in refused] == [CONFLICT] * 3
    assert len(smtp_server.messages) == 2


async def test_a_message_nobody_knows_cannot_be_cancelled_or_asked_for(scripted: Mailbox) -> None:
    for what in ("msg_" + "0" * 32, "bat_" + "0" * 32, "x"):
        for answer in (
            await scripted.delete(f"{SEND}/{what}"),
            await scripted.get(f"{SEND}/{what}"),
        ):
            assert answer.status_code == 404


async def test_a_message_of_a_session_that_has_ended_is_not_sent(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url:
        async with logged_in(base_url, account) as mailbox:
            send_at = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
            await mailbox.post(SEND, to("ended@example.org", send_at=send_at))
            await mailbox.delete(f"/api/sessions/{mailbox.session_id}")
        async with logged_in(base_url, account) as other:
            later = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
            answer = (await other.post(SEND, to("other@example.org", send_at=later))).json()
            await until(other, answer, "sent")

    assert [message.recipients for message in smtp_server.messages] == [["other@example.org"]]


# ---- keys


async def test_a_key_repeats_the_answer_whatever_became_of_the_message(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    first = await queued(scripted, to("a@example.org"), **{"Idempotency-Key": "k"})
    await until(scripted, first.json(), "sent")

    again = await queued(scripted, to("a@example.org"), **{"Idempotency-Key": "k"})
    other = await scripted.client.post(
        SEND, json=to("b@example.org"), headers=ASYNC | {"Idempotency-Key": "k"}
    )

    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert problem(other)[:2] == (422, "idempotency-mismatch")
    assert len(smtp_server.messages) == 1


async def test_a_key_is_the_same_whether_the_client_waits_or_not(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    scripted.client.headers["Idempotency-Key"] = "either"

    waited = await scripted.post(SEND, to("a@example.org"))
    again = await scripted.client.post(SEND, json=to("a@example.org"), headers=ASYNC)

    assert waited.status_code == again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == waited.json()["id"]
    assert len(smtp_server.messages) == 1


async def test_fifty_clients_racing_on_two_hundred_keys_send_two_hundred_messages(
    environ: dict[str, str], dovecot: Dovecot, tmp_path: Path
) -> None:
    answers: list[list[Answer]] = [[] for _ in range(KEYS)]

    with SmtpSink(tmp_path) as sink, ServiceProcess(tmp_path, environ) as service:
        account = credentials(dovecot.fresh_user(), dovecot, sink.port, "none")
        async with logged_in(service.url, account) as mailbox:
            async with asyncio.TaskGroup() as racers:
                for client in range(CLIENTS):
                    first = client % (CLIENTS // RIVALS)
                    keys = range(first, KEYS, CLIENTS // RIVALS)
                    racers.create_task(race(mailbox.client, keys, answers))
            for [one, *_] in answers:
                await until(mailbox, json.loads(one.body), "sent")
        arrived = sink.messages()

    assert sorted(message.recipients for message in arrived) == sorted(
        [f"k{number}@example.org"] for number in range(KEYS)
    )
    for given in answers:
        assert len({answer.body for answer in given}) == 1
        assert sum(answer.replayed for answer in given) == RIVALS - 1


class Answer(NamedTuple):
    status: int
    replayed: bool
    body: bytes


async def race(client: httpx.AsyncClient, keys: Iterable[int], answers: list[list[Answer]]) -> None:
    """Use the keys in the order in which all do; come back to those that somebody else is being answered for.

    On a bare connection: httpx would need longer for its requests than the service does.
    """
    url, token = client.base_url, client.headers["Authorization"]
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        left = deque(keys)
        while left:
            number = left.popleft()
            body = json.dumps(to(f"k{number}@example.org"))
            request = (
                f"POST {SEND} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
                f"Prefer: respond-async\r\nIdempotency-Key: key-{number}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            answer = await _ask(reader, writer, request)
            if answer.status == 409:
                assert b"idempotency-conflict" in answer.body
                left.append(number)
            else:
                assert answer.status == 202, answer
                answers[number].append(answer)
    finally:
        writer.close()
        await writer.wait_closed()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str) -> Answer:
    writer.write(request.encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    body = await reader.readexactly(int(length[1]))
    return Answer(int(head.split(b" ")[1]), b"idempotency-replayed: true" in head, body)
