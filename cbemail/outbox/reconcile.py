"""Looks for proof of what became of uncertain messages: a copy in the Sent folder, by Message-ID.

Gmail, Exchange and others file what they accept over SMTP themselves, a moment later. A copy proves that the message
was accepted; that there is none proves nothing, so the message stays uncertain, unless its sender has asked for it to
be sent again.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.errors import CbemailError, SessionNotFound
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.sent import SentFolder
from cbemail.store.batch_records import BatchRecord, MessageRow, OnUncertain
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

log = logging.getLogger(__name__)

_FOUND = "The reply was lost, but the Sent folder has the message: the server took it."
_GIVEN_UP = timedelta(hours=1)  # of asking a mailbox that does not answer


class ReconcilePolicy(Struct, frozen=True):
    """Ages of an uncertain message at which the Sent folder is asked; providers file their copies within these."""

    first: timedelta = timedelta(seconds=45)
    last: timedelta = timedelta(minutes=5)


class Reconciler:
    """Asks for the messages of whole batches, at times that follow from the age of each: nothing else to remember."""

    def __init__(
        self,
        repository: BatchRepository,
        sent: SentFolder,
        live: Callable[[str], LiveBatch | None],
        clock: Clock,
        policy: ReconcilePolicy,
    ) -> None:
        self._repository = repository
        self._sent = sent
        self._live = live
        self._clock = clock
        self._policy = policy
        self._due: dict[int, tuple[datetime, BatchRecord]] = {}
        self._armed = asyncio.Event()

    def arm(self, batch: BatchRecord) -> None:
        """The batch has messages that are uncertain."""
        self._arm(batch, self._clock() + self._policy.first)

    def forget(self, batch: int) -> None:
        self._due.pop(batch, None)

    async def run(self) -> None:
        """For as long as the service runs."""
        while True:
            self._armed.clear()
            await self._wait()
            now = self._clock()
            for number, (due, batch) in list(self._due.items()):
                if due <= now:
                    del self._due[number]
                    try:
                        await self._look(batch)
                    except CbemailError as error:
                        log.info("%s cannot be reconciled just now: %s", batch.id, error.code)
                        self._arm(batch, now + self._policy.last)
                    except Exception:
                        log.exception("the reconciling of %s failed", batch.id)
                        self._arm(batch, now + self._policy.last)

    async def _wait(self) -> None:
        seconds = None
        if self._due:
            earliest = min(due for due, _ in self._due.values())
            seconds = max((earliest - self._clock()).total_seconds(), 0.05)
        try:
            async with asyncio.timeout(seconds):
                await self._armed.wait()
        except TimeoutError:
            pass

    def _arm(self, batch: BatchRecord, due: datetime) -> None:
        known = self._due.get(batch.number)
        if known is None or due < known[0]:
            self._due[batch.number] = (due, batch)
            self._armed.set()

    async def _look(self, batch: BatchRecord) -> None:
        """A copy of a message that another recipient was sent proves nothing of this one: it is that one's."""
        rows = await self._repository.undecided(batch.number)
        message_ids = [row.message_id for row in rows]
        shared = await self._repository.sent_message_ids(batch.number, message_ids)
        again = batch.options.on_uncertain is OnUncertain.RESEND
        for row in rows:
            age = self._clock() - (row.finished_at or self._clock())
            if age < self._policy.first:
                self._arm(batch, self._clock() + self._policy.first - age)
            elif again or age < _GIVEN_UP + self._policy.last:
                await self._decide(batch, row, age, provable=row.message_id not in shared)

    async def _decide(
        self, batch: BatchRecord, row: MessageRow, age: timedelta, *, provable: bool
    ) -> None:
        try:
            found = provable and await self._sent.holds(batch.session_id, row.message_id)
        except SessionNotFound:
            return
        except CbemailError:
            if age < _GIVEN_UP:
                self._arm(batch, self._clock() + self._policy.last)
                return
            found = False
        if found:
            await self._record(batch, row, SendState.SENT, _FOUND)
        elif age < self._policy.last:
            self._arm(batch, self._clock() + self._policy.last - age)
        elif batch.options.on_uncertain is OnUncertain.RESEND:
            await self._record(batch, row, SendState.QUEUED, row.detail)

    async def _record(
        self, batch: BatchRecord, row: MessageRow, state: SendState, detail: str | None
    ) -> None:
        """Unless it is uncertain no more: a client may have asked for another try while the mailbox was asked."""
        now = self._clock()
        sent = state is SendState.SENT
        if not await self._repository.decide(
            batch.number, row.row, sent=sent, detail=detail, now=now
        ):
            return
        live = self._live(batch.id)
        if live is not None:
            live.moved({SendState.UNCERTAIN: 1}, state)
            live.expect(now)
