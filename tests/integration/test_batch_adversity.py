"""Mail merges among slow servers, silent ones, impatient clients and too many of them; and defects of our own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cbemail.outbox.dispatch import Policy
from cbemail.outbox.retry import RetryPolicy
from cbemail.smtp.circuit import CircuitPolicy
from cbemail.smtp.connection import open_submission
from cbemail.smtp.timeouts import Timeouts
from cbemail.store.duckdb_database import DuckDbDatabase
from tests.certificates import Certificates
from tests.fakes.script import NORMAL, STALL
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, environment, logged_in, serving
from tests.integration.dovecot import Dovecot
from tests.integration.gate import Gate
from tests.integration.scripted import scripted_credentials
from tests.integration.service import ServiceProcess
from tests.unit.outbox.mailroom import BrokenQueries

BATCHES = merges.BATCHES
SOON = Policy(
    retry=RetryPolicy(delays=(1,), spread=0),
    circuit=CircuitPolicy(failures=1000),
    restart_seconds=0.2,
)


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file)


@pytest.fixture
async def base_url(environ: dict[str, str]) -> AsyncIterator[str]:
    async with serving(environ, SOON) as url:
        yield url


@pytest.fixture
async def scripted(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    async with logged_in(base_url, scripted_credentials(imap_server, smtp_server)) as mailbox:
        yield mailbox


def next_month() -> str:
    return (datetime.now(UTC) + timedelta(days=30)).isoformat()


def people(count: int) -> list[str]:
    return [f"r{index}@example.org" for index in range(count)]


async def accepted_batches(mailbox: Mailbox) -> list[dict[str, Any]]:
    response = await mailbox.get(BATCHES, limit=200)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["batches"]
    return found


# ---- servers that take their time


async def test_a_late_final_reply_is_waited_for_and_others_go_on_meanwhile(
    base_url: str,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
    tmp_path: Path,
) -> None:
    """F-4: the message is sent once, by its first try."""
    with SmtpSink(tmp_path, "-W", ".:2") as sink:
        slow = scripted_credentials(imap_server, smtp_server)
        slow["smtp"] = {"host": "localhost", "port": sink.port, "security": "none"}
        quick = scripted_credentials(imap_server, smtp_server)
        async with logged_in(base_url, slow) as late, logged_in(base_url, quick) as prompt:
            waiting = await merges.started(late, merges.merge(2))
            await merges.until_counts(late, waiting, lambda b: b["counts"]["sending"])
            other = await merges.started(prompt, merges.merge(50))
            await merges.until(prompt, other)
            meanwhile = await merges.get(late, waiting)
            await merges.until(late, waiting)
            rows = await merges.report(late, waiting)

        books = merges.balance(rows, sink.messages(), people(2))
    assert meanwhile["counts"]["sent"] == 0
    assert books == {"sent": 2}
    assert {row["attempts"] for row in rows} == {1}
    assert len(smtp_server.messages) == 50


async def test_a_server_that_accepts_and_says_nothing_costs_no_connection_and_no_try(
    scripted: Mailbox, smtp_server: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-13: time after time, and every one of them is given up and closed."""
    impatient = partial(open_submission, timeouts=Timeouts(step=0.05, opening=0.1))
    monkeypatch.setattr("cbemail.sessions.credentials.open_submission", impatient)
    monkeypatch.setattr("cbemail.outbox.courier.RECONNECT_SECONDS", 0.01)
    smtp_server.hang_up()
    smtp_server.on("connect", STALL)
    batch = await merges.started(scripted, merges.merge(4))
    await merges.until_counts(scripted, batch, lambda _: smtp_server.connections >= 10)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at

    shown = await merges.until_counts(scripted, batch, lambda _: smtp_server.connections >= 60)
    after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    smtp_server.on("connect", NORMAL)
    await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)

    assert abs(after - before) <= 5
    assert shown["counts"]["queued"] == 4
    assert merges.balance(rows, smtp_server.messages, people(4)) == {"sent": 4}
    assert {row["attempts"] for row in rows} == {1}


# ---- told to stop, twice


@pytest.mark.parametrize("twice", [signal.SIGTERM, signal.SIGINT])
async def test_told_twice_to_stop_it_ends_at_once_and_the_books_balance(
    tmp_path: Path, dovecot: Dovecot, smtp_server: ScriptedSmtp, twice: signal.Signals
) -> None:
    """F-34: a server that has not answered a final dot would be waited for, had it been told once."""
    smtp_server.on(".", *[NORMAL] * 20, STALL)
    environ = environment(tmp_path, dovecot.ca_file)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")

    with ServiceProcess(tmp_path, environ) as service:
        async with logged_in(service.url, account) as mailbox:
            batch = await merges.started(mailbox, merges.merge(60))
            await smtp_server.heard(".", 21)
            await merges.until_counts(mailbox, batch, lambda b: b["counts"]["sent"] == 20)
            assert service._process is not None
            service._process.send_signal(signal.SIGTERM)
            await stopping(service)
            service._process.send_signal(twice)
            status = await asyncio.to_thread(service._process.wait, 5)
            smtp_server.on(".", NORMAL)
            service.start()
            await merges.until(mailbox, batch)
            rows = await merges.report(mailbox, batch)

    books = merges.balance(rows, smtp_server.messages, people(60))
    assert status == 0
    assert books["sent"] + books["uncertain"] == 60
    assert 1 <= books["uncertain"] <= 10, "only what had come to its final dot"


async def stopping(service: ServiceProcess) -> None:
    """Wait until it has heard the first signal: it takes no more connections then."""
    address = urlsplit(service.url)
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection(address.hostname, address.port)
            except OSError:
                return
            writer.close()


# ---- clients that hang up (F-35)


def upload(count: int) -> tuple[bytes, bytes]:
    """A form of so many recipients: its media type, and its octets."""
    lines = "\r\n".join(["email", *people(count)])
    batch = json.dumps({"template": {"subject": "s", "body": "x"}})
    body = (
        f'--b\r\nContent-Disposition: form-data; name="batch"\r\n'
        f"Content-Type: application/json\r\n\r\n{batch}\r\n"
        f'--b\r\nContent-Disposition: form-data; name="recipients"; filename="p.csv"\r\n'
        f"Content-Type: text/csv\r\n\r\n{lines}\r\n--b--\r\n"
    )
    return b"multipart/form-data; boundary=b", body.encode()


async def hang_up_after(mailbox: Mailbox, media: bytes, body: bytes, octets: int) -> None:
    """Post a batch with the key ``once``, and be gone after so many octets of its body."""
    address = urlsplit(str(mailbox.client.base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = [
        f"POST {BATCHES} HTTP/1.1",
        f"Host: {address.netloc}",
        f"Authorization: {mailbox.client.headers['Authorization']}",
        "Idempotency-Key: once",
        f"Content-Type: {media.decode()}",
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body[:octets])
    await writer.drain()
    writer.transport.abort() if octets < len(body) else writer.close()
    del reader


async def post_again(mailbox: Mailbox, media: bytes, body: bytes) -> httpx.Response:
    """The same request, until the key is not in use any more."""
    headers = {"Idempotency-Key": "once", "Content-Type": media.decode()}
    async with asyncio.timeout(20):
        while True:
            response = await mailbox.client.post(BATCHES, content=body, headers=headers)
            if response.status_code != 409:
                return response


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
async def test_a_client_that_hangs_up_while_it_uploads_leaves_nothing(
    scripted: Mailbox, environ: dict[str, str], smtp_server: ScriptedSmtp, share: float
) -> None:
    media, body = upload(100_000)
    spool = Path(environ["DB_PATH"]).parent / "spool"

    await hang_up_after(scripted, media, body, int(len(body) * share))
    media, small = upload(5)
    again = await post_again(scripted, media, small)
    await merges.until(scripted, again.json())

    assert again.status_code == 202, "the key is stuck, or knows a request that never was"
    assert [each["id"] for each in await accepted_batches(scripted)] == [again.json()["id"]]
    assert not list(spool.iterdir())
    assert len(smtp_server.messages) == 5


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("count", [5, 20_000])
async def test_a_client_that_hangs_up_after_its_request_has_one_batch_and_a_key_that_tells_of_it(
    scripted: Mailbox,
    environ: dict[str, str],
    smtp_server: ScriptedSmtp,
    form: str,
    count: int,
) -> None:
    """Or none, and a key that is free, where it was gone before anything was stored: never half of one, or two."""
    media, body = upload(count)
    if form == "json":
        late = {"send_at": next_month()} if count > 5 else {}
        media, body = b"application/json", json.dumps(merges.merge(count, **late)).encode()
    elif count > 5:
        late_too = f'{{"send_at": "{next_month()}", "template"'
        body = body.replace(b'{"template"', late_too.encode())
    spool = Path(environ["DB_PATH"]).parent / "spool"

    await hang_up_after(scripted, media, body, len(body))
    again = await post_again(scripted, media, body)

    assert again.status_code == 202
    [batch] = await accepted_batches(scripted)
    assert batch["id"] == again.json()["id"]
    assert batch["counts"]["total"] == count
    if count == 5:
        await merges.until(scripted, batch)
        rows = await merges.report(scripted, batch)
        assert merges.balance(rows, smtp_server.messages, people(5)) == {"sent": 5}
    assert not list(spool.iterdir())


# ---- too many at once (F-36)


async def test_of_too_many_at_once_some_are_told_to_come_back_and_all_others_are_sent(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    count, rows_each = 120, 10
    limits = httpx.Limits(max_connections=None)
    media, _ = upload(0)

    def asked(number: int) -> bytes:
        _, body = upload(rows_each)
        return body.replace(b"\r\nr", f"\r\nb{number}-r".encode())

    async with httpx.AsyncClient(
        base_url=scripted.client.base_url,
        headers=scripted.client.headers,
        limits=limits,
        timeout=60,
        trust_env=False,
    ) as crowd:
        headers = {"Content-Type": media.decode()}
        posts = [
            crowd.post(BATCHES, content=asked(number), headers=headers) for number in range(count)
        ]
        posts += [crowd.post(BATCHES, json=merges.merge(1, name="j")) for _ in range(30)]
        responses = await asyncio.gather(*posts)
    afterwards = await scripted.client.post(BATCHES, content=asked(999), headers=headers)
    accepted = [each.json() for each in (*responses, afterwards) if each.status_code == 202]
    for batch in accepted:
        await merges.until(scripted, batch)

    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) <= {202, 429, 503}, statuses
    assert statuses[202] >= 1
    assert all(
        int(each.headers["retry-after"]) > 0 for each in responses if each.status_code != 202
    )
    assert afterwards.status_code == 202, "it has not recovered"
    assert {each["id"] for each in await accepted_batches(scripted)} == {
        each["id"] for each in accepted
    }
    copies = Counter(to for message in smtp_server.messages for to in message.recipients)
    assert sum(copies.values()) == sum(batch["counts"]["queued"] for batch in accepted)
    assert max(copies[to] for to in copies if to.startswith("b")) == 1


# ---- defects of our own (F-40, F-41)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[BrokenQueries]:
    """The databases of services started since, whose queries can be made to fail."""
    opened: list[BrokenQueries] = []

    class Breakable:
        @classmethod
        async def open(cls, path: Path) -> BrokenQueries:
            opened.append(BrokenQueries(await DuckDbDatabase.open(path)))
            return opened[-1]

    monkeypatch.setattr("cbemail.app.DuckDbDatabase", Breakable)
    return opened


async def test_a_courier_that_fails_by_a_defect_is_told_of_and_started_again(
    broken: list[BrokenQueries], scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    ready = (await scripted.get("/readyz")).status_code
    broken[-1].fails["find_due_batch_messages"] = 3

    batch = await merges.started(scripted, merges.merge(20))
    async with asyncio.timeout(10):
        while (told := await scripted.get("/readyz")).status_code == 200:
            pass
    await merges.until(scripted, batch)
    async with asyncio.timeout(10):
        while (await scripted.get("/readyz")).status_code != 200:
            pass
    rows = await merges.report(scripted, batch)

    assert ready == 200
    assert (told.status_code, told.json()["outbox"]) == (503, "restarting")
    assert merges.balance(rows, smtp_server.messages, people(20)) == {"sent": 20}


async def test_a_message_that_is_damaged_on_disk_fails_and_the_queue_moves_on(
    broken: list[BrokenQueries], scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    messages = [{"to": to, "subject": "s", "body": f"for {to}"} for to in people(40)]
    batch = await merges.started(scripted, {"messages": messages})
    gate.let(1)
    await merges.until_counts(scripted, batch, lambda b: b["counts"]["sent"] == 1)
    broken[-1]._database._connection.execute(
        "update batch_content set sealed = 'not what it was'::blob where number = 33"
    )

    gate.open()
    await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)

    books = merges.balance(rows, smtp_server.messages, people(40))
    assert books == {"sent": 39, "failed": 1}
    [failed] = [row for row in rows if row["state"] == "failed"]
    assert (failed["to"], failed["attempts"]) == ("r33@example.org", 0)
