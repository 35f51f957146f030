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
from cbemail.ids import SessionId
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.sent import SentFolder
from cbemail.store.batch_records import EARLIER_TRY, BatchRecord, MessageRow, OnUncertain
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

log = logging.getLogger(__name__)

_FOUND = "The reply was lost, but the Sent folder has the message: the server took it."
_GIVEN_UP = timedelta(hours=1)  # of asking a mailbox that does not answer

MAILBOXES = 8  # asked at a time, each by one connection: a slow one holds up no others


class ReconcilePolicy(Struct, frozen=True):
    """Ages of an uncertain message at which the Sent folder is asked; providers file their copies within these. What
    it has not told ``visit_seconds`` after the first question, it is asked another time."""

    first: timedelta = timedelta(seconds=45)
    last: timedelta = timedelta(minutes=5)
    visit_seconds: float = 60.0


class Reconciler:
    """Asks for the messages of whole batches, at times that follow from the age of each: nothing else to remember.

    Mailboxes are asked side by side, each for one batch at a time and within a deadline of its own.
    """

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
        self._visited: set[SessionId] = set()  # whose mailboxes are being asked
        self._armed = asyncio.Event()

    def arm(self, batch: BatchRecord) -> None:
        """The batch has messages that are uncertain."""
        self._arm(batch, self._clock() + self._policy.first)

    def forget(self, batch: int) -> None:
        self._due.pop(batch, None)

    async def run(self) -> None:
        """For as long as the service runs."""
        async with asyncio.TaskGroup() as visits:
            while True:
                self._armed.clear()
                for due, number in self._waiting():
                    if due > self._clock():
                        break
                    _, batch = self._due.pop(number)
                    self._visited.add(batch.session_id)
                    visits.create_task(self._visit(batch))
                await self._wait()

    def _waiting(self) -> list[tuple[datetime, int]]:
        """Whom there is room to ask, the first to be asked first: one batch of each mailbox that nobody is asking."""
        first: dict[SessionId, tuple[datetime, int]] = {}
        for due, batch in self._due.values():
            if batch.session_id not in self._visited:
                chosen = first.setdefault(batch.session_id, (due, batch.number))
                first[batch.session_id] = min(chosen, (due, batch.number))
        return sorted(first.values())[: MAILBOXES - len(self._visited)]

    async def _wait(self) -> None:
        seconds = None
        if waiting := self._waiting():
            seconds = max((waiting[0][0] - self._clock()).total_seconds(), 0.05)
        try:
            async with asyncio.timeout(seconds):
                await self._armed.wait()
        except TimeoutError:
            pass

    async def _visit(self, batch: BatchRecord) -> None:
        try:
            await self._look(batch)
        except SessionNotFound:
            log.debug("the session of %s has ended", batch.id)
        except CbemailError as error:
            log.info("%s cannot be reconciled just now: %s", batch.id, error.code)
            self._arm(batch, self._clock() + self._policy.last)
        except Exception:
            log.exception("the reconciling of %s failed", batch.id)
            self._arm(batch, self._clock() + self._policy.last)
        finally:
            self._visited.discard(batch.session_id)
            self._armed.set()  # there is room for another

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
        deadline = asyncio.get_running_loop().time() + self._policy.visit_seconds
        for row in rows:
            age = self._clock() - (row.finished_at or self._clock())
            if age < self._policy.first:
                self._arm(batch, self._clock() + self._policy.first - age)
            elif again or age < _GIVEN_UP + self._policy.last:
                provable = row.message_id not in shared
                found = await self._ask(batch, row, deadline) if provable else False
                await self._decide(batch, row, age, found=found)

    async def _ask(self, batch: BatchRecord, row: MessageRow, deadline: float) -> bool | None:
        """Whether the Sent folder has the message. None: the mailbox does not say, or has taken all its time."""
        if asyncio.get_running_loop().time() >= deadline:
            return None
        try:
            async with asyncio.timeout_at(deadline):
                return await self._sent.holds(batch.session_id, row.message_id)
        except SessionNotFound:
            raise
        except (CbemailError, TimeoutError) as error:
            log.info("a Sent folder cannot be asked just now: %s", type(error).__name__)
            return None

    async def _decide(
        self, batch: BatchRecord, row: MessageRow, age: timedelta, *, found: bool | None
    ) -> None:
        if found is None and age < _GIVEN_UP:
            self._arm(batch, self._clock() + self._policy.last)
        elif found:
            await self._record(batch, row, SendState.SENT, _FOUND)
        elif age < self._policy.last:
            self._arm(batch, self._clock() + self._policy.last - age)
        elif batch.options.on_uncertain is OnUncertain.RESEND:
            await self._record(batch, row, SendState.QUEUED, EARLIER_TRY)

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
