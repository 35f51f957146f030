"""Names of things: opaque, prefixed by kind, unguessable (128 random bits)."""

import secrets
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


def new_request_id() -> RequestId:
    return RequestId("req_" + secrets.token_hex(8))
