"""The one table: every operation of the API, by path and method. The OpenAPI document is made from it."""

from typing import Any

from cbemail.api.batch_input import BatchForm, MergeBatch, MessagesBatch
from cbemail.api.batches import (
    ListBatches,
    cancel_batch,
    get_batch,
    list_batches,
    pause_batch,
    resume_batch,
    retry_batch,
    send_batch,
)
from cbemail.api.bulk import Bulk, change_messages
from cbemail.api.changes import FolderChanges, FollowFolder, follow_folder
from cbemail.api.console import get_console
from cbemail.api.discovery import Discovered, DiscoverQuery, discover
from cbemail.api.docs import get_docs
from cbemail.api.folders import (
    FolderChange,
    Folders,
    ListFolders,
    NewFolder,
    change_folder,
    create_folder,
    delete_folder,
    list_folders,
)
from cbemail.api.gate_page import (
    FORM,
    MAX_GATE_BODY,
    GateKey,
    GateQuery,
    check_gate,
    get_gate,
    open_gate,
)
from cbemail.api.messages import (
    DeleteMessage,
    Destination,
    GetMessage,
    InFolder,
    ListMessages,
    Mark,
    MessagePage,
    copy_message,
    delete_message,
    get_message,
    list_messages,
    mark_message,
    move_message,
)
from cbemail.api.metrics import get_metrics
from cbemail.api.openapi import get_openapi
from cbemail.api.operation import UPLOAD_SECONDS, Access, Answer, Operation, Raw, Upload
from cbemail.api.operations import (
    Readiness,
    Status,
    get_health,
    get_readiness,
)
from cbemail.api.outgoing import OutgoingMessage, max_send_body
from cbemail.api.page import get_asset
from cbemail.api.parameters import LAST_EVENT_HEADER, PREFER_ASYNC_HEADER, PREFER_WAIT_HEADER
from cbemail.api.parts import PartInFolder, get_attachment, get_raw
from cbemail.api.problem_pages import Explanation, explain_problem, show_error
from cbemail.api.progress import get_batch_events
from cbemail.api.report import (
    REPORTS,
    BatchMessagePage,
    ListBatchMessages,
    list_batch_messages,
)
from cbemail.api.rows import ROW_KINDS
from cbemail.api.send import (
    AppendMessage,
    append_message,
    cancel_send,
    get_send,
    send_message,
)
from cbemail.api.sessions import (
    CreatedSession,
    Health,
    ListSessions,
    NewCredentials,
    NewSession,
    SessionPage,
    SessionView,
    TokenRequest,
    TokenView,
    check_session,
    create_session,
    delete_session,
    get_session,
    issue_token,
    list_sessions,
    replace_credentials,
)
from cbemail.api.threads import GetThread, MessageThread, get_thread
from cbemail.errors import (
    AttachmentNotFound,
    BatchNotFound,
    BatchStateConflict,
    CredentialsRejected,
    CredentialsStale,
    CursorExpired,
    FolderExists,
    FolderNotFound,
    FolderProtected,
    HostNotAllowed,
    IdempotencyConflict,
    IdempotencyMismatch,
    MessageNotFound,
    Overloaded,
    PayloadTooLarge,
    PinRequired,
    RateLimited,
    RecipientsRejected,
    RouteNotFound,
    SendNotFound,
    SessionNotFound,
    TokenExpired,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.mailbox.actions import BulkAnswer, Deleted, Marked, Place
from cbemail.mailbox.folders import Folder
from cbemail.mailbox.reading import Message
from cbemail.outbox.accept import DryRun
from cbemail.outbox.batch import BatchPage, BatchView
from cbemail.outbox.send_result import SendResult

# A transaction is answered as `sending` after 60; the rest is for the upload, and the original of a reply.
SEND_SECONDS = 180.0

_SESSION = "/api/sessions/{id}"
_FOLDER = "/api/mailbox/folders/{path:path}"
_MESSAGES = "/api/mailbox/messages"
_MESSAGE = "/api/mailbox/messages/{uid}"
_BATCHES = "/api/send/batch"
_BATCH = "/api/send/batch/{id}"

# What a mail server can do to a call; and to one that uses a session's connections.
_MAIL = (UpstreamError, UpstreamUnavailable, UpstreamTimeout)
_MAILBOX = (*_MAIL, CredentialsStale, Overloaded)

OPERATIONS: tuple[Operation, ...] = (  # type: ignore[type-arg]  # each of its own query and body
    # ---- sessions
    Operation(
        "POST", "/api/sessions", create_session, tag="Sessions", access=Access.OPEN, gated=True,
        optional_access=Access.SERVICE, body=NewSession,
        answers={201: Answer("Both servers accepted the login.", CreatedSession)},
        errors=(Unauthenticated, CredentialsRejected, HostNotAllowed, *_MAIL, Overloaded),
    ),
    Operation(
        "GET", "/api/sessions", list_sessions, tag="Sessions", prompt=True, access=Access.SERVICE, query=ListSessions,
        answers={200: Answer("A page of sessions.", SessionPage)},
    ),
    Operation(
        "GET", _SESSION, get_session, tag="Sessions", prompt=True, access=Access.SESSION,
        answers={200: Answer("The session.", SessionView)},
    ),
    Operation(
        "DELETE", _SESSION, delete_session, tag="Sessions", access=Access.SESSION,
        answers={204: Answer("It is gone.")},
        errors=(Overloaded,),
    ),
    Operation(
        "POST", _SESSION + "/token", issue_token, tag="Sessions", access=Access.OPEN,
        optional_access=Access.SESSION,
        body=TokenRequest, body_optional=True,
        answers={200: Answer("A new token.", TokenView)},
        errors=(Unauthenticated, TokenExpired, SessionNotFound, Overloaded),
    ),
    Operation(
        "PUT", _SESSION + "/credentials", replace_credentials, tag="Sessions", access=Access.SESSION,
        body=NewCredentials,
        answers={200: Answer("The session, active again.", SessionView)},
        errors=(CredentialsRejected, HostNotAllowed, *_MAIL, Overloaded),
    ),
    Operation(
        "GET", _SESSION + "/health", check_session, tag="Sessions", access=Access.SESSION,
        answers={200: Answer("How both servers answer.", Health)},
        errors=(CredentialsStale,),
    ),
    Operation(
        "GET", "/api/discover", discover, tag="Sessions", access=Access.OPEN, gated=True,
        optional_access=Access.SERVICE, query=DiscoverQuery,
        answers={200: Answer("The servers of the address.", Discovered)},
        errors=(Unauthenticated, Overloaded),
    ),
    # ---- folders
    Operation(
        "GET", "/api/mailbox/folders", list_folders, tag="Folders", access=Access.MAILBOX, query=ListFolders,
        answers={200: Answer("Every folder.", Folders)},
        errors=_MAILBOX,
    ),
    Operation(
        "POST", "/api/mailbox/folders", create_folder, tag="Folders", access=Access.MAILBOX, body=NewFolder,
        answers={201: Answer("The new folder.", Folder)},
        errors=(*_MAILBOX, FolderExists, FolderProtected),
    ),
    Operation(
        "PATCH", _FOLDER, change_folder, tag="Folders", access=Access.MAILBOX, body=FolderChange,
        answers={200: Answer("The folder after the change.", Folder)},
        errors=(*_MAILBOX, FolderNotFound, FolderExists, FolderProtected),
    ),
    Operation(
        "DELETE", _FOLDER, delete_folder, tag="Folders", access=Access.MAILBOX,
        answers={204: Answer("It is gone.")},
        errors=(*_MAILBOX, FolderNotFound, FolderProtected),
    ),
    # ---- messages
    Operation(
        "GET", _MESSAGES, list_messages, tag="Messages", access=Access.MAILBOX, query=ListMessages,
        answers={200: Answer("A page of messages.", MessagePage, refers_to=ROW_KINDS), 304: Answer("As If-None-Match has it.")},
        shared=lambda _: True,
        errors=(*_MAILBOX, FolderNotFound, CursorExpired),
    ),
    Operation(
        "GET", "/api/mailbox/changes", follow_folder, tag="Messages", access=Access.MAILBOX, query=FollowFolder,
        answers={200: Answer("What has happened.", FolderChanges, refers_to=ROW_KINDS)},
        errors=(*_MAILBOX, FolderNotFound),
    ),
    Operation(
        "POST", _MESSAGES, append_message, tag="Messages", access=Access.MAILBOX, query=AppendMessage, body=Raw,
        media={"message/rfc822": None, "application/json": OutgoingMessage},
        answers={201: Answer("Where the message is.", Place)},
        errors=(*_MAILBOX, FolderNotFound, PayloadTooLarge), max_body=max_send_body,
    ),
    Operation(
        "POST", _MESSAGES + "/bulk", change_messages, tag="Messages", access=Access.MAILBOX, body=Bulk,
        answers={200: Answer("What was changed.", BulkAnswer)},
        errors=(*_MAILBOX, FolderNotFound),
    ),
    Operation(
        "GET", _MESSAGE, get_message, tag="Messages", access=Access.MAILBOX, query=GetMessage,
        answers={200: Answer("The message.", Message), 304: Answer("As If-None-Match has it.")},
        shared=lambda query: not query.mark_read,
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound),
    ),
    Operation(
        "GET", _MESSAGE + "/thread", get_thread, tag="Messages", access=Access.MAILBOX, query=GetThread,
        answers={
            200: Answer("The conversation.", MessageThread, refers_to=ROW_KINDS), 304: Answer("As If-None-Match has it."),
        },
        shared=lambda _: True,
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound),
    ),
    Operation(
        "DELETE", _MESSAGE, delete_message, tag="Messages", access=Access.MAILBOX, query=DeleteMessage,
        answers={200: Answer("What became of it.", Deleted)},
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound),
    ),
    Operation(
        "GET", _MESSAGE + "/raw", get_raw, tag="Messages", access=Access.MAILBOX, query=PartInFolder,
        answers={200: Answer("The message.", media_type="message/rfc822")},
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound), seconds=None,
    ),
    Operation(
        "GET", _MESSAGE + "/attachments/{id}", get_attachment, tag="Messages", access=Access.MAILBOX,
        query=PartInFolder,
        answers={200: Answer("The part, decoded, with its own Content-Type.", media_type="*/*")},
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound, AttachmentNotFound), seconds=None,
    ),
    Operation(
        "POST", _MESSAGE + "/move", move_message, tag="Messages", access=Access.MAILBOX, query=InFolder,
        body=Destination,
        answers={200: Answer("Where it is now.", Place)},
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound),
    ),
    Operation(
        "POST", _MESSAGE + "/copy", copy_message, tag="Messages", access=Access.MAILBOX, query=InFolder,
        body=Destination,
        answers={200: Answer("Where the copy is.", Place)},
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound),
    ),
    Operation(
        "POST", _MESSAGE + "/mark", mark_message, tag="Messages", access=Access.MAILBOX, query=InFolder, body=Mark,
        answers={200: Answer("The flags now.", Marked)},
        errors=(*_MAILBOX, FolderNotFound, MessageNotFound),
    ),
    # ---- sending
    Operation(
        "POST", "/api/send", send_message, tag="Send", access=Access.MAILBOX, body=OutgoingMessage,
        answers={
            200: Answer("The server took it, for at least one recipient.", SendResult),
            202: Answer("Queued; or still running; or uncertain: the server's last reply was lost.", SendResult),
        },
        errors=(
            *_MAILBOX, RecipientsRejected, IdempotencyConflict, IdempotencyMismatch, FolderNotFound, MessageNotFound,
            PayloadTooLarge,
        ),
        max_body=max_send_body, seconds=SEND_SECONDS, headers=(PREFER_ASYNC_HEADER,),
    ),
    # ---- sending many: before /api/send/{id}, which would take `batch` for an id
    Operation(
        "POST", _BATCHES, send_batch, tag="Batch send", access=Access.MAILBOX, body=Upload,
        media={"application/json": MergeBatch | MessagesBatch, "multipart/form-data": BatchForm},
        answers={
            202: Answer("All of it is on disk.", BatchView),
            200: Answer("It ended while the client waited; or what a dry run found.", BatchView | DryRun),
        },
        errors=(*_MAILBOX, IdempotencyConflict, IdempotencyMismatch),
        seconds=UPLOAD_SECONDS, headers=(PREFER_WAIT_HEADER,),
    ),
    Operation(
        "GET", _BATCHES, list_batches, tag="Batch send", access=Access.MAILBOX, query=ListBatches,
        answers={200: Answer("A page of batches.", BatchPage)},
        errors=(Overloaded,),
    ),
    Operation(
        "GET", _BATCH, get_batch, tag="Batch send", access=Access.MAILBOX,
        answers={200: Answer("The batch.", BatchView)},
        errors=(BatchNotFound, Overloaded),
    ),
    Operation(
        "GET", _BATCH + "/messages", list_batch_messages, tag="Batch send", access=Access.MAILBOX,
        query=ListBatchMessages,
        answers={200: Answer("A page of messages; or all of them, as a file.", BatchMessagePage, also=tuple(REPORTS))},
        errors=(BatchNotFound, Overloaded), seconds=None,
    ),
    Operation(
        "GET", _BATCH + "/events", get_batch_events, tag="Batch send", access=Access.MAILBOX,
        answers={
            200: Answer("Events.", media_type="text/event-stream"),
            204: Answer("There is nothing more to come."),
        },
        errors=(BatchNotFound, Overloaded), seconds=None, headers=(LAST_EVENT_HEADER,),
    ),
    *(
        Operation(
            "POST", f"{_BATCH}/{verb}", endpoint, tag="Batch send", access=Access.MAILBOX,
            answers={200: Answer("The batch after it.", BatchView)},
            errors=(BatchNotFound, BatchStateConflict, Overloaded),
        )
        for verb, endpoint in (
            ("pause", pause_batch), ("resume", resume_batch), ("cancel", cancel_batch), ("retry", retry_batch),
        )
    ),
    Operation(
        "GET", "/api/send/{id}", get_send, tag="Send", access=Access.MAILBOX,
        answers={200: Answer("What became of it.", SendResult)},
        errors=(SendNotFound, Overloaded),
    ),
    Operation(
        "DELETE", "/api/send/{id}", cancel_send, tag="Send", access=Access.MAILBOX,
        answers={200: Answer("It is cancelled.", SendResult)},
        errors=(SendNotFound, BatchStateConflict, Overloaded),
    ),
    # ---- operations
    Operation(
        "GET", "/healthz", get_health, tag="Operations", prompt=True, access=Access.OPEN,
        answers={200: Answer("Alive.", Status)},
    ),
    Operation(
        "GET", "/readyz", get_readiness, tag="Operations", prompt=True, access=Access.OPEN,
        answers={200: Answer("Ready.", Readiness), 503: Answer("Not ready.", Readiness)},
    ),
    Operation(
        "GET", "/metrics", get_metrics, tag="Operations", prompt=True, access=Access.OPERATOR,
        answers={
            200: Answer("The metrics.", media_type="text/plain", also=("application/openmetrics-text",)),
        },
    ),
    Operation(
        "GET", "/openapi.json", get_openapi, tag="Operations", prompt=True, access=Access.OPEN,
        answers={200: Answer("This document.", dict[str, Any])},
    ),
    Operation(
        "GET", "/problems/{code}", explain_problem, tag="Operations", prompt=True, access=Access.OPEN, gated=True,
        answers={200: Answer("What the problem means.", Explanation, also=("text/html",))},
        errors=(RouteNotFound,), show_error=show_error,
    ),
    # ---- pages
    Operation(
        "GET", "/", get_console, tag="Pages", prompt=True, access=Access.OPEN, gated=True,
        answers={200: Answer("The page.", media_type="text/html")}, show_error=show_error,
    ),
    Operation(
        "GET", "/docs", get_docs, tag="Pages", prompt=True, access=Access.OPEN, gated=True,
        answers={200: Answer("The page.", media_type="text/html")}, show_error=show_error,
    ),
    Operation(
        "GET", "/assets/{name}", get_asset, tag="Pages", prompt=True, access=Access.OPEN,
        answers={200: Answer("The file.", media_type="*/*")},
        errors=(RouteNotFound,),
    ),
    Operation(
        "GET", "/gate", get_gate, tag="Pages", prompt=True, access=Access.OPEN, query=GateQuery,
        answers={200: Answer("The page.", media_type="text/html")}, show_error=show_error,
    ),
    Operation(
        "POST", "/gate", open_gate, tag="Pages", access=Access.OPEN, query=GateQuery, body=Raw,
        media={"application/json": GateKey, FORM: GateKey},
        answers={204: Answer("The cookie is set."), 303: Answer("The same, for a form: go on.")},
        errors=(PinRequired, RateLimited), max_body=lambda _: MAX_GATE_BODY, show_error=show_error,
    ),
    Operation(
        "GET", "/gate/check", check_gate, tag="Pages", prompt=True, access=Access.OPEN,
        answers={204: Answer("The gate is open to the request.")},
        errors=(Unauthenticated,),
    ),
)  # fmt: skip
