"""One client's connection, which ends where the client leaves it hanging. What is in it is uvicorn's business."""

import socket
from asyncio import BaseTransport, TimerHandle
from collections.abc import Mapping
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

CONNECTIONS = 10_000  # at once; one that holds a request costs its memory, one that does not a file descriptor
PIPELINED = 16  # requests that wait behind one whose answer is not complete


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with bounds for what it leaves unbounded.

    It ends a connection that is idle between requests; but one that is new, or in the middle of a request's head, may
    be silent for ever, and a head may grow for ever. A client that takes no answer is waited for as long as it likes,
    and each of the requests that a client sends without waiting is taken apart at once. The body of a request whose
    answer is out (it was too large) is taken to its end, however slowly that comes.
    """

    head_seconds: ClassVar = 20.0
    head_octets: ClassVar = 65_536  # where a head does not come all at once
    reader_seconds: ClassVar = 45.0  # less than `streaming.READER_SECONDS`: it is no defect of ours

    _head_timer: TimerHandle | None = None
    _head_octets = 0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn's signature is narrower than asyncio's
        if len(self.connections) > CONNECTIONS:
            self.transport.abort()
            return
        self._bound_reader(transport.get_extra_info("socket"))
        self._await_head()

    def _bound_reader(self, connected: Any) -> None:  # noqa: ANN401 - a socket, or what the event loop calls one
        """Have the kernel end the connection when the client has taken nothing for so long, also if all that is left
        to do is to send the rest and close. It knows what has arrived; we only what we gave it."""
        if hasattr(socket, "TCP_USER_TIMEOUT") and connected.family != socket.AF_UNIX:
            milliseconds = int(self.reader_seconds * 1000)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def data_received(self, data: bytes) -> None:
        message: Mapping[str, Any] | None = self.scope  # there is none at first
        super().data_received(data)
        if message and message is self.scope and "method" not in message:
            self._head_octets += len(data)  # all of it was of one head
            if self._head_octets > self.head_octets:
                self.transport.close()
        if not self._request_is_open():
            # It was of a head, then; or of a body that nobody reads any more, which has as long as a head.
            self._await_head()

    def _request_is_open(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # there is none at first
        return cycle is not None and not cycle.response_complete

    def on_headers_complete(self) -> None:
        self._head_is_here()
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError  # which stops the parser: there may be thousands more in what was read

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _head_is_here(self) -> None:
        self._head_octets = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
