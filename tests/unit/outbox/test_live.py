"""A batch in memory: its counts always add up, and whoever watches it hears of every change."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from cbemail.outbox.live import Hold, LiveBatch
from cbemail.store.batch_records import BatchOptions, BatchState, MessageEvent, OnUncertain
from cbemail.store.records import SendState
from tests.contract.test_batches import record
from tests.property.test_imap_pool import StoppedClock
from tests.unit.outbox.test_rulings import row

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
QUEUED, SENDING, DEFERRED = SendState.QUEUED, SendState.SENDING, SendState.DEFERRED
SENT, FAILED, UNCERTAIN = SendState.SENT, SendState.FAILED, SendState.UNCERTAIN
CANCELLED, REJECTED = SendState.CANCELLED, SendState.REJECTED


@pytest.fixture
def loop() -> Iterator[StoppedClock]:
    loop = StoppedClock()
    yield loop
    loop.close()


def batch(
    counts: dict[SendState, int] | None = None,
    *,
    state: BatchState = BatchState.RUNNING,
    **options: Any,
) -> LiveBatch:
    known = structs.replace(
        record(), number=1, state=state, send_at=None, options=BatchOptions(**options)
    )
    return LiveBatch(known, {QUEUED: 4} if counts is None else counts, (), lambda: NOW)


def event(number: int, state: SendState, **fields: object) -> MessageEvent:
    return structs.replace(MessageEvent(1, number, state, 1), **fields)


def counts(live: LiveBatch) -> dict[SendState, int]:
    return {state: live.count(state) for state in SendState if live.count(state)}


# ---- counts


def test_a_row_is_counted_where_the_disk_has_it(loop: StoppedClock) -> None:
    live = batch()
    live.take([row(0), row(1)])
    claimed = counts(live)

    loop.within(lambda: live.apply([event(0, SENDING), event(1, SENDING)]))
    begun = counts(live)
    loop.within(lambda: live.apply([event(0, SENT), event(1, DEFERRED, next_attempt_at=NOW)]))

    assert claimed == {QUEUED: 4}, "a claim is no change that anybody sees"
    assert begun == {QUEUED: 2, SENDING: 2}
    assert counts(live) == {QUEUED: 2, SENT: 1, DEFERRED: 1}


def test_a_row_is_held_from_its_claim_to_its_outcome(loop: StoppedClock) -> None:
    live = batch()
    live.take([row(0), row(1)])

    loop.within(lambda: live.apply([event(0, SENDING), event(1, SENDING), event(0, SENT)]))

    assert set(live.held) == {1}
    assert live.held[1].state is SENDING
    assert live.held[1].attempts == 1


def test_a_row_that_nobody_held_is_counted_by_the_store_alone(loop: StoppedClock) -> None:
    live = batch({})

    loop.within(lambda: live.apply([event(7, SENT)]))

    assert counts(live) == {}


@pytest.mark.parametrize(
    ("on_uncertain", "open_"), [(OnUncertain.HOLD, 3), (OnUncertain.RESEND, 4)]
)
def test_what_is_uncertain_is_settled_unless_it_may_be_sent_again(
    on_uncertain: OnUncertain, open_: int
) -> None:
    one_of_each = dict.fromkeys(SendState, 1)

    assert batch(one_of_each, on_uncertain=on_uncertain).unsettled == open_


# ---- when there is something to do


def test_a_row_to_be_tried_again_is_expected_then_and_the_courier_hears_of_it(
    loop: StoppedClock,
) -> None:
    live = batch()
    live.take([row(0)])
    live.due_at = NOW + 10 * MINUTE
    live.nudged.clear()

    loop.within(lambda: live.apply([event(0, DEFERRED, next_attempt_at=NOW + MINUTE)]))

    assert live.due_at == NOW + MINUTE
    assert live.nudged.is_set()


def test_a_later_row_does_not_put_off_an_earlier_one() -> None:
    live = batch()
    live.due_at = NOW
    live.nudged.clear()

    live.expect(NOW + MINUTE)

    assert live.due_at == NOW
    assert not live.nudged.is_set()


def test_a_row_without_a_time_is_due_now() -> None:
    live = batch()
    live.due_at = None

    live.expect(None)

    assert live.due_at == NOW


# ---- what is shown


def test_a_hold_is_shown_only_while_it_is_what_holds_the_batch_up(loop: StoppedClock) -> None:
    live = batch()
    live.hold = Hold("upstream-unavailable", NOW + MINUTE)
    shown: list[str | None] = []

    def show() -> None:
        shown.append(live.view().paused_reason)

    loop.within(show)
    live.change(state=BatchState.PAUSED, paused_reason="requested")
    loop.within(show)

    assert shown == ["upstream-unavailable", "requested"]


def test_the_rate_is_of_the_last_seconds_and_foretells_the_end(loop: StoppedClock) -> None:
    live = batch({QUEUED: 100})
    live.take([row(number) for number in range(30)])
    views = []

    loop.within(lambda: live.apply([event(number, SENT) for number in range(20)]))
    loop.now = 5.0
    loop.within(lambda: live.apply([event(number, DEFERRED) for number in range(20, 30)]))
    loop.within(lambda: views.append(live.view()))
    loop.now = 10.1
    loop.within(lambda: views.append(live.view()))

    assert (views[0].rate.per_second, views[0].eta_seconds) == (2.0, 40)
    assert (views[1].rate.per_second, views[1].eta_seconds) == (0.0, None)


def test_a_rate_the_client_named_foretells_the_end_from_the_first_moment_on(
    loop: StoppedClock,
) -> None:
    live = batch({QUEUED: 90}, rate_per_minute=30)
    views = []

    loop.within(lambda: views.append(live.view()))

    assert views[0].eta_seconds == 180


def test_a_batch_that_is_paused_or_over_foretells_nothing(loop: StoppedClock) -> None:
    views = []

    for state in (BatchState.PAUSED, BatchState.COMPLETED, BatchState.CANCELLED):
        live = batch({QUEUED: 90}, state=state, rate_per_minute=30)
        loop.within(lambda live=live: views.append(live.view()))  # type: ignore[misc]  # bound now

    assert [view.eta_seconds for view in views] == [None] * 3


# ---- who watches


def test_every_change_wakes_every_watcher_until_it_has_gone(loop: StoppedClock) -> None:
    live = batch()
    live.take([row(0)])
    first, second = live.watch(), live.watch()
    changes = [
        lambda: live.change(name="other"),
        lambda: live.apply([event(0, SENT)]),
        lambda: live.moved({QUEUED: 1}, CANCELLED),
    ]
    woken = []

    for change in changes:
        first.clear()
        second.clear()
        loop.within(change)
        woken.append((first.is_set(), second.is_set()))
    live.unwatch(first)
    first.clear()
    live.change(name="third")

    assert woken == [(True, True)] * 3
    assert (first.is_set(), second.is_set()) == (False, True)


def test_who_has_gone_may_go_again() -> None:
    live = batch()
    watcher = live.watch()

    live.unwatch(watcher)
    live.unwatch(watcher)


# ---- whatever happens


outcomes = st.sampled_from([QUEUED, DEFERRED, SENT, FAILED, UNCERTAIN, CANCELLED])


class LiveMachine(RuleBasedStateMachine):
    """A courier, a reconciler and a client do to one batch whatever they may do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = StoppedClock()
        self.live = batch({})
        self.rows: dict[int, SendState] = {}  # what the disk has
        self.held: set[int] = set()

    def teardown(self) -> None:
        self.loop.close()

    @initialize(states=st.lists(st.sampled_from([QUEUED, REJECTED]), max_size=12))
    def accept(self, states: list[SendState]) -> None:
        self.rows = dict(enumerate(states))
        self.live = batch(dict(Counter(states)))

    def choose(self, wanted: list[int], data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.sampled_from(wanted), unique=True)) if wanted else []

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        due = {QUEUED, DEFERRED}
        free = [n for n, state in self.rows.items() if state in due and n not in self.held]
        taken = self.choose(free, data)
        self.live.take([structs.replace(row(n), state=self.rows[n]) for n in taken])
        self.held |= set(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """One group of the journal: intents and outcomes, of one row several, too."""
        events = []
        for _ in range(data.draw(st.integers(1, 5))):
            if not self.held:
                break
            number = data.draw(st.sampled_from(sorted(self.held)))
            state = data.draw(st.just(SENDING) | outcomes)
            events.append(event(number, state, next_attempt_at=NOW))
            self.rows[number] = state
            if state is not SENDING:
                self.held.discard(number)
        self.loop.now += data.draw(st.sampled_from([0.0, 1.0, 60.0]))
        self.loop.within(lambda: self.live.apply(events))

    @rule(move=st.sampled_from([({QUEUED, DEFERRED}, CANCELLED), ({FAILED, UNCERTAIN}, QUEUED)]))
    def steer(self, move: tuple[set[SendState], SendState]) -> None:
        """Cancel, or retry: all that is in these states and that nobody holds."""
        states, to = move
        moved = [n for n, state in self.rows.items() if state in states and n not in self.held]
        left = Counter(self.rows[n] for n in moved)
        self.rows |= dict.fromkeys(moved, to)
        self.live.moved(dict(left), to)

    @precondition(lambda self: UNCERTAIN in self.rows.values())
    @rule(to=st.sampled_from([SENT, QUEUED]))
    def decide(self, to: SendState) -> None:
        """The reconciler has found out what became of a message."""
        number = next(n for n, state in self.rows.items() if state is UNCERTAIN)
        self.rows[number] = to
        self.live.moved({UNCERTAIN: 1}, to)

    @invariant()
    def counts_are_those_of_the_disk(self) -> None:
        expected = Counter(self.rows.values())
        assert counts(self.live) == dict(expected)
        self.loop.within(self.totals_add_up)
        assert set(self.live.held) == self.held

    def totals_add_up(self) -> None:
        shown = structs.asdict(self.live.view().counts)
        assert shown.pop("total") == len(self.rows) == sum(shown.values())
        assert min(shown.values()) >= 0


LiveMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLiveBatch = LiveMachine.TestCase
