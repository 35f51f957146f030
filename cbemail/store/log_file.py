"""A log beside the store: entries that have to be on disk at once, and are soon folded into the store's rows.

An append is one write and one sync, which takes a tenth of what the smallest commit of a database does. A log begins with
the name of the store it belongs to; an entry is ``<mark> <length: u32> <sequence: u64> <checksum: u32> <payload>``, big-
endian, the checksum over sequence and payload.

One entry is written at a time, and none before the last is on disk. So a crash can have cut short the last entry, of
which nobody was told, and no other. Behind it is what there is to be written over, which takes half the time to sync of
what makes a file longer: zeros, or entries that were let go of. These are known by their sequence, which never goes back.
"""

import errno
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from zlib import crc32

from cbemail.store.database import Entry, StoreUnusable
from cbemail.store.files import PRIVATE_FILE, sync_folder

_MARK = b"\xf7cbe"
_FRAME = struct.Struct(">4sIQI")
_SEQUENCE = struct.Struct(">Q")
_HEADER = re.compile(rb"cbemail log 1 (?P<name>[0-9a-f]{32})\n")
_HEADER_OCTETS = 47
_GROWTH = 256 * 1024  # octets of zeros
_LONGEST_KEPT = 1024 * 1024  # a log that was longer becomes short again when it is emptied
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LogFull(Exception):
    """There was no room for the entry on disk, and nothing of it is there."""


class LogFile:
    """An open log. For one thread at a time."""

    def __init__(self, path: Path, descriptor: int, end: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._end = end  # of the last whole entry
        self._size = end  # of the file

    @classmethod
    def create(cls, path: Path, name: str) -> Self:
        """An empty log, on disk under its name, in the place of whatever is at ``path``."""
        new = path.with_name(path.name + ".new")
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            _write(descriptor, f"cbemail log 1 {name}\n".encode(), 0)
            os.fsync(descriptor)
            new.replace(path)
            sync_folder(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, _HEADER_OCTETS)

    @classmethod
    def open(cls, path: Path, end: int) -> Self:
        """A log that has its last entry before ``end`` (`end_of`)."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, end)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, end)

    @property
    def octets(self) -> int:
        """Of the entries."""
        return self._end - _HEADER_OCTETS

    def entries(self, after: int) -> list[Entry]:
        """Those whose sequence is above ``after``, in their order."""
        data = os.pread(self._descriptor, self._end, 0)
        return [entry for entry in _entries(data) if entry.sequence > after]

    def append(self, entry: Entry) -> None:
        """Have an entry on disk.

        Raises:
            LogFull: it is not there, and the log is as it was.
            OSError: it may be there, and nothing more can be trusted to be.
        """
        checksum = crc32(entry.payload, crc32(_SEQUENCE.pack(entry.sequence)))
        frame = _FRAME.pack(_MARK, len(entry.payload), entry.sequence, checksum) + entry.payload
        try:
            self._make_room(len(frame))
            _write(self._descriptor, frame, self._end)
        except OSError as exc:
            with suppress(OSError):  # what was begun is written over
                os.ftruncate(self._descriptor, self._end)
            self._size = self._end
            if exc.errno in _NO_ROOM:
                raise LogFull from exc
            raise
        os.fdatasync(self._descriptor)
        self._end += len(frame)

    def _make_room(self, octets: int) -> None:
        """Have something to write so many octets over; as far as there is room, which they may find all the same."""
        if self._end + octets > self._size:
            with suppress(OSError):
                _write(self._descriptor, bytes(max(octets, _GROWTH)), self._end)
                self._size = self._end + max(octets, _GROWTH)

    def clear(self) -> None:
        """Let go of all entries. A crash may bring them back, or some."""
        self._end = _HEADER_OCTETS
        if self._size > _LONGEST_KEPT:
            os.ftruncate(self._descriptor, self._end)
            self._size = self._end

    def sync(self) -> None:
        """Have on disk what there is, and that there is no more."""
        os.ftruncate(self._descriptor, self._end)
        self._size = self._end
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """For a store that knows of no log any more."""
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)


def end_of(path: Path, name: str, *, folded: int) -> int:
    """Where the entries end of the log that the store knows by ``name``, and has all of up to the sequence ``folded``.
    Where it has all, they are let go of.

    Raises:
        StoreUnusable: in one sentence, why the service cannot start with this file.
    """
    if not path.exists():
        raise _lost(path, "is missing")
    data = path.read_bytes()
    if _name_of(data) != name:
        raise _lost(path, "is not the one of this store")
    end, last = _HEADER_OCTETS, folded
    for entry in _entries(data):
        end += _FRAME.size + len(entry.payload)
        last = max(last, entry.sequence)
    if _holds_entry(data, end, above=last):
        raise _lost(path, "is damaged")
    return end if last > folded else _HEADER_OCTETS


def is_given_up(path: Path) -> bool:
    """Whether there is an empty file, which no crash leaves: the operator's word to go on without the log."""
    return path.exists() and path.stat().st_size == 0


def refuse_strange(path: Path) -> None:
    """A store that knows of no log may find the beginning of one, from a start or an end that was cut short.

    Raises:
        StoreUnusable: it finds entries, of messages that it knows nothing of, or no log at all.
    """
    data = path.read_bytes() if path.exists() else b""
    if data and (_name_of(data) is None or _holds_entry(data, _HEADER_OCTETS, above=0)):
        raise StoreUnusable(
            f"The file {path} is not a log of this store: restore the store that it belongs to, or move it away."
        )


def _lost(path: Path, why: str) -> StoreUnusable:
    return StoreUnusable(
        f"The log {path}, which says what became of the latest messages, {why}: restore it and the store as they were "
        "together, or put an empty file in its place to go on without it, which may send some of them twice."
    )


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """All of it: a disk that is nearly full takes a part, and refuses the rest."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _name_of(data: bytes) -> str | None:
    header = _HEADER.match(data)
    return header["name"].decode() if header is not None else None


def _entries(data: bytes) -> Iterator[Entry]:
    """Whole entries from the first on, as long as one follows the other."""
    position, last = _HEADER_OCTETS, 0
    while (entry := _entry_at(data, position)) is not None and entry.sequence > last:
        yield entry
        position += _FRAME.size + len(entry.payload)
        last = entry.sequence


def _entry_at(data: bytes, position: int) -> Entry | None:
    if position + _FRAME.size > len(data):
        return None
    mark, length, sequence, checksum = _FRAME.unpack_from(data, position)
    start = position + _FRAME.size
    payload = data[start : start + length]
    if mark != _MARK or len(payload) != length:
        return None
    if crc32(payload, crc32(_SEQUENCE.pack(sequence))) != checksum:
        return None
    return Entry(sequence, payload)


def _holds_entry(data: bytes, start: int, *, above: int) -> bool:
    """Whether there is a whole entry anywhere behind, of a sequence that is not known: no crash leaves one there."""
    position = data.find(_MARK, start)
    while position >= 0:
        entry = _entry_at(data, position)
        if entry is not None and entry.sequence > above:
            return True
        position = data.find(_MARK, position + 1)
    return False
