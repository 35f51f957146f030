"""How fast a session may send: what its provider is known to allow, and what the server shows it takes (pure).

``now`` is monotonic time in seconds, the same clock for all calls on one object.
"""

from collections import deque
from collections.abc import Callable

from cbemail.ids import SessionId
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

    def __init__(self, per_minute: int) -> None:
        self._interval = 60 / per_minute
        # By the even beat the next message is due then; it may come so far ahead of it.
        self._due = float("-inf")
        self._leeway = max(0.0, 1 - self._interval)

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
    """What a provider allows an account in any 24 hours; counted by the hour, and since this process began.

    What went before that the provider knows and we do not: then its refusal is what tells.
    """

    def __init__(self, per_day: int) -> None:
        self._per_day = per_day
        self._hours: deque[tuple[float, int]] = deque()  # when each began, and messages in it
        self._taken = 0

    def delay(self, now: float) -> float:
        """Seconds until there is some of it left; 0.0: there is."""
        self._forget_before(now - _DAY - _HOUR)
        if self._taken < self._per_day:
            return 0.0
        return self._hours[0][0] + _HOUR + _DAY - now

    def take(self, now: float) -> None:
        if not self._hours or now - self._hours[-1][0] >= _HOUR:
            self._hours.append((now, 0))
        began, messages = self._hours[-1]
        self._hours[-1] = began, messages + 1
        self._taken += 1

    def _forget_before(self, moment: float) -> None:
        while self._hours and self._hours[0][0] <= moment + _DUST:
            self._taken -= self._hours.popleft()[1]


class Upstream:
    """One session at its mail server, whatever sends for it: how many connections, how fast, and whether at all.

    After a throttle nothing goes out for a while, and for twice as long each time it happens again before a message
    was taken.
    """

    def __init__(self, limits: ProviderLimits) -> None:
        self._concurrency = Concurrency(limits.connections)
        self._rate = None if limits.per_minute is None else TokenBucket(limits.per_minute)
        self._day = None if limits.per_day is None else Allowance(limits.per_day)
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

    def delay(self, now: float) -> float:
        """Seconds until the next message may go, as far as rate and holds are concerned; 0.0: now."""
        rate = 0.0 if self._rate is None else self._rate.delay(now)
        return max(rate, self.held(now))

    def day_delay(self, now: float) -> float:
        """Seconds until the provider allows the account any more at all; 0.0: it does."""
        return 0.0 if self._day is None else self._day.delay(now)

    def take(self, now: float, *, recipients: int = 1) -> None:
        """A message goes, to so many."""
        if self._rate is not None:
            self._rate.take(now)
        for _ in range(recipients if self._day is not None else 0):
            self._day.take(now)  # type: ignore[union-attr]  # the line above has looked

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


class Upstreams:
    """What is known of each session's server, for as long as the process and the session last."""

    def __init__(self, limits_of: Callable[[SessionId], ProviderLimits]) -> None:
        self._limits_of = limits_of
        self._known: dict[SessionId, Upstream] = {}

    def of(self, session_id: SessionId) -> Upstream:
        """Raises whatever ``limits_of`` does for a session that has ended."""
        upstream = self._known.get(session_id)
        if upstream is None:
            upstream = self._known[session_id] = Upstream(self._limits_of(session_id))
        return upstream

    def connections(self, session_id: SessionId) -> int:
        """How many a session may have just now. For the pool, which asks for sessions that have ended as well."""
        upstream = self._known.get(session_id)
        return START if upstream is None else upstream.limit

    def forget(self, session_id: SessionId) -> None:
        self._known.pop(session_id, None)
