"""The state a batch is in: changed on disk, and then here."""

from collections.abc import Collection
from datetime import datetime

from cbemail.clock import Clock
from cbemail.outbox.live import LiveBatch
from cbemail.store.batch_records import BatchState
from cbemail.store.batches import BatchRepository


class BatchStates:
    """Puts batches into their states, one change of a batch at a time: whoever makes one holds ``live.course``."""

    def __init__(self, repository: BatchRepository, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock

    async def move(
        self,
        live: LiveBatch,
        state: BatchState,
        *,
        only_from: Collection[BatchState],
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
        paused_reason: str | None = None,
    ) -> bool:
        """Put a batch into a state, on disk first, if it is in one that leads there; say whether it was.

        For who holds ``live.course``: what is decided under it holds when it is carried out.
        """
        if live.record.state not in only_from:
            return False
        started_at = live.record.started_at or started_at
        await self._repository.set_state(
            live.number,
            state,
            started_at=started_at,
            finished_at=finished_at,
            paused_reason=paused_reason,
        )
        live.change(
            state=state,
            started_at=started_at,
            finished_at=finished_at,
            paused_reason=paused_reason,
            paused_until=None,
        )
        live.nudged.set()
        return True

    async def unpause(self, live: LiveBatch) -> None:
        """Go on with what was paused: when it is due, if it was not before. For who holds ``live.course``."""
        send_at = live.record.send_at
        if send_at is not None and send_at > self._clock():
            state = BatchState.SCHEDULED
        else:
            state = BatchState.RUNNING if live.record.started_at else BatchState.QUEUED
        if await self.move(live, state, only_from={BatchState.PAUSED}):
            live.expect(self._clock())

    async def resume(self, live: LiveBatch) -> None:
        """`unpause`, once nobody else is changing it."""
        async with live.course:
            await self.unpause(live)

    async def advance(self, live: LiveBatch, old: BatchState, new: BatchState) -> None:
        """On to the next state, where it is still in the old one."""
        started_at = self._clock() if new is BatchState.RUNNING else None
        async with live.course:
            await self.move(live, new, only_from={old}, started_at=started_at)

    async def complete(self, live: LiveBatch) -> bool:
        """End a batch of which nothing is left to send; decided and done in one, or a retry would come in between."""
        async with live.course:
            if live.unsettled or not live.may_send:
                return False
            await self._repository.fold()
            return await self.move(
                live,
                BatchState.COMPLETED,
                only_from={BatchState.QUEUED, BatchState.RUNNING},
                finished_at=self._clock(),
            )

    async def keep_pause(self, live: LiveBatch) -> None:
        """Have on disk what a halt has changed here; unless something else has come meanwhile."""
        async with live.course:
            record = live.record
            if record.state is BatchState.PAUSED:
                await self._repository.set_state(
                    live.number,
                    BatchState.PAUSED,
                    started_at=record.started_at,
                    paused_reason=record.paused_reason,
                    paused_until=record.paused_until,
                )
