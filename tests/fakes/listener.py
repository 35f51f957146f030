"""A TCP server of a test: a free loopback port, a task a connection, and nothing left behind."""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType
from typing import Self

from anyio.lowlevel import checkpoint

# StreamReader refuses longer lines; a test may well send a long one to see what becomes of it.
_LINE_LIMIT = 64 * 1024 * 1024


async def let_client_read() -> None:
    """Two turns of the loop: a client in the same loop has then read what was written before."""
    await checkpoint()
    await checkpoint()


class Gone(Exception):
    """The conversation is over: the client has left, or the script cut it off."""


class Listener:
    """Listens while its ``async with`` block runs. Subclasses say in `converse` what a connection is for.

    A defect in `converse` fails the test that used the server, when the block ends: otherwise the test would only
    see a connection closing, which is what a faulty client looks like too.
    """

    host = "127.0.0.1"

    def __init__(self, *, tls: ssl.SSLContext | None = None, implicit_tls: bool = False) -> None:
        self.tls = tls
        self.connections = 0  # accepted so far, closed ones included
        self._implicit_tls = implicit_tls
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._ended: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    @property
    def port(self) -> int:
        assert self._server is not None, "the server has not been started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def hang_up(self) -> None:
        """Drop every open connection at once, as a server that is restarted does."""
        for task in self._open:
            task.cancel()

    async def __aenter__(self) -> Self:
        context = self.tls if self._implicit_tls else None
        self._server = await asyncio.start_server(
            self._accept, self.host, 0, ssl=context, limit=_LINE_LIMIT
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()
        for task in self._ended:
            if not task.cancelled():
                task.result()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._attend(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._end)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unsent_matters = False
        try:
            await self.converse(reader, writer)
            unsent_matters = True
        except (Gone, OSError, EOFError):  # the client left, or was cut off: a test's right
            unsent_matters = True
        finally:
            # TLS would wait for the client to say goodbye as well; it has our own goodbye already.
            abort = not unsent_matters or writer.get_extra_info("ssl_object") is not None
            writer.close()
            if abort:
                writer.transport.abort()

    def _end(self, task: asyncio.Task[None]) -> None:
        writer = self._open.pop(task)
        if task.cancelled():  # perhaps before it began, and so without having closed anything
            writer.transport.abort()
        self._ended.append(task)
