"""Pages that were read before: what they cost beside the least that IMAP, and that HTTP, can cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from tests.bench import mail, raw_imap
from tests.bench.bare import bare_starlette
from tests.bench.conftest import account
from tests.bench.figures import middle, show
from tests.bench.processors import family_seconds
from tests.bench.service import Client, Service
from tests.bench.wrk import Load, drive, drive_service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot

T = TypeVar("T")

_ROUNDS = 3
_SECONDS = 3
_SESSIONS = 50
_AT_ONCE = 64
_OF_ONE_SESSION = 16
_MESSAGES = 100  # in each mailbox
_PAGE = 20
_LIST = f"/api/mailbox/messages?limit={_PAGE}"


def new_clients(service: Service, dovecot: Dovecot, sink: SmtpSink, number: int) -> list[Client]:
    """Sessions, each with a mailbox of everyday mail."""
    clients = [service.log_in(account(dovecot, sink)) for _ in range(number)]
    for client in clients:
        dovecot.append(client.user, *mail.everyday_mail(_MESSAGES))
    return clients


def beside(dovecot: Dovecot, work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` gives, and the processor time that Dovecot spent on it."""
    before = family_seconds(dovecot.pid)
    result = work()
    return result, family_seconds(dovecot.pid) - before


def test_a_warm_list_for_what_it_costs(service: Service, dovecot: Dovecot, sink: SmtpSink) -> None:
    clients = new_clients(service, dovecot, sink, _SESSIONS)
    requests = [clients[n % _SESSIONS].request("GET", _LIST) for n in range(_AT_ONCE)]
    users = [client.user for client in clients]
    uids = f"{_MESSAGES - _PAGE + 1}:{_MESSAGES}"

    def ours() -> Load:
        return drive_service(service, requests, seconds=_SECONDS)

    def theirs() -> tuple[float, float]:
        before = time.process_time()
        rate = raw_imap.page_rate(dovecot, users, uids, in_flight=4, seconds=_SECONDS)
        return rate * _SECONDS, time.process_time() - before

    drive_service(service, requests, seconds=1)
    costs, raw_costs, loads, dovecot_costs = [], [], [], []
    for _ in range(_ROUNDS):
        load, spent = beside(dovecot, ours)
        (pages, reading), raw_spent = beside(dovecot, theirs)
        loads.append(load)
        dovecot_costs.append(spent / load.requests * 1e6)
        costs.append(load.cpu_us + dovecot_costs[-1])
        raw_costs.append((reading + raw_spent) / pages * 1e6)

    show(
        f"warm list of {_PAGE}, {_AT_ONCE} at once over {_SESSIONS} sessions",
        100 * middle(raw / cost for raw, cost in zip(raw_costs, costs, strict=True)),
        "% of raw pipelined FETCH, for the same processor time",
        at_least=60,
        requests_per_second=middle(load.per_second for load in loads),
        p99_ms=middle(load.p99_ms for load in loads),
        service_cpu_us=middle(load.cpu_us for load in loads),
        dovecot_cpu_us=middle(dovecot_costs),
        raw_cpu_us=middle(raw_costs),
    )


def test_a_list_that_may_be_old(
    service: Service, dovecot: Dovecot, sink: SmtpSink, tmp_path: Path
) -> None:
    clients = new_clients(service, dovecot, sink, _OF_ONE_SESSION)
    header = "Cache-Control: max-age=600"
    requests = [client.request("GET", _LIST, header=header) for client in clients]
    answer = tmp_path / "answer"
    answer.write_bytes(body_of(service, clients[0]))

    loads, bare_loads = [], []
    with bare_starlette(answer) as bare_url:
        drive_service(service, requests, seconds=1)
        drive(bare_url, requests, seconds=1)
        for _ in range(_ROUNDS):
            loads.append(drive_service(service, requests, seconds=_SECONDS))
            bare_loads.append(drive(bare_url, requests, seconds=_SECONDS))

    show(
        f"list of {_PAGE} from memory, {_OF_ONE_SESSION} clients",
        100
        * middle(
            load.per_second / bare.per_second for load, bare in zip(loads, bare_loads, strict=True)
        ),
        "% of bare Starlette",
        at_least=50,
        requests_per_second=middle(load.per_second for load in loads),
        bare_requests_per_second=middle(bare.per_second for bare in bare_loads),
        service_cpu_us=middle(load.cpu_us for load in loads),
    )


def body_of(service: Service, client: Client) -> bytes:
    """What the service answers, for bare Starlette to answer the same."""
    headers = {"Authorization": f"Bearer {client.token}"}
    return httpx.get(service.url + _LIST, headers=headers, trust_env=False).content


@pytest.mark.parametrize("what", [_LIST, "/api/mailbox/messages/1"], ids=["a list", "a message"])
def test_many_clients_of_one_session(
    service: Service, dovecot: Dovecot, sink: SmtpSink, what: str
) -> None:
    (client,) = new_clients(service, dovecot, sink, 1)
    request = client.request("GET", what)

    drive_service(service, [request], seconds=1)
    alone, together = [], []
    for _ in range(_ROUNDS):
        alone.append(drive_service(service, [request], seconds=_SECONDS))
        together.append(drive_service(service, [request] * _OF_ONE_SESSION, seconds=_SECONDS))

    show(
        f"{_OF_ONE_SESSION} clients of one session, {what}",
        middle(many.per_second / one.per_second for many, one in zip(together, alone, strict=True)),
        "times the rate of one",
        at_least=2,
        requests_per_second=middle(many.per_second for many in together),
        of_one_per_second=middle(one.per_second for one in alone),
    )
