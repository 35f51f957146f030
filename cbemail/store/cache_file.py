"""What is known of mailboxes, kept on disk to save asking for it again: sealed values by place, in a file of its own.

Beside the store and not in it, and in SQLite. A cache looks up single rows and writes all the time. With 200,000 rows
DuckDB takes some 3 ms for those of a page, and each 16 MB of writes end in a checkpoint that holds up whoever else writes
for 0.2 to 2.4 seconds; SQLite takes 0.1 ms, and this file's writes hold up nobody. A backup does without it, and what is
damaged is thrown away: whatever is not here can be asked for again.
"""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection
from typing import NamedTuple, Self, TypeVar

from cbemail.ids import SessionId
from cbemail.store.database import SQL, load_queries
from cbemail.store.files import PRIVATE_FILE

log = logging.getLogger(__name__)

T = TypeVar("T")

LEAST_FREE = 256 * 1024 * 1024  # octets of the disk; the store beside it has promises to keep
FIND_SECONDS = 0.5  # longer, and the mail server would have answered
_SLICE = 200  # rows deleted at a time: who looks something up waits for one slice at most
_ROOM = 50  # part of the limit that is made free at once, so that not every write has to

_SQL = load_queries((SQL / "cache.sql").read_text(encoding="utf-8"))
_VERSION = 1  # as `schema` says; a file of another one is begun anew
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_SETTINGS_OF_FILE = """
pragma auto_vacuum = incremental;
pragma journal_mode = wal;
"""

# What is deleted is overwritten (`secure_delete`). A commit does not wait for the disk: after a power cut the file is
# whole, and lacks the last of them.
_SETTINGS = """
pragma synchronous = normal;
pragma secure_delete = on;
pragma journal_size_limit = 4194304;
pragma cache_size = -4096;
"""


class CachedValue(NamedTuple):
    """A value, and where it is found again."""

    session_id: SessionId
    place: bytes
    sealed: bytes


class FoundValue(NamedTuple):
    sealed: bytes
    used_at: int  # seconds since 1970


class CacheFile:
    """Values in up to ``octets`` of disk; those used longest ago give way.

    Nothing here raises for what a disk or a file may do: what cannot be read is not there, and what cannot be written
    is not kept. One thread does all of it, in small pieces.
    """

    def __init__(self, path: Path, octets: int) -> None:
        self.octets = 0  # on disk, as of the last write
        self._path = path
        self._limit = octets
        self._thread = ThreadPoolExecutor(1, "cbemail-cache")
        self._connection: Connection | None = None
        self._is_failing = False
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path, octets: int) -> Self:
        """The cache at ``path``, begun anew where that is missing, damaged or of another version."""
        file = cls(path, octets)
        await file._run(file._measure, None)
        return file

    @staticmethod
    def remove(path: Path) -> None:
        """Leave nothing of the cache at ``path``, which nobody has open."""
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            file.unlink(missing_ok=True)

    async def find(self, session_id: SessionId, places: Iterable[bytes]) -> dict[bytes, FoundValue]:
        """What the session has at ``places``, by place."""

        def find(connection: Connection) -> dict[bytes, FoundValue]:
            found = {}
            for place in places:
                row = connection.execute(_SQL["find"], (session_id, place)).fetchone()
                if row is not None:
                    found[place] = FoundValue(*row)
            return found

        with suppress(TimeoutError):
            async with asyncio.timeout(FIND_SECONDS):
                return await self._run(find, {})
        return {}

    async def keep(self, values: Sequence[CachedValue], now: datetime) -> None:
        """Keep values, each in the place of what was there; what has not been used for longest makes room for them. Where
        the disk is nearly full, none is kept."""
        rows = [(*value, int(now.timestamp())) for value in values]

        def keep(connection: Connection) -> None:
            if shutil.disk_usage(self._path.parent).free >= LEAST_FREE:
                connection.executemany(_SQL["keep"], rows)

        await self._run(keep, None)
        await self._make_room()

    async def touch(self, places: Iterable[tuple[SessionId, bytes]], now: datetime) -> None:
        """Remember that these are in use."""
        rows = [(int(now.timestamp()), session_id, place) for session_id, place in places]

        def touch(connection: Connection) -> None:
            connection.executemany(_SQL["touch"], rows)

        await self._run(touch, None)

    async def purge(self, before: datetime) -> None:
        """Delete what nobody has used since; give the disk back what a lower limit no longer takes."""
        await self._delete("purge", int(before.timestamp()))
        await self._make_room()
        await self._run(self._give_back, None)

    async def forget(self, session_id: SessionId) -> None:
        """Delete all that the session has."""
        await self._delete("forget", session_id)

    async def retain(self, sessions: set[SessionId]) -> None:
        """Delete what others than these have: a process may have died before it came to that."""

        def strangers(connection: Connection) -> list[SessionId]:
            return [
                each for (each,) in connection.execute(_SQL["sessions"]) if each not in sessions
            ]

        nobody: list[SessionId] = []
        for session_id in await self._run(strangers, nobody):
            await self.forget(session_id)

    async def close(self) -> None:
        """Finish what was asked before, and let go of the file. From then on nothing is found or kept."""
        if self._is_closed:
            return
        self._is_closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    async def _delete(self, query: str, *values: object) -> None:
        def delete(connection: Connection) -> int:
            return connection.execute(_SQL[query], (*values, _SLICE)).rowcount

        while await self._run(delete, 0) == _SLICE:
            pass

    async def _make_room(self) -> None:
        while await self._run(self._evict, 0):
            pass

    async def _run(self, work: Callable[[Connection], T], otherwise: T) -> T:
        """The result of ``work``, in a transaction; ``otherwise`` where it fails."""
        if self._is_closed:
            return otherwise
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._tolerantly, work, otherwise)

    # ---- in the thread

    def _tolerantly(self, work: Callable[[Connection], T], otherwise: T) -> T:
        try:
            if self._connection is None:
                self._connection = _connect(self._path)
            with self._connection:
                result = work(self._connection)
        except (sqlite3.Error, OSError) as exc:
            self._note_failure(exc)
            return otherwise
        self._is_failing = False
        return result

    def _note_failure(self, error: sqlite3.Error | OSError) -> None:
        """Say so, once. A damaged file is of no more use, and makes place for a new one."""
        if not self._is_failing:  # by its name alone: the text may carry values
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            log.warning("the message cache cannot be used: %s", name)
        self._is_failing = True
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            self._disconnect()
            self.remove(self._path)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _measure(self, connection: Connection) -> None:
        pages = _number(connection, "page_count") - _number(connection, "freelist_count")
        self.octets = pages * _number(connection, "page_size")

    def _evict(self, connection: Connection) -> int:
        """Delete of what was used longest ago as much as is too much, and a little more; say how many rows that were."""
        self._measure(connection)
        if self.octets <= self._limit:
            return 0
        excess = self.octets - self._limit + self._limit // _ROOM
        going = []
        for row_id, octets in connection.execute(_SQL["oldest"], (_SLICE,)):
            if excess > 0:
                going.append((row_id,))
            excess -= octets
        connection.executemany(_SQL["delete"], going)
        return len(going)

    def _give_back(self, connection: Connection) -> None:
        if _number(connection, "page_count") * _number(connection, "page_size") > self._limit:
            # A script runs to its end; `execute` would stop after the first page.
            connection.executescript("pragma incremental_vacuum")
        self._measure(connection)


def _connect(path: Path) -> Connection:
    """The cache at ``path``, as this version has it."""
    path.touch()
    path.chmod(PRIVATE_FILE)  # the files beside it get the same mode
    connection = _open(path)
    try:
        if _number(connection, "user_version") != _VERSION:
            connection.close()
            CacheFile.remove(path)
            path.touch(mode=PRIVATE_FILE)
            connection = _open(path)
            connection.executescript(_SETTINGS_OF_FILE + _SQL["schema"])
        connection.executescript(_SETTINGS)
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path) -> Connection:
    return sqlite3.connect(path, timeout=FIND_SECONDS, check_same_thread=False)


def _number(connection: Connection, pragma: str) -> int:
    (number,) = connection.execute(f"pragma {pragma}").fetchone()
    return int(number)
