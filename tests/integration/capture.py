"""Where mail ends up: an SMTP server in a thread of its own, for messages that real servers pass on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Self

from tests.fakes.scripted_smtp import Captured, ScriptedSmtp


class Capture(ScriptedSmtp):
    """Accepts every message. Any thread may ask what has come, or wait for it."""

    def __init__(self) -> None:
        super().__init__(mechanisms=())
        self._arrival = threading.Condition()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """Serve in a new thread, so that it goes on whatever a test's event loop does."""
        capture = cls()
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def serve() -> None:
            async with capture:
                stop = asyncio.Event()
                started.set_result((asyncio.get_running_loop(), stop))
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="mail capture")
        thread.start()
        loop, stop = started.result(timeout=10)
        try:
            yield capture
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()

    def capture(self, message: Captured) -> None:
        with self._arrival:
            self.messages.append(message)
            self._arrival.notify_all()

    def sent_to(self, recipient: str) -> list[Captured]:
        with self._arrival:
            return [message for message in self.messages if recipient in message.recipients]

    def wait_for(self, recipient: str, count: int = 1, *, within: float = 20.0) -> list[Captured]:
        """The messages for ``recipient``, once there are ``count``; a TimeoutError if there never are."""
        with self._arrival:
            if not self._arrival.wait_for(lambda: len(self.sent_to(recipient)) >= count, within):
                raise TimeoutError(f"{len(self.sent_to(recipient))} of {count} for {recipient}")
            return self.sent_to(recipient)
