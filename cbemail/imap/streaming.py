"""The one great literal of a FETCH, read as it arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

from cbemail.imap.flight import Completion
from cbemail.imap.protocol import ImapSyntaxError
from cbemail.timing import spent_on

# Octets of a streamed literal that may wait for a slow reader before the socket is no longer read.
STREAM_HIGH_WATER = 256 * 1024


class Source(Protocol):
    """The connection that a literal comes on."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    broken: bool

    def stream_deadline(self, received: int, waited: float) -> AbstractContextManager[None]: ...


class LiteralStream:
    """The one literal of a FETCH, piece by piece: holds a little, and stops the socket when the reader is slower.

    ``size`` is the literal's length in octets, or None where the server sent the value in another way, too small to
    stream; it then stands in ``completion``, which is there at the end.
    """

    def __init__(self, source: Source, done: asyncio.Future[list[Completion]]) -> None:
        self.size: int | None = None
        self.received = 0
        self._source = source
        self._done = done
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._changed = asyncio.Event()
        self._waited = 0.0
        done.add_done_callback(lambda _: self._changed.set())

    def begin(self, size: int) -> None:
        if self.size is not None:  # its octets would be taken for more of the first
            raise ImapSyntaxError("one FETCH was answered with two great literals")
        self.size = size
        self._changed.set()

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._held += len(chunk)
        self.received += len(chunk)
        if self._held >= STREAM_HIGH_WATER and not self._paused:
            self._paused = True
            self._source.transport.pause_reading()
        self._changed.set()

    async def started(self) -> None:
        """Wait until ``size`` is known, or the command is over without a literal."""
        while self.size is None and not self._done.done():
            await self._wait()

    async def completion(self) -> Completion:
        """How the command ended; raises its refusal."""
        while not self._done.done():
            await self._wait()
        return self._done.result()[0].require_ok()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._done.done() or self._chunks:
            if self._chunks:
                yield self._take()
            else:
                await self._wait()
        await self.completion()

    def close(self) -> None:
        """Forget what was not read. The next command's answer must not find the socket stopped."""
        self._take()

    def _take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            if not self._source.broken:
                self._source.transport.resume_reading()
        return data

    async def _wait(self) -> None:
        self._changed.clear()
        start = self._source.loop.time()
        with spent_on("imap"), self._source.stream_deadline(self.received, self._waited):
            await self._changed.wait()
        self._waited += self._source.loop.time() - start
