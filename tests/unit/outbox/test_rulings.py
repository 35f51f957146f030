"""From every outcome a transaction can have to what becomes of each of its rows, and what is learnt from it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cbemail.outbox.retry import RetryPolicy
from cbemail.outbox.rulings import (
    Notice,
    Ruling,
    Terms,
    failed,
    intent,
    put_back,
    rule,
    uncertain,
)
from cbemail.smtp.outcome import (
    Accepted,
    Interruption,
    NotSent,
    Outcome,
    Refused,
    RefusedRecipient,
    Uncertain,
)
from cbemail.smtp.replies import Phase, Reply, Verdict, classify, explain
from cbemail.store.batch_records import EARLIER_TRY, MessageEvent, MessageRow
from cbemail.store.records import SendState

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
BEFORE = NOW - timedelta(minutes=5)
BATCH = 3
TERMS = Terms(BATCH, max_attempts=None, now=NOW, jitter=0, policy=RetryPolicy(delays=(60,)))
OK = Reply(250, "2.0.0", "2.0.0 Ok: queued as 4bZ")

QUEUED, DEFERRED, SENT = SendState.QUEUED, SendState.DEFERRED, SendState.SENT
FAILED, UNCERTAIN = SendState.FAILED, SendState.UNCERTAIN
ENDS = {SENT, FAILED, UNCERTAIN}

# A reply, and a phase to say it in, for each thing that a refusal can mean.
SAID: dict[Verdict, tuple[Reply, Phase]] = {
    Verdict.DEFERRED: (Reply(451, "4.3.0", "4.3.0 later"), Phase.RCPT),
    Verdict.THROTTLED: (Reply(450, "4.2.1", "4.2.1 rate"), Phase.RCPT),
    Verdict.TOO_MANY_RECIPIENTS: (Reply(452, "4.5.3", "4.5.3 too many"), Phase.RCPT),
    Verdict.FAILED: (Reply(550, "5.1.1", "5.1.1 who?"), Phase.RCPT),
    Verdict.CONTENT_REFUSED: (Reply(554, "5.7.1", "5.7.1 spam"), Phase.FINAL),
    Verdict.MESSAGE_TOO_BIG: (Reply(552, "5.3.4", "5.3.4 too big"), Phase.MAIL),
    Verdict.CREDENTIALS: (Reply(535, "5.7.8", "5.7.8 no"), Phase.MAIL),
    Verdict.ACCOUNT: (Reply(550, "5.4.5", "5.4.5 daily limit"), Phase.MAIL),
}


def row(number: int, attempts: int = 0, **fields: object) -> MessageRow:
    """A row as it was claimed."""
    known = MessageRow(
        row=number,
        position=number,
        content=0,
        state=DEFERRED if attempts else QUEUED,
        attempts=attempts,
        claims=1,
        message_id=f"<{number}@example.org>",
        sealed=b"",
        next_attempt_at=BEFORE,
    )
    return structs.replace(known, **fields)


def address(number: int) -> str:
    return f"r{number}@example.org"


def refusal(number: int, verdict: Verdict) -> RefusedRecipient:
    reply, phase = SAID[verdict]
    return RefusedRecipient(address(number), reply, verdict, explain(reply, phase))


def refused(verdict: Verdict, numbers: Sequence[int] = (0,)) -> Refused:
    reply, phase = SAID[verdict]
    return Refused(tuple(refusal(number, verdict) for number in numbers), phase, reply)


def ruled(
    outcome: Outcome, *rows: MessageRow, was_idle: bool = False, terms: Terms = TERMS
) -> Ruling:
    return rule(terms, rows, [address(each.row) for each in rows], outcome, was_idle=was_idle)


def test_every_refusal_has_its_reply_in_the_table() -> None:
    assert set(SAID) == set(Verdict) - {Verdict.ACCEPTED}
    assert {verdict: classify(*said) for verdict, said in SAID.items()} == {v: v for v in SAID}


# ---- what a refusal means for its row, whichever outcome it comes in


class Meaning(NamedTuple):
    state: SendState
    tries: int  # that it costs
    again: datetime | None
    notice: Notice


MEANINGS = {
    Verdict.DEFERRED: Meaning(DEFERRED, 1, NOW + timedelta(minutes=1), Notice.NONE),
    Verdict.THROTTLED: Meaning(DEFERRED, 1, NOW + timedelta(minutes=1), Notice.THROTTLED),
    Verdict.TOO_MANY_RECIPIENTS: Meaning(QUEUED, 0, BEFORE, Notice.NONE),  # where others were taken
    Verdict.FAILED: Meaning(FAILED, 1, None, Notice.NONE),
    Verdict.CONTENT_REFUSED: Meaning(FAILED, 1, None, Notice.CONTENT),
    Verdict.MESSAGE_TOO_BIG: Meaning(FAILED, 1, None, Notice.NONE),
    Verdict.CREDENTIALS: Meaning(QUEUED, 0, BEFORE, Notice.CREDENTIALS),
    Verdict.ACCOUNT: Meaning(QUEUED, 0, BEFORE, Notice.ACCOUNT),
}


@pytest.mark.parametrize("verdict", MEANINGS)
def test_a_refused_message_is_judged_by_what_the_reply_means(verdict: Verdict) -> None:
    # Too many, and nobody taken: to come back at once would never end.
    alone = verdict is Verdict.TOO_MANY_RECIPIENTS
    meaning = MEANINGS[Verdict.DEFERRED if alone else verdict]
    if (
        verdict is Verdict.TOO_MANY_RECIPIENTS
    ):  # and none was taken: to come back at once would be for ever
        meaning = MEANINGS[Verdict.DEFERRED]

    ruling = ruled(refused(verdict), row(0))

    [event] = ruling.events
    assert (event.state, event.attempts, event.next_attempt_at, ruling.notice) == meaning
    assert event.finished_at == (NOW if event.state is FAILED else None)
    said = refusal(0, verdict)
    assert (event.status, event.enhanced) == (said.reply.code, said.reply.enhanced)
    assert event.detail == said.detail


@pytest.mark.parametrize("verdict", MEANINGS)
def test_a_recipient_refused_in_an_accepted_message_is_judged_alone(verdict: Verdict) -> None:
    meaning = MEANINGS[verdict]

    ruling = ruled(Accepted((address(0),), (refusal(1, verdict),), OK), row(0), row(1))

    first, second = ruling.events
    assert (first.state, first.attempts, first.finished_at) == (SENT, 1, NOW)
    assert (second.state, second.attempts, second.next_attempt_at) == meaning[:3]
    good_for_all_else = Notice.GOOD if meaning.notice is Notice.NONE else meaning.notice
    assert ruling.notice is good_for_all_else


@pytest.mark.parametrize("verdict", MEANINGS)
def test_a_recipient_refused_before_a_lost_reply_is_not_uncertain(verdict: Verdict) -> None:
    outcome = Uncertain((address(0),), (refusal(1, verdict),), Interruption.LOST)

    ruling = ruled(outcome, row(0), row(1))

    first, second = ruling.events
    assert (first.state, first.attempts, first.finished_at) == (UNCERTAIN, 1, NOW)
    assert (second.state, second.attempts, second.next_attempt_at) == MEANINGS[verdict][:3]


@pytest.mark.parametrize("reason", Interruption)
def test_a_reply_that_never_came_is_uncertain_however_it_was_lost(reason: Interruption) -> None:
    ruling = ruled(Uncertain((address(0),), (), reason), row(0, attempts=2), was_idle=True)

    [event] = ruling.events
    assert (event.state, event.attempts, event.next_attempt_at) == (UNCERTAIN, 3, None)
    assert ruling.notice is Notice.NONE


@pytest.mark.parametrize("verdict", [Verdict.DEFERRED, Verdict.ACCOUNT, Verdict.FAILED])
def test_what_is_refused_after_an_uncertain_try_still_says_that_there_may_be_a_copy(
    verdict: Verdict,
) -> None:
    reply, phase = SAID[verdict]
    tried = row(0, detail=EARLIER_TRY)

    [event] = ruled(refused(verdict), tried).events
    [again] = ruled(refused(verdict), structs.replace(tried, detail=event.detail)).events

    assert event.detail == f"{EARLIER_TRY} {explain(reply, phase)}"
    assert again.detail == event.detail


def test_what_cannot_be_made_after_an_uncertain_try_says_so_too() -> None:
    event = failed(TERMS, row(0, detail=EARLIER_TRY), "It cannot be made.")

    assert event.detail == f"{EARLIER_TRY} It cannot be made."


# ---- broken off before the final dot


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY])
@pytest.mark.parametrize("reason", Interruption)
@pytest.mark.parametrize("was_idle", [False, True])
def test_what_was_not_handed_over_is_tried_again(
    reason: Interruption, phase: Phase, *, was_idle: bool
) -> None:
    """It costs a try, unless we broke off, or the connection had died before anybody looked."""
    free = reason is Interruption.ABANDONED or (was_idle and phase is Phase.MAIL)

    ruling = ruled(NotSent(reason, phase), row(0), row(1, attempts=1), was_idle=was_idle)

    first, second = ruling.events
    assert (first.state, first.attempts) == ((QUEUED, 0) if free else (DEFERRED, 1))
    assert (second.state, second.attempts) == ((DEFERRED, 1) if free else (DEFERRED, 2))
    due = BEFORE if free else NOW + timedelta(minutes=1)
    assert {first.next_attempt_at, second.next_attempt_at} == {due}
    assert ruling.notice is (Notice.NONE if free or was_idle else Notice.BROKEN)


# ---- tries come to an end


def test_the_last_try_the_client_allows_fails_with_the_reply_it_got() -> None:
    terms = structs.replace(TERMS, max_attempts=3)

    last = ruled(refused(Verdict.DEFERRED), row(0, attempts=2), terms=terms).events[0]
    one_before = ruled(refused(Verdict.DEFERRED), row(0, attempts=1), terms=terms).events[0]

    assert (last.state, last.attempts, last.status, last.finished_at) == (FAILED, 3, 451, NOW)
    assert last.next_attempt_at is None
    assert one_before.state is DEFERRED


def test_a_put_back_row_is_never_out_of_tries() -> None:
    terms = structs.replace(TERMS, max_attempts=1)

    for outcome in (
        refused(Verdict.CREDENTIALS),
        refused(Verdict.ACCOUNT),
        NotSent(Interruption.ABANDONED, Phase.BODY),
    ):
        [event] = ruled(outcome, row(0, attempts=0), terms=terms).events
        assert (event.state, event.attempts) == (QUEUED, 0)


def test_a_row_put_back_is_as_it_was_claimed() -> None:
    claimed = row(4, attempts=2, status=451, enhanced="4.3.0", detail="Later.")

    event = put_back(BATCH, claimed)

    assert event == MessageEvent(
        batch=BATCH,
        row=4,
        state=DEFERRED,
        attempts=2,
        status=451,
        enhanced="4.3.0",
        detail="Later.",
        next_attempt_at=BEFORE,
    )


def test_an_intent_counts_the_try_that_has_begun() -> None:
    assert intent(BATCH, row(4, attempts=2)) == MessageEvent(BATCH, 4, SendState.SENDING, 3)


def test_a_message_that_cannot_be_made_fails_without_a_try() -> None:
    event = failed(TERMS, row(4, attempts=2), "It cannot be made.")

    assert (event.state, event.attempts, event.finished_at) == (FAILED, 2, NOW)
    assert (event.detail, event.status) == ("It cannot be made.", None)


def test_what_we_break_off_behind_the_final_dot_counts_as_a_try() -> None:
    event = uncertain(TERMS, row(4, attempts=2))

    assert (event.state, event.attempts, event.finished_at) == (UNCERTAIN, 3, NOW)


# ---- several recipients


def test_each_recipient_of_a_message_gets_its_own_reply_in_the_rows_order() -> None:
    rows = [row(9), row(2), row(5), row(7)]
    outcome = Accepted(
        (address(2), address(7)),
        (refusal(5, Verdict.FAILED), refusal(9, Verdict.DEFERRED)),
        OK,
    )

    events = ruled(outcome, *rows).events

    assert [(event.row, event.state) for event in events] == [
        (9, DEFERRED),
        (2, SENT),
        (5, FAILED),
        (7, SENT),
    ]


def test_what_the_account_may_not_do_weighs_more_than_what_a_recipient_is() -> None:
    heavy_first = [
        Verdict.CREDENTIALS,
        Verdict.ACCOUNT,
        Verdict.THROTTLED,
        Verdict.CONTENT_REFUSED,
        Verdict.FAILED,
    ]

    for index, heavy in enumerate(heavy_first[:-1]):
        for light in heavy_first[index + 1 :]:
            refusals = (refusal(0, light), refusal(1, heavy))
            reply, phase = SAID[light]
            ruling = ruled(Refused(refusals, phase, reply), row(0), row(1))
            assert ruling.notice is MEANINGS[heavy].notice


@pytest.mark.parametrize(
    "reply", [Reply(421, "4.3.2"), Reply(421), Reply(451, "4.7.1"), Reply(451, "4.7.500")]
)
def test_a_server_that_is_closing_or_greylists_is_asked_less(reply: Reply) -> None:
    [each] = [RefusedRecipient(address(0), reply, classify(reply, Phase.RCPT), "")]

    ruling = ruled(Refused((each,), Phase.RCPT, reply), row(0))

    assert ruling.notice is Notice.THROTTLED
    assert ruling.events[0].state is DEFERRED


@pytest.mark.parametrize("reply", [Reply(451, "4.3.0"), Reply(451), Reply(450, "4.7.1")])
def test_any_other_delay_is_no_reason_to_slow_down(reply: Reply) -> None:
    [each] = [RefusedRecipient(address(0), reply, classify(reply, Phase.RCPT), "")]

    assert ruled(Refused((each,), Phase.RCPT, reply), row(0)).notice is Notice.NONE


# ---- what is kept of the server's words


def test_the_final_reply_is_kept_for_the_queue_id_in_it() -> None:
    [event] = ruled(Accepted((address(0),), (), OK), row(0)).events

    assert (event.status, event.enhanced) == (250, "2.0.0")
    assert event.detail == "250 2.0.0 Ok: queued as 4bZ"


def test_a_final_reply_full_of_rubbish_is_kept_short_and_printable() -> None:
    reply = Reply(250, None, "Ok\n\x1b[31m\x00\x07" + "x" * 5000)

    [event] = ruled(Accepted((address(0),), (), reply), row(0)).events

    assert event.detail is not None
    assert event.detail.isprintable()
    assert len(event.detail) == 300


# ---- the promise


verdicts = st.sampled_from(sorted(SAID))
phases = st.sampled_from([Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY])
reasons = st.sampled_from(list(Interruption))


@st.composite
def transactions(draw: st.DrawFn) -> tuple[list[MessageRow], Outcome]:
    """Some rows, and anything that could have become of them."""
    numbers = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
    rows = [row(number, draw(st.integers(0, 9))) for number in numbers]
    out = [number for number in numbers if draw(st.booleans())]
    refusals = tuple(refusal(number, draw(verdicts)) for number in draw(st.permutations(out)))
    taken = tuple(address(number) for number in numbers if number not in out)
    every = tuple(refusal(number, draw(verdicts)) for number in draw(st.permutations(numbers)))
    reply, phase = SAID[draw(verdicts)]
    outcomes: list[Outcome] = [
        Refused(every, phase, reply),
        NotSent(draw(reasons), draw(phases)),
    ]
    if taken:
        outcomes += [Accepted(taken, refusals, OK), Uncertain(taken, refusals, draw(reasons))]
    return rows, draw(st.sampled_from(outcomes))


@given(
    transactions(),
    st.booleans(),
    st.none() | st.integers(1, 10),
    st.floats(-1, 1, allow_nan=False),
)
def test_every_row_gets_exactly_one_event_and_none_stays_being_sent(
    transaction: tuple[list[MessageRow], Outcome],
    was_idle: bool,  # noqa: FBT001 - drawn
    most: int | None,
    jitter: float,
) -> None:
    rows, outcome = transaction
    terms = structs.replace(TERMS, max_attempts=most, jitter=jitter)

    events = ruled(outcome, *rows, was_idle=was_idle, terms=terms).events

    assert [event.row for event in events] == [each.row for each in rows]
    for before, event in zip(rows, events, strict=True):
        assert event.batch == BATCH
        assert event.state in {QUEUED, DEFERRED, *ENDS}
        assert event.attempts - before.attempts in {0, 1}
        assert (event.finished_at is not None) == (event.state in ENDS)
        assert (event.next_attempt_at is not None) == (event.state not in ENDS)
        if event.state is QUEUED:
            assert event.attempts == 0, "tried before, and shown as if it had not been"


def test_a_server_that_has_had_enough_of_a_connection_says_nothing_of_the_message() -> None:
    reply = Reply(421, "4.3.2")
    refused = Refused((), Phase.MAIL, reply)

    ruling = ruled(refused, row(0), row(1, attempts=2), was_idle=True)

    assert [event.state for event in ruling.events] == [SendState.QUEUED, SendState.DEFERRED]
    assert [event.attempts for event in ruling.events] == [0, 2]
    assert ruling.notice is Notice.NONE
