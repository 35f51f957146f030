"""Proof of what became of uncertain messages: looked for at its times, believed where it is found, and never invented."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cbemail.outbox.dispatch import Policy
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.reconcile import ReconcilePolicy
from cbemail.store.batch_records import BatchOptions, BatchState, MessageEvent, OnUncertain
from cbemail.store.records import SendState
from tests.certificates import Certificates
from tests.fakes.script import CUT, NORMAL, STALL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.outbox.mailroom import SOON, address
from tests.unit.outbox.office import Office, Wall, open_office, until
from tests.unit.smtp.conftest import settle
from tests.unit.smtp.conftest import until as when

SENT, UNCERTAIN, FAILED = SendState.SENT, SendState.UNCERTAIN, SendState.FAILED
RESEND = BatchOptions(on_uncertain=OnUncertain.RESEND)
SEARCH = "UID SEARCH"


@pytest.fixture
async def office(
    tmp_path: Path,
    smtp_server: ScriptedSmtp,
    imap_server: ScriptedImap,
    certificates: Certificates,
) -> AsyncIterator[Office]:
    """One connection, so that the first reply is the first message's."""
    async with open_office(
        tmp_path / "store.duckdb", smtp_server, imap_server, certificates, connections=1
    ) as office:
        await office.dispatch.start()
        yield office


def file_copy(imap: ScriptedImap, message: int, uid: int = 1) -> None:
    """What a provider does with what it accepts over SMTP."""
    imap.folders["Sent"].add(
        f"Message-ID: <{message}@example.org>\r\nSubject: x\r\n\r\nx\r\n".encode(), uid=uid
    )


async def with_a_lost_reply(
    office: Office, smtp: ScriptedSmtp, messages: int = 1, **changes: Any
) -> LiveBatch:
    """A batch whose first message is uncertain; whatever else it has is sent."""
    smtp.on(".", CUT, NORMAL)
    live = await office.started(await office.session(), messages, **changes)
    await when(lambda: live.count(UNCERTAIN) == 1 and live.count(SENT) == messages - 1)
    await office.quiet()
    return live


async def states_in_the_end(office: Office, live: LiveBatch, minutes: float = 5) -> list[SendState]:
    """Once all are sent, or have had an hour and every chance to be."""
    for _ in range(12):
        office.pass_by(minutes=minutes)
        for _ in range(100):
            await settle()
        await office.quiet()
        if set(await office.states(live)) == {SENT}:
            break
    return await office.states(live)


async def looked(office: Office, imap: ScriptedImap, times: int) -> None:
    """The mailbox was asked so often, and what it said has been heeded."""
    await imap.heard(SEARCH, times)
    await when(lambda: not office.dispatch._reconciler._visited)
    await office.quiet()


async def test_a_copy_in_the_sent_folder_proves_that_the_server_took_it(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server, 3)
    file_copy(imap_server, 0)

    office.pass_by(seconds=45)
    assert await states_in_the_end(office, live, minutes=0) == [SENT] * 3
    row = (await office.rows(live))[0]
    assert (row.state, row.attempts, row.finished_at) == (SENT, 1, office.clock())
    assert row.detail is not None
    assert "Sent folder" in row.detail
    counts = (await office.batches.find(live.record.session_id, "bat_a")).counts
    assert (counts.sent, counts.uncertain) == (3, 0)
    assert len(smtp_server.messages) == 3


async def test_nobody_is_asked_before_the_provider_has_had_time_to_file_a_copy(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    await with_a_lost_reply(office, smtp_server)

    office.pass_by(seconds=44)
    await office.quiet()

    assert imap_server.count(SEARCH) == 0


async def test_that_there_is_no_copy_proves_nothing_and_it_stays_uncertain(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server)
    file_copy(imap_server, 99)  # another message

    office.pass_by(seconds=45)
    await looked(office, imap_server, 1)
    office.pass_by(minutes=5)
    await looked(office, imap_server, 2)
    office.pass_by(hours=3)
    await office.quiet()

    assert await office.states(live) == [UNCERTAIN]
    assert imap_server.count(SEARCH) == 2, "asked again and again"
    assert len(smtp_server.messages) == 1


async def test_where_nobody_asked_for_that_it_is_not_sent_again_though_the_batch_goes_on(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    """A batch that waits for its account is not over: what is uncertain in it could be sent again with the rest."""
    smtp_server.on(".", CUT, NORMAL)
    smtp_server.on("MAIL FROM:<s1@", b"550 5.4.5 daily limit\r\n")
    live = await office.started(await office.session(), 2)
    await until(live, BatchState.PAUSED)
    await office.quiet()

    office.pass_by(seconds=45)
    await looked(office, imap_server, 1)
    office.pass_by(minutes=5)
    await looked(office, imap_server, 2)

    assert await office.states(live) == [UNCERTAIN, SendState.QUEUED]
    assert live.record.state is BatchState.PAUSED


async def test_a_copy_of_what_another_recipient_was_sent_proves_nothing(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    """Both have one message, and so one Message-ID; the second was put off, and its reply was lost."""
    smtp_server.on("RCPT TO:<r1@", b"451 4.3.0 later\r\n", NORMAL)
    smtp_server.on(".", NORMAL, CUT)
    live = await office.started(await office.session(), [2])
    await when(lambda: live.count(UNCERTAIN) == 1 and live.count(SENT) == 1)
    file_copy(imap_server, 0)

    assert await states_in_the_end(office, live) == [SENT, UNCERTAIN]


async def test_of_two_messages_each_is_looked_for_at_its_own_age(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    go_on = asyncio.Event()

    async def late(_: bytes) -> Reply:
        await go_on.wait()
        return CUT

    smtp_server.on(".", CUT, late, NORMAL)
    live = await office.started(await office.session(), 3)
    await smtp_server.heard(".", 2)
    await when(lambda: live.count(UNCERTAIN) == 1)
    office.clock.advance(seconds=30)
    go_on.set()
    await until(live)
    await office.quiet()

    office.pass_by(seconds=15)
    await looked(office, imap_server, 1)
    first = [command for command in imap_server.commands if command.startswith(SEARCH.encode())]
    office.pass_by(seconds=30)
    await looked(office, imap_server, 2)

    assert len(first) == 1
    assert b"<0@example.org>" in first[0]
    assert any(
        b"<1@example.org>" in command for command in imap_server.commands if b"SEARCH" in command
    )


async def test_a_copy_that_is_filed_late_is_found_by_the_second_look(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server)

    office.pass_by(seconds=45)
    await looked(office, imap_server, 1)
    file_copy(imap_server, 0)
    office.pass_by(minutes=5)
    await when(lambda: imap_server.count(SEARCH) == 2)
    async with asyncio.timeout(5):
        while (await office.states(live)) != [SENT]:
            pass

    assert len(smtp_server.messages) == 1


async def test_where_that_was_asked_for_it_is_sent_again_after_the_last_look_with_the_same_id(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server, options=RESEND)

    office.pass_by(seconds=45)
    await looked(office, imap_server, 1)
    after_the_first = len(smtp_server.messages)
    running = live.record.state
    office.pass_by(minutes=5)
    await until(live)

    assert (after_the_first, running) == (1, BatchState.RUNNING)
    assert [message.recipients for message in smtp_server.messages] == [[address(0)]] * 2
    assert await office.states(live) == [SENT]
    assert (await office.rows(live))[0].attempts == 2


async def test_where_that_was_asked_for_a_copy_that_is_found_is_not_sent_again(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server, options=RESEND)
    file_copy(imap_server, 0)

    office.pass_by(seconds=45)
    await until(live)

    assert await office.states(live) == [SENT]
    assert len(smtp_server.messages) == 1


async def test_a_mailbox_that_does_not_answer_is_asked_again_for_an_hour(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server, options=RESEND)
    imap_server.on(SEARCH, CUT)
    imap_server.hang_up()

    office.pass_by(seconds=45)
    await when(lambda: imap_server.count(SEARCH) >= 1)
    await office.quiet()
    asked = imap_server.count(SEARCH)
    imap_server.on(SEARCH, NORMAL)
    file_copy(imap_server, 0)
    async with asyncio.timeout(5):
        while live.record.state is not BatchState.COMPLETED:
            office.pass_by(minutes=5)
            await office.quiet()

    assert asked >= 1
    assert await office.states(live) == [SENT]
    assert len(smtp_server.messages) == 1, "sent again though it had been kept"


async def test_a_client_that_asks_for_another_try_meanwhile_has_its_way(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    """The mailbox answers late: by then the message is no longer uncertain, and nothing is decided of it."""
    go_on = asyncio.Event()

    async def late(_: bytes) -> Reply:
        await go_on.wait()
        return NORMAL

    live = await with_a_lost_reply(office, smtp_server)
    file_copy(imap_server, 0)
    imap_server.on(SEARCH, late)
    office.pass_by(seconds=45)
    await imap_server.heard(SEARCH)
    smtp_server.on("RCPT", b"550 5.1.1 who?\r\n")

    await office.steering.retry(live.record.session_id, "bat_a")
    await when(lambda: smtp_server.count("RCPT") == 2)
    async with asyncio.timeout(5):
        while (await office.states(live)) != [FAILED]:
            pass
    go_on.set()
    await office.quiet()

    assert await office.states(live) == [FAILED]
    view = await office.batches.find(live.record.session_id, "bat_a")
    assert (view.counts.failed, view.counts.sent, view.counts.uncertain) == (1, 0, 0)


async def test_after_a_session_has_ended_nothing_is_asked_of_its_mailbox(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server)
    await office.sessions.end(live.record.session_id)

    office.pass_by(minutes=10)
    await office.quiet()

    assert imap_server.count(SEARCH) == 0


# ---- many mailboxes


class Held:
    """An answer that the mailbox keeps to itself until it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, _: bytes) -> Reply:
        await self.go_on.wait()
        return NORMAL


async def proven(office: Office, *lives: LiveBatch) -> None:
    """Wait until all that is in them is known to be sent."""
    async with asyncio.timeout(5):
        for live in lives:
            while set(await office.states(live)) != {SENT}:
                pass


async def test_a_mailbox_that_does_not_answer_holds_up_no_other(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    slow = await with_a_lost_reply(office, smtp_server, name="bat_a")
    quick = await with_a_lost_reply(office, smtp_server, name="bat_b")
    file_copy(imap_server, 0)
    held = Held()
    imap_server.on(SEARCH, held, NORMAL)

    office.pass_by(seconds=45)
    async with asyncio.timeout(5):
        while [SENT] not in (states := [await office.states(each) for each in (slow, quick)]):
            pass
    held.go_on.set()
    await proven(office, slow, quick)

    assert sorted(states) == [[SENT], [UNCERTAIN]]


async def test_few_mailboxes_are_asked_at_a_time_and_all_in_the_end(
    office: Office,
    smtp_server: ScriptedSmtp,
    imap_server: ScriptedImap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cbemail.outbox.reconcile.MAILBOXES", 2)
    lives = [await with_a_lost_reply(office, smtp_server, name=f"bat_{n}") for n in range(5)]
    file_copy(imap_server, 0)
    held = Held()
    imap_server.on(SEARCH, held)

    office.pass_by(seconds=45)
    await imap_server.heard(SEARCH, 2)
    await office.quiet()
    asked = imap_server.count(SEARCH)
    held.go_on.set()
    await proven(office, *lives)

    assert asked == 2


async def test_two_batches_of_a_mailbox_are_asked_for_one_after_the_other(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    first = await with_a_lost_reply(office, smtp_server, name="bat_a")
    smtp_server.on(".", CUT)
    second = await office.started(first.record.session_id, 1, "bat_b")
    await when(lambda: second.count(UNCERTAIN) == 1)
    file_copy(imap_server, 0)
    held = Held()
    imap_server.on(SEARCH, held)

    office.pass_by(seconds=45)
    await imap_server.heard(SEARCH)
    office.pass_by(seconds=1)
    await office.quiet()
    waiting = list(office.dispatch._reconciler._due)
    held.go_on.set()
    await proven(office, first, second)

    assert waiting == [second.number]


async def test_a_mailbox_that_has_taken_all_its_time_is_asked_again_later(
    tmp_path: Path,
    smtp_server: ScriptedSmtp,
    imap_server: ScriptedImap,
    certificates: Certificates,
) -> None:
    policy = Policy(retry=SOON, reconcile=ReconcilePolicy(visit_seconds=0.5))
    opening = (tmp_path / "store.duckdb", smtp_server, imap_server, certificates)
    async with open_office(*opening, policy=policy, connections=1) as office:
        await office.dispatch.start()
        live = await with_a_lost_reply(office, smtp_server)
        file_copy(imap_server, 0)
        imap_server.on(SEARCH, STALL, NORMAL)

        office.pass_by(seconds=45)
        await looked(office, imap_server, 1)
        first = await office.states(live)
        office.pass_by(minutes=5)
        await proven(office, live)

    assert first == [UNCERTAIN]
    assert imap_server.count(SEARCH) == 2


# ---- a restart, and a defect


async def left_uncertain(office: Office, smtp: ScriptedSmtp) -> LiveBatch:
    """A batch that may send again, with a message whose fate is unknown, as a process leaves it on disk."""
    live = await with_a_lost_reply(office, smtp, options=RESEND)
    await office.dispatch.drain(5)
    return live


@pytest.mark.parametrize("hours", [0, 1.5, 24])
async def test_after_a_restart_what_may_be_sent_again_is_however_long_it_took(
    tmp_path: Path,
    smtp_server: ScriptedSmtp,
    imap_server: ScriptedImap,
    certificates: Certificates,
    hours: float,
) -> None:
    clock = Wall()
    opening = (tmp_path / "store.duckdb", smtp_server, imap_server, certificates)
    async with open_office(*opening, clock=clock) as before:
        await before.dispatch.start()
        await left_uncertain(before, smtp_server)

    clock.advance(hours=hours)
    async with open_office(*opening, clock=clock) as office:
        await office.dispatch.start()
        live = office.dispatch.find("bat_a")
        assert live is not None
        states = await states_in_the_end(office, live)

    assert states == [SENT]
    assert len(smtp_server.messages) == 2


async def test_a_defect_in_looking_does_not_end_all_looking(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    live = await with_a_lost_reply(office, smtp_server)
    file_copy(imap_server, 0)
    office.database.fails["load_undecided_messages"] = 1

    assert await states_in_the_end(office, live) == [SENT]


async def test_a_row_without_an_end_is_as_young_as_can_be(
    office: Office, smtp_server: ScriptedSmtp, imap_server: ScriptedImap
) -> None:
    """No process writes one; a store of an older one may have it."""
    live = await with_a_lost_reply(office, smtp_server)
    event = MessageEvent(live.number, 0, UNCERTAIN, 1)
    await office.repository.record([event])
    file_copy(imap_server, 0)

    office.pass_by(seconds=45)
    await office.quiet()

    assert await office.states(live) == [UNCERTAIN]


def test_the_looks_are_after_what_providers_need_and_before_people_lose_patience() -> None:
    policy = Policy(retry=SOON).reconcile

    assert timedelta(seconds=30) <= policy.first <= timedelta(seconds=60)
    assert policy.last == timedelta(minutes=5)
