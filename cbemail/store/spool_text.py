"""CSV and NDJSON read row by row, strictly: a row that is not certain is refused, and none is passed over."""

import csv
import os
import re
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from threading import Event

from msgspec import Struct

from cbemail.store.batch_records import MAX_RECIPIENTS

SpoolRow = tuple[str | None, ...]

_DELIMITERS = ",;\t"
_JSON_BLANKS = " \t\r\n"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how `surrogateescape` shows what does not decode


class SpoolLimits(Struct, frozen=True):
    """What is read of a table at most. One row more than ``rows`` is given, so that too many can be told from enough."""

    rows: int = MAX_RECIPIENTS
    columns: int = 500
    characters: int = 1 << 20  # of a row, or of a line


DEFAULT_LIMITS = SpoolLimits()


class SpoolError(Exception):
    """The file cannot be read as what it is said to be. ``detail`` is a sentence of ours.

    ``row`` is where, if that is known: the line of a text file, on which the row begins, the header's being 1; the
    row of a Parquet file, counted from 1.
    """

    def __init__(self, detail: str, row: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.row = row


def stopped() -> SpoolError:
    return SpoolError("The reading was stopped.")


def too_long(limits: SpoolLimits, row: int) -> SpoolError:
    return SpoolError(f"The row is longer than {limits.characters:,} characters.", row)


def open_file(path: Path) -> int:
    """A descriptor of ``path`` itself: a link, or what is no file, is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a file")
    return descriptor


class _Lines:
    """The lines of a text file: UTF-8 without U+0000. ``begin`` before each row, whose lines are bounded altogether."""

    def __init__(self, path: Path, limits: SpoolLimits, *, newline: str) -> None:
        descriptor = open_file(path)
        self.number = 0
        self.first = 0  # line of the row
        self.stopped = Event()
        self._limits = limits
        self._characters = 0
        self._begun = 0  # rows and empty lines
        self._file = os.fdopen(
            descriptor, encoding="utf-8-sig", errors="surrogateescape", newline=newline
        )
        if os.pread(descriptor, 2, 0) in _UTF16:
            self._file.close()
            raise SpoolError("The file is UTF-16: it must be UTF-8.")

    def begin(self) -> None:
        self.first = self.number + 1
        self._characters = 0
        self._begun += 1
        if self._begun > 2 * self._limits.rows + 10:  # the rows are counted by others
            raise SpoolError("The file has too many empty lines.")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.stopped.is_set():
            raise stopped()
        line = self._file.readline(self._limits.characters + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._characters += len(line)
        if self._characters > self._limits.characters:
            raise too_long(self._limits, self.first)
        if "\0" in line:
            raise SpoolError("The file holds U+0000: it must be text in UTF-8.", self.number)
        if not line.isascii() and _NOT_UTF8.search(line):
            raise SpoolError("The text is not UTF-8.", self.number)
        return line

    def close(self) -> None:
        self._file.close()


class NdJsonFile:
    """One JSON value a line; whoever asked decodes it."""

    columns = ["json"]  # noqa: RUF012 - nobody changes it

    def __init__(self, path: Path, limits: SpoolLimits) -> None:
        self._lines = _Lines(path, limits, newline="\n")
        self.close = self._lines.close
        self.interrupt = self._lines.stopped.set

    def rows(self) -> Iterator[SpoolRow]:
        self._lines.begin()
        for line in self._lines:
            if text := line.strip(_JSON_BLANKS):
                yield (text,)
            self._lines.begin()


class CsvFile:
    """RFC 4180, with commas, semicolons or tabs. The header names the columns; lines without anything are no rows."""

    def __init__(self, path: Path, limits: SpoolLimits) -> None:
        self._lines = _Lines(path, limits, newline="")
        self.close = self._lines.close
        self.interrupt = self._lines.stopped.set
        try:
            self._reader = self._begin()
            self.columns = self._read_header()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> Iterator[list[str]]:
        self._lines.begin()
        for line in self._lines:
            if line.strip():
                unquoted = "".join(line.split('"')[::2])
                delimiter = max(_DELIMITERS, key=unquoted.count)
                return csv.reader(chain([line], self._lines), delimiter=delimiter, strict=True)
            self._lines.begin()
        raise SpoolError("The file is empty.")

    def _read_header(self) -> list[str]:
        names = [name.strip() for name in self._next_row() or []]
        if len(set(names)) < len(names):
            raise SpoolError("Two columns have the same name.", self._lines.first)
        return names

    def rows(self) -> Iterator[SpoolRow]:
        width = len(self.columns)
        self._lines.begin()
        while (row := self._next_row()) is not None:
            if row and len(row) != width:
                detail = f"The row has {len(row)} cells, where the header has {width}."
                raise SpoolError(detail, self._lines.first)
            if row:
                yield tuple(row)
            self._lines.begin()

    def _next_row(self) -> list[str] | None:
        try:
            return next(self._reader, None)
        except csv.Error as exc:
            if str(exc).startswith("field larger"):
                detail = f"A cell is longer than {csv.field_size_limit():,} characters."
            elif str(exc).startswith("unexpected end"):
                detail = "A quote is opened here that is never closed."
            else:
                detail = "A quote is not closed, or is followed by more than a delimiter."
            raise SpoolError(detail, self._lines.first) from exc
