"""The file of a DuckDB store: claimed, found sound, brought up to date, and opened.

It is opened locked down: no extensions, no file but its own, nothing that a later statement could undo.
"""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import duckdb
from duckdb import DuckDBPyConnection

from cbemail.store import files
from cbemail.store.database import SQL, StoreUnusable, load_queries
from cbemail.store.log_file import LogFile, end_of, is_given_up, refuse_strange
from cbemail.store.migrations import Migration, pending
from cbemail.store.wal import is_damaged

QUERIES = load_queries((SQL / "queries.sql").read_text(encoding="utf-8"))

# A checkpoint holds every value beyond some 16 KB in memory at once, of all that the table's last rows have; where they
# do not fit, the store has failed. So nothing larger is stored (`batch_records.LARGEST_VALUE`), and this is plenty.
MEMORY_LIMIT = "128MB"

_LOCKED_DOWN = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "lock_configuration": "true",
    "python_enable_replacements": "false",  # or an unknown table would be looked up among Python's variables
    "memory_limit": MEMORY_LIMIT,
    "threads": "1",
}


class OpenFile(NamedTuple):
    """A store, open: the database, its log, and the lock that makes both ours."""

    connection: DuckDBPyConnection
    log: LogFile
    lock: int


def open_file(path: Path, migrations: Sequence[Migration]) -> OpenFile:
    """The store at ``path``, open and up to date."""
    with explained(path):
        path = path.resolve()  # a link stays a link when the file behind it is replaced
        files.keep_private()
        files.make_folder(path.parent)
        lock = files.claim(path)
        try:
            connection = _open_claimed(path, migrations)
            try:
                return OpenFile(connection, _open_log(path, connection), lock)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock)
            raise


def _open_claimed(path: Path, migrations: Sequence[Migration]) -> DuckDBPyConnection:
    if not path.exists():
        files.refuse_missing(path)  # DuckDB would begin anew, and remove the WAL as none of its own
        _build(path, migrations)
    files.refuse_unfit(path)
    files.make_private(path)
    refuse_damaged_log(files.wal_of(path))
    version = read_version(path)
    if steps := pending(migrations, version):
        _back_up(path, version)
        _build(path, steps)
    return connect(path)


def _back_up(path: Path, version: int) -> None:
    """Keep the store as it was at a step of the schema, with the log that a crash has left."""
    backup = path.with_name(f"{path.name}.schema-{version}.backup")
    files.copy(path, backup)
    if files.log_of(path).exists():
        files.copy(files.log_of(path), files.log_of(backup))


def _open_log(path: Path, connection: DuckDBPyConnection) -> LogFile:
    """The log of the store, or a new one where it had been closed with none, or its own is given up."""
    log = files.log_of(path)
    end = end_of_log(path, connection)
    if end is not None:
        return LogFile.open(log, end)
    # Should a log that was given up come back, it is not taken for the new one.
    connection.execute(QUERIES["forget_log"])
    name = secrets.token_hex(16)
    file = LogFile.create(log, name)
    try:
        connection.execute(QUERIES["name_log"], {"name": name})
    except BaseException:
        file.close()
        raise
    return file


def end_of_log(path: Path, connection: DuckDBPyConnection) -> int | None:
    """Where the entries of the store's log end; None where it is to have a new one.

    Raises:
        StoreUnusable: in one sentence, why the service cannot start with the file that is there.
    """
    log = files.log_of(path)
    name, folded = connection.execute(QUERIES["find_log"]).fetchone() or (None, 0)
    if name is None:
        refuse_strange(log)
        return None
    return None if is_given_up(log) else end_of(log, name, folded=folded)


def let_go_of_log(log: LogFile, connection: DuckDBPyConnection) -> bool:
    """Have the store know of no log, so that it is whole without one; unless there is something in it."""
    if log.octets:
        return False
    log.sync()
    connection.execute(QUERIES["forget_log"])
    return True


def refuse_damaged_log(wal: Path) -> None:
    if wal.exists() and is_damaged(wal.read_bytes()):
        raise StoreUnusable(
            f"The write-ahead log {wal} is damaged: restore a backup, or move it away to go on without the "
            "changes in it."
        )


def read_version(path: Path, *, read_only: bool = False) -> int:
    """Which step of the schema the database at ``path`` is at. Closed again, the file is whole without its WAL, unless
    it is only to be read."""
    with connect(path, read_only=read_only) as connection:
        try:
            row = connection.execute(QUERIES["schema_version"]).fetchone()
        except duckdb.CatalogException as exc:
            raise StoreUnusable(
                f"The file {path} is a database, but not a store of cbemail."
            ) from exc
    [version] = row or [0]
    return int(version)


def _build(path: Path, steps: Sequence[Migration]) -> None:
    """Make the store, or bring it up to date, aside and then in one rename.

    A crash on the way leaves the old state whole. That also keeps schema changes out of the WAL, whose replay has
    been the weak spot of DuckDB.
    """
    new = path.with_name(path.name + ".new")
    files.remove(new)
    if path.exists():
        files.copy(path, new)
    with connect(new) as connection:
        for step in steps:
            connection.execute("begin transaction")
            connection.execute(step.sql)
            connection.execute(
                QUERIES["add_schema_version"], {"version": step.number, "name": step.name}
            )
            connection.execute("commit")
        connection.execute("checkpoint")
    files.put_in_place(new, path)


def connect(path: Path, *, read_only: bool = False) -> DuckDBPyConnection:
    """The database at ``path``, locked down; for those who have claimed it (`files.claim`), or only read."""
    temporary = {"temp_directory": f"{path}.tmp"}
    return duckdb.connect(path, read_only=read_only, config={**_LOCKED_DOWN, **temporary})


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What stops the start, in one sentence for the operator."""
    try:
        yield
    except OSError as exc:
        raise StoreUnusable(f"The store {path} cannot be opened: {exc.strerror}.") from exc
    except duckdb.Error as exc:
        raise StoreUnusable(f"The store {path} {_reason(exc)}") from exc


def _reason(error: duckdb.Error) -> str:
    if owner := re.search(r"Conflicting lock is held.*\(PID (\d+)\)", str(error)):
        return f"is open in another program (process {owner[1]}): stop it first."
    if isinstance(error, duckdb.TransactionException | duckdb.OutOfMemoryException):
        return "cannot be brought up to date: is the disk full?"
    return "is damaged, or was not made by cbemail: restore a backup."
