"""One message comes to a folder of 20,000: what the mail server has to say until the client knows."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from cbemail.mailbox.summary import SUMMARY_ITEMS
from tests.bench import mail
from tests.bench.conftest import account
from tests.bench.figures import show
from tests.bench.service import Client, Service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot
from tests.integration.followers import CHANGES

_MESSAGES = 20_000

# What stands around the row: the answer to SELECT, which has nothing of any message, and the ends of commands.
_FRAME = 700


@pytest.mark.parametrize("flavour", ["dovecot", "condstore_dovecot", "weak_dovecot"])
def test_one_new_message(
    service: Service, sink: SmtpSink, flavour: str, request: pytest.FixtureRequest
) -> None:
    server: Dovecot = request.getfixturevalue(flavour)
    user = server.fresh_user()
    server.append(user, *mail.everyday_mail(_MESSAGES))
    server.record(user)
    client = service.log_in(account(server, sink, user))
    first, first_ms, first_octets = ask(service, server, client)
    ask(service, server, client, first["state"])  # warm
    server.append(user, mail.text_message(7))

    answer, milliseconds, octets = ask(service, server, client, first["state"])

    assert [row["uid"] for row in answer["new"]] == [_MESSAGES + 1]
    row = row_octets(server, user)
    show(
        f"changes after one new message of {_MESSAGES}, {flavour}",
        octets,
        "octets from the mail server",
        at_most=row + _FRAME if flavour == "dovecot" else None,
        row_octets=row,
        milliseconds=round(milliseconds),
        first_state_octets=first_octets,
        first_state_milliseconds=round(first_ms),
    )


def ask(
    service: Service, server: Dovecot, client: Client, state: str | None = None
) -> tuple[dict[str, Any], float, int]:
    """The answer, how long it took, and how many octets the mail server said for it."""
    told, start = server.told(client.user), time.perf_counter()
    response = httpx.get(
        service.url + CHANGES,
        params={"since": state} if state else {},
        headers={"Authorization": f"Bearer {client.token}"},
        timeout=60,
        trust_env=False,
    )
    milliseconds = (time.perf_counter() - start) * 1000
    assert response.status_code == 200, response.text
    return response.json(), milliseconds, server.told(client.user) - told


def row_octets(server: Dovecot, user: str) -> int:
    """What the server says of the newest message when a list asks for it, and of nothing else."""
    items = f"(UID {SUMMARY_ITEMS.decode()})"
    with server.imap(user) as imap:
        imap.select("INBOX", readonly=True)
        _, data = imap.uid("FETCH", str(_MESSAGES + 1), items)
    return sum(
        len(piece) for part in data for piece in (part if isinstance(part, tuple) else (part,))
    )
