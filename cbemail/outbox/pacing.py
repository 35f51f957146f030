"""How fast an account may send: what its provider is known to allow, and what the server shows it takes (pure).

``now`` is monotonic time in seconds, the same clock for all calls on one object.
"""

from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from time import monotonic

from cbemail.outbox.limits import ProviderLimits

START = 2  # connections, before anything is known of the server
SUCCESSES_PER_STEP = 20
FIRST_HOLD = 5.0  # seconds after a throttle; twice as long after each further one
LONGEST_HOLD = 300.0

_DUST = 1e-6  # seconds; what adding up fractions leaves behind is no reason to wait
_HOUR = 3600.0
_DAY = 24 * _HOUR


class TokenBucket:
    """Lets ``per_minute`` messages through a minute, evenly, and at most a second's worth of them at once.

    >>> bucket = TokenBucket(30)
    >>> bucket.delay(100.0), bucket.take(100.0), bucket.delay(100.5)
    (0.0, None, 1.5)
    """

    def __init__(self, per_minute: int, *, used_up_at: float | None = None) -> None:
        """``used_up_at``: what could go at once has gone by then."""
        self._interval = 60 / per_minute
        self._leeway = max(0.0, 1 - self._interval)
        # By the even beat the next message is due then; it may come so far ahead of it as there is leeway.
        self._due = float("-inf")
        if used_up_at is not None:
            self._due = used_up_at + self._leeway + self._interval

    def delay(self, now: float) -> float:
        """Seconds until the next message may go; 0.0: now."""
        wait = self._due - self._leeway - now
        return wait if wait > _DUST else 0.0

    def take(self, now: float) -> None:
        """A message goes. One that goes too early makes the next wait the longer."""
        self._due = max(self._due, now) + self._interval


class Concurrency:
    """How many connections a server seems to like: one more after every so many successes, half after a throttle.

    The way TCP finds its share of a line, which is fair to others who do the same (AIMD, RFC 5681 section 3.1).
    """

    def __init__(self, cap: int, start: int = START) -> None:
        self._cap = max(1, cap)
        self._successes = 0
        self._throttled_at = float("-inf")
        self.limit = max(1, min(start, self._cap))

    def succeeded(self) -> bool:
        """A message was taken; is there one connection more to be had now?"""
        self._successes += 1
        if self._successes < SUCCESSES_PER_STEP:
            return False
        self._successes = 0
        if self.limit >= self._cap:
            return False
        self.limit += 1
        return True

    def throttled(self, now: float) -> None:
        """The server asked for less. What several connections hear within a second is said once."""
        if now - self._throttled_at < 1:
            return
        self._throttled_at = now
        self._successes = 0
        self.limit = max(1, self.limit // 2)


class Allowance:
    """What a provider allows an account in any 24 hours, in recipients, counted by the hour.

    Args:
        counted: what has gone before: when each hour began, the oldest first, and how many recipients it had.
    """

    def __init__(self, per_day: int, counted: Iterable[tuple[float, int]] = ()) -> None:
        self.per_day = per_day
        self._hours = deque(counted)
        self._taken = sum(recipients for _, recipients in self._hours)

    def delay(self, now: float, recipients: int = 1) -> float:
        """Seconds until there is enough of it left; 0.0: there is. More than all of it is asked for as all of it."""
        self._forget_before(now - _DAY - _HOUR)
        excess = self._taken + min(recipients, self.per_day) - self.per_day
        if excess <= 0:
            return 0.0
        freed = accumulate(recipients for _, recipients in self._hours)
        began = next(
            hour for (hour, _), free in zip(self._hours, freed, strict=True) if free >= excess
        )
        return began + _HOUR + _DAY - now

    def take(self, now: float, recipients: int = 1) -> None:
        if not self._hours or now - self._hours[-1][0] >= _HOUR:
            self._hours.append((now, 0))
        began, taken = self._hours[-1]
        self._hours[-1] = began, taken + recipients
        self._taken += recipients

    def give_back(self, recipients: int) -> None:
        """They were taken a moment ago, and nothing was sent to them."""
        self._taken -= recipients
        while recipients > 0:
            began, taken = self._hours.pop()
            if taken > recipients:
                self._hours.append((began, taken - recipients))
            recipients -= taken

    def is_whole(self, now: float) -> bool:
        """All of it is left."""
        self._forget_before(now - _DAY - _HOUR)
        return not self._taken

    def _forget_before(self, moment: float) -> None:
        while self._hours and self._hours[0][0] <= moment + _DUST:
            self._taken -= self._hours.popleft()[1]


class Early:
    """Whether an account's server takes a message that begins in the same write as the one before ends.

    Found out with one message at a time: a server that loses what comes behind a final dot costs a timeout.
    """

    _PATIENCE = 15.0  # seconds for the answer to a try; one that never came is tried again

    def __init__(self) -> None:
        self._knows: bool | None = None
        self._tried_at = float("-inf")

    @property
    def may_try(self) -> bool:
        if self._knows is None:
            return monotonic() - self._tried_at > self._PATIENCE
        return self._knows

    @property
    def is_refused(self) -> bool:
        return self._knows is False

    def trying(self) -> None:
        if self._knows is None:
            self._tried_at = monotonic()

    def known(self) -> None:
        if self._knows is None:
            self._knows = True

    def refused(self) -> None:
        """From now on one message goes after the other."""
        self._knows = False


class Upstream:
    """One account at its mail server, whatever sends for it: how many connections, how fast, and whether at all.

    After a throttle nothing goes out for a while, and for twice as long each time it happens again before a message
    was taken.

    Args:
        day: what is left of the provider's limit for a day, where there is one.
    """

    def __init__(self, limits: ProviderLimits, day: Allowance | None = None) -> None:
        self._concurrency = Concurrency(limits.connections)
        self._rate = None if limits.per_minute is None else TokenBucket(limits.per_minute)
        self._day = day
        self.early = Early()
        self._held_until = float("-inf")
        self._throttled_until = float("-inf")
        self._next_hold = FIRST_HOLD

    @property
    def limit(self) -> int:
        """Connections it may have just now."""
        return self._concurrency.limit

    @property
    def is_paced(self) -> bool:
        """It is kept to a rate: more connections would make nothing faster."""
        return self._rate is not None

    @property
    def has_day(self) -> bool:
        """The provider has a limit for a day."""
        return self._day is not None

    def delay(self, now: float) -> float:
        """Seconds until the next message may go, as far as rate and holds are concerned; 0.0: now."""
        rate = 0.0 if self._rate is None else self._rate.delay(now)
        return max(rate, self.held(now))

    def day_delay(self, now: float, *, recipients: int = 1) -> float:
        """Seconds until the provider allows the account so many more; 0.0: it does."""
        return 0.0 if self._day is None else self._day.delay(now, recipients)

    def take(self, now: float, *, recipients: int = 1) -> None:
        """A message goes, to so many."""
        if self._rate is not None:
            self._rate.take(now)
        if self._day is not None:
            self._day.take(now, recipients)

    def give_back(self, *, recipients: int = 1) -> None:
        """A message was taken for so many, and has not gone: it counts for the rate, and not for the day."""
        if self._day is not None:
            self._day.give_back(recipients)

    def is_forgettable(self, now: float) -> bool:
        """Nothing that was heard or counted holds a message back any more."""
        nothing_counted = self._day is None or self._day.is_whole(now)
        return self.delay(now) <= 0 and nothing_counted and not self.early.is_refused

    def succeeded(self, now: float) -> bool:
        """The server took a message; is there one connection more to be had now?"""
        # During the hold it is one that was on its way before: it tells nothing of what comes after.
        if now >= self._throttled_until:
            self._next_hold = FIRST_HOLD
        return self._concurrency.succeeded()

    def throttled(self, now: float) -> None:
        """The server asked for less. What was on its way when it did so is not held against it twice."""
        if now < self._throttled_until:
            return
        self._concurrency.throttled(now)
        self._throttled_until = now + self._next_hold
        self.hold(now, self._next_hold)
        self._next_hold = min(2 * self._next_hold, LONGEST_HOLD)

    def hold(self, now: float, seconds: float) -> None:
        """Nothing goes out for so long, at least."""
        self._held_until = max(self._held_until, now + seconds)

    def held(self, now: float) -> float:
        """Seconds until a hold is over; 0.0: there is none."""
        return max(0.0, self._held_until - now)
