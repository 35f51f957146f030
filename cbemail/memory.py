"""What is kept of sessions in memory for a while: bounded in octets, and gone with its session."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from cbemail.ids import SessionId

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Sessions that have ended; a read that was under way then takes a minute at most.
ENDED_KEPT = 1_000


class SessionMemory(Generic[K, V]):
    """Values by session and key, of all sessions in so many octets: those used longest ago give way."""

    def __init__(self, octets: int) -> None:
        self._limit = octets
        self._values: OrderedDict[tuple[SessionId, K], tuple[V, int]] = OrderedDict()
        self._of_session: dict[SessionId, set[K]] = {}
        self._ended: OrderedDict[SessionId, None] = OrderedDict()
        self.octets = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, session_id: SessionId, key: K) -> V | None:
        """What was put there last, if it is still here."""
        entry = self._values.get((session_id, key))
        if entry is None:
            return None
        self._values.move_to_end((session_id, key))
        return entry[0]

    def put(self, session_id: SessionId, key: K, value: V, octets: int) -> None:
        """Keep ``value``, which takes about so many octets, in the place of what was there; unless it is too large."""
        if (session_id, key) in self._values:
            self._drop(session_id, key)
        if octets > self._limit or session_id in self._ended:
            return
        self._values[session_id, key] = (value, octets)
        self._of_session.setdefault(session_id, set()).add(key)
        self.octets += octets
        while self.octets > self._limit:
            self._drop(*next(iter(self._values)))

    def forget(self, session_id: SessionId) -> None:
        """Drop everything of a session."""
        for key in list(self._of_session.get(session_id, ())):
            self._drop(session_id, key)

    def end(self, session_id: SessionId) -> None:
        """Forget a session that is gone, and keep nothing more of it: a read of its mailbox may be under way."""
        self.forget(session_id)
        self._ended[session_id] = None
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def _drop(self, session_id: SessionId, key: K) -> None:
        _, octets = self._values.pop((session_id, key))
        self.octets -= octets
        keys = self._of_session[session_id]
        keys.discard(key)
        if not keys:
            del self._of_session[session_id]
