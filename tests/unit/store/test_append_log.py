"""The log for the event loop: one entry after the other, a disk that is full or fails, the end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cbemail.errors import Overloaded
from cbemail.store.append_log import AppendLog
from cbemail.store.database import Entry
from cbemail.store.log_file import LogFile, end_of
from tests.unit.store.test_duckdb_database import failing_disk
from tests.unit.store.test_event_journal import settle
from tests.unit.store.test_log_file import NAME, no_room_past, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb.events"


@pytest.fixture
async def log(path: Path) -> AsyncIterator[AppendLog]:
    opened = AppendLog(
        LogFile.create(path, NAME),
        asyncio.get_running_loop(),
        full=lambda: Overloaded("It is full.", retry_after=5),
        fail=lambda _: Overloaded("It has failed.", retry_after=5),
        closed=lambda: Overloaded("It is closed.", retry_after=5),
    )
    yield opened
    with suppress(RuntimeError):  # a test may have closed it
        (await opened.close()).close()


@contextmanager
def slow(log: AppendLog) -> Iterator[None]:
    """While the block runs, nothing is written; then all of it is."""
    go_on = threading.Event()
    holding = log._thread.submit(go_on.wait, 60)
    try:
        yield
    finally:
        go_on.set()
        holding.result()


def entry(number: int, octets: int = 3) -> Entry:
    return Entry(number, bytes(octets))


async def test_appends_at_once_are_on_disk_in_the_order_they_were_asked_for(
    log: AppendLog, path: Path
) -> None:
    entries = [entry(number) for number in range(1, 101)]

    await asyncio.gather(*(log.append(each) for each in entries))

    assert await log.entries(0) == entries
    assert read(path) == entries


async def test_an_append_is_done_no_sooner_than_it_is_on_disk(log: AppendLog, path: Path) -> None:
    with slow(log):
        appending = log.append(entry(1))
        await settle()
        told = appending.done()
    await appending

    assert not told
    assert read(path) == [entry(1)]


async def test_what_is_appended_after_a_clear_stays_though_the_clear_is_not_done_yet(
    log: AppendLog, path: Path
) -> None:
    await log.append(entry(1))

    with slow(log):
        log.clear()
        appending = log.append(entry(2))
    await appending

    assert read(path, folded=1) == [entry(2)]


async def test_an_entry_without_room_fails_its_own_caller_only(log: AppendLog, path: Path) -> None:
    with no_room_past(1000):
        outcomes = await asyncio.gather(
            log.append(entry(1)),
            log.append(entry(2, octets=1000)),
            log.append(entry(3)),
            return_exceptions=True,
        )

    assert [str(each) for each in outcomes] == ["None", "It is full.", "None"]
    assert read(path) == [entry(1), entry(3)]


async def test_after_a_sync_that_failed_nothing_is_taken_though_the_disk_were_well_again(
    log: AppendLog, path: Path
) -> None:
    """The kernel may have dropped what it could not write, and calls the next sync a success."""
    await log.append(entry(1))

    with failing_disk(path, under=lambda file: file):
        failed = await asyncio.gather(log.append(entry(2)), return_exceptions=True)
    log._file.close()
    log._file = LogFile.open(path, end_of(path, NAME, folded=0))
    afterwards = await asyncio.gather(log.append(entry(3)), return_exceptions=True)

    assert [str(each) for each in failed + afterwards] == ["It has failed."] * 2
    assert read(path) == [entry(1)]


async def test_a_close_finishes_what_was_asked_before_and_takes_nothing_afterwards(
    log: AppendLog, path: Path
) -> None:
    with slow(log):
        appending = log.append(entry(1))
        closing = asyncio.create_task(log.close())
        await settle()
        with pytest.raises(Overloaded, match=r"It is closed\."):
            log.append(entry(2))
    await appending
    (await closing).close()
    log.clear()  # by a fold that comes late

    assert read(path) == [entry(1)]
