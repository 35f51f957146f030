"""What the outbox may rely on its memory of batches for, once per database."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from cbemail.errors import SessionNotFound
from cbemail.ids import OutboxId, SessionId
from cbemail.store.batch_records import (
    EARLIER_TRY,
    LARGEST_VALUE,
    BatchKind,
    BatchOptions,
    BatchRecord,
    BatchState,
    MessageEvent,
    MessageRow,
    NewMessageRow,
    OnUncertain,
)
from cbemail.store.batches import BatchRepository
from cbemail.store.database import Database, Entry
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import IdempotencyRecord, SendState, StoredResponse
from cbemail.store.repository import Repository
from cbemail.store.staged_batches import StagedBatches
from tests.contract.test_repository import send, session, token

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SESSION = SessionId("ses_a")
OTHER = SessionId("ses_b")
ANSWER = StoredResponse(202, {"Location": "/api/send/batch/bat_a"}, b'{"id":"bat_a"}')
OPEN = [BatchState.QUEUED, BatchState.SCHEDULED, BatchState.RUNNING, BatchState.PAUSED]
UNSENT = [SendState.QUEUED, SendState.DEFERRED]


@pytest.fixture(params=["duckdb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Every database the service can keep its state in, opened empty but for the session ``SESSION``."""
    opened = await {"duckdb": DuckDbDatabase.open}[request.param](tmp_path / "db" / "store.duckdb")
    await Repository(opened).add_session(session(), token(b"first"))
    yield opened
    await opened.close()


@pytest.fixture
def batches(database: Database) -> BatchRepository:
    return BatchRepository(database)


@pytest.fixture
def staged(database: Database) -> StagedBatches:
    return StagedBatches(database)


def record(batch_id: str = "bat_a", session_id: SessionId = SESSION) -> BatchRecord:
    return BatchRecord(
        number=0,
        id=batch_id,
        kind=BatchKind.BATCH,
        session_id=session_id,
        name="Frühling",
        state=BatchState.QUEUED,
        options=BatchOptions(rate_per_minute=60, on_uncertain=OnUncertain.RESEND),
        token="0123456789abcdef01234567",
        sealed_key=b"\x00key\xff",
        created_at=NOW,
        send_at=NOW + MINUTE,
    )


def row(number: int, *, due: datetime = NOW) -> NewMessageRow:
    return NewMessageRow(
        row=number,
        position=number,
        content=0,
        state=SendState.QUEUED,
        message_id=f"<{number}@example.org>",
        sealed=b"\x00recipient\xff",
        next_attempt_at=due,
    )


def rejected_row(number: int) -> NewMessageRow:
    return NewMessageRow(
        row=number,
        position=number,
        content=0,
        state=SendState.REJECTED,
        message_id="",
        sealed=b"r",
        code="address-invalid",
        detail="It has no domain.",
    )


async def add_batch(
    batches: BatchRepository,
    rows: int | Sequence[NewMessageRow] = 0,
    *,
    record: BatchRecord = record(),  # noqa: B008 - frozen
    state: BatchState = BatchState.QUEUED,
) -> int:
    """A published batch, and its number."""
    staged = StagedBatches(batches._database)
    number = await staged.begin(record)
    wanted = [row(index) for index in range(rows)] if isinstance(rows, int) else rows
    await staged.add_messages(number, wanted)
    await staged.publish(number, state=state)
    return number


async def claim(
    batches: BatchRepository,
    batch: int,
    *,
    now: datetime = NOW,
    held: Sequence[int] = (),
    limit: int = 1000,
    suspects: int = 3,
) -> list[int]:
    """As it is where the making of them begins at once."""
    claimed = await batches.claim(batch, now=now, held=held, limit=limit, suspects=suspects)
    if claimed:
        await batches.count_claims(batch, [message.row for message in claimed])
    return [message.row for message in claimed]


def intent(batch: int, number: int, attempts: int = 1) -> MessageEvent:
    return MessageEvent(batch=batch, row=number, state=SendState.SENDING, attempts=attempts)


def sent(batch: int, number: int, at: datetime = NOW) -> MessageEvent:
    return MessageEvent(
        batch=batch,
        row=number,
        state=SendState.SENT,
        attempts=1,
        status=250,
        enhanced="2.0.0",
        detail="The server accepted it.",
        finished_at=at,
    )


def deferred(batch: int, number: int, until: datetime) -> MessageEvent:
    return MessageEvent(
        batch=batch,
        row=number,
        state=SendState.DEFERRED,
        attempts=1,
        status=451,
        detail="The server asked for patience.",
        next_attempt_at=until,
    )


async def everything(batches: BatchRepository, batch: int) -> list[MessageRow]:
    return await batches.messages(batch, state=None, after=None, limit=1_000_000)


async def not_folded(database: Database) -> list[Entry]:
    """What is in the log, as a restart in this moment would find it."""
    [state] = await database.fetch("find_log")
    return list(await database.log.entries(state["folded"]))


async def states(batches: BatchRepository, batch: int) -> list[SendState]:
    return [message.state for message in await everything(batches, batch)]


def key(name: str = "key", batch_id: str = "bat_a") -> IdempotencyRecord:
    return IdempotencyRecord(
        SESSION, "POST /api/send/batch", name, b"fingerprint", OutboxId(batch_id), NOW
    )


# ---- accepting


async def test_a_published_batch_comes_back_as_it_was_given(batches: BatchRepository) -> None:
    number = await add_batch(batches, state=BatchState.SCHEDULED)

    found = await batches.find_batch(SESSION, "bat_a")

    assert found == structs.replace(record(), number=number, state=BatchState.SCHEDULED)


async def test_rows_come_back_as_they_were_given_in_their_order(batches: BatchRepository) -> None:
    number = await add_batch(batches, [rejected_row(1), row(2), row(0)])

    first, second, third = await everything(batches, number)

    assert first == MessageRow(
        row=0,
        position=0,
        content=0,
        state=SendState.QUEUED,
        attempts=0,
        claims=0,
        message_id="<0@example.org>",
        sealed=b"\x00recipient\xff",
        next_attempt_at=NOW,
    )
    assert (second.state, second.code) == (SendState.REJECTED, "address-invalid")
    assert second.detail == "It has no domain."
    assert third.row == 2


async def test_a_content_comes_back_piece_by_piece(
    batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())
    pieces = [bytes([index]) * 3 for index in range(12)]

    await staged.add_content(number, 1, [b"another"])
    await staged.add_content(number, 0, pieces)

    assert await batches.load_content(number, 0) == pieces
    assert await batches.load_content(number, 1) == [b"another"]
    assert await batches.load_content(number, 2) == []


async def test_nobody_sees_a_batch_before_it_is_published(
    batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())
    await batches.set_state(number, BatchState.RUNNING)

    assert await batches.find_batch(SESSION, "bat_a") is None
    assert await batches.page(SESSION, before=None, limit=10) == []
    assert await batches.load_unfinished() == []


async def test_a_number_is_never_given_twice(database: Database, staged: StagedBatches) -> None:
    first = await staged.begin(record())
    await staged.discard(first)

    second = await StagedBatches(database).begin(record())

    assert second > first


async def test_a_batch_of_a_session_that_has_ended_cannot_begin(staged: StagedBatches) -> None:
    with pytest.raises(SessionNotFound):
        await staged.begin(record(session_id=OTHER))


async def test_a_batch_whose_session_ends_while_it_is_accepted_leaves_nothing(
    database: Database, batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())
    await Repository(database).delete_session(SESSION)

    with pytest.raises(SessionNotFound):
        await staged.add_messages(number, [row(0)])
    with pytest.raises(SessionNotFound):
        await staged.add_content(number, 0, [b"content"])
    with pytest.raises(SessionNotFound):
        await staged.publish(number, state=BatchState.QUEUED)
    with pytest.raises(SessionNotFound):
        await staged.publish(number, state=BatchState.QUEUED, key=key(), answer=ANSWER)

    assert await everything(batches, number) == []
    assert await batches.load_content(number, 0) == []


async def test_rows_cannot_be_added_to_a_batch_that_is_published(
    batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await add_batch(batches, 1)

    with pytest.raises(SessionNotFound):
        await staged.add_messages(number, [row(1)])

    assert len(await everything(batches, number)) == 1


async def test_a_batch_is_published_once(batches: BatchRepository, staged: StagedBatches) -> None:
    number = await add_batch(batches)
    await batches.set_state(number, BatchState.CANCELLED)

    with pytest.raises(SessionNotFound):
        await staged.publish(number, state=BatchState.QUEUED)

    assert await batches.load_unfinished() == []


async def test_a_batch_that_is_discarded_leaves_nothing(
    batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())
    await staged.add_messages(number, [row(0)])
    await staged.add_content(number, 0, [b"content"])

    await staged.discard(number)

    assert await everything(batches, number) == []
    assert await batches.load_content(number, 0) == []
    with pytest.raises(SessionNotFound):
        await staged.publish(number, state=BatchState.QUEUED)


async def test_a_published_batch_is_not_discarded(
    batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await add_batch(batches, 1)

    await staged.discard(number)

    assert await batches.find_batch(SESSION, "bat_a")
    assert len(await everything(batches, number)) == 1


# ---- publishing with an idempotency key


async def test_a_key_is_kept_with_its_answer_as_the_batch_is_published(
    database: Database, batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())

    taken = await staged.publish(number, state=BatchState.QUEUED, key=key(), answer=ANSWER)

    assert taken is None
    assert await batches.find_batch(SESSION, "bat_a")
    repository = Repository(database)
    await repository.settle_interrupted_sends(NOW)  # a restart forgets only keys without an answer
    kept = await repository.find_idempotent(SESSION, "POST /api/send/batch", "key")
    assert kept == structs.replace(key(), response=ANSWER)


async def test_of_fifty_batches_racing_on_one_key_one_is_published(
    batches: BatchRepository,
    staged: StagedBatches,
) -> None:
    ids = [f"bat_{index}" for index in range(50)]
    numbers = [await staged.begin(record(batch_id)) for batch_id in ids]

    outcomes = await asyncio.gather(
        *(
            staged.publish(
                number, state=BatchState.QUEUED, key=key(batch_id=batch_id), answer=ANSWER
            )
            for number, batch_id in zip(numbers, ids, strict=True)
        )
    )

    [published] = await batches.load_unfinished()
    assert outcomes.count(None) == 1
    assert published.id == ids[outcomes.index(None)]
    assert [other.outbox_id for other in outcomes if other] == [published.id] * 49
    assert all(other.response == ANSWER for other in outcomes if other)


async def test_a_key_that_another_call_is_running_with_publishes_nothing(
    database: Database, batches: BatchRepository, staged: StagedBatches
) -> None:
    running = structs.replace(key(), outbox_id=None)
    await Repository(database).begin_idempotent(running)
    number = await staged.begin(record())

    taken = await staged.publish(number, state=BatchState.QUEUED, key=key(), answer=ANSWER)

    assert taken == running
    assert await batches.find_batch(SESSION, "bat_a") is None


async def test_a_key_without_its_answer_is_a_mistake(
    batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())

    with pytest.raises(ValueError, match="with its answer"):
        await staged.publish(number, state=BatchState.QUEUED, key=key())


# ---- batches


async def test_batches_with_something_left_to_do_are_the_unfinished_ones(
    batches: BatchRepository,
) -> None:
    for state in (*OPEN, BatchState.COMPLETED, BatchState.CANCELLED):
        await add_batch(batches, record=record(f"bat_{state}"), state=state)

    assert [batch.state for batch in await batches.load_unfinished()] == OPEN


async def test_a_batch_is_found_by_its_session_alone(
    database: Database, batches: BatchRepository
) -> None:
    await Repository(database).add_session(session(OTHER), token(b"other", OTHER))
    await add_batch(batches)

    assert await batches.find_batch(OTHER, "bat_a") is None
    assert await batches.page(OTHER, before=None, limit=10) == []


async def test_pages_of_batches_go_from_the_newest_to_the_oldest(batches: BatchRepository) -> None:
    ids = [f"bat_{index}" for index in range(5)]
    for batch_id in ids:
        await add_batch(batches, record=record(batch_id))

    first = await batches.page(SESSION, before=None, limit=3)
    second = await batches.page(SESSION, before=first[-1].number, limit=3)

    assert [batch.id for batch in first + second] == ids[::-1]
    assert len(first) == 3


async def test_a_single_message_is_in_no_page_of_batches(batches: BatchRepository) -> None:
    single = structs.replace(record("msg_a"), kind=BatchKind.SEND)
    await add_batch(batches, record=single)

    assert await batches.page(SESSION, before=None, limit=10) == []
    assert await batches.find_batch(SESSION, "msg_a")


async def test_messages_are_counted_by_state(batches: BatchRepository) -> None:
    first = await add_batch(batches, [row(0), row(1), rejected_row(2)])
    second = await add_batch(batches, record=record("bat_b"))
    await batches.record([sent(first, 0)])
    await batches.fold()

    assert await batches.counts([first, second]) == {
        first: {SendState.SENT: 1, SendState.QUEUED: 1, SendState.REJECTED: 1},
        second: {},
    }
    assert await batches.counts([]) == {}


async def test_a_state_is_set_with_all_that_goes_with_it(batches: BatchRepository) -> None:
    number = await add_batch(batches)
    await batches.set_state(number, BatchState.RUNNING, started_at=NOW)

    await batches.set_state(
        number, BatchState.PAUSED, paused_reason="account-limit", paused_until=NOW + MINUTE
    )
    paused = await batches.find_batch(SESSION, "bat_a")
    await batches.set_state(
        number, BatchState.COMPLETED, started_at=NOW + MINUTE, finished_at=NOW + MINUTE
    )
    completed = await batches.find_batch(SESSION, "bat_a")

    expected = structs.replace(record(), number=number, started_at=NOW)
    assert paused == structs.replace(
        expected,
        state=BatchState.PAUSED,
        paused_reason="account-limit",
        paused_until=NOW + MINUTE,
    )
    assert completed == structs.replace(
        expected, state=BatchState.COMPLETED, finished_at=NOW + MINUTE
    )


# ---- claiming


async def test_what_is_due_longest_is_claimed_first(batches: BatchRepository) -> None:
    due = [NOW, NOW - MINUTE, NOW + MINUTE, NOW - MINUTE]
    number = await add_batch(batches, [row(index, due=at) for index, at in enumerate(due)])

    assert await claim(batches, number, limit=2) == [1, 3]
    assert await claim(batches, number, held=[1, 3]) == [0]
    assert await claim(batches, number, held=[0, 1, 3], now=NOW + MINUTE) == [2]


async def test_no_row_is_claimed_twice_while_others_are_being_sent(
    batches: BatchRepository,
) -> None:
    number = await add_batch(batches, 400)
    held: set[int] = set()
    claimed: list[int] = []

    async def deliver(rows: list[int]) -> None:
        for index in rows:
            await batches.record([intent(number, index)])
            await batches.record([sent(number, index)])
            held.remove(index)

    async with asyncio.TaskGroup() as deliveries:
        while rows := await claim(batches, number, held=list(held), limit=20):
            held.update(rows)
            claimed += rows
            deliveries.create_task(deliver(rows))

    assert sorted(claimed) == list(range(400))


async def test_a_row_that_was_sent_is_not_claimed_again(batches: BatchRepository) -> None:
    number = await add_batch(batches, 10)
    claimed: list[int] = []

    while rows := await claim(batches, number, limit=3):  # nothing held: the journal alone says it
        claimed += rows
        await batches.record([sent(number, index) for index in rows])

    assert claimed == list(range(10))


async def test_claims_are_counted_until_there_is_an_outcome(batches: BatchRepository) -> None:
    number = await add_batch(batches, 1)
    await claim(batches, number)
    await claim(batches, number)
    await batches.record([intent(number, 0)])
    [before] = await everything(batches, number)

    await batches.record([deferred(number, 0, NOW)])
    [after] = await everything(batches, number)

    assert (before.claims, before.state) == (2, SendState.SENDING)
    assert (after.claims, after.state) == (0, SendState.DEFERRED)


async def test_a_claim_counts_only_once_the_work_begins(batches: BatchRepository) -> None:
    number = await add_batch(batches, 1)
    for _ in range(5):
        await batches.claim(number, now=NOW, held=[], limit=1, suspects=3)
    await batches.count_claims(number, [0])

    [claimed] = await batches.claim(number, now=NOW, held=[], limit=1, suspects=3)

    assert claimed.claims == 1
    assert claimed == (await everything(batches, number))[0]


async def test_a_row_that_may_kill_workers_goes_last_and_alone(batches: BatchRepository) -> None:
    number = await add_batch(batches, 4)
    for _ in range(5):  # so many processes died of the first two rows
        assert await claim(batches, number, held=[2, 3], suspects=9) == [0, 1]

    assert await claim(batches, number) == [2, 3]
    assert await claim(batches, number, held=[2, 3]) == [0]
    assert await claim(batches, number, held=[0, 2, 3]) == []
    await batches.record([sent(number, 0)])
    assert await claim(batches, number, held=[2, 3]) == [1]


async def test_rows_that_were_only_beside_one_that_kills_workers_soon_go_without_it(
    batches: BatchRepository,
) -> None:
    number = await add_batch(batches, 200)
    sizes = []
    for _ in range(6):  # processes, of which row 0 is the death
        rows = await claim(batches, number, limit=100)
        while 0 not in rows:
            await batches.record([sent(number, row) for row in rows])
            rows = await claim(batches, number, limit=100)
        sizes.append(len(rows))

    others = [row.state for row in (await everything(batches, number))[1:]]
    assert sizes == [100, 100, 100, 12, 1, 1]
    assert others == [SendState.SENT] * 199


async def test_a_limit_of_nothing_claims_nothing(batches: BatchRepository) -> None:
    number = await add_batch(batches, 1)

    assert await claim(batches, number, limit=0) == []
    assert await claim(batches, number, limit=0, suspects=0) == []


async def test_the_next_row_is_due_when_the_earliest_that_is_not_held_is(
    batches: BatchRepository,
) -> None:
    number = await add_batch(batches, [row(0, due=NOW), row(1, due=NOW + MINUTE), rejected_row(2)])
    await batches.record([deferred(number, 0, NOW + 2 * MINUTE)])

    assert await batches.next_due(number, held=[]) == NOW + MINUTE
    assert await batches.next_due(number, held=[1]) == NOW + 2 * MINUTE
    assert await batches.next_due(number, held=[0, 1]) is None


# ---- the journal


async def test_the_latest_event_of_a_row_wins_whole(batches: BatchRepository) -> None:
    number = await add_batch(batches, 1)
    await batches.record([intent(number, 0), sent(number, 0)])
    await batches.record([deferred(number, 0, NOW + MINUTE), intent(number, 0, attempts=2)])
    await batches.record([deferred(number, 0, NOW + 2 * MINUTE)])

    [message] = await everything(batches, number)

    assert (message.state, message.attempts) == (SendState.DEFERRED, 1)
    assert (message.status, message.enhanced) == (451, None)
    assert (message.next_attempt_at, message.finished_at) == (NOW + 2 * MINUTE, None)


async def test_events_folded_in_do_not_come_back(batches: BatchRepository) -> None:
    number = await add_batch(batches, 2)
    await batches.record([sent(number, 0)])
    await batches.fold()
    await batches.move_messages(number, states=[SendState.SENT], to=SendState.QUEUED, now=NOW)

    await batches.record([sent(number, 1)])
    await batches.fold()

    assert await states(batches, number) == [SendState.QUEUED, SendState.SENT]


async def test_an_event_reaches_the_row_of_its_own_batch_alone(batches: BatchRepository) -> None:
    first = await add_batch(batches, 2)
    second = await add_batch(batches, 2, record=record("bat_b"))

    await batches.record([sent(first, 0), sent(second, 1)])

    assert await states(batches, first) == [SendState.SENT, SendState.QUEUED]
    assert await states(batches, second) == [SendState.QUEUED, SendState.SENT]


async def test_events_of_many_callers_are_all_kept(batches: BatchRepository) -> None:
    number = await add_batch(batches, 300)

    await asyncio.gather(
        *(batches.record([intent(number, index)]) for index in range(300)), batches.fold()
    )
    await asyncio.gather(
        *(batches.record([sent(number, index)]) for index in range(300)), batches.fold()
    )

    assert set(await states(batches, number)) == {SendState.SENT}


async def test_events_of_a_process_before_come_before_those_of_this_one(
    database: Database, batches: BatchRepository
) -> None:
    number = await add_batch(batches, 2)
    await batches.record([deferred(number, index, NOW) for index in (0, 1, 0)])

    await BatchRepository(database).record([sent(number, 0)])

    assert await states(BatchRepository(database), number) == [SendState.SENT, SendState.DEFERRED]


async def test_recording_nothing_is_fine(batches: BatchRepository) -> None:
    await batches.record([])
    await batches.fold()
    await batches.fold()


async def test_an_event_of_a_batch_that_is_gone_is_dropped(
    database: Database, batches: BatchRepository
) -> None:
    number = await add_batch(batches, 1)
    await Repository(database).delete_session(SESSION)

    await batches.record([sent(number, 0)])
    await batches.fold()

    assert await everything(batches, number) == []


# ---- steering


async def test_cancelling_ends_what_is_unsent_and_nobody_holds(batches: BatchRepository) -> None:
    number = await add_batch(batches, 4)
    await batches.record([sent(number, 0), deferred(number, 1, NOW + MINUTE)])

    moved = await batches.move_messages(
        number, states=UNSENT, to=SendState.CANCELLED, now=NOW + MINUTE, held=[3]
    )

    assert moved == {SendState.DEFERRED: 1, SendState.QUEUED: 1}
    _, second, third, fourth = await everything(batches, number)
    assert await states(batches, number) == [
        SendState.SENT,
        SendState.CANCELLED,
        SendState.CANCELLED,
        SendState.QUEUED,
    ]
    assert second.finished_at == third.finished_at == NOW + MINUTE
    assert second.next_attempt_at is third.next_attempt_at is None
    assert fourth.finished_at is None


async def test_a_retry_makes_failed_and_uncertain_rows_as_good_as_new(
    batches: BatchRepository,
) -> None:
    number = await add_batch(batches, 3)
    failed = structs.replace(sent(number, 0), state=SendState.FAILED, status=550, attempts=5)
    uncertain = structs.replace(sent(number, 1), state=SendState.UNCERTAIN)
    await batches.record([failed, uncertain, sent(number, 2)])

    moved = await batches.move_messages(
        number,
        states=[SendState.FAILED, SendState.UNCERTAIN],
        to=SendState.QUEUED,
        now=NOW + MINUTE,
    )

    assert moved == {SendState.FAILED: 1, SendState.UNCERTAIN: 1}
    first, second, third = await everything(batches, number)
    assert (first.detail, second.detail) == (None, EARLIER_TRY)
    for index, message in enumerate((first, second)):
        assert message.message_id == f"<{index}@example.org>"
        assert (message.state, message.attempts) == (SendState.QUEUED, 0)
        assert message.next_attempt_at == NOW + MINUTE
        assert (message.status, message.enhanced) == (None, None)
        assert message.finished_at is None
    assert third.state is SendState.SENT


async def test_messages_are_moved_in_one_batch_alone(batches: BatchRepository) -> None:
    first = await add_batch(batches, 1)
    second = await add_batch(batches, 1, record=record("bat_b"))

    await batches.move_messages(first, states=UNSENT, to=SendState.CANCELLED, now=NOW)

    assert await states(batches, second) == [SendState.QUEUED]


async def test_messages_do_not_begin_to_be_sent_in_bulk(batches: BatchRepository) -> None:
    number = await add_batch(batches, 1)

    with pytest.raises(ValueError, match="sending"):
        await batches.move_messages(number, states=UNSENT, to=SendState.SENDING, now=NOW)


# ---- reading messages


async def test_messages_are_paged_in_their_order_with_what_the_journal_says(
    batches: BatchRepository,
) -> None:
    number = await add_batch(batches, 5)
    await batches.record([sent(number, 1), sent(number, 4)])

    first = await batches.messages(number, state=None, after=None, limit=3)
    second = await batches.messages(number, state=None, after=first[-1].row, limit=3)
    delivered = await batches.messages(number, state=SendState.SENT, after=1, limit=3)

    assert [message.row for message in first] == [0, 1, 2]
    assert [message.row for message in second] == [3, 4]
    assert first[1].state is SendState.SENT
    assert [message.row for message in delivered] == [4]


async def test_rejected_messages_are_shown_up_to_a_limit(batches: BatchRepository) -> None:
    some = await add_batch(batches, [row(0), *(rejected_row(index) for index in range(1, 5))])
    none = await add_batch(batches, 1, record=record("bat_b"))
    one = await add_batch(batches, [rejected_row(0)], record=record("bat_c"))

    rejected = await batches.rejected([some, none, one], limit=3)

    rows = {number: [message.row for message in rows] for number, rows in rejected.items()}
    assert rows == {some: [1, 2, 3], none: [], one: [0]}


async def test_what_an_account_has_sent_is_counted_by_the_hour_in_batches_and_one_by_one(
    database: Database, batches: BatchRepository
) -> None:
    """Of both its sessions, and by recipients; what may have been delivered counts, what was refused does not."""
    repository = Repository(database)
    same, other = session(OTHER), session(SessionId("ses_c"))
    await repository.add_session(same, token(b"same", OTHER))
    stranger = structs.replace(other, smtp=structs.replace(other.smtp, username="Ann"))
    await repository.add_session(stranger, token(b"stranger", stranger.id))
    first = await add_batch(batches, 4)
    second = await add_batch(batches, 1, record=record("bat_b", OTHER))
    theirs = await add_batch(batches, 1, record=record("bat_c", stranger.id))
    await batches.record(
        [
            sent(first, 0, NOW - 2 * HOUR),
            sent(first, 1, NOW + MINUTE),
            structs.replace(sent(first, 2), state=SendState.UNCERTAIN),
            structs.replace(sent(first, 3), state=SendState.FAILED),
            sent(second, 0, NOW - MINUTE),
            sent(theirs, 0),
        ]
    )
    single = send(OutboxId("msg_a"))
    await repository.record_send(structs.replace(single, recipients=30))
    await repository.settle_send(single.id, state=SendState.SENT, result=b"", finished_at=NOW)
    refused = send(OutboxId("msg_b"))
    await repository.record_send(structs.replace(refused, recipients=500))
    await repository.settle_send(refused.id, state=SendState.FAILED, result=b"", finished_at=NOW)

    async def count(since: datetime, username: str = "jörg@example.com") -> object:
        return await batches.sent_by_hour(host="smtp.example.com", username=username, since=since)

    assert await count(NOW - HOUR) == [(NOW - HOUR, 1), (NOW, 32)]
    assert await count(NOW - 2 * HOUR) == [(NOW - 2 * HOUR, 1), (NOW - HOUR, 1), (NOW, 32)]
    assert await count(NOW, "ann") == [(NOW, 1)]
    assert await count(NOW, "nobody") == []


# ---- starting, ending


async def test_what_was_being_sent_when_the_process_died_is_uncertain(
    database: Database, batches: BatchRepository
) -> None:
    number = await add_batch(batches, 4)
    await batches.record([intent(number, index) for index in range(3)])
    await batches.record([sent(number, 0)])
    await batches.set_state(number, BatchState.CANCELLED)
    restarted = BatchRepository(database)

    uncertain = await restarted.recover(NOW + MINUTE)

    assert uncertain == 2
    assert await states(restarted, number) == [
        SendState.SENT,
        SendState.UNCERTAIN,
        SendState.UNCERTAIN,
        SendState.CANCELLED,  # with its batch, of which no row may wait any more
    ]
    [first, _] = await restarted.undecided(number)
    assert (first.row, first.finished_at) == (1, NOW + MINUTE)
    assert first.detail is not None
    assert first.detail.startswith("The service stopped")
    assert [batch.number for batch in await restarted.load_undecided()] == [number]
    assert await restarted.recover(NOW) == 0


async def test_a_batch_that_was_being_accepted_is_thrown_away_at_start(
    batches: BatchRepository,
    staged: StagedBatches,
) -> None:
    kept = await add_batch(batches, 1)
    number = await staged.begin(record("bat_b"))
    await staged.add_messages(number, [row(0)])
    await staged.add_content(number, 0, [b"content"])

    await batches.recover(NOW)

    assert await everything(batches, number) == []
    assert await batches.load_content(number, 0) == []
    with pytest.raises(SessionNotFound):
        await staged.publish(number, state=BatchState.QUEUED)
    assert len(await everything(batches, kept)) == 1


async def test_a_batch_without_uncertain_messages_is_not_undecided(
    batches: BatchRepository,
) -> None:
    await add_batch(batches, 1)

    assert await batches.load_undecided() == []


async def test_batches_that_finished_long_ago_are_purged_with_everything(
    batches: BatchRepository,
    staged: StagedBatches,
) -> None:
    old = await staged.begin(record())
    await staged.add_messages(old, [row(0)])
    await staged.add_content(old, 0, [b"content"])
    await staged.publish(old, state=BatchState.COMPLETED)
    await batches.set_state(old, BatchState.COMPLETED, finished_at=NOW - MINUTE)
    recent = await add_batch(batches, 1, record=record("bat_b"))
    await batches.set_state(recent, BatchState.COMPLETED, finished_at=NOW)
    running = await add_batch(batches, 1, record=record("bat_c"))

    await batches.purge(NOW)

    assert await batches.find_batch(SESSION, "bat_a") is None
    assert await everything(batches, old) == []
    assert await batches.load_content(old, 0) == []
    assert len(await everything(batches, recent)) == len(await everything(batches, running)) == 1
    assert await batches.find_batch(SESSION, "bat_b")


async def test_a_session_takes_its_batches_with_it_and_no_others(
    database: Database, batches: BatchRepository, staged: StagedBatches
) -> None:
    repository = Repository(database)
    await repository.add_session(session(OTHER), token(b"other", OTHER))
    mine = await staged.begin(record())
    await staged.add_messages(mine, [row(0)])
    await staged.add_content(mine, 0, [b"content"])
    await staged.publish(mine, state=BatchState.QUEUED)
    theirs = await add_batch(batches, 1, record=record("bat_b", OTHER))
    await batches.record([sent(mine, 0), sent(theirs, 0), sent(mine, 0)])

    await repository.delete_session(SESSION)

    await batches.fold()
    assert await not_folded(database) == []
    assert await batches.find_batch(SESSION, "bat_a") is None
    assert [batch.number for batch in await batches.load_unfinished()] == [theirs]
    assert await batches.load_content(mine, 0) == []
    assert await everything(batches, mine) == []
    assert await states(batches, theirs) == [SendState.SENT]


async def test_a_database_opened_again_has_everything(tmp_path: Path) -> None:
    path = tmp_path / "again" / "store.duckdb"
    first = await DuckDbDatabase.open(path)
    await Repository(first).add_session(session(), token(b"first"))
    batches, staged = BatchRepository(first), StagedBatches(first)
    number = await staged.begin(record())
    await staged.add_messages(number, [row(0), row(1)])
    await staged.add_content(number, 0, [b"content"])
    await staged.publish(number, state=BatchState.RUNNING)
    await claim(batches, number)
    await batches.record([sent(number, 0)])
    await first.close()

    second = await DuckDbDatabase.open(path)
    batches = BatchRepository(second)

    assert [batch.number for batch in await batches.load_unfinished()] == [number]
    assert await batches.load_content(number, 0) == [b"content"]
    assert await states(batches, number) == [SendState.SENT, SendState.QUEUED]
    assert [message.claims for message in await everything(batches, number)] == [0, 1]
    assert await StagedBatches(second).begin(record("bat_b")) > number
    await second.close()


# ---- size


async def test_a_batch_of_200_000_rows_and_a_large_content_fit_the_memory_of_the_store(
    database: Database, batches: BatchRepository, staged: StagedBatches
) -> None:
    number = await staged.begin(record())
    for first in range(0, 200_000, 2000):
        await staged.add_messages(number, [row(first + index) for index in range(2000)])
    pieces = [os.urandom(LARGEST_VALUE) for _ in range((4 << 20) // LARGEST_VALUE)]
    for message in range(40):  # more than the engine may have in memory
        await staged.add_content(number, message, pieces)
    await staged.publish(number, state=BatchState.QUEUED)

    claimed = await claim(batches, number, limit=500)
    await batches.record([sent(number, index) for index in claimed])
    cancelled = await batches.move_messages(number, states=UNSENT, to=SendState.CANCELLED, now=NOW)

    assert claimed == list(range(500))
    assert cancelled == {SendState.QUEUED: 199_500}
    assert await batches.load_content(number, 0) == pieces
    await Repository(database).delete_session(SESSION)
    assert await batches.counts([number]) == {number: {}}
