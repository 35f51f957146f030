"""The batches of a session: found, shown, watched and steered."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeVar

from msgspec import structs

from cbemail.clock import Clock
from cbemail.errors import BatchNotFound, BatchStateConflict
from cbemail.ids import OutboxId, SessionId
from cbemail.outbox.batch import BatchView, Counts, MessageView, Rejection
from cbemail.outbox.content import Recipient
from cbemail.outbox.dispatch import Dispatch
from cbemail.outbox.live import LiveBatch, view_of
from cbemail.outbox.outbox import Rejected, SendResult
from cbemail.outbox.sealing import BatchKey
from cbemail.outbox.workshop import open_recipient
from cbemail.store.batch_records import BatchKind, BatchRecord, BatchState, MessageRow
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

T = TypeVar("T")

PROGRESS_SECONDS = 0.25  # between two views of a batch that changes all the time
_WAITING = (SendState.QUEUED, SendState.DEFERRED)
_UNDER_WAY = (BatchState.QUEUED, BatchState.SCHEDULED, BatchState.RUNNING, BatchState.PAUSED)
_SHOWN = 5000  # rows of a single message: it has fewer recipients


class Batches:
    """Every answer is of the session that asks: another's batch does not exist."""

    def __init__(self, repository: BatchRepository, dispatch: Dispatch, clock: Clock) -> None:
        self._repository = repository
        self._dispatch = dispatch
        self._clock = clock
        self._reopening = asyncio.Lock()  # what is over is taken up again by one at a time
        self._changing: set[asyncio.Task[Any]] = set()

    # ---- the whole

    @property
    def draining(self) -> bool:
        """The service is shutting down."""
        return self._dispatch.draining.is_set()

    @property
    def troubled(self) -> bool:
        """Something that carries a batch has failed by a defect of ours, and is being started again."""
        return bool(self._dispatch.troubled)

    def begin_drain(self) -> None:
        """Begin nothing more; whoever watches is let go."""
        self._dispatch.begin_drain()

    def break_off(self) -> None:
        """End what is under way at once: what had come to its final dot is uncertain, all else is not sent."""
        self._dispatch.break_off()

    async def drain(self, seconds: float) -> None:
        """Wait for what is under way, for so long, and for what is known to be on disk."""
        await self._dispatch.drain(seconds)

    # ---- found

    async def find(self, session_id: SessionId, batch_id: str) -> BatchView:
        """Raises BatchNotFound."""
        live = self._live(session_id, batch_id)
        if live is not None:
            return live.view()
        return await self._stored_view(await self._record(session_id, batch_id))

    async def page(
        self, session_id: SessionId, *, before: int | None, limit: int
    ) -> list[tuple[int, BatchView]]:
        """Batches of the session, the newest first, each with the number that ``before`` takes."""
        records = await self._repository.page(session_id, before=before, limit=limit)
        return [
            (record.number, live.view() if live is not None else await self._stored_view(record))
            for record in records
            for live in [self._dispatch.find(record.id)]
        ]

    async def messages(
        self,
        session_id: SessionId,
        batch_id: str,
        *,
        state: SendState | None = None,
        after: int | None = None,
        limit: int,
    ) -> list[tuple[int, MessageView]]:
        """Messages in the request's order, each with the number that ``after`` takes. For a page, and for the whole
        report piece by piece. Raises BatchNotFound."""
        record = await self._record(session_id, batch_id)
        rows = await self._repository.messages(record.number, state=state, after=after, limit=limit)
        key = self._dispatch.key_of(record)
        return [(row.row, _message_view(record, row, open_recipient(key, row))) for row in rows]

    # ---- watched

    async def ended(self, session_id: SessionId, batch_id: str, *, seconds: float) -> BatchView:
        """The batch once it is completed or cancelled; or as it is after so many seconds, or at shutdown."""
        live = self._live(session_id, batch_id)
        if live is not None:
            try:
                async with asyncio.timeout(seconds), aclosing(self._changes(live)) as changes:
                    async for _ in changes:
                        pass
            except TimeoutError:
                pass
        return live.view() if live is not None else await self.find(session_id, batch_id)

    async def progress(self, session_id: SessionId, batch_id: str) -> AsyncGenerator[BatchView]:
        """The batch now, and after every change, at most 4 a second; ends after it is completed or cancelled, and at
        shutdown. Raises BatchNotFound at the first step."""
        live = self._live(session_id, batch_id)
        if live is None:
            yield await self.find(session_id, batch_id)
            return
        async with aclosing(self._changes(live)) as changes:
            async for view in changes:
                yield view

    async def _changes(self, live: LiveBatch) -> AsyncGenerator[BatchView]:
        changed = live.watch()
        draining = asyncio.create_task(self._dispatch.draining.wait())
        try:
            while True:
                changed.clear()
                yield live.view()
                if live.ended or draining.done():
                    return
                news = asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait({news, draining}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                await asyncio.wait({draining}, timeout=PROGRESS_SECONDS)
        finally:
            draining.cancel()
            live.unwatch(changed)

    # ---- steered

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
        """Failed and uncertain messages again."""
        return await self._whole(self._retry(session_id, batch_id))

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        """The result of a change that is made on disk and here, also for a client that hangs up in between."""
        task = asyncio.create_task(change)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    async def _pause(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = await self._require_live(session_id, batch_id)
        async with live.course:
            await self._move(live, BatchState.PAUSED, _UNDER_WAY, paused_reason="requested")
        return live.view()

    async def _resume(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = await self._require_live(session_id, batch_id)
        async with live.course:
            _require_under_way(live)
            await self._dispatch.unpause(live)
        return live.view()

    async def _cancel_batch(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = self._live(session_id, batch_id)
        if live is None or live.ended:
            record = await self._record(session_id, batch_id)
            if record.state is BatchState.CANCELLED:
                return await self._stored_view(record)
        live = await self._require_live(session_id, batch_id)
        async with live.course:
            await self._cancel(live)
        return live.view()

    async def _retry(self, session_id: SessionId, batch_id: str) -> BatchView:
        live = self._live(session_id, batch_id)
        if live is not None:
            async with live.course:
                if not live.ended:
                    return await self._try_again(live)
        async with self._reopening:
            live = self._live(session_id, batch_id)  # somebody else may have been first
            if live is None or live.ended:
                live = await self._reopen(await self._record(session_id, batch_id))
            if live is None:
                return await self.find(session_id, batch_id)
            async with live.course:
                return await self._try_again(live)

    async def _try_again(self, live: LiveBatch) -> BatchView:
        now = self._clock()
        left = await self._repository.move_messages(
            live.number,
            states=(SendState.FAILED, SendState.UNCERTAIN),
            to=SendState.QUEUED,
            now=now,
            held=list(live.held),
        )
        live.moved(left, SendState.QUEUED)
        if left:
            live.expect(now)
        return live.view()

    async def _cancel(self, live: LiveBatch) -> None:
        """For who holds ``live.course``."""
        now = self._clock()
        await self._move(live, BatchState.CANCELLED, _UNDER_WAY, finished_at=now)
        left = await self._repository.move_messages(
            live.number,
            states=_WAITING,
            to=SendState.CANCELLED,
            now=now,
            held=list(live.held),
        )
        live.moved(left, SendState.CANCELLED)

    async def _move(
        self,
        live: LiveBatch,
        state: BatchState,
        only_from: Collection[BatchState],
        *,
        finished_at: datetime | None = None,
        paused_reason: str | None = None,
    ) -> None:
        moved = await self._dispatch.move(
            live,
            state,
            only_from=only_from,
            finished_at=finished_at,
            paused_reason=paused_reason,
        )
        if not moved:
            raise _conflict(live.record)

    async def _reopen(self, record: BatchRecord) -> LiveBatch | None:
        """A completed batch, to be carried once more; None where it has nothing to be tried again."""
        if record.state is not BatchState.COMPLETED:
            raise _conflict(record)
        counts = (await self._repository.counts([record.number])).get(record.number, {})
        if not (counts.get(SendState.FAILED) or counts.get(SendState.UNCERTAIN)):
            return None
        rejections = await self._dispatch.rejections(record)
        await self._repository.set_state(
            record.number, BatchState.QUEUED, started_at=record.started_at
        )
        reopened = structs.replace(record, state=BatchState.QUEUED, finished_at=None)
        return self._dispatch.take_up(reopened, counts, rejections)

    # ---- single messages

    async def find_send(self, session_id: SessionId, send_id: str) -> SendResult | None:
        """A single message that was queued (BatchKind.SEND), as GET /api/send/{id} shows it; None if there is none."""
        record = await self._repository.find_batch(session_id, send_id)
        if record is None or record.kind is not BatchKind.SEND:
            return None
        rows = await self._repository.messages(record.number, state=None, after=None, limit=_SHOWN)
        key = self._dispatch.key_of(record)
        return send_result(record, rows, key)

    async def cancel_send(self, session_id: SessionId, send_id: str) -> SendResult | None:
        """Cancel what is still queued of a single message. Raises BatchStateConflict where nothing is."""
        return await self._whole(self._cancel_send(session_id, send_id))

    async def _cancel_send(self, session_id: SessionId, send_id: str) -> SendResult | None:
        before = await self.find_send(session_id, send_id)
        if before is None or before.state is SendState.CANCELLED:
            return before
        live = self._live(session_id, send_id, BatchKind.SEND)
        if live is None:
            raise BatchStateConflict(f"The message is {before.state}: nothing of it waits.")
        async with live.course:
            if live.ended or not live.count(*_WAITING):
                raise BatchStateConflict(f"The message is {before.state}: nothing of it waits.")
            await self._cancel(live)
        return await self.find_send(session_id, send_id)

    # ---- made

    def adopt(
        self,
        record: BatchRecord,
        counts: dict[SendState, int],
        rejected: Sequence[Rejection] = (),
    ) -> BatchView:
        """Take over a batch that has just been published, and begin to send it when it is due."""
        return self._dispatch.take_up(record, counts, rejected).view()

    def view_of_new(
        self, record: BatchRecord, counts: dict[SendState, int], rejected: Sequence[Rejection]
    ) -> BatchView:
        """How a batch about to be published will be answered (for the stored response of its Idempotency-Key)."""
        return view_of(record, _counts(counts), rejected)

    # ---- inside

    def _live(
        self, session_id: SessionId, batch_id: str, kind: BatchKind = BatchKind.BATCH
    ) -> LiveBatch | None:
        live = self._dispatch.find(batch_id)
        if live is None or (live.record.session_id, live.record.kind) != (session_id, kind):
            return None
        return live

    async def _record(
        self, session_id: SessionId, batch_id: str, kind: BatchKind = BatchKind.BATCH
    ) -> BatchRecord:
        record = await self._repository.find_batch(session_id, batch_id)
        if record is None or record.kind is not kind:
            raise BatchNotFound("There is no such batch.")
        return record

    async def _require_live(self, session_id: SessionId, batch_id: str) -> LiveBatch:
        live = self._live(session_id, batch_id)
        if live is None or live.ended:
            raise _conflict(await self._record(session_id, batch_id))
        return live

    async def _stored_view(self, record: BatchRecord) -> BatchView:
        counts = await self._repository.counts([record.number])
        known = counts.get(record.number, {})
        rejected = known.get(SendState.REJECTED)
        rejections = await self._dispatch.rejections(record) if rejected else []
        return view_of(record, _counts(known), rejections)


def _require_under_way(live: LiveBatch) -> None:
    if live.record.state not in _UNDER_WAY:
        raise _conflict(live.record)


def _conflict(record: BatchRecord) -> BatchStateConflict:
    return BatchStateConflict(f"The batch is {record.state}.")


def _counts(counts: dict[SendState, int]) -> Counts:
    named = {state.value: counts.get(state, 0) for state in SendState}
    return Counts(total=sum(named.values()), **named)


def _message_view(record: BatchRecord, row: MessageRow, recipient: Recipient) -> MessageView:
    return MessageView(
        id=message_id_of(record, row),
        index=row.position,
        key=recipient.key,
        to=recipient.address,
        state=row.state,
        attempts=row.attempts,
        message_id=row.message_id,
        status=row.status,
        enhanced=row.enhanced,
        detail=row.detail,
        next_attempt_at=row.next_attempt_at if row.state in _WAITING else None,
        finished_at=row.finished_at,
    )


def message_id_of(record: BatchRecord, row: MessageRow) -> OutboxId:
    """The public id of a row: unguessable, since the batch's token is."""
    return OutboxId(f"msg_{record.token}{row.row:08x}")


# ---- a single message, of several rows


_ORDER = (  # the first that any recipient is in is what the whole is in
    SendState.SENDING,
    SendState.QUEUED,
    SendState.DEFERRED,
    SendState.UNCERTAIN,
    SendState.SENT,
    SendState.CANCELLED,
    SendState.FAILED,
)


def send_result(record: BatchRecord, rows: Sequence[MessageRow], key: BatchKey) -> SendResult:
    def address(row: MessageRow) -> str:
        return open_recipient(key, row).address

    states = {row.state for row in rows}
    sent = [row for row in rows if row.state is SendState.SENT]
    refused = [row for row in rows if row.state is SendState.FAILED]
    return SendResult(
        id=OutboxId(record.id),
        state=next((state for state in _ORDER if state in states), SendState.FAILED),
        message_id=rows[0].message_id if rows else "",
        accepted=[address(row) for row in sent],
        rejected=[
            Rejected(address(row), row.status, row.enhanced, row.detail or "") for row in refused
        ],
        response=sent[0].detail if sent else None,
    )
