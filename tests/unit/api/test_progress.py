"""Progress as it is told: events in order, an end to each of them, and nothing left running when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from anyio import CancelScope
from anyio.lowlevel import checkpoint
from starlette.types import Message

from cbemail.api.progress import events
from cbemail.api.streaming import Streamed
from cbemail.errors import BatchNotFound
from cbemail.outbox.batch import ENDED, BatchView, Counts, Rate
from cbemail.outbox.watching import Progress
from cbemail.store.batch_records import BatchState


def step(state: BatchState, name: str = "x", *, over: bool | None = None) -> Progress:
    """A batch in that state; over where the state says so, unless it is still to be carried to its end."""
    batch = BatchView(
        id="bat_1",
        name=name,
        state=state,
        counts=Counts(),
        rejected=[],
        paused_reason=None,
        paused_until=None,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        started_at=None,
        finished_at=None,
        send_at=None,
        rate=Rate(),
        eta_seconds=None,
    )
    return Progress(batch, over=state in ENDED if over is None else over)


class Steps:
    """A batch step by step, the last of them when ``more`` is set, and whether whoever gave them was let go."""

    def __init__(self, *steps: BatchState | Progress, waits: bool = False) -> None:
        self.more = asyncio.Event()
        self.waiting = asyncio.Event()
        self.closed = False
        self._steps = [each if isinstance(each, Progress) else step(each) for each in steps]
        self._waits = waits

    async def given(self) -> AsyncIterator[Progress]:
        try:
            for each in self._steps:
                yield each
            if self._waits:
                self.waiting.set()
                await self.more.wait()
                yield step(BatchState.COMPLETED)
        finally:
            self.closed = True


def fields(event: bytes) -> dict[str, str]:
    """A Server-Sent Event's fields, as the standard reads them."""
    assert event.endswith(b"\n\n")
    lines = event.decode().removesuffix("\n\n").split("\n")
    return dict(line.split(": ", 1) for line in lines)


async def told(steps: Steps, number: int = 1) -> list[tuple[str, str]]:
    read = [fields(event) async for event in events(steps.given(), number)]
    assert all(msgspec.json.decode(event["data"], type=BatchView) for event in read)
    return [(event["event"], event["id"]) for event in read]


async def test_a_batch_is_told_of_until_it_is_done() -> None:
    steps = Steps(BatchState.QUEUED, BatchState.RUNNING, BatchState.COMPLETED)

    assert await told(steps) == [("progress", "1"), ("progress", "2"), ("done", "3-done")]


async def test_a_batch_that_has_ended_is_done_at_once() -> None:
    assert await told(Steps(BatchState.CANCELLED), 8) == [("done", "8-done")]


async def test_a_cancelled_batch_is_not_done_before_it_is_over() -> None:
    steps = Steps(step(BatchState.CANCELLED, over=False), BatchState.CANCELLED)

    assert await told(steps) == [("progress", "1"), ("done", "2-done")]


async def test_when_the_service_stops_the_client_is_told_to_come_back() -> None:
    steps = Steps(BatchState.RUNNING)

    assert await told(steps) == [("progress", "1"), ("end", "2")]


async def test_a_silent_batch_has_a_heartbeat() -> None:
    steps = Steps(BatchState.RUNNING, waits=True)
    stream = events(steps.given(), 1, heartbeat=0)

    first = await anext(stream)
    beats = [await anext(stream), await anext(stream)]
    steps.more.set()
    rest = [event async for event in stream if event != b":\n\n"]

    assert fields(first)["event"] == "progress"
    assert beats == [b":\n\n", b":\n\n"]
    assert [fields(event)["event"] for event in rest] == ["done"]


async def test_a_name_cannot_add_an_event() -> None:
    async def given() -> AsyncIterator[Progress]:
        yield step(BatchState.COMPLETED, "x\n\nevent: done\r\n\u2028")

    [event] = [event async for event in events(given(), 1)]

    assert event.count(b"\n") == 5
    assert b"\r" not in event


# ---- as a response


class Client:
    """Takes a response; it leaves when the test says so."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def take(self, response: Streamed, method: str = "GET") -> None:
        scope: dict[str, Any] = {"type": "http", "method": method}
        await response(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        raise AssertionError("a stream has nothing to ask")

    async def _send(self, message: Message) -> None:
        await checkpoint()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def response(steps: Steps) -> Streamed:
    return Streamed(events(steps.given(), 1), "text/event-stream", {"X-Accel-Buffering": "no"})


async def test_a_stream_has_no_length_and_an_end() -> None:
    client = Client()

    await client.take(response(Steps(BatchState.RUNNING, BatchState.COMPLETED)))

    headers = dict(client.sent[0]["headers"])
    assert headers == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"x-accel-buffering": b"no",
    }
    assert client.body.count(b"event: ") == 2
    assert [message.get("more_body") for message in client.sent[1:]] == [True, True, False]


async def test_a_head_has_the_headers_and_leaves_nothing_running() -> None:
    steps, client = Steps(BatchState.RUNNING, waits=True), Client()

    await client.take(response(steps), "HEAD")

    assert client.body == b""
    assert len(client.sent) == 2
    assert steps.closed


async def test_a_client_that_leaves_is_no_longer_told() -> None:
    steps, client = Steps(BatchState.RUNNING, waits=True), Client()
    with CancelScope() as hang_up:
        taking = asyncio.create_task(_until(steps.waiting, hang_up))
        await client.take(response(steps))
    await taking

    assert hang_up.cancelled_caught
    assert steps.closed
    assert client.body.count(b"event: ") == 1


async def _until(event: asyncio.Event, scope: CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def test_what_is_wrong_shows_before_the_first_octet() -> None:
    async def given() -> AsyncIterator[Progress]:
        raise BatchNotFound("There is no such batch.")
        yield step(BatchState.QUEUED)

    client = Client()

    with pytest.raises(BatchNotFound):
        await client.take(Streamed(events(given(), 1), "text/event-stream", {}))

    assert client.sent == []
