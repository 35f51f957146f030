"""The file of cached values: bounded, private, and never a reason for anything else to fail."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cbemail.ids import SessionId
from cbemail.store import cache_file
from cbemail.store.cache_file import CachedValue, CacheFile

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
JOE, ANN = SessionId("ses_joe"), SessionId("ses_ann")
MB = 1024 * 1024
CANARY = b"what was deleted can be read in the file"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb.cache"


@pytest.fixture
async def file(path: Path) -> AsyncIterator[CacheFile]:
    file = await CacheFile.open(path, MB)
    yield file
    await file.close()


async def keep(
    file: CacheFile,
    *places: int,
    session_id: SessionId = JOE,
    at: datetime = NOW,
    sealed: bytes | None = None,
) -> None:
    """Keep at each place ``sealed``, or what is like no other."""
    values = [
        CachedValue(session_id, _octets(place), sealed or b"value %d" % place) for place in places
    ]
    await file.keep(values, at)


async def kept(file: CacheFile, *places: int, session_id: SessionId = JOE) -> list[int]:
    """Those of ``places`` that have a value."""
    found = await file.find(session_id, [_octets(place) for place in places])
    return [place for place in places if _octets(place) in found]


def _octets(place: int) -> bytes:
    return place.to_bytes(16, "big")


def octets_of(path: Path) -> bytes:
    return b"".join(each.read_bytes() for each in path.parent.iterdir())


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def make_public(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)


def size(path: Path) -> int:
    return path.stat().st_size


def damage(path: Path) -> None:
    """Write over all but the beginning, which says what the file is."""
    octets = path.read_bytes()
    path.write_bytes(octets[:8192] + os.urandom(len(octets) - 8192))


async def test_a_value_is_found_in_its_place_by_its_own_session_only(file: CacheFile) -> None:
    await keep(file, 1)

    (found,) = (await file.find(JOE, [_octets(1)])).values()

    assert found == (b"value 1", int(NOW.timestamp()))
    assert await kept(file, 2) == []
    assert await kept(file, 1, session_id=ANN) == []


async def test_a_value_takes_the_place_of_the_one_before(file: CacheFile) -> None:
    await keep(file, 1)

    await keep(file, 1, sealed=b"new", at=NOW + SECOND)

    found = await file.find(JOE, [_octets(1)])
    assert found == {_octets(1): (b"new", int(NOW.timestamp()) + 1)}


async def test_what_was_kept_is_there_when_the_file_is_opened_again(path: Path) -> None:
    first = await CacheFile.open(path, MB)
    await keep(first, 1)
    await first.close()

    second = await CacheFile.open(path, MB)

    assert await kept(second, 1) == [1]
    await second.close()


async def test_the_values_used_longest_ago_make_room_for_new_ones(file: CacheFile) -> None:
    for place in range(40):
        await keep(file, place, at=NOW + place * SECOND, sealed=os.urandom(20_000))
    await file.touch([(JOE, _octets(0))], NOW + 100 * SECOND)

    for place in range(40, 80):
        await keep(file, place, at=NOW + place * SECOND, sealed=os.urandom(20_000))

    left = await kept(file, *range(80))
    assert left[0] == 0
    assert left[1:] == list(range(left[1], 80))
    assert 35 < len(left) < 52
    assert file.octets <= MB


async def test_the_file_does_not_grow_past_its_limit_whatever_comes_and_goes(
    file: CacheFile, path: Path
) -> None:
    for place in range(60):
        await keep(file, place, at=NOW + place * SECOND, sealed=os.urandom(50_000))

    assert size(path) < 1.2 * MB


async def test_a_lower_limit_gives_the_disk_back(path: Path) -> None:
    large = await CacheFile.open(path, 4 * MB)
    await keep(large, *range(60), sealed=os.urandom(50_000))
    await large.close()
    before = size(path)

    small = await CacheFile.open(path, MB)
    await small.purge(NOW)
    await small.close()

    assert before > 2.5 * MB
    assert size(path) <= MB


async def test_values_that_nobody_used_for_long_are_deleted(file: CacheFile) -> None:
    await keep(file, *range(500))
    await keep(file, 1_000, at=NOW + 2 * SECOND)
    await file.touch([(JOE, _octets(7))], NOW + 2 * SECOND)

    await file.purge(NOW + SECOND)

    assert await kept(file, *range(500), 1_000) == [7, 1_000]


async def test_a_session_is_deleted_with_all_it_has_and_no_other_is(file: CacheFile) -> None:
    await keep(file, *range(500))
    await keep(file, 1, session_id=ANN)

    await file.forget(JOE)

    assert await kept(file, *range(500)) == []
    assert await kept(file, 1, session_id=ANN) == [1]


async def test_of_sessions_that_there_are_no_more_nothing_is_left(file: CacheFile) -> None:
    await keep(file, 1)
    await keep(file, 1, session_id=ANN)

    await file.retain({ANN})

    assert await kept(file, 1) == []
    assert await kept(file, 1, session_id=ANN) == [1]


async def test_what_is_deleted_cannot_be_read_in_the_file_any_more(path: Path) -> None:
    file = await CacheFile.open(path, MB)
    await keep(file, 1, sealed=CANARY)
    await keep(file, 2, session_id=ANN)
    assert CANARY in octets_of(path)

    await file.forget(JOE)
    await file.close()

    assert CANARY not in octets_of(path)
    assert b"value 2" in octets_of(path)


async def test_the_files_are_private_whatever_the_umask_and_a_backup_made_of_them(
    path: Path,
) -> None:
    os.umask(0o022)
    await (await CacheFile.open(path, MB)).close()
    make_public(path)
    file = await CacheFile.open(path, MB)
    await keep(file, 1)

    modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}

    assert modes == {path.name + end: 0o600 for end in ("", "-wal", "-shm")}
    await file.close()


# ---- what a disk or a file may do


async def test_on_a_disk_that_is_nearly_full_nothing_more_is_kept(
    file: CacheFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(file, 1)
    monkeypatch.setattr(cache_file, "LEAST_FREE", 1 << 60)

    await keep(file, 2)

    assert await kept(file, 1, 2) == [1]


@pytest.mark.parametrize("content", [b"no database" * 1_000, b""])
async def test_a_file_that_is_none_of_ours_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "cache", content)

    file = await CacheFile.open(path, MB)
    await keep(file, 1)

    assert await kept(file, 1) == [1]
    await file.close()


async def test_a_file_of_another_version_is_begun_anew(path: Path) -> None:
    old = await CacheFile.open(path, MB)
    await keep(old, 1)
    await old.close()
    with sqlite3.connect(path) as connection:
        connection.execute("pragma user_version = 999")
    connection.close()

    file = await CacheFile.open(path, MB)
    await keep(file, 2)

    assert await kept(file, 1, 2) == [2]
    await file.close()


async def test_a_file_found_to_be_damaged_is_begun_anew(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = await CacheFile.open(path, MB)
    await keep(whole, *range(500))
    await whole.close()
    damage(path)

    file = await CacheFile.open(path, MB)
    with caplog.at_level(logging.WARNING):
        assert await kept(file, *range(500)) == []
    await keep(file, 1)

    assert await kept(file, 1) == [1]
    assert "the message cache cannot be used: SQLITE_CORRUPT" in caplog.text
    await file.close()


async def test_where_there_can_be_no_file_nothing_is_found_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        file = await CacheFile.open(tmp_path, MB)  # a folder
        for place in range(3):
            await keep(file, place)
            await file.purge(NOW)
        await file.retain(set())

    assert await kept(file, 0, 1, 2) == []
    assert len(caplog.records) == 1
    await file.close()


async def test_once_closed_it_finds_and_keeps_nothing(path: Path) -> None:
    file = await CacheFile.open(path, MB)
    await keep(file, 1)
    await file.close()

    await keep(file, 2)

    assert await kept(file, 1, 2) == []


async def test_a_cache_that_is_removed_leaves_no_file(path: Path) -> None:
    file = await CacheFile.open(path, MB)
    await keep(file, 1)
    await file.close()
    path.with_name(path.name + "-wal").write_bytes(b"left by a process that died")

    CacheFile.remove(path)
    CacheFile.remove(path)

    assert list(path.parent.iterdir()) == []
