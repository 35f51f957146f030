"""Mail merges for tests: making one, waiting for it, and balancing the books of what was sent against what arrived."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx

from tests.fakes.scripted_smtp import Captured
from tests.integration.conftest import Mailbox

BATCHES = "/api/send/batch"
_PATIENCE = 60.0


def recipients(count: int, domain: str = "example.org") -> list[dict[str, Any]]:
    return [
        {"to": f"r{index}@{domain}", "variables": {"name": f"N{index}", "token": f"t{index}x"}}
        for index in range(count)
    ]


TEMPLATE = {"subject": "Hello {{ name }}", "body": "Dear {{ name }},\n\nyour token: {{ token }}\n"}


def merge(count: int, **options: Any) -> dict[str, Any]:
    return {"template": TEMPLATE, "recipients": recipients(count), **options}


async def started(mailbox: Mailbox, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """Post a batch that must be accepted; gives the batch."""
    response = await mailbox.client.post(BATCHES, json=body, headers=headers)
    assert response.status_code in {200, 202}, response.text
    batch: dict[str, Any] = response.json()
    return batch


async def get(mailbox: Mailbox, batch: dict[str, Any]) -> dict[str, Any]:
    response = await mailbox.get(f"{BATCHES}/{batch['id']}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def until(
    mailbox: Mailbox, batch: dict[str, Any], *states: str, within: float = _PATIENCE
) -> dict[str, Any]:
    """The batch once it is in one of these states (``completed`` where none is named)."""
    return await until_counts(
        mailbox, batch, lambda b: b["state"] in (states or ("completed",)), within=within
    )


async def until_counts(
    mailbox: Mailbox, batch: dict[str, Any], fits: Any, within: float = _PATIENCE
) -> dict[str, Any]:
    deadline = time.monotonic() + within
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    while True:
        found = await get(mailbox, batch)
        if fits(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.wait({never}, timeout=0.02)


async def report(mailbox: Mailbox, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Every message of the batch."""
    response = await mailbox.client.get(
        f"{BATCHES}/{batch['id']}/messages", headers={"Accept": "application/x-ndjson"}
    )
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


async def act(mailbox: Mailbox, batch: dict[str, Any], what: str) -> httpx.Response:
    return await mailbox.post(f"{BATCHES}/{batch['id']}/{what}")


def balance(
    rows: list[dict[str, Any]],
    arrived: Iterable[Captured],
    expected: Iterable[str],
) -> Counter[str]:
    """Every recipient has one row; who is sent has exactly one message, who is uncertain one or none, all others none.

    Gives how many are in each state.
    """
    copies = Counter(recipient for message in arrived for recipient in message.recipients)
    state = {row["to"]: row["state"] for row in rows}
    assert len(state) == len(rows), "a recipient has two rows"
    assert set(state) == set(expected), "a recipient is missing, or was added"
    twice = {to: number for to, number in copies.items() if number > 1}
    assert not twice, f"sent twice: {twice}"
    lost = [to for to, what in state.items() if what == "sent" and not copies[to]]
    assert not lost, f"said to be sent, and never arrived: {lost[:10]}"
    untold = [to for to in copies if state.get(to) not in {"sent", "uncertain"}]
    assert not untold, f"arrived, and not said to be sent: {untold[:10]}"
    return Counter(state.values())
