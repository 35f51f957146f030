"""Names of things: opaque, prefixed by kind, unguessable (128 random bits), but for those of requests."""

import secrets
from random import Random
from typing import NewType

SessionId = NewType("SessionId", str)
OutboxId = NewType("OutboxId", str)
BatchId = NewType("BatchId", str)
RequestId = NewType("RequestId", str)


def new_session_id() -> SessionId:
    return SessionId("ses_" + secrets.token_hex(16))


def new_outbox_id() -> OutboxId:
    return OutboxId("msg_" + secrets.token_hex(16))


def new_batch_id() -> BatchId:
    return BatchId("bat_" + secrets.token_hex(16))


# A request's id finds a line in the log, and opens nothing: that no two are the same is enough, and costs no system call.
_requests = Random(secrets.token_bytes(32))  # noqa: S311 # nosec B311 - see above


def new_request_id() -> RequestId:
    return RequestId(f"req_{_requests.getrandbits(64):016x}")
