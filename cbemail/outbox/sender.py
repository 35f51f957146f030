"""One connection's share of a batch: makes messages, hands them over one by one, and has each step on disk in time."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta

from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import CbemailError, InvalidRequest
from cbemail.outbox.journal import Journal
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.merge import MergeError
from cbemail.outbox.pacing import Upstream
from cbemail.outbox.retry import RetryPolicy
from cbemail.outbox.room import Room
from cbemail.outbox.rulings import (
    Notice,
    Ruling,
    Terms,
    failed,
    intent,
    put_back,
    rule,
    uncertain,
)
from cbemail.outbox.sealing import SealError
from cbemail.outbox.supply import Supply
from cbemail.outbox.workshop import Job, Workshop
from cbemail.smtp.connection import SubmissionConnection
from cbemail.smtp.outcome import Interruption, NotSent, Outcome, Refused
from cbemail.smtp.pool import SmtpPool
from cbemail.smtp.replies import Phase, Verdict
from cbemail.store.batch_records import BatchState, MessageEvent, MessageRow
from cbemail.store.batches import BatchRepository
from cbemail.store.database import StatementFailed
from cbemail.store.records import SendState

log = logging.getLogger(__name__)

WINDOW = 4  # messages a connection that a restart could not tell the fate of, at most
LARGE = 1 << 20  # octets; of such messages a connection has one at a time, and takes room for it
CONTENT_REFUSALS = 20  # in a row: the message is the matter, not its recipients
BROKEN_SECONDS = 1.0  # after a fresh connection was cut off; twice in a row counts as a throttle
ACCOUNT_PAUSE = timedelta(hours=1)  # limits are told by the day, and often end sooner


class Tools(Struct, frozen=True):
    """What the senders of all batches share."""

    repository: BatchRepository
    journal: Journal
    smtp: SmtpPool
    room: Room
    clock: Clock
    retry: RetryPolicy


class Orders(Struct, frozen=True):
    """What a sender tells of: that its batch, or its account, has to wait; that the login of a connection is refused;
    and what became of a message."""

    halt: Callable[[str, timedelta | None], None]
    refused: Callable[[SubmissionConnection], None]
    settled: Callable[[Job, Sequence[MessageEvent]], Awaitable[None]]


class Sender:
    """For all connections of one batch: `deliver` runs once for each, side by side."""

    def __init__(
        self,
        batch: LiveBatch,
        supply: Supply,
        workshop: Workshop,
        upstream: Upstream,
        tools: Tools,
        orders: Orders,
    ) -> None:
        self._batch = batch
        self._supply = supply
        self._workshop = workshop
        self._upstream = upstream
        self._tools = tools
        self._orders = orders
        self._counting = asyncio.Lock()
        self.is_making = False  # it has made messages: what is claimed is made next
        self._refusals = 0
        self._broken = 0
        self._now = asyncio.get_running_loop().time

    async def deliver(self, connection: SubmissionConnection) -> None:
        """Messages over one connection, until it has done its share or nothing more may go.

        ``intended`` are on disk as being sent, or on their way there, and not handed over yet. The intent of a fifth
        message is written in one with the outcome of the first: more than four are never open at a time.
        """
        post, batch = self._tools.journal.post, self._batch
        settled: list[MessageEvent] = []
        intended: deque[tuple[Job, asyncio.Future[None]]] = deque()
        sent_before = connection.sent
        written = post(batch, [])
        done: tuple[Job, Sequence[MessageEvent]] | None = None
        try:
            while True:
                begun = connection.sent > sent_before
                ahead = await self._take(connection, [job for job, _ in intended], begun=begun)
                events = [*settled, *_intents(batch.number, ahead)]
                settled.clear()
                written = post(batch, events)
                intended.extend((job, written) for job in ahead)
                if done is not None:
                    await self._orders.settled(*done)
                if not intended or not connection.goes_on() or not self._supply.goes_on:
                    break
                await self._tools.journal.written(intended[0][1])
                job, _ = intended.popleft()
                if intended:  # is on disk, then, by the time this one has gone
                    self._tools.journal.hurry(intended[0][1])
                done = await self._submit(connection, job, self._following(intended), settled)
        finally:
            for job, _ in intended:
                self._supply.take_back(job.rows)
                settled += self._put_back(job.rows)
                self._tools.room.give(job.room)
            await self._tools.journal.written(post(batch, settled) if settled else written)

    def give_back(self, rows: Iterable[MessageRow]) -> "asyncio.Future[None]":
        """Rows that were claimed and are not to be tried now: as they were, or cancelled with their batch."""
        return self._tools.journal.post(self._batch, self._put_back(rows))

    def fail(self, row: MessageRow, detail: str) -> None:
        """A row that is not to be tried again, for a reason of ours."""
        self._tools.journal.post(self._batch, [failed(self._terms(), row, detail)])

    # ---- the making of messages

    async def _take(
        self, connection: SubmissionConnection, waiting: Sequence[Job], *, begun: bool
    ) -> list[Job]:
        """The next messages, made: as many as fill the window, or as there are, now, for this connection. Behind a
        large one none, until it has gone."""
        taken: list[Job] = []
        while self._fits(connection, [*waiting, *taken], begun=begun):
            rows: list[MessageRow] = []
            try:
                if self._supply.uncounted or self._counting.locked():
                    await self.count_claims()
                    continue  # others may have taken what there was
                rows = self._supply.take_message()
                job = await self._make(rows)
            except BaseException:
                for each in taken:
                    self._tools.room.give(each.room)
                for unsent in filter(None, (*(each.rows for each in taken), rows)):
                    self._supply.take_back(unsent)
                    self._supply.add(unsent)
                raise
            self.is_making = True
            if job is not None:
                taken.append(job)
        return taken

    async def count_claims(self) -> None:
        """Have it on disk that what is claimed is about to be made. Not before that is true: a process that dies while
        it waits for a connection, or for its turn, says nothing of the messages."""
        async with self._counting:
            rows, self._supply.uncounted = self._supply.uncounted, []
            if not rows:
                return
            try:
                await self._tools.repository.count_claims(self._batch.number, rows)
            except BaseException:
                self._supply.uncounted += rows
                raise

    def _fits(
        self, connection: SubmissionConnection, waiting: Sequence[Job], *, begun: bool
    ) -> bool:
        """``begun``: it has carried something in this turn; whoever has the turn does so before others have theirs."""
        return (
            len(waiting) < WINDOW
            and self._supply.may_begin
            and connection.goes_on()
            and connection.sent + len(waiting) < self._tools.smtp.messages_per_connection
            and not any(job.room for job in waiting)
            and (not begun or not self._tools.smtp.others_wait(self._batch.record.session_id))
        )

    async def _make(self, rows: list[MessageRow]) -> Job | None:
        """The transaction for these rows, with room for it; None, and they have failed, where it cannot be made."""
        octets = await self._workshop.octets(rows[0].content)
        room = octets if octets >= LARGE else 0
        if room:
            await self._tools.room.take(room)
        try:
            job = await self._workshop.make(rows, self._tools.clock())
        except BaseException as exc:
            self._tools.room.give(room)
            if not _is_of_the_message(exc):
                raise
            if not isinstance(exc, MergeError | InvalidRequest):
                log.exception("a message of %s cannot be made", self._batch.record.id)
            for row in rows:
                self.fail(row, "The message cannot be made from what is stored of it.")
            return None
        return structs.replace(job, room=room)

    # ---- one message

    async def _submit(
        self,
        connection: SubmissionConnection,
        job: Job,
        following: Job | None,
        settled: list[MessageEvent],
    ) -> tuple[Job, Sequence[MessageEvent]] | None:
        """Hand one message over, and add what became of it to ``settled``, whatever happens. What the server said of it
        is told once it is on its way to the disk."""
        was_idle = connection.sent > 0
        begun = connection.has_begun(job.envelope)
        try:
            if not self._supply.goes_on:
                self._supply.take_back(job.rows)
                settled += self._put_back(job.rows)
                return None
            outcome = await connection.submit(
                job.envelope, following.envelope if following is not None else None
            )
        except asyncio.CancelledError:
            settled += self._broken_off(self._terms(), job, connection.phase)
            raise
        except Exception:
            # A defect of ours, which must not take other messages along, nor be met again and again.
            log.exception("a message of %s could not be handed over", self._batch.record.id)
            settled += self._broken_off(self._terms(), job, connection.phase, again=False)
            connection.abort()
            return None
        finally:
            self._tools.room.give(job.room)
        if begun and self._is_early(outcome):
            self._supply.take_back(job.rows)
            settled += self._put_back(job.rows)
            return None
        ruling = rule(self._terms(), job.rows, job.envelope.recipients, outcome, was_idle=was_idle)
        settled += self._unless_cancelled(ruling.events)
        if isinstance(outcome, NotSent):
            self._supply.take_back(job.rows)
        self._heed(ruling, connection)
        return job, ruling.events

    def _following(self, intended: Sequence[tuple[Job, "asyncio.Future[None]"]]) -> Job | None:
        """What may begin together with the message before it: its intent is on disk. Should it not go then, because
        the batch is stopped, the connection is given up, and nothing was sent."""
        if not (intended and self._upstream.early.may_try):
            return None
        job, written = intended[0]
        if not written.done() or written.exception() is not None:
            return None
        self._upstream.early.trying()
        return job

    def _is_early(self, outcome: Outcome) -> bool:
        """Whether what became of a message that was begun with the one before says nothing of the message. RFC 2920
        section 3.1 allows to begin it so, but a server that does not know it may lose commands, or take it ill."""
        match outcome:
            case NotSent(Interruption.ABANDONED, _):
                return False  # ours, or the last words of the one before
            case NotSent(_, Phase.MAIL) | NotSent(Interruption.GARBLED, _):
                self._upstream.early.refused()
                return True
            case Refused(_, Phase.MAIL) if outcome.verdict is Verdict.CREDENTIALS:
                return False  # the login has expired: so would the message be refused by itself
            case Refused(_, Phase.MAIL, reply):
                if reply.code != 421:  # it has had enough of this connection
                    self._upstream.early.refused()
                return True
            case _:
                self._upstream.early.known()
                return False

    def _broken_off(
        self, terms: Terms, job: Job, phase: Phase, *, again: bool = True
    ) -> list[MessageEvent]:
        """We gave up in the middle: behind the final dot nobody knows."""
        if phase is Phase.FINAL:
            return [uncertain(terms, row) for row in job.rows]
        if again:
            return self._put_back(job.rows)
        return [failed(terms, row, "The message could not be handed over.") for row in job.rows]

    def _put_back(self, rows: Iterable[MessageRow]) -> list[MessageEvent]:
        return self._unless_cancelled([put_back(self._batch.number, row) for row in rows])

    def _unless_cancelled(self, events: Sequence[MessageEvent]) -> list[MessageEvent]:
        """What would wait for another try does not, in a batch that was cancelled meanwhile."""
        if self._batch.record.state is not BatchState.CANCELLED:
            return list(events)
        waiting = (SendState.QUEUED, SendState.DEFERRED)
        now = self._tools.clock()
        return [
            structs.replace(event, state=SendState.CANCELLED, next_attempt_at=None, finished_at=now)
            if event.state in waiting
            else event
            for event in events
        ]

    # ---- what is learnt from outcomes

    def _heed(self, ruling: Ruling, connection: SubmissionConnection) -> None:
        self._refusals = self._refusals + 1 if ruling.notice is Notice.CONTENT else 0
        self._broken = self._broken + 1 if ruling.notice is Notice.BROKEN else 0
        match ruling.notice:
            case Notice.GOOD:
                if self._upstream.succeeded(self._now()):
                    self._batch.nudged.set()  # one more connection may be had
            case Notice.BROKEN if self._broken == 1:
                self._upstream.hold(self._now(), BROKEN_SECONDS)
            case Notice.THROTTLED | Notice.BROKEN:
                self._upstream.throttled(self._now())
            case Notice.ACCOUNT:
                self._orders.halt("account-limit", ACCOUNT_PAUSE)
            case Notice.CREDENTIALS:
                connection.abort()  # it would be refused again
                self._orders.refused(connection)
            case Notice.CONTENT if self._refusals >= CONTENT_REFUSALS:
                self._orders.halt("content-refused", None)
            case _:
                pass

    def _terms(self) -> Terms:
        options = self._batch.record.options
        return Terms(
            batch=self._batch.number,
            max_attempts=options.max_attempts,
            now=self._tools.clock(),
            jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries, keeps no secret
            policy=self._tools.retry,
        )


def _intents(batch: int, jobs: Iterable[Job]) -> list[MessageEvent]:
    return [intent(batch, row) for job in jobs for row in job.rows]


def _is_of_the_message(error: BaseException) -> bool:
    """Whether what went wrong in making a message will go wrong again: else it is the store, or a cancellation."""
    if isinstance(error, MergeError | SealError | InvalidRequest):
        return True
    of_us = (CbemailError, StatementFailed, MemoryError)
    return isinstance(error, Exception) and not isinstance(error, of_us)
