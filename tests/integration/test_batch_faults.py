"""What befalls a mail merge on its way to the server, and what becomes of each recipient then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cbemail.outbox.dispatch import Policy
from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.reconcile import ReconcilePolicy
from cbemail.outbox.retry import RetryPolicy
from cbemail.smtp.circuit import CircuitPolicy
from tests.fakes.fault_proxy import CUT as CUT_OFF
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.script import CUT, NORMAL
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, letter, logged_in, serving
from tests.integration.dovecot import Dovecot

SOON = Policy(
    retry=RetryPolicy(delays=(1,), spread=0),
    reconcile=ReconcilePolicy(first=timedelta(seconds=1), last=timedelta(seconds=2)),
    circuit=CircuitPolicy(failures=2, shortest=1.0, longest=1.0),
)


@pytest.fixture
async def base_url(environ: dict[str, str]) -> AsyncIterator[str]:
    async with serving(environ, SOON) as url:
        yield url


async def settled(mailbox: Mailbox, batch: dict[str, Any]) -> list[dict[str, Any]]:
    await merges.until(mailbox, batch)
    return await merges.report(mailbox, batch)


# ---- before the final dot: nothing is lost, and nothing is sent twice


@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA"])
async def test_a_connection_lost_before_the_body_costs_a_try_and_no_copy(
    scripted: Mailbox, smtp_server: ScriptedSmtp, moment: str
) -> None:
    smtp_server.on(moment, CUT, NORMAL)

    batch = await merges.started(scripted, merges.merge(3))
    rows = await settled(scripted, batch)

    states = merges.balance(rows, smtp_server.messages, [f"r{i}@example.org" for i in range(3)])
    assert states == {"sent": 3}


async def test_a_connection_lost_in_the_body_costs_a_try_and_no_copy(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    body = merges.merge(
        2
    )  # larger than what the kernel holds on its way: or who could say how far it came?
    body["template"] = merges.TEMPLATE | {"body": "{{ name }}\n" + ("x" * 70 + "\n") * 170_000}

    async with FaultProxy("127.0.0.1", smtp_server.port) as proxy:
        account = credentials(dovecot.fresh_user(), dovecot, proxy.port, "starttls")
        async with logged_in(base_url, account) as mailbox:
            proxy.up.fail(CUT_OFF, after=1_000_000)
            rows = await settled(mailbox, await merges.started(mailbox, body))

    states = merges.balance(rows, smtp_server.messages, ["r0@example.org", "r1@example.org"])
    assert states == {"sent": 2}
    assert sorted(row["attempts"] for row in rows) == [1, 2]


async def test_a_server_that_takes_no_connection_is_tried_again_and_nothing_is_lost(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("connect", CUT, CUT, CUT, NORMAL)
    smtp_server.hang_up()

    batch = await merges.started(scripted, merges.merge(3))
    rows = await settled(scripted, batch)

    assert {row["state"] for row in rows} == {"sent"}
    assert {row["attempts"] for row in rows} == {1}, "a connection never had was counted as a try"


# ---- replies


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (b"451 4.3.0 try again\r\n", "sent"),
        (b"421 4.3.2 closing\r\n", "sent"),
        (b"550 5.6.0 no\r\n", "failed"),
        (b"554 5.7.1 spam\r\n", "failed"),
    ],
)
async def test_a_reply_to_the_final_dot_is_never_uncertain(
    scripted: Mailbox, smtp_server: ScriptedSmtp, reply: bytes, state: str
) -> None:
    smtp_server.on(".", reply, NORMAL)

    rows = await settled(scripted, await merges.started(scripted, merges.merge(1)))

    [row] = rows
    assert row["state"] == state
    assert row["attempts"] == (2 if state == "sent" else 1)


async def test_a_refused_recipient_fails_and_the_others_are_sent(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r1@", b"550 5.1.1 who?\r\n")

    rows = await settled(scripted, await merges.started(scripted, merges.merge(3)))

    by_address = {row["to"]: row for row in rows}
    assert [by_address[f"r{i}@example.org"]["state"] for i in range(3)] == [
        "sent",
        "failed",
        "sent",
    ]
    failed = by_address["r1@example.org"]
    assert (failed["status"], failed["enhanced"]) == (550, "5.1.1")
    assert failed["detail"] == "The mailbox does not exist."


async def test_a_message_to_several_has_a_state_for_each_and_one_copy(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<b@", b"450 4.2.0 later\r\n", NORMAL)
    smtp_server.on("RCPT TO:<c@", b"550 5.1.1 who?\r\n")
    message = {
        "to": ["a@example.org", "b@example.org", "c@example.org"],
        "subject": "s",
        "body": "x",
    }

    rows = await settled(scripted, await merges.started(scripted, {"messages": [message]}))

    states = {row["to"]: row["state"] for row in rows}
    assert states == {"a@example.org": "sent", "b@example.org": "sent", "c@example.org": "failed"}
    merges.balance(rows, smtp_server.messages, states)
    assert len({row["message_id"] for row in rows}) == 1


async def test_tries_end_where_the_client_said(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT", b"451 4.3.0 never now\r\n")

    rows = await settled(scripted, await merges.started(scripted, merges.merge(1, max_attempts=2)))

    [row] = rows
    assert (row["state"], row["attempts"], row["status"]) == ("failed", 2, 451)


async def test_greylisting_is_waited_out(scripted: Mailbox, smtp_server: ScriptedSmtp) -> None:
    smtp_server.on("RCPT", b"451 4.7.1 greylisted\r\n", NORMAL)

    rows = await settled(scripted, await merges.started(scripted, merges.merge(1)))

    [row] = rows
    assert (row["state"], row["attempts"]) == ("sent", 2)


# ---- the reply that never came


async def test_a_lost_reply_is_uncertain_and_not_sent_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", CUT, NORMAL)

    rows = await settled(scripted, await merges.started(scripted, merges.merge(1)))

    [row] = rows
    assert (row["state"], row["attempts"]) == ("uncertain", 1)
    assert len(smtp_server.messages) == 1


async def test_a_sink_that_takes_every_message_and_never_says_so_leaves_all_uncertain(
    base_url: str, dovecot: Dovecot, tmp_path: Path
) -> None:
    with SmtpSink(tmp_path, "-q", ".") as sink:
        account = credentials(dovecot.fresh_user(), dovecot, sink.port, "none")
        async with logged_in(base_url, account) as mailbox:
            rows = await settled(mailbox, await merges.started(mailbox, merges.merge(12)))

        states = merges.balance(rows, sink.messages(), [f"r{i}@example.org" for i in range(12)])
    assert states == {"uncertain": 12}


async def test_an_uncertain_message_that_the_sent_folder_has_was_sent(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", CUT, NORMAL)
    batch = await merges.started(scripted, merges.merge(1))
    [row] = await settled(scripted, batch)
    copy = letter("filed by the provider", Message_ID=row["message_id"])
    await scripted.client.post(
        "/api/mailbox/messages",
        params={"folder": "\\Sent"},
        content=copy,
        headers={"Content-Type": "message/rfc822"},
    )

    done = await merges.until_counts(scripted, batch, lambda b: b["counts"]["sent"] == 1)

    [row] = await merges.report(scripted, batch)
    assert done["counts"]["uncertain"] == 0
    assert "Sent folder" in row["detail"]


async def test_an_uncertain_message_is_sent_again_where_that_was_asked_for(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", CUT, NORMAL)

    batch = await merges.started(scripted, merges.merge(1, on_uncertain="resend"))
    [row] = await settled(scripted, batch)

    assert row["state"] == "sent"
    first, second = smtp_server.messages
    ids = {
        line for m in (first, second) for line in m.content.split(b"\r\n") if b"Message-ID" in line
    }
    assert len(ids) == 1, "the second copy has a Message-ID of its own"


async def test_retry_sends_what_failed_and_what_is_uncertain_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r0@", b"550 5.1.1 who?\r\n", NORMAL)
    smtp_server.on(".", CUT, NORMAL)
    batch = await merges.started(scripted, merges.merge(2))
    await settled(scripted, batch)

    response = await merges.act(scripted, batch, "retry")
    rows = await settled(scripted, batch)

    assert response.status_code == 200
    assert {row["state"] for row in rows} == {"sent"}


# ---- the account, and the server's load


async def test_a_refused_login_pauses_the_batch_and_burns_no_attempt(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("AUTH", b"535 5.7.8 no\r\n")
    smtp_server.hang_up()
    logins = smtp_server.count("AUTH")

    batch = await merges.started(scripted, merges.merge(30))
    paused = await merges.until(scripted, batch, "paused")
    rows = await merges.report(scripted, batch)
    session = await scripted.get(f"/api/sessions/{scripted.session_id}")

    assert paused["paused_reason"] == "credentials-stale"
    assert session.json()["state"] == "credentials_stale"
    assert {row["attempts"] for row in rows} == {0}
    assert smtp_server.count("AUTH") - logins <= 2


async def test_new_credentials_set_a_batch_going_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp, dovecot: Dovecot
) -> None:
    smtp_server.on("AUTH", b"535 5.7.8 no\r\n", NORMAL)
    smtp_server.hang_up()
    batch = await merges.started(scripted, merges.merge(3))
    await merges.until(scripted, batch, "paused")

    renewed = await scripted.client.put(
        f"/api/sessions/{scripted.session_id}/credentials", json={"password": dovecot.password}
    )
    rows = await settled(scripted, batch)

    assert renewed.status_code == 200, renewed.text
    assert {row["state"] for row in rows} == {"sent"}


@pytest.mark.parametrize(
    ("moment", "reply"),
    [
        ("MAIL", b"550 5.4.5 daily limit\r\n"),
        (".", b"554 5.2.0 quota\r\n"),
        ("MAIL", b"550 5.7.60 not as that sender\r\n"),
    ],
)
async def test_a_refusal_of_the_account_pauses_for_a_time_and_fails_nobody(
    scripted: Mailbox, smtp_server: ScriptedSmtp, moment: str, reply: bytes
) -> None:
    smtp_server.on(moment, reply)

    batch = await merges.started(scripted, merges.merge(5))
    paused = await merges.until(scripted, batch, "paused")
    settled_counts = await merges.until_counts(
        scripted, batch, lambda b: not b["counts"]["sending"]
    )

    assert paused["paused_reason"] == "account-limit"
    assert paused["paused_until"] is not None
    assert settled_counts["counts"]["failed"] == 0
    assert settled_counts["counts"]["queued"] == 5


async def test_after_a_pause_the_batch_can_be_resumed(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("MAIL", b"550 5.4.5 daily limit\r\n", NORMAL)
    batch = await merges.started(scripted, merges.merge(3))
    await merges.until(scripted, batch, "paused")

    await merges.act(scripted, batch, "resume")
    rows = await settled(scripted, batch)

    assert {row["state"] for row in rows} == {"sent"}


async def test_content_that_is_refused_again_and_again_stops_the_batch(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", b"554 5.7.1 spam\r\n")

    batch = await merges.started(scripted, merges.merge(200))
    paused = await merges.until(scripted, batch, "paused")
    settled_counts = await merges.until_counts(
        scripted, batch, lambda b: not b["counts"]["sending"]
    )

    assert paused["paused_reason"] == "content-refused"
    assert 20 <= settled_counts["counts"]["failed"] <= 60
    assert settled_counts["counts"]["queued"] >= 140


@pytest.mark.parametrize(
    "reply", [b"421 4.7.0 slow down\r\n", b"432 4.3.2 too many\r\n", b"450 4.2.1 rate\r\n"]
)
async def test_throttling_is_heeded_and_loses_nothing(
    scripted: Mailbox, smtp_server: ScriptedSmtp, reply: bytes
) -> None:
    smtp_server.on("MAIL", NORMAL, NORMAL, reply, NORMAL)

    batch = await merges.started(scripted, merges.merge(6))
    rows = await settled(scripted, batch)

    states = merges.balance(rows, smtp_server.messages, [f"r{i}@example.org" for i in range(6)])
    assert states == {"sent": 6}


async def test_a_server_that_is_down_is_shown_and_a_single_send_is_told_at_once(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    async with FaultProxy("127.0.0.1", smtp_server.port) as proxy:
        account = credentials(dovecot.fresh_user(), dovecot, proxy.port, "starttls")
        async with logged_in(base_url, account) as mailbox:
            smtp_server.on("connect", CUT)
            proxy.hang_up()
            batch = await merges.started(mailbox, merges.merge(4))
            waiting = await merges.until_counts(
                mailbox, batch, lambda b: b["paused_reason"] is not None
            )
            single = await mailbox.post("/api/send", {"to": "x@example.org", "body": "x"})
            smtp_server.on("connect", NORMAL)
            rows = await settled(mailbox, batch)

    assert waiting["paused_reason"] == "upstream-unavailable"
    assert waiting["counts"]["queued"] == 4
    assert single.status_code == 503
    assert single.headers["retry-after"]
    assert {row["state"] for row in rows} == {"sent"}


# ---- what a provider allows in a day


@pytest.fixture
def three_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of limits, with a line for the tests' own server."""
    monkeypatch.setattr("cbemail.outbox.limits.UNKNOWN", ProviderLimits(per_day=3))


@pytest.mark.usefixtures("three_a_day")
async def test_a_days_allowance_counts_every_way_of_sending_and_is_known_after_a_restart(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    two = {"to": ["a@example.org", "b@example.org"], "body": "x"}
    async with serving(environ, SOON) as url, logged_in(url, body) as mailbox:
        first = await mailbox.post("/api/send", two)
        second = await mailbox.post("/api/send", two)
        batch = await merges.started(mailbox, merges.merge(3))
        paused = await merges.until(mailbox, batch, "paused")
        third = await mailbox.post("/api/send", {"to": "c@example.org", "body": "x"})

    async with serving(environ, SOON) as url, logged_in(url, body) as mailbox:
        after_a_restart = await mailbox.post("/api/send", {"to": "c@example.org", "body": "x"})

    assert (first.status_code, second.status_code) == (200, 429)
    assert (paused["paused_reason"], paused["counts"]["sent"]) == ("account-limit", 1)
    for refused in (third, after_a_restart):
        assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
        assert "nothing was sent" in refused.json()["detail"]
        assert 23 * 3600 < int(refused.headers["retry-after"]) <= 25 * 3600
    assert len(smtp_server.messages) == 2


@pytest.mark.usefixtures("three_a_day")
async def test_what_was_not_sent_does_not_count_and_its_key_is_free_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("MAIL", CUT, CUT, NORMAL)
    message = {"to": ["a@example.org", "b@example.org"], "body": "x"}

    async def send(key: str) -> int:
        response = await scripted.client.post(
            "/api/send", json=message, headers={"Idempotency-Key": key}
        )
        return response.status_code

    statuses = [await send("one"), await send("one"), await send("two"), await send("one")]

    assert statuses == [503, 200, 429, 200]
    assert len(smtp_server.messages) == 1


# ---- Sent


async def test_a_copy_that_cannot_be_filed_never_sends_again(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await merges.started(scripted, merges.merge(2, save_to_sent=True))
    rows = await settled(scripted, batch)

    listed = await scripted.get("/api/mailbox/messages", folder="\\Sent")
    await merges.until_counts(scripted, batch, lambda b: b["state"] == "completed")
    assert {row["state"] for row in rows} == {"sent"}
    assert len(smtp_server.messages) == 2
    assert listed.status_code == 200
