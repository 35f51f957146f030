"""A store that fails for good: nothing is acknowledged that is not on disk, and the process ends to be started anew."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration import breakable_service
from tests.integration.conftest import API_KEY, environment, serving
from tests.integration.scripted import scripted_credentials
from tests.integration.servers import free_port


@asynccontextmanager
async def breakable(environ: dict[str, str]) -> AsyncIterator[Process]:
    """The service as a process of its own, from the moment it accepts connections."""
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-m", breakable_service.__name__,
        env=os.environ | environ, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    assert service.stdout is not None
    async for line in service.stdout:
        if b"Uvicorn running" in line:
            break
    try:
        yield service
    finally:
        if service.returncode is None:
            service.kill()
        await service.communicate()


async def test_a_failed_store_ends_the_process_with_a_failure_and_keeps_what_was_acknowledged(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    port = free_port()
    environ = environment(tmp_path, certificates.ca_file, HOST="127.0.0.1", PORT=str(port))
    body = scripted_credentials(imap_server, smtp_server)

    async with (
        breakable(environ) as service,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        before = await client.post("/api/sessions", json=body)
        service.send_signal(signal.SIGUSR1)
        after = await client.post("/api/sessions", json=body)
        out, err = await asyncio.wait_for(service.communicate(), timeout=30)

    assert before.status_code == 201, before.text
    assert (after.status_code, after.json()["code"]) == (503, "overloaded")
    assert service.returncode == 1
    assert (
        err
        == b"cbemail: The store failed while it was in use: look at the disk, and start again.\n"
    )
    assert b"Traceback" not in out
    assert await known_after_a_restart(environ) == [before.json()["session_id"]]


async def known_after_a_restart(environ: dict[str, str]) -> list[str]:
    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        sessions = await client.get("/api/sessions", headers={"X-API-Key": API_KEY})
        return [session["id"] for session in sessions.json()["sessions"]]
