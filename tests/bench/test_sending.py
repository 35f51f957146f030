"""Sending while the client waits: two commits to disk and one SMTP transaction a message."""

from __future__ import annotations

import subprocess
import time

import msgspec
import pytest

from tests.bench import mail, raw_imap
from tests.bench.conftest import CLIENTS
from tests.bench.figures import middle, show
from tests.bench.service import Client, Service
from tests.bench.wrk import drive_service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot
from tests.integration.servers import program

_ROUNDS = 3
_SECONDS = 4
_OCTETS = 1800  # of text: with its header such a message has about 2 KB


@pytest.mark.parametrize("save_to_sent", [False, True], ids=["not saved", "saved to Sent"])
def test_one_send(
    service: Service,
    clients: list[Client],
    sink: SmtpSink,
    dovecot: Dovecot,
    *,
    save_to_sent: bool,
) -> None:
    message = {
        "to": "joe@example.test",
        "subject": "figures",
        "text": "Here they are.\n" * (_OCTETS // 15),
        "save_to_sent": save_to_sent,
    }
    body = msgspec.json.encode(message)
    requests = [client.request("POST", "/api/send", body) for client in clients]

    drive_service(service, requests, seconds=1)
    users = [client.user for client in clients]
    loads, kept, reconnecting, appends = [], [], [], []
    for _ in range(_ROUNDS):
        loads.append(drive_service(service, requests, seconds=_SECONDS))
        kept.append(smtp_source(sink, "-d"))
        reconnecting.append(smtp_source(sink))
        appends.append(raw_imap.append_rate(dovecot, users, mail.text_message(1), seconds=_SECONDS))

    show(
        f"send, {'saved to Sent' if save_to_sent else 'not saved'}, {CLIENTS} clients",
        middle(load.per_second for load in loads),
        "requests/s",
        at_least=500,
        p50_ms=middle(load.p50_ms for load in loads),
        p99_ms=middle(load.p99_ms for load in loads),
        service_cpu_us=middle(load.cpu_us for load in loads),
        smtp_source_per_second=middle(kept),
        smtp_source_reconnecting_per_second=middle(reconnecting),
        raw_appends_per_second=middle(appends),
    )


def smtp_source(sink: SmtpSink, *switches: str) -> float:
    """Messages a second of Postfix's own load generator, over as many connections; ``-d`` keeps them open."""
    messages = 10_000
    start = time.perf_counter()
    subprocess.run(
        [program("smtp-source"), *switches, "-s", str(CLIENTS), "-m", str(messages), "-l", str(_OCTETS),
         "-f", "ann@example.test", "-t", "joe@example.test", f"{sink.host}:{sink.port}"],
        check=True,
    )  # fmt: skip
    return messages / (time.perf_counter() - start)
