"""What is known of messages that were listed before: all of a row but its flags, which alone can change (RFC 9051 2.3.2).

In memory only, and bounded. A message is known by its session, folder, UIDVALIDITY and UID, which never name another.
"""

from typing import NamedTuple

from msgspec import Struct

from cbemail.ids import SessionId
from cbemail.imap.protocol import FolderPath, Uid, UidValidity
from cbemail.mailbox.summary import Summary
from cbemail.memory import SessionMemory

CACHE_OCTETS = 24 * 1024 * 1024  # of all sessions: the last page or two of some hundred busy ones
_ROW_OCTETS = 2_000  # of a row's objects, beside its texts


class CacheStatistics(Struct, frozen=True):
    """What was asked for and was there, or was not; and what is kept, of which octets are an estimate."""

    hits: int
    misses: int
    rows: int
    octets: int


class Shelf(NamedTuple):
    """Where a folder's rows stand: of a session, and only for this incarnation of the folder."""

    session_id: SessionId
    folder: FolderPath
    uid_validity: UidValidity


class SummaryCache:
    """The rows used last, least recently used first out. What is taken from it needs its flags anew."""

    def __init__(self, octets: int = CACHE_OCTETS) -> None:
        self._rows: SessionMemory[tuple[Shelf, Uid], Summary] = SessionMemory(octets)
        self._hits = self._misses = 0

    def get(self, shelf: Shelf, uid: Uid) -> Summary | None:
        """The row as it was when it was put, if it is still here."""
        row = self._rows.get(shelf.session_id, (shelf, uid))
        if row is None:
            self._misses += 1
        else:
            self._hits += 1
        return row

    def put(self, shelf: Shelf, summary: Summary, header_octets: int) -> None:
        """Keep a row, made from so many octets of header."""
        octets = _ROW_OCTETS + header_octets
        self._rows.put(shelf.session_id, (shelf, summary.uid), summary, octets)

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(self._hits, self._misses, len(self._rows), self._rows.octets)

    def forget(self, session_id: SessionId) -> None:
        """The session is gone, and everything of it."""
        self._rows.end(session_id)
