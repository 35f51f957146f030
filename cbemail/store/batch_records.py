"""A batch and its messages as everybody outside the store sees them: frozen values, times aware, UTC, to the second.

A batch is the unit that is accepted, paused and reported on; a message of it is one recipient (one RCPT). A single
message that is queued rather than sent at once (`respond-async`, `send_at`) is a batch of the kind ``send``.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from cbemail.ids import SessionId
from cbemail.store.records import SendState

MAX_RECIPIENTS = 500_000  # of a batch
LARGEST_VALUE = (
    16_000  # octets of a recipient or a piece of a content: the engine bears any number of such
)


# How the detail of a row begins that is tried again though an earlier try was uncertain: there may be a copy.
EARLIER_TRY = "An earlier try may have been delivered."


class BatchKind(StrEnum):
    BATCH = "batch"  # `bat_…`, of POST /api/send/batch
    SEND = "send"  # `msg_…`, of POST /api/send


class BatchState(StrEnum):
    """Of a batch that was published. One whose rows are still being written has a state only the store knows of."""

    QUEUED = "queued"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class OnUncertain(StrEnum):
    HOLD = "hold"
    RESEND = "resend"


class BatchOptions(Struct, frozen=True):
    """What the client asked for, kept as JSON. ``max_attempts`` None: the default, which also waits four hours."""

    rate_per_minute: int | None = None
    max_attempts: int | None = None
    on_uncertain: OnUncertain = OnUncertain.HOLD
    save_to_sent: bool = False


class BatchRecord(Struct, frozen=True):
    """``number`` is the store's own name for it, which its rows carry; clients know ``id``.

    ``sealed_key`` holds the key its content and recipients are sealed with (`outbox/sealing`), itself sealed by the
    vault. The public ids of its messages begin with ``token`` (24 hexadecimal digits).
    """

    number: int
    id: str
    kind: BatchKind
    session_id: SessionId
    name: str | None
    state: BatchState
    options: BatchOptions
    token: str
    sealed_key: bytes
    created_at: datetime
    send_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    paused_reason: str | None = None
    paused_until: datetime | None = None


class NewMessageRow(Struct, frozen=True):
    """A row to be stored. ``row`` counts the batch's rows from 0; ``position`` is the index in the client's list, the
    same for the recipients of one message; ``content`` says which of the batch's contents it is made from."""

    row: int
    position: int
    content: int
    state: SendState  # QUEUED or REJECTED
    message_id: str
    sealed: bytes
    next_attempt_at: datetime | None = None
    code: str | None = None  # of a rejection
    detail: str | None = None


class MessageRow(Struct, frozen=True):
    """A row as it is stored. ``status`` and ``enhanced`` are of the last SMTP reply."""

    row: int
    position: int
    content: int
    state: SendState
    attempts: int
    claims: int  # times a worker took it since it last had an outcome: more than a few, and it kills workers
    message_id: str
    sealed: bytes
    next_attempt_at: datetime | None = None
    status: int | None = None
    enhanced: str | None = None
    code: str | None = None
    detail: str | None = None
    finished_at: datetime | None = None


class MessageEvent(Struct, frozen=True, array_like=True):
    """What becomes of a row: an intent (state SENDING), or an outcome. Written to the journal, folded in later."""

    batch: int
    row: int
    state: SendState
    attempts: int
    status: int | None = None
    enhanced: str | None = None
    detail: str | None = None
    next_attempt_at: datetime | None = None
    finished_at: datetime | None = None
