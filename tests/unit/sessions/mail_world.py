"""The Internet of a discovery test: names lead where the test says, and nothing else is there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_network

from aiohappyeyeballs import AddrInfoType
from dns.asyncresolver import Resolver

from cbemail.hosts import MailHosts
from cbemail.sessions.discovery import Discovery
from cbemail.sessions.dns_records import DnsRecords
from cbemail.sessions.sources import ServerSources
from cbemail.web import Web
from tests.certificates import Certificates

PUBLIC = "9.9.9.9"
ISPDB = "https://ispdb.net/v1.1/"
PORTS = (143, 465, 587, 993)


class Names:
    """A resolver for `MailHosts`: a name leads to an address, or one port of it somewhere else."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._ports: dict[tuple[str, int], tuple[str, int]] = {}
        self.asked: list[str] = []

    def lead(self, name: str, address: str = PUBLIC) -> None:
        self._addresses[name] = address

    def lead_web(self, name: str) -> None:
        """There is a web site at ``name``, and nothing else: no packet of a test leaves this machine."""
        self._ports[name, 443] = (PUBLIC, 443)

    def lead_port(self, name: str, port: int, to: int) -> None:
        """``port`` at ``name`` is ``to`` on this machine."""
        self._ports[name, port] = ("127.0.0.1", to)
        self._addresses.setdefault(name, "127.0.0.1")

    async def __call__(self, name: str, port: int) -> Sequence[AddrInfoType]:
        self.asked.append(name)
        if (name, port) in self._ports:
            place = self._ports[name, port]
        elif name in self._addresses:
            place = (self._addresses[name], port)
        else:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)]


class MailWorld:
    """All that a `Discovery` stands on, ready to be told of servers."""

    def __init__(self, certificates: Certificates | None = None, *, local: bool = False) -> None:
        self.names = Names()
        self.hosts = MailHosts(
            allow_networks=[ip_network("127.0.0.0/8")] if local else [],
            allow_ports=PORTS,
            ca_file=certificates.ca_file if certificates is not None else None,
            resolve=self.names,
        )
        self.web = Web(self.hosts)
        self.now = 0.0
        self.admitted = 0

    def discovery(self, resolver: Resolver | None = None, **options: float) -> Discovery:
        """One whose deadlines are far away, unless ``options`` say otherwise; without ``resolver`` DNS is silent."""
        records = DnsRecords(resolver or Resolver(configure=False))
        sources = ServerSources(self.hosts, self.web, records, ispdb=ISPDB)
        patient: dict[str, float] = {"look_up_seconds": 30, "guess_seconds": 30}
        return Discovery(sources, clock=lambda: self.now, **(patient | options))  # type: ignore[arg-type]

    def admit(self) -> None:
        self.admitted += 1
