"""A scripted SMTP server's hand on the answers to messages: each waits until the test lets it through."""

from __future__ import annotations

import asyncio

from tests.fakes.script import NORMAL, Reply
from tests.fakes.scripted_smtp import ScriptedSmtp


class Gate:
    """Holds what a server says to the final dot. The messages have arrived by then, and are counted."""

    def __init__(self, server: ScriptedSmtp) -> None:
        self._places = asyncio.Semaphore(0)
        self._is_open = False
        server.on(".", self._hold)

    def let(self, messages: int = 1) -> None:
        """Answer so many."""
        for _ in range(messages):
            self._places.release()

    def open(self) -> None:
        """Answer all, those to come as well."""
        self._is_open = True
        self._places.release()

    async def _hold(self, _: bytes) -> Reply:
        await self._places.acquire()
        if self._is_open:
            self._places.release()
        return NORMAL
