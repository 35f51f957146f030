"""The least a service can be: Starlette and one endpoint, with the same server. `python -m tests.bench.bare PORT FILE`

It answers any GET with the octets of FILE.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.integration.servers import free_port

_ROOT = Path(__file__).parents[2]


def main(port: int, file: Path) -> None:
    octets = file.read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(octets, media_type="application/json")

    uvicorn.run(
        Starlette(routes=[Route("/{path:path}", endpoint)]),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
    )


@contextmanager
def bare_starlette(answer: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bare", str(port), str(answer)], cwd=_ROOT
    )
    try:
        _wait_until_listening(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
        raise RuntimeError("bare Starlette did not start")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
