"""The service as users run it, in a process of its own, and what the kernel says of that process."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from tests.integration.conftest import environment
from tests.integration.servers import free_port

_START_SECONDS = 20
_STOP_SECONDS = 15
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Client:
    """A session and its token."""

    user: str
    session_id: str
    token: str

    def request(self, method: str, target: str, body: bytes = b"", *, header: str = "") -> bytes:
        """An HTTP/1.1 request in this session's name, as octets."""
        lines = [
            f"{method} {target} HTTP/1.1",
            "Host: bench",
            f"Authorization: Bearer {self.token}",
        ]
        if header:
            lines.append(header)
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Service:
    """`cbemail serve`, before the servers that a test started."""

    host = "127.0.0.1"

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self.url = f"http://{self.host}:{port}"
        self._process = process
        self._proc = Path("/proc") / str(process.pid)

    @classmethod
    @contextmanager
    def running(cls, directory: Path, ca_file: Path, **changes: str) -> Iterator[Self]:
        """Start one that keeps its store, and its log, in ``directory``; ``changes`` are of its environment."""
        port = free_port()
        environ = environment(directory, ca_file, HOST=cls.host, PORT=str(port), **changes)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cbemail", "serve"],
                cwd=directory,
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        service = cls(process, port)
        try:
            service._wait_until_ready(directory / "log")
            yield service
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)

    def _wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            try:
                self._process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
            raise RuntimeError(f"the service did not start:\n{log.read_text()}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_START_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except ConnectionRefusedError:
            return False
        finally:
            connection.close()

    def log_in(self, body: dict[str, Any]) -> Client:
        """Make a session."""
        response = httpx.post(f"{self.url}/api/sessions", json=body, timeout=60, trust_env=False)
        assert response.status_code == 201, response.text
        created = response.json()
        return Client(body["email"], created["session_id"], created["token"])

    # ---- what it costs

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far: unlike a rate, it does not depend on who else is running."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_mb(self) -> float:
        return self._memory("VmRSS")

    @property
    def highest_mb(self) -> float:
        """The most that was resident since `forget_highest`."""
        return self._memory("VmHWM")

    def forget_highest(self) -> None:
        (self._proc / "clear_refs").write_text("5")  # proc(5): resets VmHWM

    def _memory(self, name: str) -> float:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"the kernel says nothing of {name}")
