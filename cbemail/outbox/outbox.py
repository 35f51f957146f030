"""Sending one message: recorded before it goes out, carried through whatever the client does, settled by what the
server said.

The order of events is that of a durable queue. The intent is on disk before the first octet is sent; the outcome is on
disk before it is answered. A process that dies in between leaves a row that says `sending`, which the next start turns
into `uncertain`: the message may have gone out, and is not sent again by itself.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from math import ceil

import msgspec
from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import CbemailError, RateLimited, SendNotFound
from cbemail.ids import OutboxId, SessionId, new_outbox_id
from cbemail.outbox.idempotency import IdempotencyKey, SealedAnswers, still_running
from cbemail.outbox.send_result import SendResult, result_of
from cbemail.outbox.sent import Original, SentFolder
from cbemail.outbox.upstreams import Upstreams
from cbemail.sessions.vault import Vault, VaultError
from cbemail.smtp.envelope import Envelope
from cbemail.smtp.outcome import Accepted, Interruption, NotSent, Outcome, Refused
from cbemail.smtp.pool import SmtpPool
from cbemail.smtp.replies import Verdict
from cbemail.store.records import (
    IdempotencyRecord,
    IdempotentAnswer,
    OutboxRecord,
    SendState,
    StoredResponse,
)
from cbemail.store.repository import Repository

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0  # a transaction still running then is answered as `sending`, and goes on


class Submission(Struct, frozen=True):
    """One message to send for a session."""

    session_id: SessionId
    envelope: Envelope
    message_id: str
    save_to_sent: bool
    original: Original | None = None


Render = Callable[[SendResult], StoredResponse]  # how the API would answer a result
_encode = msgspec.json.Encoder().encode


class Outbox:
    """Sends messages, each in a task of its own, which a client that hangs up does not cancel.

    Args:
        render: makes the response that is kept for an idempotency key.
    """

    def __init__(
        self,
        repository: Repository,
        vault: Vault,
        smtp: SmtpPool,
        upstreams: Upstreams,
        sent: SentFolder,
        clock: Clock,
        render: Render,
        *,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._repository = repository
        self._vault = vault
        self._answers = SealedAnswers(vault)
        self._smtp = smtp
        self._upstreams = upstreams
        self._sent = sent
        self._clock = clock
        self._render = render
        self._answer_seconds = answer_seconds
        self._running: dict[OutboxId, asyncio.Task[SendResult | StoredResponse]] = {}
        self.outcomes: Counter[SendState] = Counter()

    async def send(
        self, submission: Submission, key: IdempotencyKey | None = None
    ) -> SendResult | StoredResponse:
        """Send a message and say what became of it; or with a key that was used before, what was said then.

        Raises:
            IdempotencyConflict, IdempotencyMismatch: the key is in use, or was used for another message.
            RecipientsRejected: every recipient was refused.
            RateLimited: the provider allows the account no more today. Nothing was sent.
            CredentialsStale, UpstreamError, UpstreamUnavailable, UpstreamTimeout, Overloaded: nothing was sent.
        """
        record = OutboxRecord(
            id=new_outbox_id(),
            session_id=submission.session_id,
            state=SendState.SENDING,
            message_id=submission.message_id,
            created_at=self._clock(),
            recipients=len(submission.envelope.recipients),
        )
        task = asyncio.create_task(self._run(record, submission, key))
        self._running[record.id] = task
        task.add_done_callback(lambda done: self._finished(record.id, done))
        await asyncio.wait({task}, timeout=self._answer_seconds)
        if task.done():
            return task.result()
        return SendResult(record.id, SendState.SENDING, submission.message_id)

    @property
    def sending(self) -> int:
        """How many messages are on their way."""
        return len(self._running)

    async def find(self, session_id: SessionId, outbox_id: OutboxId) -> SendResult:
        """What became of a message this session sent."""
        record = await self._repository.find_send(session_id, outbox_id)
        if record is None:
            raise SendNotFound("This session has sent no such message.")
        return self._result_of(record)

    async def replay(self, session_id: SessionId, key: IdempotencyKey) -> StoredResponse | None:
        """What was answered to ``key``; None where it is new."""
        known = await self._repository.find_idempotent(session_id, key.operation, key.key)
        return await self._answer_again(known, key) if known is not None else None

    async def drain(self, seconds: float) -> None:
        """Wait for what is being sent, for so long; what then is not settled becomes uncertain at the next start."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=seconds)

    # ---- idempotency

    async def _claim(self, key: IdempotencyKey, record: OutboxRecord) -> StoredResponse | None:
        """Make the key ours, in the transaction that records the message; or give the answer it already had."""
        claim = key.claim(record.session_id, record.created_at, record.id)
        known = await self._repository.begin_idempotent(claim, record)
        return await self._answer_again(known, key) if known is not None else None

    async def _answer_again(self, known: IdempotencyRecord, key: IdempotencyKey) -> StoredResponse:
        answer = self._answers.again(known, key)
        if answer is not None:
            return answer
        if known.outbox_id is None or known.outbox_id in self._running:
            raise still_running()
        send = await self._repository.find_send(known.session_id, known.outbox_id)
        if send is None or send.state is SendState.SENDING:
            raise still_running()
        return self._render(self._result_of(send))

    # ---- one message

    async def _run(
        self, record: OutboxRecord, submission: Submission, key: IdempotencyKey | None
    ) -> SendResult | StoredResponse:
        """From the record to the outcome, in one task: nothing that is on disk is ever left without its carrier."""
        if key is None:
            await self._repository.record_send(record)
        else:
            replay = await self._claim(key, record)
            if replay is not None:
                return replay
        return await self._carry(record.id, submission, key)

    async def _carry(
        self, outbox_id: OutboxId, submission: Submission, key: IdempotencyKey | None
    ) -> SendResult:
        try:
            outcome = await self._submit(submission)
            result = result_of(outbox_id, submission.message_id, outcome)
        except CbemailError as error:
            log.info("%s was not sent: %s", outbox_id, error.code)
            await self._give_up(outbox_id, submission, key)
            raise
        except Exception:
            # A defect of ours: how far the message came is not known, and the row has to say so.
            result = SendResult(outbox_id, SendState.UNCERTAIN, submission.message_id)
            await self._settle(submission, result, key)
            raise
        finishing = result.state is SendState.SENT and (
            submission.save_to_sent or submission.original is not None
        )
        await self._settle(submission, result, None if finishing else key)
        if not finishing:
            return result
        if submission.save_to_sent:
            saved = await self._sent.save(submission.session_id, submission.envelope.content)
            result = structs.replace(result, saved=saved)
        if submission.original is not None:
            await self._sent.mark(submission.session_id, submission.original)
        await self._amend(submission, result, key)
        return result

    async def _submit(self, submission: Submission) -> Outcome:
        """Hand the message to the server, if its provider is known to take it; what it does not take does not count."""
        upstream = await self._upstreams.of(submission.session_id)
        recipients = len(submission.envelope.recipients)
        now = asyncio.get_running_loop().time()
        _require_allowance(upstream.day_delay(now, recipients=recipients))
        upstream.take(now, recipients=recipients)
        try:
            outcome = await self._hand_over(submission)
        except CbemailError:
            upstream.give_back(recipients=recipients)
            raise
        if isinstance(outcome, NotSent):
            upstream.give_back(recipients=recipients)
        if isinstance(outcome, Accepted):
            upstream.succeeded(asyncio.get_running_loop().time())
        return outcome

    async def _hand_over(self, submission: Submission) -> Outcome:
        """With a second try, at most. A connection that was lost before the final dot has delivered nothing (RFC
        5321 section 4.1.1.4), and one kept warm may have died unnoticed, or its access token have expired: that is
        tried once more."""
        async with self._smtp.lease(submission.session_id) as connection:
            outcome = await connection.submit(submission.envelope)
            if _is_login_refused(outcome):  # and so would every one of that login be
                connection.abort()
                self._smtp.close_session(submission.session_id)
        if _is_lost(outcome) or _is_login_refused(outcome):
            async with self._smtp.lease(submission.session_id) as connection:
                outcome = await connection.submit(submission.envelope)
        return outcome

    async def _settle(
        self,
        submission: Submission,
        result: SendResult,
        key: IdempotencyKey | None,
        *,
        freed: tuple[SessionId, str, str] | None = None,
    ) -> None:
        """Put the outcome on disk. Should that fail, the message is still sent, and the client must hear of it."""
        self.outcomes[result.state] += 1
        try:
            await self._repository.settle_send(
                result.id,
                state=result.state,
                result=self._sealed(submission, result),
                finished_at=self._clock(),
                answer=self._answer(submission, result, key),
                freed=freed,
            )
        except CbemailError as error:
            log.error("the outcome of %s could not be stored: %s", result.id, error.code)  # noqa: TRY400 - no traceback: it would quote the store

    async def _amend(
        self, submission: Submission, result: SendResult, key: IdempotencyKey | None
    ) -> None:
        """Add where the copy is to what is already on disk, and close the key."""
        answer = self._answer(submission, result, key)
        sealed = self._sealed(submission, result)
        try:
            await self._repository.amend_send(result.id, result=sealed, answer=answer)
        except CbemailError as error:
            log.error("the outcome of %s could not be completed: %s", result.id, error.code)  # noqa: TRY400 - as above

    def _answer(
        self, submission: Submission, result: SendResult, key: IdempotencyKey | None
    ) -> IdempotentAnswer | None:
        if key is None:
            return None
        response = self._answers.seal(submission.session_id, key, self._render(result))
        return IdempotentAnswer(submission.session_id, key.operation, key.key, response)

    def _sealed(self, submission: Submission, result: SendResult) -> bytes:
        """The result as it is kept: it names recipients."""
        return self._vault.seal(submission.session_id, _field(result.id), _encode(result))

    def _result_of(self, record: OutboxRecord) -> SendResult:
        if record.result is not None:
            try:
                known = self._vault.open(record.session_id, _field(record.id), record.result)
                return msgspec.json.decode(known, type=SendResult)
            except VaultError:
                log.warning("%s does not open: has SECRET_KEY been replaced?", record.id)
        return SendResult(record.id, record.state, record.message_id)

    async def _give_up(
        self, outbox_id: OutboxId, submission: Submission, key: IdempotencyKey | None
    ) -> None:
        """Nothing was sent: the key is free again, so that the same request may be tried once more."""
        result = SendResult(outbox_id, SendState.FAILED, submission.message_id)
        freed = None if key is None else (submission.session_id, key.operation, key.key)
        await self._settle(submission, result, None, freed=freed)

    def _finished(
        self, outbox_id: OutboxId, task: asyncio.Task[SendResult | StoredResponse]
    ) -> None:
        del self._running[outbox_id]
        error = None if task.cancelled() else task.exception()
        # An error of ours that has a code is somebody's answer.
        if error is not None and not isinstance(error, CbemailError):
            log.error("sending %s failed", outbox_id, exc_info=error)


def _field(outbox_id: OutboxId) -> str:
    return f"result {outbox_id}"


def _require_allowance(seconds: float) -> None:
    if seconds > 0:
        raise RateLimited(
            "The mail provider takes no more from this account within 24 hours; nothing was sent. "
            "With Prefer: respond-async the message waits here until it may go.",
            retry_after=ceil(seconds),
        )


def _is_lost(outcome: Outcome) -> bool:
    return isinstance(outcome, NotSent) and outcome.reason is Interruption.LOST


def _is_login_refused(outcome: Outcome) -> bool:
    return isinstance(outcome, Refused) and outcome.verdict is Verdict.CREDENTIALS
