"""A batch's progress as it happens: Server-Sent Events, also through NGINX, and `Prefer: wait`."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.fakes.script import NORMAL
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.gate import Gate
from tests.integration.nginx import Nginx
from tests.integration.service import ServiceProcess

_PATIENCE = 30


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that NGINX's workers, who are nobody, may enter."""
    directory = Path(tempfile.mkdtemp(prefix="cbemail-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def nginx(base_url: str, open_directory: Path) -> AsyncIterator[Nginx]:
    with Nginx.running(open_directory, base_url) as nginx:
        yield nginx


@asynccontextmanager
async def before(mailbox: Mailbox, nginx: Nginx) -> AsyncIterator[Mailbox]:
    """The same session, asked through NGINX."""
    headers = mailbox.client.headers
    async with httpx.AsyncClient(
        base_url=nginx.url, headers=headers, timeout=60, trust_env=False
    ) as client:
        yield Mailbox(mailbox.user, mailbox.session_id, mailbox.refresh_token, client)


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


class Event(NamedTuple):
    """An event; or a comment, of which ``name`` is a colon."""

    name: str
    id: str
    batch: dict[str, Any]

    @property
    def sent(self) -> int:
        sent: int = self.batch["counts"]["sent"]
        return sent


class Watch:
    """A stream of events that is open."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events = self._read()

    async def next(self) -> Event:
        async with asyncio.timeout(_PATIENCE):
            return await anext(self._events)

    async def until(self, fits: Callable[[Event], bool]) -> Event:
        while not fits(event := await self.next()):
            pass
        return event

    async def rest(self) -> list[Event]:
        async with asyncio.timeout(_PATIENCE):
            return [event async for event in self._events]

    async def _read(self) -> AsyncGenerator[Event, None]:
        """As the HTML Living Standard has it, section 9.2.6, as far as we use it."""
        fields: dict[str, str] = {}
        async for line in self.response.aiter_lines():
            name, _, value = line.partition(":")
            if line.startswith(":"):
                yield Event(":", "", {})
            elif line:
                fields[name] = value.removeprefix(" ")
            elif fields:
                yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
                fields = {}


@asynccontextmanager
async def watching(
    mailbox: Mailbox, batch: dict[str, Any], last: str | None = None
) -> AsyncIterator[Watch]:
    headers = {} if last is None else {"Last-Event-ID": last}
    url = f"{merges.BATCHES}/{batch['id']}/events"
    async with mailbox.client.stream("GET", url, headers=headers) as response:
        watch = Watch(response)
        try:
            yield watch
        finally:
            await watch._events.aclose()


# ---- what is told


async def test_progress_is_told_until_it_is_done(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await merges.started(scripted, merges.merge(1_500))

    began = time.monotonic()
    async with watching(scripted, batch) as watch:
        events = await watch.rest()
        took = time.monotonic() - began

    assert watch.response.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert watch.response.headers["cache-control"] == "private, no-store"
    assert watch.response.headers["x-accel-buffering"] == "no"
    *progress, done = events
    assert {event.name for event in progress} == {"progress"}
    assert done.name == "done"
    assert [event.id for event in events] == [
        *(str(number) for number in range(1, len(events))),
        f"{len(events)}-done",
    ]
    assert done.batch == await merges.get(scripted, batch)
    assert (done.batch["state"], done.sent) == ("completed", 1_500)
    assert [event.sent for event in events] == sorted(event.sent for event in events)
    for event in events:
        counts = dict(event.batch["counts"])
        assert counts.pop("total") == sum(counts.values()) == 1_500
    assert len(events) <= 4 * took + 3


async def test_what_is_done_to_a_batch_is_told(scripted: Mailbox) -> None:
    batch = await merges.started(scripted, merges.merge(3, send_at=in_an_hour()))

    async with watching(scripted, batch) as watch:
        told = [(await watch.next()).batch]
        for what in ("pause", "resume", "cancel"):
            await merges.act(scripted, batch, what)
            told.append((await watch.next()).batch)
        rest = await watch.rest()

    assert [each["state"] for each in told] == ["scheduled", "paused", "scheduled", "cancelled"]
    assert told[1]["paused_reason"] == "requested"
    assert [event.batch["counts"]["cancelled"] for event in rest[-1:]] in ([], [3])


async def test_who_watches_sees_the_counts_of_a_cancelled_batch_at_the_end(
    scripted: Mailbox,
) -> None:
    batch = await merges.started(scripted, merges.merge(3, send_at=in_an_hour()))

    async with watching(scripted, batch) as watch:
        await watch.next()
        cancelled = (await merges.act(scripted, batch, "cancel")).json()
        *_, done = await watch.rest()

    assert done.name == "done"
    assert done.batch["counts"] == cancelled["counts"]


async def test_the_end_of_a_cancelled_batch_is_told_when_nothing_of_it_is_under_way(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(10))
    await smtp_server.heard(".", 2)

    async with watching(scripted, batch) as watch:
        await merges.act(scripted, batch, "cancel")
        first = await watch.until(lambda event: event.batch["state"] == "cancelled")
        gate.open()
        *_, done = [first, *await watch.rest()]

    calm = await merges.until_counts(scripted, batch, lambda b: not b["counts"]["sending"])
    assert done.name == "done"
    assert done.batch["counts"] == calm["counts"]


async def test_several_may_watch_and_one_that_leaves_takes_nothing_along(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(10))

    async with watching(scripted, batch) as first:
        async with watching(scripted, batch) as second:
            await second.next()
        gate.open()
        *_, done = await first.rest()

    assert (done.name, done.sent) == ("done", 10)


async def test_the_end_of_the_session_ends_its_streams(scripted: Mailbox) -> None:
    batch = await merges.started(scripted, merges.merge(3, send_at=in_an_hour()))

    async with watching(scripted, batch) as watch:
        await watch.next()
        await scripted.delete(f"/api/sessions/{scripted.session_id}")
        [last] = await watch.rest()

    assert (last.name, last.batch["state"]) == ("done", "cancelled")


# ---- where it went on


async def test_a_client_that_comes_back_is_told_how_it_is_now_under_the_next_number(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(10))
    async with watching(scripted, batch) as watch:
        seen = await watch.next()
    gate.let(2)
    await merges.until_counts(scripted, batch, lambda b: b["counts"]["sent"] == 2)

    async with watching(scripted, batch, seen.id) as watch:
        first = await watch.next()
        gate.open()
        *_, done = await watch.rest()

    assert (seen.id, first.id) == ("1", "2")
    assert first.sent == 2
    assert done.id == f"{int(done.id.removesuffix('-done'))}-done"
    assert int(done.id.removesuffix("-done")) > 2


async def test_a_client_that_was_told_the_end_is_told_to_stay_away_until_it_goes_on(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r0@", b"550 5.1.1 who?\r\n", NORMAL)
    batch = await merges.started(scripted, merges.merge(1))
    await merges.until(scripted, batch)

    async with watching(scripted, batch) as watch:
        [done] = await watch.rest()
    async with watching(scripted, batch, done.id) as watch:
        stay_away = watch.response.status_code
    gate = Gate(smtp_server)
    await merges.act(scripted, batch, "retry")
    async with watching(scripted, batch, done.id) as watch:
        again = await watch.next()
        gate.open()
        *_, last = await watch.rest()

    assert (done.id, stay_away) == ("1-done", 204)
    assert (again.name, again.id) == ("progress", "2")
    assert (last.name, last.sent) == ("done", 1)


@pytest.mark.parametrize("last", ["", "x", "-1", "1-gone", "9" * 400])
async def test_an_id_that_is_none_of_ours_is_no_id(scripted: Mailbox, last: str) -> None:
    batch = await merges.started(scripted, merges.merge(1, send_at=in_an_hour()))

    async with watching(scripted, batch, last) as watch:
        first = await watch.next()

    assert (watch.response.status_code, first.id) == (200, "1")


# ---- through NGINX


@pytest.mark.parametrize("version", ["", "proxy_http_version 1.1;"], ids=["default", "1.1"])
async def test_events_come_one_by_one_through_nginx(
    scripted: Mailbox,
    smtp_server: ScriptedSmtp,
    base_url: str,
    open_directory: Path,
    version: str,
) -> None:
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(6))

    with Nginx.running(open_directory, base_url, version) as nginx:
        async with before(scripted, nginx) as mailbox, watching(mailbox, batch) as watch:
            seen = [(await watch.next()).sent]
            for _ in range(5):
                gate.let()
                seen.append((await watch.until(lambda event: event.sent > seen[-1])).sent)
            gate.open()
            done = await watch.until(lambda event: event.name == "done")

    assert watch.response.headers["server"].startswith("nginx")
    assert seen == list(range(6)), "an event was held back"
    assert done.sent == 6


async def test_a_silent_stream_is_kept_alive_through_nginx(
    scripted: Mailbox, base_url: str, open_directory: Path
) -> None:
    batch = await merges.started(scripted, merges.merge(1, send_at=in_an_hour()))

    with Nginx.running(open_directory, base_url, "proxy_read_timeout 15s;") as nginx:
        async with before(scripted, nginx) as mailbox, watching(mailbox, batch) as watch:
            first, second = await watch.next(), await watch.next()

    assert (first.name, second.name) == ("progress", ":")


async def test_a_service_that_is_stopped_says_so_to_who_watches_or_waits(
    environ: dict[str, str],
    dovecot: Dovecot,
    smtp_server: ScriptedSmtp,
    tmp_path: Path,
    open_directory: Path,
) -> None:
    gate = Gate(smtp_server)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    with (
        ServiceProcess(tmp_path, environ) as service,
        Nginx.running(open_directory, service.url) as nginx,
    ):
        async with logged_in(service.url, account) as direct, before(direct, nginx) as mailbox:
            batch = await merges.started(mailbox, merges.merge(20))
            waiting = asyncio.create_task(
                mailbox.client.post(
                    merges.BATCHES, json=merges.merge(20), headers={"Prefer": "wait=60"}
                )
            )
            async with watching(mailbox, batch) as watch:
                await smtp_server.heard(".", 2)
                stopping = asyncio.create_task(asyncio.to_thread(service.stop))
                events = await watch.rest()
            answer = await waiting
            gate.open()
            status = await stopping
            await asyncio.to_thread(service.start)
            async with watching(mailbox, batch, events[-1].id) as watch:
                *_, done = await watch.rest()

    assert events[-1].name == "end"
    assert events[-1].batch["state"] == "running"
    assert {event.name for event in events[:-1]} <= {"progress"}
    assert answer.status_code == 202
    assert answer.json()["state"] in {"queued", "running"}
    assert status == 0
    assert (done.name, done.batch["counts"]["uncertain"], done.sent) == ("done", 0, 20)
    assert int(done.id.removesuffix("-done")) > int(events[-1].id)


# ---- waiting for the answer


async def test_a_client_that_waits_has_the_end_in_the_answer(
    scripted: Mailbox, nginx: Nginx
) -> None:
    async with before(scripted, nginx) as mailbox:
        response = await mailbox.client.post(
            merges.BATCHES, json=merges.merge(5), headers={"Prefer": "wait=30"}
        )

    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=30"
    assert response.headers["location"] == f"{merges.BATCHES}/{response.json()['id']}"
    assert (response.json()["state"], response.json()["counts"]["sent"]) == ("completed", 5)


async def test_a_client_that_waits_long_enough_is_told_how_far_it_is(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    gate.let(1)

    response = await scripted.client.post(
        merges.BATCHES, json=merges.merge(5), headers={"Prefer": "respond-async, wait=1"}
    )
    gate.open()
    done = await merges.until(scripted, response.json())

    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"
    assert (response.json()["state"], response.json()["counts"]["sent"]) == ("running", 1)
    assert done["counts"]["sent"] == 5


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=600", "wait=60"),
        ('foo; bar, WAIT = "20"; x=y', "wait=20"),
        ("wait=0", None),
        ("wait=-1", None),
        ("wait=soon", None),
        ("return=minimal", None),
    ],
)
async def test_a_wish_is_met_as_far_as_it_can_be(
    scripted: Mailbox, prefer: str, applied: str | None
) -> None:
    response = await scripted.client.post(
        merges.BATCHES, json=merges.merge(1), headers={"Prefer": prefer}
    )

    assert response.headers.get("preference-applied") == applied
    assert response.status_code == (202 if applied is None else 200)


async def test_a_client_that_waited_in_vain_asks_again_with_its_key(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    headers = {"Prefer": "wait=1", "Idempotency-Key": "patient"}

    first = await scripted.client.post(merges.BATCHES, json=merges.merge(3), headers=headers)
    gate.open()
    await merges.until(scripted, first.json())
    again = await scripted.client.post(merges.BATCHES, json=merges.merge(3), headers=headers)

    assert first.status_code == again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert len(smtp_server.messages) == 3
