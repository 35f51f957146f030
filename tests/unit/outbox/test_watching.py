"""Whoever watches a batch is told until nothing more becomes of it, and is let go then, or when nothing more can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cbemail.ids import SessionId
from cbemail.outbox import watching as watching_module
from cbemail.outbox.watching import Progress, Watching
from cbemail.store.batch_records import BatchState
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.outbox.office import PATIENCE, Office, open_office
from tests.unit.outbox.test_dispatch import Held
from tests.unit.smtp.conftest import settle


@pytest.fixture
async def office(
    tmp_path: Path,
    smtp_server: ScriptedSmtp,
    imap_server: ScriptedImap,
    certificates: Certificates,
) -> AsyncIterator[Office]:
    path = tmp_path / "store.duckdb"
    async with open_office(path, smtp_server, imap_server, certificates, connections=1) as office:
        await office.dispatch.start()
        yield office


@pytest.fixture
def watching(office: Office, monkeypatch: pytest.MonkeyPatch) -> Watching:
    monkeypatch.setattr(watching_module, "PROGRESS_SECONDS", 0)
    return Watching(office.batches, office.dispatch)


@pytest.fixture
def held(smtp_server: ScriptedSmtp) -> Held:
    """What the server says to a message: nothing, until it is let go."""
    held = Held()
    smtp_server.on(".", held)
    return held


async def under_way(office: Office, smtp_server: ScriptedSmtp, messages: int) -> SessionId:
    """A batch, the first of whose messages is with the server."""
    joe = await office.session()
    await office.started(joe, messages)
    await smtp_server.heard(".")
    return joe


async def seen(watching: Watching, session_id: SessionId) -> list[Progress]:
    async with asyncio.timeout(PATIENCE):
        return [progress async for progress in watching.progress(session_id, "bat_a")]


async def test_a_cancelled_batch_is_over_when_its_last_message_has_gone(
    office: Office, watching: Watching, smtp_server: ScriptedSmtp, held: Held
) -> None:
    joe = await under_way(office, smtp_server, 5)
    watch = asyncio.create_task(seen(watching, joe))
    waiting = asyncio.create_task(watching.ended(joe, "bat_a", seconds=PATIENCE))

    cancelled = await office.steering.cancel(joe, "bat_a")
    await settle()
    waited = not waiting.done() and not watch.done()
    held.go_on.set()
    *before, last = await watch

    assert waited
    assert (cancelled.counts.queued, cancelled.counts.deferred) == (0, 0)
    assert not any(progress.over for progress in before)
    assert last.over
    assert (last.batch.counts.sent, last.batch.counts.cancelled) == (1, 4)
    assert await waiting == last
    assert await watching.look(joe, "bat_a") == last


async def test_a_session_that_ends_lets_its_watchers_go_though_a_message_is_under_way(
    office: Office, watching: Watching, smtp_server: ScriptedSmtp, held: Held
) -> None:
    joe = await under_way(office, smtp_server, 5)
    watch = asyncio.create_task(seen(watching, joe))
    await settle()

    await office.sessions.end(joe)
    *_, last = await watch

    assert last.over
    assert last.batch.state is BatchState.CANCELLED
    assert not held.go_on.is_set()
    held.go_on.set()


async def test_a_service_that_stops_lets_watchers_go_and_does_not_say_that_it_is_over(
    office: Office, watching: Watching, smtp_server: ScriptedSmtp, held: Held
) -> None:
    joe = await under_way(office, smtp_server, 5)
    await office.steering.cancel(joe, "bat_a")
    watch = asyncio.create_task(seen(watching, joe))
    await settle()

    office.dispatch.begin_drain()
    *_, last = await watch
    held.go_on.set()

    assert not last.over
