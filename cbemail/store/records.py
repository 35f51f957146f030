"""What a row is to everybody outside the store: frozen values, no SQL, no driver types.

Times are aware datetimes in UTC, to the second.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from cbemail.hosts import MailServer
from cbemail.ids import OutboxId, SessionId


class SessionState(StrEnum):
    ACTIVE = "active"
    CREDENTIALS_STALE = "credentials_stale"


class SessionRecord(Struct, frozen=True):
    """A mailbox login. ``sealed_credentials`` opens only for this session's id (`sessions/vault`)."""

    id: SessionId
    email: str
    name: str | None
    provider: str | None
    auth: str  # "password" | "oauth2"
    imap: MailServer
    smtp: MailServer
    state: SessionState
    sealed_credentials: bytes
    created_at: datetime
    last_used_at: datetime


class RefreshTokenRecord(Struct, frozen=True):
    """A refresh token by the SHA-256 of its text. Once used it is kept, so that a second use is noticed."""

    token_hash: bytes
    session_id: SessionId
    expires_at: datetime
    used_at: datetime | None = None


class StoredResponse(Struct, frozen=True):
    """A response kept for replay: status, the headers worth repeating, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class IdempotencyRecord(Struct, frozen=True):
    """An `Idempotency-Key` seen: whose, for what call, over which body, and the answer once there is one."""

    session_id: SessionId
    operation: str  # "POST /api/send"
    key: str
    fingerprint: bytes  # SHA-256 of the request body
    outbox_id: (
        OutboxId | None
    )  # the send it belongs to: a key that was running when the process died asks there
    created_at: datetime
    response: StoredResponse | None = None


class IdempotentAnswer(Struct, frozen=True):
    """The answer to keep for a key."""

    session_id: SessionId
    operation: str
    key: str
    response: StoredResponse


class SendState(StrEnum):
    """States of an outbox message."""

    QUEUED = "queued"
    SENDING = "sending"  # on disk as the intent: it may be on the wire
    DEFERRED = "deferred"  # tried, and to be tried again
    SENT = "sent"
    FAILED = "failed"
    UNCERTAIN = "uncertain"  # handed over, and the reply never read: it may have been delivered
    CANCELLED = "cancelled"
    REJECTED = "rejected"  # never queued: the request's values for it were wrong


class OutboxRecord(Struct, frozen=True):
    """One message handed to SMTP for one set of recipients, recorded before the first octet is sent.

    ``result`` is what `GET /api/send/{id}` answers, sealed, once the outcome is known. ``recipients``: how many.
    """

    id: OutboxId
    session_id: SessionId
    state: SendState
    message_id: str
    created_at: datetime
    recipients: int = 1
    finished_at: datetime | None = None
    result: bytes | None = None
