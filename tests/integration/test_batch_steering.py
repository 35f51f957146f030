"""Batches paused, resumed, cancelled and tried again; at their hour, at their pace, and beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from cbemail.outbox.dispatch import Policy
from cbemail.outbox.retry import RetryPolicy
from tests.fakes.script import CUT, NORMAL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, logged_in, serving
from tests.integration.dovecot import Dovecot
from tests.integration.gate import Gate
from tests.integration.mailboxes import problem
from tests.integration.postfix import Postfix
from tests.integration.scripted import scripted_mailbox

CONFLICT: tuple[int, str, list[str]] = (409, "batch-state", [])
WAITING = ("queued", "sending", "deferred")
_PATIENCE = 30


@pytest.fixture
async def base_url(environ: dict[str, str]) -> AsyncIterator[str]:
    async with serving(environ, Policy(retry=RetryPolicy(delays=(1,), spread=0))) as url:
        yield url


@pytest.fixture
def gate(smtp_server: ScriptedSmtp) -> Gate:
    return Gate(smtp_server)


@asynccontextmanager
async def after_restart(mailbox: Mailbox, base_url: str) -> AsyncIterator[Mailbox]:
    """The same session at a service that was started anew."""
    headers = mailbox.client.headers
    async with httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False) as client:
        yield Mailbox(mailbox.user, mailbox.session_id, mailbox.refresh_token, client)


def total(batch: dict[str, Any]) -> int:
    return sum(number for state, number in batch["counts"].items() if state != "total")


def nothing_under_way(batch: dict[str, Any]) -> bool:
    return not batch["counts"]["sending"]


def waiting(batch: dict[str, Any]) -> int:
    return sum(batch["counts"][state] for state in WAITING)


async def in_flight(smtp_server: ScriptedSmtp, mailbox: Mailbox, count: int) -> dict[str, Any]:
    """A batch of so many, of which two are with the server, which has not answered them yet."""
    batch = await merges.started(mailbox, merges.merge(count))
    await smtp_server.heard(".", 2)
    return batch


# ---- pause and resume


async def test_a_pause_lets_what_is_under_way_end_and_begins_nothing(
    scripted: Mailbox, smtp_server: ScriptedSmtp, gate: Gate
) -> None:
    batch = await in_flight(smtp_server, scripted, 50)

    paused = (await merges.act(scripted, batch, "pause")).json()
    gate.open()
    calm = await merges.until_counts(scripted, batch, nothing_under_way)

    assert (paused["state"], paused["paused_reason"]) == ("paused", "requested")
    assert calm["state"] == "paused"
    assert (calm["counts"]["sent"], calm["counts"]["queued"]) == (2, 48)
    assert len(smtp_server.messages) == 2
    assert total(calm) == total(paused) == 50


async def test_what_was_paused_goes_on_where_it_was(
    scripted: Mailbox, smtp_server: ScriptedSmtp, gate: Gate
) -> None:
    batch = await in_flight(smtp_server, scripted, 30)
    await merges.act(scripted, batch, "pause")
    gate.open()
    await merges.until_counts(scripted, batch, nothing_under_way)

    resumed = (await merges.act(scripted, batch, "resume")).json()
    await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)

    assert resumed["state"] in {"queued", "running"}
    assert resumed["paused_reason"] is None
    states = merges.balance(rows, smtp_server.messages, [f"r{i}@example.org" for i in range(30)])
    assert states == {"sent": 30}


async def test_pausing_and_resuming_twice_is_the_same_as_once(
    scripted: Mailbox, smtp_server: ScriptedSmtp, gate: Gate
) -> None:
    batch = await in_flight(smtp_server, scripted, 30)

    states = [
        (await merges.act(scripted, batch, what)).json()["state"]
        for what in ("pause", "pause", "resume", "resume")
    ]
    gate.open()
    done = await merges.until(scripted, batch)

    assert states[:2] == ["paused", "paused"]
    assert set(states[2:]) <= {"queued", "running"}
    assert done["counts"]["sent"] == 30 == len(smtp_server.messages)


async def test_a_pause_survives_a_restart(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url, logged_in(base_url, account) as mailbox:
        batch = await in_flight(smtp_server, mailbox, 40)
        await merges.act(mailbox, batch, "pause")
        gate.open()
        before = await merges.until_counts(mailbox, batch, nothing_under_way)

    async with serving(environ) as base_url, after_restart(mailbox, base_url) as again:
        after = await merges.get(again, batch)
        arrived = len(smtp_server.messages)
        await merges.act(again, batch, "resume")
        done = await merges.until(again, batch)
        rows = await merges.report(again, batch)

    assert after | {"rate": None} == before | {"rate": None}
    assert arrived == before["counts"]["sent"]
    assert done["started_at"] == before["started_at"]
    states = merges.balance(rows, smtp_server.messages, [f"r{i}@example.org" for i in range(40)])
    assert states == {"sent": 40}


# ---- cancel


async def test_cancelling_ends_what_is_under_way_and_cancels_the_rest(
    scripted: Mailbox, smtp_server: ScriptedSmtp, gate: Gate
) -> None:
    batch = await in_flight(smtp_server, scripted, 2_000)

    cancelled = (await merges.act(scripted, batch, "cancel")).json()
    gate.open()
    ended = await merges.until_counts(scripted, batch, nothing_under_way)
    rows = await merges.report(scripted, batch)

    assert cancelled["state"] == "cancelled"
    assert cancelled["finished_at"] is not None
    assert waiting(ended) == 0
    assert total(cancelled) == total(ended) == 2_000
    states = merges.balance(rows, smtp_server.messages, [f"r{i}@example.org" for i in range(2_000)])
    assert states == {"sent": 2, "cancelled": 1_998}
    assert (ended["counts"]["sent"], ended["counts"]["cancelled"]) == (2, 1_998)


async def test_the_answer_to_a_cancellation_has_nothing_queued(
    scripted: Mailbox, smtp_server: ScriptedSmtp, gate: Gate
) -> None:
    batch = await in_flight(smtp_server, scripted, 50)

    cancelled = (await merges.act(scripted, batch, "cancel")).json()
    gate.open()
    await merges.until_counts(scripted, batch, nothing_under_way)

    assert cancelled["counts"]["queued"] == cancelled["counts"]["deferred"] == 0


async def test_cancelling_while_a_slow_server_sends_balances(
    base_url: str, dovecot: Dovecot, tmp_path: Path
) -> None:
    with SmtpSink(tmp_path, "-W", ".:1") as sink:
        account = credentials(dovecot.fresh_user(), dovecot, sink.port, "none")
        async with logged_in(base_url, account) as mailbox:
            batch = await merges.started(mailbox, merges.merge(500))
            await merges.until_counts(mailbox, batch, lambda b: b["counts"]["sent"])
            await merges.act(mailbox, batch, "cancel")
            ended = await merges.until_counts(mailbox, batch, nothing_under_way)
            rows = await merges.report(mailbox, batch)

        states = merges.balance(rows, sink.messages(), [f"r{i}@example.org" for i in range(500)])
    assert (ended["state"], total(ended)) == ("cancelled", 500)
    assert states == {"sent": ended["counts"]["sent"], "cancelled": ended["counts"]["cancelled"]}
    assert states["cancelled"] >= 400


async def test_what_would_wait_for_another_try_is_cancelled_with_its_batch(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(_: bytes) -> Reply:
        return await answers.get()

    smtp_server.on(".", answer)
    batch = await merges.started(scripted, merges.merge(1))
    await smtp_server.heard(".")

    await merges.act(scripted, batch, "cancel")
    answers.put_nowait(b"451 4.3.0 later\r\n")
    ended = await merges.until_counts(scripted, batch, nothing_under_way)
    [row] = await merges.report(scripted, batch)

    assert ended["counts"]["cancelled"] == 1 == total(ended)
    assert (row["state"], row["status"], row["next_attempt_at"]) == ("cancelled", 451, None)


async def test_a_batch_that_waits_for_its_hour_or_is_paused_can_be_cancelled(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    scheduled = await merges.started(scripted, merges.merge(3, send_at=later))
    paused = await merges.started(scripted, merges.merge(3, send_at=later))
    await merges.act(scripted, paused, "pause")

    answers = [await merges.act(scripted, each, "cancel") for each in (scheduled, paused)]

    for answer in answers:
        assert answer.json()["state"] == "cancelled"
        assert answer.json()["counts"]["cancelled"] == 3
    assert smtp_server.messages == []


async def test_a_cancelled_batch_stays_cancelled_after_a_restart(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url, logged_in(base_url, account) as mailbox:
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        batch = await merges.started(mailbox, merges.merge(3, send_at=later))
        cancelled = (await merges.act(mailbox, batch, "cancel")).json()

    async with serving(environ) as base_url, after_restart(mailbox, base_url) as again:
        after = await merges.get(again, batch)
        once_more = await merges.act(again, batch, "cancel")

    assert after == cancelled == once_more.json()


# ---- retry


async def test_retry_of_a_batch_whose_messages_were_all_sent_changes_nothing(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await merges.started(scripted, merges.merge(2))
    done = await merges.until(scripted, batch)

    response = await merges.act(scripted, batch, "retry")

    assert (response.status_code, response.json()) == (200, done)
    assert len(smtp_server.messages) == 2


async def test_retry_of_a_batch_that_still_runs_tries_what_has_failed_so_far(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r0@", b"550 5.1.1 who?\r\n", NORMAL)
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(20))
    await merges.until_counts(scripted, batch, lambda b: b["counts"]["failed"] == 1)

    retried = (await merges.act(scripted, batch, "retry")).json()
    gate.open()
    await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)

    assert retried["counts"]["failed"] == 0
    assert total(retried) == 20
    states = merges.balance(rows, smtp_server.messages, [f"r{i}@example.org" for i in range(20)])
    assert states == {"sent": 20}


async def test_what_is_tried_again_has_all_its_tries_and_its_old_message_id(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT", b"451 4.3.0 no\r\n", b"451 4.3.0 no\r\n", NORMAL)
    batch = await merges.started(scripted, merges.merge(1, max_attempts=2))
    await merges.until(scripted, batch)
    [before] = await merges.report(scripted, batch)

    await merges.act(scripted, batch, "retry")
    done = await merges.until(scripted, batch)
    [after] = await merges.report(scripted, batch)

    assert (before["state"], before["attempts"]) == ("failed", 2)
    assert (after["state"], after["attempts"]) == ("sent", 1)
    assert after["message_id"] == before["message_id"]
    assert (done["counts"]["sent"], done["counts"]["failed"]) == (1, 0)


async def test_retry_survives_a_restart(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT", b"550 5.1.1 who?\r\n")
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url, logged_in(base_url, account) as mailbox:
        batch = await merges.started(mailbox, merges.merge(3))
        await merges.until(mailbox, batch)
    smtp_server.on("RCPT", NORMAL)

    async with serving(environ) as base_url, after_restart(mailbox, base_url) as again:
        retried = await merges.act(again, batch, "retry")
        done = await merges.until(again, batch)

    assert retried.status_code == 200
    assert done["counts"]["sent"] == 3 == len(smtp_server.messages)


async def test_retry_of_a_cancelled_batch_is_refused_while_its_last_message_is_under_way(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r0@", b"550 5.1.1 who?\r\n")
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(2))
    await merges.until_counts(scripted, batch, lambda b: b["counts"]["failed"] == 1)
    await smtp_server.heard(".")
    await merges.act(scripted, batch, "cancel")

    response = await merges.act(scripted, batch, "retry")
    gate.open()
    ended = await merges.until_counts(scripted, batch, nothing_under_way)

    assert problem(response) == CONFLICT
    assert waiting(ended) == 0


# ---- conflicts


@pytest.mark.parametrize("what", ["pause", "resume", "cancel"])
async def test_a_completed_batch_is_not_steered(scripted: Mailbox, what: str) -> None:
    batch = await merges.started(scripted, merges.merge(1))
    done = await merges.until(scripted, batch)

    response = await merges.act(scripted, batch, what)

    assert problem(response) == CONFLICT
    assert await merges.get(scripted, batch) == done


@pytest.mark.parametrize("what", ["pause", "resume", "retry"])
async def test_a_cancelled_batch_is_not_set_going(
    scripted: Mailbox, smtp_server: ScriptedSmtp, what: str
) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    batch = await merges.started(scripted, merges.merge(2, send_at=later))
    cancelled = (await merges.act(scripted, batch, "cancel")).json()

    response = await merges.act(scripted, batch, what)

    assert problem(response) == CONFLICT
    assert await merges.get(scripted, batch) == cancelled
    assert smtp_server.messages == []


# ---- the session


async def test_nothing_is_begun_for_a_session_that_has_ended(
    scripted: Mailbox, smtp_server: ScriptedSmtp, gate: Gate
) -> None:
    await in_flight(smtp_server, scripted, 500)

    deleted = await scripted.delete(f"/api/sessions/{scripted.session_id}")
    gate.open()
    await connections_closed(smtp_server)
    listed = await scripted.get(merges.BATCHES)

    assert deleted.status_code == 204
    assert listed.status_code in {401, 404}
    assert len(smtp_server.messages) == 2


async def connections_closed(smtp_server: ScriptedSmtp) -> None:
    """Wait until the service has left the server alone."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(_PATIENCE):
        while smtp_server.open_connections:
            await asyncio.wait({never}, timeout=0.02)


# ---- the hour


async def test_a_batch_waits_for_its_hour(scripted: Mailbox, smtp_server: ScriptedSmtp) -> None:
    moments = arrivals(smtp_server)
    send_at = datetime.now(UTC) + timedelta(seconds=2)

    batch = await merges.started(scripted, merges.merge(3, send_at=send_at.isoformat()))
    done = await merges.until(scripted, batch)

    assert (batch["state"], batch["counts"]["queued"]) == ("scheduled", 3)
    assert datetime.fromisoformat(batch["send_at"]) >= send_at
    assert done["send_at"] == batch["send_at"]
    assert datetime.fromisoformat(done["started_at"]) >= datetime.fromisoformat(batch["send_at"])
    assert len(moments) == 3
    assert min(moments) >= send_at


async def test_an_hour_that_came_while_the_service_was_down_is_now(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    moments = arrivals(smtp_server)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url, logged_in(base_url, account) as mailbox:
        send_at = datetime.now(UTC) + timedelta(seconds=1)
        batch = await merges.started(mailbox, merges.merge(3, send_at=send_at.isoformat()))

    async with serving(environ) as base_url, after_restart(mailbox, base_url) as again:
        done = await merges.until(again, batch)

    assert batch["state"] == "scheduled"
    assert done["counts"]["sent"] == 3 == len(moments)
    assert min(moments) >= send_at


async def test_a_batch_paused_and_resumed_before_its_hour_still_waits_for_it(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    batch = await merges.started(scripted, merges.merge(3, send_at=later))

    paused = (await merges.act(scripted, batch, "pause")).json()
    resumed = (await merges.act(scripted, batch, "resume")).json()

    assert paused["state"] == "paused"
    assert (resumed["state"], resumed["send_at"]) == ("scheduled", batch["send_at"])
    assert smtp_server.messages == []


@pytest.mark.parametrize("send_at", ["2000-01-01T00:00:00Z", "2000-01-01T00:00:00+02:00"])
async def test_an_hour_that_has_passed_is_now(scripted: Mailbox, send_at: str) -> None:
    batch = await merges.started(scripted, merges.merge(1, send_at=send_at))

    done = await merges.until(scripted, batch)

    assert batch["state"] == "queued"
    assert done["counts"]["sent"] == 1


def arrivals(smtp_server: ScriptedSmtp) -> list[datetime]:
    """When each message arrives, as they do."""
    moments: list[datetime] = []

    def note(_: bytes) -> Reply:
        moments.append(datetime.now(UTC))
        return NORMAL

    smtp_server.on(".", note)
    return moments


# ---- the pace


async def test_a_rate_is_kept(scripted: Mailbox, smtp_server: ScriptedSmtp) -> None:
    moments = arrivals(smtp_server)
    per_second, ahead = 20, 20 + 4  # a second's worth at once; and a window may be late together

    batch = await merges.started(scripted, merges.merge(60, rate_per_minute=60 * per_second))
    done = await merges.until(scripted, batch)

    assert done["counts"]["sent"] == 60 == len(moments)
    for (first, begin), (last, end) in combinations(enumerate(sorted(moments)), 2):
        seconds = (end - begin).total_seconds()
        assert last - first <= per_second * seconds + ahead, f"{last - first} in {seconds} s"


async def test_a_batch_that_is_paced_says_how_long_it_will_take(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await merges.started(scripted, merges.merge(100, rate_per_minute=60))

    running = await merges.until_counts(scripted, batch, lambda b: b["counts"]["sent"])

    assert running["state"] == "running"
    assert 60 <= running["eta_seconds"] <= 1_000
    await merges.act(scripted, batch, "cancel")


async def test_a_small_batch_does_not_wait_for_anothers_large_one(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    one = {"SMTP_CONNECTIONS_PER_HOST": "1", "SMTP_MESSAGES_PER_CONNECTION": "10000"}
    async with (
        serving(environ | one) as base_url,
        logged_in(base_url, account(dovecot, smtp_server)) as large,
        logged_in(base_url, account(dovecot, smtp_server)) as small,
    ):
        big = await merges.started(large, merges.merge(500))
        await smtp_server.heard(".")  # over the one connection that there may be
        body = {"template": merges.TEMPLATE, "recipients": merges.recipients(3, "small.example")}
        little = await merges.started(small, body)
        await merges.until(small, little, "running")
        served = False
        for arrived in range(2, 200):  # it has to come as far as to ask for a connection
            gate.let()
            await smtp_server.heard(".", arrived)
            served = any(m.recipients[0].endswith("@small.example") for m in smtp_server.messages)
            if served:
                break
        meanwhile = await merges.get(large, big)
        gate.open()
        done = [await merges.until(small, little), await merges.until(large, big)]

    assert served, "the small one waited behind the large one's next messages"
    assert meanwhile["state"] == "running"
    assert [batch["counts"]["sent"] for batch in done] == [3, 500]


def account(dovecot: Dovecot, smtp_server: ScriptedSmtp) -> dict[str, Any]:
    return credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")


# ---- copies in Sent


async def test_copies_in_sent_are_what_was_sent(
    mailbox: Mailbox, postfix: Postfix, dovecot: Dovecot
) -> None:
    body = merges.merge(4, save_to_sent=True)
    for each in body["recipients"]:
        each["to"] = f"sent.{mailbox.user.partition('@')[0]}.{each['to']}"

    batch = await merges.started(mailbox, body)
    await merges.until(mailbox, batch)
    await in_sent(mailbox, 4)
    rows = await merges.report(mailbox, batch)

    said = dovecot.doveadm("-f", "tab", "fetch", "-u", mailbox.user, "hdr.message-id", *SENT)
    assert sorted(said.split()[1:]) == sorted(row["message_id"] for row in rows)
    flags = dovecot.doveadm("-f", "tab", "fetch", "-u", mailbox.user, "flags", *SENT)
    assert all("\\Seen" in line for line in flags.splitlines()[1:])
    texts = dovecot.doveadm("-f", "flow", "fetch", "-u", mailbox.user, "body", *SENT)
    for row in rows:
        [arrived] = postfix.wait_for(row["to"])
        assert body_of(arrived.content) in texts


SENT = ("mailbox", "Sent", "all")


def body_of(message: bytes) -> str:
    """What no server on the way may change."""
    return message.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n").decode().rstrip()


async def in_sent(mailbox: Mailbox, count: int) -> None:
    """Copies are filed after their message is sent, which they must not hold up."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(_PATIENCE):
        while (await mailbox.get("/api/mailbox/messages", folder="Sent")).json()["total"] < count:
            await asyncio.wait({never}, timeout=0.02)


async def test_without_being_asked_a_batch_leaves_no_copies(
    mailbox: Mailbox, postfix: Postfix
) -> None:
    batch = await merges.started(mailbox, merges.merge(2))

    await merges.until(mailbox, batch)

    assert (await mailbox.get("/api/mailbox/messages", folder="Sent")).json()["total"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"{tag} NO [OVERQUOTA] Quota exceeded\r\n",
        (b"* BYE going down\r\n", CUT),
        CUT,
        b"{tag} BAD what?\r\n",
    ],
    ids=["quota", "bye", "cut", "bad"],
)
async def test_a_sent_folder_that_takes_nothing_neither_fails_nor_repeats_a_message(
    environ: dict[str, str], imap_server: ScriptedImap, smtp_server: ScriptedSmtp, answer: Reply
) -> None:
    imap_server.on("APPEND", answer)

    async with (
        serving(environ) as base_url,
        scripted_mailbox(base_url, imap_server, smtp_server) as mailbox,
    ):
        batch = await merges.started(mailbox, merges.merge(5, save_to_sent=True))
        done = await merges.until(mailbox, batch)
        await imap_server.heard("APPEND", 5)
        rows = await merges.report(mailbox, batch)

    assert done["counts"]["sent"] == 5
    assert {row["attempts"] for row in rows} == {1}
    addresses = [f"r{i}@example.org" for i in range(5)]
    assert merges.balance(rows, smtp_server.messages, addresses) == {"sent": 5}
    assert imap_server.count("APPEND") <= 10
    assert imap_server.folders["Sent"].messages == []


async def test_a_single_message_whose_copy_was_refused_was_sent_all_the_same(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    imap_server.on("APPEND", b"{tag} NO [OVERQUOTA] Quota exceeded\r\n")

    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        sent = await mailbox.post("/api/send", {"to": "one@example.org", "body": "x"})

    assert sent.status_code == 200
    assert (sent.json()["state"], sent.json()["saved"]) == ("sent", None)
    assert len(smtp_server.messages) == 1


async def test_a_copy_whose_answer_was_lost_is_not_filed_twice(
    environ: dict[str, str], imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    sent = imap_server.folders["Sent"]

    def keep_and_cut(command: bytes) -> Reply:
        sent.add(command.partition(b"}\r\n")[2])
        return CUT

    imap_server.on("APPEND", keep_and_cut)
    async with (
        serving(environ) as base_url,
        scripted_mailbox(base_url, imap_server, smtp_server) as mailbox,
    ):
        batch = await merges.started(mailbox, merges.merge(3, save_to_sent=True))
        await merges.until(mailbox, batch)
        await imap_server.heard("UID SEARCH", 3)

    assert imap_server.count("APPEND") == 3
    assert len(sent.messages) == 3 == len(smtp_server.messages)
