"""From what the server said to what becomes of each row: pure, and complete, since a `match` over outcomes has to be.

A row is *put back* where the message was not judged at all: its attempt does not count.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum

from msgspec import Struct, structs

from cbemail.outbox.retry import RetryPolicy, next_attempt
from cbemail.smtp.outcome import (
    Accepted,
    Interruption,
    NotSent,
    Outcome,
    Refused,
    RefusedRecipient,
    Uncertain,
)
from cbemail.smtp.replies import Phase, Reply, Verdict
from cbemail.store.batch_records import EARLIER_TRY, MessageEvent, MessageRow
from cbemail.store.records import SendState

_DETAIL_CHARACTERS = 300

_INTERRUPTED = {
    Interruption.LOST: "The connection was lost before the message was handed over.",
    Interruption.TIMEOUT: "The server did not answer in time; the message was not handed over.",
    Interruption.GARBLED: "The server answered what is no SMTP; the message was not handed over.",
    Interruption.ABANDONED: "Sending was stopped before the message was handed over.",
}
_LOST_REPLY = (
    "The message was handed over, and the server's answer never came: it may have been delivered."
)


class Notice(Enum):
    """What an outcome says beyond its rows: to the account, the server's load, or the batch."""

    GOOD = "good"
    THROTTLED = "throttled"
    ACCOUNT = "account"
    CREDENTIALS = "credentials"
    CONTENT = "content"
    BROKEN = "broken"  # a fresh connection was cut off: to come back at once would be hammering
    NONE = "none"


class Ruling(Struct, frozen=True):
    events: list[MessageEvent]
    notice: Notice


class Terms(Struct, frozen=True):
    """What retries go by: of the batch, and the moment."""

    batch: int
    max_attempts: int | None
    now: datetime
    jitter: float  # -1 to 1
    policy: RetryPolicy


def intent(batch: int, row: MessageRow) -> MessageEvent:
    """To be on disk before the first octet of the message goes out: one more attempt has begun."""
    return MessageEvent(batch, row.row, SendState.SENDING, row.attempts + 1)


def put_back(batch: int, row: MessageRow) -> MessageEvent:
    """As the row was when it was claimed: nothing has happened to it."""
    return MessageEvent(
        batch=batch,
        row=row.row,
        state=SendState.DEFERRED if row.attempts else SendState.QUEUED,
        attempts=row.attempts,
        status=row.status,
        enhanced=row.enhanced,
        detail=row.detail,
        next_attempt_at=row.next_attempt_at,
    )


def failed(terms: Terms, row: MessageRow, detail: str) -> MessageEvent:
    """Without a server's reply: the message cannot be made, or must not be tried again."""
    return MessageEvent(
        batch=terms.batch,
        row=row.row,
        state=SendState.FAILED,
        attempts=row.attempts,
        detail=_told(row, detail),
        finished_at=terms.now,
    )


def _told(row: MessageRow, detail: str) -> str:
    """``detail``, behind the word that there may be a copy all the same."""
    doubted = (row.detail or "").startswith(EARLIER_TRY)
    return f"{EARLIER_TRY} {detail}" if doubted else detail


def uncertain(terms: Terms, row: MessageRow) -> MessageEvent:
    return MessageEvent(
        batch=terms.batch,
        row=row.row,
        state=SendState.UNCERTAIN,
        attempts=row.attempts + 1,
        detail=_LOST_REPLY,
        finished_at=terms.now,
    )


def rule(
    terms: Terms,
    rows: Sequence[MessageRow],
    recipients: Sequence[str],
    outcome: Outcome,
    *,
    was_idle: bool,
) -> Ruling:
    """What becomes of the rows of one transaction.

    Args:
        rows: as they were before the attempt; ``recipients`` are their addresses, in the same order.
        was_idle: the connection had carried messages before: lost at once, it had died unnoticed.
    """
    match outcome:
        case Accepted(_, (), reply):
            return Ruling([_sent(terms, row, reply) for row in rows], Notice.GOOD)
        case Accepted(_, refused, reply):
            refusals = {each.address: each for each in refused}
            events = [
                _refused(terms, row, refusals[address])
                if address in refusals
                else _sent(terms, row, reply)
                for row, address in zip(rows, recipients, strict=True)
            ]
            return Ruling(events, _notice(refused) or Notice.GOOD)
        case Refused(_, Phase.MAIL, reply) if was_idle and _has_had_enough(reply):
            return Ruling([put_back(terms.batch, row) for row in rows], Notice.NONE)
        case Refused(refused, _, _):
            refusals = {each.address: each for each in refused}
            events = [
                _refused(terms, row, refusals[address], alone=True)
                for row, address in zip(rows, recipients, strict=True)
            ]
            return Ruling(events, _notice(refused, outcome) or Notice.NONE)
        case NotSent(reason, phase):
            if reason is Interruption.ABANDONED or (was_idle and phase is Phase.MAIL):
                return Ruling([put_back(terms.batch, row) for row in rows], Notice.NONE)
            events = [_deferred(terms, row, None, _INTERRUPTED[reason]) for row in rows]
            return Ruling(events, Notice.NONE if was_idle else Notice.BROKEN)
        case Uncertain(_, refused, _):
            refusals = {each.address: each for each in refused}
            events = [
                _refused(terms, row, refusals[address])
                if address in refusals
                else uncertain(terms, row)
                for row, address in zip(rows, recipients, strict=True)
            ]
            return Ruling(events, Notice.NONE)


def _sent(terms: Terms, row: MessageRow, reply: Reply) -> MessageEvent:
    """The server's final reply is kept: it holds the queue id that its own log knows the message by."""
    said = " ".join(reply.text.split())
    if not said.isprintable():
        said = "".join(c for c in said if c.isprintable())
    return MessageEvent(
        batch=terms.batch,
        row=row.row,
        state=SendState.SENT,
        attempts=row.attempts + 1,
        status=reply.code,
        enhanced=reply.enhanced,
        detail=f"{reply.code} {said}"[:_DETAIL_CHARACTERS],
        finished_at=terms.now,
    )


def _refused(
    terms: Terms, row: MessageRow, refusal: RefusedRecipient, *, alone: bool = False
) -> MessageEvent:
    """``alone``: nobody was accepted, so that "too many recipients" is no reason to come back at once."""
    match refusal.verdict:
        case Verdict.TOO_MANY_RECIPIENTS if alone:
            return _deferred(terms, row, refusal.reply, refusal.detail)
        case Verdict.CREDENTIALS | Verdict.ACCOUNT | Verdict.TOO_MANY_RECIPIENTS:
            return structs.replace(
                put_back(terms.batch, row),
                status=refusal.reply.code,
                enhanced=refusal.reply.enhanced,
                detail=_told(row, refusal.detail),
            )
        case Verdict.DEFERRED | Verdict.THROTTLED:
            return _deferred(terms, row, refusal.reply, refusal.detail)
        case _:
            return structs.replace(
                failed(terms, row, refusal.detail),
                attempts=row.attempts + 1,
                status=refusal.reply.code,
                enhanced=refusal.reply.enhanced,
            )


def _deferred(terms: Terms, row: MessageRow, reply: Reply | None, detail: str) -> MessageEvent:
    """To be tried again, or failed where it has been tried often and long enough."""
    attempts = row.attempts + 1
    again = next_attempt(
        attempts=attempts,
        max_attempts=terms.max_attempts,
        first_tried_at=terms.now - terms.policy.elapsed(row.attempts),
        now=terms.now,
        jitter=terms.jitter,
        policy=terms.policy,
    )
    return MessageEvent(
        batch=terms.batch,
        row=row.row,
        state=SendState.FAILED if again is None else SendState.DEFERRED,
        attempts=attempts,
        status=None if reply is None else reply.code,
        enhanced=None if reply is None else reply.enhanced,
        detail=_told(row, detail),
        next_attempt_at=again,
        finished_at=terms.now if again is None else None,
    )


def _notice(refused: Iterable[RefusedRecipient], outcome: Refused | None = None) -> Notice | None:
    """The weightiest thing a refusal says of more than its recipient."""
    verdicts = {each.verdict for each in refused}
    replies = [each.reply for each in refused]
    if outcome is not None:
        verdicts.add(outcome.verdict)
        replies.append(outcome.reply)
    if Verdict.CREDENTIALS in verdicts:
        return Notice.CREDENTIALS
    if Verdict.ACCOUNT in verdicts:
        return Notice.ACCOUNT
    if Verdict.THROTTLED in verdicts or any(_asks_for_less(reply) for reply in replies):
        return Notice.THROTTLED
    return Notice.CONTENT if Verdict.CONTENT_REFUSED in verdicts else None


def _has_had_enough(reply: Reply) -> bool:
    """A server that takes so many messages over one connection says so to the next (RFC 5321 3.8)."""
    return reply.code == 421 and not (reply.enhanced or "").startswith("4.7.")


def _asks_for_less(reply: Reply) -> bool:
    """421 and 451 4.7.x, besides what is classified as throttling: fewer connections help, whatever was meant."""
    return reply.code == 421 or (reply.code == 451 and (reply.enhanced or "").startswith("4.7."))
