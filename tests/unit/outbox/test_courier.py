"""One batch on its way to the mail server: what is on disk before anything is said, and what becomes of each row
whatever happens in between."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from cbemail.outbox.content import Recipient, StoredMessage, encode_content, encode_recipient
from cbemail.outbox.courier import Courier
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.retry import RetryPolicy
from cbemail.outbox.sender import LARGE, WINDOW
from cbemail.outbox.workshop import Job
from cbemail.store.batch_records import BatchState, MessageEvent
from cbemail.store.database import StatementFailed
from cbemail.store.records import SendState
from tests.contract.test_batches import NOW
from tests.fakes.script import CUT, NORMAL, STALL, Reply
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.outbox.mailroom import (
    APPEND,
    Mailroom,
    address,
    noting,
    on_disk,
    open_mailroom,
    sender,
)
from tests.unit.smtp.conftest import until
from tests.unit.store.test_event_journal import slow_disk

QUEUED, SENDING, DEFERRED = SendState.QUEUED, SendState.SENDING, SendState.DEFERRED
SENT, FAILED, UNCERTAIN = SendState.SENT, SendState.FAILED, SendState.UNCERTAIN
PATIENCE = 20  # seconds until a courier that never ends fails its test


@pytest.fixture
async def mailroom(tmp_path: Path, smtp_server: ScriptedSmtp) -> AsyncIterator[Mailroom]:
    """One connection, so that everything has its order."""
    async with open_mailroom(tmp_path / "store.duckdb", smtp_server) as mailroom:
        yield mailroom


async def carry(courier: Courier) -> None:
    async with asyncio.timeout(PATIENCE):
        await courier.run()


async def carry_through_time(mailroom: Mailroom, live: LiveBatch, courier: Courier) -> None:
    """Whenever the batch waits for a moment, that has come."""
    carrying = asyncio.create_task(carry(courier))
    while not carrying.done():
        if live.due_at is not None and live.due_at > mailroom.now:
            mailroom.now = live.due_at
            live.nudged.set()
        await checkpoint()
    await carrying


def message_of(command: bytes) -> int:
    """Which message a MAIL or RCPT is of."""
    return int(command.split(b"<")[1][1:].split(b"@")[0])


# ---- on disk before anything is said


@pytest.mark.parametrize("connections", [1, 3])
async def test_what_is_said_to_the_server_is_on_disk_as_an_intent_before(
    tmp_path: Path, smtp_server: ScriptedSmtp, connections: int
) -> None:
    async with open_mailroom(
        tmp_path / "store.duckdb", smtp_server, connections=connections
    ) as mailroom:
        live = await mailroom.batch(30)
        found: dict[int, SendState] = {}

        async def look(command: bytes) -> Reply:
            message = message_of(command)
            found[message] = (await on_disk(mailroom.database, live.number))[message]
            return NORMAL

        smtp_server.on("MAIL", look)
        await carry(mailroom.courier(live))

        assert found == dict.fromkeys(range(30), SENDING)
        assert await mailroom.states(live) == [SENT] * 30


async def test_nothing_is_said_while_the_disk_has_no_intent_yet(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    live = await mailroom.batch(3)
    courier = mailroom.courier(live)
    carrying = asyncio.create_task(carry(courier))
    await until(lambda: bool(mailroom.journal._waiting))

    with slow_disk(mailroom.database._database):
        await until(lambda: not mailroom.journal._waiting)
        for _ in range(100):
            await checkpoint()
        heard = smtp_server.count("MAIL")
    await carrying

    assert heard == 0
    assert len(smtp_server.messages) == 3


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("busy", [False, True], ids=["quick-disk", "slow-disk"])
async def test_no_connection_has_more_than_four_messages_of_unknown_fate(
    tmp_path: Path, smtp_server: ScriptedSmtp, connections: int, *, busy: bool
) -> None:
    """At each final dot, as a kill in this moment would leave it."""
    async with open_mailroom(
        tmp_path / "store.duckdb", smtp_server, connections=connections
    ) as mailroom:
        live = await mailroom.batch(60)
        open_: list[tuple[int, int]] = []

        async def look(_: bytes) -> Reply:
            states = await on_disk(mailroom.database, live.number)
            open_.append((states.count(SENDING), smtp_server.open_connections))
            return NORMAL

        smtp_server.on(".", look)
        async with asyncio.TaskGroup() as tasks:
            going = tasks.create_task(carry(mailroom.courier(live)))
            while busy and not going.done():  # a disk that is held up now and then
                with slow_disk(mailroom.database._database):
                    for _ in range(30):
                        await checkpoint()
                for _ in range(30):
                    await checkpoint()

        assert len(open_) == 60
        assert max(sending for sending, _ in open_) <= 4 * connections
        assert all(1 <= sending <= 4 * max(1, known) for sending, known in open_)
        assert max(known for _, known in open_) == min(connections, 4)
        assert await mailroom.states(live) == [SENT] * 60


async def test_a_large_message_is_in_memory_alone(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    body = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * (LARGE // 72 + 1)
    large = {message: encode_content(StoredMessage(body, sender(message))) for message in range(3)}
    live = await mailroom.batch(5, contents=large)
    free: list[int] = []
    smtp_server.on("MAIL", noting(free, lambda: mailroom.room._free))

    await carry(mailroom.courier(live))

    assert await mailroom.states(live) == [SENT] * 5
    assert mailroom.room._free == mailroom.room._all
    assert min(free) > mailroom.room._all - 2 * LARGE


async def test_memory_holds_a_bounded_number_of_rows_however_large_the_batch(
    mailroom: Mailroom, smtp_server: ScriptedSmtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of what it is in service, of a batch that is larger."""
    monkeypatch.setattr("cbemail.outbox.supply.CLAIM", 70)
    monkeypatch.setattr("cbemail.outbox.supply.LOW", 30)
    live = await mailroom.batch(200)
    held: list[int] = []
    smtp_server.on(".", noting(held, lambda: len(live.held)))

    await carry(mailroom.courier(live))

    # Besides what waits: what is under way, and the one before, whose outcome goes to disk with the next intent.
    assert max(held) <= 100 + WINDOW + 1
    assert mailroom.arrived() == [address(row) for row in range(200)]


# ---- a message that begins with the end of the one before (RFC 2920 3.1)


@pytest.mark.parametrize(
    "answer", [b"503 5.5.1 not now\r\n", b"554 5.5.0 synchronization error\r\n", CUT, b"what?\r\n"]
)
async def test_a_server_that_wants_one_message_after_the_other_gets_them_so(
    mailroom: Mailroom, smtp_server: ScriptedSmtp, answer: Reply
) -> None:
    smtp_server.on("MAIL", NORMAL, answer, NORMAL)
    live = await mailroom.batch(8)

    await carry(mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [row.state for row in rows] == [SENT] * 8
    assert [row.attempts for row in rows] == [1] * 8
    assert sorted(mailroom.arrived()) == [address(row) for row in range(8)]
    assert smtp_server.count("MAIL") == 9, "it was told of one message too early, and not again"


async def test_a_login_that_expires_over_a_message_says_nothing_of_beginning_it_early(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("MAIL", NORMAL, b"535 5.7.8 the token has expired\r\n", NORMAL)
    live = await mailroom.batch(8)

    await carry(mailroom.courier(live))

    assert mailroom.halts == [("credentials-stale", None)]
    assert not mailroom.upstream.early.is_refused


# ---- what becomes of rows


async def test_a_message_to_several_is_one_transaction_and_a_row_for_each(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r2@", b"451 4.3.0 later\r\n", NORMAL)
    smtp_server.on("RCPT TO:<r3@", b"550 5.1.1 who?\r\n")
    live = await mailroom.batch([1, 3, 1])

    await carry(mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [row.state for row in rows] == [SENT, SENT, SENT, FAILED, SENT]
    assert [row.attempts for row in rows] == [1, 1, 2, 1, 1]
    assert [message.recipients for message in smtp_server.messages] == [
        [address(0)],
        [address(1)],
        [address(4)],
        [address(2)],
    ]


async def test_a_server_that_takes_few_recipients_at_a_time_gets_the_others_later_without_a_try(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT", NORMAL, NORMAL, b"452 4.5.3 too many\r\n", NORMAL)
    live = await mailroom.batch([3])

    await carry(mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [(row.state, row.attempts) for row in rows] == [(SENT, 1)] * 3
    assert sorted(mailroom.arrived()) == [address(0), address(1), address(2)]


async def test_a_connection_that_died_unnoticed_costs_no_try(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("MAIL", NORMAL, CUT, NORMAL)
    live = await mailroom.batch(6)

    await carry(mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [(row.state, row.attempts) for row in rows] == [(SENT, 1)] * 6
    assert Counter(mailroom.arrived()) == Counter(address(row) for row in range(6))
    assert smtp_server.connections == 2


async def test_a_reply_lost_behind_the_final_dot_is_uncertain_and_the_others_go_on(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on(".", NORMAL, CUT, NORMAL)
    live = await mailroom.batch(6)

    await carry(mailroom.courier(live))

    assert await mailroom.states(live) == [SENT, UNCERTAIN, SENT, SENT, SENT, SENT]
    assert Counter(mailroom.arrived()) == Counter(address(row) for row in range(6))
    assert (1, UNCERTAIN) in mailroom.settled


async def test_a_connection_carries_no_more_than_its_share(
    tmp_path: Path, smtp_server: ScriptedSmtp
) -> None:
    async with open_mailroom(
        tmp_path / "store.duckdb", smtp_server, messages_per_connection=5
    ) as mailroom:
        live = await mailroom.batch(17)

        await carry(mailroom.courier(live))

        assert await mailroom.states(live) == [SENT] * 17
        assert smtp_server.connections == 4


# ---- told to stop, in the middle


async def under_way(
    mailroom: Mailroom, live: LiveBatch, moment: str, reply: Reply = STALL
) -> tuple[Courier, "asyncio.Task[None]"]:
    """A courier whose first message has come so far, and goes no further."""
    mailroom.server.on(moment, reply)
    courier = mailroom.courier(live)
    carrying = asyncio.create_task(carry(courier))
    await mailroom.server.heard(moment)
    return courier, carrying


@pytest.mark.parametrize(
    ("moment", "state", "attempts"),
    [("MAIL", QUEUED, 0), ("RCPT", QUEUED, 0), ("DATA", QUEUED, 0), (".", UNCERTAIN, 1)],
)
async def test_broken_off_only_what_had_come_to_its_final_dot_is_uncertain(
    mailroom: Mailroom, moment: str, state: SendState, attempts: int
) -> None:
    live = await mailroom.batch(10)
    courier, carrying = await under_way(mailroom, live, moment)

    courier.abort()
    await carrying

    first, *others = await mailroom.rows(live)
    assert (first.state, first.attempts) == (state, attempts)
    assert {(row.state, row.attempts, row.claims) for row in others} == {(QUEUED, 0, 0)}
    assert live.held == {}
    assert live.count(SENDING) == 0


async def test_stopped_it_finishes_what_is_under_way_and_puts_back_the_rest(
    mailroom: Mailroom,
) -> None:
    live = await mailroom.batch(10)
    go_on = asyncio.Event()

    async def later(_: bytes) -> Reply:
        await go_on.wait()
        return NORMAL

    courier, carrying = await under_way(mailroom, live, ".", later)
    courier.stop()
    go_on.set()
    await carrying

    rows = await mailroom.rows(live)
    assert [row.state for row in rows] == [SENT] + [QUEUED] * 9
    assert {(row.attempts, row.claims) for row in rows[1:]} == {(0, 0)}
    assert len(mailroom.server.messages) == 1
    assert live.held == {}


async def test_a_courier_stopped_while_it_waits_ends_at_once(mailroom: Mailroom) -> None:
    mailroom.server.on("RCPT", b"451 4.3.0 later\r\n")
    live = await mailroom.batch(1)
    courier = mailroom.courier(live, retry=RetryPolicy())
    carrying = asyncio.create_task(carry(courier))
    await until(lambda: live.count(DEFERRED) == 1)

    courier.stop()
    async with asyncio.timeout(2):
        await carrying

    assert await mailroom.states(live) == [DEFERRED]


async def test_paused_in_the_middle_it_carries_on_nothing_and_loses_nothing(
    mailroom: Mailroom,
) -> None:
    live = await mailroom.batch(10)
    go_on = asyncio.Event()

    async def later(_: bytes) -> Reply:
        await go_on.wait()
        return NORMAL

    _, carrying = await under_way(mailroom, live, ".", later)
    live.change(state=BatchState.PAUSED)
    live.nudged.set()
    go_on.set()
    await carrying
    paused = await mailroom.states(live)
    live.change(state=BatchState.RUNNING)
    live.expect(NOW)
    await carry(mailroom.courier(live))

    assert paused == [SENT] + [QUEUED] * 9
    assert await mailroom.states(live) == [SENT] * 10
    assert Counter(mailroom.arrived()) == Counter(address(row) for row in range(10))


async def test_in_a_batch_cancelled_meanwhile_nothing_waits_for_another_try(
    mailroom: Mailroom,
) -> None:
    live = await mailroom.batch(10)
    go_on = asyncio.Event()

    async def later(_: bytes) -> Reply:
        await go_on.wait()
        return b"451 4.3.0 later\r\n"

    _, carrying = await under_way(mailroom, live, ".", later)
    live.change(state=BatchState.CANCELLED)
    live.nudged.set()
    go_on.set()
    await carrying

    rows = await mailroom.rows(live)
    assert {row.state for row in rows} == {SendState.CANCELLED}
    assert (rows[0].attempts, rows[0].status) == (1, 451)
    assert {row.next_attempt_at for row in rows} == {None}


# ---- a row that is the matter (F-40)


async def claimed_in_vain(mailroom: Mailroom, live: LiveBatch, row: int, times: int) -> None:
    """As processes leave it that died of this row: claimed, and no outcome."""
    held = [other for other in range(live.count(QUEUED)) if other != row]
    for _ in range(times):
        await mailroom.repository.claim(live.number, now=NOW, held=held, limit=1, suspects=99)
        await mailroom.repository.count_claims(live.number, [row])


async def test_a_row_that_may_kill_the_service_is_sent_last_and_alone(
    mailroom: Mailroom, smtp_server: ScriptedSmtp
) -> None:
    live = await mailroom.batch(6)
    for row in (0, 1):
        await claimed_in_vain(mailroom, live, row, times=5)
    beside: dict[int, list[int]] = {}

    async def look(command: bytes) -> Reply:
        states = await on_disk(mailroom.database, live.number)
        beside[message_of(command)] = [row for row, state in enumerate(states) if state is SENDING]
        return NORMAL

    smtp_server.on("MAIL", look)
    await carry_through_time(mailroom, live, mailroom.courier(live))

    assert list(beside) == [2, 3, 4, 5, 0, 1]
    assert (1 in beside[0], 0 in beside[1]) == (False, False), "two suspects at a time"
    assert await mailroom.states(live) == [SENT] * 6


async def test_a_row_that_has_killed_the_service_often_fails_and_the_others_are_sent(
    mailroom: Mailroom,
) -> None:
    live = await mailroom.batch(6)
    await claimed_in_vain(mailroom, live, 2, times=7)

    await carry_through_time(mailroom, live, mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [row.state for row in rows] == [SENT, SENT, FAILED, SENT, SENT, SENT]
    assert rows[2].detail == "The service stopped each time it came to this message."
    assert address(2) not in mailroom.arrived()
    assert live.unsettled == 0


async def test_rows_that_only_waited_for_their_turn_are_no_suspects(mailroom: Mailroom) -> None:
    live = await mailroom.batch(4)
    courier = mailroom.courier(live)
    courier._upstream.hold(asyncio.get_running_loop().time(), 60)
    carrying = asyncio.create_task(carry(courier))
    await until(lambda: len(live.held) == 4)

    claims = {row.claims for row in await mailroom.rows(live)}
    courier.stop()
    await carrying

    assert claims == {0}


async def test_rows_that_are_given_back_before_their_turn_are_no_suspects(
    mailroom: Mailroom,
) -> None:
    live = await mailroom.batch(4)
    courier = mailroom.courier(live)
    courier._upstream.hold(asyncio.get_running_loop().time(), 60)
    carrying = asyncio.create_task(carry(courier))
    await until(lambda: len(live.held) == 4)

    courier.stop()
    await carrying

    assert courier._supply.uncounted == []
    assert {(row.state, row.claims) for row in await mailroom.rows(live)} == {(QUEUED, 0)}


@pytest.mark.parametrize("damage", ["content", "recipient"])
async def test_a_row_that_is_damaged_fails_alone(mailroom: Mailroom, damage: str) -> None:
    live = await mailroom.batch(6)
    other = await mailroom.batch(1, batch_id="bat_b")
    table, column = (
        ("batch_content", "number") if damage == "content" else ("batch_message", "row_number")
    )
    mailroom.database._database._connection.execute(
        f"update {table} set sealed = (select sealed from {table} where batch = {other.number})"
        f" where batch = {live.number} and {column} = 2"
    )

    await carry(mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [row.state for row in rows] == [SENT, SENT, FAILED, SENT, SENT, SENT]
    assert rows[2].detail == "The message cannot be made from what is stored of it."
    assert rows[2].attempts == 0


async def test_an_address_that_cannot_stand_on_the_wire_fails_alone(mailroom: Mailroom) -> None:
    people = {2: encode_recipient(Recipient("r2@example.org> NOTIFY=NEVER"))}
    live = await mailroom.batch(6, people=people)

    await carry(mailroom.courier(live))

    rows = await mailroom.rows(live)
    assert [row.state for row in rows] == [SENT, SENT, FAILED, SENT, SENT, SENT]
    assert not any(b"NOTIFY" in command for command in mailroom.server.commands)


@pytest.mark.parametrize("what", ["contents", "people"])
async def test_a_row_whose_making_is_a_defect_of_ours_fails_and_the_queue_moves_on(
    mailroom: Mailroom, what: str
) -> None:
    """It opens, so it is ours and whole; and what is in it no code of ours understands."""
    live = await mailroom.batch(6, **{what: {2: b"\xc1"}})

    await carry(mailroom.courier(live))

    assert await mailroom.states(live) == [SENT, SENT, FAILED, SENT, SENT, SENT]


# ---- a sender that fails by a defect (F-41)


async def test_a_sender_that_fails_is_replaced_and_every_message_goes_once(
    mailroom: Mailroom, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [2, 5]

    async def settled(job: Job, _: Sequence[MessageEvent]) -> None:
        if failures and job.rows[0].row == failures[0]:
            failures.pop(0)
            raise ZeroDivisionError

    live = await mailroom.batch(10)

    await carry(mailroom.courier(live, settled))

    assert await mailroom.states(live) == [SENT] * 10
    assert Counter(mailroom.arrived()) == Counter(address(row) for row in range(10))
    assert caplog.text.count("a sender of bat_a failed") == 2


@pytest.mark.parametrize("query", ["find_due_batch_messages", "next_due_batch_message"])
async def test_a_courier_that_fails_puts_back_what_it_holds(mailroom: Mailroom, query: str) -> None:
    live = await mailroom.batch(10)
    mailroom.database.fails[query] = 1

    with pytest.raises(StatementFailed):
        await carry(mailroom.courier(live))
    left = dict(live.held)
    live.expect(NOW)
    await carry(mailroom.courier(live))

    assert left == {}
    assert await mailroom.states(live) == [SENT] * 10
    assert Counter(mailroom.arrived()) == Counter(address(row) for row in range(10))


@pytest.mark.parametrize("after", range(4))
async def test_intents_and_outcomes_that_could_not_be_written_leave_no_row_behind(
    mailroom: Mailroom, smtp_server: ScriptedSmtp, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the writing of the journal. What was sent may be uncertain then; it is never sent twice, and nothing
    is held for ever by a courier that has ended."""
    monkeypatch.setattr("cbemail.outbox.journal._AGAIN_SECONDS", 0.01)
    live = await mailroom.batch(10)

    def break_it(_: bytes) -> Reply:
        if len(smtp_server.messages) == after:
            mailroom.database.fails[APPEND] = 1
        return NORMAL

    smtp_server.on("DATA", break_it)
    for _ in range(4):  # as the dispatch starts it again
        with suppress(StatementFailed):
            await carry(mailroom.courier(live))
        live.expect(NOW)

    states = Counter(await mailroom.states(live))
    assert live.held == {}
    assert states[SENT] + states[UNCERTAIN] == 10
    assert states[UNCERTAIN] <= 4
    assert max(Counter(mailroom.arrived()).values()) == 1
