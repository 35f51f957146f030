"""Bodies in memory: small ones for everybody, large ones for as many as there is room for."""

from __future__ import annotations

import asyncio

import pytest
from anyio.lowlevel import checkpoint
from starlette.requests import Request

from cbemail.api.batches import MAX_JSON_MB
from cbemail.api.bodies import BODIES_OCTETS, LARGE, Bodies
from cbemail.api.operation import Upload
from cbemail.errors import Overloaded, PayloadTooLarge

ROOM = 10 * LARGE
LIMIT = 8 * LARGE


class Sender:
    """A client that sends a body in pieces of a megabyte; with its length before it, unless it does not know."""

    def __init__(self, octets: int, *, announced: bool = True) -> None:
        self.left = octets
        headers = [(b"content-length", str(octets).encode())] if announced else []
        scope = {"type": "http", "method": "POST", "headers": headers}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> dict[str, object]:
        size = min(self.left, LARGE)
        self.left -= size
        return {"type": "http.request", "body": b"x" * size, "more_body": self.left > 0}


@pytest.fixture
def full() -> Bodies:
    """All room but a megabyte is taken, and nobody has patience."""
    return Bodies(ROOM, patience=0)


@pytest.fixture
async def first(full: Bodies) -> Upload:
    upload = Upload(Sender(LIMIT).request, full)
    await upload.octets(LIMIT)
    return upload


async def test_a_large_body_is_refused_unread_while_others_have_the_room(
    full: Bodies, first: Upload
) -> None:
    sender = Sender(3 * LARGE)

    with pytest.raises(Overloaded) as refused:
        await Upload(sender.request, full).octets(LIMIT)

    assert refused.value.retry_after
    assert sender.left == 3 * LARGE


async def test_room_that_is_given_back_is_the_next_ones(full: Bodies, first: Upload) -> None:
    first.release()
    first.release()  # twice is once

    body = await Upload(Sender(LIMIT).request, full).octets(LIMIT)

    assert len(body) == LIMIT


async def test_who_waits_has_the_room_as_soon_as_it_is_given_back() -> None:
    bodies = Bodies(ROOM, patience=60)
    first, second = (Upload(Sender(LIMIT).request, bodies) for _ in range(2))
    await first.octets(LIMIT)
    reading = asyncio.create_task(second.octets(LIMIT))
    for _ in range(5):
        await checkpoint()
    waited = not reading.done()

    first.release()

    assert waited
    assert len(await reading) == LIMIT


@pytest.mark.parametrize("announced", [True, False])
async def test_a_small_body_needs_no_room(full: Bodies, *, announced: bool) -> None:
    await full.take(ROOM)

    body = await Upload(Sender(LARGE, announced=announced).request, full).octets(LIMIT)

    assert len(body) == LARGE


async def test_a_body_of_unknown_length_needs_room_once_it_is_large(
    full: Bodies, first: Upload
) -> None:
    sender = Sender(5 * LARGE, announced=False)

    with pytest.raises(Overloaded):
        await Upload(sender.request, full).octets(LIMIT)

    assert sender.left == 3 * LARGE


async def test_a_body_that_is_larger_than_announced_takes_room_but_once(full: Bodies) -> None:
    sender = Sender(2 * LARGE)
    sender.left = 4 * LARGE
    upload = Upload(sender.request, full)

    await upload.octets(LIMIT)
    upload.release()

    await full.take(ROOM)


async def test_what_is_too_large_takes_no_room(full: Bodies, first: Upload) -> None:
    with pytest.raises(PayloadTooLarge):
        await Upload(Sender(9 * LARGE).request, full).octets(LIMIT)


def test_there_is_room_for_two_of_the_largest() -> None:
    assert BODIES_OCTETS >= 2 * MAX_JSON_MB * 1024 * 1024
