"""The cache below memory, over a real store and file: what outlives a restart, and what nobody may read."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from msgspec import Struct, structs

from cbemail.ids import SessionId
from cbemail.mailbox.cache import Cache
from cbemail.mailbox.cache_key import Name, Shape
from cbemail.mailbox.stored_cache import QUEUE_OCTETS, TOUCH_SECONDS, StoredCache
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.vault import Vault
from cbemail.store.cache_file import CacheFile
from cbemail.store.cache_keys import CacheKeys
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.repository import Repository
from tests.contract.test_repository import session, token

JOE, ANN = SessionId("ses_a"), SessionId("ses_b")
CANARY = "the words of a letter"
SECRET = "only-for-tests-0123456789abcdefghijklmnop"
MB = 1024 * 1024
KEPT = timedelta(hours=168)


class Letter(Struct, frozen=True):
    text: str


class House:
    """What a process has open: a store with two sessions, and the cache beside it."""

    def __init__(self, database: DuckDbDatabase, file: CacheFile, secret_key: str) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
        self.database = database
        self.file = file
        self.repository = Repository(database)
        self.cache = StoredCache(
            file, CacheKeys(database), Vault(KeyRing([secret_key])), lambda: self.now, kept=KEPT
        )

    async def close(self) -> None:
        await self.file.close()
        await self.database.close()

    def put(self, name: Name, text: str = CANARY, session_id: SessionId = JOE) -> None:
        self.cache.put(session_id, LETTERS, name, LETTERS.pack(Letter(text)))

    async def texts(self, *names: Name, session_id: SessionId = JOE) -> dict[Name, str]:
        found = await self.cache.find(session_id, LETTERS, names)
        return {name: letter.text for name, (letter, _) in found.items()}


LETTERS = Shape("letter", Letter)
ONE: Name = ("INBOX", 1)
TWO: Name = ("INBOX", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
async def house(folder: Path) -> AsyncIterator[House]:
    async with opened(folder) as house:
        for name in (JOE, ANN):
            record = structs.replace(session(), id=name)
            refresh = structs.replace(token(name.encode()), session_id=name)
            await house.repository.add_session(record, refresh)
        yield house


@asynccontextmanager
async def opened(folder: Path, secret_key: str = SECRET) -> AsyncIterator[House]:
    database = await DuckDbDatabase.open(folder / "store.duckdb")
    file = await CacheFile.open(folder / "store.duckdb.cache", MB)
    house = House(database, file, secret_key)
    yield house
    await house.close()


def tamper(folder: Path, statement: str) -> int:
    """Change the file behind the cache's back; says how many rows."""
    connection = sqlite3.connect(folder / "store.duckdb.cache")
    with connection:
        changed = connection.execute(statement).rowcount
    connection.close()
    return changed


def octets_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


def rows(folder: Path) -> int:
    connection = sqlite3.connect(folder / "store.duckdb.cache")
    (count,) = connection.execute("select count(*) from value").fetchone()
    connection.close()
    return int(count)


async def test_a_value_is_found_by_its_own_session_only(house: House) -> None:
    house.put(ONE)
    house.put(ONE, "hers", ANN)

    await house.cache.flush()

    assert await house.texts(ONE, TWO) == {ONE: CANARY}
    assert await house.texts(ONE, session_id=ANN) == {ONE: "hers"}


async def test_what_was_kept_is_known_after_a_restart(folder: Path, house: House) -> None:
    house.put(ONE)
    await house.cache.flush()
    await house.close()

    async with opened(folder) as restarted:
        assert await restarted.texts(ONE) == {ONE: CANARY}


async def test_no_file_tells_what_is_in_it(folder: Path, house: House) -> None:
    name: Name = ("Letters of Ann", 1)
    house.put(name)
    await house.cache.flush()

    octets = octets_in(folder)

    assert await house.texts(name) == {name: CANARY}
    assert CANARY.encode() not in octets
    assert b"Letters of Ann" not in octets
    assert JOE.encode() in octets, "or nothing was looked at"


# ---- what is a miss


async def test_a_damaged_value_is_not_there(folder: Path, house: House) -> None:
    house.put(ONE)
    await house.cache.flush()

    assert tamper(folder, "update value set sealed = zeroblob(200)") == 1

    assert await house.texts(ONE) == {}


async def test_a_value_put_in_the_place_of_another_is_not_there(folder: Path, house: House) -> None:
    house.put(ONE, "one")
    house.put(TWO, "two")
    await house.cache.flush()

    of_two = "(select sealed from value where id = 2)"
    assert tamper(folder, f"update value set sealed = {of_two} where id = 1") == 1

    assert await house.texts(ONE, TWO) == {TWO: "two"}


async def test_a_value_of_another_session_is_not_there_either(folder: Path, house: House) -> None:
    house.put(ONE)
    await house.cache.flush()
    house.put(ONE, "hers", ANN)
    await house.cache.flush()

    tamper(folder, f"delete from value where session_id = '{ANN}'")
    assert tamper(folder, f"update value set session_id = '{ANN}'") == 1

    assert await house.texts(ONE, session_id=ANN) == {}


async def test_what_a_value_of_another_shape_was_is_not_read_as_this_one(house: House) -> None:
    house.put(ONE)
    await house.cache.flush()

    class Letter(Struct, frozen=True):
        text: str
        unread: bool = False

    assert await house.cache.find(JOE, Shape("letter", Letter), [ONE]) == {}


async def test_under_another_secret_key_nothing_is_there_and_more_can_be_kept(
    folder: Path, house: House
) -> None:
    house.put(ONE)
    await house.cache.flush()
    await house.close()

    async with opened(folder, "another-secret-key-0123456789abcdefghij") as rekeyed:
        before = await rekeyed.texts(ONE)
        rekeyed.put(TWO)
        await rekeyed.cache.flush()

        assert before == {}
        assert await rekeyed.texts(ONE, TWO) == {TWO: CANARY}


async def test_a_value_that_cannot_be_written_keeps_no_other_from_it(house: House) -> None:
    cache = Cache(LETTERS, MB, overhead=100, behind=house.cache)
    cache.put(JOE, ONE, Letter("half a character: \ud800"))
    cache.put(JOE, TWO, Letter(CANARY))

    await house.cache.flush()

    assert await house.texts(ONE, TWO) == {TWO: CANARY}


async def test_a_store_that_fails_is_a_miss_and_no_error(house: House) -> None:
    house.put(ONE)
    await house.cache.flush()
    await house.database.close()

    house.put(ONE, "hers", ANN)
    await house.cache.flush()
    await house.cache.tidy()

    assert await house.texts(ONE, session_id=ANN) == {}
    assert await house.texts(ONE) == {ONE: CANARY}


# ---- sessions that end


async def test_a_session_that_ended_leaves_neither_key_nor_values(
    folder: Path, house: House
) -> None:
    house.put(ONE)
    house.put(ONE, "hers", ANN)
    await house.cache.flush()

    await house.repository.delete_session(JOE)
    house.cache.forget(JOE)
    await house.cache.flush()

    assert await house.texts(ONE) == {}
    assert await house.texts(ONE, session_id=ANN) == {ONE: "hers"}
    assert rows(folder) == 1
    await house.close()
    with duckdb.connect(folder / "store.duckdb") as store:
        assert store.execute("select session_id from cache_key").fetchall() == [(ANN,)]


async def test_what_comes_after_the_end_of_its_session_is_not_kept(
    folder: Path, house: House
) -> None:
    house.put(ONE)
    await house.cache.flush()
    await house.repository.delete_session(JOE)

    house.put(TWO)  # a read that was under way
    house.cache.forget(JOE)
    house.put(("INBOX", 3))
    await house.cache.flush()

    assert rows(folder) == 0


async def test_what_a_process_that_died_left_of_ended_sessions_is_deleted(
    folder: Path, house: House
) -> None:
    house.put(ONE)
    house.put(ONE, "hers", ANN)
    await house.cache.flush()
    await house.repository.delete_session(JOE)

    await house.cache.tidy()

    assert rows(folder) == 1
    assert await house.texts(ONE, session_id=ANN) == {ONE: "hers"}


# ---- bounds


async def test_what_waits_to_be_written_is_bounded(house: House) -> None:
    length = QUEUE_OCTETS // 4 - 100
    for uid in range(6):
        house.put(("INBOX", uid), str(uid) * length)
    house.put(("INBOX", 0), "a" * length)

    await house.cache.flush()

    found = await house.texts(*(("INBOX", uid) for uid in range(6)))
    assert {uid: text[0] for (_, uid), text in found.items()} == {0: "a", 1: "1", 2: "2", 3: "3"}


async def test_what_was_read_from_disk_counts_in_memory_as_what_it_is(house: House) -> None:
    """Not as what it was compressed to: a sender can make that a thousandth."""
    house.put(ONE, "x" * MB)
    await house.cache.flush()
    cache = Cache(LETTERS, 2 * MB, overhead=100, behind=house.cache)

    await cache.recall(JOE, [ONE])

    assert cache.memory.octets > MB


async def test_what_nobody_used_for_long_is_deleted_and_what_is_used_stays(house: House) -> None:
    house.put(ONE)
    house.put(TWO)
    await house.cache.flush()
    house.now += KEPT - timedelta(hours=2)
    await house.texts(ONE)
    await house.cache.flush()

    house.now += timedelta(hours=3)
    await house.cache.tidy()

    assert await house.texts(ONE, TWO) == {ONE: CANARY}


async def test_what_memory_answers_is_in_use_on_disk_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(LETTERS, MB, overhead=100, behind=house.cache)
    cache.put(JOE, ONE, Letter(CANARY))
    cache.put(JOE, TWO, Letter(CANARY))
    await house.cache.flush()
    house.now += KEPT - timedelta(hours=2)
    moment = asyncio.get_running_loop().time() + TOUCH_SECONDS + 1
    monkeypatch.setattr("cbemail.mailbox.cache.monotonic", lambda: moment)

    assert cache.get(JOE, ONE) == Letter(CANARY)
    await house.cache.flush()
    house.now += timedelta(hours=3)
    await house.cache.tidy()

    assert await house.texts(ONE, TWO) == {ONE: CANARY}


async def test_a_write_goes_on_though_its_caller_was_cancelled(house: House) -> None:
    house.put(ONE)
    writing = asyncio.create_task(house.cache.flush())
    await asyncio.wait({writing}, timeout=0)

    writing.cancel()
    await asyncio.wait({writing})
    await house.cache.flush()

    assert writing.cancelled()
    assert await house.texts(ONE) == {ONE: CANARY}
