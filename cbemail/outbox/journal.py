"""Intents and outcomes, written in groups: while one group is on its way to the disk, the next one gathers.

What has happened to a message cannot be taken back, so an outcome is written however long the disk takes: past a full
disk the journal tries again. Those who wait for an intent wait with it, and nothing is sent that is not on disk.
"""

import asyncio
import logging
from collections.abc import Sequence

from cbemail.errors import CbemailError
from cbemail.outbox.live import LiveBatch
from cbemail.store.batch_records import MessageEvent
from cbemail.store.batches import BatchRepository
from cbemail.store.database import StatementFailed

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.001  # for others to come along: more would only make them wait
_TRIES = 5  # after a defect of ours, before it is given up
_AGAIN_SECONDS = 1.0  # between two tries, while the store takes nothing

_Entry = tuple[LiveBatch, Sequence[MessageEvent], "asyncio.Future[None]"]


class Journal:
    """The one writer of message events. Counts of the live batches follow the disk."""

    def __init__(self, repository: BatchRepository) -> None:
        self._repository = repository
        self._waiting: list[_Entry] = []
        self._writer: asyncio.Task[None] | None = None

    def post(self, batch: LiveBatch, events: Sequence[MessageEvent]) -> "asyncio.Future[None]":
        """Have the events written, all of them or none; the future is done when they are on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not events:
            future.set_result(None)
            return future
        self._waiting.append((batch, events, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return future

    async def flush(self, seconds: float) -> None:
        """Wait until all that was posted is on disk, for so long."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=seconds)
        if self._writer is not None:
            self._writer.cancel()
            log.error("%d outcomes could not be stored", len(self._waiting))

    async def _write(self) -> None:
        group: list[_Entry] = []
        try:
            while self._waiting:
                await asyncio.sleep(GATHER_SECONDS)
                group, self._waiting = self._waiting, []
                await self._record([event for _, events, _ in group for event in events])
                for batch, events, future in group:
                    batch.apply(events)
                    if not future.done():
                        future.set_result(None)
        except Exception as exc:
            # Ours to mend. Whoever waits must not wait for ever; the rows say `sending`, and will be `uncertain`.
            for _, _, future in [*group, *self._waiting]:
                if not future.done():
                    future.set_exception(exc)
            self._waiting = []
            raise
        finally:
            self._writer = None

    async def _record(self, events: Sequence[MessageEvent]) -> None:
        tries = 0
        while True:
            try:
                await self._repository.record(events)
            except CbemailError as error:
                log.warning("the journal cannot be written just now: %s", error.code)
            except StatementFailed:
                tries += 1
                if tries > _TRIES:
                    raise
                log.exception("the journal could not be written, and is tried again")
            else:
                return
            await asyncio.sleep(_AGAIN_SECONDS)
