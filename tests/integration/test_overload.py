"""Far more sends at once than there is room for. threats.md F-36; its figures are in tests/bench/test_overload.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from cbemail.api.limits import WAITING_OF_A_SESSION
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.conftest import Mailbox, environment, logged_in
from tests.integration.crowd import crowd
from tests.integration.scripted import scripted_credentials
from tests.integration.service import ServiceProcess

SESSIONS = 8
CONNECTIONS = 1200  # more than twice of what eight sessions may have under way
MEMORY_MB = 100  # that they may cost: some 80 KB each


@pytest.fixture
def service(tmp_path: Path, certificates: Certificates) -> Iterator[ServiceProcess]:
    environ = environment(tmp_path, certificates.ca_file)
    with ServiceProcess(tmp_path, environ) as service:
        yield service


def a_send(mailbox: Mailbox, to: str) -> bytes:
    body = msgspec.json.encode({"to": to, "subject": "s", "body": "b"})
    lines = (
        "POST /api/send HTTP/1.1",
        "Host: x",
        f"Authorization: {mailbox.client.headers['Authorization']}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_of_far_too_many_sends_some_are_told_to_come_back_and_all_others_are_sent_once(
    service: ServiceProcess,
    tmp_path: Path,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
) -> None:
    people = [f"r{number}@example.org" for number in range(CONNECTIONS)]
    async with AsyncExitStack() as stack:
        sink = stack.enter_context(SmtpSink(tmp_path))
        account = scripted_credentials(imap_server, smtp_server)
        account["smtp"] = {"host": "localhost", "port": sink.port, "security": "none"}
        mailboxes = [
            await stack.enter_async_context(logged_in(service.url, account))
            for _ in range(SESSIONS)
        ]
        clients = await stack.enter_async_context(crowd("127.0.0.1", service.port, CONNECTIONS))
        before = service.highest_mb

        asked = asyncio.gather(
            *(
                client.ask(a_send(mailboxes[number % SESSIONS], to))
                for number, (client, to) in enumerate(zip(clients, people, strict=True))
            )
        )
        alive = set()
        while not asked.done():
            alive.add((await mailboxes[0].get("/healthz")).status_code)
        answers = await asked
        afterwards = await clients[0].ask(a_send(mailboxes[0], "afterwards@example.org"))
        grown = service.highest_mb - before
        copies = Counter(to for message in sink.messages() for to in message.recipients)

    statuses = Counter(answer.status for answer in answers)
    accepted = [to for to, answer in zip(people, answers, strict=True) if answer.status == 200]
    assert set(statuses) <= {200, 429, 503}, statuses
    assert all(answer.retry_after > 0 for answer in answers if answer.status != 200)
    assert statuses[200] >= SESSIONS * WAITING_OF_A_SESSION // 2
    assert statuses[503] > 0
    assert copies == Counter([*accepted, "afterwards@example.org"])
    assert afterwards.status == 200, "it has not recovered"
    assert alive == {200}
    assert grown < MEMORY_MB
