"""What the front costs by itself: a request that needs no mail server, beside Starlette with nothing in it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.bench.bare import bare_starlette
from tests.bench.conftest import CLIENTS, account
from tests.bench.figures import middle, show
from tests.bench.service import Client, Service
from tests.bench.wrk import drive, drive_service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot

_ROUNDS = 5
_SECONDS = 2


@pytest.mark.parametrize("level", ["INFO", "WARNING"], ids=["with access log", "without"])
def test_a_session(tmp_path: Path, dovecot: Dovecot, sink: SmtpSink, level: str) -> None:
    with Service.running(tmp_path, dovecot.ca_file, LOG_LEVEL=level) as service:
        clients = [service.log_in(account(dovecot, sink)) for _ in range(CLIENTS)]
        requests = [
            client.request("GET", f"/api/sessions/{client.session_id}") for client in clients
        ]
        answer = tmp_path / "answer"
        answer.write_bytes(body_of(service, clients[0]))

        loads, bare_rates = [], []
        with bare_starlette(answer) as bare_url:
            drive_service(service, requests, seconds=1)
            drive(bare_url, requests, seconds=1)
            for _ in range(_ROUNDS):
                loads.append(drive_service(service, requests, seconds=_SECONDS))
                bare_rates.append(drive(bare_url, requests, seconds=_SECONDS).per_second)

    rates = [load.per_second for load in loads]
    show(
        f"GET /api/sessions/{{id}}, {CLIENTS} clients, LOG_LEVEL={level}",
        100 * middle(rate / bare for rate, bare in zip(rates, bare_rates, strict=True)),
        "% of bare Starlette",
        at_least=40,
        requests_per_second=middle(rates),
        bare_requests_per_second=middle(bare_rates),
        service_cpu_us=middle(load.cpu_us for load in loads),
    )


def body_of(service: Service, client: Client) -> bytes:
    """What the service answers, for bare Starlette to answer the same."""
    response = httpx.get(
        f"{service.url}/api/sessions/{client.session_id}",
        headers={"Authorization": f"Bearer {client.token}"},
        trust_env=False,
    )
    return response.content
