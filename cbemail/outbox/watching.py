"""The progress of a batch, as it happens."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import Struct

from cbemail.ids import SessionId
from cbemail.outbox.batch import ENDED, BatchView
from cbemail.outbox.batches import Batches
from cbemail.outbox.dispatch import Dispatch
from cbemail.outbox.live import LiveBatch

PROGRESS_SECONDS = 0.25  # between two views of a batch that changes all the time


class Progress(Struct, frozen=True):
    """A batch at one moment. One that was cancelled is ``over`` once what was on its way to the server has ended."""

    batch: BatchView
    over: bool


class Watching:
    """For clients that would rather be told than ask."""

    def __init__(self, batches: Batches, dispatch: Dispatch) -> None:
        self._batches = batches
        self._draining = dispatch.draining

    async def look(self, session_id: SessionId, batch_id: str) -> Progress:
        """Raises BatchNotFound."""
        live = self._batches.live(session_id, batch_id)
        if live is not None:
            return _progress(live)
        batch = await self._batches.find(session_id, batch_id)
        return Progress(batch, over=batch.state in ENDED)

    async def progress(
        self, session_id: SessionId, batch_id: str
    ) -> AsyncGenerator[Progress, None]:
        """The batch now, and after every change, at most 4 a second; ends when it is over, and at shutdown. Raises
        BatchNotFound at the first step."""
        live = self._batches.live(session_id, batch_id)
        if live is None:
            yield await self.look(session_id, batch_id)
            return
        async with aclosing(self._changes(live)) as changes:
            async for progress in changes:
                yield progress

    async def ended(self, session_id: SessionId, batch_id: str, *, seconds: float) -> Progress:
        """The batch once it is over; or as it is after so many seconds, or at shutdown."""
        live = self._batches.live(session_id, batch_id)
        if live is None:
            return await self.look(session_id, batch_id)
        try:
            async with asyncio.timeout(seconds), aclosing(self._changes(live)) as changes:
                async for _ in changes:
                    pass
        except TimeoutError:
            pass
        return _progress(live)

    async def _changes(self, live: LiveBatch) -> AsyncGenerator[Progress, None]:
        changed = live.watch()
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                changed.clear()
                progress = _progress(live)
                yield progress
                if progress.over or draining.done():
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


def _progress(live: LiveBatch) -> Progress:
    return Progress(live.view(), live.over)
