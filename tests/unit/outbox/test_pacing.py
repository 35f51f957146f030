"""How fast an account sends: by what is known beforehand, and by what the server shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.pacing import Allowance, Concurrency, Early, TokenBucket, Upstream

NOW = 1000.0
HOUR = 3600.0


def send_all(bucket: TokenBucket, seconds: float) -> list[float]:
    """When the messages of an impatient sender go out."""
    sent, now = [], NOW
    while now < NOW + seconds:
        bucket.take(now)
        sent.append(now)
        now += bucket.delay(now)
    return sent


# ---- a rate


def test_sixty_a_minute_is_one_a_second() -> None:
    sent = send_all(TokenBucket(60), 5)

    assert sent == pytest.approx([NOW, NOW + 1, NOW + 2, NOW + 3, NOW + 4])


def test_a_low_rate_is_even_from_the_first_message_on() -> None:
    sent = send_all(TokenBucket(20), 10)

    assert sent == pytest.approx([NOW, NOW + 3, NOW + 6, NOW + 9])


def test_a_high_rate_begins_with_what_fits_a_second() -> None:
    sent = send_all(TokenBucket(600), 1.05)

    assert sent.count(NOW) == 10
    assert sent[10:] == pytest.approx([NOW + 0.1 * number for number in range(1, 11)])


def test_what_was_not_sent_for_an_hour_is_not_made_up_for() -> None:
    bucket = TokenBucket(120)
    bucket.take(NOW - HOUR)

    sent = send_all(bucket, 1)

    assert sent.count(NOW) == 2


def test_what_goes_too_early_is_paid_back() -> None:
    bucket = TokenBucket(60)

    for _ in range(3):
        bucket.take(NOW)

    assert bucket.delay(NOW) == pytest.approx(3)


@pytest.mark.parametrize(("per_minute", "seconds"), [(20, 3), (600, 0.1)])
def test_what_is_used_up_begins_by_the_even_beat(per_minute: int, seconds: float) -> None:
    bucket = TokenBucket(per_minute, used_up_at=NOW)

    assert bucket.delay(NOW) == pytest.approx(seconds)
    assert bucket.delay(NOW + seconds) == 0


@given(st.integers(1, 6000), st.lists(st.floats(0, 20), max_size=300))
def test_no_minute_has_more_than_the_rate_and_one_burst(
    per_minute: int, pauses: list[float]
) -> None:
    bucket, now, sent = TokenBucket(per_minute), NOW, []

    for pause in pauses:
        now += max(bucket.delay(now), pause if pause > 10 else 0.0)
        bucket.take(now)
        sent.append(now)

    most = per_minute + max(1, per_minute / 60) + 1e-6
    for start in sent:
        assert sum(start <= each < start + 60 for each in sent) <= most


# ---- connections


def test_twenty_successes_earn_a_connection_up_to_the_cap() -> None:
    concurrency = Concurrency(cap=4)

    limits, grown = [], []
    for number in range(1, 61):
        grew = concurrency.succeeded()
        if grew:
            grown.append(number)
        limits.append(concurrency.limit)

    assert grown == [20, 40]
    assert limits[18:21] == [2, 3, 3]
    assert limits[-1] == 4


@pytest.mark.parametrize(("cap", "limit"), [(1, 1), (0, 1), (10, 2)])
def test_it_begins_with_two_connections_or_the_cap(cap: int, limit: int) -> None:
    assert Concurrency(cap).limit == limit


def test_a_throttle_halves_it_and_one_connection_is_always_left() -> None:
    concurrency = Concurrency(cap=10, start=9)
    limits = []

    for number in range(5):
        concurrency.throttled(NOW + number)
        limits.append(concurrency.limit)

    assert limits == [4, 2, 1, 1, 1]


def test_what_several_connections_hear_within_a_second_counts_once() -> None:
    concurrency = Concurrency(cap=10, start=8)

    for moment in (0.0, 0.3, 0.99):
        concurrency.throttled(NOW + moment)

    assert concurrency.limit == 4


def test_successes_before_a_throttle_do_not_count_after_it() -> None:
    concurrency = Concurrency(cap=10, start=8)
    for _ in range(19):
        concurrency.succeeded()

    concurrency.throttled(NOW)

    assert not concurrency.succeeded()
    assert concurrency.limit == 4


# ---- a day


def test_a_day_that_is_used_up_comes_back_hour_by_hour() -> None:
    day = Allowance(3)
    for moment in (0.0, 10.0, 2 * HOUR):
        assert day.delay(NOW + moment) == 0
        day.take(NOW + moment)

    assert day.delay(NOW + 3 * HOUR) == 22 * HOUR
    assert day.delay(NOW + 24 * HOUR) == HOUR, "the last of that hour may be an hour younger"
    assert day.delay(NOW + 25 * HOUR) == 0
    day.take(NOW + 25 * HOUR)
    day.take(NOW + 25 * HOUR)
    assert day.delay(NOW + 25 * HOUR) == 2 * HOUR


@given(st.integers(1, 50), st.lists(st.floats(0, 8 * HOUR), max_size=200))
def test_no_24_hours_have_more_than_a_day_allows(per_day: int, pauses: list[float]) -> None:
    day, now, sent = Allowance(per_day), NOW, []

    for pause in pauses:
        now += max(day.delay(now), pause)
        day.take(now)
        sent.append(now)

    for start in sent:
        assert sum(start <= each < start + 24 * HOUR for each in sent) <= per_day


def test_what_went_before_counts_by_its_hour() -> None:
    day = Allowance(10, [(NOW - 24 * HOUR, 4), (NOW - 2 * HOUR, 6)])

    assert day.delay(NOW) == HOUR
    assert day.delay(NOW + HOUR) == 0
    assert day.delay(NOW + HOUR, 5) == 22 * HOUR


def test_a_message_waits_until_there_is_enough_for_all_its_recipients() -> None:
    day = Allowance(10)
    day.take(NOW, 3)
    day.take(NOW + HOUR, 3)

    waits = [day.delay(NOW + HOUR, recipients) for recipients in (4, 5, 7, 8)]

    assert waits == [0, 24 * HOUR, 24 * HOUR, 25 * HOUR]


def test_more_than_a_day_allows_waits_for_a_day_that_is_whole() -> None:
    day = Allowance(10)

    assert day.delay(NOW, 11) == 0
    day.take(NOW, 1)
    assert day.delay(NOW, 11) == 25 * HOUR


def test_what_is_given_back_was_never_taken() -> None:
    day = Allowance(10, [(NOW - 5 * HOUR, 4)])
    day.take(NOW, 5)

    day.give_back(5)

    assert day.delay(NOW, 6) == 0
    assert day.delay(NOW, 7) == 20 * HOUR
    assert not day.is_whole(NOW)
    assert day.is_whole(NOW + 20 * HOUR)


@given(st.lists(st.tuples(st.floats(0, 3 * HOUR), st.integers(1, 5), st.booleans()), max_size=100))
def test_after_any_taking_and_giving_back_what_is_left_is_what_was_not_sent(
    steps: list[tuple[float, int, bool]],
) -> None:
    day, now, sent = Allowance(1000), NOW, 0

    for pause, recipients, is_sent in steps[:8]:  # within a day: nothing is forgotten yet
        now += pause
        day.take(now, recipients)
        sent += recipients if is_sent else 0
        if not is_sent:
            day.give_back(recipients)

    assert day.delay(now, 1000 - sent) == 0
    assert sent == 0 or day.delay(now, 1001 - sent) > 0


# ---- one account at its server


def test_after_a_throttle_nothing_goes_out_for_a_while() -> None:
    upstream = Upstream(ProviderLimits())

    upstream.throttled(NOW)

    assert upstream.limit == 1
    assert [upstream.held(NOW), upstream.held(NOW + 4), upstream.held(NOW + 5)] == [5, 1, 0]
    assert upstream.delay(NOW + 1) == 4


def test_the_hold_doubles_while_throttles_go_on_up_to_five_minutes() -> None:
    upstream, now, holds = Upstream(ProviderLimits()), NOW, []

    for _ in range(8):
        upstream.throttled(now)
        holds.append(upstream.held(now))
        now += upstream.held(now)

    assert holds == [5, 10, 20, 40, 80, 160, 300, 300]


def test_a_success_makes_the_next_hold_short_again() -> None:
    upstream = Upstream(ProviderLimits())
    upstream.throttled(NOW)
    upstream.throttled(NOW + 5)

    upstream.succeeded(NOW + 15)
    upstream.throttled(NOW + 16)

    assert upstream.held(NOW + 16) == 5


def test_a_success_counts_while_something_else_holds() -> None:
    upstream = Upstream(ProviderLimits())
    upstream.throttled(NOW)
    upstream.hold(NOW + 5, 60)

    upstream.succeeded(NOW + 6)
    upstream.throttled(NOW + 65)

    assert upstream.held(NOW + 65) == 5


def test_what_was_on_its_way_at_a_throttle_neither_worsens_nor_ends_it() -> None:
    upstream = Upstream(ProviderLimits(connections=8))
    for _ in range(200):
        upstream.succeeded(NOW)
    upstream.throttled(NOW)
    upstream.throttled(NOW + 3)
    upstream.succeeded(NOW + 4)

    assert upstream.limit == 4
    assert upstream.held(NOW + 4) == 1
    upstream.throttled(NOW + 5)
    assert upstream.held(NOW + 5) == 10


def test_a_throttle_counts_while_something_else_holds() -> None:
    upstream = Upstream(ProviderLimits())
    upstream.hold(NOW, 2)

    upstream.throttled(NOW + 1)

    assert upstream.limit == 1
    assert upstream.held(NOW + 1) == 5


def test_no_hold_shortens_another() -> None:
    upstream = Upstream(ProviderLimits())

    upstream.hold(NOW, 60)
    upstream.hold(NOW, 2)

    assert upstream.held(NOW) == 60


def test_a_provider_with_a_rate_is_kept_to_it() -> None:
    paced, free = Upstream(ProviderLimits(per_minute=30)), Upstream(ProviderLimits())

    for upstream in (paced, free):
        upstream.take(NOW)

    assert (paced.is_paced, paced.delay(NOW)) == (True, 2)
    assert (free.is_paced, free.delay(NOW)) == (False, 0)


def test_a_provider_with_a_day_says_when_there_is_more_of_it() -> None:
    upstream = Upstream(ProviderLimits(), Allowance(2))

    upstream.take(NOW, recipients=2)

    assert upstream.day_delay(NOW) == 25 * HOUR
    assert upstream.delay(NOW) == 0, "a day is nothing to wait for: the batch is paused"
    upstream.give_back(recipients=1)
    assert upstream.day_delay(NOW) == 0
    assert upstream.day_delay(NOW, recipients=2) == 25 * HOUR
    assert Upstream(ProviderLimits()).day_delay(NOW, recipients=9) == 0


def test_an_account_can_be_forgotten_when_nothing_holds_it_back_any_more() -> None:
    upstream = Upstream(ProviderLimits(), Allowance(2))
    assert upstream.is_forgettable(NOW)

    upstream.hold(NOW, 60)
    held = upstream.is_forgettable(NOW + 59), upstream.is_forgettable(NOW + 60)
    upstream.take(NOW + 60)

    assert held == (False, True)
    assert not upstream.is_forgettable(NOW + 24 * HOUR)
    assert upstream.is_forgettable(NOW + 60 + 25 * HOUR)


# ---- a message that begins with the end of the one before


def test_one_message_at_a_time_finds_out_whether_the_server_takes_it() -> None:
    early = Early()

    first, second = (may_begin(early) for _ in range(2))
    early.known()

    assert (first, second) == (True, False)
    assert [may_begin(early) for _ in range(2)] == [True, True]


def test_a_server_that_did_not_take_it_is_not_tried_again() -> None:
    early = Early()
    early.trying()

    early.refused()
    early.known()  # of another connection, where it went well before

    assert not early.may_try


def may_begin(early: Early) -> bool:
    may = early.may_try
    if may:
        early.trying()
    return may
