"""When a message is tried again, and when it has been tried enough."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.outbox.retry import RetryPolicy, next_attempt

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY_AGO = NOW - timedelta(days=1)


def seconds_after(attempts: int, *, jitter: float = 0.0) -> float:
    again = next_attempt(
        attempts=attempts, max_attempts=None, first_tried_at=NOW, now=NOW, jitter=jitter
    )
    assert again is not None
    return (again - NOW).total_seconds()


def test_the_delays_grow_to_an_hour_and_stay_there() -> None:
    minutes = [seconds_after(attempts) / 60 for attempts in range(1, 9)]

    assert minutes == [0.25, 1, 5, 15, 30, 60, 60, 60]


def test_a_delay_is_spread_by_a_fifth_at_most() -> None:
    assert [seconds_after(2, jitter=jitter) for jitter in (-1, 0.5, 1)] == [48, 66, 72]


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_number_of_attempts_the_client_named_is_exact(attempts: int) -> None:
    def attempt(number: int, first: datetime) -> datetime | None:
        return next_attempt(
            attempts=number, max_attempts=attempts, first_tried_at=first, now=NOW, jitter=0
        )

    assert attempt(attempts, NOW) is None, "however young it is"
    assert attempts == 1 or attempt(attempts - 1, DAY_AGO) is not None, "however old it is"


@pytest.mark.parametrize(
    ("attempts", "hours", "enough"),
    [(4, 24, False), (5, 3.99, False), (12, 3.99, False), (5, 4, True), (6, 24, True)],
)
def test_without_a_number_it_takes_five_attempts_and_four_hours(
    attempts: int, hours: float, *, enough: bool
) -> None:
    again = next_attempt(
        attempts=attempts,
        max_attempts=None,
        first_tried_at=NOW - timedelta(hours=hours),
        now=NOW,
        jitter=0,
    )

    assert (again is None) == enough


def test_a_server_that_is_down_for_good_is_tried_ten_times() -> None:
    attempts, now = 0, NOW
    again: datetime | None = NOW

    while again is not None:
        attempts, now = attempts + 1, again
        again = next_attempt(
            attempts=attempts, max_attempts=None, first_tried_at=NOW, now=now, jitter=0
        )

    assert attempts == 10
    assert now - NOW == timedelta(hours=4, minutes=51, seconds=15)
    assert now - NOW == RetryPolicy().elapsed(9)


def test_no_time_has_passed_before_the_first_attempt() -> None:
    assert RetryPolicy().elapsed(0) == timedelta(0)


def test_a_test_may_be_in_a_hurry() -> None:
    policy = RetryPolicy(delays=(0.01,), attempts=2, lifetime=0)

    def attempt(number: int) -> datetime | None:
        return next_attempt(
            attempts=number,
            max_attempts=None,
            first_tried_at=NOW,
            now=NOW,
            jitter=1,
            policy=policy,
        )

    assert [attempt(1), attempt(2)] == [NOW, None]


@given(st.integers(1, 100), st.floats(-1, 1))
def test_every_next_attempt_is_in_the_future_and_to_the_second(
    attempts: int, jitter: float
) -> None:
    seconds = seconds_after(attempts, jitter=jitter)

    assert 12 <= seconds <= 72 * 60
    assert seconds == int(seconds)
