"""A folder of 20,000 messages, paged from the newest to the oldest: the last page costs what the first did."""

from __future__ import annotations

import http.client
import json
import time
from statistics import fmean

import pytest

from tests.bench import mail
from tests.bench.conftest import account
from tests.bench.figures import show
from tests.bench.service import Client, Service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot

_MESSAGES = 20_000
_LIMIT = 50


@pytest.mark.parametrize("flavour", ["dovecot", "weak_dovecot"])
def test_paging_to_the_end(
    service: Service, sink: SmtpSink, flavour: str, request: pytest.FixtureRequest
) -> None:
    server: Dovecot = request.getfixturevalue(flavour)
    client = service.log_in(account(server, sink))
    server.append(client.user, *mail.everyday_mail(_MESSAGES))

    milliseconds = page_through(service, client)

    tenth = len(milliseconds) // 10
    show(
        f"slowest of {len(milliseconds)} pages of {_MESSAGES} messages, {flavour}",
        max(milliseconds),
        "ms",
        at_most=300,
        mean_of_first_tenth_ms=round(fmean(milliseconds[:tenth]), 1),
        mean_of_last_tenth_ms=round(fmean(milliseconds[-tenth:]), 1),
        slowest_five_ms=[round(ms) for ms in sorted(milliseconds)[-5:]],
        slowest_page=milliseconds.index(max(milliseconds)),
    )


def page_through(service: Service, client: Client) -> list[float]:
    """How long each page took."""
    connection = http.client.HTTPConnection(service.host, service.port)
    milliseconds, messages = [], 0
    cursor = ""
    while cursor is not None:
        start = time.perf_counter()
        connection.request(
            "GET",
            f"/api/mailbox/messages?limit={_LIMIT}{cursor and '&cursor='}{cursor}",
            headers={"Authorization": f"Bearer {client.token}"},
        )
        answer = connection.getresponse()
        octets = answer.read()
        milliseconds.append((time.perf_counter() - start) * 1000)
        assert answer.status == 200, octets
        page = json.loads(octets)
        messages += len(page["messages"])
        cursor = page["next_cursor"]
    connection.close()
    assert messages == _MESSAGES
    return milliseconds
