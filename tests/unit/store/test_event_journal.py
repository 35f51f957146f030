"""What becomes of messages, in a journal first and in their rows later: nobody may see the difference."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import duckdb
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from cbemail.errors import Overloaded
from cbemail.store.batch_records import EARLIER_TRY, MessageEvent
from cbemail.store.batches import BatchRepository
from cbemail.store.database import Database, Row, StatementFailed
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.event_journal import EventJournal
from cbemail.store.files import log_of
from cbemail.store.records import SendState
from cbemail.store.repository import Repository
from tests.contract.test_batches import (
    MINUTE,
    NOW,
    add_batch,
    deferred,
    intent,
    not_folded,
    record,
    row,
    sent,
)
from tests.contract.test_repository import session, token
from tests.unit.store.test_duckdb_database import full_disk

BIG = "x" * 100_000  # more than a disk has room for that `full_disk` has filled


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
async def batch(database: DuckDbDatabase) -> int:
    """A batch of five rows that wait to be sent."""
    return await add_batch(BatchRepository(database), 5)


@pytest.fixture
def journal(database: DuckDbDatabase) -> EventJournal:
    return EventJournal(database)


@contextmanager
def slow_disk(database: DuckDbDatabase) -> Iterator[None]:
    """While the block runs, no write comes to its end; then all of them do. Reads go on."""
    go_on = threading.Event()
    writers = (database._writer, database.log._thread)
    holding = [writer.submit(go_on.wait, 60) for writer in writers]
    try:
        yield
    finally:
        go_on.set()
        for each in holding:
            each.result()


async def settle() -> None:
    for _ in range(20):
        await checkpoint()


async def cancel_under_way(task: "asyncio.Task[object]") -> None:
    """Let a call come as far as the disk, and break it off there."""
    await settle()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def rows(database: Database, batch: int) -> list[Row]:
    return await database.fetch(
        "page_batch_messages", batch=batch, state=None, after=-1, limit=10_000
    )


async def states(database: Database, batch: int) -> list[str]:
    return [each["state"] for each in await rows(database, batch)]


async def groups_on_disk(database: Database) -> int:
    return len(await not_folded(database))


# ---- a process after the other


async def test_what_was_appended_and_not_folded_is_there_in_the_next_process(
    path: Path,
) -> None:
    first = await DuckDbDatabase.open(path)
    await Repository(first).add_session(session(), token(b"first"))
    batch = await add_batch(BatchRepository(first), 3)
    journal = EventJournal(first)
    await journal.append([intent(batch, 0), intent(batch, 1)])
    await journal.append([sent(batch, 0)])
    await first.close()

    second = await DuckDbDatabase.open(path)
    await EventJournal(second).fold()

    assert await states(second, batch) == ["sent", "sending", "queued"]
    assert await groups_on_disk(second) == 0
    await second.close()


async def test_what_a_process_before_has_left_comes_before_what_this_one_says(
    database: DuckDbDatabase, batch: int
) -> None:
    before = EventJournal(database)
    for _ in range(3):
        await before.append([intent(batch, 0), intent(batch, 1)])

    now = EventJournal(database)
    await now.append([sent(batch, 0)])
    await now.fold()

    assert await states(database, batch) == ["sent", "sending", "queued", "queued", "queued"]


async def test_a_new_journal_gives_no_number_again_that_is_on_disk(
    database: DuckDbDatabase, batch: int
) -> None:
    for number in range(5):
        await EventJournal(database).append([intent(batch, number)])

    numbers = [entry.sequence for entry in await not_folded(database)]
    assert len(numbers) == len(set(numbers)) == 5


# ---- folding


async def test_a_fold_of_nothing_does_what_it_was_asked_besides(
    journal: EventJournal, batch: int
) -> None:
    chosen = {"batch": batch, "states": ["queued"], "held": [1]}

    results = await journal.fold(("count_batch_messages_to_move", chosen))

    assert results == [[{"state": "queued", "messages": 4}]]
    assert await journal.fold() == []


async def test_a_fold_brings_the_rows_up_to_date_before_what_it_is_asked_besides(
    journal: EventJournal, batch: int
) -> None:
    await journal.append([sent(batch, 0), deferred(batch, 1, NOW + MINUTE)])

    [counted] = await journal.fold(
        (
            "count_batch_messages_to_move",
            {"batch": batch, "states": ["queued", "sent", "deferred"], "held": []},
        )
    )

    assert {each["state"]: each["messages"] for each in counted} == {
        "queued": 3,
        "sent": 1,
        "deferred": 1,
    }


async def test_what_is_appended_while_a_fold_runs_is_in_the_next_one(
    database: DuckDbDatabase, journal: EventJournal, batch: int
) -> None:
    await journal.append([intent(batch, 0), intent(batch, 1)])

    with slow_disk(database):
        folding = asyncio.create_task(journal.fold())
        await settle()
        appending = asyncio.create_task(journal.append([sent(batch, 0)]))
        await settle()
    await asyncio.gather(folding, appending)
    between = await states(database, batch)
    await journal.fold()

    assert between[:2] == ["sending", "sending"]
    assert (await states(database, batch))[:2] == ["sent", "sending"]
    assert await groups_on_disk(database) == 0


async def test_of_many_folds_at_once_no_older_one_comes_after_a_newer_one(
    database: DuckDbDatabase, journal: EventJournal, batch: int
) -> None:
    async def appending() -> None:
        for attempt in range(1, 40):
            await journal.append([intent(batch, 0, attempt)])
            await journal.append([deferred(batch, 1, NOW + attempt * MINUTE)])

    async def folding() -> None:
        for _ in range(10):
            await journal.fold()

    await asyncio.gather(appending(), *(folding() for _ in range(4)))
    await journal.fold()

    first, second, *_ = await rows(database, batch)
    assert (first["state"], first["attempts"]) == ("sending", 39)
    assert second["next_attempt_at"] == NOW + 39 * MINUTE


async def test_where_events_never_cease_the_log_is_emptied_all_the_same_and_nothing_is_lost(
    database: DuckDbDatabase, batch: int
) -> None:
    [event] = [intent(batch, 0, 100)]
    octets = 20 + len(msgspec.msgpack.encode([event]))
    journal = EventJournal(database, largest_log=50 * octets)
    sizes = []

    async def appending(number: int) -> None:
        for attempt in range(1, 201):
            await journal.append([intent(batch, number, attempt)])

    async def folding(appends: "asyncio.Future[list[None]]") -> None:
        while not appends.done():
            await journal.fold()
            sizes.append(database.log.octets)

    await folding(asyncio.gather(*(appending(number) for number in range(5))))
    await journal.fold()

    assert max(sizes) < 500 * octets, "it was never emptied"
    assert [each["attempts"] for each in await rows(database, batch)] == [200] * 5
    assert await groups_on_disk(database) == 0


async def test_where_a_log_that_is_to_be_emptied_cannot_be_folded_it_goes_on_to_take_events(
    database: DuckDbDatabase, batch: int
) -> None:
    journal = EventJournal(database, largest_log=0)
    await journal.append([intent(batch, 0)])

    with pytest.raises(StatementFailed):
        await journal.fold(("add_schema_version", {"version": 1, "name": "there is one"}))
    await asyncio.wait_for(journal.append([sent(batch, 0)]), timeout=5)
    await journal.fold()

    assert (await states(database, batch))[0] == "sent"


async def test_once_all_is_folded_a_store_that_is_closed_has_no_log(path: Path) -> None:
    database = await DuckDbDatabase.open(path)
    await Repository(database).add_session(session(), token(b"first"))
    batch = await add_batch(BatchRepository(database), 1)
    journal = EventJournal(database)
    await journal.append([intent(batch, 0)])
    await journal.append([sent(batch, 0)])
    await journal.fold()

    await database.close()

    assert not log_of(path).exists()
    again = await DuckDbDatabase.open(path)
    assert await states(again, batch) == ["sent"]
    await again.close()


# ---- what an earlier version has left


@pytest.fixture
async def upgraded(path: Path) -> Path:
    """A store whose journal an earlier version kept in a table: row 1 was sent, row 0 was being sent when it died."""
    database = await DuckDbDatabase.open(path)
    await Repository(database).add_session(session(), token(b"first"))
    batch = await add_batch(BatchRepository(database), 3)
    await database.close()
    groups = [[intent(batch, 0), intent(batch, 1)], [sent(batch, 1)]]
    with duckdb.connect(path) as connection:
        for number, group in enumerate(groups, 7):
            connection.execute(
                "insert into batch_event values ($number, $events)",
                {"number": number, "events": msgspec.msgpack.encode(group)},
            )
    return path


async def test_what_an_earlier_version_has_left_comes_first_and_is_gone_after_the_fold(
    upgraded: Path,
) -> None:
    database = await DuckDbDatabase.open(upgraded)
    journal = EventJournal(database)
    [waiting] = await BatchRepository(database).load_unfinished()

    await journal.append([sent(waiting.number, 0)])
    left = await database.fetch("load_earlier_events")
    [entry] = await not_folded(database)
    await journal.fold()

    assert [group["sequence"] for group in left] == [7, 8]
    assert entry.sequence == 9
    assert await states(database, waiting.number) == ["sent", "sent", "queued"]
    assert await database.fetch("load_earlier_events") == []
    await database.close()


async def test_a_crash_before_the_first_fold_leaves_what_an_earlier_version_has_left(
    upgraded: Path,
) -> None:
    first = await DuckDbDatabase.open(upgraded)
    [waiting] = await BatchRepository(first).load_unfinished()
    await EventJournal(first).append([sent(waiting.number, 0)])
    await first.close()

    second = await DuckDbDatabase.open(upgraded)
    await EventJournal(second).fold()

    assert await states(second, waiting.number) == ["sent", "sent", "queued"]
    await second.close()


# ---- broken off


async def test_a_fold_that_fails_loses_nothing(
    database: DuckDbDatabase, journal: EventJournal, batch: int
) -> None:
    await journal.append([sent(batch, 0)])

    with pytest.raises(StatementFailed):
        await journal.fold(("add_schema_version", {"version": 1, "name": "there is one"}))
    await journal.fold()

    assert (await states(database, batch))[0] == "sent"


async def test_a_fold_that_is_broken_off_is_done_once(
    database: DuckDbDatabase, journal: EventJournal, batch: int
) -> None:
    await journal.append([sent(batch, 0), intent(batch, 1)])

    with slow_disk(database):
        await cancel_under_way(asyncio.create_task(journal.fold()))
    await journal.append([sent(batch, 1)])
    await journal.fold()

    assert (await states(database, batch))[:3] == ["sent", "sent", "queued"]
    assert await groups_on_disk(database) == 0


async def test_what_a_fold_did_besides_is_not_undone_by_the_next_one_where_it_was_broken_off(
    database: DuckDbDatabase, journal: EventJournal, batch: int
) -> None:
    """A client asks for another try of what has failed, and hangs up before it hears that this was done."""
    failed = structs.replace(sent(batch, 0), state=SendState.FAILED)
    await journal.append([failed])
    retry = {
        "batch": batch,
        "states": ["failed"],
        "held": [],
        "now": NOW,
        "earlier_try": EARLIER_TRY,
    }

    with slow_disk(database):
        await cancel_under_way(asyncio.create_task(journal.fold(("requeue_batch_messages", retry))))
    await journal.fold()

    assert (await states(database, batch))[0] == "queued"


async def test_an_append_that_is_broken_off_is_seen_by_the_next_fold_all_the_same(
    database: DuckDbDatabase, journal: EventJournal, batch: int
) -> None:
    """It was asked for, so it will be done; were it not seen now, it would come back after the next start."""
    await journal.append([intent(batch, 0)])

    with slow_disk(database):
        await cancel_under_way(asyncio.create_task(journal.append([sent(batch, 0)])))
        reading = asyncio.create_task(journal.fold())
        await settle()
    await reading
    await journal.fold()

    assert (await states(database, batch))[0] == "sent"
    assert await groups_on_disk(database) == 0


async def test_an_append_that_finds_no_room_leaves_nothing_and_the_next_one_is_kept(
    database: DuckDbDatabase, journal: EventJournal, batch: int, path: Path
) -> None:
    await journal.append([intent(batch, 0), intent(batch, 1)])
    large = structs.replace(sent(batch, 0), detail=BIG)

    with full_disk(path, room=4096), pytest.raises(Overloaded):
        await journal.append([large])
    await journal.append([sent(batch, 1)])
    await journal.fold()

    assert (await states(database, batch))[:2] == ["sending", "sent"]


async def test_many_appends_at_once_are_kept_though_one_of_them_fails(
    database: DuckDbDatabase, journal: EventJournal, batch: int, path: Path
) -> None:
    large = structs.replace(sent(batch, 4), detail=BIG)

    with full_disk(path, room=65_536):
        outcomes = await asyncio.gather(
            journal.append([sent(batch, 0)]),
            journal.append([large]),
            journal.append([sent(batch, 1)]),
            return_exceptions=True,
        )
        appended = [number for number in (0, 1) if outcomes[number * 2] is None]
    await journal.fold()

    assert isinstance(outcomes[1], Overloaded)
    assert appended == [0, 1]
    assert (await states(database, batch))[:2] == ["sent", "sent"]


# ---- the promise


def an_event(number: int, what: SendState, attempts: int, minutes: int) -> MessageEvent:
    """Any event of a row; ``batch`` is filled in later."""
    waiting = what in {SendState.QUEUED, SendState.DEFERRED}
    return MessageEvent(
        batch=0,
        row=number,
        state=what,
        attempts=attempts,
        status=450 + minutes,
        detail=f"detail {minutes}",
        next_attempt_at=NOW + timedelta(minutes=minutes) if waiting else None,
        finished_at=None if waiting else NOW + timedelta(minutes=minutes),
    )


some_events = st.lists(
    st.builds(
        an_event,
        st.integers(0, 4),
        st.sampled_from([state for state in SendState if state is not SendState.REJECTED]),
        st.integers(0, 9),
        st.integers(0, 99),
    ),
    max_size=8,
)


def applied(events: Sequence[MessageEvent]) -> dict[int, MessageEvent]:
    """What each row should be like: what the last event of it says, and nothing else."""
    return {event.row: event for event in events}


def shown(found: Row) -> MessageEvent:
    return MessageEvent(
        batch=found["batch"],
        row=found["row_number"],
        state=SendState(found["state"]),
        attempts=found["attempts"],
        status=found["status"],
        enhanced=found["enhanced"],
        detail=found["detail"],
        next_attempt_at=found["next_attempt_at"],
        finished_at=found["finished_at"],
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(some_events, st.sampled_from(["", "fold", "restart"])), max_size=6))
async def test_events_folded_in_any_groups_are_as_if_applied_one_after_the_other(
    database: DuckDbDatabase, groups: list[tuple[list[MessageEvent], str]]
) -> None:
    repository = BatchRepository(database)
    journal = EventJournal(database)
    batch_id = f"bat_{id(groups)}_{len(await database.fetch('load_unfinished_batches'))}"
    batch = await add_batch(
        repository, [row(number) for number in range(5)], record=record(batch_id)
    )
    given_: list[MessageEvent] = []

    for events, then in groups:
        mine = [structs.replace(event, batch=batch) for event in events]
        await journal.append(mine)
        given_ += mine
        if then == "restart":
            journal = EventJournal(database)
        elif then == "fold":
            await journal.fold()
    await journal.fold()

    untouched = {each: applied([]).get(each) for each in range(5)}
    expected = untouched | applied(given_)
    for found in await rows(database, batch):
        event = expected[found["row_number"]]
        if event is None:
            assert (found["state"], found["attempts"]) == ("queued", 0)
        else:
            assert shown(found) == event
    assert await groups_on_disk(database) == 0
