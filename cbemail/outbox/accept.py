"""Accepting a batch: every recipient is looked at, all of it is put on disk, and only then does it exist.

Rows are written as they are read, into a batch that is not published yet: nobody sees it, nobody sends it, and a restart
throws it away. One last transaction publishes it, together with its Idempotency-Key and the answer that goes with that.
A process that dies before it has accepted nothing; one that dies after it answers the same key with the same batch.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from datetime import datetime

from anyio import CancelScope, move_on_after
from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import CbemailError, Overloaded
from cbemail.ids import SessionId, new_batch_id, new_outbox_id
from cbemail.outbox.backlog import Backlog
from cbemail.outbox.batch import BatchView, Counts, Rejection
from cbemail.outbox.content import MessageTemplate
from cbemail.outbox.dispatch import Dispatch
from cbemail.outbox.idempotency import IdempotencyKey, SealedAnswers, still_running
from cbemail.outbox.live import view_of
from cbemail.outbox.merge import Merge, RenderedMessage
from cbemail.outbox.recipients import Entries
from cbemail.outbox.sealing import BatchKey
from cbemail.outbox.sieve import Fit, Sieve, recipient_of
from cbemail.outbox.staging import Staging, content_octets
from cbemail.outbox.views import counts_of
from cbemail.sessions.vault import Vault
from cbemail.store.batch_records import (
    MAX_RECIPIENTS,
    BatchKind,
    BatchOptions,
    BatchRecord,
    BatchState,
)
from cbemail.store.records import IdempotencyRecord, SendState, StoredResponse
from cbemail.store.repository import Repository
from cbemail.store.staged_batches import StagedBatches
from cbemail.turns import off_the_loop

log = logging.getLogger(__name__)

AT_ONCE = 4  # batches; each remembers the addresses it has seen, 60 MB at most
PREVIEWS = 5
_TOKEN_OCTETS = 12
_DISCARD_SECONDS = 5.0

_Claim = tuple[SessionId, str, str]  # session, operation, key
Render = Callable[[BatchView], StoredResponse]  # how the API answers a batch


class NewBatch(Struct, frozen=True):
    """What a client wants sent. With a ``template`` the entries are recipients, without one they are messages."""

    session_id: SessionId
    kind: BatchKind
    name: str | None
    options: BatchOptions
    send_at: datetime | None
    template: MessageTemplate | None
    entries: Entries
    reject_invalid: bool
    dedupe: bool


class DryRun(Struct, frozen=True):
    """What accepting a batch would come to, with every rejection, and its first messages."""

    counts: Counts
    rejected: list[Rejection]
    messages: list[RenderedMessage]


class Acceptance:
    """Takes batches in, each in a task of its own, which a client that hangs up does not cancel."""

    def __init__(
        self,
        staged: StagedBatches,
        repository: Repository,
        dispatch: Dispatch,
        backlog: Backlog,
        vault: Vault,
        clock: Clock,
    ) -> None:
        self._staged = staged
        self._repository = repository
        self._dispatch = dispatch
        self._backlog = backlog
        self._vault = vault
        self._answers = SealedAnswers(vault)
        self._clock = clock
        self._running: dict[asyncio.Task[BatchView | StoredResponse], CancelScope] = {}
        self._claims: set[_Claim] = set()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._draining = False

    async def accept(
        self, batch: NewBatch, key: IdempotencyKey | None, render: Render
    ) -> BatchView | StoredResponse:
        """Put a batch on disk and begin to send it; or with a key that was used before, say what was said then.

        Returns when that is done, even to a caller who is cancelled: what the entries are read from must not be taken
        away while they are.

        Raises:
            InvalidRequest: a value is wrong, nobody can be sent to, or ``reject_invalid`` and somebody cannot.
            PayloadTooLarge: it would take too much room.
            IdempotencyConflict, IdempotencyMismatch: the key is in use, or was used for another request.
            RateLimited: the session has too much queued.
            SessionNotFound, Overloaded: nothing was accepted.
        """
        if self._draining:
            raise _stopping()
        scope = CancelScope()
        task = asyncio.create_task(self._run(batch, key, render, scope))
        self._running[task] = scope
        task.add_done_callback(self._running.pop)
        with CancelScope(shield=True):
            await asyncio.wait({task})
        return task.result()

    async def dry_run(self, batch: NewBatch) -> DryRun:
        """All that `accept` would find out, and nothing accepted. Raises InvalidRequest for what is wrong with the list
        or the template."""
        merge = await _merge_of(batch)
        sieve = Sieve(batch.entries, merge, dedupe=batch.dedupe, keep=MAX_RECIPIENTS)
        messages: list[RenderedMessage] = []
        async with self._turn_of(batch), aclosing(sieve.pieces()) as pieces:
            async for piece in pieces:
                for each in piece:
                    if isinstance(each, Fit) and len(messages) < PREVIEWS:
                        messages += await _preview(each, merge)
        counts = Counts(total=sieve.fit + sieve.unfit, queued=sieve.fit, rejected=sieve.unfit)
        return DryRun(counts, sieve.rejections, messages)

    async def replay(self, session_id: SessionId, key: IdempotencyKey) -> StoredResponse | None:
        """What was answered to ``key``; None where it is new. Raises IdempotencyConflict, IdempotencyMismatch."""
        if _claim(session_id, key) in self._claims:
            raise still_running()
        known = await self._repository.find_idempotent(session_id, key.operation, key.key)
        return None if known is None else self._answer_again(known, key)

    async def drain(self, seconds: float) -> None:
        """Accept nothing more. What is being accepted has so long to be on disk; the rest is broken off, and its callers
        hear of it."""
        self._draining = True
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        for scope in self._running.values():
            scope.cancel()
        if self._running:
            await asyncio.wait(self._running)

    # ---- one batch

    async def _run(
        self, batch: NewBatch, key: IdempotencyKey | None, render: Render, scope: CancelScope
    ) -> BatchView | StoredResponse:
        with scope:
            if key is not None:
                answered = await self.replay(batch.session_id, key)
                if answered is not None:
                    return answered
            async with self._claimed(batch.session_id, key), self._turn_of(batch):
                return await self._accept(batch, key, render)
        raise _stopping()

    async def _accept(
        self, batch: NewBatch, key: IdempotencyKey | None, render: Render
    ) -> BatchView | StoredResponse:
        self._backlog.require_room(batch.session_id, batch.kind)
        merge = await _merge_of(batch)
        if batch.reject_invalid:
            await _require_all(batch, merge)
        sieve = Sieve(batch.entries, merge, dedupe=batch.dedupe)
        secret = BatchKey.new()
        record = await self._begin(batch, secret)
        try:
            await Staging(self._staged, record, secret, batch.template).fill(sieve)
            sieve.require_some()
        except BaseException:
            await self._discard(record)
            raise
        return await self._publish(record, sieve, key, render)

    async def _begin(self, batch: NewBatch, secret: BatchKey) -> BatchRecord:
        new_id = new_batch_id if batch.kind is BatchKind.BATCH else new_outbox_id
        now = self._clock()
        record = BatchRecord(
            number=0,
            id=new_id(),
            kind=batch.kind,
            session_id=batch.session_id,
            name=batch.name,
            state=BatchState.QUEUED,
            options=batch.options,
            token=secrets.token_hex(_TOKEN_OCTETS),
            sealed_key=self._vault.seal(batch.session_id, "batch", secret.secret),
            created_at=now,
            send_at=batch.send_at if batch.send_at is not None and batch.send_at > now else None,
        )
        return structs.replace(record, number=await self._staged.begin(record))

    async def _publish(
        self, staged: BatchRecord, sieve: Sieve, key: IdempotencyKey | None, render: Render
    ) -> BatchView | StoredResponse:
        """Let the batch exist, and begin to send it. This is not broken off: it might exist, and nobody be told."""
        state = BatchState.QUEUED if staged.send_at is None else BatchState.SCHEDULED
        record = structs.replace(staged, state=state)
        counts = {SendState.QUEUED: sieve.fit, SendState.REJECTED: sieve.unfit}
        view = view_of(record, counts_of(counts), sieve.rejections)
        claim, answer = None, None
        if key is not None:
            claim = key.claim(record.session_id, record.created_at)
            answer = self._answers.seal(record.session_id, key, render(view))
        room = self._backlog.room(record.session_id, record.kind, sieve.fit)
        try:
            with room, CancelScope(shield=True):
                taken = await self._staged.publish(
                    record.number, state=state, key=claim, answer=answer
                )
                if taken is None:
                    self._dispatch.take_up(record, counts, sieve.rejections)
        except CbemailError:
            await self._discard(record)
            raise
        if taken is not None and key is not None:  # by another process, or by a send with this key
            await self._discard(record)
            return self._answer_again(taken, key)
        return view

    async def _discard(self, record: BatchRecord) -> None:
        with move_on_after(_DISCARD_SECONDS, shield=True):
            try:
                await self._staged.discard(record.number)
            except CbemailError as error:
                log.warning("%s is left to the next start to discard: %s", record.id, error.code)

    # ---- its turn, and its key

    def _answer_again(self, known: IdempotencyRecord, key: IdempotencyKey) -> StoredResponse:
        answer = self._answers.again(known, key)
        if answer is None:
            raise still_running()
        return answer

    def _turn_of(self, batch: NewBatch) -> AbstractAsyncContextManager[None]:
        """Only what waits for nobody else takes one: messages may answer others, which are first read over IMAP."""
        return self._room if batch.template is not None else nullcontext()

    @asynccontextmanager
    async def _claimed(
        self, session_id: SessionId, key: IdempotencyKey | None
    ) -> AsyncIterator[None]:
        """While the block runs, the key is in use."""
        if key is None:
            yield
            return
        claim = _claim(session_id, key)
        if claim in self._claims:
            raise still_running()
        self._claims.add(claim)
        try:
            yield
        finally:
            self._claims.remove(claim)


def _claim(session_id: SessionId, key: IdempotencyKey) -> _Claim:
    return session_id, key.operation, key.key


def _stopping() -> Overloaded:
    return Overloaded("The service is being stopped, and has not accepted this.", retry_after=10)


# ---- what is looked at


async def _merge_of(batch: NewBatch) -> Merge | None:
    """The template, compiled. Raises InvalidRequest."""
    template = batch.template
    if template is None:
        return None
    return await off_the_loop(content_octets(template), lambda: Merge(template))


async def _require_all(batch: NewBatch, merge: Merge | None) -> None:
    """A reading of its own, since nothing may be stored before the last recipient is known to be good."""
    sieve = Sieve(batch.entries, merge, dedupe=batch.dedupe)
    async with aclosing(sieve.pieces()) as pieces:
        async for _ in pieces:
            pass
    sieve.require_all()


async def _preview(fit: Fit, merge: Merge | None) -> list[RenderedMessage]:
    """The message of one recipient, as far as there is one to be shown."""
    entry = fit.entry
    if merge is None:
        return [entry.preview] if entry.preview is not None else []
    recipient = recipient_of(entry, fit.mailboxes[0])
    return [
        await off_the_loop(
            merge.static_octets,
            lambda: merge.preview(recipient, index=entry.position, bcc=entry.bcc),
        )
    ]
