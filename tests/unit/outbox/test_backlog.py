from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cbemail.errors import Overloaded, RateLimited
from cbemail.ids import SessionId
from cbemail.outbox.backlog import LEAST_WAIT, MOST_WAIT, STANDSTILL_WAIT, Backlog, Limits
from cbemail.outbox.live import LiveBatch
from cbemail.store.batch_records import (
    BatchKind,
    BatchOptions,
    BatchRecord,
    BatchState,
    MessageEvent,
)
from cbemail.store.records import SendState
from tests.unit.outbox.test_rulings import row

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JOE, ANN = SessionId("ses_joe"), SessionId("ses_ann")
LIMITS = Limits(
    session_messages=100, session_batches=2, session_sends=3, all_messages=150, all_batches=5
)


class Carried:
    """Batches that are under way, and the backlog they make."""

    def __init__(self) -> None:
        self.lives: list[LiveBatch] = []
        self.backlog = Backlog(lambda: self.lives, LIMITS)

    def add(
        self, queued: int, session_id: SessionId = JOE, kind: BatchKind = BatchKind.BATCH
    ) -> LiveBatch:
        number = len(self.lives)
        record = BatchRecord(
            number=number,
            id=f"bat_{number}",
            kind=kind,
            session_id=session_id,
            name=None,
            state=BatchState.RUNNING,
            options=BatchOptions(),
            token="t",
            sealed_key=b"",
            created_at=NOW,
        )
        live = LiveBatch(record, {SendState.QUEUED: queued}, (), lambda: NOW)
        self.lives.append(live)
        return live


@pytest.fixture
async def carried() -> Carried:
    return Carried()


def sent(live: LiveBatch, number: int) -> None:
    """So many of the batch's messages have just been sent."""
    live.take(row(index) for index in range(number))
    live.apply(MessageEvent(live.number, index, SendState.SENT, 1) for index in range(number))


async def test_a_session_may_queue_up_to_its_limit(carried: Carried) -> None:
    carried.add(60)

    carried.backlog.require_room(JOE, BatchKind.BATCH, 40)
    with pytest.raises(RateLimited):
        carried.backlog.require_room(JOE, BatchKind.BATCH, 41)


async def test_what_was_sent_makes_room(carried: Carried) -> None:
    live = carried.add(100)
    with pytest.raises(RateLimited):
        carried.backlog.require_room(JOE, BatchKind.BATCH)

    sent(live, 1)

    carried.backlog.require_room(JOE, BatchKind.BATCH)


async def test_one_session_takes_no_room_from_another(carried: Carried) -> None:
    carried.add(100)
    carried.add(0)

    carried.backlog.require_room(ANN, BatchKind.BATCH, 50)


async def test_all_sessions_together_have_a_limit_which_is_nobodys_fault(carried: Carried) -> None:
    carried.add(100)

    with pytest.raises(Overloaded):
        carried.backlog.require_room(ANN, BatchKind.BATCH, 51)


async def test_batches_and_single_messages_are_counted_apart(carried: Carried) -> None:
    for _ in range(2):
        carried.add(1)

    with pytest.raises(RateLimited):
        carried.backlog.require_room(JOE, BatchKind.BATCH)
    carried.backlog.require_room(JOE, BatchKind.SEND)


async def test_single_messages_have_a_limit_of_their_own(carried: Carried) -> None:
    for _ in range(3):
        carried.add(1, kind=BatchKind.SEND)

    with pytest.raises(RateLimited):
        carried.backlog.require_room(JOE, BatchKind.SEND)


async def test_there_is_a_limit_to_batches_over_all(carried: Carried) -> None:
    for index in range(5):
        carried.add(1, SessionId(f"ses_{index}"))

    with pytest.raises(Overloaded):
        carried.backlog.require_room(ANN, BatchKind.BATCH)


async def test_room_that_was_promised_is_nobody_elses_until_it_is_given_back(
    carried: Carried,
) -> None:
    with carried.backlog.room(JOE, BatchKind.BATCH, 60), pytest.raises(RateLimited):
        carried.backlog.require_room(JOE, BatchKind.BATCH, 60)

    carried.backlog.require_room(JOE, BatchKind.BATCH, 60)


async def test_more_messages_of_a_batch_need_room_but_are_no_further_batch(
    carried: Carried,
) -> None:
    carried.add(10)
    live = carried.add(10)

    with carried.backlog.more(live, 80):
        pass
    with pytest.raises(RateLimited), carried.backlog.more(live, 81):
        pass


# ---- when to come back


async def test_a_client_is_told_to_come_back_when_so_much_will_have_gone(carried: Carried) -> None:
    live = carried.add(1100)
    sent(live, 1000)  # of the last ten seconds: a hundred a second

    with pytest.raises(RateLimited) as refused:
        carried.backlog.require_room(JOE, BatchKind.BATCH, 1000)

    assert refused.value.retry_after == 10


async def test_nobody_is_sent_away_for_an_instant_or_for_hours(carried: Carried) -> None:
    fast, slow = carried.add(1100), carried.add(1000, ANN)
    sent(fast, 1000)
    sent(slow, 1)

    waits = []
    for session_id, messages in ((JOE, 1), (ANN, 100)):
        with pytest.raises(RateLimited) as refused:
            carried.backlog.require_room(session_id, BatchKind.SEND, messages)
        waits.append(refused.value.retry_after)

    assert waits == [LEAST_WAIT, MOST_WAIT]


async def test_where_nothing_moves_the_wait_is_a_guess(carried: Carried) -> None:
    carried.add(100)

    with pytest.raises(RateLimited) as refused:
        carried.backlog.require_room(JOE, BatchKind.BATCH)

    assert refused.value.retry_after == STANDSTILL_WAIT
