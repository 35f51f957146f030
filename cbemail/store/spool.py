"""Tables that come in and go out as files: CSV, NDJSON and Parquet, read row by row in bounded memory.

Parquet is read and written by DuckDB, in an instance of its own for each file, whose only door is the folder the file
is in. CSV is not: DuckDB's reader drops the rows after a quote that is never closed, without a word even in its strict
mode, and reads past an empty cell too many; recipients would be lost. Python's reader, made strict, refuses them.
"""

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import duckdb
from duckdb import DuckDBPyConnection

from cbemail.store.spool_text import (
    DEFAULT_LIMITS,
    CsvFile,
    NdJsonFile,
    SpoolError,
    SpoolLimits,
    SpoolRow,
    open_file,
    stopped,
    too_long,
)

__all__ = [
    "DEFAULT_LIMITS",
    "ColumnType",
    "SpoolError",
    "SpoolFormat",
    "SpoolLimits",
    "SpoolRow",
    "SpoolTable",
    "open_table",
    "write_parquet",
]

CHUNK_CHARACTERS = 4_000_000  # rows this long altogether are handed on before the chunk is full
MAX_FOOTER = 1 << 20  # octets; to read it takes the engine up to 150 times as many, unlimited
MAX_PIECE = 32_000_000  # octets of so many rows of a Parquet file: 16 KB a row, on average
_PIECE = 2048  # rows that the engine gives out at a time
_FETCHED = 64  # of these, rows taken over at a time: each may be as long as a row may be
_COLUMN_NAME = re.compile(r"[a-z_]+")
_FILE_NAME = re.compile(r"[\w.-]+")  # without the wildcards by which one name would open many files

_CONFIGURATION = {
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "96MB",
    "max_temp_directory_size": "2GB",
    "threads": "1",
}
_READ_PARQUET = "read_parquet($path, hive_partitioning = false, binary_as_string = true)"
_DESCRIBE_PARQUET = f"describe from {_READ_PARQUET}"


class SpoolFormat(StrEnum):
    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


class ColumnType(StrEnum):
    """What a column of a written table holds. A timestamp is in UTC."""

    VARCHAR = "varchar"
    INTEGER = "integer"
    TIMESTAMP = "timestamp"


class _Source(Protocol):
    columns: list[str]

    def rows(self) -> Iterator[SpoolRow]: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...


class SpoolTable:
    """A table that is open. ``columns`` are its names; NDJSON has one, each cell a line as it was written.

    An empty cell of a CSV file is the empty string; a null of a Parquet file is None, its nested values are JSON.
    """

    def __init__(self, source: _Source, limits: SpoolLimits) -> None:
        self.columns = source.columns
        self._source = source
        self._limits = limits

    def chunks(self, size: int = 500) -> Iterator[list[SpoolRow]]:
        """The rows, at most ``size`` at a time, fewer where they are long.

        Raises:
            SpoolError: the rest of the file cannot be read, or `interrupt` was called.
        """
        chunk: list[SpoolRow] = []
        characters = 0
        with _explained():
            for row in islice(self._source.rows(), self._limits.rows + 1):
                chunk.append(row)
                characters += _length(row)
                if len(chunk) >= size or characters >= CHUNK_CHARACTERS:
                    yield chunk
                    chunk, characters = [], 0
        if chunk:
            yield chunk

    def interrupt(self) -> None:
        """Let the thread that reads raise a SpoolError soon. To be called from another thread."""
        self._source.interrupt()


@contextmanager
def open_table(
    path: Path,
    format: SpoolFormat,  # noqa: A002 - the word everybody uses for it
    limits: SpoolLimits = DEFAULT_LIMITS,
) -> Iterator[SpoolTable]:
    """The table in the file ``path``, which is no link. Blocks, and may be moved between threads.

    Raises:
        SpoolError: the file is not of this format, or breaks a limit.
    """
    path = path.parent.resolve() / path.name
    with _explained():
        source = _open_source(path, format, limits)
    with closing(source):
        if len(source.columns) > limits.columns:
            raise SpoolError(f"There are more than {limits.columns} columns.")
        yield SpoolTable(source, limits)


def _open_source(path: Path, kind: SpoolFormat, limits: SpoolLimits) -> _Source:
    match kind:
        case SpoolFormat.CSV:
            return CsvFile(path, limits)
        case SpoolFormat.NDJSON:
            return NdJsonFile(path, limits)
        case SpoolFormat.PARQUET:
            return _Parquet(path, limits)


def write_parquet(
    folder: Path,
    columns: Sequence[tuple[str, ColumnType]],
    chunks: Iterable[Sequence[tuple[Any, ...]]],
) -> Path:
    """A new Parquet file in ``folder`` with these rows. Who asked for it removes it. Blocks.

    What does not fit in memory waits in the folder too.

    Raises:
        SpoolError: there is no room for it.
    """
    if not all(_COLUMN_NAME.fullmatch(name) for name, _ in columns):
        raise ValueError("a column is named in small letters")
    path = folder.resolve() / f"table-{secrets.token_hex(8)}.parquet"
    table = ", ".join(f'"{name}" {kind}' for name, kind in columns)  # "to" is a word of SQL
    values = ", ".join(f"unnest(${name}::{kind}[])" for name, kind in columns)
    try:
        with closing(_connect(path)) as connection:
            connection.execute(f"create temp table report ({table})")
            insert = connection.extract_statements(f"insert into report select {values}")[0]
            for chunk in chunks:
                cells = zip(*chunk, strict=True) if chunk else [()] * len(columns)
                bound = zip((name for name, _ in columns), cells, strict=True)
                connection.execute(
                    insert, {name: [_to_driver(c) for c in cs] for name, cs in bound}
                )
            connection.execute(
                "copy report to $path (format parquet, compression zstd)", {"path": str(path)}
            )
    except (duckdb.OperationalError, duckdb.OutOfMemoryException) as exc:
        path.unlink(missing_ok=True)
        raise SpoolError("The table could not be written: is the disk full?") from exc
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def _explained() -> Iterator[None]:
    """What the file, the disk or the engine refuses, in a sentence of ours."""
    try:
        yield
    except OSError as exc:
        raise SpoolError("The file cannot be opened.") from exc
    except duckdb.Error as exc:
        raise _told(exc) from exc


def _told(error: duckdb.Error) -> SpoolError:
    match error:
        case duckdb.InterruptException():
            return stopped()
        case duckdb.OutOfMemoryException():
            return _rows_too_long()
        case _:
            return SpoolError("The file is not a Parquet file, or is damaged.")


def _rows_too_long() -> SpoolError:
    return SpoolError("The rows of the file are too long to be read.")


def _length(row: SpoolRow) -> int:
    return sum([len(cell) for cell in row if cell])


# ---- Parquet


def _connect(path: Path) -> DuckDBPyConnection:
    """An engine without a database, that can open what is beside ``path`` and nothing else; links are refused too.

    The order is the engine's: the door is made before the walls, and neither may change once they are locked.
    """
    connection = duckdb.connect(
        ":memory:", config={**_CONFIGURATION, "temp_directory": f"{path}.tmp"}
    )
    connection.execute("set allowed_directories = [$folder]", {"folder": str(path.parent)})
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


class _Parquet:
    """Every column as text; nested ones as JSON."""

    def __init__(self, path: Path, limits: SpoolLimits) -> None:
        if not _FILE_NAME.fullmatch(path.name):
            raise ValueError("a file of the spool is named without wildcards")
        _refuse_costly_footer(path, limits)
        self._limits = limits
        self._bound = {"path": str(path)}
        self._stopped = False
        self._connection = _connect(path)
        try:
            self._connection.execute(_DESCRIBE_PARQUET, self._bound)
            described = self._connection.fetchall()
        except BaseException:
            self.close()
            raise
        self.columns = [name for name, *_ in described]
        self._cells = [  # by their numbers: names of columns never become SQL
            f"to_json(#{number})::varchar" if _is_nested(kind) else f"#{number}::varchar"
            for number, (_, kind, *_) in enumerate(described, 1)
        ]

    def rows(self) -> Iterator[SpoolRow]:
        self._refuse_long_rows()
        # Without a limit: the engine would collect all rows up to it, rather than give them as it reads them.
        query = f"select {', '.join(self._cells)} from {_READ_PARQUET}"  # noqa: S608 - as above
        self._connection.execute(query, self._bound)
        row_number = 0
        while fetched := self._connection.fetchmany(_FETCHED):
            if self._stopped:  # asked between two statements: the engine did not notice
                raise stopped()
            for row in fetched:
                row_number += 1
                if _length(row) > self._limits.characters:
                    raise too_long(self._limits, row_number)
                yield row

    def _refuse_long_rows(self) -> None:
        """Measure the rows first: the engine does not count as memory what it gives out.

        A text that is stored once and meant a thousand times makes gigabytes of a file of a kilobyte.
        """
        length = " + ".join(f"coalesce(strlen({cell}), 0)" for cell in self._cells)
        self._connection.execute(f"select {length} from {_READ_PARQUET}", self._bound)  # noqa: S608 - as above
        left = self._limits.rows
        while left >= 0 and (lengths := self._connection.fetchmany(_PIECE)):
            left -= len(lengths)
            if sum([octets for (octets,) in lengths]) > MAX_PIECE:
                raise _rows_too_long()

    def interrupt(self) -> None:
        self._stopped = True
        with suppress(duckdb.ConnectionException):  # closed meanwhile
            self._connection.interrupt()

    def close(self) -> None:
        self._connection.close()


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", "VARIANT"))


def _refuse_costly_footer(path: Path, limits: SpoolLimits) -> None:
    """Look at what the engine would read whole, and take up far more memory for than its limit says, before it does.

    The footer of a Parquet file is in Thrift's compact protocol: a version, then the elements of the schema.
    """
    descriptor = open_file(path)
    try:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, 8, max(size - 8, 0))
        length = int.from_bytes(end[:4], "little")
        start = os.pread(descriptor, 16, max(size - 8 - length, 0))
    finally:
        os.close(descriptor)
    if end[4:] != b"PAR1" or length + 12 > size:
        raise SpoolError("The file is not a Parquet file, or is damaged.")
    if length > MAX_FOOTER:
        raise SpoolError("The file describes too many columns or groups of rows.")
    schema = re.match(
        rb"\x15[\x80-\xff]?[\0-\x7f]\x19(?:\xfc([\x80-\xff]*[\0-\x7f])|[\x0c-\xec])", start
    )
    if schema is None:
        raise SpoolError("The file is not a Parquet file, or is damaged.")
    if schema[1] and _varint(schema[1]) > 4 * limits.columns:  # nested ones count too
        raise SpoolError(f"There are more than {limits.columns} columns.")


def _varint(octets: bytes) -> int:
    return sum((octet & 0x7F) << (7 * place) for place, octet in enumerate(octets))


def _to_driver(value: object) -> object:
    """Times in UTC, without saying so: the engine's type that says it needs one more library."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None)
    return value
