"""Everything that can go wrong, as the caller of the service should understand it.

CbemailError                      code (public, final) · retryable · detail (safe to show)
├── RequestError                  the caller can fix it
│   ├── MalformedJson · SessionRequired · InvalidRequest · PayloadTooLarge · UnsupportedMediaType
│   └── RequestTimeout · RateLimited · IdempotencyConflict · IdempotencyMismatch
├── AuthError                     Unauthenticated · TokenExpired · CredentialsRejected · HostNotAllowed · PinRequired
├── NotFound                      RouteNotFound · MethodNotAllowed · SessionNotFound · FolderNotFound
│                                 MessageNotFound · AttachmentNotFound · SendNotFound · BatchNotFound
├── Conflict                      FolderExists · FolderProtected · BatchStateConflict
├── CursorExpired                 the folder a cursor points into was recreated
├── UpstreamError                 the mail server; protocol, command and response code are for the log
│   └── UpstreamUnavailable · UpstreamTimeout · CredentialsStale · RecipientsRejected
└── Overloaded                    ours: no connection free, queue full

`detail` is one sentence written by us. It never quotes a server line, a credential or a token. HTTP status codes
are given to these classes in `api/problems.py` and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class CbemailError(Exception):
    """The root: `code` is public and final, `detail` is one sentence that is safe to show."""

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after  # seconds; only where waiting helps


# ---- the caller can fix it


class RequestError(CbemailError):
    """The request itself is wrong: sending it again unchanged will fail again."""


class MalformedJson(RequestError):
    code = "malformed-json"


class SessionRequired(RequestError):
    code = "session-required"


class FieldError(NamedTuple):
    """One wrong value: where it is (a JSON pointer, RFC 6901, as a URI fragment) and what is wrong with it."""

    pointer: str
    detail: str


class InvalidRequest(RequestError):
    code = "invalid-request"

    def __init__(self, detail: str, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []

    @classmethod
    def at(cls, pointer: str, detail: str) -> InvalidRequest:
        """The usual case: one value is wrong, and its sentence is the whole message."""
        return cls(detail, [FieldError(pointer, detail)])


class PayloadTooLarge(RequestError):
    code = "payload-too-large"


class UnsupportedMediaType(RequestError):
    code = "unsupported-media-type"


class RequestTimeout(RequestError):
    """The request did not arrive in time."""

    code = "request-timeout"
    retryable = True


class RateLimited(RequestError):
    code = "rate-limited"
    retryable = True


class IdempotencyConflict(RequestError):
    code = "idempotency-conflict"
    retryable = True


class IdempotencyMismatch(RequestError):
    code = "idempotency-mismatch"


# ---- who is asking


class AuthError(CbemailError):
    """The caller may not do this, or may not do it as who they say they are."""


class Unauthenticated(AuthError):
    code = "unauthenticated"


class TokenExpired(AuthError):
    code = "token-expired"


class CredentialsRejected(AuthError):
    """The mail server refused the login a caller has just supplied."""

    code = "credentials-rejected"


class HostNotAllowed(AuthError):
    code = "host-not-allowed"


class PinRequired(AuthError):
    """The gate is closed to this caller."""

    code = "pin-required"


# ---- it is not there


class NotFound(CbemailError):
    """What the request names does not exist, or not for this caller."""


class RouteNotFound(NotFound):
    code = "not-found"


class MethodNotAllowed(NotFound):
    code = "method-not-allowed"

    def __init__(self, detail: str, *, allowed: str) -> None:
        super().__init__(detail)
        self.allowed = allowed


class SessionNotFound(NotFound):
    code = "session-not-found"


class FolderNotFound(NotFound):
    code = "folder-not-found"


class MessageNotFound(NotFound):
    code = "message-not-found"


class AttachmentNotFound(NotFound):
    code = "attachment-not-found"


class SendNotFound(NotFound):
    code = "send-not-found"


class BatchNotFound(NotFound):
    code = "batch-not-found"


# ---- it is there, and in the way


class Conflict(CbemailError):
    """The request makes sense, but not in the state things are in."""


class FolderExists(Conflict):
    code = "folder-exists"


class FolderProtected(Conflict):
    code = "folder-protected"


class BatchStateConflict(Conflict):
    """A batch, or a message in the outbox, has gone too far for what is asked of it."""

    code = "batch-state"


class CursorExpired(CbemailError):
    code = "cursor-expired"


# ---- the mail server


class UpstreamError(CbemailError):
    """The mail server answered something it should not, or refused the command."""

    code = "upstream-error"

    def __init__(
        self,
        detail: str,
        *,
        protocol: str = "",
        command: str = "",
        response_code: str = "",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.protocol = protocol
        self.command = command
        self.response_code = response_code


class UpstreamUnavailable(UpstreamError):
    """The mail server cannot be reached, or hung up."""

    code = "upstream-unavailable"
    retryable = True


class UpstreamTimeout(UpstreamError):
    code = "upstream-timeout"
    retryable = True


class CredentialsStale(UpstreamError):
    """The stored credentials of a session, good once, are refused now."""

    code = "credentials-stale"


class Refusal(NamedTuple):
    """One recipient the SMTP server would not take: reply code, enhanced code (RFC 3463), and our sentence."""

    address: str
    status: int
    enhanced: str | None
    detail: str


class RecipientsRejected(UpstreamError):
    code = "recipients-rejected"

    def __init__(self, detail: str, recipients: list[Refusal]) -> None:
        super().__init__(detail, protocol="smtp")
        self.recipients = recipients


# ---- ourselves


class Overloaded(CbemailError):
    code = "overloaded"
    retryable = True
