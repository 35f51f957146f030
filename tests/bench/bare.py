"""The least a service can be: Starlette and one endpoint, with the same server. `python -m tests.bench.bare PORT FILE`

It answers `GET /api/sessions/{id}` with the octets of FILE.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main(port: int, file: Path) -> None:
    octets = file.read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(octets, media_type="application/json")

    uvicorn.run(
        Starlette(routes=[Route("/api/sessions/{id}", endpoint)]),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
