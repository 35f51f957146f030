"""What a batch's senders draw from: rows that are due and claimed, and the word whether one may go just now."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import islice, takewhile

from cbemail.clock import Clock
from cbemail.outbox.live import Hold, LiveBatch
from cbemail.outbox.pacing import Upstream
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batch_records import MessageRow

CLAIM = 700  # rows a claim: with those left, a thousand in memory at most
LOW = 300  # rows left, when the next claim is worth making
RECIPIENTS = 50  # of one message in one transaction (RFC 5321 4.5.3.1.8 promises a hundred)


class Supply:
    """Of one courier. ``stopping`` once nothing more is to be begun."""

    def __init__(self, batch: LiveBatch, upstream: Upstream, smtp: SmtpPool, clock: Clock) -> None:
        self._batch = batch
        self._upstream = upstream
        self._smtp = smtp
        self._clock = clock
        self._rows: deque[MessageRow] = deque()
        self.uncounted: list[int] = []  # rows of which the claim does not count yet
        self._now = asyncio.get_running_loop().time
        self.stopping = False

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_low(self) -> bool:
        return len(self._rows) <= min(LOW, self.claim_size // 2)

    @property
    def useful_senders(self) -> int:
        """More than this would find nothing to do: one a message, and one a second's message where there is a rate."""
        per_minute = self._batch.record.options.rate_per_minute
        paced = len(self) if per_minute is None else -(-per_minute // 60)
        return 1 if self._upstream.is_paced else min(len(self), paced)

    @property
    def claim_size(self) -> int:
        """Rows worth claiming at a time: a minute's, where there is a rate, and no more than fit in memory."""
        per_minute = self._batch.record.options.rate_per_minute
        return CLAIM if per_minute is None else max(10, min(CLAIM, per_minute))

    # ---- in and out

    def add(self, rows: Iterable[MessageRow]) -> None:
        self._rows.extend(rows)

    def add_claimed(self, rows: Sequence[MessageRow]) -> None:
        self.add(rows)
        self.uncounted += [row.row for row in rows]

    def take_message(self) -> list[MessageRow]:
        """The next row, and those of the same message that stand behind it. Counts as one message for the pace."""
        rows = [self._rows.popleft() for _ in range(self._next_recipients())]
        if self.is_low:
            self._batch.nudged.set()
        now = self._now()
        if self._batch.bucket is not None:
            self._batch.bucket.take(now)
        self._upstream.take(now, recipients=len(rows))
        return rows

    def take_back(self, rows: Sequence[MessageRow]) -> None:
        """A message that was taken, and of which nothing came to the server: it uses up nothing of the day."""
        self._upstream.give_back(recipients=len(rows))

    def take_all(self) -> list[MessageRow]:
        """What is given back was never begun."""
        rows, self._rows = list(self._rows), deque()
        self.uncounted = []
        return rows

    # ---- may it go?

    @property
    def goes_on(self) -> bool:
        """Neither is the service stopping, nor the batch paused or over."""
        return not self.stopping and self._batch.may_send

    @property
    def may_begin(self) -> bool:
        """A message may go now."""
        return (
            bool(self._rows)
            and self.goes_on
            and self.seconds_to_wait() <= 0
            and self.seconds_to_next_day() <= 0
        )

    def seconds_to_wait(self) -> float:
        """Until a message may go, as far as rates, throttles and the host's circuit are concerned; 0: now."""
        now = self._now()
        broken = self._smtp.retry_in(self._batch.record.session_id) or 0.0
        self._show(broken)
        bucket = self._batch.bucket.delay(now) if self._batch.bucket is not None else 0.0
        return max(broken, bucket, self._upstream.delay(now))

    def seconds_to_next_day(self) -> float:
        """Until the provider allows the account the recipients of the next message; 0: it does."""
        if not self._upstream.has_day:
            return 0.0
        return self._upstream.day_delay(self._now(), recipients=self._next_recipients())

    def _next_recipients(self) -> int:
        """How many rows the next message has, or as many of them as one transaction takes."""
        if not self._rows:
            return 0
        message = _message_of(self._rows[0])
        if len(self._rows) == 1 or _message_of(self._rows[1]) != message:
            return 1
        same = takewhile(lambda row: _message_of(row) == message, islice(self._rows, RECIPIENTS))
        return sum(1 for _ in same)

    def _show(self, broken: float) -> None:
        """A host that cannot be reached is what a client wants to know of."""
        hold = None
        if broken > 0:
            hold = Hold("upstream-unavailable", self._clock() + timedelta(seconds=round(broken)))
        self._batch.hold = hold


def _message_of(row: MessageRow) -> tuple[int, int]:
    return row.position, row.content
