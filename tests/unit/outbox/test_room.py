"""Room in memory for large messages: shared in order, and given back whatever happens to who waits."""

import asyncio

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from cbemail.outbox.room import Room


async def settle() -> None:
    for _ in range(5):
        await checkpoint()


async def waiting(room: Room, octets: int) -> "asyncio.Task[None]":
    """Somebody who wants so much, and has had every chance to get it."""
    task = asyncio.create_task(room.take(octets))
    await settle()
    return task


async def cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


async def test_what_fits_is_had_at_once_and_what_does_not_waits_for_it() -> None:
    room = Room(10)
    await room.take(6)

    second = await waiting(room, 5)
    before = second.done()
    room.give(6)
    await settle()

    assert not before
    assert second.done()


async def test_nobody_is_overtaken_by_who_wants_less() -> None:
    room = Room(10)
    await room.take(8)
    large = await waiting(room, 9)

    small = await waiting(room, 1)

    assert not small.done()
    room.give(8)
    await settle()
    assert large.done()
    assert small.done()


async def test_what_is_larger_than_all_there_is_gets_all_of_it_alone() -> None:
    room = Room(10)
    await room.take(1)
    huge = await waiting(room, 1_000)
    before = huge.done()

    room.give(1)
    await settle()
    behind = await waiting(room, 1)

    assert (before, huge.done(), behind.done()) == (False, True, False)
    room.give(1_000)
    await behind


async def test_who_gives_up_waiting_is_not_waited_for() -> None:
    room = Room(10)
    await room.take(8)
    large = await waiting(room, 9)
    small = await waiting(room, 2)

    await cancel(large)
    await settle()

    assert small.done(), "it fits, and nobody stands before it any more"


async def test_room_granted_in_the_moment_it_was_given_up_is_not_lost() -> None:
    room = Room(10)
    await room.take(10)
    granted = await waiting(room, 10)

    room.give(10)
    await cancel(granted)  # before it could run

    async with asyncio.timeout(1):
        await room.take(10)


async def test_a_cancelled_waiter_is_still_cancelled() -> None:
    room = Room(1)
    await room.take(1)
    waiter = await waiting(room, 1)

    await cancel(waiter)

    with pytest.raises(asyncio.CancelledError):
        await waiter


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "give", "cancel"]), st.integers(0, 20)), max_size=40
    )
)
async def test_whatever_happens_all_room_is_there_in_the_end(steps: list[tuple[str, int]]) -> None:
    """And never is more out than there is, however it is asked for."""
    room = Room(10)
    asked: list[tuple[int, asyncio.Task[None]]] = []

    def holders() -> list[tuple[int, "asyncio.Task[None]"]]:
        return [each for each in asked if each[1].done() and not each[1].cancelled()]

    for what, number in steps:
        if what == "take":
            asked.append((number, asyncio.create_task(room.take(number))))
        elif what == "give" and (held := holders()):
            chosen = held[number % len(held)]
            asked.remove(chosen)
            room.give(chosen[0])
        elif what == "cancel" and asked:
            asked[number % len(asked)][1].cancel()
        if number % 2:  # some things happen in one turn of the loop
            await settle()
            assert sum(min(octets, 10) for octets, _ in holders()) <= 10
    await settle()
    while held := holders():
        asked.remove(held[0])
        room.give(held[0][0])
        await settle()

    assert all(task.done() for _, task in asked), "somebody waits for room that is free"
    async with asyncio.timeout(1):
        await room.take(10)
