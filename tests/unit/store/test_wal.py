"""Damage to the write-ahead log that DuckDB would pass over in silence."""

import random
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from cbemail.store.wal import is_damaged

ROWS = 40
WRITER = f"""
import duckdb, os, sys
connection = duckdb.connect(sys.argv[1], config={{"threads": "1"}})
connection.execute("create table t (id integer primary key, body blob)")
connection.execute("checkpoint")
for number in range({ROWS}):
    connection.execute("insert into t values ($id, $body)", {{"id": number, "body": os.urandom(300)}})
os._exit(0)  # as a kill would: the log stays
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DuckDB file whose rows are in its log only."""
    path = tmp_path_factory.mktemp("wal") / "t.duckdb"
    subprocess.run([sys.executable, "-c", WRITER, path], check=True, timeout=30)
    return path


@pytest.fixture(scope="module")
def log(database: Path) -> bytes:
    return database.with_name("t.duckdb.wal").read_bytes()


def test_a_log_that_was_cut_anywhere_is_what_a_crash_leaves(log: bytes) -> None:
    lengths = [*range(120), *range(120, len(log), 97), len(log)]

    assert [length for length in lengths if is_damaged(log[:length])] == []


@pytest.mark.parametrize(
    ("offset", "what"),
    [(0, b"\xff"), (7, b"\xff" * 64), (0, bytes(4096)), (0, b"not a log at all")],
)
def test_a_log_whose_header_was_overwritten_is_damaged(
    log: bytes, offset: int, what: bytes
) -> None:
    assert is_damaged(log[:offset] + what + log[offset + len(what) :])


def test_no_damage_behind_the_header_goes_unseen_by_both_us_and_duckdb(
    database: Path, log: bytes, tmp_path: Path
) -> None:
    chance = random.Random(7)
    # The last record apart: overwritten, it looks like one that was cut.
    offsets = [*range(49, 80), *(chance.randrange(80, len(log) - 1000) for _ in range(60))]

    unseen = [
        offset
        for offset in offsets
        if not is_damaged(damaged := log[:offset] + chance.randbytes(8) + log[offset + 8 :])
        and opens_short_of_rows(database, damaged, tmp_path / f"{offset}.duckdb")
    ]

    assert unseen == []


def opens_short_of_rows(database: Path, log: bytes, copy: Path) -> bool:
    copy.write_bytes(database.read_bytes())
    copy.with_name(copy.name + ".wal").write_bytes(log)
    try:
        with duckdb.connect(copy, config={"threads": "1"}) as connection:
            return connection.execute("select count(*) from t").fetchone() != (ROWS,)
    except duckdb.Error:
        return False
