"""What is done on the side: begun in a moment that cannot wait for it, and carried to its end by a task of its own."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from cbemail.errors import CbemailError

log = logging.getLogger(__name__)


class Chores:
    """One that the store or a server refuses is logged and let be: nobody waits for its outcome."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()  # under way

    def begin(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(tolerantly(chore))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def tolerantly(chore: Coroutine[Any, Any, None]) -> None:
    """Do it here and now, on the same terms."""
    try:
        await chore
    except CbemailError as error:
        log.warning("a chore of the outbox failed: %s", error.code)
