"""The journal of the outbox: what has happened gets to the disk, in its order, however long the disk takes."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec import structs

from cbemail.errors import Overloaded
from cbemail.outbox import journal as journal_module
from cbemail.outbox.journal import Journal
from cbemail.outbox.live import LiveBatch
from cbemail.store import files
from cbemail.store.batch_records import BatchState, MessageEvent
from cbemail.store.batches import BatchRepository
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import SendState
from cbemail.store.repository import Repository
from tests.contract.test_batches import NOW, SESSION, add_batch, intent, sent, states
from tests.contract.test_repository import session, token
from tests.unit.smtp.conftest import settle, until
from tests.unit.store.test_duckdb_database import failing_disk, full_disk
from tests.unit.store.test_event_journal import groups_on_disk, slow_disk

ROWS = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[DuckDbDatabase]:
    opened = await DuckDbDatabase.open(path)
    await Repository(opened).add_session(session(), token(b"first"))
    yield opened
    await opened.close()


@pytest.fixture
def repository(database: DuckDbDatabase) -> BatchRepository:
    return BatchRepository(database)


@pytest.fixture
async def live(repository: BatchRepository) -> LiveBatch:
    """A batch of which a courier holds every row."""
    number = await add_batch(repository, ROWS, state=BatchState.RUNNING)
    record = await repository.find_batch(SESSION, "bat_a")
    assert record is not None
    live = LiveBatch(record, {SendState.QUEUED: ROWS}, (), lambda: NOW)
    live.take(await repository.claim(number, now=NOW, held=[], limit=ROWS, suspects=3))
    return live


@pytest.fixture
async def journal(
    repository: BatchRepository, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Journal]:
    monkeypatch.setattr(journal_module, "_AGAIN_SECONDS", 0.01)
    journal = Journal(repository)
    yield journal
    await journal.flush(5)


def unwritable(live: LiveBatch, number: int) -> MessageEvent:
    """What only a defect of ours could bring about: text that is no text."""
    return structs.replace(sent(live.number, number), detail="\ud800")


# ---- on disk, then counted


async def test_what_was_posted_is_on_disk_when_its_future_is_done(
    journal: Journal, live: LiveBatch, database: DuckDbDatabase
) -> None:
    await journal.post(live, [sent(live.number, 0)])

    after_a_kill = BatchRepository(database)
    assert (await states(after_a_kill, live.number))[:2] == ["sent", "queued"]


async def test_counts_follow_the_disk_and_never_run_ahead(
    journal: Journal, live: LiveBatch, database: DuckDbDatabase
) -> None:
    with slow_disk(database):
        written = journal.post(live, [sent(live.number, 0)])
        await until(lambda: not journal._waiting)
        await settle()
        before = (written.done(), live.count(SendState.SENT), 0 in live.held)
    await written

    assert before == (False, 0, True)
    assert (live.count(SendState.SENT), 0 in live.held) == (1, False)


async def test_what_comes_while_the_disk_is_busy_goes_there_as_one(
    journal: Journal, live: LiveBatch, database: DuckDbDatabase
) -> None:
    with slow_disk(database):
        first = journal.post(live, [intent(live.number, 0)])
        await until(lambda: not journal._waiting)
        rest = [journal.post(live, [intent(live.number, number)]) for number in range(1, ROWS)]
    await asyncio.gather(first, *rest)

    assert await groups_on_disk(database) == 2


async def test_nothing_to_write_is_written_at_once(journal: Journal, live: LiveBatch) -> None:
    assert journal.post(live, []).done()


# ---- a disk that takes nothing for a while


async def test_outcomes_survive_a_disk_that_is_full_for_a_while(
    journal: Journal,
    live: LiveBatch,
    repository: BatchRepository,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with full_disk(path, room=0, beyond=files.log_of):
        waiting = [journal.post(live, [sent(live.number, number)]) for number in range(ROWS)]
        await until(lambda: caplog.text.count("cannot be written just now: overloaded") >= 3)
        told = [each.done() for each in waiting]
        counted = live.count(SendState.SENT)
    await asyncio.gather(*waiting)

    assert not any(told)
    assert counted == 0
    assert await states(repository, live.number) == ["sent"] * ROWS
    assert live.count(SendState.SENT) == ROWS


async def test_past_a_full_disk_what_was_posted_last_still_counts(
    journal: Journal,
    live: LiveBatch,
    repository: BatchRepository,
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    order: list[int] = []

    with full_disk(path, room=0, beyond=files.log_of):
        first = journal.post(live, [intent(live.number, number) for number in range(ROWS)])
        await until(lambda: "cannot be written" in caplog.text)
        second = journal.post(live, [sent(live.number, number) for number in range(ROWS)])
        first.add_done_callback(lambda _: order.append(1))
        second.add_done_callback(lambda _: order.append(2))
        await settle()
    await asyncio.gather(first, second)
    await settle()

    assert order == [1, 2]
    assert await states(repository, live.number) == ["sent"] * ROWS


async def test_a_row_is_never_seen_in_an_older_state_than_before(
    journal: Journal, live: LiveBatch, repository: BatchRepository
) -> None:
    """However the groups fall: intents and outcomes of many rows, with somebody reading all the time."""
    rank = {SendState.QUEUED: 0, SendState.SENDING: 1, SendState.SENT: 2}

    async def ranks() -> list[int]:
        return [rank[state] for state in await states(repository, live.number)]

    async def send(number: int) -> None:
        await journal.post(live, [intent(live.number, number)])
        await journal.post(live, [sent(live.number, number)])

    async def read() -> list[list[int]]:
        return [await ranks() for _ in range(10)]

    reading = asyncio.create_task(read())
    await asyncio.gather(*(send(number) for number in range(ROWS)))
    readings = await reading
    readings.append(await ranks())
    assert readings[-1] == [2] * ROWS
    for before, after in pairwise(readings):
        assert all(old <= new for old, new in zip(before, after, strict=True))


# ---- those who wait


async def test_who_stops_waiting_harms_nobody_and_takes_nothing_back(
    journal: Journal, live: LiveBatch, database: DuckDbDatabase, repository: BatchRepository
) -> None:
    async def wait_for(number: int) -> None:
        await journal.post(live, [sent(live.number, number)])

    with slow_disk(database):
        waiting = [asyncio.create_task(wait_for(number)) for number in range(ROWS)]
        await settle()
        for task in waiting[::2]:
            task.cancel()
        await settle()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert [outcome is None for outcome in outcomes] == [False, True] * (ROWS // 2)
    await journal.flush(5)
    assert await states(repository, live.number) == ["sent"] * ROWS
    assert live.count(SendState.SENT) == ROWS


async def test_flush_waits_until_all_is_on_disk(
    journal: Journal, live: LiveBatch, repository: BatchRepository
) -> None:
    for number in range(ROWS):
        journal.post(live, [sent(live.number, number)])

    await journal.flush(5)

    assert live.count(SendState.SENT) == ROWS
    assert await states(repository, live.number) == ["sent"] * ROWS


async def test_flush_gives_up_in_time_and_says_so(
    journal: Journal,
    live: LiveBatch,
    database: DuckDbDatabase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with slow_disk(database):
        journal.post(live, [sent(live.number, 0)])
        await until(lambda: not journal._waiting)
        journal.post(live, [sent(live.number, 1), sent(live.number, 2)])

        await journal.flush(0.05)

    assert "3 events of messages could not be stored" in caplog.text


async def test_a_journal_with_nothing_to_do_is_flushed_at_once(journal: Journal) -> None:
    async with asyncio.timeout(1):
        await journal.flush(60)


async def test_what_a_failed_store_will_never_take_is_given_up_at_once(
    journal: Journal, live: LiveBatch, database: DuckDbDatabase, path: Path
) -> None:
    with failing_disk(path, under=files.log_of):
        first = journal.post(live, [sent(live.number, 0)])
        second = journal.post(live, [sent(live.number, 1)])
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        async with asyncio.timeout(1):
            await journal.flush(60)

    assert [type(outcome) for outcome in outcomes] == [Overloaded] * 2
    assert live.count(SendState.SENT) == 0
    assert database.failed.is_set()


# ---- a defect of ours


async def test_who_waits_hears_of_a_defect_and_the_journal_goes_on(
    journal: Journal, live: LiveBatch, repository: BatchRepository
) -> None:
    with pytest.raises(UnicodeEncodeError):
        await journal.post(live, [unwritable(live, 0)])
    await settle()
    await journal.post(live, [sent(live.number, 1)])

    assert (await states(repository, live.number))[:2] == ["queued", "sent"]
