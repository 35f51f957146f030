"""What a session costs that makes no requests, as most do at any moment: a record, and nothing that runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, serving
from tests.integration.scripted import scripted_mailbox
from tests.integration.test_metrics import scrape

SESSIONS = 3


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file)


def tasks() -> Counter[str]:
    """What is running, by name."""
    return Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())


async def test_a_session_without_requests_has_no_connection_and_no_task(
    environ: dict[str, str], imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async with serving(environ) as url:
        tasks_without_sessions = tasks()
        for _ in range(SESSIONS):
            async with scripted_mailbox(url, imap_server, smtp_server):
                pass
    opened = (imap_server.connections, smtp_server.connections)

    async with serving(environ) as url:
        tasks_with_sessions = tasks()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            told = await scrape(client)

    assert told["cbemail_sessions",] == SESSIONS
    assert tasks_with_sessions == tasks_without_sessions
    assert (imap_server.connections, smtp_server.connections) == opened
