"""HTTP clients that cost next to nothing themselves: `wrk`, with a request of its own for each."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.service import Service
from tests.integration.servers import program

_SCRIPT = Path(__file__).with_name("wrk.lua")


class Load(msgspec.Struct, frozen=True):
    """What a run came to. ``cpu_us`` is the processor time the service spent on one request."""

    requests: int
    seconds: float
    failures: int
    p50_ms: float
    p99_ms: float
    cpu_us: float = 0.0

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def drive(url: str, requests: Sequence[bytes], *, seconds: int) -> Load:
    """Let as many clients as there are ``requests`` each send its own, one after the other, for so long.

    Every answer must be a good one: a service that fails fast is not a fast service.
    """
    clients = str(len(requests))
    with tempfile.TemporaryDirectory() as directory:
        for number, octets in enumerate(requests, 1):
            (Path(directory) / str(number)).write_bytes(octets)
        done = subprocess.run(
            [program("wrk"), "-t", clients, "-c", clients, "-d", f"{seconds}s", "--timeout", "10s",
             "-s", _SCRIPT, url, "--", directory],
            capture_output=True,
            check=True,
        )  # fmt: skip
    load = msgspec.json.decode(done.stdout.splitlines()[-1], type=Load)
    assert load.requests, done.stdout
    assert not load.failures, f"{load.failures} of {load.requests} requests failed"
    return load


def drive_service(service: Service, requests: Sequence[bytes], *, seconds: int) -> Load:
    """`drive`, and what it cost the service."""
    before = service.cpu_seconds
    load = drive(service.url, requests, seconds=seconds)
    spent = service.cpu_seconds - before
    return msgspec.structs.replace(load, cpu_us=spent / load.requests * 1e6)
