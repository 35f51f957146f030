"""Keeps a courier on every batch that has something to send, and all of them off each other's feet.

The supervisor of the outbox: a courier that fails by a defect of ours is started again, after a pause that doubles; a
batch that is paused for a time goes on by itself; what concerns an account concerns all of its batches.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.errors import CbemailError, CredentialsStale
from cbemail.ids import SessionId
from cbemail.outbox.batch import Rejection
from cbemail.outbox.batch_states import BatchStates
from cbemail.outbox.chores import Chores, tolerantly
from cbemail.outbox.courier import Courier
from cbemail.outbox.filing import Filing
from cbemail.outbox.journal import Journal
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.reconcile import ReconcilePolicy, Reconciler
from cbemail.outbox.retry import RetryPolicy
from cbemail.outbox.room import Room
from cbemail.outbox.sealing import BatchKey
from cbemail.outbox.seals import Seals
from cbemail.outbox.sender import Orders, Tools
from cbemail.outbox.sent import SentFolder
from cbemail.outbox.upstreams import Upstreams
from cbemail.outbox.workshop import Job, Workshop
from cbemail.sessions.registry import Sessions
from cbemail.sessions.vault import Vault
from cbemail.smtp.circuit import CircuitPolicy
from cbemail.smtp.connection import SubmissionConnection
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batch_records import BatchRecord, BatchState, MessageEvent
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SendState

log = logging.getLogger(__name__)

BODIES_OCTETS = 64 * 1024 * 1024  # of large messages in memory, over all batches
LONGEST_SLEEP = 60.0  # seconds: the wall clock may be set meanwhile
CREDENTIALS_STALE = "credentials-stale"  # a pause until there are others
KEY_LOST = "key-lost"  # a pause until there is that key again
_SCOPED = ("content-refused",)  # pauses of one batch; the others that couriers ask for are of all


class Policy(Struct, frozen=True):
    """Times that tests shorten."""

    retry: RetryPolicy = RetryPolicy()
    reconcile: ReconcilePolicy = ReconcilePolicy()
    circuit: CircuitPolicy = CircuitPolicy()
    restart_seconds: float = 1.0  # before a failed courier is started again; doubles


class Census(Struct, frozen=True):
    """Of the batches that are not over: how many there are in each state, and how many of their messages."""

    batches: Counter[BatchState]
    messages: Counter[SendState]


class Dispatch:
    """The batches that are not over, each with a task that carries it."""

    def __init__(
        self,
        repository: BatchRepository,
        sessions: Sessions,
        vault: Vault,
        smtp: SmtpPool,
        upstreams: Upstreams,
        sent: SentFolder,
        clock: Clock,
        policy: Policy,
    ) -> None:
        self._repository = repository
        self._sessions = sessions
        self._states = BatchStates(repository, clock)
        self._seals = Seals(repository, vault)
        self._upstreams = upstreams
        self._clock = clock
        self._policy = policy
        self.journal = Journal(repository)
        self._tools = Tools(
            repository, self.journal, smtp, Room(BODIES_OCTETS), clock, policy.retry
        )
        self._lives: dict[str, LiveBatch] = {}
        self._couriers: dict[int, Courier] = {}
        self._carriers: set[asyncio.Task[None]] = set()
        self._chores = Chores()
        self._filing = Filing(sent, self._tools.room)
        self._reconciler = Reconciler(repository, sent, self.find, clock, policy.reconcile)
        self._reconciling: set[asyncio.Task[None]] = set()  # the one, once started
        self.draining = asyncio.Event()
        self.troubled: set[str] = set()  # batches whose courier failed, and is to be started again

    # ---- the whole

    async def start(self) -> int:
        """Take up where the last process ended; says how many messages are uncertain because of how it ended."""
        uncertain = await self._repository.recover(self._clock())
        records = await self._repository.load_unfinished()
        counts = await self._repository.counts([record.number for record in records])
        rejections = await self._seals.rejections(records)
        for record in records:
            live = self.take_up(record, counts[record.number], rejections[record.number])
            if record.paused_reason == KEY_LOST and self._seals.opens(record):
                self._chores.begin(self._states.resume(live))
        for record in await self._repository.load_undecided():
            self._reconciler.arm(record)
        self._reconciling = {asyncio.create_task(self._reconciler.run())}
        return uncertain

    def begin_drain(self) -> None:
        """Begin nothing more. What is under way goes on."""
        self.draining.set()
        for courier in self._couriers.values():
            courier.stop()
        for live in self._lives.values():
            live.nudged.set()

    def break_off(self) -> None:
        """Carry nothing to its end."""
        for courier in self._couriers.values():
            courier.abort()

    async def drain(self, seconds: float) -> None:
        """Let what is under way end, within so many seconds; then break it off. All that is known goes to disk."""
        self.begin_drain()
        for task in self._reconciling:
            task.cancel()
        await self._carried(seconds)
        self.break_off()
        tasks = self._carriers | self._chores.tasks | self._filing.tasks | self._reconciling
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            task.cancel()
        await self.journal.flush(2.0)
        await tolerantly(self._repository.fold())  # so that the store is whole without its log

    async def _carried(self, seconds: float) -> None:
        """Until everything that is carried has ended, for so long; and no longer than anything can be written of it."""
        if not self._carriers:
            return
        ended = asyncio.create_task(asyncio.wait(set(self._carriers)))
        failed = asyncio.create_task(self._repository.failed.wait())
        try:
            ends: set[asyncio.Task[Any]] = {ended, failed}
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            failed.cancel()

    # ---- batches

    def lives(self) -> Collection[LiveBatch]:
        """All that are carried."""
        return self._lives.values()

    def find(self, batch_id: str) -> LiveBatch | None:
        return self._lives.get(batch_id)

    def of_session(self, session_id: SessionId) -> list[LiveBatch]:
        return [live for live in self._lives.values() if live.record.session_id == session_id]

    def census(self) -> Census:
        messages: Counter[SendState] = Counter()
        for live in self._lives.values():
            messages.update(live.counts)
        return Census(Counter(live.record.state for live in self._lives.values()), messages)

    def take_up(
        self, record: BatchRecord, counts: dict[SendState, int], rejections: Sequence[Rejection]
    ) -> LiveBatch:
        """Carry this batch from now on, until it ends."""
        live = LiveBatch(record, counts, rejections, self._clock)
        if not self._sessions.exists(record.session_id):  # it ended in this very moment
            live.change(state=BatchState.CANCELLED)
            live.close()
            return live
        self._lives[record.id] = live
        carrier = asyncio.create_task(self._carry(live))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)
        return live

    async def rejections(self, record: BatchRecord) -> list[Rejection]:
        return (await self._seals.rejections([record]))[record.number]

    def key_of(self, record: BatchRecord) -> BatchKey:
        """Raises CredentialsStale: the service has another SECRET_KEY now, and not this batch's behind it."""
        return self._seals.key_of(record)

    def forget_session(self, session_id: SessionId) -> None:
        """The session has ended, and its rows with it: nothing more of it goes out."""
        for live in self.of_session(session_id):
            self._drop(live)
            live.change(state=BatchState.CANCELLED)
            live.close()
            live.nudged.set()
        self._upstreams.forget(session_id)
        self._filing.forget(session_id)

    def resume_session(self, session_id: SessionId) -> None:
        """The session has new credentials: what waited for them goes on."""
        for live in self.of_session(session_id):
            if live.record.paused_reason == CREDENTIALS_STALE:
                self._chores.begin(self._states.resume(live))

    def _drop(self, live: LiveBatch) -> None:
        self._lives.pop(live.record.id, None)
        self._reconciler.forget(live.number)

    # ---- one batch

    async def _carry(self, live: LiveBatch) -> None:
        """From now to its end, or to the end of the service."""
        pause = self._policy.restart_seconds
        while not live.ended and not self.draining.is_set():
            try:
                await self._step(live)
            except CbemailError as error:
                log.warning("%s cannot be carried just now: %s", live.record.id, error.code)
            except Exception:
                log.exception("the courier of %s failed, and is started again", live.record.id)
                self.troubled.add(live.record.id)
            else:
                pause = self._policy.restart_seconds
                self.troubled.discard(live.record.id)
                continue
            await self._sleep(live, pause)
            pause = min(pause * 2, LONGEST_SLEEP)
        self.troubled.discard(live.record.id)
        if live.record.state is BatchState.CANCELLED:
            await tolerantly(self._cancel_rest(live))
        if live.ended:
            self._lives.pop(live.record.id, None)
            live.close()

    async def _cancel_rest(self, live: LiveBatch) -> None:
        """What was put back while the batch was being cancelled."""
        waiting = (SendState.QUEUED, SendState.DEFERRED)
        now = self._clock()
        await self._repository.move_messages(
            live.number, states=waiting, to=SendState.CANCELLED, now=now
        )

    async def _step(self, live: LiveBatch) -> None:
        """One thing that is to be done for a batch in its state, or the wait for it."""
        record = live.record
        match record.state:
            case BatchState.SCHEDULED:
                seconds = self._seconds_until(record.send_at)
                if seconds > 0:
                    await self._sleep(live, seconds)
                else:
                    await self._states.advance(live, BatchState.SCHEDULED, BatchState.QUEUED)
            case BatchState.PAUSED:
                until = record.paused_until
                seconds = self._seconds_until(until) if until else LONGEST_SLEEP
                if seconds > 0:
                    await self._sleep(live, seconds)
                else:
                    await self._states.resume(live)
            case BatchState.QUEUED:
                await self._states.advance(live, BatchState.QUEUED, BatchState.RUNNING)
            case BatchState.RUNNING:
                await self._run(live)
            case _:
                return

    def _seconds_until(self, moment: datetime | None) -> float:
        return (moment - self._clock()).total_seconds() if moment is not None else 0.0

    async def _run(self, live: LiveBatch) -> None:
        try:
            key = self.key_of(live.record)
        except CredentialsStale:
            log.error("%s cannot be opened with the present SECRET_KEY", live.record.id)  # noqa: TRY400 - no traceback: nothing more to learn
            async with live.course:
                await self._states.move(
                    live,
                    BatchState.PAUSED,
                    only_from={BatchState.QUEUED, BatchState.RUNNING},
                    paused_reason=KEY_LOST,
                )
            return
        courier = Courier(
            live,
            Workshop(self._repository, live.record, key),
            await self._upstreams.of(live.record.session_id),
            self._tools,
            Orders(
                halt=lambda reason, pause: self._halt(live, reason, pause),
                refused=lambda connection: self._refused(live, connection),
                settled=lambda job, events: self._settled(live, job, events),
            ),
        )
        self._couriers[live.number] = courier
        try:
            await courier.run()
        finally:
            del self._couriers[live.number]
        if await self._states.complete(live):
            return
        if live.may_send and live.due_at is None:
            await self._sleep(live, LONGEST_SLEEP)  # a message is uncertain, and may be sent again

    async def _sleep(self, live: LiveBatch, seconds: float) -> None:
        """Until the batch is changed, or that time is over; at shutdown both have happened."""
        if self.draining.is_set():
            return
        live.nudged.clear()
        try:
            async with asyncio.timeout(min(max(seconds, 0.01), LONGEST_SLEEP)):
                await live.nudged.wait()
        except TimeoutError:
            pass

    # ---- what couriers tell

    def _halt(self, live: LiveBatch, reason: str, pause: timedelta | None) -> None:
        """Pause a batch, or with the account all that it has; at once here, on disk as soon as may be."""
        until = self._clock() + pause if pause is not None else None
        concerned = [live] if reason in _SCOPED else self.of_session(live.record.session_id)
        for each in concerned:
            if each.may_send:
                each.change(state=BatchState.PAUSED, paused_reason=reason, paused_until=until)
                each.nudged.set()
                self._chores.begin(self._states.keep_pause(each))

    def _refused(self, live: LiveBatch, connection: SubmissionConnection) -> None:
        """The server no longer takes the login of a connection. Where the session has another by now, or an access
        token that can be renewed, that is next."""
        session_id, credentials = live.record.session_id, self._sessions.credentials
        if credentials.is_current(session_id, connection):
            if not credentials.may_renew(session_id):
                self._halt(live, CREDENTIALS_STALE, None)
            self._chores.begin(credentials.refused(session_id, connection))

    async def _settled(self, live: LiveBatch, job: Job, events: Sequence[MessageEvent]) -> None:
        states = {event.state for event in events}
        if SendState.UNCERTAIN in states:
            self._reconciler.arm(live.record)
        if SendState.SENT in states:
            await self._filing.file(live, job)
