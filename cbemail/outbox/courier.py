"""Carries one batch to the mail server: claims what is due, makes each message, hands it over, records what was said.

The order of events is what makes a crash harmless. A row's intent is on disk before its first octet leaves; its
outcome is written with the intents of the messages after the next one, in one transaction. So a connection never has
more than four messages that a restart could not tell the fate of, and no message waits for the disk.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta

from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import (
    CbemailError,
    CredentialsStale,
    InvalidRequest,
    Overloaded,
    SessionNotFound,
    UpstreamError,
)
from cbemail.outbox.journal import Journal
from cbemail.outbox.live import Hold, LiveBatch
from cbemail.outbox.merge import MergeError
from cbemail.outbox.pacing import TokenBucket, Upstream
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
from cbemail.outbox.workshop import Job, Workshop
from cbemail.smtp.connection import SubmissionConnection
from cbemail.smtp.pool import SmtpPool
from cbemail.smtp.replies import Phase
from cbemail.store.batch_records import BatchState, MessageEvent, MessageRow
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

log = logging.getLogger(__name__)

CLAIM = 700  # rows a claim: with those left, a thousand in memory at most
LOW = 300  # rows left, when the next claim is worth making
WINDOW = 4  # messages a connection that a restart could not tell the fate of, at most
RECIPIENTS = 50  # of one message in one transaction (RFC 5321 4.5.3.1.8 promises a hundred)
LARGE = (
    1024 * 1024
)  # octets; of such messages a connection has one at a time, and takes room for it
SUSPECT = (
    3  # claims without an outcome: then a row goes alone, since it may be what stops the service
)
POISON = 5  # and then it has failed
CONTENT_REFUSALS = 20  # in a row: the message is the matter, not its recipients
ACCOUNT_PAUSE = timedelta(hours=1)  # limits are told by the day, and often end sooner
RECONNECT_SECONDS = (
    2.0  # after a connection that could not be had; the host's circuit knows when to stop
)
MOST_SECONDS = 60.0  # a courier looks again by then: the wall clock may be set


class Tools(Struct, frozen=True):
    """What every courier shares."""

    repository: BatchRepository
    journal: Journal
    smtp: SmtpPool
    room: Room
    clock: Clock
    retry: RetryPolicy


class Orders(Struct, frozen=True):
    """What a courier tells of: that its batch, or its account, has to wait; and what became of a message."""

    halt: Callable[[str, timedelta | None], None]
    settled: Callable[[Job, Sequence[MessageEvent]], Awaitable[None]]


class Courier:
    """Runs until nothing of its batch is left to send, or it is told to stop. What it holds then, it puts back."""

    def __init__(
        self,
        batch: LiveBatch,
        workshop: Workshop,
        upstream: Upstream,
        tools: Tools,
        orders: Orders,
    ) -> None:
        self._batch = batch
        self._workshop = workshop
        self._upstream = upstream
        self._tools = tools
        self._orders = orders
        per_minute = batch.record.options.rate_per_minute
        self._bucket = TokenBucket(per_minute) if per_minute is not None else None
        self._ready: deque[MessageRow] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._refusals = 0
        self._loop = asyncio.get_running_loop()

    # ---- from outside

    def stop(self) -> None:
        """Begin nothing more. What is under way is carried to its end."""
        self._stopping = True
        self._batch.nudged.set()

    def abort(self) -> None:
        """Break off what is under way: what had not come to its final dot was not sent."""
        self.stop()
        for sender in self._senders:
            sender.cancel()

    async def run(self) -> None:
        try:
            while self._goes_on:
                self._batch.nudged.clear()
                await self._refill()
                self._keep_to_the_day()
                wait = self._wait()
                if wait <= 0 and self._ready:
                    self._engage()
                if self._nothing_left():
                    break
                await self._nudged(wait)
        finally:
            self._stopping = True
            if self._senders:
                await asyncio.wait(self._senders)
            await self._put_back_ready()

    # ---- the feeding of the senders

    def _nothing_left(self) -> bool:
        return not (self._ready or self._senders) and self._batch.due_at is None

    async def _refill(self) -> None:
        """Claim more where little is left and something is due; find out when the next will be, where nothing is."""
        batch, repository = self._batch, self._tools.repository
        if len(self._ready) > LOW or not self._is_due():
            return
        now = self._tools.clock()
        rows = await repository.claim(
            batch.number, now=now, held=list(batch.held), limit=CLAIM, suspects=SUSPECT
        )
        batch.take(rows)
        for row in rows:
            if row.claims > POISON:
                self._fail(row, "The service stopped each time it came to this message.")
            else:
                self._ready.append(row)
        if len(rows) < CLAIM and not (rows and rows[0].claims >= SUSPECT):
            batch.due_at = None  # before asking: what is deferred meanwhile sets it anew
            next_due = await repository.next_due(batch.number, held=list(batch.held))
            if next_due is not None:
                batch.expect(next_due)

    def _is_due(self) -> bool:
        due_at = self._batch.due_at
        return due_at is not None and due_at <= self._tools.clock()

    def _wait(self) -> float:
        """Seconds until something may be sent; 0 now. What holds the batch up is shown with it."""
        now = self._loop.time()
        held = self._upstream.held(now)
        broken = self._tools.smtp.retry_in(self._batch.record.session_id) or 0.0
        self._show_hold(broken)
        if self._ready:
            bucket = self._bucket.delay(now) if self._bucket is not None else 0.0
            return max(held, broken, bucket, self._upstream.delay(now))
        due_at = self._batch.due_at
        if due_at is None:
            return MOST_SECONDS
        seconds = (due_at - self._tools.clock()).total_seconds()
        return min(max(seconds, 0.0), MOST_SECONDS)

    def _keep_to_the_day(self) -> None:
        """What the provider allows in a day is known: its refusal would cost the account more than the wait."""
        seconds = self._upstream.day_delay(self._loop.time())
        if seconds > 0 and self._ready:
            self._orders.halt("account-limit", timedelta(seconds=round(seconds)))

    def _show_hold(self, seconds: float) -> None:
        if seconds > 0:
            until = self._tools.clock() + timedelta(seconds=round(seconds))
            self._batch.hold = Hold("upstream-unavailable", until)
        else:
            self._batch.hold = None

    async def _nudged(self, seconds: float) -> None:
        """Until something changes, or that time is over."""
        busy = bool(self._senders) and bool(self._ready)
        timeout = None if busy and seconds <= 0 else max(seconds, 0.01)
        try:
            async with asyncio.timeout(timeout):
                await self._batch.nudged.wait()
        except TimeoutError:
            pass

    def _engage(self) -> None:
        """As many senders as the server takes and there is work for."""
        paced = self._bucket is not None or self._upstream.is_paced
        useful = 1 if paced else -(-len(self._ready) // WINDOW)
        wanted = min(self._upstream.limit, useful) - len(self._senders)
        for _ in range(wanted):
            sender = asyncio.create_task(self._send())
            self._senders.add(sender)
            sender.add_done_callback(self._sender_done)

    def _sender_done(self, sender: "asyncio.Task[None]") -> None:
        self._senders.discard(sender)
        self._batch.nudged.set()
        if not sender.cancelled() and (error := sender.exception()) is not None:
            log.error("a sender of %s failed", self._batch.record.id, exc_info=error)
            self._upstream.hold(self._loop.time(), 5.0)

    async def _put_back_ready(self) -> None:
        rows = list(self._ready)
        self._ready.clear()
        await self._tools.journal.post(self._batch, [self._returned(row) for row in rows])

    # ---- one sender: one connection at a time

    async def _send(self) -> None:
        session_id = self._batch.record.session_id
        while self._may_begin():
            try:
                async with self._tools.smtp.lease(session_id, patience=None) as connection:
                    await self._deliver(connection)
            except (CredentialsStale, SessionNotFound):
                self._orders.halt("credentials-stale", None)
                return
            except Overloaded:  # we are shutting down
                return
            except CbemailError as error:
                log.info("%s waits: %s", self._batch.record.id, error.code)
                if isinstance(error, UpstreamError) and error.command == "AUTH":
                    self._upstream.throttled(self._loop.time())  # logins are not to be hammered
                seconds = min(error.retry_after or RECONNECT_SECONDS, RECONNECT_SECONDS)
                self._upstream.hold(self._loop.time(), seconds)
                return

    @property
    def _goes_on(self) -> bool:
        """Neither the service is stopping nor the batch paused or cancelled."""
        return not self._stopping and self._batch.may_send

    def _may_begin(self) -> bool:
        return (
            bool(self._ready) and not self._stopping and self._batch.may_send and self._wait() <= 0
        )

    async def _deliver(self, connection: SubmissionConnection) -> None:
        """Messages over one connection, until it has done its share or nothing more may go.

        ``intended`` are on disk as being sent, or on their way there, and not handed over yet. The intent of a fifth
        message is written in one with the outcome of the first: more than four are never open at a time.
        """
        post, batch = self._tools.journal.post, self._batch
        settled: list[MessageEvent] = []
        intended: deque[tuple[Job, asyncio.Future[None]]] = deque()
        written = post(batch, [])
        try:
            while True:
                ahead = await self._take(connection, [job for job, _ in intended])
                events = [*settled, *_intents(batch.number, ahead)]
                settled.clear()
                written = post(batch, events)
                intended.extend((job, written) for job in ahead)
                if not intended or not connection.is_usable() or not self._goes_on:
                    break
                await intended[0][1]
                job, _ = intended.popleft()
                await self._submit(connection, job, settled)
        finally:
            for job, _ in intended:
                settled += [self._returned(row) for row in job.rows]
                self._tools.room.give(job.room)
            await (post(batch, settled) if settled else written)

    async def _submit(
        self, connection: SubmissionConnection, job: Job, settled: list[MessageEvent]
    ) -> None:
        """Hand one message over, and add what became of it to ``settled``, whatever happens."""
        if not self._goes_on or not connection.is_usable():
            settled += [self._returned(row) for row in job.rows]
            self._tools.room.give(job.room)
            return
        was_idle = connection.sent > 0
        terms = self._terms()
        try:
            outcome = await connection.submit(job.envelope)
        except asyncio.CancelledError:
            settled += self._broken_off(terms, job, connection.phase)
            raise
        except ValueError:
            log.exception("a message of %s cannot be sent", self._batch.record.id)
            settled += [failed(terms, row, "The message cannot be sent.") for row in job.rows]
            return
        finally:
            self._tools.room.give(job.room)
        ruling = rule(terms, job.rows, job.envelope.recipients, outcome, was_idle=was_idle)
        settled += self._unless_cancelled(ruling.events)
        self._heed(ruling)
        await self._orders.settled(job, ruling.events)

    def _broken_off(self, terms: Terms, job: Job, phase: Phase) -> list[MessageEvent]:
        """We gave up in the middle: behind the final dot nobody knows."""
        if phase is Phase.FINAL:
            return [uncertain(terms, row) for row in job.rows]
        return [self._returned(row) for row in job.rows]

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

    # ---- the making of messages

    async def _take(self, connection: SubmissionConnection, waiting: Sequence[Job]) -> list[Job]:
        """The next messages, made: as many as fill the window, or as there are, now, for this connection. Behind a
        large one none, until it has gone."""
        taken: list[Job] = []
        while self._fits(connection, [*waiting, *taken]):
            rows = self._next_rows()
            try:
                job = await self._make(rows)
            except BaseException:
                for each in taken:
                    self._tools.room.give(each.room)
                self._ready.extend(row for each in taken for row in each.rows)
                self._ready.extend(rows)
                raise
            if job is not None:
                self._count()
                taken.append(job)
        return taken

    def _fits(self, connection: SubmissionConnection, waiting: Sequence[Job]) -> bool:
        return (
            len(waiting) < WINDOW
            and self._may_begin()
            and connection.is_usable()
            and connection.sent + len(waiting) < self._tools.smtp.messages_per_connection
            and not any(job.room for job in waiting)
            and not self._tools.smtp.others_wait(self._batch.record.session_id)
        )

    async def _make(self, rows: list[MessageRow]) -> Job | None:
        """The transaction for these rows, with room for it; None, and they have failed, where it cannot be made."""
        octets = await self._workshop.octets(rows[0].content)
        room = octets if octets >= LARGE else 0
        await self._tools.room.take(room)
        try:
            job = await self._workshop.make(rows, self._tools.clock())
        except (MergeError, SealError, InvalidRequest):
            self._tools.room.give(room)
            for row in rows:
                self._fail(row, "The message cannot be made from what is stored of it.")
            return None
        except BaseException:
            self._tools.room.give(room)
            raise
        return structs.replace(job, room=room)

    def _next_rows(self) -> list[MessageRow]:
        """The next row, and those of the same message that stand behind it."""
        ready = self._ready
        rows = [ready.popleft()]
        while (
            ready
            and len(rows) < RECIPIENTS
            and (ready[0].position, ready[0].content) == (rows[0].position, rows[0].content)
        ):
            rows.append(ready.popleft())
        if len(ready) <= LOW:
            self._batch.nudged.set()
        return rows

    def _count(self) -> None:
        """One message more, for those who pace."""
        now = self._loop.time()
        if self._bucket is not None:
            self._bucket.take(now)
        self._upstream.take(now)

    def _fail(self, row: MessageRow, detail: str) -> None:
        self._tools.journal.post(self._batch, [failed(self._terms(), row, detail)])

    # ---- what is learnt from outcomes

    def _heed(self, ruling: Ruling) -> None:
        now = self._loop.time()
        self._refusals = self._refusals + 1 if ruling.notice is Notice.CONTENT else 0
        match ruling.notice:
            case Notice.GOOD:
                if self._upstream.succeeded(now):
                    self._batch.nudged.set()  # one more connection may be had
            case Notice.THROTTLED:
                self._upstream.throttled(now)
            case Notice.ACCOUNT:
                self._orders.halt("account-limit", ACCOUNT_PAUSE)
            case Notice.CREDENTIALS:
                self._orders.halt("credentials-stale", None)
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

    def _returned(self, row: MessageRow) -> MessageEvent:
        """A row that was claimed and not tried: as it was, or cancelled with its batch."""
        [event] = self._unless_cancelled([put_back(self._batch.number, row)])
        return event


def _intents(batch: int, jobs: Iterable[Job]) -> list[MessageEvent]:
    return [intent(batch, row) for job in jobs for row in job.rows]
