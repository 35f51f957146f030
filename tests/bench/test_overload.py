"""Ten times as many sends as the service can make, from five thousand connections. threats.md F-36."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from statistics import quantiles

import msgspec
import uvloop

from tests.bench.conftest import CLIENTS
from tests.bench.figures import show
from tests.bench.service import Client, Service
from tests.integration.crowd import Answer, HttpConnection, crowd

_CONNECTIONS = 5_000
_SECONDS = 8.0
_TIMES = 10  # the capacity, asked for
_RECOVERY_SECONDS = 5.0
_TICK_SECONDS = 0.001  # between those that are asked at once
_BODY = msgspec.json.encode({"to": "joe@example.test", "subject": "figures", "text": "x" * 1800})


def test_overload(service: Service, clients: list[Client]) -> None:
    requests = [client.request("POST", "/api/send", _BODY) for client in clients]

    uvloop.run(measure(service, requests))


async def measure(service: Service, requests: Sequence[bytes]) -> None:
    async with crowd(service.host, service.port, CLIENTS) as regulars:
        await at_full_speed(regulars, requests, seconds=1)
        normal = await at_full_speed(regulars, requests, seconds=_SECONDS)
        capacity = len(normal) / _SECONDS
        service.forget_highest()
        before = service.resident_mb
        async with crowd(service.host, service.port, _CONNECTIONS) as many:
            answers = await at_a_rate(many, requests, per_second=_TIMES * capacity)
        recovered = await seconds_until(regulars[0], requests[0], p99(normal))

    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    show(
        f"p99 of what is accepted of {_TIMES} times the capacity, {_CONNECTIONS} connections",
        p99(accepted) / p99(normal),
        "times the normal",
        at_most=2,
        normal_p99_ms=round(p99(normal) * 1000, 1),
        capacity_per_second=round(capacity),
        asked_per_second=round(len(answers) / _SECONDS),
        accepted_per_second=round(len(accepted) / _SECONDS),
        refused_p99_ms=round(p99(refused) * 1000, 1),
        statuses=Counter(answer.status for answer in answers),
        refused_without_retry_after=sum(not answer.retry_after for answer in refused),
        memory_added_mb=round(service.highest_mb - before, 1),
    )
    show("a send is as quick again after", recovered, "s", at_most=_RECOVERY_SECONDS)


async def at_full_speed(
    connections: Sequence[HttpConnection], requests: Sequence[bytes], *, seconds: float
) -> list[Answer]:
    """Every client for itself, one send after the other."""
    end = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def send(connection: HttpConnection, request: bytes) -> None:
        while time.perf_counter() < end:
            answers.append(await connection.ask(request))

    await asyncio.gather(*map(send, connections, requests))
    return answers


async def at_a_rate(
    connections: Sequence[HttpConnection], requests: Sequence[bytes], *, per_second: float
) -> list[Answer]:
    """So many sends a second, however many of them are answered; but a connection has one at a time."""
    free = list(connections)
    asking: set[asyncio.Task[None]] = set()
    answers: list[Answer] = []
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    begun, start = 0, time.perf_counter()

    async def send(connection: HttpConnection, request: bytes) -> None:
        answers.append(await connection.ask(request))
        free.append(connection)

    while (elapsed := time.perf_counter() - start) < _SECONDS:
        for _ in range(min(round(elapsed * per_second) - begun, len(free))):
            task = asyncio.create_task(send(free.pop(), requests[begun % len(requests)]))
            asking.add(task)
            task.add_done_callback(asking.discard)
            begun += 1
        await asyncio.wait({never}, timeout=_TICK_SECONDS)
    await asyncio.gather(*asking)
    return answers


async def seconds_until(connection: HttpConnection, request: bytes, normal: float) -> float:
    """How long it takes until a send is answered well, and within the normal time."""
    start = time.perf_counter()
    while True:
        answer = await connection.ask(request)
        if answer.status == 200 and answer.seconds <= normal:
            return time.perf_counter() - start


def p99(answers: Sequence[Answer]) -> float:
    return quantiles([answer.seconds for answer in answers], n=100)[-1]
