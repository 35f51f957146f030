"""What is known of messages that were read before: all but their flags, which alone can change (RFC 9051 2.3.2).

In memory in front, on disk behind, bounded in both. A message is known by its session, folder, UIDVALIDITY and UID, which
never name another.
"""

from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

from cbemail.ids import SessionId
from cbemail.imap.protocol import FolderPath, Uid, UidValidity
from cbemail.mailbox.cache_key import CacheKeyError, Name, Shape
from cbemail.mailbox.stored_cache import TOUCH_SECONDS, StoredCache
from cbemail.mailbox.summary import Summary
from cbemail.memory import SessionMemory

V = TypeVar("V")

CACHE_OCTETS = 24 * 1024 * 1024  # of all sessions: the last page or two of some hundred busy ones
_ROW_OCTETS = 2_000  # of a row's objects, beside what it says


class CacheStatistics(Struct, frozen=True):
    """What was asked for and was in memory, was on disk, or was in neither; and what is kept: in memory, of which octets
    are an estimate, and on disk."""

    hits: int
    stored: int
    misses: int
    rows: int
    octets: int
    stored_octets: int


class _Held(Struct, Generic[V]):
    value: V
    used_at: float  # as is known on disk; of `monotonic`


class Cache(Generic[V]):
    """Values of sessions by name: in up to ``octets`` of memory, least recently used first out, and with ``behind`` on disk
    for longer.

    A value counts as what it is packed in, and ``overhead``: how much there is in it, as addresses or attachments, is
    its sender's choice. One that cannot be packed is not kept.
    """

    def __init__(
        self, shape: Shape[V], octets: int, *, overhead: int, behind: StoredCache | None
    ) -> None:
        self.memory: SessionMemory[Name, _Held[V]] = SessionMemory(octets)
        self._shape = shape
        self._overhead = overhead
        self._behind = behind

    def get(self, session_id: SessionId, name: Name) -> V | None:
        """The value as it was when it was put, if it is in memory still."""
        held = self.memory.get(session_id, name)
        if held is None:
            return None
        now = monotonic()
        if self._behind is not None and now - held.used_at > TOUCH_SECONDS:
            held.used_at = now
            self._behind.touch(session_id, self._shape, name)
        return held.value

    def put(self, session_id: SessionId, name: Name, value: V) -> None:
        """Keep a value in the place of what was there."""
        with suppress(CacheKeyError):
            packed = self._shape.pack(value)
            self._hold(session_id, name, value, len(packed))
            if self._behind is not None:
                self._behind.put(session_id, self._shape, name, packed)

    async def recall(self, session_id: SessionId, names: Iterable[Name]) -> dict[Name, V]:
        """Those of the values that are on disk; they are in memory from now on."""
        if self._behind is None:
            return {}
        found = await self._behind.find(session_id, self._shape, names)
        for name, (value, octets) in found.items():
            self._hold(session_id, name, value, octets)
        return {name: value for name, (value, _) in found.items()}

    def forget(self, session_id: SessionId) -> None:
        """The session is gone, and everything of it."""
        self.memory.end(session_id)

    def _hold(self, session_id: SessionId, name: Name, value: V, octets: int) -> None:
        self.memory.put(session_id, name, _Held(value, monotonic()), self._overhead + octets)


class Shelf(NamedTuple):
    """Where a folder's rows stand: of a session, and only for this incarnation of the folder."""

    session_id: SessionId
    folder: FolderPath
    uid_validity: UidValidity


_ROWS = Shape("row", Summary)


class SummaryCache:
    """The rows of lists. What is taken from it needs its flags anew."""

    def __init__(self, octets: int = CACHE_OCTETS, behind: StoredCache | None = None) -> None:
        self._rows = Cache(_ROWS, octets, overhead=_ROW_OCTETS, behind=behind)
        self._behind = behind
        self._hits = self._stored = self._misses = 0

    async def find(self, shelf: Shelf, uids: Iterable[Uid]) -> dict[Uid, Summary]:
        """Those of the rows that are known, as they were when they were put."""
        known = {uid: self._rows.get(shelf.session_id, _name(shelf, uid)) for uid in uids}
        found = {uid: row for uid, row in known.items() if row is not None}
        self._hits += len(found)
        missing = {_name(shelf, uid): uid for uid in known if uid not in found}
        if not missing:
            return found
        recalled = await self._rows.recall(shelf.session_id, missing)
        self._stored += len(recalled)
        self._misses += len(missing) - len(recalled)
        return found | {missing[name]: row for name, row in recalled.items()}

    def put(self, shelf: Shelf, summary: Summary) -> None:
        """Keep a row in the place of what was there."""
        self._rows.put(shelf.session_id, _name(shelf, summary.uid), summary)

    def statistics(self) -> CacheStatistics:
        memory = self._rows.memory
        stored_octets = self._behind.octets if self._behind is not None else 0
        return CacheStatistics(
            self._hits, self._stored, self._misses, len(memory), memory.octets, stored_octets
        )

    def forget(self, session_id: SessionId) -> None:
        """The session is gone, and everything of it."""
        self._rows.forget(session_id)


def _name(shelf: Shelf, uid: Uid) -> Name:
    return (shelf.folder, shelf.uid_validity, uid)
