"""Tasks and sockets that outlive what made them: each is a leak in the service, so it fails the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.lowlevel import checkpoint


@asynccontextmanager
async def nothing_left_behind(*, patience: float = 2.0) -> AsyncIterator[None]:
    """Fail if the block leaves a task running or a socket open in this event loop.

    What is closing may take ``patience`` seconds to be closed: a socket needs a turn of the loop, TLS a goodbye.
    """
    tasks_before, sockets_before = asyncio.all_tasks(), _sockets()

    yield

    deadline = time.monotonic() + patience
    while True:
        tasks = asyncio.all_tasks() - tasks_before - {asyncio.current_task()}
        sockets = _sockets() - sockets_before
        if not (tasks or sockets) or time.monotonic() > deadline:
            break
        await checkpoint()
    assert not tasks, "tasks left running"
    assert not sockets, "sockets left open"


def _sockets() -> set[int]:
    """The file descriptors this loop watches. Those of other threads are none of a test's business."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined] # nothing public tells
    return set(selector.get_map())
