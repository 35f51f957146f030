"""The service as a process of its own: what can be killed, and measured."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.integration.servers import free_port

_START_SECONDS = 20


class ServiceProcess:
    """`cbemail serve`, running while its ``with`` block does. It may be killed and started again in between.

    ``behind`` is the beginning of a command that runs it in its own place: a tracer, say.
    """

    def __init__(
        self, directory: Path, environ: dict[str, str], *, behind: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._behind = behind
        self._environ = environ | {"HOST": "127.0.0.1", "PORT": str(self.port), "PATH": "/usr/bin"}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def highest_mb(self) -> float:
        """The most memory that was resident so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=20)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with (self._directory / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._behind, sys.executable, "-m", "cbemail", "serve"],
                cwd=self._directory,
                env=self._environ,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()

    def _ready(self) -> bool:
        try:
            return httpx.get(self.url + "/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL: nothing of it gets to say goodbye."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=20)

    def log(self) -> str:
        return (self._directory / "service.log").read_text()
