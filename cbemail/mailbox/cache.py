"""What is known of messages that were listed before: all of a row but its flags, which alone can change (RFC 9051 2.3.2).

In memory only, and bounded. A message is known by its session, folder, UIDVALIDITY and UID, which never name another.
"""

from collections import OrderedDict
from typing import NamedTuple

from msgspec import Struct

from cbemail.ids import SessionId
from cbemail.imap.protocol import FolderPath, Uid, UidValidity
from cbemail.mailbox.summary import Summary

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
        self._limit = octets
        self._held = 0
        self._hits = self._misses = 0
        self._rows: OrderedDict[tuple[Shelf, Uid], tuple[Summary, int]] = OrderedDict()
        self._of_session: dict[SessionId, set[tuple[Shelf, Uid]]] = {}

    def get(self, shelf: Shelf, uid: Uid) -> Summary | None:
        """The row as it was when it was put, if it is still here."""
        entry = self._rows.get((shelf, uid))
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._rows.move_to_end((shelf, uid))
        return entry[0]

    def put(self, shelf: Shelf, summary: Summary, header_octets: int) -> None:
        """Keep a row, made from so many octets of header."""
        key = (shelf, summary.uid)
        if key in self._rows:
            return
        size = _ROW_OCTETS + header_octets
        self._rows[key] = (summary, size)
        self._of_session.setdefault(shelf.session_id, set()).add(key)
        self._held += size
        while self._held > self._limit:
            self._drop(next(iter(self._rows)))

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(self._hits, self._misses, len(self._rows), self._held)

    def forget(self, session_id: SessionId) -> None:
        """The session is gone, and everything of it."""
        for key in list(self._of_session.get(session_id, ())):
            self._drop(key)

    def _drop(self, key: tuple[Shelf, Uid]) -> None:
        _, size = self._rows.pop(key)
        self._held -= size
        session_id = key[0].session_id
        self._of_session[session_id].discard(key)
        if not self._of_session[session_id]:
            del self._of_session[session_id]
