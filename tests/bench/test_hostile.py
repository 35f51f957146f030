"""What one message made to hurt its reader costs, and what everybody else feels of it meanwhile."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing
from typing import Self

from tests.bench.figures import show
from tests.bench.service import Client, Service
from tests.integration.dovecot import Dovecot
from tests.integration.test_corpus import CORPUS, HOSTILE, corpus

_READ_SECONDS = 2.0
_HEALTH_SECONDS = 0.25


class _Watch:
    """Asks /healthz without pause, on a connection of its own, and keeps the longest answer."""

    def __init__(self, service: Service) -> None:
        self._connection = http.client.HTTPConnection(service.host, service.port)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest = 0.0

    def _run(self) -> None:
        while not self._stop.is_set():
            self.longest = max(self.longest, timed(self._connection, "/healthz"))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()


def timed(connection: http.client.HTTPConnection, path: str, token: str = "") -> float:
    start = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    response = connection.getresponse()
    response.read()
    assert response.status == 200, (path, response.status)
    return time.perf_counter() - start


def _read(service: Service, client: Client, uids: list[int]) -> tuple[float, float]:
    """The slowest read of one message in seconds, and the slowest /healthz while it went on."""
    with (
        _Watch(service) as watch,
        closing(http.client.HTTPConnection(service.host, service.port)) as connection,
    ):
        slowest = max(
            timed(connection, f"/api/mailbox/messages/{uid}", client.token) for uid in uids
        )
        slowest = max(slowest, timed(connection, "/api/mailbox/messages?limit=200", client.token))
    return slowest, watch.longest


def test_hostile_messages(service: Service, clients: list[Client], dovecot: Dovecot) -> None:
    slowest: dict[str, tuple[float, float]] = {}
    for number, (kind, content) in enumerate(HOSTILE.items()):
        client = clients[number % len(clients)]
        uids = dovecot.append(client.user, content)
        slowest[kind] = _read(service, client, uids)
    worst = max(slowest, key=lambda kind: slowest[kind][0])

    show("slowest hostile message", slowest[worst][0], "s", at_most=_READ_SECONDS, kind=worst)
    show(
        "slowest /healthz while hostile messages were read",
        max(health for _, health in slowest.values()),
        "s",
        at_most=_HEALTH_SECONDS,
        by_kind={kind: f"{r * 1000:.0f} ms, {h * 1000:.0f} ms" for kind, (r, h) in slowest.items()},
    )


def test_the_corpus(service: Service, clients: list[Client], dovecot: Dovecot) -> None:
    if CORPUS is None:
        return
    client = clients[1]
    uids = [uid for content in corpus() for uid in dovecot.append(client.user, content)]

    slowest, health = _read(service, client, uids)

    show("slowest message of the corpus", slowest, "s", at_most=_READ_SECONDS, messages=len(uids))
    show("slowest /healthz while the corpus was read", health, "s", at_most=_HEALTH_SECONDS)
