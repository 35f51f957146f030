"""Writing a store anew: the same rows in another file, or the store as it was."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from cbemail.store import files
from cbemail.store.compaction import compact
from cbemail.store.database import StoreUnusable
from cbemail.store.duckdb_database import DuckDbDatabase

CANARY = b"a value that was replaced"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store, whose file still has the old value of a row, and more than one block."""
    path = tmp_path / "db" / "it's a store.duckdb"
    open_and_close(path)
    with duckdb.connect(path) as connection:
        connection.execute(
            "insert into batch_content select i, 0, 0, $canary from range(20000) as rows(i)",
            {"canary": CANARY},
        )
        connection.execute("checkpoint")
        connection.execute("update batch_content set sealed = encode('new') where batch % 2 = 0")
    return path


def open_and_close(path: Path) -> None:
    async def both() -> None:
        await (await DuckDbDatabase.open(path)).close()

    asyncio.run(both())


@contextmanager
def no_room_past(octets: int) -> Iterator[None]:
    """No file can grow past so many octets."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def rows(path: Path) -> list[tuple[object, ...]]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute("select * from batch_content order by batch").fetchall()


def left_over(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")


def test_the_rows_stay_and_what_they_held_before_goes(path: Path) -> None:
    with duckdb.connect(path) as connection:
        connection.execute("update batch_content set sealed = encode('new')")
    before = rows(path)
    assert CANARY in path.read_bytes()

    compact(path)

    assert rows(path) == before
    assert CANARY not in path.read_bytes()
    assert left_over(path) == [path.name]
    assert path.stat().st_mode & 0o777 == files.PRIVATE_FILE


def test_a_store_written_anew_is_opened_as_before_and_numbers_go_on(path: Path) -> None:
    take_number = "insert into batch_event select nextval('batch_number'), '' returning sequence"
    keys = "select table_name from duckdb_constraints() where constraint_type = 'PRIMARY KEY'"
    with duckdb.connect(path) as connection:
        connection.execute(take_number)
        tables = connection.execute(keys).fetchall()

    compact(path)

    open_and_close(path)
    with duckdb.connect(path) as connection:
        assert connection.execute(take_number).fetchone() == (2,)
        assert sorted(connection.execute(keys).fetchall()) == sorted(tables)


def test_without_room_for_the_copy_the_store_is_as_it_was(path: Path) -> None:
    before = path.read_bytes()

    with no_room_past(len(before) // 4), pytest.raises(StoreUnusable, match="is the disk full"):
        compact(path)

    assert path.read_bytes() == before


def test_what_an_earlier_attempt_left_is_in_nobodys_way(path: Path) -> None:
    before = rows(path)
    path.with_name(path.name + ".new").write_bytes(b"half a copy")

    compact(path)

    assert rows(path) == before
    assert left_over(path) == [path.name]


def test_a_store_in_use_is_left_alone(path: Path) -> None:
    with asyncio.Runner() as runner:
        database = runner.run(DuckDbDatabase.open(path))

        with pytest.raises(StoreUnusable, match="is using the store"):
            compact(path)

        runner.run(database.close())
