"""How often a request waits for the mail server: over a real network this, and little else, is its duration."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.bench import mail
from tests.bench.far_imap import ROUND_TRIP, FarImap
from tests.bench.figures import show
from tests.bench.service import Service
from tests.certificates import Certificates
from tests.fakes.scripted_imap import PASSWORD
from tests.fakes.smtp_sink import SmtpSink

_LIST = "/api/mailbox/messages?limit=20"
_MESSAGE = "/api/mailbox/messages/{uid}"


@asynccontextmanager
async def far_server(certificates: Certificates) -> AsyncIterator[FarImap]:
    async with FarImap.running(certificates) as server:
        for message in mail.everyday_mail(40):
            server.folders["INBOX"].add(message)
        yield server


@asynccontextmanager
async def logged_in(
    service: Service, port: int, sink: SmtpSink
) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client:
        body = {
            "email": "joe@example.test",
            "password": PASSWORD,
            "imap": {"host": "localhost", "port": port, "security": "tls"},
            "smtp": {"host": sink.host, "port": sink.port, "security": "none"},
        }
        response = await client.post("/api/sessions", json=body)
        assert response.status_code == 201, response.text
        client.headers["Authorization"] = f"Bearer {response.json()['token']}"
        yield client


async def measure(
    client: httpx.AsyncClient,
    server: FarImap,
    name: str,
    limit: int,
    request: tuple[str, str, object],
) -> None:
    method, path, body = request
    flights, start = server.flights, time.perf_counter()

    response = await client.request(method, path, json=body)

    seconds = time.perf_counter() - start
    assert response.status_code == 200, response.text
    show(
        f"flights: {name}",
        server.flights - flights,
        "round trips",
        at_most=limit,
        duration_in_round_trips=round(seconds / ROUND_TRIP, 2),
        server_timing=response.headers["server-timing"],
    )


async def test_flights(tmp_path: Path, certificates: Certificates, sink: SmtpSink) -> None:
    requests: list[tuple[str, int, tuple[str, str, object]]] = [
        ("cold list of 20", 4, ("GET", _LIST, None)),
        ("warm list of 20", 1, ("GET", _LIST, None)),
        ("warm list of another folder", 1, ("GET", _LIST + "&folder=Sent", None)),
        ("warm list of 20, from another folder", 1, ("GET", _LIST, None)),
        ("warm get, text", 1, ("GET", _MESSAGE.format(uid=2), None)),
        ("warm get, alternatives and a file", 2, ("GET", _MESSAGE.format(uid=1), None)),
        ("warm get, once more", 1, ("GET", _MESSAGE.format(uid=1), None)),
        ("mark", 2, ("POST", _MESSAGE.format(uid=3) + "/mark", {"read": True})),
        ("move", 2, ("POST", _MESSAGE.format(uid=4) + "/move", {"destination": "Sent"})),
        ("delete for good", 2, ("DELETE", _MESSAGE.format(uid=5) + "?permanent=true", None)),
        ("delete, asking where the trash is", 3, ("DELETE", _MESSAGE.format(uid=6), None)),
        ("delete", 2, ("DELETE", _MESSAGE.format(uid=7), None)),
    ]
    with Service.running(tmp_path, certificates.ca_file) as service:
        async with (
            far_server(certificates) as server,
            logged_in(service, server.front.port, sink) as client,
        ):
            await server.drop_clients()

            for name, limit, request in requests:
                await measure(client, server, name, limit, request)
            await server.drop_clients()
            again = ("GET", _LIST, None)
            await measure(client, server, "cold list of what was listed before", 4, again)
