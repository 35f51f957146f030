"""A network that forgets connections, as a firewall does that was restarted: it drops what comes on them, and says nothing.

Run inside a network namespace, this is a program: it asks a mail server something across such a network, and writes how
often that was asked, and over how many connections.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from pathlib import Path

import msgspec
import uvloop
from anyio.lowlevel import checkpoint

from cbemail.hosts import MailHosts, MailServer, Password, Security
from cbemail.ids import SessionId
from cbemail.imap import connection as connection_module
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import open_imap
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import INBOX
from cbemail.imap.repeating import repeatable
from cbemail.imap.wire import Command
from tests.certificates import Certificates
from tests.fakes.script import NORMAL, Reply
from tests.fakes.scripted_imap import PASSWORD, ScriptedImap
from tests.integration.private_network import namespaces
from tests.integration.servers import program

_ROOT = Path(__file__).parents[2]
_SECONDS = 60
_JOE = SessionId("ses_joe")
_QUESTION = Command("NOOP")


@dataclass(frozen=True)
class Outcome:
    asked: int  # as often as the server has heard it
    connections: int  # made in all
    kept: int  # of them, in the end


def ask_across_it(scenario: str) -> Outcome:
    """What came of one of the `_SCENARIOS`. All that is asked in it must be answered."""
    program("iptables")  # what is missing inside would be no reason to skip
    done = subprocess.run(
        [*namespaces(), sys.executable, "-m", __name__, scenario],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Outcome)


# ---- inside


class Client:
    """A session with warm connections to a mail server across the network."""

    def __init__(self, server: ScriptedImap, ca_file: Path) -> None:
        self.server = server
        self.pool = ImapPool(self._connect, per_session=3, total=3, idle_seconds=60)
        loopback = [ip_network("127.0.0.0/8")]
        self._hosts = MailHosts(allow_networks=loopback, allow_ports=(), ca_file=ca_file)

    async def _connect(self, _: SessionId) -> ImapConnection:
        server = MailServer(self.server.host, self.server.port, Security.TLS, "joe@example.org")
        return await open_imap(server, Password(PASSWORD), self._hosts)

    async def warm(self, connections: int) -> list[ImapConnection]:
        """So many, at rest; the first is the next to be lent."""
        async with AsyncExitStack() as stack:
            lease = self.pool.lease
            return [await stack.enter_async_context(lease(_JOE, INBOX)) for _ in range(connections)]

    async def ask(self) -> None:
        await repeatable(self.pool, _JOE, INBOX, lambda imap: imap.run_one(_QUESTION))


async def _forgotten(client: Client) -> None:
    for connection in await client.warm(3):
        _forget(connection)

    await client.ask()


async def _slow(client: Client) -> None:
    """The server takes longer over the first answer than a forgotten connection takes to be noticed."""

    async def in_its_own_time(_: bytes) -> Reply:
        while client.server.connections < 3:
            await checkpoint()
        return NORMAL

    client.server.on("NOOP", in_its_own_time, NORMAL)
    _, forgotten = await client.warm(2)
    _forget(forgotten)

    await asyncio.gather(client.ask(), client.ask())


_SCENARIOS: dict[str, Callable[[Client], Awaitable[None]]] = {
    "forgotten": _forgotten,
    "slow": _slow,
}


def _forget(connection: ImapConnection) -> None:
    """Let nothing arrive on it any more, in either direction."""
    _, port = connection.transport.get_extra_info("sockname")
    for end in ("--sport", "--dport"):
        drop = f"-A INPUT -p tcp {end} {port} -j DROP"
        subprocess.run([program("iptables"), *drop.split()], check=True)


async def _play(scenario: Callable[[Client], Awaitable[None]], directory: Path) -> Outcome:
    certificates = Certificates.issue(directory)
    async with ScriptedImap(tls=certificates.server_context(), implicit_tls=True) as server:
        client = Client(server, certificates.ca_file)
        await scenario(client)
        kept = client.pool.statistics().idle
        outcome = Outcome(server.count(_QUESTION.name), server.connections, kept)
        client.pool.close()
    return outcome


def main() -> None:
    # Every connection has rested, and is noticed to be forgotten soon: nothing else is to be waited for.
    connection_module.REST_SECONDS = -1.0
    connection_module.UNACKNOWLEDGED_SECONDS = 0.3
    subprocess.run([program("ip"), "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        outcome = uvloop.run(_play(_SCENARIOS[sys.argv[1]], Path(directory)))  # as it is served
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
