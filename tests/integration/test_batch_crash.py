"""A mail merge whose process is killed again and again: nobody is forgotten, and nobody gets it twice."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from cbemail.store.files import log_of
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.service import ServiceProcess

KILLS = int(os.environ.get("CBEMAIL_KILLS", "20"))  # `make soak` asks for 200
RECIPIENTS = 10_000
MOST_UNCERTAIN = 4 * 10  # a kill: four messages a connection, ten connections
READY_SECONDS = 3.0


@pytest.fixture
def service(tmp_path: Path, environ: dict[str, str]) -> ServiceProcess:
    return ServiceProcess(tmp_path, environ)


def plaintext(dovecot: Dovecot, sink: SmtpSink) -> dict[str, Any]:
    return credentials(dovecot.fresh_user(), dovecot, sink.port, "none")


async def test_a_batch_survives_kills_at_random_instants(
    service: ServiceProcess, dovecot: Dovecot, tmp_path: Path
) -> None:
    chance = random.Random(os.environ.get("CBEMAIL_SEED"))
    body = merges.merge(RECIPIENTS)
    started: list[float] = []

    with SmtpSink(tmp_path) as sink, service:
        async with logged_in(service.url, plaintext(dovecot, sink)) as mailbox:
            batch = await merges.started(mailbox, body)
            for _ in range(KILLS):
                await moment(mailbox, batch, chance.uniform(0.0, 6.0 / KILLS))
                service.kill()
                began = time.monotonic()
                service.start()
                started.append(time.monotonic() - began)
            done = await merges.until(mailbox, batch, within=120)
            rows = await merges.report(mailbox, batch)

        arrived = sink.messages()
    states = merges.balance(rows, arrived, [f"r{i}@example.org" for i in range(RECIPIENTS)])
    assert done["counts"]["total"] == RECIPIENTS
    assert states["sent"] + states["uncertain"] == RECIPIENTS
    assert states["uncertain"] <= MOST_UNCERTAIN * KILLS
    assert max(started) < READY_SECONDS + 7, "a restart took long"


async def moment(mailbox: Mailbox, batch: dict[str, Any], seconds: float) -> None:
    """Let it send for so long, and make sure that it does."""
    try:
        await merges.until_counts(
            mailbox, batch, lambda b: b["counts"]["sending"] or b["state"] == "completed"
        )
        await merges.until_counts(
            mailbox, batch, lambda b: b["state"] == "completed", within=seconds
        )
    except AssertionError:
        pass  # it goes on: the time has come


async def test_a_batch_acknowledged_is_there_after_a_kill_and_its_key_replays(
    service: ServiceProcess, dovecot: Dovecot, tmp_path: Path
) -> None:
    body = merges.merge(50)

    with SmtpSink(tmp_path) as sink, service:
        async with logged_in(service.url, plaintext(dovecot, sink)) as mailbox:
            mailbox.client.headers["Idempotency-Key"] = "once"
            batch = await merges.started(mailbox, body)
            service.kill()
            service.start()
            again = await mailbox.client.post(merges.BATCHES, json=body)
            done = await merges.until(mailbox, batch)
            rows = await merges.report(mailbox, batch)

        states = merges.balance(rows, sink.messages(), [f"r{i}@example.org" for i in range(50)])
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == batch["id"]
    assert states["sent"] + states["uncertain"] == 50
    assert done["state"] == "completed"


async def test_a_stop_ends_in_time_leaves_nothing_uncertain_and_the_rest_is_sent_afterwards(
    service: ServiceProcess, environ: dict[str, str], dovecot: Dovecot, tmp_path: Path
) -> None:
    with SmtpSink(tmp_path) as sink, service:
        async with logged_in(service.url, plaintext(dovecot, sink)) as mailbox:
            batch = await merges.started(mailbox, merges.merge(3000))
            await merges.until_counts(mailbox, batch, lambda b: b["counts"]["sent"] > 200)
            began = time.monotonic()
            status = service.stop()
            took = time.monotonic() - began
            alone = not log_of(Path(environ["DB_PATH"])).exists()
            with pytest.raises(httpx.TransportError):
                await mailbox.get(merges.BATCHES)
            service.start()
            done = await merges.until(mailbox, batch)
            rows = await merges.report(mailbox, batch)

        states = merges.balance(rows, sink.messages(), [f"r{i}@example.org" for i in range(3000)])
    assert status == 0
    assert took < 10
    assert alone, "the store is not whole without its log"
    assert states == {"sent": 3000}
    assert done["counts"]["uncertain"] == 0
