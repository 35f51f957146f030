"""How fast a session sends: by what is known beforehand, and by what the server shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.errors import SessionNotFound
from cbemail.ids import SessionId
from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.pacing import Allowance, Concurrency, TokenBucket, Upstream, Upstreams

NOW = 1000.0
HOUR = 3600.0
JOE, ANN = SessionId("ses_joe"), SessionId("ses_ann")


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


# ---- one session at its server


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
    upstream = Upstream(ProviderLimits(per_day=1))

    upstream.take(NOW)

    assert upstream.day_delay(NOW) == 25 * HOUR
    assert upstream.delay(NOW) == 0, "a day is nothing to wait for: the batch is paused"
    assert Upstream(ProviderLimits()).day_delay(NOW) == 0


# ---- all of them


def test_each_session_has_one_of_its_own() -> None:
    upstreams = Upstreams({JOE: ProviderLimits(3), ANN: ProviderLimits(1)}.__getitem__)

    assert upstreams.of(JOE) is upstreams.of(JOE)
    assert upstreams.of(JOE) is not upstreams.of(ANN)
    assert upstreams.connections(ANN) == 1


def test_a_session_that_has_ended_has_an_answer_for_the_pool_and_leaves_nothing_behind() -> None:
    def ended(_: SessionId) -> ProviderLimits:
        raise SessionNotFound("There is no such session.")

    upstreams = Upstreams(ended)

    assert upstreams.connections(JOE) == 2
    assert upstreams._known == {}
    with pytest.raises(SessionNotFound):
        upstreams.of(JOE)


def test_a_forgotten_session_begins_anew() -> None:
    upstreams = Upstreams(lambda _: ProviderLimits())
    upstreams.of(JOE).throttled(NOW)

    upstreams.forget(JOE)
    upstreams.forget(ANN)

    assert upstreams.of(JOE).held(NOW) == 0
