"""What is said is on disk by then: a 202, to a client, and a message, to a mail server. By the calls to the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cbemail.store.files import log_of
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration import merges
from tests.integration.conftest import environment, logged_in
from tests.integration.scripted import scripted_credentials
from tests.integration.service import ServiceProcess
from tests.integration.system_calls import events, traced
from tests.integration.test_queued_sends import queued, until

TIMES = 100
# In a month: so that nothing is written but what a request is about.
LATER = (datetime.now(UTC) + timedelta(days=30)).isoformat()
LETTER = {"to": "x@example.org", "subject": "s", "body": "b", "send_at": LATER}


def exchanges(log: Sequence[str]) -> Iterator[list[str]]:
    """What there was between each request and the next, from the first on."""
    asked = [index for index, event in enumerate(log) if event == "asked"]
    for start, end in pairwise([*asked, len(log)]):
        yield list(log[start:end])


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/send", LETTER), (merges.BATCHES, merges.merge(3, send_at=LATER))],
    ids=["send", "batch"],
)
async def test_nothing_is_acknowledged_before_all_that_is_written_for_it_is_synced(
    tmp_path: Path,
    certificates: Certificates,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
    path: str,
    body: dict[str, Any],
) -> None:
    """One request after the other, so that no sync is of another's work. A hundred times of a hundred."""
    environ = environment(tmp_path, certificates.ca_file)
    log = tmp_path / "calls.log"

    with ServiceProcess(tmp_path, environ, behind=traced(log)) as service:
        async with logged_in(
            service.url, scripted_credentials(imap_server, smtp_server)
        ) as mailbox:
            asynchronously = {"Prefer": "respond-async"}
            for _ in range(TIMES):
                response = await mailbox.client.post(path, json=body, headers=asynchronously)
                assert response.status_code == 202, response.text
            await mailbox.get("/healthz")  # once this is answered, the log tells of all before it
        calls = list(events(log, Path(environ["DB_PATH"]), f"POST {path} ", "HTTP/1.1 202"))

    found = list(exchanges(calls))
    assert len(found) == TIMES
    for exchange in found:
        assert "written" in exchange
        assert exchange[-2:] == ["synced", "answered"], exchange  # and nothing was written later


async def test_no_message_begins_to_go_before_it_is_on_disk_that_it_may_have_gone(
    tmp_path: Path,
    certificates: Certificates,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
) -> None:
    """One message after the other, so that no sync is of another's. A hundred times of a hundred."""
    environ = environment(tmp_path, certificates.ca_file)
    log = tmp_path / "calls.log"
    account = scripted_credentials(imap_server, smtp_server)
    account["smtp"]["security"] = "none"  # or the calls would show nothing but noise

    with ServiceProcess(tmp_path, environ, behind=traced(log)) as service:
        async with logged_in(service.url, account) as mailbox:
            for _ in range(TIMES):
                answer = await queued(mailbox, {"to": "x@example.org", "body": "b"})
                await until(mailbox, answer.json(), "sent")
            await mailbox.get("/healthz")  # once this is answered, the log tells of all before it
        calls = list(events(log, log_of(Path(environ["DB_PATH"])), "From: ", "250 2.0.0"))

    found = list(exchanges(calls))
    assert len(found) == TIMES
    assert calls[: calls.index("asked")][-2:] == ["written", "synced"]
    for exchange in found[:-1]:  # what became of the one, and that the next may go
        assert exchange == ["asked", "answered", "written", "synced", "written", "synced"]
    assert found[-1] == ["asked", "answered", "written", "synced"]
