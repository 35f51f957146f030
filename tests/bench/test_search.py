"""Searching: what the size of a folder, and the number of folders, cost the first page and the pages after it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import mail
from tests.bench.conftest import account
from tests.bench.figures import middle, show
from tests.bench.service import Client, Service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot

_MESSAGES = 20_000
_FOLDERS = 200
_ROUNDS = 15


def ask(service: Service, client: Client, query: str) -> tuple[float, dict[str, Any]]:
    """A listing, and how many milliseconds it took."""
    connection = http.client.HTTPConnection(service.host, service.port)
    connection.connect()
    start = time.perf_counter()
    connection.request(
        "GET",
        f"/api/mailbox/messages?{query}",
        headers={"Authorization": f"Bearer {client.token}"},
    )
    answer = connection.getresponse()
    octets = answer.read()
    milliseconds = (time.perf_counter() - start) * 1000
    connection.close()
    assert answer.status == 200, octets
    return milliseconds, json.loads(octets)


@pytest.fixture
def forgetful(tmp_path: Path, dovecot: Dovecot) -> Iterator[Service]:
    """A service that opens a connection for each call."""
    with Service.running(tmp_path, dovecot.ca_file, IMAP_IDLE_SECONDS="0") as service:
        yield service


def cold(service: Service, login: dict[str, Any]) -> float:
    """The first page of a session that has seen nothing yet, and has a connection to open for it."""
    return middle(ask(service, service.log_in(login), "limit=50")[0] for _ in range(_ROUNDS))


@pytest.mark.parametrize("flavour", ["dovecot", "weak_dovecot"])
@pytest.mark.parametrize("kept", ["all", "every other"])
def test_first_page_of_a_great_folder(
    forgetful: Service, sink: SmtpSink, flavour: str, kept: str, request: pytest.FixtureRequest
) -> None:
    server: Dovecot = request.getfixturevalue(flavour)
    great, small, empty = (account(server, sink) for _ in range(3))
    server.append(great["email"], *mail.everyday_mail(_MESSAGES))
    server.append(small["email"], *mail.everyday_mail(50))
    if kept != "all":
        server.expunge(great["email"], "INBOX", range(2, _MESSAGES, 2))
    for login in (great, small, empty):  # the server's own caches are warm
        cold(forgetful, login)

    of_empty, of_small = cold(forgetful, empty), cold(forgetful, small)
    of_great = cold(forgetful, great)

    show(
        f"cold first page, {_MESSAGES} messages, of which {kept} are left, {flavour}",
        of_great / of_empty,
        "times an empty folder's",
        at_most=3,
        great_ms=of_great,
        of_fifty_messages_ms=of_small,
        empty_ms=of_empty,
    )


@pytest.mark.parametrize("flavour", ["dovecot", "weak_dovecot"])
def test_pages_of_a_search(
    service: Service, sink: SmtpSink, flavour: str, request: pytest.FixtureRequest
) -> None:
    server: Dovecot = request.getfixturevalue(flavour)
    client = service.log_in(account(server, sink))
    server.append(client.user, *mail.everyday_mail(_MESSAGES))

    first, page = ask(service, client, "limit=50&text=e")
    later = []
    for _ in range(_ROUNDS):
        took, page = ask(service, client, f"limit=50&text=e&cursor={page['next_cursor']}")
        later.append(took)

    show(
        f"a later page of a search that finds {page['total']} messages, {flavour}",
        middle(later),
        "ms",
        at_most=100,
        first_page_ms=round(first),
    )


@pytest.mark.parametrize("flavour", ["dovecot", "weak_dovecot"])
def test_a_whole_account(
    service: Service, sink: SmtpSink, flavour: str, request: pytest.FixtureRequest
) -> None:
    server: Dovecot = request.getfixturevalue(flavour)
    client = service.log_in(account(server, sink))
    letters = list(mail.everyday_mail(_FOLDERS * 5))
    for number in range(_FOLDERS):
        server.create_folder(client.user, f"Folder {number}")
        server.append(client.user, *letters[number * 5 : number * 5 + 5], folder=f"Folder {number}")

    first, page = ask(service, client, "folder=*&limit=50")
    again, page = ask(service, client, "folder=*&limit=50")
    second, _ = ask(service, client, f"folder=*&limit=50&cursor={page['next_cursor']}")

    show(
        f"an account of {_FOLDERS} folders, {flavour}",
        again,
        "ms",
        at_most=2_000,
        first_time_ms=round(first),
        second_page_ms=round(second),
    )
