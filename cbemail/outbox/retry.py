"""When a message that could not be handed over is tried again, and when it has been tried enough (pure)."""

from datetime import datetime, timedelta

from msgspec import Struct


class RetryPolicy(Struct, frozen=True):
    """``delays`` are the seconds after the first attempt, the second, and so on; the last one stays.

    A client that names no number of attempts gets ``attempts`` of them, and as many more as it takes until the first
    is ``lifetime`` seconds ago: a server that is down for an hour or two costs nobody a message.
    """

    delays: tuple[float, ...] = (15, 60, 5 * 60, 15 * 60, 30 * 60, 60 * 60)
    spread: float = (
        0.2  # of each delay, up or down: what failed together need not come back together
    )
    attempts: int = 5
    lifetime: float = 4 * 60 * 60

    def delay(self, attempts: int) -> float:
        """Seconds from that many attempts to the next one, without the spread."""
        return self.delays[min(attempts, len(self.delays)) - 1]

    def elapsed(self, attempts: int) -> timedelta:
        """From the first attempt to the one after that many, by the delays alone.

        >>> RetryPolicy().elapsed(2)
        datetime.timedelta(seconds=75)
        """
        return timedelta(seconds=sum(self.delay(each) for each in range(1, attempts + 1)))


DEFAULT_RETRIES = RetryPolicy()


def next_attempt(
    *,
    attempts: int,
    max_attempts: int | None,
    first_tried_at: datetime,
    now: datetime,
    jitter: float,
    policy: RetryPolicy = DEFAULT_RETRIES,
) -> datetime | None:
    """When to try again, to the second; None: give up.

    Args:
        attempts: made so far, at least one.
        max_attempts: exactly so many, where the client asked for it.
        jitter: from -1 to 1.
    """
    if max_attempts is not None:
        enough = attempts >= max_attempts
    else:
        old = (now - first_tried_at).total_seconds() >= policy.lifetime
        enough = attempts >= policy.attempts and old
    if enough:
        return None
    seconds = policy.delay(attempts) * (1 + policy.spread * jitter)
    return now + timedelta(seconds=round(seconds))
