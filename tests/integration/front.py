"""The NGINX that is shipped in `deploy/nginx`, run as it is: only ports, paths and the certificate are the test's."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tests.certificates import Certificates
from tests.integration.servers import ServerProcess, free_port, program, start_server

DEPLOY = Path(__file__).parents[2] / "deploy"
TEMPLATE = DEPLOY / "nginx" / "templates" / "cbemail.conf.template"
_PATIENCE = 30  # seconds
_PROCESS = DEPLOY / "nginx" / "nginx.conf"


class Front:
    """NGINX with TLS before one service, or before several replicas."""

    host = "localhost"  # the name it serves

    def __init__(self, directory: Path, certificates: Certificates, upstreams: list[str]) -> None:
        self.http_port = self.https_port = 0  # until it is started
        self.certificates = certificates
        self._directory = directory
        self._addresses = [urlsplit(upstream).netloc for upstream in upstreams]
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.https_port}"

    @property
    def tls(self) -> ssl.SSLContext:
        """For a client that trusts it."""
        return self.certificates.client_context()

    @classmethod
    @contextmanager
    def running(cls, certificates: Certificates, *upstreams: str) -> Iterator[Self]:
        directory = Path(tempfile.mkdtemp(prefix="cbemail-"))
        directory.chmod(0o755)  # the workers are nobody
        front = cls(directory, certificates, list(upstreams))
        front._process = start_server(front._configure, ready=b"start worker process ")
        try:
            yield front
        finally:
            front._process.stop()
            shutil.rmtree(directory)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, verify=self.tls, timeout=60, trust_env=False)

    def calls(self) -> list[dict[str, Any]]:
        """What its access log says. It is complete when NGINX has ended."""
        assert self._process is not None
        lines = self._process.log.splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"time"')]

    def _configure(self) -> list[str | Path]:
        self.http_port, self.https_port = free_port(), free_port()
        (self._directory / "site.conf").write_text(self._site())
        process = (
            _PROCESS.read_text()
            .replace("/etc/nginx/conf.d/*.conf", f"{self._directory}/site.conf")
            .replace("/run/nginx", str(self._directory))
            .replace("/dev/stderr warn", "stderr notice")  # which says when it is ready
        )
        configuration = self._directory / "nginx.conf"
        configuration.write_text(process)
        return [
            *(program("nginx"), "-g", "daemon off;"),
            *("-e", "stderr", "-p", self._directory, "-c", configuration),
        ]

    def _site(self) -> str:
        """The template, filled in as the nginx image does. A further replica is a further line, as it says."""
        first, *others = self._addresses
        values = {
            "SERVER_NAME": self.host,
            "HTTP_PORT": f"127.0.0.1:{self.http_port}",
            "HTTPS_PORT": f"127.0.0.1:{self.https_port}",
            "CERTIFICATE": str(self.certificates.chain_file),
            "CERTIFICATE_KEY": str(self.certificates.key_file),
            "CBEMAIL_ADDRESS": first,
            "MAX_BATCH_MB": "512",
            "MAX_REQUEST_MB": "39",
        }
        template = TEMPLATE.read_text()
        for other in others:
            template = template.replace(
                "    keepalive 64;", f"    server {other};\n    keepalive 64;", 1
            )
        return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], template)


@asynccontextmanager
async def spoken(
    front: Front, octets: bytes, name: str = Front.host
) -> AsyncIterator[asyncio.StreamReader]:
    """These very octets, over TLS, and then what is answered to them. ``name`` is the one TLS asks for (SNI)."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", front.https_port, ssl=front.tls, server_hostname=name
    )
    try:
        writer.write(octets)
        async with asyncio.timeout(_PATIENCE):
            yield reader
    finally:
        writer.transport.abort()
