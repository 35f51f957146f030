"""Errors as `application/problem+json` (RFC 9457). The only module that gives an error its HTTP status."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response

from cbemail import errors
from cbemail.errors import CbemailError


class Problem(NamedTuple):
    """How one kind of error is shown: status, title, and for people, what it means and what to do."""

    status: int
    title: str
    meaning: str
    remedy: str


PROBLEMS: dict[type[CbemailError], Problem] = {
    errors.MalformedJson: Problem(
        400,
        "Malformed JSON",
        "The request body is not valid JSON in UTF-8. Nothing was done.",
        "Send one JSON document in UTF-8. A shell that eats quotes is the usual cause: give curl the body with `--json @file`.",
    ),
    errors.SessionRequired: Problem(
        400,
        "Session required",
        "A call with an API key must name the session it is for, in X-Session-ID.",
        "Send `X-Session-ID: ses_…` with the API key, or the session's own token in place of the key.",
    ),
    errors.InvalidRequest: Problem(
        422,
        "Invalid request",
        "A value is missing, unknown or wrong; `errors` points at each. Nothing was done.",
        "Correct each value that `errors` points at. `/docs` shows what the call takes.",
    ),
    errors.PayloadTooLarge: Problem(
        413,
        "Payload too large",
        "The request is larger than this service takes. Nothing was done.",
        "Send less: fewer or smaller attachments, or a batch in several parts. The operator sets the limits by `MAX_MESSAGE_MB` and `MAX_BATCH_MB`.",
    ),
    errors.UnsupportedMediaType: Problem(
        415,
        "Unsupported media type",
        "The Content-Type of the body is not one this call takes.",
        "Set Content-Type to one that `/docs` lists for the call; for most it is `application/json`.",
    ),
    errors.RequestTimeout: Problem(
        408,
        "Request timeout",
        "The request's body came too slowly, and the connection is closed. Nothing was done.",
        "Send the same request again over a connection that is quick enough.",
    ),
    errors.RateLimited: Problem(
        429,
        "Rate limited",
        "Too many requests of this kind came from you, or the account has sent what its mail provider allows in a day: `detail` says which. Try again after Retry-After.",
        "Wait as long as Retry-After says, and send the same request again.",
    ),
    errors.IdempotencyConflict: Problem(
        409,
        "Request still running",
        "The first request with this Idempotency-Key has not ended. Ask again shortly.",
        "Send the same request again after a few seconds: it gets the answer of the first one.",
    ),
    errors.IdempotencyMismatch: Problem(
        422,
        "Idempotency-Key reused",
        "This Idempotency-Key was used with another body. Use a new key.",
        "Take a new key for a new request. To repeat one, send its body unchanged.",
    ),
    errors.Unauthenticated: Problem(
        401,
        "Not authenticated",
        "The call needs a valid Bearer token or API key.",
        "Log in with `POST /api/sessions` and send the token as `Authorization: Bearer …`, or send `X-API-Key`; never both.",
    ),
    errors.TokenExpired: Problem(
        401,
        "Token expired",
        "Get a new token with POST /api/sessions/{id}/token and the refresh token.",
        "Call `POST /api/sessions/{id}/token` with the refresh token, and send the request again with the new token.",
    ),
    errors.CredentialsRejected: Problem(
        401,
        "Credentials rejected",
        "The mail server refused the login. `detail` says which: IMAP or SMTP.",
        "Check the address, the login name and the password. Most large providers want an app password here: `GET /api/discover?email=…` tells.",
    ),
    errors.HostNotAllowed: Problem(
        403,
        "Host not allowed",
        "The mail host, its port or its lack of encryption is not allowed by this service.",
        "Name a public mail server and one of its usual ports, with TLS or STARTTLS. The operator can allow more by `ALLOW_MAIL_NETWORKS`, `ALLOW_MAIL_PORTS` and `ALLOW_PLAINTEXT_LOGIN`.",
    ),
    errors.PinRequired: Problem(
        403,
        "PIN required",
        "The service is behind a gate, which this request has not passed.",
        "Open `/gate` in a browser and enter the PIN. A program sends it as `X-Gate-PIN`, or sends an API key.",
    ),
    errors.RouteNotFound: Problem(
        404,
        "Not found",
        "There is nothing at this path.",
        "Look the path up in `/docs`. Paths are exact: no slash at the end, none doubled.",
    ),
    errors.MethodNotAllowed: Problem(
        405,
        "Method not allowed",
        "The path exists, but not for this method. `Allow` lists those it has.",
        "Use one of the methods in `Allow`.",
    ),
    errors.SessionNotFound: Problem(
        404,
        "Session not found",
        "There is no such session, or it is not the token's.",
        "Check the id. A session ends when it is deleted, or after long disuse: create a new one with `POST /api/sessions`.",
    ),
    errors.FolderNotFound: Problem(
        404,
        "Folder not found",
        "The mailbox has no such folder.",
        "List the folders with `GET /api/mailbox/folders`, and name one by its full `path`.",
    ),
    errors.MessageNotFound: Problem(
        404,
        "Message not found",
        "The folder has no message of this UID: it was moved, deleted, or never there.",
        "List the folder again: UIDs are those of one folder, and a message that moves gets a new one.",
    ),
    errors.AttachmentNotFound: Problem(
        404,
        "Attachment not found",
        "The message has no such part. Part ids stand in its `attachments`.",
        "Read the message with `GET /api/mailbox/messages/{uid}`, and take an `id` from its `attachments`.",
    ),
    errors.SendNotFound: Problem(
        404,
        "Send not found",
        "This session has sent no message of this id.",
        "Check the id, and that it is asked for by the session that sent it. What became of a message is kept for 30 days.",
    ),
    errors.BatchNotFound: Problem(
        404,
        "Batch not found",
        "This session has no batch of this id.",
        "Check the id, and that it is asked for by the session that sent it. `GET /api/send/batch` lists what there is.",
    ),
    errors.FolderExists: Problem(
        409,
        "Folder exists",
        "There already is a folder of that name.",
        "Choose another name, or use the folder that is there.",
    ),
    errors.FolderProtected: Problem(
        409,
        "Folder protected",
        "This folder cannot be renamed or deleted, by IMAP's rules or the server's.",
        "Leave this folder as it is: INBOX, and what the server says no to, stay. Its messages can be moved.",
    ),
    errors.BatchStateConflict: Problem(
        409,
        "Not in this state",
        "The batch, or the message, has gone too far for that: `detail` says what it is now.",
        "Ask for its state with a GET, and act on that. What has been sent cannot be called back.",
    ),
    errors.CursorExpired: Problem(
        410,
        "Cursor expired",
        "The folder was recreated since the cursor was given: start the listing again.",
        "Ask for the first page, without a cursor.",
    ),
    errors.UpstreamError: Problem(
        502,
        "Mail server error",
        "The mail server answered something it should not, or refused the command.",
        "Try again once. If it stays, `GET /api/sessions/{id}/health` shows how both servers answer.",
    ),
    errors.UpstreamUnavailable: Problem(
        503,
        "Mail server unavailable",
        "The mail server cannot be reached, or hung up. Try again after Retry-After.",
        "Wait as long as Retry-After says, and try again. If it stays, check the server's name and port.",
    ),
    errors.UpstreamTimeout: Problem(
        504,
        "Mail server timeout",
        "The mail server did not answer in time.",
        "Try again after a few seconds. A send may have happened: repeat it with the same Idempotency-Key only.",
    ),
    errors.CredentialsStale: Problem(
        424,
        "Credentials stale",
        "The mail server no longer accepts the session's credentials: give new ones.",
        "Give the new password or token with `PUT /api/sessions/{id}/credentials`. Nothing else of the session changes.",
    ),
    errors.RecipientsRejected: Problem(
        422,
        "Recipients rejected",
        "The mail server refused every recipient; `rejected` says why. Nothing was sent.",
        "Correct or leave out the addresses in `rejected`. Where the reason is the sender, ask the mail provider.",
    ),
    errors.Overloaded: Problem(
        503,
        "Overloaded",
        "Every connection this request could use is busy. Try again after Retry-After.",
        "Wait as long as Retry-After says, and send the same request again.",
    ),
}

INTERNAL = Problem(
    500,
    "Internal error",
    "A defect of this service. The request id finds it in the service's log.",
    "Tell whoever runs this service, with the `request_id`. If the call may have sent something, repeat it with the same Idempotency-Key only.",
)
INTERNAL_CODE = "internal-error"


class FieldProblem(msgspec.Struct, frozen=True):
    """One wrong value: a JSON pointer into the request, and what is wrong there."""

    pointer: str
    detail: str


class RejectedRecipient(msgspec.Struct, frozen=True):
    """One recipient the SMTP server refused: its reply code and enhanced code (RFC 3463), and our sentence."""

    address: str
    status: int
    enhanced: str | None
    detail: str


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457. ``code`` is the stable name of the problem; ``errors`` and ``rejected`` where there are any."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] = []
    rejected: list[RejectedRecipient] = []


_encode = msgspec.json.Encoder().encode


def problem_of(kind: type[CbemailError]) -> Problem:
    """The row of an error class, or of the nearest above it in the tree."""
    for ancestor in kind.__mro__:
        if ancestor in PROBLEMS:
            return PROBLEMS[ancestor]
    return INTERNAL


def problem_response(error: CbemailError | None, request_id: str) -> Response:
    """The response for ``error``; None stands for a defect of ours, of which nothing is told."""
    if error is None:
        return _response(
            INTERNAL, INTERNAL_CODE, "Something went wrong here. It has been logged.", request_id
        )
    extra: dict[str, Any] = {}
    if isinstance(error, errors.InvalidRequest):
        extra["errors"] = [FieldProblem(e.pointer, e.detail) for e in error.errors]
    if isinstance(error, errors.RecipientsRejected):
        extra["rejected"] = [RejectedRecipient(*refusal) for refusal in error.recipients]
    response = _response(problem_of(type(error)), error.code, error.detail, request_id, **extra)
    for name, value in _headers(error):
        response.headers[name] = value
    return response


def _headers(error: CbemailError) -> Iterator[tuple[str, str]]:
    if error.retry_after is not None:
        yield "Retry-After", str(error.retry_after)
    elif error.retryable:
        yield "Retry-After", "5"
    if isinstance(error, errors.Unauthenticated | errors.TokenExpired):
        invalid = ', error="invalid_token"' if isinstance(error, errors.TokenExpired) else ""
        yield "WWW-Authenticate", f'Bearer realm="cbemail"{invalid}'
    if isinstance(error, errors.CredentialsRejected):
        yield "WWW-Authenticate", 'Mailbox realm="the mail server"'
    if isinstance(error, errors.MethodNotAllowed):
        yield "Allow", error.allowed
    if isinstance(
        error, errors.RequestTimeout
    ):  # what is still to come of the body is not waited for
        yield "Connection", "close"


def _response(problem: Problem, code: str, detail: str, request_id: str, **extra: Any) -> Response:  # noqa: ANN401 - the two lists of ProblemDocument
    document = ProblemDocument(
        type=f"/problems/{code}",
        title=problem.title,
        status=problem.status,
        detail=detail,
        code=code,
        request_id=request_id,
        **extra,
    )
    return Response(
        _encode(document),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"Cache-Control": "no-store"},
    )
