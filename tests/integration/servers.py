"""Real servers as child processes: found, started, heard to be ready, and ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

_START_SECONDS = 20
_STOP_SECONDS = 10
_ATTEMPTS = 3
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # where daemons live, often outside a user's PATH


def unavailable(sentence: str) -> NoReturn:
    """Skip on a laptop, fail where `CBEMAIL_REQUIRE_SERVERS=1`: there a suite must not go quietly green."""
    if os.environ.get("CBEMAIL_REQUIRE_SERVERS") == "1":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def program(name: str) -> str:
    """The full path of an installed program. A missing one is `unavailable`."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if path is None:
        unavailable(f"{name} is not installed: `make servers` installs what these tests run")
    return path


def free_port() -> int:
    """A loopback port that nobody listens on just now, for servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(
    configure: Callable[[], Sequence[str | Path]],
    *,
    ready: bytes,
    stop: Sequence[str | Path] | signal.Signals = signal.SIGTERM,
    environ: dict[str, str] | None = None,
) -> ServerProcess:
    """Start the command that ``configure`` gives, once more with new ports if another process took one first."""
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            return ServerProcess(configure(), ready=ready, stop=stop, environ=environ)
        except RuntimeError as failure:
            if not attempts_left or "Address already in use" not in str(failure):
                raise
    raise AssertionError("unreachable")


class ServerProcess:
    """A server in the foreground that logs to its standard output, which is kept to explain failures.

    It is ended by the command ``stop``, or by that signal to all of its processes.

    Raises:
        RuntimeError: it ended, or said nothing of being ready for 20 seconds. The message is its log.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        ready: bytes,
        stop: Sequence[str | Path] | signal.Signals = signal.SIGTERM,
        environ: dict[str, str] | None = None,
    ) -> None:
        self._log: list[bytes] = []
        self._ready = ready
        self._stop = stop
        self._decided = threading.Event()  # ready, or never going to be
        self._is_ready = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # a group of its own, to be signalled as one
        )
        self._reader = threading.Thread(
            target=self._read_log, name=f"log of {command[0]}", daemon=True
        )
        self._reader.start()
        self._decided.wait(_START_SECONDS)
        if not self._is_ready:
            self.stop()
            raise RuntimeError(f"{command[0]} did not start:\n{self.log}")

    @property
    def log(self) -> str:
        return b"".join(self._log).decode(errors="replace")

    def stop(self) -> None:
        """End it, and wait until nobody of it is left to write to the log."""
        if isinstance(self._stop, signal.Signals):
            os.killpg(self._process.pid, self._stop)
        else:
            subprocess.run(self._stop, check=False, capture_output=True)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_STOP_SECONDS)
        if self._reader.is_alive():
            raise RuntimeError(f"something of {self._process.args!r} still runs:\n{self.log}")

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as log:
            for line in log:
                self._log.append(line)
                if self._ready in line:
                    self._is_ready = True
                    self._decided.set()
        self._decided.set()
