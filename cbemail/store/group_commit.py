"""Group commit: what many callers write at the same time goes to disk in one transaction.

A commit costs an fdatasync, however much it holds. While one group is on its way to the disk the next one gathers,
so a lone caller never waits for company and sixty-four callers share one wait.
"""

import asyncio
import concurrent.futures
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Generic, TypeVar

from msgspec import Struct

from cbemail.errors import Overloaded
from cbemail.metrics import COMMIT_SECONDS, GROUP_SIZES, Distribution

GROUP_LIMIT = (
    256  # pieces of work a transaction: bounds how long the first of them waits for the last
)
GATHER_SECONDS = (
    0.002  # between two groups, where a second is wanted at once; as long as a small commit takes
)
WAITING_LIMIT = 10_000  # past this the disk has stopped keeping up, and more waiting helps nobody

Work = TypeVar("Work")
Result = TypeVar("Result")


class CommitStatistics(Struct, frozen=True):
    """How long groups took to be on disk, of how many writes they were; and how many writes wait now."""

    seconds: Distribution
    sizes: Distribution
    waiting: int


class GroupCommit(Generic[Work, Result]):
    """Hands work to the one thread that writes, a group at a time, and each caller its own outcome.

    ``transact`` runs in the writer's thread. It returns when the work is on disk, with an outcome for each piece
    in order: a result, or the exception its caller should see. All bookkeeping is done in the event loop, between
    two awaits, so there is nothing to lock; and by callbacks rather than by a task, so there is nothing that a
    cancellation could stop half-way. And nothing waits for a turn of the loop that need not: a busy loop's turn
    may take as long as the disk.
    """

    def __init__(
        self,
        transact: Callable[[Sequence[Work]], Sequence[Result | Exception]],
        *,
        writer: Executor,
        loop: AbstractEventLoop,
    ) -> None:
        self._transact = transact
        self._writer = writer
        self._loop = loop
        self._waiting: deque[tuple[Work, Future[Result]]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds = Distribution(COMMIT_SECONDS)
        self._sizes = Distribution(GROUP_SIZES)

    def submit(self, work: Work) -> Future[Result]:
        """Do ``work`` in one of the next transactions; the future has its outcome once that is on disk.

        From here on the work will be done once, even if the caller stops waiting: it may be in a transaction
        already, and the caller could not tell.

        Raises:
            Overloaded: too much is waiting for the disk already. Nothing was done.
        """
        if len(self._waiting) >= WAITING_LIMIT:
            raise Overloaded("Too many changes are waiting for the disk.", retry_after=5)
        future: Future[Result] = self._loop.create_future()
        self._waiting.append((work, future))
        if self._idle.is_set():
            self._idle.clear()
            # Whoever else is ready in this turn of the loop comes along.
            self._loop.call_soon(self._start_group)
        return future

    def statistics(self) -> CommitStatistics:
        return CommitStatistics(self._seconds, self._sizes, len(self._waiting))

    async def drained(self) -> None:
        """Wait until all that was submitted is done."""
        await self._idle.wait()

    def _start_group(self) -> None:
        size = min(len(self._waiting), GROUP_LIMIT)
        group = [self._waiting.popleft() for _ in range(size)]
        running = self._writer.submit(self._transact, [work for work, _ in group])
        finish = partial(self._finish_group, [future for _, future in group], self._loop.time())
        running.add_done_callback(lambda done: self._loop.call_soon_threadsafe(finish, done))

    def _finish_group(
        self,
        futures: Sequence[Future[Result]],
        began: float,
        running: "concurrent.futures.Future[Sequence[Result | Exception]]",
    ) -> None:
        self._seconds.observe(self._loop.time() - began)
        self._sizes.observe(len(futures))
        if (
            self._waiting
        ):  # under load: those just answered, and about to come again, belong in the next group too
            self._loop.call_later(GATHER_SECONDS, self._start_group)
        else:
            self._idle.set()
        error = running.exception()
        outcomes = [error] * len(futures) if error else running.result()
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
