"""What a change of course needs, beyond a batch that is in the state for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cbemail.errors import RateLimited
from cbemail.outbox.backlog import Backlog, Limits
from cbemail.outbox.steering import Steering
from cbemail.store.batch_records import BatchState
from cbemail.store.records import SendState
from tests.certificates import Certificates
from tests.fakes.script import NORMAL
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.outbox.office import Office, open_office, until
from tests.unit.outbox.test_dispatch import Held
from tests.unit.smtp.conftest import until as when


@pytest.fixture
async def office(
    tmp_path: Path,
    smtp_server: ScriptedSmtp,
    imap_server: ScriptedImap,
    certificates: Certificates,
) -> AsyncIterator[Office]:
    async with open_office(
        tmp_path / "store.duckdb", smtp_server, imap_server, certificates
    ) as office:
        await office.dispatch.start()
        yield office


@pytest.fixture
def narrow(office: Office) -> Steering:
    """Where three recipients may wait, and no more."""
    backlog = Backlog(office.dispatch.lives, Limits(session_messages=3))
    return Steering(office.repository, office.dispatch, office.batches, backlog, office.clock)


async def test_what_is_over_is_not_tried_again_while_too_much_is_queued(
    office: Office, narrow: Steering, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    smtp_server.on("RCPT", b"550 5.1.1 who?\r\n")
    over = await office.started(joe, 2)
    await until(over)
    await office.started(joe, 2, "bat_b", state=BatchState.PAUSED)
    before = await office.record(over)

    with pytest.raises(RateLimited):
        await narrow.retry(joe, "bat_a")

    assert await office.record(over) == before
    assert set(await office.states(over)) == {SendState.FAILED}
    assert office.dispatch.find("bat_a") is None


async def test_what_is_under_way_is_not_tried_again_while_too_much_is_queued(
    office: Office, narrow: Steering, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    held = Held()
    smtp_server.on(".", held)
    smtp_server.on("RCPT", b"550 5.1.1 who?\r\n", b"550 5.1.1 who?\r\n", NORMAL)
    live = await office.started(joe, 4)
    await when(lambda: live.count(SendState.FAILED) == 2)

    with pytest.raises(RateLimited):
        await narrow.retry(joe, "bat_a")
    held.go_on.set()
    await until(live)

    assert (live.count(SendState.SENT), live.count(SendState.FAILED)) == (2, 2)


async def test_what_there_is_room_for_is_tried_again(
    office: Office, narrow: Steering, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    smtp_server.on("RCPT", *[b"550 5.1.1 who?\r\n"] * 3, NORMAL)
    await until(await office.started(joe, 3))

    shown = await narrow.retry(joe, "bat_a")

    assert shown.counts.failed == 0
    live = office.dispatch.find("bat_a")
    assert live is not None
    await until(live)
    assert live.count(SendState.SENT) == 3
