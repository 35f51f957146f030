"""The batches of a session, found and shown. `watching` tells of their progress, `steering` changes their course."""

from cbemail.errors import BatchNotFound
from cbemail.ids import SessionId
from cbemail.outbox.batch import BatchView, MessageView
from cbemail.outbox.dispatch import Dispatch
from cbemail.outbox.live import LiveBatch, view_of
from cbemail.outbox.send_result import SendResult
from cbemail.outbox.views import counts_of, message_view, send_result
from cbemail.store.batch_records import BatchKind, BatchRecord
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

_SHOWN = 5000  # rows of a single message: it has fewer recipients


class Batches:
    """Every answer is of the session that asks: another's batch does not exist."""

    def __init__(self, repository: BatchRepository, dispatch: Dispatch) -> None:
        self._repository = repository
        self._dispatch = dispatch

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
        live = self.live(session_id, batch_id)
        if live is not None:
            return live.view()
        return await self.stored_view(await self.record(session_id, batch_id))

    async def page(
        self, session_id: SessionId, *, before: int | None, limit: int
    ) -> list[tuple[int, BatchView]]:
        """Batches of the session, the newest first, each with the number that ``before`` takes."""
        records = await self._repository.page(session_id, before=before, limit=limit)
        return [
            (record.number, live.view() if live is not None else await self.stored_view(record))
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
        record = await self.record(session_id, batch_id)
        rows = await self._repository.messages(record.number, state=state, after=after, limit=limit)
        key = self._dispatch.key_of(record)
        return [(row.row, message_view(record, row, key)) for row in rows]

    async def find_send(self, session_id: SessionId, send_id: str) -> SendResult | None:
        """A single message that was queued (BatchKind.SEND), as GET /api/send/{id} shows it; None if there is none."""
        record = await self._repository.find_batch(session_id, send_id)
        if record is None or record.kind is not BatchKind.SEND:
            return None
        rows = await self._repository.messages(record.number, state=None, after=None, limit=_SHOWN)
        return send_result(record, rows, self._dispatch.key_of)

    # ---- for those who watch and steer

    def live(
        self, session_id: SessionId, batch_id: str, kind: BatchKind = BatchKind.BATCH
    ) -> LiveBatch | None:
        """The batch, if it is being carried."""
        live = self._dispatch.find(batch_id)
        if live is None or (live.record.session_id, live.record.kind) != (session_id, kind):
            return None
        return live

    async def record(self, session_id: SessionId, batch_id: str) -> BatchRecord:
        """The batch as it is on disk. Raises BatchNotFound."""
        record = await self._repository.find_batch(session_id, batch_id)
        if record is None or record.kind is not BatchKind.BATCH:
            raise BatchNotFound("There is no such batch.")
        return record

    async def stored_view(self, record: BatchRecord) -> BatchView:
        """A batch that nobody carries."""
        counts = await self._repository.counts([record.number])
        known = counts.get(record.number, {})
        rejected = known.get(SendState.REJECTED)
        rejections = await self._dispatch.rejections(record) if rejected else []
        return view_of(record, counts_of(known), rejections)
