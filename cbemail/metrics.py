"""What the service counts of itself.

Counting is on the road of every request, so it is a few additions to plain objects, in the event loop's thread. Names,
labels and text are made when somebody asks (`api/metrics`).
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from time import perf_counter

from msgspec import Struct

# Bounds of the buckets, in seconds: of a request, from what memory answers to what a mail server takes a minute over;
# of a wait for a connection; of a commit; of the event loop's lag, which is to be felt from ten milliseconds on.
REQUEST_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WAIT_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
GROUP_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

LAG_EVERY = 0.25  # seconds between two looks at the event loop


class Distribution:
    """How often a quantity was how large, in buckets, and the sum of all.

    >>> waits = Distribution((1.0, 5.0))
    >>> for seconds in (0.5, 1.0, 3.0, 60.0):
    ...     waits.observe(seconds)
    >>> waits.cumulative(), waits.total
    ([2, 3, 4], 64.5)
    """

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, quantity: float) -> None:
        self._counts[bisect_left(self.bounds, quantity)] += 1
        self.total += quantity

    def cumulative(self) -> list[int]:
        """How many were at most as large as each bound; last, how many there were."""
        return list(accumulate(self._counts))


@contextmanager
def timed(distribution: Distribution) -> Iterator[None]:
    """Observe the seconds that the block takes, however it ends."""
    began = perf_counter()
    try:
        yield
    finally:
        distribution.observe(perf_counter() - began)


class RequestTally:
    """The requests that were served. Operations are known by name, never by path; answers by class of status."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = (
            Counter()
        )  # operation and class: 2 of 2xx; 0: cut off
        self.seconds: dict[str, Distribution] = {}  # by operation
        self.phases: dict[str, float] = {}  # seconds by phase (`timing`)
        self.problems: Counter[str] = Counter()  # by code

    def observe(
        self,
        operation: str,
        status: int,
        seconds: float,
        account: Mapping[str, float],
        code: str | None,
    ) -> None:
        """Count one request, when it is over."""
        self.answers[operation, status // 100] += 1
        distribution = self.seconds.get(operation)
        if distribution is None:
            distribution = self.seconds[operation] = Distribution(REQUEST_SECONDS)
        distribution.observe(seconds)
        for phase, spent in account.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + spent
        if code is not None:
            self.problems[code] += 1


class PoolStatistics(Struct, frozen=True):
    """A pool's connections by state, over all sessions; and how many wait for one."""

    lent: int
    idle: int
    waiting: int
    opening: int = 0


async def watch_loop(lag: Distribution) -> None:
    """Look, for ever, how much later than it asked a task is woken: what every request waits for, too."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY
        await asyncio.sleep(LAG_EVERY)
        lag.observe(max(0.0, loop.time() - due))
