"""`GET …/{id}/events`: a batch's progress as Server-Sent Events (HTML Living Standard, section 9.2).

Every event holds the whole batch, so that to resume is to be told how it is now. The protocol is lines of text; a
library for it that watches the server for its shutdown, by replacing a method of uvicorn's and with a task that
outlives the response, is more than this needs: our batches know when the service stops.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

import msgspec
from anyio import CancelScope
from starlette.responses import Response

from cbemail.api.codec import no_content
from cbemail.api.operation import Call
from cbemail.api.streaming import Streamed
from cbemail.outbox.batch import BatchView
from cbemail.outbox.watching import Progress

HEARTBEAT_SECONDS = 10.0  # proxies give up on a connection that is silent for a minute, some sooner
RETRY_MS = 2000  # after which a client whose connection ended comes back

_EVENT_ID = re.compile(r"(?P<number>[0-9]{1,15})(?P<done>-done)?", re.ASCII)
_encode = msgspec.json.Encoder().encode


async def get_batch_events(call: Call[object, None]) -> Response:
    """A batch's progress as Server-Sent Events: `progress` at every change, then `done`.

    Each holds the batch; there are at most four a second. A connection that ends with `end` ends because the service
    stops: come back. With the `Last-Event-ID` of a `done`, the answer is 204 unless the batch runs again, which tells
    an EventSource to stay away.
    """
    last = _EVENT_ID.fullmatch(call.request.headers.get("last-event-id", "").strip())
    session_id, batch_id = call.session.id, call.path("id")
    watching = call.services.watching
    if last is not None and last["done"] and (await watching.look(session_id, batch_id)).over:
        return no_content()
    steps = watching.progress(session_id, batch_id)
    first = int(last["number"]) + 1 if last is not None else 1
    headers = {"X-Accel-Buffering": "no"}  # else NGINX keeps events until it has a buffer full
    return Streamed(events(steps, first), "text/event-stream", headers)


async def events(
    steps: AsyncIterator[Progress], number: int, *, heartbeat: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The steps as events, the first of them ``number``, and a comment whenever there was none for so long."""
    batch: BatchView | None = None
    async with aclosing(_with_heartbeats(steps, heartbeat)) as beats:
        async for step in beats:
            if step is None:
                yield b":\n\n"
                continue
            batch, over = step.batch, step.over
            name, event_id = ("done", f"{number}-done") if over else ("progress", f"{number}")
            yield _event(name, event_id, batch)
            number += 1
            if over:
                return
    if batch is not None:
        yield _event("end", str(number), batch)


def _event(name: str, event_id: str, batch: BatchView) -> bytes:
    lines = f"event: {name}\nid: {event_id}\nretry: {RETRY_MS}\ndata: "
    return lines.encode() + _encode(batch) + b"\n\n"  # JSON has no line breaks in it


async def _with_heartbeats(
    steps: AsyncIterator[Progress], seconds: float
) -> AsyncGenerator[Progress | None, None]:
    """The steps, and None whenever there was none for so long."""
    coming: asyncio.Future[Progress] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(steps))
            while not (await asyncio.wait({coming}, timeout=seconds))[0]:
                yield None
            try:
                step = coming.result()
            except StopAsyncIteration:
                return
            yield step
    finally:
        with CancelScope(shield=True):
            await _close(steps, coming)


async def _close(steps: AsyncIterator[Progress], coming: asyncio.Future[Progress] | None) -> None:
    if coming is not None and not coming.done():
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming
    if isinstance(steps, AsyncGenerator):
        await steps.aclose()
