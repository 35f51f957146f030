"""How much waits to be sent, and whether more may: of one session, and of all.

What waits is on disk, and takes as long as the mail servers do. Whoever queues faster than that is told to come back
when, at the present rate, there will be room.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from math import ceil
from typing import NamedTuple

from msgspec import Struct

from cbemail.errors import Overloaded, RateLimited
from cbemail.ids import SessionId
from cbemail.outbox.live import LiveBatch
from cbemail.store.batch_records import BatchKind

LEAST_WAIT, MOST_WAIT = 5, 3600  # seconds that a client is told to stay away
STANDSTILL_WAIT = 300  # where nothing is being sent just now


class Limits(Struct, frozen=True):
    """``messages`` counts recipients that wait or are being sent; a batch is under way until it has ended."""

    session_messages: int = 1_000_000
    session_batches: int = 1_000
    session_sends: int = 5_000  # single messages that are queued
    all_messages: int = 4_000_000
    all_batches: int = 10_000  # single messages too; each is a task, of some kilobytes


class _Share(NamedTuple):
    """What of all there is belongs to one."""

    session_id: SessionId
    kind: BatchKind
    batches: int
    messages: int


class _Load(Struct):
    """Of all, and of the session that asks: there, only batches of the kind it asks for."""

    messages: int = 0
    batches: int = 0
    own_messages: int = 0
    own_batches: int = 0


class Backlog:
    """What is asked before something is queued. It counts the batches that are carried, and so outlives a restart."""

    def __init__(
        self, lives: Callable[[], Collection[LiveBatch]], limits: Limits | None = None
    ) -> None:
        self._lives = lives
        self._limits = limits or Limits()
        self._promised: list[_Share] = []

    def require_room(self, session_id: SessionId, kind: BatchKind, messages: int = 1) -> None:
        """Room for one more batch. Raises RateLimited where its session has too much queued, Overloaded where all
        have."""
        self._require(_Share(session_id, kind, 1, messages))

    @contextmanager
    def room(self, session_id: SessionId, kind: BatchKind, messages: int) -> Iterator[None]:
        """The same, and nobody else is given it while the block runs: for a batch that is carried when it is over."""
        with self._promise(_Share(session_id, kind, 1, messages)):
            yield

    @contextmanager
    def more(self, live: LiveBatch, messages: int) -> Iterator[None]:
        """The same for messages that a batch has again."""
        with self._promise(_Share(live.record.session_id, live.record.kind, 0, messages)):
            yield

    @contextmanager
    def _promise(self, share: _Share) -> Iterator[None]:
        self._require(share)
        self._promised.append(share)
        try:
            yield
        finally:
            self._promised.remove(share)

    def _require(self, asked: _Share) -> None:
        limits, load = self._limits, self._load(asked)
        is_send = asked.kind is BatchKind.SEND
        if load.own_batches > (limits.session_sends if is_send else limits.session_batches):
            what = "single messages" if is_send else "batches"
            raise RateLimited(
                f"This session has as many {what} queued as it may: {load.own_batches - 1:,}.",
                retry_after=self._seconds_for(
                    load.own_messages / load.own_batches, asked.session_id
                ),
            )
        if (excess := load.own_messages - limits.session_messages) > 0:
            raise RateLimited(
                f"More than {limits.session_messages:,} recipients would wait for this session.",
                retry_after=self._seconds_for(excess, asked.session_id),
            )
        excess = load.messages - limits.all_messages
        if excess > 0 or load.batches > limits.all_batches:
            raise Overloaded(
                "As much is queued here as may be.", retry_after=self._seconds_for(max(excess, 1))
            )

    def _load(self, asked: _Share) -> _Load:
        """How it would be with what is asked for. A batch that was cancelled counts until its last message is through."""
        lives = self._lives()
        load = _Load(batches=len(lives))
        for (
            live
        ) in lives:  # thousands, at worst, and on the event loop: as little as will do for each
            load.messages += (waiting := live.waiting)
            record = live.record
            if record.session_id == asked.session_id:
                load.own_messages += waiting
                load.own_batches += record.kind is asked.kind
        for share in (*self._promised, asked):
            load.messages += share.messages
            load.batches += share.batches
            if share.session_id == asked.session_id:
                load.own_messages += share.messages
                load.own_batches += share.batches if share.kind is asked.kind else 0
        return load

    def _seconds_for(self, messages: float, session_id: SessionId | None = None) -> int:
        """Until so many will have gone, of the session, or of all."""
        rate = sum(
            live.rate
            for live in self._lives()
            if session_id is None or live.record.session_id == session_id
        )
        return min(max(ceil(messages / rate), LEAST_WAIT), MOST_WAIT) if rate else STANDSTILL_WAIT
