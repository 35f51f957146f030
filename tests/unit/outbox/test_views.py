from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec import structs

from cbemail.outbox.batch import WAITING, Counts
from cbemail.outbox.content import Recipient, encode_recipient, place_of_row
from cbemail.outbox.live import view_of
from cbemail.outbox.views import counts_of, message_view, send_result
from cbemail.store.batch_records import BatchRecord, BatchState, MessageRow
from cbemail.store.records import SendState
from tests.contract.test_batches import record
from tests.unit.outbox.mailroom import KEY
from tests.unit.outbox.test_rulings import row

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def sealed(state: SendState, number: int = 0) -> MessageRow:
    """A row on disk."""
    known = KEY.seal(place_of_row(number), encode_recipient(Recipient("ann@example.org", None)))
    return row(number, state=state, sealed=known, next_attempt_at=NOW)


def batch(state: BatchState) -> BatchRecord:
    return structs.replace(record(), state=state)


@pytest.mark.parametrize("state", WAITING)
def test_a_row_that_waits_in_a_cancelled_batch_is_cancelled(state: SendState) -> None:
    """A courier may hold it still: it will give it back, and not send it."""
    waiting = sealed(state)

    running = message_view(batch(BatchState.RUNNING), waiting, KEY)
    cancelled = message_view(batch(BatchState.CANCELLED), waiting, KEY)

    assert (running.state, running.next_attempt_at) == (state, NOW)
    assert (cancelled.state, cancelled.next_attempt_at) == (SendState.CANCELLED, None)


@pytest.mark.parametrize("state", [state for state in SendState if state not in WAITING])
def test_any_other_row_is_what_it_is(state: SendState) -> None:
    shown = message_view(batch(BatchState.CANCELLED), sealed(state), KEY)

    assert shown.state is state


def test_a_single_message_that_waits_is_cancelled_with_its_batch() -> None:
    rows = [sealed(SendState.QUEUED), sealed(SendState.DEFERRED, 1)]

    result = send_result(batch(BatchState.CANCELLED), rows, lambda _: KEY)

    assert result.state is SendState.CANCELLED


def test_the_counts_of_a_cancelled_batch_have_nothing_that_waits() -> None:
    counts = counts_of(
        {SendState.QUEUED: 4, SendState.DEFERRED: 2, SendState.SENDING: 1, SendState.CANCELLED: 8}
    )

    running = view_of(batch(BatchState.RUNNING), counts, ())
    cancelled = view_of(batch(BatchState.CANCELLED), counts, ())

    assert running.counts == Counts(total=15, queued=4, deferred=2, sending=1, cancelled=8)
    assert cancelled.counts == Counts(total=15, sending=1, cancelled=14)
