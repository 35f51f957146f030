"""The batches of a session: found, shown, watched and steered."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

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

PROGRESS_SECONDS = 0.25  # between two views of a batch that changes all the time
_WAITING = (SendState.QUEUED, SendState.DEFERRED)
_SHOWN = 1000  # rows of a single message: it has at most so many recipients


class Batches:
    """Every answer is of the session that asks: another's batch does not exist."""

    def __init__(self, repository: BatchRepository, dispatch: Dispatch, clock: Clock) -> None:
        self._repository = repository
        self._dispatch = dispatch
        self._clock = clock
        self._steering = asyncio.Lock()  # one change of course at a time

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
        if live is not None and live.record.kind is BatchKind.BATCH:
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
        async with self._steering:
            live = await self._require_live(session_id, batch_id)
            await self._dispatch.set_state(live, BatchState.PAUSED, paused_reason="requested")
            return live.view()

    async def resume(self, session_id: SessionId, batch_id: str) -> BatchView:
        async with self._steering:
            live = await self._require_live(session_id, batch_id)
            await self._dispatch.unpause(live)
            return live.view()

    async def cancel(self, session_id: SessionId, batch_id: str) -> BatchView:
        """What is on its way to the server is carried to its end; all else is cancelled."""
        async with self._steering:
            live = self._live(session_id, batch_id)
            if live is None:
                record = await self._record(session_id, batch_id)
                if record.state is BatchState.CANCELLED:
                    return await self._stored_view(record)
            await self._cancel(await self._require_live(session_id, batch_id))
            return live.view() if live is not None else await self.find(session_id, batch_id)

    async def retry(self, session_id: SessionId, batch_id: str) -> BatchView:
        """Failed and uncertain messages again."""
        async with self._steering:
            live = self._live(session_id, batch_id)
            if live is None:
                live = await self._reopen(await self._record(session_id, batch_id))
                if live is None:
                    return await self.find(session_id, batch_id)
            now = self._clock()
            left = await self._repository.move_messages(
                live.number,
                states=(SendState.FAILED, SendState.UNCERTAIN),
                to=SendState.QUEUED,
                now=now,
                held=list(live.held),
            )
            live.moved(left, SendState.QUEUED)
            live.expect(now)
            return live.view()

    async def _cancel(self, live: LiveBatch) -> None:
        now = self._clock()
        await self._dispatch.set_state(live, BatchState.CANCELLED, finished_at=now)
        left = await self._repository.move_messages(
            live.number,
            states=_WAITING,
            to=SendState.CANCELLED,
            now=now,
            held=list(live.held),
        )
        live.moved(left, SendState.CANCELLED)

    async def _reopen(self, record: BatchRecord) -> LiveBatch | None:
        """A completed batch, to be carried once more; None where it has nothing to be tried again."""
        if record.state is not BatchState.COMPLETED:
            raise _conflict(record)
        counts = (await self._repository.counts([record.number])).get(record.number, {})
        if not (counts.get(SendState.FAILED) or counts.get(SendState.UNCERTAIN)):
            return None
        await self._repository.set_state(
            record.number, BatchState.PAUSED, started_at=record.started_at
        )
        reopened = await self._record(record.session_id, record.id, record.kind)
        rejections = await self._dispatch.rejections(reopened)
        live = self._dispatch.take_up(reopened, counts, rejections)
        await self._dispatch.set_state(live, BatchState.QUEUED)
        return live

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
        async with self._steering:
            before = await self.find_send(session_id, send_id)
            live = self._dispatch.find(send_id)
            if before is None:
                return None
            if before.state is SendState.CANCELLED:
                return before
            if live is None or not live.count(*_WAITING):
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

    def _live(self, session_id: SessionId, batch_id: str) -> LiveBatch | None:
        live = self._dispatch.find(batch_id)
        return live if live is not None and live.record.session_id == session_id else None

    async def _record(
        self, session_id: SessionId, batch_id: str, kind: BatchKind = BatchKind.BATCH
    ) -> BatchRecord:
        record = await self._repository.find_batch(session_id, batch_id)
        if record is None or record.kind is not kind:
            raise BatchNotFound("There is no such batch.")
        return record

    async def _require_live(self, session_id: SessionId, batch_id: str) -> LiveBatch:
        live = self._live(session_id, batch_id)
        if live is None or live.ended or live.record.kind is not BatchKind.BATCH:
            raise _conflict(await self._record(session_id, batch_id))
        return live

    async def _stored_view(self, record: BatchRecord) -> BatchView:
        counts = await self._repository.counts([record.number])
        rejections = await self._dispatch.rejections(record)
        return view_of(record, _counts(counts.get(record.number, {})), rejections)


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
