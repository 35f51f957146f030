"""Group commit: what many callers write at the same time goes to disk in one transaction.

A commit costs an fdatasync, however much it holds. While one group is on its way to the disk the next one gathers,
so a lone caller never waits for company and sixty-four callers share one wait.
"""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Generic, TypeVar

from cbemail.errors import Overloaded

GROUP_LIMIT = (
    256  # pieces of work a transaction: bounds how long the first of them waits for the last
)
GATHER_SECONDS = (
    0.002  # between two groups, where a second is wanted at once; as long as a small commit takes
)
WAITING_LIMIT = 10_000  # past this the disk has stopped keeping up, and more waiting helps nobody

Work = TypeVar("Work")
Result = TypeVar("Result")


class GroupCommit(Generic[Work, Result]):
    """Hands work to the one thread that writes, a group at a time, and each caller its own outcome.

    ``transact`` runs in the writer's thread. It returns when the work is on disk, with an outcome for each piece
    in order: a result, or the exception its caller should see. All bookkeeping is done in the event loop, between
    two awaits, so there is nothing to lock; and by callbacks rather than by a task, so there is nothing that a
    cancellation could stop half-way.
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

    async def submit(self, work: Work) -> Result:
        """Do ``work`` in one of the next transactions and wait until that is on disk.

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
            # Not at once: whoever else is ready in this turn of the loop comes along.
            self._loop.call_soon(self._start_group)
        return await future

    async def drained(self) -> None:
        """Wait until all that was submitted is done."""
        await self._idle.wait()

    def _start_group(self) -> None:
        size = min(len(self._waiting), GROUP_LIMIT)
        group = [self._waiting.popleft() for _ in range(size)]
        running = self._loop.run_in_executor(
            self._writer, self._transact, [work for work, _ in group]
        )
        running.add_done_callback(partial(self._finish_group, [future for _, future in group]))

    def _finish_group(
        self, futures: list[Future[Result]], running: Future[Sequence[Result | Exception]]
    ) -> None:
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
