"""Lists and messages against Dovecot over TLS, on loopback: what is left is the work."""

from __future__ import annotations

from tests.bench import mail, raw_imap
from tests.bench.conftest import CLIENTS
from tests.bench.figures import middle, show
from tests.bench.service import Client, Service
from tests.bench.wrk import drive_service
from tests.integration.dovecot import Dovecot

_ROUNDS = 3
_SECONDS = 4
_MESSAGES = 100  # in each mailbox
_PAGE = 20


def test_a_warm_list_of_20(service: Service, clients: list[Client], dovecot: Dovecot) -> None:
    for client in clients:
        dovecot.append(client.user, *mail.everyday_mail(_MESSAGES))
    requests = [client.request("GET", f"/api/mailbox/messages?limit={_PAGE}") for client in clients]
    users = [client.user for client in clients]
    uids = f"{_MESSAGES - _PAGE + 1}:{_MESSAGES}"

    drive_service(service, requests, seconds=1)
    loads, fetches, conversations = [], [], []
    for _ in range(_ROUNDS):
        loads.append(drive_service(service, requests, seconds=_SECONDS))
        fetches.append(raw_imap.page_rate(dovecot, users, uids, in_flight=4, seconds=_SECONDS))
        conversations.append(raw_imap.conversation_rate(dovecot, users, uids, seconds=_SECONDS))

    show(
        f"warm list of {_PAGE}, {CLIENTS} clients",
        middle(load.per_second for load in loads),
        "requests/s",
        at_least=500,
        p50_ms=middle(load.p50_ms for load in loads),
        p99_ms=middle(load.p99_ms for load in loads),
        service_cpu_us=middle(load.cpu_us for load in loads),
        raw_pipelined_fetches_per_second=middle(fetches),
        raw_noop_search_fetch_per_second=middle(conversations),
    )


def test_one_text_message(service: Service, clients: list[Client], dovecot: Dovecot) -> None:
    for client in clients:
        dovecot.append(client.user, mail.text_message(1))
    requests = [client.request("GET", "/api/mailbox/messages/1") for client in clients]

    drive_service(service, requests, seconds=1)
    loads = [drive_service(service, requests, seconds=_SECONDS) for _ in range(_ROUNDS)]

    show(
        f"one text message, {CLIENTS} clients",
        middle(load.per_second for load in loads),
        "requests/s",
        at_least=1000,
        p50_ms=middle(load.p50_ms for load in loads),
        p99_ms=middle(load.p99_ms for load in loads),
        service_cpu_us=middle(load.cpu_us for load in loads),
    )
