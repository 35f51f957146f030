"""Sharing the event loop: what work that may be long does so as not to hold up everybody else."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")

TURN_SECONDS = 0.01  # of the event loop, at a stretch; a request that waits for ten of them has waited unnoticed
THREAD_OCTETS = 32_768  # of what is worked on: a millisecond of work holds nobody up, ten do


class Turn:
    """A task's turn on the event loop, for work that comes in many small pieces, some of which a stranger has made
    large: between them the others get theirs."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def share(self) -> None:
        """End the turn if it has lasted long enough."""
        if perf_counter() - self._began > TURN_SECONDS:
            await asyncio.sleep(0)
            self._began = perf_counter()


async def off_the_loop(octets: int, work: Callable[[], T]) -> T:
    """The result of ``work`` on that many octets: done here where they are few, in a thread where they are many."""
    if octets <= THREAD_OCTETS:
        return work()
    return await anyio.to_thread.run_sync(work)
