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
from cbemail.store.batch_records import BatchState

HEARTBEAT_SECONDS = 10.0  # proxies give up on a connection that is silent for a minute, some sooner
RETRY_MS = 2000  # after which a client whose connection ended comes back

_ENDED = (BatchState.COMPLETED, BatchState.CANCELLED)
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
    batches = call.services.batches
    if last is not None and last["done"]:
        batch = await batches.find(session_id, batch_id)
        if batch.state in _ENDED:
            return no_content()
    views = batches.progress(session_id, batch_id)
    first = int(last["number"]) + 1 if last is not None else 1
    headers = {"X-Accel-Buffering": "no"}  # else NGINX keeps events until it has a buffer full
    return Streamed(events(views, first), "text/event-stream", headers)


async def events(
    views: AsyncIterator[BatchView], number: int, *, heartbeat: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The views as events, the first of them ``number``, and a comment whenever there was none for so long."""
    batch: BatchView | None = None
    async with aclosing(_with_heartbeats(views, heartbeat)) as steps:
        async for view in steps:
            if view is None:
                yield b":\n\n"
                continue
            batch = view
            ended = batch.state in _ENDED
            name, event_id = ("done", f"{number}-done") if ended else ("progress", f"{number}")
            yield _event(name, event_id, batch)
            number += 1
            if ended:
                return
    if batch is not None:
        yield _event("end", str(number), batch)


def _event(name: str, event_id: str, batch: BatchView) -> bytes:
    lines = f"event: {name}\nid: {event_id}\nretry: {RETRY_MS}\ndata: "
    return lines.encode() + _encode(batch) + b"\n\n"  # JSON has no line breaks in it


async def _with_heartbeats(
    views: AsyncIterator[BatchView], seconds: float
) -> AsyncGenerator[BatchView | None, None]:
    """The views, and None whenever there was none for so long."""
    step: asyncio.Future[BatchView] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(views))
            while not (await asyncio.wait({step}, timeout=seconds))[0]:
                yield None
            try:
                view = step.result()
            except StopAsyncIteration:
                return
            yield view
    finally:
        with CancelScope(shield=True):
            await _close(views, step)


async def _close(views: AsyncIterator[BatchView], step: asyncio.Future[BatchView] | None) -> None:
    if step is not None and not step.done():
        step.cancel()
        with suppress(asyncio.CancelledError):
            await step
    if isinstance(views, AsyncGenerator):
        await views.aclose()
