"""A certificate authority of the test run's own, and one certificate for every server on this machine."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme


@dataclass(frozen=True)
class Certificates:
    """``ca_file`` is what a client is given to trust: `MAIL_CA_FILE`."""

    ca_file: Path
    chain_file: Path
    key_file: Path

    @classmethod
    def issue(cls, directory: Path, *names: str) -> Self:
        """For ``names``, by default `localhost` and `127.0.0.1`. Another name makes a server that lies."""
        authority = trustme.CA()
        certificate = authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
        issued = cls(directory / "ca.pem", directory / "chain.pem", directory / "key.pem")
        authority.cert_pem.write_to_path(issued.ca_file)
        for index, link in enumerate(certificate.cert_chain_pems):
            link.write_to_path(issued.chain_file, append=index > 0)
        certificate.private_key_pem.write_to_path(issued.key_file)
        issued.key_file.chmod(0o600)
        return issued

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain_file, self.key_file)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Trusts this authority and nobody else."""
        return ssl.create_default_context(cafile=self.ca_file)
