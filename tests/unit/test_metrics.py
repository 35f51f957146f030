"""What is counted: every quantity once, in the right bucket, and under names that are ours."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.metrics import LAG_SECONDS, Distribution, RequestTally, timed, watch_loop

BOUNDS = (0.01, 0.1, 1.0)


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_a_bucket_holds_what_is_at_most_its_bound(quantities: list[float]) -> None:
    distribution = Distribution(BOUNDS)

    for quantity in quantities:
        distribution.observe(quantity)

    at_most = [sum(quantity <= bound for quantity in quantities) for bound in BOUNDS]
    assert distribution.cumulative() == [*at_most, len(quantities)]
    assert isclose(distribution.total, sum(quantities), abs_tol=1e-9)


def test_what_fails_is_timed_too() -> None:
    waits = Distribution(BOUNDS)

    with pytest.raises(ValueError, match="broken off"), timed(waits):
        raise ValueError("broken off")

    assert waits.cumulative()[-1] == 1


def test_requests_are_counted_by_operation_class_of_status_phase_and_problem() -> None:
    tally = RequestTally()

    tally.observe("list_messages", 200, 0.2, {"imap": 0.25, "wait": 0.5}, None)
    tally.observe("list_messages", 304, 0.001, {"imap": 0.5}, None)
    tally.observe("list_messages", 503, 10.0, {"wait": 0.25}, "overloaded")
    tally.observe("send_message", 0, 0.1, {}, None)

    assert tally.answers == {
        ("list_messages", 2): 1,
        ("list_messages", 3): 1,
        ("list_messages", 5): 1,
        ("send_message", 0): 1,
    }
    assert tally.seconds["list_messages"].cumulative()[-1] == 3
    assert tally.phases == {"imap": 0.75, "wait": 0.75}
    assert tally.problems == {"overloaded": 1}


async def test_a_loop_that_was_held_up_is_seen_to_lag() -> None:
    lag = Distribution(LAG_SECONDS)
    watch = asyncio.create_task(watch_loop(lag))
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await asyncio.wait({never}, timeout=0)

    threading.Event().wait(0.5)  # nobody sets it: the loop stands still
    while lag.cumulative()[-1] == 0:
        await asyncio.wait({never}, timeout=0.01)

    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    assert lag.total > 0.2
