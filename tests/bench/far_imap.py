"""An IMAP server on another continent, which counts how often its client waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from tests.certificates import Certificates
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.listener import let_client_read
from tests.fakes.scripted_imap import ScriptedImap

ROUND_TRIP = 0.08  # seconds


class FarImap(ScriptedImap):
    """``flights`` counts round trips after TCP and TLS: a greeting is one, and so are all commands that were sent
    before the answer to the first of them can have reached the client."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(tls=certificates.server_context(), implicit_tls=True)
        self._way: FaultProxy | None = None
        self._command_flights = 0
        self._last_heard = 0.0

    @classmethod
    @asynccontextmanager
    async def running(cls, certificates: Certificates) -> AsyncIterator[Self]:
        """One whose clients connect to ``front.port``, half a round trip away."""
        async with cls(certificates) as server, FaultProxy(server.host, server.port) as way:
            way.up.latency = way.down.latency = ROUND_TRIP / 2
            server._way = way
            yield server

    @property
    def front(self) -> FaultProxy:
        assert self._way is not None, "use `running`"
        return self._way

    async def drop_clients(self) -> None:
        """Hang up on everybody, and wait until they have noticed."""
        self.hang_up()
        async with asyncio.timeout(10):
            while self.front.open_connections:
                await let_client_read()

    @property
    def flights(self) -> int:
        return self.connections + self._command_flights

    def record(self, command: bytes) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._last_heard > ROUND_TRIP / 2:
            self._command_flights += 1
        self._last_heard = now
        super().record(command)
