"""Every batch that is not over has somebody who carries it, whatever happens to them; and what it is told, it does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cbemail.outbox.dispatch import Policy
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.rulings import intent
from cbemail.smtp.circuit import CircuitPolicy
from cbemail.store import files
from cbemail.store.batch_records import BatchKind, BatchOptions, BatchState
from cbemail.store.database import Row
from cbemail.store.records import SendState, SessionState
from tests.certificates import Certificates
from tests.fakes.script import CUT, NORMAL, STALL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.outbox.mailroom import APPEND, SOON, address
from tests.unit.outbox.office import Office, Wall, open_office, until
from tests.unit.smtp.conftest import settle
from tests.unit.smtp.conftest import until as when
from tests.unit.store.test_duckdb_database import full_disk
from tests.unit.store.test_event_journal import slow_disk

QUEUED, SENT, UNCERTAIN = SendState.QUEUED, SendState.SENT, SendState.UNCERTAIN
ACCOUNT_LIMIT = b"550 5.4.5 daily limit\r\n"

Opening = Callable[..., AbstractAsyncContextManager[Office]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb"


@pytest.fixture
def opening(
    path: Path, smtp_server: ScriptedSmtp, imap_server: ScriptedImap, certificates: Certificates
) -> Opening:
    """Opens the same office again, as a restart does."""
    return partial(open_office, path, smtp_server, imap_server, certificates)


@pytest.fixture
async def office(opening: Opening) -> AsyncIterator[Office]:
    async with opening() as office:
        await office.dispatch.start()
        yield office


def arrived(server: ScriptedSmtp) -> Counter[str]:
    return Counter(to for message in server.messages for to in message.recipients)


def everybody(rows: int) -> Counter[str]:
    return Counter(address(row) for row in range(rows))


class Held:
    """A reply that the server keeps to itself until it is let go."""

    def __init__(self, reply: Reply = NORMAL) -> None:
        self.go_on = asyncio.Event()
        self._reply = reply

    async def __call__(self, _: bytes) -> Reply:
        await self.go_on.wait()
        return self._reply


# ---- from its beginning to its end


async def test_a_batch_is_carried_to_its_end_and_let_go(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    live = await office.started(await office.session(), 12)

    await until(live)

    record = await office.record(live)
    assert (record.state, record.started_at, record.finished_at) == (
        BatchState.COMPLETED,
        office.clock(),
        office.clock(),
    )
    assert arrived(smtp_server) == everybody(12)
    await when(lambda: office.dispatch.find("bat_a") is None)


async def test_what_is_scheduled_goes_when_its_time_has_come_and_not_before(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    session_id = await office.session()
    record = await office.stored(session_id, 1, state=BatchState.SCHEDULED)
    live = office.dispatch.take_up(record, {QUEUED: 1}, ())
    live.change(send_at=office.clock() + timedelta(minutes=5))

    office.pass_by(minutes=4.9)
    await settle()
    early = len(smtp_server.messages)
    office.pass_by(minutes=0.1)
    await until(live)

    assert early == 0
    assert len(smtp_server.messages) == 1


async def test_a_batch_of_a_session_that_has_ended_meanwhile_is_not_begun(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    session_id = await office.session()
    record = await office.stored(session_id, 3)
    await office.sessions.end(session_id)

    live = office.dispatch.take_up(record, {QUEUED: 3}, ())

    assert live.record.state is BatchState.CANCELLED
    assert office.dispatch.find("bat_a") is None
    assert smtp_server.count("MAIL") == 0


async def test_when_a_session_ends_nothing_more_of_it_goes_out(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    session_id = await office.session()
    held = Held()
    smtp_server.on(".", held)
    live = await office.started(session_id, 50)
    await smtp_server.heard(".")

    await office.sessions.end(session_id)
    held.go_on.set()
    await when(lambda: not office.dispatch._carriers)

    assert live.record.state is BatchState.CANCELLED
    assert office.dispatch.find("bat_a") is None
    assert len(smtp_server.messages) <= 2, "no more than were on their way"


# ---- a restart


async def test_after_a_restart_what_was_left_is_taken_up_by_itself(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening() as before:
        await before.stored(await before.session(), 8)

    async with opening() as office:
        assert await office.dispatch.start() == 0
        live = office.dispatch.find("bat_a")
        assert live is not None
        await until(live)

    assert arrived(smtp_server) == everybody(8)


async def test_after_a_restart_every_batch_shows_the_recipients_it_has_rejected(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the store is asked no more often for many batches than for one."""
    asked: Counter[str] = Counter()
    async with opening() as before:
        joe = await before.session()
        for name, rejected in (("bat_a", 0), ("bat_b", 2), ("bat_c", 150)):
            await before.stored(joe, 1, name, state=BatchState.PAUSED, rejected=rejected)

    async with opening() as office:
        fetch = office.database.fetch

        async def noting(query: str, /, **values: object) -> list[Row]:
            asked[query] += 1
            return await fetch(query, **values)

        monkeypatch.setattr(office.database, "fetch", noting)
        await office.dispatch.start()
        shown = {live.record.id: live.rejections for live in office.dispatch.of_session(joe)}

    assert set(asked.values()) == {1}
    assert {name: len(known) for name, known in shown.items()} == {
        "bat_a": 0,
        "bat_b": 2,
        "bat_c": 100,
    }
    assert (shown["bat_b"][1].to, shown["bat_b"][1].code) == (address(2), "invalid-address")


async def test_what_was_on_its_way_when_the_process_died_is_uncertain_and_the_rest_is_sent(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening() as before:
        record = await before.stored(await before.session(), 8)
        rows = await before.repository.claim(
            record.number, now=before.clock(), held=[], limit=8, suspects=3
        )
        dying = LiveBatch(record, {QUEUED: 8}, (), before.clock)
        dying.take(rows)
        await before.dispatch.journal.post(dying, [intent(record.number, row) for row in rows[:3]])

    async with opening() as office:
        uncertain = await office.dispatch.start()
        live = office.dispatch.find("bat_a")
        assert live is not None
        await until(live)
        states = await office.states(live)

    assert uncertain == 3
    assert states == [UNCERTAIN] * 3 + [SENT] * 5
    assert arrived(smtp_server) == everybody(8) - everybody(3)
    assert live.view().counts.uncertain == 3


async def test_a_pause_outlives_a_restart_with_its_reason_and_its_end(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    clock = Wall()
    smtp_server.on("MAIL", ACCOUNT_LIMIT)
    async with opening(clock=clock) as before:
        await before.dispatch.start()
        live = await before.started(await before.session(), 3)
        await until(live, BatchState.PAUSED)

    smtp_server.on("MAIL", NORMAL)
    async with opening(clock=clock) as office:
        await office.dispatch.start()
        paused = office.dispatch.find("bat_a")
        assert paused is not None
        shown = paused.view()
        office.pass_by(hours=1)
        await until(paused)

    assert (shown.state, shown.paused_reason) == (BatchState.PAUSED, "account-limit")
    assert shown.paused_until == clock()
    assert arrived(smtp_server) == everybody(3)


# ---- what concerns an account, concerns all it has


async def test_a_limit_of_the_account_pauses_all_its_batches_and_nobody_elses(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening(connections=1) as office:
        await office.dispatch.start()
        joe, ann = await office.session(), await office.session("ann@example.org")
        held = Held(ACCOUNT_LIMIT)
        smtp_server.on("MAIL", held, NORMAL)
        first = await office.started(joe, 3, "bat_a")
        await smtp_server.heard("MAIL")
        second = await office.started(joe, 3, "bat_b")
        other = await office.started(ann, 3, "bat_c")
        await until(other)

        held.go_on.set()
        await until(first, BatchState.PAUSED)
        await until(second, BatchState.PAUSED)
        await office.quiet()

        for live in (first, second):
            stored = await office.record(live)
            assert (stored.state, stored.paused_reason) == (BatchState.PAUSED, "account-limit")
            assert stored.paused_until == office.clock() + timedelta(hours=1)
            assert await office.states(live) == [QUEUED] * 3
        assert other.record.state is BatchState.COMPLETED


async def test_content_that_is_refused_pauses_its_own_batch_alone(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    later = office.clock() + timedelta(minutes=10)
    ham = await office.started(joe, 5, "bat_b", now=later)  # under way, and waits for its rows
    await until(ham, BatchState.RUNNING)
    smtp_server.on(".", b"554 5.7.1 spam\r\n")
    spam = await office.started(joe, 60, "bat_a")
    await until(spam, BatchState.PAUSED)
    await office.quiet()
    other = ham.record.state

    smtp_server.on(".", NORMAL)
    office.pass_by(minutes=10)
    await until(ham)

    assert other is BatchState.RUNNING
    assert spam.record.paused_reason == "content-refused"
    assert (await office.record(spam)).state is BatchState.PAUSED


async def test_a_refused_login_pauses_until_there_are_new_credentials(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    smtp_server.on("AUTH", b"535 5.7.8 no\r\n")
    live = await office.started(joe, 5)
    await until(live, BatchState.PAUSED)
    tried = smtp_server.count("AUTH")
    await settle()

    smtp_server.on("AUTH", NORMAL)
    await office.sessions.replace_credentials(joe, office.login)
    await until(live)

    assert tried <= 3, "the login was hammered"
    assert {row.attempts for row in await office.rows(live)} == {1}


async def test_a_batch_whose_key_does_not_open_any_more_waits_and_harms_nobody_else(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe, ann = await office.session(), await office.session("ann@example.org")
    lost = await office.started(joe, 3, "bat_a", sealed_key=b"sealed under another SECRET_KEY")
    await until(lost, BatchState.PAUSED)
    good = await office.started(ann, 3, "bat_b")

    await until(good)

    assert lost.record.paused_reason == "key-lost"
    assert await office.states(lost) == [QUEUED] * 3


async def test_new_credentials_are_no_key_and_a_batch_without_one_can_be_cancelled(
    office: Office, smtp_server: ScriptedSmtp, caplog: pytest.LogCaptureFixture
) -> None:
    joe = await office.session()
    lost = await office.started(joe, 3, sealed_key=b"sealed under another SECRET_KEY")
    single = await office.started(
        joe, 1, "msg_a", sealed_key=b"sealed under another", kind=BatchKind.SEND
    )
    await until(lost, BatchState.PAUSED)
    await until(single, BatchState.PAUSED)

    await office.sessions.replace_credentials(joe, office.login)
    await office.quiet()
    renewed = lost.record.state
    batch = await office.steering.cancel(joe, "bat_a")
    send = await office.steering.cancel_send(joe, "msg_a")

    assert renewed is BatchState.PAUSED
    assert caplog.text.count("cannot be opened with the present SECRET_KEY") == 2, "tried again"
    assert (batch.state, batch.counts.cancelled) == (BatchState.CANCELLED, 3)
    assert send is not None
    assert send.state is SendState.CANCELLED
    assert smtp_server.count("MAIL") == 0


async def test_a_batch_goes_on_when_the_service_is_started_with_its_key_again(
    opening: Opening, smtp_server: ScriptedSmtp, caplog: pytest.LogCaptureFixture
) -> None:
    async with opening() as before:
        joe = await before.session()
        for name, key in (("bat_a", None), ("bat_b", b"sealed under another SECRET_KEY")):
            changes = {} if key is None else {"sealed_key": key}
            record = await before.stored(joe, 2, name, **changes)
            await before.repository.set_state(
                record.number, BatchState.PAUSED, paused_reason="key-lost"
            )

    async with opening() as office:
        await office.dispatch.start()
        found, lost = office.dispatch.find("bat_a"), office.dispatch.find("bat_b")
        assert found is not None
        assert lost is not None
        await until(found)
        await office.quiet()

        assert lost.record.state is BatchState.PAUSED
    assert arrived(smtp_server) == everybody(2)
    assert "cannot be opened" not in caplog.text


async def test_a_login_that_is_refused_behind_the_door_pauses_the_batch_and_is_stale(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    smtp_server.on("MAIL", b"535 5.7.8 who are you\r\n")

    live = await office.started(joe, 5)
    await until(live, BatchState.PAUSED)
    await office.quiet()

    assert live.record.paused_reason == "credentials-stale"
    assert office.sessions.require(joe).state is SessionState.CREDENTIALS_STALE
    assert smtp_server.count("MAIL") <= 2, "a refused login was used again"


async def test_a_refusal_of_an_older_login_says_nothing_of_the_one_that_has_replaced_it(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening(connections=1) as office:
        await office.dispatch.start()
        joe = await office.session()
        held = Held(b"535 5.7.8 who are you\r\n")
        smtp_server.on("MAIL", held, NORMAL)
        live = await office.started(joe, 5)
        await smtp_server.heard("MAIL")

        await office.sessions.replace_credentials(joe, office.login)
        held.go_on.set()
        await until(live)

        assert office.sessions.require(joe).state is SessionState.ACTIVE
    senders = [message.sender for message in smtp_server.messages]
    assert sorted(senders) == [f"s{number}@example.org" for number in range(5)]
    assert senders[0] == "s4@example.org", "the old login went on with what it had been given"


async def test_credentials_that_are_replaced_while_the_old_ones_are_refused_are_tried(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    held = Held(b"535 5.7.8 no\r\n")
    smtp_server.on("AUTH", held, NORMAL)
    live = await office.started(joe, 5)
    await smtp_server.heard("AUTH", 2)  # one of them is the login of the session

    await office.sessions.replace_credentials(joe, office.login)
    held.go_on.set()
    await until(live)

    assert office.sessions.require(joe).state is SessionState.ACTIVE


# ---- what a provider allows in a day


async def test_at_the_end_of_a_days_allowance_the_batch_waits_also_after_a_restart(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    clock = Wall()
    async with opening(clock=clock, per_day=3) as before:
        await before.dispatch.start()
        joe = await before.session()
        live = await before.started(joe, 5)
        await until(live, BatchState.PAUSED)
        shown = live.view()
        await before.quiet()

    async with opening(clock=clock, per_day=3) as office:
        await office.dispatch.start()
        found = office.dispatch.find("bat_a")
        assert found is not None
        await office.steering.resume(joe, "bat_a")
        await until(found, BatchState.PAUSED)
        again = found.view()

    assert len(smtp_server.messages) == 3
    for view in (shown, again):
        assert view.paused_reason == "account-limit"
        assert view.paused_until is not None
        assert timedelta(hours=23) < view.paused_until - clock() <= timedelta(hours=25)


async def test_a_second_session_of_the_account_has_what_the_first_has_left(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening(per_day=5) as office:
        await office.dispatch.start()
        first = await office.started(await office.session(), 3, "bat_a")
        await until(first)
        second = await office.started(await office.session(), 3, "bat_b")
        await until(second, BatchState.PAUSED)

    assert len(smtp_server.messages) == 5


async def test_a_message_with_more_recipients_than_the_day_has_left_waits_whole(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening(per_day=5, connections=1) as office:
        await office.dispatch.start()
        live = await office.started(await office.session(), [3, 3])
        await until(live, BatchState.PAUSED)

    assert [len(message.recipients) for message in smtp_server.messages] == [3]


async def test_what_the_server_never_got_uses_up_nothing_of_the_day(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    """Four are on their way each time the connection is lost, and it is lost more often than the day has room."""
    async with opening(per_day=5, connections=1) as office:
        await office.dispatch.start()
        smtp_server.on("MAIL", NORMAL, CUT, NORMAL, CUT, NORMAL, CUT, NORMAL)
        live = await office.started(await office.session(), 5)
        await until(live)

    assert len(smtp_server.messages) == 5


# ---- a rate


async def test_neither_a_pause_nor_a_restart_makes_a_batch_faster(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    def wait(live: LiveBatch) -> float:
        assert live.bucket is not None
        return live.bucket.delay(asyncio.get_running_loop().time())

    async with opening() as before:
        await before.dispatch.start()
        joe, slowly = await before.session(), BatchOptions(rate_per_minute=1)
        live = await before.started(joe, 9, options=slowly)
        await when(lambda: live.count(SENT) == 1)
        for _ in range(3):
            await before.steering.pause(joe, "bat_a")
            await when(lambda: not before.dispatch._couriers)
            await before.steering.resume(joe, "bat_a")
            await when(lambda: bool(live.held))
            await before.quiet()
        after_pauses = wait(live)

    async with opening() as office:
        await office.dispatch.start()
        found = office.dispatch.find("bat_a")
        assert found is not None
        after_a_restart = wait(found)

    assert after_pauses > 50
    assert after_a_restart > 50
    assert len(smtp_server.messages) == 1


# ---- a defect of ours (F-41)


@pytest.mark.parametrize("query", ["find_due_batch_messages", "set_batch_state"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_courier_that_fails_is_started_again_and_shown_until_it_does_well(
    office: Office, smtp_server: ScriptedSmtp, query: str, times: int
) -> None:
    joe = await office.session()
    record = await office.stored(joe, 10)
    office.database.fails[query] = times
    live = office.dispatch.take_up(record, {QUEUED: 10}, ())

    await when(lambda: office.batches.troubled)
    await until(live)
    await when(lambda: not office.batches.troubled)

    assert arrived(smtp_server) == everybody(10)
    assert await office.states(live) == [SENT] * 10


async def test_a_courier_that_fails_waits_longer_each_time(
    opening: Opening, smtp_server: ScriptedSmtp, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits a minute at first: so it is only as often tried as it is woken."""
    async with opening(policy=Policy(retry=SOON, restart_seconds=60.0)) as office:
        await office.dispatch.start()
        record = await office.stored(await office.session(), 3)
        office.database.fails["set_batch_state"] = 2
        live = office.dispatch.take_up(record, {QUEUED: 3}, ())
        for times in (1, 2):
            await when(lambda: caplog.text.count("is started again") == times)  # noqa: B023 - now
            await settle()
            assert caplog.text.count("is started again") == times
            live.nudged.set()
        await until(live)

    assert arrived(smtp_server) == everybody(3)


async def test_while_one_batch_cannot_be_carried_the_others_go_on(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    office.database.fails["set_batch_state"] = 1
    troubled = await office.started(joe, 3, "bat_a")
    await when(lambda: office.batches.troubled)
    well = await office.started(joe, 3, "bat_b")

    await until(well)
    await until(troubled)

    assert arrived(smtp_server) == everybody(3) + everybody(3)


async def test_a_full_disk_is_no_defect_and_the_batch_goes_on_when_there_is_room(
    office: Office, smtp_server: ScriptedSmtp, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = await office.stored(await office.session(), 10)

    with full_disk(path, room=0, beyond=files.log_of):
        live = office.dispatch.take_up(record, {QUEUED: 10}, ())
        await when(lambda: "cannot be carried just now: overloaded" in caplog.text)
        troubled, sent = office.batches.troubled, len(smtp_server.messages)
    await until(live)

    assert (troubled, sent) == (False, 0)
    assert arrived(smtp_server) == everybody(10)


async def test_outcomes_whose_writing_fails_leave_no_batch_running_for_ever(
    office: Office, smtp_server: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbemail.outbox.journal._AGAIN_SECONDS", 0.01)
    live = await office.started(await office.session(), 10)

    def break_it(_: bytes) -> Reply:
        if len(smtp_server.messages) == 2:
            office.database.fails[APPEND] = 1
        return NORMAL

    smtp_server.on("DATA", break_it)
    await until(live)

    states = Counter(await office.states(live))
    assert states[SENT] + states[UNCERTAIN] == 10
    assert max(arrived(smtp_server).values()) == 1


# ---- the end of the service


async def test_at_the_end_what_is_under_way_is_finished_and_nothing_begun(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    async with opening(connections=1) as office:
        await office.dispatch.start()
        held = Held()
        smtp_server.on(".", held)
        live = await office.started(await office.session(), 20)
        await smtp_server.heard(".")

        office.dispatch.begin_drain()
        held.go_on.set()
        await office.dispatch.drain(5.0)

        assert await office.states(live) == [SENT] + [QUEUED] * 19
        assert office.dispatch.find("bat_a") is live, "it is not over"
    assert len(smtp_server.messages) == 1


async def test_what_does_not_end_in_time_is_broken_off_and_its_fate_is_on_disk(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", STALL)
    async with opening(connections=1) as before:
        await before.dispatch.start()
        live = await before.started(await before.session(), 5)
        await smtp_server.heard(".")
        await before.dispatch.drain(0.05)

    async with opening() as office:
        states = await office.states(live)

    assert states == [UNCERTAIN] + [QUEUED] * 4


async def test_told_twice_to_stop_it_breaks_off_at_once(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("DATA", STALL)
    async with opening(connections=1) as office:
        await office.dispatch.start()
        live = await office.started(await office.session(), 5)
        await smtp_server.heard("DATA")
        office.dispatch.begin_drain()

        office.dispatch.break_off()
        async with asyncio.timeout(2):
            await office.dispatch.drain(60.0)

        assert await office.states(live) == [QUEUED] * 5


async def test_a_drain_waits_for_no_batch_that_is_paused_scheduled_or_out_of_reach(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    policy = Policy(retry=SOON, circuit=CircuitPolicy(failures=1))
    async with opening(policy=policy) as office:
        await office.dispatch.start()
        joe = await office.session()
        smtp_server.on("connect", CUT)
        await office.started(joe, 3, "bat_a")
        await office.started(joe, 3, "bat_b", state=BatchState.PAUSED)
        await when(lambda: office.smtp.retry_in(joe) is not None)

        async with asyncio.timeout(2):
            await office.dispatch.drain(60.0)


async def test_a_drain_waits_for_nothing_once_the_store_has_failed(
    opening: Opening, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("DATA", STALL)
    async with opening(connections=1) as office:
        await office.dispatch.start()
        await office.started(await office.session(), 5)
        await smtp_server.heard("DATA")

        draining = asyncio.create_task(office.dispatch.drain(60.0))
        await settle()
        early = draining.done()
        office.database.failed.set()
        async with asyncio.timeout(5):
            await draining

    assert not early


# ---- two who change a batch at once, before a slow disk


async def test_a_pause_holds_though_the_batch_becomes_due_in_that_moment(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    record = await office.stored(joe, 3, state=BatchState.SCHEDULED)
    live = office.dispatch.take_up(record, {QUEUED: 3}, ())
    live.change(send_at=office.clock() + timedelta(minutes=5))
    await settle()

    with slow_disk(office.database._database):
        pausing = asyncio.create_task(office.steering.pause(joe, "bat_a"))
        await settle()
        office.pass_by(minutes=5)
        await settle()
    shown = await pausing
    await office.quiet()

    assert shown.state is BatchState.PAUSED
    assert live.record.state is BatchState.PAUSED
    assert (await office.record(live)).state is BatchState.PAUSED
    assert smtp_server.count("MAIL") == 0


async def test_a_cancelled_batch_stays_cancelled_though_its_pause_ends_in_that_moment(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    smtp_server.on("MAIL", ACCOUNT_LIMIT)
    live = await office.started(joe, 3)
    await until(live, BatchState.PAUSED)
    await when(lambda: not live.held)
    smtp_server.on("MAIL", NORMAL)

    with slow_disk(office.database._database):
        cancelling = asyncio.create_task(office.steering.cancel(joe, "bat_a"))
        await settle()
        office.pass_by(hours=1)
        await settle()
    shown = await cancelling
    await office.quiet()

    assert shown.state is BatchState.CANCELLED
    assert live.record.state is BatchState.CANCELLED
    assert (await office.record(live)).state is BatchState.CANCELLED
    assert smtp_server.messages == []


async def test_a_cancelled_batch_stays_cancelled_though_the_account_is_refused_in_that_moment(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    held = Held(ACCOUNT_LIMIT)
    smtp_server.on("MAIL", held)
    live = await office.started(joe, 3)
    await smtp_server.heard("MAIL")

    with slow_disk(office.database._database):
        cancelling = asyncio.create_task(office.steering.cancel(joe, "bat_a"))
        await settle()
        held.go_on.set()
        await when(lambda: live.record.state is BatchState.PAUSED)
        await settle()
    await cancelling
    await when(lambda: not office.dispatch._carriers)

    assert (await office.record(live)).state is BatchState.CANCELLED
    assert set(await office.states(live)) == {SendState.CANCELLED}


async def test_messages_retried_as_the_batch_completes_are_sent(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    """A client sees that the last message has failed, and asks for another try at once."""
    joe = await office.session()
    smtp_server.on("RCPT", b"550 5.1.1 who?\r\n")
    live = await office.started(joe, 3)
    await when(lambda: live.count(SendState.FAILED) == 3)
    smtp_server.on("RCPT", NORMAL)

    with slow_disk(office.database._database):
        retrying = asyncio.create_task(office.steering.retry(joe, "bat_a"))
        await settle()
    await retrying
    await office.quiet()
    found = office.dispatch.find("bat_a")
    if found is not None:
        await until(found)

    counts = (await office.batches.find(joe, "bat_a")).counts
    assert (counts.sent, counts.failed, counts.queued) == (3, 0, 0)
    assert arrived(smtp_server) == everybody(3)


# ---- a client that hangs up: its request is cancelled wherever it is


async def hang_up(office: Office, request: "Coroutine[Any, Any, object]") -> None:
    """Begin a request, and break it off while the disk is at it."""
    with slow_disk(office.database._database):
        running = asyncio.create_task(request)
        await settle()
        running.cancel()
        await settle()
    await asyncio.wait({running})
    await office.quiet()


@pytest.mark.parametrize("what", ["pause", "resume", "cancel"])
async def test_what_is_done_and_what_is_on_disk_are_one_though_the_client_has_hung_up(
    office: Office, what: str
) -> None:
    joe = await office.session()
    state = BatchState.SCHEDULED if what == "pause" else BatchState.PAUSED
    record = await office.stored(joe, 3, state=state)
    live = office.dispatch.take_up(record, {QUEUED: 3}, ())
    live.change(send_at=office.clock() + timedelta(minutes=5))
    await settle()

    await hang_up(office, getattr(office.steering, what)(joe, "bat_a"))

    stored = (await office.record(live)).state
    assert live.record.state is stored
    if stored is BatchState.CANCELLED:
        assert await office.states(live) == [SendState.CANCELLED] * 3


async def test_counts_are_those_of_the_disk_though_who_retried_has_hung_up(
    office: Office, smtp_server: ScriptedSmtp
) -> None:
    joe = await office.session()
    smtp_server.on("RCPT", NORMAL, b"550 5.1.1 who?\r\n")
    smtp_server.on("MAIL FROM:<s2@", ACCOUNT_LIMIT)
    live = await office.started(joe, 4)
    await until(live, BatchState.PAUSED)
    await when(lambda: not live.held)
    await office.states(live)  # all that is known is in the rows

    await hang_up(office, office.steering.retry(joe, "bat_a"))

    states = Counter(await office.states(live))
    assert {state: live.count(state) for state in states} == dict(states)
