"""DuckDB: one file, one process, one thread that writes.

Errors of the driver end here: their texts carry paths and values, and are never shown.
"""

import asyncio
import logging
import os
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from queue import LifoQueue
from typing import Any, NamedTuple, Self

import duckdb
from duckdb import DuckDBPyConnection

from cbemail.errors import Overloaded
from cbemail.store.append_log import AppendLog
from cbemail.store.database import (
    Row,
    Statement,
    StatementFailed,
    refuse_unstorable,
    serves_many,
)
from cbemail.store.duckdb_file import QUERIES, OpenFile, let_go_of_log, open_file
from cbemail.store.group_commit import CommitStatistics, GroupCommit
from cbemail.store.log_file import LogFile
from cbemail.store.migrations import Migration, load_migrations

log = logging.getLogger(__name__)

READERS = 2  # point reads are all CPU: more threads than this only queue elsewhere (measured on two cores)
RETRY_AFTER = 5  # seconds; a full disk or a restart

# DuckDB answers a write that has no `returning` with one row: how many rows it changed, in a column of this name.
_CHANGED_ROWS = "Count"

_AS_THEY_ARE = frozenset({int, str, bytes, type(None)})  # types that the driver takes as they are


class _Bound(NamedTuple):
    """A query as the driver takes it: parsed, with values of the driver's types, in lists where it serves many."""

    name: str
    statement: duckdb.Statement
    values: dict[str, Any]


_Work = Sequence[_Bound]  # statements that must commit together
_Results = list[list[Row]]


class DuckDbDatabase:
    """The default store: a `Database` in one DuckDB file, owned by this process.

    Reads run on a few threads, each with a cursor of its own: one connection refuses two threads at once. Writes
    run on one, in groups (`GroupCommit`). One writer is not a nicety: with two, DuckDB refuses the second change
    of a row, and lets an update of a row that is being deleted vanish without a word.
    """

    def __init__(
        self,
        file: OpenFile,
        *,
        writer: ThreadPoolExecutor,
        loop: AbstractEventLoop,
    ) -> None:
        self.failed = asyncio.Event()
        self.log = AppendLog(file.log, loop, full=_no_room, fail=self._fail, closed=_shutting_down)
        self._connection = connection = file.connection
        self._lock = file.lock
        self._loop = loop
        self._broken = False  # what `failed` says, for the threads
        self._closed = False
        self._writer = writer
        self._writes: GroupCommit[_Work, _Results] = GroupCommit(
            self._commit, writer=writer, loop=loop
        )
        self._readers = ThreadPoolExecutor(READERS, "cbemail-store-read")
        self._cursors: LifoQueue[DuckDBPyConnection] = LifoQueue()
        for _ in range(READERS):
            self._cursors.put(connection.cursor())
        self._statements = {  # parsed once: a quarter of what a small write costs
            name: connection.extract_statements(sql)[0] for name, sql in QUERIES.items()
        }

    @classmethod
    async def open(cls, path: Path, *, migrations: Sequence[Migration] | None = None) -> Self:
        """Open the store at ``path``, made or brought up to date as needed, and private to its owner.

        Sets the umask of the process to 077 (`files.keep_private`).

        Raises:
            StoreUnusable: in one sentence, why the service cannot start on this file.
        """
        loop = asyncio.get_running_loop()
        writer = ThreadPoolExecutor(1, "cbemail-store-write")
        steps = migrations or load_migrations("duckdb")
        try:
            file = await loop.run_in_executor(writer, open_file, path, steps)
        except BaseException:
            writer.shutdown(wait=False)
            raise
        return cls(file, writer=writer, loop=loop)

    def statistics(self) -> CommitStatistics:
        """What its writes were since it was opened."""
        return self._writes.statistics()

    async def fetch(self, query: str, /, **values: object) -> list[Row]:
        self._refuse_unless_open()
        bound = self._bind(query, values)
        return await self._loop.run_in_executor(self._readers, self._read, bound)

    async def execute(self, query: str, /, **values: object) -> list[Row]:
        [rows] = await self.execute_all([(query, values)])
        return rows

    async def execute_all(self, statements: Sequence[Statement], /) -> list[list[Row]]:
        self._refuse_unless_open()
        return await self._writes.submit([self._bind(*statement) for statement in statements])

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writes.drained()
        file = await self.log.close()
        await self._loop.run_in_executor(self._writer, self._close_file, file)
        self._writer.shutdown()

    def _refuse_unless_open(self) -> None:
        if self._broken:
            raise _failure()
        if self._closed:
            raise _shutting_down()

    def _bind(self, query: str, values: Mapping[str, object]) -> _Bound:
        for value in values.values():
            refuse_unstorable(value)
        parameters = {name: _to_driver(value) for name, value in values.items()}
        if serves_many(query):
            parameters = {name: [value] for name, value in parameters.items()}
        return _Bound(query, self._statements[query], parameters)

    # ---- in a reader's thread

    def _read(self, bound: _Bound) -> list[Row]:
        cursor = self._cursors.get_nowait()  # there are as many as threads
        try:
            return _run(cursor, bound)
        except duckdb.Error as exc:
            raise self._translated(exc, [bound]) from exc
        finally:
            self._cursors.put(cursor)

    # ---- in the writer's thread

    def _commit(self, group: Sequence[_Work]) -> list[_Results | Exception]:
        """Run a group in one transaction; if that fails, each of its members in one of its own.

        So a statement that fails, fails its own caller only. Nothing runs twice: what comes before the second
        attempt was rolled back.
        """
        if self._broken:
            return [_failure() for _ in group]
        try:
            return list(self._transact(group))
        except duckdb.Error as exc:
            with suppress(duckdb.Error):  # a COMMIT that failed has rolled back already
                self._connection.execute("rollback")
            if len(group) == 1:
                return [self._translated(exc, group[0])]
            if _is_final(exc):
                return [self._translated(exc, work) for work in group]
        return [self._commit([work])[0] for work in group]

    def _transact(self, group: Sequence[_Work]) -> list[_Results]:
        # One statement is a transaction by itself, without two more to say so.
        if len(group) == 1 and len(group[0]) == 1:
            return [[_run(self._connection, group[0][0])]]
        self._connection.execute("begin transaction")
        results = _run_group(self._connection, group)
        self._connection.execute("commit")
        return results

    def _close_file(self, file: LogFile) -> None:
        self._readers.shutdown()
        without_log = False
        # On a full or failing disk the log and the WAL stay, and are replayed at the next start.
        with suppress(duckdb.Error, OSError):
            without_log = let_go_of_log(file, self._connection)
            self._connection.execute("checkpoint")
        while not self._cursors.empty():
            self._cursors.get_nowait().close()
        self._connection.close()
        file.close()
        if without_log:
            with suppress(OSError):  # it is empty, and in nobody's way
                file.remove()
        os.close(self._lock)

    def _fail(self, error: Exception) -> Overloaded:
        """The disk or the database can no longer be trusted. For any thread."""
        self._broken = True
        # Its first line tells of blocks and files, and of no values: those come with errors of statements.
        log.critical("%s: %s", type(error).__name__, str(error).partition("\n")[0])
        self._loop.call_soon_threadsafe(self.failed.set)
        return _failure()

    def _translated(self, error: duckdb.Error, work: _Work) -> Exception:
        """The error for the caller: whether it is the disk, the database or ourselves that failed."""
        translated: Exception
        if _is_final(error):
            translated = self._fail(error)
        elif isinstance(error, duckdb.OperationalError):
            translated = _no_room()
        else:
            names = ", ".join(bound.name for bound in work)
            translated = StatementFailed(names, type(error).__name__)
        translated.__cause__ = error
        return translated


def _no_room() -> Overloaded:
    return Overloaded("The store has no room left just now.", retry_after=RETRY_AFTER)


def _shutting_down() -> Overloaded:
    return Overloaded("The service is shutting down.", retry_after=RETRY_AFTER)


def _failure() -> Overloaded:
    return Overloaded("The store has failed; the service will restart.", retry_after=RETRY_AFTER)


def _is_final(error: duckdb.Error) -> bool:
    """Whether the open database can no longer be trusted.

    After a failed fsync the kernel may have dropped what it was to write and call the next fsync a success; DuckDB
    itself gives up after EIO only. A plain `Error` is a block or WAL record whose checksum is wrong.
    """
    return (
        isinstance(error, duckdb.FatalException | duckdb.InternalException)
        or type(error) is duckdb.Error
        or "fsync" in str(error)
    )


# ---- values and rows


def _run(connection: DuckDBPyConnection, bound: _Bound) -> list[Row]:
    cursor = connection.execute(bound.statement, bound.values)
    names = [column[0] for column in cursor.description]
    rows = cursor.fetchall()
    if names == [_CHANGED_ROWS]:
        return []
    return [
        {name: _from_driver(value) for name, value in zip(names, row, strict=True)} for row in rows
    ]


def _run_group(connection: DuckDBPyConnection, group: Sequence[_Work]) -> list[_Results]:
    """The results of every piece of work; a statement that serves many runs once for all who ask for it.

    So the order within a group is not kept, and need not be: its callers do not wait for each other. Only those that
    name the same row take turns.
    """
    results: list[_Results] = [[] for _ in group]
    asked: Counter[tuple[str, str]] = Counter()  # statement and row -> turns taken
    # Statement and turn -> row -> its piece of work.
    rounds: dict[tuple[str, int], dict[str, int]] = {}
    for index, work in enumerate(group):
        if len(work) > 1 or not serves_many(work[0].name):
            results[index] = [_run(connection, bound) for bound in work]
            continue
        query, [row_id] = work[0].name, work[0].values["id"]
        rounds.setdefault((query, asked[query, row_id]), {})[row_id] = index
        asked[query, row_id] += 1
    for askers in rounds.values():
        for index in askers.values():
            results[index] = [[]]
        for row in _run(connection, _merged([group[index][0] for index in askers.values()])):
            results[askers[row["id"]]][0].append(row)
    return results


def _merged(alike: Sequence[_Bound]) -> _Bound:
    name, statement, values = alike[0]
    return _Bound(
        name, statement, {key: [bound.values[key][0] for bound in alike] for key in values}
    )


def _to_driver(value: object) -> object:
    """Times become naive UTC, since DuckDB's aware type would need one more library to be read back."""
    match value:
        case datetime():
            if value.tzinfo is None:
                raise ValueError("a time without a zone cannot be stored")
            return value.astimezone(UTC).replace(tzinfo=None)
        case Enum():
            return value.value
        case list() | tuple():
            if _AS_THEY_ARE.issuperset(map(type, value)):  # the columns of a batch's rows
                return list(value)
            return [_to_driver(item) for item in value]
        case _:
            return value


def _from_driver(value: object) -> object:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
