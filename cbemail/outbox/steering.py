"""The course of a batch, changed: paused, resumed, cancelled, tried again."""

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

from msgspec import structs

from cbemail.clock import Clock
from cbemail.errors import BatchStateConflict
from cbemail.ids import SessionId
from cbemail.outbox.backlog import Backlog
from cbemail.outbox.batch import WAITING, BatchView
from cbemail.outbox.batch_states import BatchStates
from cbemail.outbox.batches import Batches
from cbemail.outbox.dispatch import Dispatch
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.send_result import SendResult
from cbemail.store.batch_records import BatchKind, BatchRecord, BatchState
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

T = TypeVar("T")

_UNDER_WAY = (BatchState.QUEUED, BatchState.SCHEDULED, BatchState.RUNNING, BatchState.PAUSED)
_RETRIED = (SendState.FAILED, SendState.UNCERTAIN)


class Steering:
    """Changes are made on disk, and then here; each is made whole, also for a client that hangs up in between."""

    def __init__(
        self,
        repository: BatchRepository,
        dispatch: Dispatch,
        batches: Batches,
        backlog: Backlog,
        clock: Clock,
    ) -> None:
        self._repository = repository
        self._states = BatchStates(repository, clock)
        self._dispatch = dispatch
        self._batches = batches
        self._backlog = backlog
        self._clock = clock
        self._reopening = asyncio.Lock()  # what is over is taken up again by one at a time
        self._changing: set[asyncio.Task[Any]] = set()

    async def pause(self, session_id: SessionId, batch_id: str) -> BatchView:
        """Raises BatchNotFound, BatchStateConflict (completed or cancelled). So do the next three."""
        return await self._whole(self._pause(session_id, batch_id))

    async def resume(self, session_id: SessionId, batch_id: str) -> BatchView:
        """What is not paused stays as it is."""
        return await self._whole(self._resume(session_id, batch_id))

    async def cancel(self, session_id: SessionId, batch_id: str) -> BatchView:
        """What is on its way to the server is carried to its end; all else is cancelled."""
        return await self._whole(self._cancel_batch(session_id, batch_id))

    async def retry(self, session_id: SessionId, batch_id: str) -> BatchView:
        """Failed and uncertain messages again. Raises RateLimited, Overloaded: too much is queued already."""
        return await self._whole(self._retry(session_id, batch_id))

    async def cancel_send(self, session_id: SessionId, send_id: str) -> SendResult | None:
        """Cancel what is still queued of a single message. Raises BatchStateConflict where nothing is."""
        return await self._whole(self._cancel_send(session_id, send_id))

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(change)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    # ---- pause and resume

    async def _pause(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = await self._require_live(session_id, batch_id)
        async with live.course:
            await self._move(live, BatchState.PAUSED, paused_reason="requested")
        return live.view()

    async def _resume(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = await self._require_live(session_id, batch_id)
        async with live.course:
            if live.record.state not in _UNDER_WAY:
                raise _conflict(live.record)
            await self._states.unpause(live)
        return live.view()

    # ---- cancel

    async def _cancel_batch(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = self._batches.live(session_id, batch_id)
        if live is None or live.ended:
            record = await self._batches.record(session_id, batch_id)
            if record.state is BatchState.CANCELLED:
                return await self._batches.find(session_id, batch_id)
        live = await self._require_live(session_id, batch_id)
        async with live.course:
            await self._cancel(live)
        return live.view()

    async def _cancel_send(self, session_id: SessionId, send_id: str) -> SendResult | None:
        before = await self._batches.find_send(session_id, send_id)
        if before is None or before.state is SendState.CANCELLED:
            return before
        live = self._batches.live(session_id, send_id, BatchKind.SEND)
        if live is None:
            raise BatchStateConflict(f"The message is {before.state}: nothing of it waits.")
        async with live.course:
            if live.ended or not live.count(*WAITING):
                raise BatchStateConflict(f"The message is {before.state}: nothing of it waits.")
            await self._cancel(live)
        return await self._batches.find_send(session_id, send_id)

    async def _cancel(self, live: LiveBatch) -> None:
        """For who holds ``live.course``. Rows that a courier holds are not touched: it gives them back, cancelled."""
        now = self._clock()
        await self._move(live, BatchState.CANCELLED, finished_at=now)
        left = await self._repository.move_messages(
            live.number,
            states=WAITING,
            to=SendState.CANCELLED,
            now=now,
            held=list(live.held),
        )
        live.moved(left, SendState.CANCELLED)

    # ---- retry

    async def _retry(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = self._batches.live(session_id, batch_id)
        if live is not None:
            async with live.course:
                if not live.ended:
                    return await self._try_again(live)
        async with self._reopening:
            live = self._batches.live(session_id, batch_id)  # somebody else may have been first
            if live is None or live.ended:
                live = await self._reopen(await self._batches.record(session_id, batch_id))
            if live is None:
                return await self._batches.find(session_id, batch_id)
            async with live.course:
                return await self._try_again(live)

    async def _try_again(self, live: LiveBatch) -> BatchView:
        now = self._clock()
        with self._backlog.more(live, live.count(*_RETRIED)):
            left = await self._repository.move_messages(
                live.number, states=_RETRIED, to=SendState.QUEUED, now=now, held=list(live.held)
            )
            live.moved(left, SendState.QUEUED)
        if left:
            live.expect(now)
        return live.view()

    async def _reopen(self, record: BatchRecord) -> LiveBatch | None:
        """A completed batch, to be carried once more; None where it has nothing to be tried again."""
        if record.state is not BatchState.COMPLETED:
            raise _conflict(record)
        counts = (await self._repository.counts([record.number])).get(record.number, {})
        if not any(counts.get(state) for state in _RETRIED):
            return None
        messages = sum(counts.get(state, 0) for state in _RETRIED)
        self._backlog.require_room(record.session_id, record.kind, messages)
        rejections = await self._dispatch.rejections(record)
        await self._repository.set_state(
            record.number, BatchState.QUEUED, started_at=record.started_at
        )
        reopened = structs.replace(record, state=BatchState.QUEUED, finished_at=None)
        return self._dispatch.take_up(reopened, counts, rejections)

    # ---- inside

    async def _require_live(self, session_id: SessionId, batch_id: str) -> LiveBatch:
        live = self._batches.live(session_id, batch_id)
        if live is None or live.ended:
            raise _conflict(await self._batches.record(session_id, batch_id))
        return live

    async def _move(
        self,
        live: LiveBatch,
        state: BatchState,
        *,
        finished_at: datetime | None = None,
        paused_reason: str | None = None,
    ) -> None:
        moved = await self._states.move(
            live,
            state,
            only_from=_UNDER_WAY,
            finished_at=finished_at,
            paused_reason=paused_reason,
        )
        if not moved:
            raise _conflict(live.record)


def _conflict(record: BatchRecord) -> BatchStateConflict:
    return BatchStateConflict(f"The batch is {record.state}.")
