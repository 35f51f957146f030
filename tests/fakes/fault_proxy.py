"""A TCP proxy that does to octets what networks do: delays, trickles, cuts, resets, stalls, half-closes. And counts them.

async with FaultProxy("127.0.0.1", dovecot.imap_port) as proxy:
    ...connect to proxy.host, proxy.port, log in...
    proxy.down.fail(CUT, after=100)     # the next answer breaks off in its 101st octet
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum, auto
from typing import Final

from tests.fakes.listener import Gone, Listener, let_client_read

_SEGMENT = 65536


class Fault(Enum):
    CUT = auto()  # the connection is closed, both ways
    RESET = auto()  # it is closed too, and whoever the octet was for is sent a RST
    STALL = auto()  # nothing more passes in this direction, and nobody is told
    HALF_CLOSE = auto()  # this direction ends, the other goes on


CUT: Final = Fault.CUT
RESET: Final = Fault.RESET
STALL: Final = Fault.STALL
HALF_CLOSE: Final = Fault.HALF_CLOSE


class Flow:
    """One direction, over all connections of the proxy. Changes hold from the next segment on."""

    def __init__(self) -> None:
        self.octets = 0  # passed on so far
        self.latency = 0.0  # seconds on the way; does not narrow the road
        self.trickle = False  # an octet a segment
        self._fault: Fault | None = None
        self._until_fault = 0

    def fail(self, fault: Fault, *, after: int = 0) -> None:
        """Fail once, in place of the octet that follows the next ``after`` ones.

        The connection it happens to stays failed; those made later work.
        """
        self._fault = fault
        self._until_fault = after

    def admit(self, segment: bytes) -> tuple[bytes, Fault | None]:
        """As much of ``segment`` as may pass, and the fault that happens instead of the rest."""
        passing, fault = segment, None
        if self._fault is not None and len(segment) > self._until_fault:
            passing, fault = segment[: self._until_fault], self._fault
            self._fault = None
        self._until_fault -= len(passing)
        self.octets += len(passing)
        return passing, fault


class FaultProxy(Listener):
    """``up`` is towards the server, ``down`` towards the client. `hang_up` breaks every connection at once."""

    def __init__(self, target_host: str, target_port: int) -> None:
        super().__init__()
        self._target = (target_host, target_port)
        self.up = Flow()
        self.down = Flow()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_carry(reader, far_writer, self.up))
                directions.create_task(_carry(far_reader, writer, self.down))
        except* (Gone, OSError):
            pass  # one direction has failed; the other has ended with it
        finally:
            far_writer.close()


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, flow: Flow) -> None:
    """Read as fast as octets come and pass them on when they are due: latency must not become bandwidth."""
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    now = asyncio.get_running_loop().time

    async def deliver() -> None:
        while True:
            due, segment = await on_the_way.get()
            await asyncio.sleep(due - now())
            passing, fault = flow.admit(segment)
            await _pass_on(passing, sink, trickle=flow.trickle)
            if fault is RESET:
                _reset_when_closed(sink)
            if fault in {CUT, RESET}:
                raise Gone
            if fault is STALL:
                await asyncio.Event().wait()  # until the proxy is closed
            if fault is HALF_CLOSE or not segment:
                sink.write_eof()
                return

    async with asyncio.TaskGroup() as road:
        road.create_task(deliver())
        while segment := await source.read(_SEGMENT):
            on_the_way.put_nowait((now() + flow.latency, segment))
        on_the_way.put_nowait((now() + flow.latency, b""))


def _reset_when_closed(sink: asyncio.StreamWriter) -> None:
    at_once = struct.pack("ii", 1, 0)  # struct linger: on, for no seconds
    sink.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)


async def _pass_on(octets: bytes, sink: asyncio.StreamWriter, *, trickle: bool) -> None:
    size = 1 if trickle else max(len(octets), 1)
    for start in range(0, len(octets), size):
        sink.write(octets[start : start + size])
        await sink.drain()
        await let_client_read()
