"""Postfix's `smtp-sink`: a fast SMTP server that takes anything, in a process of its own.

    with SmtpSink(tmp_path, "-q", ".") as sink:       # takes the message, then hangs up: was it delivered?
        ...submit to sink.host, sink.port...
    [message] = sink.messages()

Useful switches: ``-f CMDS`` 5xx, ``-r CMDS`` 4xx, ``-q CMDS`` hang up, ``-Q CMDS`` 421 and hang up,
``-W CMD:SECONDS`` wait, ``-m N`` connections at once, ``-8 -a -e -E -N -p`` without 8BITMIME, AUTH, ESMTP,
ENHANCEDSTATUSCODES, DSN, PIPELINING. It knows no TLS and no SMTPUTF8.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fakes.scripted_smtp import Captured
from tests.integration.servers import free_port, program

_START_SECONDS = 10

_HEADER = re.compile(
    rb"X-Client-Addr: .*\nX-Client-Proto: .*\n(?:X-Helo-Args: .*\n)?X-Mail-Args: (?P<mail>.*)\n"
    rb"(?P<recipients>(?:X-Rcpt-Args: .*\n)+)Received: .*\n(?:\t.*\n)+"
)


class SmtpSink:
    """Runs while its ``with`` block does. Each message is dumped to a file, unless ``dump`` is false, for speed."""

    host = "127.0.0.1"

    def __init__(self, directory: Path, *switches: str, dump: bool = True) -> None:
        self.port = free_port()
        self._directory = directory / f"sink-{self.port}"
        self._directory.mkdir()
        if os.geteuid() == 0:
            # It insists on being told whom to be, and nobody else may enter pytest's directories.
            switches = (*switches, "-u", "root")
        dumping = ["-d", "message."] if dump else []
        self._command = [
            program("smtp-sink"), "-4", *switches, *dumping, f"{self.host}:{self.port}", "1024",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, cwd=self._directory)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            try:
                status = self._process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                self._process.kill()
                status = self._process.wait()
            raise RuntimeError(f"smtp-sink did not start (status {status}): {self._command}")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def messages(self) -> list[Captured]:
        """Every message of which the sink got the final dot, in no particular order."""
        dumps = map(_read, self._directory.glob("message.*"))
        return [_parse(dump) for dump in dumps if dump]

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(_START_SECONDS)
            return probe.connect_ex((self.host, self.port)) == 0


def _read(dump: Path) -> bytes:
    """Nothing of one that has only begun, which is about to go."""
    try:
        return dump.read_bytes()
    except FileNotFoundError:
        return b""


def _parse(dump: bytes) -> Captured:
    """The dump has bare LF line ends, and an empty line at its end that is not the message's."""
    header = _HEADER.match(dump)
    assert header is not None, dump[:400]
    sender, _, parameters = _argument(header["mail"])
    recipients = [
        _argument(line.partition(b": ")[2])[0] for line in header["recipients"].splitlines()
    ]
    content = dump[header.end() :].removesuffix(b"\n").replace(b"\n", b"\r\n")
    return Captured(sender, recipients, content, parameters)


def _argument(text: bytes) -> tuple[str, str, str]:
    path, space, parameters = text.decode().partition(" ")
    return path.removeprefix("<").removesuffix(">"), space, parameters
