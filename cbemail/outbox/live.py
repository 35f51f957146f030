"""A batch that is not over, as this process knows it: its record, and how many of its messages are in each state.

The rows are on disk; here is what is asked for all the time. Counts change when a change is on disk, never before.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from math import ceil

from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.outbox.batch import BatchView, Counts, Rate, Rejection
from cbemail.outbox.pacing import TokenBucket
from cbemail.store.batch_records import (
    BatchRecord,
    BatchState,
    MessageEvent,
    MessageRow,
    OnUncertain,
)
from cbemail.store.records import SendState

_RATE_SECONDS = 10  # over which the rate is told
_STEP_SECONDS = 0.1  # what is settled within one is one figure
_ENDED = (BatchState.COMPLETED, BatchState.CANCELLED)
_WAITING = (SendState.QUEUED, SendState.SENDING, SendState.DEFERRED)
_SETTLED = (SendState.SENT, SendState.FAILED, SendState.UNCERTAIN)


class Hold(Struct, frozen=True):
    """Why a batch that is running sends nothing just now, and until when."""

    reason: str
    until: datetime


class LiveBatch:
    """One batch between its acceptance and its end. ``held`` are the rows a courier has: no claim gives them out."""

    def __init__(
        self,
        record: BatchRecord,
        counts: dict[SendState, int],
        rejections: Sequence[Rejection],
        clock: Clock,
    ) -> None:
        self.record = record
        self.rejections = list(rejections)
        self.held: dict[int, MessageRow] = {}
        self.hold: Hold | None = None
        self.due_at: datetime | None = clock()  # of what a claim may find; None: nothing waits
        self.nudged = asyncio.Event()  # something the courier should look at
        self.course = asyncio.Lock()  # held by who changes the state: on disk, and then here
        self.filed: set[int] = set()  # messages of which a copy is in Sent
        self.over = False  # nothing more becomes of it
        self.bucket = _bucket_of(record)
        self._counts = {state: counts.get(state, 0) for state in SendState}
        # Messages that have yet to go out; kept, since it is asked for often.
        self.waiting = self.count(*_WAITING)
        self._clock = clock
        self._throughput = _Throughput()
        self._watchers: set[asyncio.Event] = set()

    # ---- what it is

    @property
    def number(self) -> int:
        return self.record.number

    @property
    def ended(self) -> bool:
        return self.record.state in _ENDED

    @property
    def may_send(self) -> bool:
        return self.record.state in (BatchState.QUEUED, BatchState.RUNNING)

    @property
    def counts(self) -> Mapping[SendState, int]:
        return self._counts

    def count(self, *states: SendState) -> int:
        return sum(self._counts[state] for state in states)

    @property
    def unsettled(self) -> int:
        """Messages that something will still become of."""
        unsettled = self.waiting
        if self.record.options.on_uncertain is OnUncertain.RESEND:
            unsettled += self.count(SendState.UNCERTAIN)
        return unsettled

    def view(self) -> BatchView:
        counts = {state.value: number for state, number in self._counts.items()}
        rate = 0.0 if self.ended else self.rate
        return view_of(
            self.record,
            Counts(total=sum(counts.values()), **counts),
            self.rejections,
            hold=self.hold if self.may_send else None,
            rate=rate,
            eta_seconds=None if self.ended else self._eta(rate),
        )

    @property
    def rate(self) -> float:
        """Messages a second, of late."""
        return self._throughput.per_second()

    def _eta(self, rate: float) -> int | None:
        per_minute = self.record.options.rate_per_minute
        if per_minute is not None:
            rate = min(rate or per_minute / 60, per_minute / 60)
        return ceil(self.unsettled / rate) if rate and self.may_send else None

    # ---- what becomes of it

    def change(self, **fields: object) -> None:
        """Take over what the store now has in the batch's record."""
        self.record = structs.replace(self.record, **fields)
        self._tell()

    def take(self, rows: Iterable[MessageRow]) -> None:
        """Rows that were claimed."""
        self.held.update((row.row, row) for row in rows)

    def apply(self, events: Iterable[MessageEvent]) -> None:
        """Count what is on disk now. A row with an outcome is held no more."""
        settled = 0
        for event in events:
            row = self.held.get(event.row)
            if row is not None:
                self._move(row.state, event.state, 1)
                settled += event.state in _SETTLED
            if event.state is SendState.SENDING:
                if row is not None:
                    self.held[event.row] = structs.replace(
                        row, state=event.state, attempts=event.attempts
                    )
                continue
            self.held.pop(event.row, None)
            if event.state in (SendState.QUEUED, SendState.DEFERRED):
                self.expect(event.next_attempt_at)
        if settled:
            self._throughput.add(settled)
        if not self.unsettled:
            self.nudged.set()
        self._tell()

    def moved(self, left: dict[SendState, int], to: SendState) -> None:
        """So many rows that nobody held have left each state."""
        for state, number in left.items():
            self._move(state, to, number)
        self._tell()

    def expect(self, moment: datetime | None) -> None:
        """A row may be due then."""
        moment = moment or self._clock()
        if self.due_at is None or moment < self.due_at:
            self.due_at = moment
            self.nudged.set()

    def _move(self, old: SendState, new: SendState, number: int) -> None:
        self._counts[old] -= number
        self._counts[new] += number
        self.waiting += number * ((new in _WAITING) - (old in _WAITING))

    def close(self) -> None:
        """Nobody carries it any more: what it is now, it stays."""
        self.over = True
        self._tell()

    # ---- who watches it

    def watch(self) -> asyncio.Event:
        """An event that is set at every change, until `unwatch`."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: asyncio.Event) -> None:
        self._watchers.discard(watcher)

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher.set()


def _bucket_of(record: BatchRecord) -> TokenBucket | None:
    """For the rate the client asked for. It lives as long as the batch: neither a pause nor a restart fills it."""
    per_minute = record.options.rate_per_minute
    if per_minute is None:
        return None
    if record.started_at is None:
        return TokenBucket(per_minute)
    return TokenBucket(per_minute, used_up_at=asyncio.get_running_loop().time())


class _Throughput:
    """How many a second, over the last ten."""

    def __init__(self) -> None:
        self._lately: deque[tuple[float, int]] = deque()  # from when on, and how many
        self._sum = 0
        self._clock: Callable[[], float] | None = None

    def _now(self) -> float:
        """The loop's time. To ask which loop runs is a call of the system each time, and this is for every message."""
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        return self._clock()

    def add(self, number: int) -> None:
        now = self._now()
        self._sum += number
        if self._lately and now - self._lately[-1][0] < _STEP_SECONDS:
            since, so_far = self._lately[-1]
            self._lately[-1] = (since, so_far + number)
        else:
            self._forget_old(now)
            self._lately.append((now, number))

    def per_second(self) -> float:
        self._forget_old(self._now())
        return round(self._sum / _RATE_SECONDS, 1)

    def _forget_old(self, now: float) -> None:
        while self._lately and self._lately[0][0] < now - _RATE_SECONDS:
            self._sum -= self._lately.popleft()[1]


def view_of(
    record: BatchRecord,
    counts: Counts,
    rejections: Sequence[Rejection],
    *,
    hold: Hold | None = None,
    rate: float = 0.0,
    eta_seconds: int | None = None,
) -> BatchView:
    return BatchView(
        id=record.id,
        name=record.name,
        state=record.state,
        counts=counts.once_cancelled() if record.state is BatchState.CANCELLED else counts,
        rejected=list(rejections),
        paused_reason=hold.reason if hold is not None else record.paused_reason,
        paused_until=hold.until if hold is not None else record.paused_until,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        send_at=record.send_at,
        rate=Rate(rate),
        eta_seconds=eta_seconds,
    )
