"""What the parameters of paths, queries and headers mean, for the OpenAPI document.

A name means the same wherever it stands; where it cannot, the path segment before it tells them apart.
"""

from typing import Any

DESCRIPTIONS: dict[str, str] = {
    # ---- paths
    "sessions/id": "The session, as `session_id` of its creation.",
    "attachments/id": "The part, as `id` in the message's `attachments`.",
    "send/id": "The message, as `id` of the answer to its sending.",
    "batch/id": "The batch, as `id` of the answer to its sending.",
    "uid": "The message's UID within its folder.",
    "path": "The folder's full path, slashes raw or as `%2F`; or its special use, such as `\\Sent`.",
    "code": "The `code` of a problem.",
    "name": "The file's name, as the pages have it.",
    "next": "The page to go on to: a path of this service.",
    # ---- pages
    "limit": "How many to give at most.",
    "cursor": "`next_cursor` of the page before; without it, the first page.",
    "state": "Only messages in this state.",
    "changes/since": "`state` of the last answer; without it, nothing but the state now.",
    # ---- folders and messages
    "folder": "The folder: its full path, or its special use, such as `\\Sent`; to list messages also `*`, every folder but trash and junk.",
    "counts": "Whether to count messages, which some servers are slow at.",
    "mark_read": "Whether this marks the message as read; without it, nothing is changed.",
    "reply_only": "Leave the history that a reply quotes out of `text`.",
    "snippet": "Give each message the first words of its text, as `snippet`.",
    "html": "`safe`: the HTML made safe to show. `raw`: as it was sent.",
    "permanent": "Remove for good, rather than move to the trash.",
    "flags": "The flags to set, comma-separated, such as `\\Seen,\\Flagged`.",
    "email": "The e-mail address.",
    # ---- filters
    "read": "Only messages that have been read, or that have not.",
    "flagged": "Only messages that are flagged, or that are not.",
    "answered": "Only messages that have been answered, or that have not.",
    "from": "Text in the From field.",
    "to": "Text in the To field.",
    "cc": "Text in the Cc field.",
    "subject": "Text in the subject.",
    "text": "Text anywhere in the message.",
    "body": "Text in the message's body.",
    "since": "Arrived on this day or later, as `2026-01-31`.",
    "before": "Arrived before this day, as `2026-01-31`.",
    "larger": "Larger than so many octets.",
    "smaller": "Smaller than so many octets.",
    "has_attachments": "Only messages with attachments, or without.",
    "header": "Text in any header field, as `List-Id: announce`.",
    "q": 'A query, as `from:ann subject:"q3 report" is:unread has:attachment newer:7d larger:1M -label`.',
}

# What the name alone says about the value. Queries are described by their structs.
PATH_SCHEMAS: dict[str, dict[str, Any]] = {
    "uid": {"type": "integer", "minimum": 1, "maximum": 2**32 - 1},
}

SESSION_HEADER: dict[str, Any] = {
    "name": "X-Session-ID",
    "in": "header",
    "description": "The session the call is for: required with an API key, needless with a token.",
    "required": False,
    "schema": {"type": "string"},
}
GATE_HEADER: dict[str, Any] = {
    "name": "X-Gate-PIN",
    "in": "header",
    "description": "The PIN, where the service is behind its gate: needless with the gate's cookie or an API key.",
    "required": False,
    "schema": {"type": "string"},
}
KEY_HEADER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body within 24 hours answer the first response again, and nothing is sent twice.",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
TAG_HEADER: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of an earlier answer: 304 where nothing has changed since.",
    "required": False,
    "schema": {"type": "string"},
}
AGE_HEADER: dict[str, Any] = {
    "name": "Cache-Control",
    "in": "header",
    "description": "`max-age=N`: an answer up to N seconds old is good enough, unless the session has changed its mailbox since.",
    "required": False,
    "schema": {"type": "string"},
    "example": "max-age=30",
}

PREFER_ASYNC_HEADER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "description": "`respond-async`: answer 202 once the message is on disk, and send it from there (RFC 7240).",
    "required": False,
    "schema": {"type": "string"},
    "example": "respond-async",
}
PREFER_WAIT_HEADER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N`: answer 200 when the batch has ended within N seconds, 60 at most (RFC 7240).",
    "required": False,
    "schema": {"type": "string"},
    "example": "wait=30",
}
LAST_EVENT_HEADER: dict[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The `id` of the last event that was seen, to go on from there.",
    "required": False,
    "schema": {"type": "string"},
}

# The parts of the form that a batch may be, and what they are written in.
FORM_ENCODING: dict[str, Any] = {
    "batch": {"contentType": "application/json"},
    "recipients": {"contentType": "text/csv, application/x-ndjson, application/vnd.apache.parquet"},
}

RESPONSE_HEADERS: dict[str, Any] = {
    "X-Request-ID": {
        "description": "The request's id, which the service's log has too: your own, where you sent a sane one.",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Milliseconds spent on `auth`, on the `wait` for a connection or for the same answer, on `imap` or `smtp`, and to `parse`.",
        "schema": {"type": "string"},
    },
    "Location": {
        "description": "Where what was made can be fetched.",
        "schema": {"type": "string"},
    },
    "Preference-Applied": {
        "description": "The preference of the request that was followed.",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "For If-None-Match.", "schema": {"type": "string"}},
    "Age": {
        "description": "Seconds since the mail server was asked, in an answer from memory as `max-age` allows it.",
        "schema": {"type": "integer"},
    },
    "RateLimit-Policy": {
        "description": 'The limit that counts for the call, as `"requests";q=1200;w=60`: so many in so many seconds.',
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": 'What is left of it, as `"requests";r=1199;t=1`, and in how many seconds it is whole again.',
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer"},
    },
    "WWW-Authenticate": {
        "description": "The kind of credential that is missing.",
        "schema": {"type": "string"},
    },
    "Idempotency-Replayed": {
        "description": "`true` where this is the answer to an earlier request with the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
