"""A mail merge on a disk that is full, slow or failing: what was acknowledged is there, and what is not there was not."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from cbemail.store import files
from cbemail.store.duckdb_database import DuckDbDatabase
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import (
    Mailbox,
    credentials,
    environment,
    logged_in,
    serving,
)
from tests.integration.dovecot import Dovecot
from tests.integration.gate import Gate
from tests.integration.scripted import scripted_credentials
from tests.integration.servers import free_port
from tests.integration.service import ServiceProcess
from tests.integration.test_failed_store import breakable
from tests.unit.smtp.conftest import until
from tests.unit.store.test_duckdb_database import full_disk
from tests.unit.store.test_event_journal import slow_disk

BATCHES = merges.BATCHES


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file)


@pytest.fixture
def store(environ: dict[str, str]) -> Path:
    return Path(environ["DB_PATH"])


@pytest.fixture
async def scripted(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    async with logged_in(base_url, scripted_credentials(imap_server, smtp_server)) as mailbox:
        yield mailbox


@asynccontextmanager
async def the_same_client(url: str, mailbox: Mailbox) -> AsyncIterator[Mailbox]:
    """The session at another instance of the service: its token is as good there."""
    headers = {"Authorization": mailbox.client.headers["Authorization"]}
    async with httpx.AsyncClient(
        base_url=url, timeout=60, trust_env=False, headers=headers
    ) as client:
        yield Mailbox(mailbox.user, mailbox.session_id, mailbox.refresh_token, client)


def people(count: int) -> list[str]:
    return [f"r{index}@example.org" for index in range(count)]


def next_month() -> str:
    return (datetime.now(UTC) + timedelta(days=30)).isoformat()


def form(count: int) -> dict[str, Any]:
    lines = "\n".join(["email", *people(count)])
    return {
        "batch": (None, '{"template": {"subject": "s", "body": "x"}}', "application/json"),
        "recipients": ("people.csv", lines, "text/csv"),
    }


async def accepted_batches(mailbox: Mailbox) -> list[dict[str, Any]]:
    response = await mailbox.get(BATCHES)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["batches"]
    return found


# ---- a disk that is full: F-24


async def test_on_a_full_disk_nothing_is_accepted_and_what_runs_goes_on_when_there_is_room(
    scripted: Mailbox, smtp_server: ScriptedSmtp, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(150))
    gate.let(40)
    await merges.until_counts(scripted, batch, lambda b: b["counts"]["sent"] >= 30)

    with full_disk(store, room=0, beyond=files.log_of):
        as_json = await scripted.post(BATCHES, merges.merge(5))
        as_form = await scripted.client.post(BATCHES, files=form(5))
        queued = await scripted.client.post(
            "/api/send",
            json={"to": "x@example.org", "body": "x"},
            headers={"Prefer": "respond-async"},
        )
        gate.open()
        await until(lambda: "the journal cannot be written just now" in caplog.text)
        in_the_middle = await merges.get(scripted, batch)
        health = await scripted.get("/healthz")
        ready = await scripted.get("/readyz")
    done = await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)
    afterwards = await merges.started(scripted, merges.merge(2))
    await merges.until(scripted, afterwards)

    for refused in (as_json, as_form, queued):
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
    assert in_the_middle["state"] == "running"
    assert (health.status_code, ready.status_code) == (200, 200)
    assert [each["id"] for each in await accepted_batches(scripted)] == [
        afterwards["id"],
        batch["id"],
    ]
    assert merges.balance(rows, smtp_server.messages[:150], people(150)) == {"sent": 150}
    assert done["counts"]["uncertain"] == 0


async def test_a_key_of_a_batch_that_found_no_room_is_free_when_there_is_some(
    scripted: Mailbox, smtp_server: ScriptedSmtp, store: Path
) -> None:
    scripted.client.headers["Idempotency-Key"] = "once"

    with full_disk(store, room=0):
        refused = await scripted.post(BATCHES, merges.merge(3))
    accepted = await scripted.post(BATCHES, merges.merge(3))
    del scripted.client.headers["Idempotency-Key"]
    await merges.until(scripted, accepted.json())

    assert (refused.status_code, accepted.status_code) == (503, 202)
    assert "idempotency-replayed" not in accepted.headers
    assert len(smtp_server.messages) == 3


async def test_a_disk_that_fills_up_in_the_middle_of_accepting_leaves_nothing_of_the_batch(
    scripted: Mailbox, store: Path
) -> None:
    """Room for its beginning and not for its end."""
    with full_disk(store, room=400_000):
        refused = await scripted.post(BATCHES, merges.merge(9_000))
    listed = await accepted_batches(scripted)
    accepted = await scripted.post(BATCHES, merges.merge(9_000, send_at=next_month()))

    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert listed == []
    assert accepted.status_code == 202
    assert accepted.json()["counts"]["queued"] == 9_000


# ---- a disk that fails: F-25


async def test_a_disk_that_fails_to_sync_acknowledges_nothing_and_the_books_balance_after_a_restart(
    tmp_path: Path,
    certificates: Certificates,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
) -> None:
    """The log takes what is written, and cannot be synced: so what is acknowledged was synced before."""
    port = free_port()
    environ = environment(tmp_path, certificates.ca_file, HOST="127.0.0.1", PORT=str(port))
    gate = Gate(smtp_server)

    async with breakable(environ) as service:
        url = f"http://127.0.0.1:{port}"
        async with logged_in(url, scripted_credentials(imap_server, smtp_server)) as mailbox:
            batch = await merges.started(mailbox, merges.merge(60))
            gate.let(20)
            await merges.until_counts(mailbox, batch, lambda b: b["counts"]["sent"] >= 15)
            service.send_signal(signal.SIGUSR1)
            refused = await mailbox.post(BATCHES, merges.merge(5, name="never"))
            gate.open()
            await asyncio.wait_for(service.communicate(), timeout=30)

    async with serving(environ) as url, the_same_client(url, mailbox) as again:
        done = await merges.until(again, batch)
        rows = await merges.report(again, batch)
        listed = await accepted_batches(again)

    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert (
        service.returncode
    )  # DuckDB may crash on a pipe for a log, as it is closed; never on a failed disk
    assert [each["id"] for each in listed] == [batch["id"]]
    states = merges.balance(rows, smtp_server.messages, people(60))
    assert states["sent"] + states["uncertain"] == 60
    assert states["uncertain"] <= 4 * 10
    assert done["state"] == "completed"


async def test_where_what_becomes_of_messages_cannot_be_synced_none_is_sent_twice_after_a_restart(
    tmp_path: Path,
    certificates: Certificates,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
) -> None:
    port = free_port()
    environ = environment(tmp_path, certificates.ca_file, HOST="127.0.0.1", PORT=str(port))
    gate = Gate(smtp_server)

    async with breakable(environ) as service:
        url = f"http://127.0.0.1:{port}"
        async with logged_in(url, scripted_credentials(imap_server, smtp_server)) as mailbox:
            batch = await merges.started(mailbox, merges.merge(60))
            gate.let(20)
            await merges.until_counts(mailbox, batch, lambda b: b["counts"]["sent"] >= 15)
            service.send_signal(signal.SIGUSR2)
            gate.open()
            await asyncio.wait_for(service.communicate(), timeout=30)
            sent_before = len(smtp_server.messages)

    async with serving(environ) as url, the_same_client(url, mailbox) as again:
        done = await merges.until(again, batch)
        rows = await merges.report(again, batch)

    assert service.returncode
    assert sent_before < 60, "what cannot be recorded is not begun"
    states = merges.balance(rows, smtp_server.messages, people(60))
    assert states["sent"] + states["uncertain"] == 60
    assert states["uncertain"] <= 4 * 10
    assert done["state"] == "completed"


@pytest.mark.parametrize("kill", range(4))
async def test_what_was_acknowledged_the_moment_before_a_kill_is_there_whole(
    tmp_path: Path, dovecot: Dovecot, kill: int
) -> None:
    """25 small batches one after the other, and a kill in the moment the last has its 202; four times over."""
    environ = environment(tmp_path, dovecot.ca_file)
    accepted: list[dict[str, Any]] = []

    with SmtpSink(tmp_path) as sink, ServiceProcess(tmp_path, environ) as service:
        body = credentials(dovecot.fresh_user(), dovecot, sink.port, "none")
        async with logged_in(service.url, body) as mailbox:
            for number in range(25):
                asked = merges.merge(3, name=f"b{number}")
                asked["recipients"] = [
                    {"to": f"b{number}-{each['to']}", "variables": each["variables"]}
                    for each in asked["recipients"]
                ]
                accepted.append(await merges.started(mailbox, asked))
            service.kill()
            service.start()
            states = [(await merges.until(mailbox, batch))["counts"] for batch in accepted]
            rows = [row for batch in accepted for row in await merges.report(mailbox, batch)]

        arrived = sink.messages()
    assert [each["total"] for each in states] == [3] * 25
    books = merges.balance(rows, arrived, [row["to"] for row in rows])
    assert books["sent"] + books["uncertain"] == 75


# ---- a disk that is slow: F-27


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> list[DuckDbDatabase]:
    """Those that a service has opened since."""
    opened: list[DuckDbDatabase] = []

    class Remembered(DuckDbDatabase):
        @classmethod
        async def open(cls, path: Path, **options: Any) -> DuckDbDatabase:  # type: ignore[override]
            opened.append(await DuckDbDatabase.open(path, **options))
            return opened[-1]

    monkeypatch.setattr("cbemail.app.DuckDbDatabase", Remembered)
    return opened


async def test_a_slow_disk_keeps_nobody_waiting_but_those_who_write(
    databases: list[DuckDbDatabase],
    scripted: Mailbox,
    smtp_server: ScriptedSmtp,
) -> None:
    """Were the event loop to wait for the disk, nothing here would be answered before the disk is let go."""
    with slow_disk(databases[-1]):
        posting = asyncio.create_task(scripted.post(BATCHES, merges.merge(5)))
        health = [(await scripted.get("/healthz")).status_code for _ in range(50)]
        listed = [(await scripted.get(BATCHES)).status_code for _ in range(10)]
        mail = await scripted.get("/api/mailbox/messages")
        told = posting.done()
    posted = await posting
    await merges.until(scripted, posted.json())

    assert set(health) == set(listed) == {200}
    assert mail.status_code == 200
    assert not told, "a batch was acknowledged before it was on disk"
    assert posted.status_code == 202
    assert len(smtp_server.messages) == 5


async def test_on_a_disk_that_hesitates_a_batch_goes_on_and_nothing_times_out_wrongly(
    databases: list[DuckDbDatabase],
    scripted: Mailbox,
    smtp_server: ScriptedSmtp,
) -> None:
    batch = await merges.started(scripted, merges.merge(80))

    while len(smtp_server.messages) < 80:
        before = len(smtp_server.messages)
        with slow_disk(databases[-1]):
            for _ in range(3):
                assert (await scripted.get("/healthz")).status_code == 200
        await until(lambda: len(smtp_server.messages) > before)  # noqa: B023 - now
    done = await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)

    assert merges.balance(rows, smtp_server.messages, people(80)) == {"sent": 80}
    assert {row["attempts"] for row in rows} == {1}
    assert done["counts"]["sent"] == 80
