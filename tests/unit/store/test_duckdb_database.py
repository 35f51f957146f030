"""The DuckDB engine while it runs: groups, failures of a statement, of the disk and of ourselves, the end."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from cbemail.errors import Overloaded
from cbemail.store import files
from cbemail.store.database import StatementFailed
from cbemail.store.duckdb_database import DuckDbDatabase
from tests.unit.store.steps import FIRST

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[DuckDbDatabase]:
    database = await DuckDbDatabase.open(path, migrations=FIRST)
    yield database
    await database.close()


def version(number: int) -> dict[str, object]:
    """A row of a table with a key and little else, for want of a simpler one."""
    return {"version": number, "name": "test"}


async def add(database: DuckDbDatabase, number: int) -> None:
    await database.execute("add_schema_version", **version(number))


async def newest(database: DuckDbDatabase) -> int:
    [row] = await database.fetch("schema_version")
    return int(row["version"])


def versions_on_disk(path: Path) -> list[int]:
    with duckdb.connect(path) as connection:
        rows = connection.execute("select version from schema_version order by version").fetchall()
    return [version for (version,) in rows]


async def test_a_write_gives_no_rows_unless_it_returns_some(database: DuckDbDatabase) -> None:
    assert await database.execute("add_schema_version", **version(2)) == []
    assert await database.execute("settle_interrupted_sends", now=NOW) == []


async def test_what_was_written_is_read_at_once_by_every_reader(database: DuckDbDatabase) -> None:
    await add(database, 2)

    assert await asyncio.gather(*(newest(database) for _ in range(20))) == [2] * 20


async def test_a_statement_that_fails_fails_its_own_caller_only(database: DuckDbDatabase) -> None:
    numbers = [2, 3, 3, 4, 3, 5]

    outcomes = await asyncio.gather(
        *(add(database, number) for number in numbers), return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes] == [
        *[type(None)] * 2, StatementFailed, type(None), StatementFailed, type(None),
    ]  # fmt: skip
    assert await newest(database) == 5


async def test_statements_that_belong_together_fail_together(database: DuckDbDatabase) -> None:
    with pytest.raises(StatementFailed):
        await database.execute_all(
            [("add_schema_version", version(2)), ("add_schema_version", version(1))]
        )

    assert await newest(database) == 1


async def test_a_mistake_of_ours_names_the_query_and_tells_no_values(
    database: DuckDbDatabase,
) -> None:
    with pytest.raises(StatementFailed) as failure:
        await add(database, 1)

    assert str(failure.value) == "the query add_schema_version failed: ConstraintException"
    with pytest.raises(StatementFailed, match="find_send failed: InvalidInputException"):
        await database.fetch("find_send", id="msg_a")


async def test_a_time_without_a_zone_is_refused(database: DuckDbDatabase) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        await database.execute("settle_interrupted_sends", now=NOW.replace(tzinfo=None))


async def test_a_cancelled_callers_write_is_there_once_and_whole(database: DuckDbDatabase) -> None:
    callers = [asyncio.create_task(add(database, number)) for number in range(2, 52)]
    await add(database, 52)  # by now every one has been handed over

    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    again = await asyncio.gather(
        *(add(database, number) for number in range(2, 53)), return_exceptions=True
    )

    assert {type(outcome) for outcome in again} == {StatementFailed}, "a write was lost"


async def test_nothing_outside_the_store_can_be_read_or_loaded(
    database: DuckDbDatabase, path: Path
) -> None:
    connection = database._connection

    for statement in (
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/hostname')",
        f"attach '{path.parent}/other.duckdb'",
        "copy session to 'out.csv'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set memory_limit = '8GB'",
        "select * from NOW",
    ):
        with pytest.raises(duckdb.Error):
            connection.cursor().execute(statement)


# ---- the disk


@contextmanager
def full_disk(
    path: Path, *, room: int, beyond: Callable[[Path], Path] = files.wal_of
) -> Iterator[None]:
    """Nothing can be written more than ``room`` octets past the end of the store's write-ahead log, or of its log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = len(beyond(path).read_bytes().rstrip(b"\0"))  # the log has zeros behind its end
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_overload_and_passes(database: DuckDbDatabase, path: Path) -> None:
    await add(database, 2)

    with full_disk(path, room=4096):
        with pytest.raises(Overloaded) as failure:
            await database.execute("add_schema_version", version=9, name="x" * 100_000)
        assert await newest(database) == 2, "reads go on"

    await add(database, 3)
    assert await newest(database) == 3
    assert failure.value.retry_after
    assert str(path.parent) not in failure.value.detail
    assert not database.failed.is_set()


async def test_on_a_full_disk_what_still_fits_is_kept(database: DuckDbDatabase, path: Path) -> None:
    await add(database, 2)

    with full_disk(path, room=4096):
        outcomes = await asyncio.gather(
            database.execute("add_schema_version", version=9, name="x" * 100_000),
            add(database, 3),
            return_exceptions=True,
        )

    assert isinstance(outcomes[0], Overloaded)
    assert outcomes[1] is None
    assert await newest(database) == 3


@contextmanager
def failing_disk(path: Path, *, under: Callable[[Path], Path] = files.wal_of) -> Iterator[None]:
    """Put a pipe in the place of the store's write-ahead log, or of its log: it cannot be synced."""
    file = str(under(path))
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    [descriptor] = [int(link.name) for link in links if str(link.readlink()) == file]
    reading, writing = os.pipe()
    os.dup2(writing, descriptor)
    os.close(writing)
    try:
        yield
    finally:
        os.close(reading)


async def test_a_disk_that_fails_to_sync_ends_the_store_and_keeps_what_was_acknowledged(
    path: Path,
) -> None:
    database = await DuckDbDatabase.open(path, migrations=FIRST)
    await add(database, 2)

    with failing_disk(path):
        outcomes = await asyncio.gather(
            add(database, 3), add(database, 4), add(database, 5), return_exceptions=True
        )

    assert [type(outcome) for outcome in outcomes] == [Overloaded] * 3
    await asyncio.wait_for(database.failed.wait(), timeout=5)
    with pytest.raises(Overloaded, match="has failed"):
        await add(database, 6)
    with pytest.raises(Overloaded, match="has failed"):
        await newest(database)
    await database.close()
    assert versions_on_disk(path) == [1, 2]


# ---- the end


async def test_closing_finishes_what_was_asked_and_leaves_one_whole_file(path: Path) -> None:
    database = await DuckDbDatabase.open(path, migrations=FIRST)
    writes = [asyncio.create_task(add(database, number)) for number in range(2, 12)]
    await newest(database)  # so that all of them have been asked

    await database.close()

    assert await asyncio.gather(*writes) == [None] * 10
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "store.duckdb",
        "store.duckdb.lock",
    ]
    assert versions_on_disk(path) == list(range(1, 12))


async def test_a_closed_store_refuses_and_may_be_closed_again(path: Path) -> None:
    database = await DuckDbDatabase.open(path, migrations=FIRST)
    await database.close()

    with pytest.raises(Overloaded, match="shutting down"):
        await newest(database)
    with pytest.raises(Overloaded, match="shutting down"):
        await add(database, 2)
    await database.close()
