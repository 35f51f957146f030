"""A batch as clients see it: its counts, its progress, and its messages, one row a recipient."""

from datetime import datetime

from msgspec import Struct, structs

from cbemail.store.batch_records import BatchState
from cbemail.store.records import SendState

REJECTIONS_SHOWN = 100
WAITING = (SendState.QUEUED, SendState.DEFERRED)
ENDED = (BatchState.COMPLETED, BatchState.CANCELLED)


def state_in(batch: BatchState, state: SendState) -> SendState:
    """A message's state, as its batch has it: nothing waits in one that was cancelled, though a row that was claimed
    just then says so until it is given back."""
    is_cancelled = batch is BatchState.CANCELLED and state in WAITING
    return SendState.CANCELLED if is_cancelled else state


class Counts(Struct, frozen=True):
    """How many messages there are in each state; they add up to ``total``, which is all the client asked for."""

    total: int = 0
    queued: int = 0
    sending: int = 0
    deferred: int = 0
    sent: int = 0
    failed: int = 0
    uncertain: int = 0
    cancelled: int = 0
    rejected: int = 0

    def once_cancelled(self) -> "Counts":
        """With their batch cancelled: what waited will not be sent (`state_in`)."""
        cancelled = self.cancelled + self.queued + self.deferred
        return structs.replace(self, queued=0, deferred=0, cancelled=cancelled)


class Rejection(Struct, frozen=True):
    """A recipient that was not queued: ``index`` is its place in the request, ``to`` what was written there."""

    index: int
    to: str
    code: str
    detail: str


class Rate(Struct, frozen=True):
    """Messages a second over the last seconds."""

    per_second: float = 0.0


class BatchView(Struct, frozen=True):
    """A batch and how far it is. ``rejected`` shows the first hundred; `GET …/messages?state=rejected` all of them.

    ``paused_reason`` is ``requested``, ``credentials-stale``, ``account-limit``, ``content-refused``, ``key-lost`` or
    ``upstream-unavailable``; with ``paused_until`` it goes on by itself.
    """

    id: str
    name: str | None
    state: BatchState
    counts: Counts
    rejected: list[Rejection]
    paused_reason: str | None
    paused_until: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    send_at: datetime | None
    rate: Rate
    eta_seconds: int | None


class BatchPage(Struct, frozen=True):
    batches: list[BatchView]
    next_cursor: str | None


class MessageView(Struct, frozen=True):
    """One recipient of a batch. ``index`` is its place in the request, ``to`` the address it goes to, ``status`` and
    ``enhanced`` are the server's last reply to it. ``detail`` says what became of it, in our words; of a sent message it
    is the server's final reply, which holds its queue id."""

    id: str
    index: int
    key: str | None
    to: str
    state: SendState
    attempts: int
    message_id: str
    status: int | None
    enhanced: str | None
    detail: str | None
    next_attempt_at: datetime | None
    finished_at: datetime | None
