"""Very many clients at once, each with a connection of its own, that cost next to nothing themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

_HEADER_END = b"\r\n\r\n"
_AT_A_TIME = 500  # connections that are being opened: fewer than a listener lets wait


@dataclass(frozen=True)
class Answer:
    """``seconds`` is how long it took to come."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def retry_after(self) -> int:
        return int(self.headers.get("retry-after", "0"))


class HttpConnection:
    """One request after the other, each given and answered as it goes over the wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: bytes) -> Answer:
        start = time.perf_counter()
        self._writer.write(request)
        head = (await self._reader.readuntil(_HEADER_END)).decode("latin-1")
        status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, body, time.perf_counter() - start)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def crowd(host: str, port: int, count: int) -> AsyncIterator[Sequence[HttpConnection]]:
    """So many connections, all of them open before the first is used."""
    connections: list[HttpConnection] = []
    try:
        while len(connections) < count:
            some = min(_AT_A_TIME, count - len(connections))
            opened = (asyncio.open_connection(host, port) for _ in range(some))
            connections += [HttpConnection(*each) for each in await asyncio.gather(*opened)]
        yield connections
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))
