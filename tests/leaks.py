"""Tasks and sockets that outlive what made them: each is a leak in the service, so it fails the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
    """The file descriptors of this loop. Those of other threads are none of a test's business.

    A transport that has been told the other side is gone is not watched any more, yet open until it is closed.
    """
    loop: Any = asyncio.get_running_loop()  # nothing public tells
    transports = {number for number, each in loop._transports.items() if each._sock is not None}
    return transports | set(loop._selector.get_map())
