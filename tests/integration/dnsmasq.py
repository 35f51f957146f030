"""A real name server: dnsmasq, with the records a test gives it, and no way to ask anybody else.

with Dnsmasq.running(directory, "mx-host=acme.org,mx.acme.org,10") as dns: ... dns.resolver()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from dns.asyncresolver import Resolver

from tests.integration.servers import free_port, program, start_server

_CONFIGURATION = """
port={port}
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
no-poll
user=
pid-file=
local-ttl={ttl}
local=/{domain}/
"""


class Dnsmasq:
    """Answers for one domain, and refuses questions for every other."""

    ttl = 600  # seconds, of every record

    def __init__(self, directory: Path, domain: str, records: tuple[str, ...]) -> None:
        self._configuration = directory / "dnsmasq.conf"
        self._domain = domain
        self._records = records
        self._port = 0  # until it is started

    def _configure(self) -> list[str | Path]:
        self._port = free_port()
        own = _CONFIGURATION.format(port=self._port, ttl=self.ttl, domain=self._domain)
        self._configuration.write_text(own + "\n".join(self._records) + "\n")
        return [
            program("dnsmasq"),
            "--keep-in-foreground",
            "--log-facility=-",
            f"--conf-file={self._configuration}",
        ]

    @classmethod
    @contextmanager
    def running(cls, directory: Path, domain: str, *records: str) -> Iterator[Self]:
        """Start one; ``records`` are written as dnsmasq's configuration has them."""
        dnsmasq = cls(directory, domain, records)
        process = start_server(dnsmasq._configure, ready=b"started, version")
        try:
            yield dnsmasq
        finally:
            process.stop()

    def resolver(self) -> Resolver:
        """One that asks here, and nowhere else."""
        resolver = Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self._port
        return resolver
