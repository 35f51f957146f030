"""Ways to the scripted IMAP server, one by one or through a pool; all are hung up at the end."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack
from ipaddress import ip_network
from typing import Any

import pytest
from aiohappyeyeballs import AddrInfoType
from anyio.lowlevel import checkpoint

from cbemail.hosts import MailHosts, MailServer, Password, Secret, Security
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import open_imap
from cbemail.imap.pool import ImapPool
from tests.certificates import Certificates
from tests.fakes.listener import Listener
from tests.fakes.scripted_imap import PASSWORD, TOKEN, ScriptedImap

USER = "joe@example.org"
JOE, ANN, BOB = SessionId("ses_joe"), SessionId("ses_ann"), SessionId("ses_bob")
GOOD_PASSWORD = Password(PASSWORD)

IMPATIENT = 0.1  # seconds; only ever for the one thing a test makes stall
PATIENCE = 10.0  # seconds until a test that would otherwise hang is given up

LOGIN_OCTETS = [  # what a password or token looks like on the wire
    PASSWORD.encode(),
    base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()),
    base64.b64encode(f"user={USER}\x01auth=Bearer {TOKEN}\x01\x01".encode()),
]

Open = Callable[..., Coroutine[Any, Any, ImapConnection]]
MakePool = Callable[..., ImapPool]


async def to_loopback(_: str, port: int) -> Sequence[AddrInfoType]:
    """Every name is this machine's, whatever its certificate says."""
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]


@pytest.fixture
def hosts(certificates: Certificates) -> MailHosts:
    """Loopback is allowed, and the test run's own authority trusted."""
    return MailHosts(
        allow_networks=[ip_network("127.0.0.0/8")],
        allow_ports=(),
        ca_file=certificates.ca_file,
        resolve=to_loopback,
    )


@pytest.fixture
async def tls_server(certificates: Certificates) -> AsyncIterator[ScriptedImap]:
    async with ScriptedImap(tls=certificates.server_context(), implicit_tls=True) as server:
        yield server


@pytest.fixture
async def open_to(hosts: MailHosts) -> AsyncIterator[Open]:
    """Opens a connection to a server of the test, in the clear unless told otherwise."""
    with ExitStack() as hanging_up:

        async def opened(
            server: Listener,
            security: Security = Security.NONE,
            *,
            host: str = "127.0.0.1",
            secret: Secret = GOOD_PASSWORD,
            username: str = USER,
        ) -> ImapConnection:
            address = MailServer(host, server.port, security, username)
            connection = await open_imap(address, secret, hosts)
            hanging_up.callback(connection.abort)
            return connection

        yield opened


@pytest.fixture
async def imap(imap_server: ScriptedImap, open_to: Open) -> ImapConnection:
    """A connection that is logged in."""
    return await open_to(imap_server)


@pytest.fixture
async def make_pool(imap_server: ScriptedImap, open_to: Open) -> AsyncIterator[MakePool]:
    """Pools of connections to the scripted server, where every session has its mail."""
    with ExitStack() as closing:

        async def connect(session_id: SessionId) -> ImapConnection:
            return await open_to(imap_server, username=session_id)

        def made(**options: Any) -> ImapPool:
            defaults: dict[str, Any] = {
                "connect": connect,
                "per_session": 3,
                "total": 100,
                "idle_seconds": 60,
            }
            pool = ImapPool(**{**defaults, **options})
            closing.callback(pool.close)
            return pool

        yield made


def never_saw_a_login(server: ScriptedImap) -> bool:
    sent = bytes(server.received)
    return server.count("LOGIN") == 0 and not any(each in sent for each in LOGIN_OCTETS)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await checkpoint()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await checkpoint()
