"""Intents and outcomes, written in groups: while one group is on its way to the disk, the next one gathers.

What has happened to a message cannot be taken back, so an outcome is written however long the disk takes: past a full
disk the journal tries again. Those who wait for an intent wait with it, and nothing is sent that is not on disk.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from cbemail.errors import CbemailError
from cbemail.outbox.live import LiveBatch
from cbemail.store.batch_records import MessageEvent
from cbemail.store.batches import BatchRepository
from cbemail.store.database import StatementFailed
from cbemail.store.records import SendState

log = logging.getLogger(__name__)

EASY_SECONDS = 0.05  # where nobody waits: a mail server on the same disk has its own to sync
_TRIES = 5  # after a defect of ours, before it is given up
_AGAIN_SECONDS = 1.0  # between two tries, while the store takes nothing

_Entry = tuple[LiveBatch, Sequence[MessageEvent], "asyncio.Future[None]"]


class Journal:
    """The one writer of message events. Counts of the live batches follow the disk."""

    def __init__(self, repository: BatchRepository) -> None:
        self._repository = repository
        self._waiting: list[_Entry] = []
        self._group: list[_Entry] = []  # on its way to the disk
        self._writer: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._new_future = (
            asyncio.get_running_loop().create_future
        )  # which asks the system each time
        self.outcomes: Counter[SendState] = Counter()  # of attempts, that are on disk

    def post(self, batch: LiveBatch, events: Sequence[MessageEvent]) -> "asyncio.Future[None]":
        """Have the events written, all of them or none; the future is done when they are on disk."""
        future = self._new_future()
        if not events:
            future.set_result(None)
            return future
        self._waiting.append((batch, events, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return future

    def hurry(self, future: "asyncio.Future[None]") -> None:
        """Somebody will soon wait for what was posted. As long as nobody does, the journal takes its time."""
        if not future.done():
            self._hurried.set()

    async def written(self, future: "asyncio.Future[None]") -> None:
        """Wait until what was posted is on disk."""
        self.hurry(future)
        await future

    async def flush(self, seconds: float) -> None:
        """Wait until all that was posted is on disk, for so long."""
        self._hurried.set()
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=seconds)
        if self._writer is not None:
            self._writer.cancel()
            events = sum(len(events) for _, events, _ in [*self._group, *self._waiting])
            log.error("%d events of messages could not be stored", events)

    async def _write(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                self._group, self._waiting = self._waiting, []
                await self._record([event for _, events, _ in self._group for event in events])
                for batch, events, future in self._group:
                    batch.apply(events)
                    self.outcomes.update(event.state for event in events)
                    if not future.done():
                        future.set_result(None)
                self._group = []
        except Exception as exc:
            # Whoever waits must not wait for ever. The rows say `sending`, and will be `uncertain`.
            for _, _, future in [*self._group, *self._waiting]:
                if not future.done():
                    future.set_exception(exc)
            self._group, self._waiting = [], []
            if not self._repository.failed.is_set():  # of which the process ends, saying why
                raise
        finally:
            self._writer = None

    async def _gather(self) -> None:
        """Let others come along: while nobody waits, for a while; else those who are ready in this turn of the loop, and
        those who were while the group before was written."""
        if not self._hurried.is_set():
            timer = asyncio.get_running_loop().call_later(EASY_SECONDS, self._hurried.set)
            await self._hurried.wait()
            timer.cancel()
        self._hurried.clear()
        await asyncio.sleep(0)

    async def _record(self, events: Sequence[MessageEvent]) -> None:
        tries = 0
        while True:
            try:
                await self._repository.record(events)
            except CbemailError as error:
                if self._repository.failed.is_set():
                    raise  # it will never be written
                log.warning("the journal cannot be written just now: %s", error.code)
            except StatementFailed:
                tries += 1
                if tries > _TRIES:
                    raise
                log.exception("the journal could not be written, and is tried again")
            else:
                return
            await asyncio.sleep(_AGAIN_SECONDS)
