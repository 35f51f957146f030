"""Mail merges: how fast they are taken in and sent, with every intent and outcome on disk, and who feels it."""

from __future__ import annotations

import http.client
import io
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import quantiles
from typing import Any, Self

import httpx
import pytest

from tests.bench import raw_smtp
from tests.bench.conftest import account
from tests.bench.figures import middle, show
from tests.bench.service import Client, Service
from tests.bench.test_hostile import timed
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.conftest import credentials
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix
from tests.integration.servers import program

CONNECTIONS = 8
MESSAGES = 20_000
_ROUNDS = 3
_OCTETS = 1800
_BATCHES = "/api/send/batch"
_PAUSE = threading.Event()  # never set
_TEMPLATE = {
    "subject": "Hello {{ name }}",
    "body": "Dear {{ name }},\n\nyour code is {{ code }}.\n\n"
    + "Here they are.\n" * (_OCTETS // 15),
}


@pytest.fixture
def service(tmp_path: Path, dovecot: Dovecot) -> Iterator[Service]:
    """A host may have twice as many connections as one session: so that one batch has eight."""
    changes = {"SMTP_CONNECTIONS_PER_HOST": str(2 * CONNECTIONS)}
    with Service.running(tmp_path, dovecot.ca_file, **changes) as service:
        yield service


@pytest.fixture
def client(service: Service, dovecot: Dovecot, sink: SmtpSink) -> Client:
    return service.log_in(account(dovecot, sink))


def csv(count: int) -> bytes:
    lines = io.StringIO()
    lines.write("to,name,code\r\n")
    for index in range(count):
        lines.write(f"recipient{index}@example{index % 50}.org,Name {index},c{index:08d}\r\n")
    return lines.getvalue().encode()


def recipients(count: int) -> list[dict[str, Any]]:
    return [
        {"to": f"recipient{i}@example.org", "variables": {"name": f"Name {i}", "code": f"c{i:08d}"}}
        for i in range(count)
    ]


def post(service: Service, client: Client, **body: Any) -> dict[str, Any]:
    response = httpx.post(
        service.url + _BATCHES,
        headers={"Authorization": f"Bearer {client.token}"},
        timeout=120,
        trust_env=False,
        **body,
    )
    assert response.status_code == 202, response.text
    batch: dict[str, Any] = response.json()
    return batch


def post_csv(service: Service, client: Client, count: int, **options: Any) -> dict[str, Any]:
    batch = httpx.Response(200, json={"template": _TEMPLATE, **options}).content
    files = {
        "batch": (None, batch, "application/json"),
        "recipients": ("r.csv", csv(count), "text/csv"),
    }
    return post(service, client, files=files)


def completed(service: Service, client: Client, batch: dict[str, Any]) -> dict[str, Any]:
    """Waits as a client would that shows its progress."""
    url = f"{service.url}{_BATCHES}/{batch['id']}"
    with httpx.Client(headers={"Authorization": f"Bearer {client.token}"}, trust_env=False) as http:
        with http.stream("GET", f"{url}/events", timeout=None) as events:
            for _ in events.iter_lines():
                pass  # the last one ends the stream
        found: dict[str, Any] = http.get(url).json()
    assert found["state"] == "completed"
    return found


LATER = {"send_at": "2027-06-01T00:00:00Z"}  # taken in, and not sent while it is measured


def test_taking_in_a_csv(service: Service, client: Client) -> None:
    post_csv(service, client, 1000, **LATER)
    before = service.resident_mb
    service.forget_highest()

    start = time.perf_counter()
    post_csv(service, client, 100_000, **LATER)
    seconds = time.perf_counter() - start

    show("a batch of 100,000 by CSV", seconds, "s", at_most=5)
    show("memory added by it", service.highest_mb - before, "MB", at_most=150)


def test_taking_in_json(service: Service, client: Client) -> None:
    body = {"template": _TEMPLATE, "recipients": recipients(10_000), **LATER}
    post(service, client, json=body | {"recipients": recipients(100)})

    start = time.perf_counter()
    post(service, client, json=body)

    show("a batch of 10,000 by JSON", time.perf_counter() - start, "s", at_most=1)


def test_sending_to_a_sink(service: Service, client: Client, sink: SmtpSink) -> None:
    completed(service, client, post_csv(service, client, 1000))
    rates, sources, cpu = [], [], []
    for _ in range(_ROUNDS):
        sources.append(smtp_source(sink))
        batch = post_csv(service, client, MESSAGES, send_at=None)
        spent, start = service.cpu_seconds, time.perf_counter()
        done = completed(service, client, batch)
        rates.append(MESSAGES / (time.perf_counter() - start))
        cpu.append((service.cpu_seconds - spent) / MESSAGES * 1e6)
        assert done["counts"]["sent"] == MESSAGES

    show(
        f"a batch to smtp-sink, {CONNECTIONS} connections",
        middle(rates),
        "messages/s",
        at_least=2500,
        smtp_source_per_second=middle(sources),
        share_of_smtp_source=round(middle(rates) / middle(sources), 3),
        wanted_share=0.25,
        service_cpu_us=middle(cpu),
    )


def smtp_source(sink: SmtpSink) -> float:
    start = time.perf_counter()
    subprocess.run(
        [program("smtp-source"), "-d", "-s", str(CONNECTIONS), "-m", str(MESSAGES), "-l", str(_OCTETS),
         "-f", "ann@example.test", "-t", "joe@example.test", f"{sink.host}:{sink.port}"],
        check=True,
    )  # fmt: skip
    return MESSAGES / (time.perf_counter() - start)


def test_sending_over_tls_to_postfix(service: Service, dovecot: Dovecot, postfix: Postfix) -> None:
    messages = 4000
    body = credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port)
    client = service.log_in(body)
    completed(service, client, post_csv(service, client, 200))
    rates, raw = [], []
    for _ in range(_ROUNDS):
        raw.append(
            raw_smtp.submission_rate(
                postfix, client.user, "raw@example.org",
                connections=CONNECTIONS, messages=messages, octets=_OCTETS,
            )
        )  # fmt: skip
        batch = post_csv(service, client, messages)
        start = time.perf_counter()
        completed(service, client, batch)
        rates.append(messages / (time.perf_counter() - start))

    show(
        f"a batch over TLS to Postfix, {CONNECTIONS} connections",
        middle(rates),
        "messages/s",
        at_least=0.8 * middle(raw),
        raw_pipelined_per_second=middle(raw),
    )


class _Asking:
    """Asks for one thing without pause, and keeps how long each answer took."""

    def __init__(self, service: Service, path: str, token: str = "") -> None:
        self.seconds: list[float] = []
        self._connection = http.client.HTTPConnection(service.host, service.port)
        self._arguments = (path, token)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with closing(self._connection):
            while not self._stop.wait(0.005):
                self.seconds.append(timed(self._connection, *self._arguments))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def percentile(self, share: int) -> float:
        return quantiles(self.seconds, n=100)[share - 1] * 1000


def test_who_feels_a_batch(
    service: Service, client: Client, dovecot: Dovecot, sink: SmtpSink
) -> None:
    other = service.log_in(account(dovecot, sink))
    listing = "/api/mailbox/messages?limit=20"

    with _Asking(service, listing, other.token) as quiet:
        _PAUSE.wait(4)
    batch = post_csv(service, client, 100_000)
    with (
        _Asking(service, listing, other.token) as busy,
        _Asking(service, "/healthz") as health,
    ):
        completed(service, client, batch)

    show(
        "a list's p95 while a batch of 100,000 runs",
        busy.percentile(95),
        "ms",
        at_most=3 * quiet.percentile(95),
        quiet_p95_ms=round(quiet.percentile(95), 2),
        p50_ms=round(busy.percentile(50), 2),
    )
    show("/healthz p99 meanwhile", health.percentile(99), "ms", at_most=250)
