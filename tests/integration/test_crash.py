"""What a process that dies leaves behind, and what the next one makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.fakes.script import STALL
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import credentials, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.service import ServiceProcess

BODY = {"to": "a@example.org", "subject": "once", "body": "x"}


@pytest.fixture
def service(tmp_path: Path, environ: dict[str, str]) -> ServiceProcess:
    return ServiceProcess(tmp_path, environ)


async def test_a_send_the_process_died_over_is_uncertain_and_not_sent_again(
    service: ServiceProcess, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", STALL)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")

    with service:
        async with logged_in(service.url, account) as mailbox:
            mailbox.client.headers["Idempotency-Key"] = "crash"
            request = asyncio.create_task(mailbox.post("/api/send", BODY))
            await smtp_server.heard("DATA")
            while not smtp_server.messages:
                await asyncio.wait({request}, timeout=0.01)
            service.kill()
            with pytest.raises(httpx.TransportError):
                await request
            service.start()

            again = await mailbox.post("/api/send", BODY)
            known = await mailbox.get(f"/api/send/{again.json()['id']}")

    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["state"] == known.json()["state"] == "uncertain"
    assert len(smtp_server.messages) == 1


async def test_sessions_and_tokens_survive_a_kill(
    service: ServiceProcess, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")

    with service:
        async with logged_in(service.url, account) as mailbox:
            service.kill()
            service.start()

            listed = await mailbox.get("/api/mailbox/messages")
            refreshed = await mailbox.client.post(
                f"/api/sessions/{mailbox.session_id}/token",
                json={"refresh_token": mailbox.refresh_token},
            )

    assert listed.status_code == 200
    assert refreshed.status_code == 200


async def test_a_stop_waits_for_what_is_being_sent(
    service: ServiceProcess, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    release = asyncio.Event()

    async def hold(_: bytes) -> bytes:
        await release.wait()
        return b"250 2.0.0 Ok\r\n"

    smtp_server.on(".", hold)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")

    with service:
        async with logged_in(service.url, account) as mailbox:
            request = asyncio.create_task(mailbox.post("/api/send", BODY))
            await smtp_server.heard("DATA")
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            await asyncio.wait({stopping}, timeout=0.2)
            release.set()
            response = await request

    assert response.json()["state"] == "sent"
    assert await stopping == 0
