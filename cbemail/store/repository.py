"""What the service remembers, one method a thing. The SQL is in ``sql/queries.sql``, under the names used here."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec
from msgspec import Struct, convert

from cbemail.errors import SessionNotFound
from cbemail.ids import OutboxId, SessionId
from cbemail.store.database import Database, Row, Statement
from cbemail.store.records import (
    IdempotencyRecord,
    IdempotentAnswer,
    OutboxRecord,
    RefreshTokenRecord,
    SendState,
    SessionRecord,
    SessionState,
    StoredResponse,
)


class RotationOutcome(StrEnum):
    """What became of a refresh token that was shown."""

    ROTATED = "rotated"  # it was good, is used up now, and its replacement is kept
    REUSED = "reused"  # it had been used before: somebody has it who has no right to
    UNKNOWN = "unknown"  # it is not one of this session's, or has expired


class Rotation(Struct, frozen=True):
    """The outcome, and the session whose token it was; None where that is unknown."""

    outcome: RotationOutcome
    session_id: SessionId | None = None


class Repository:
    """Sessions, refresh tokens, idempotency keys and sends, over any `Database`.

    A method that changes something returns when the change is on disk. Time is an argument. What belongs to a
    session goes with it and cannot be added after it: such calls raise `SessionNotFound`, so that a login or a
    send that races with the end of its session leaves nothing behind. Every method raises `Overloaded` where the
    database is out of disk or has failed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- sessions

    async def load_sessions(self) -> list[SessionRecord]:
        """Every session, the oldest first: read once, at start."""
        return [_session(row) for row in await self._database.fetch("load_sessions")]

    async def add_session(self, session: SessionRecord, refresh: RefreshTokenRecord) -> None:
        """Remember a new session and its first refresh token, both or neither."""
        await self._database.execute_all(
            [
                ("add_session", _session_values(session)),
                ("add_refresh_token", msgspec.structs.asdict(refresh)),
            ]
        )

    async def replace_credentials(
        self, session_id: SessionId, *, sealed: bytes, auth: str, state: SessionState
    ) -> None:
        """Keep new sealed credentials in place of the old ones."""
        rows = await self._database.execute(
            "replace_credentials", id=session_id, sealed_credentials=sealed, auth=auth, state=state
        )
        _require_session(rows)

    async def renew_credentials(
        self, session_id: SessionId, *, sealed: bytes, renewed: bytes
    ) -> bool:
        """Keep ``renewed`` in place of these credentials, if they are still the session's; says whether they were."""
        rows = await self._database.execute(
            "renew_credentials", id=session_id, sealed_credentials=sealed, renewed=renewed
        )
        return bool(rows)

    async def mark_stale(self, session_id: SessionId, *, sealed: bytes) -> None:
        """Remember that these credentials no longer work; where others have taken their place, nothing is."""
        await self._database.execute("mark_stale", id=session_id, sealed_credentials=sealed)

    async def touch_sessions(self, last_used: Mapping[SessionId, datetime]) -> None:
        """Remember when sessions were last used, many in one statement. A time never goes back.

        Sessions that have ended meanwhile are passed over.
        """
        if last_used:
            await self._database.execute(
                "touch_sessions", ids=list(last_used), times=list(last_used.values())
            )

    async def delete_session(self, session_id: SessionId) -> None:
        """Forget the session and all that belongs to it. One that is not there is no error."""
        deletions = (
            "delete_refresh_tokens",
            "delete_idempotency_keys",
            "delete_outbox_messages",
            "delete_batch_content",
            "delete_batch_messages",
            "delete_batches",
            "delete_folder_states",
            "delete_cache_key",
            "delete_session",
        )
        await self._database.execute_all([(query, {"id": session_id}) for query in deletions])

    # ---- refresh tokens

    async def add_refresh_token(self, token: RefreshTokenRecord) -> None:
        """Remember one more refresh token of a session."""
        rows = await self._database.execute("add_refresh_token", **msgspec.structs.asdict(token))
        _require_session(rows)

    async def rotate_refresh_token(
        self, used_hash: bytes, *, replacement: RefreshTokenRecord, now: datetime
    ) -> Rotation:
        """Use up a token of the replacement's session, and keep the replacement.

        However many use one token at a time, for one of them it is ``ROTATED`` and for all others ``REUSED``,
        and nothing of theirs is kept; ending the session then is the caller's part. A token of another session
        is ``UNKNOWN``, and stays good.
        """
        used = {"token_hash": used_hash, "replacement": replacement.token_hash}
        of_session = {"session_id": replacement.session_id, "now": now}
        *_, outcome = await self._database.execute_all(
            [
                ("use_refresh_token", used | of_session),
                ("add_replacement_token", used | {"expires_at": replacement.expires_at}),
                ("rotation_outcome", used | of_session),
            ]
        )
        if not outcome:
            return Rotation(RotationOutcome.UNKNOWN)
        rotated = RotationOutcome.ROTATED if outcome[0]["rotated"] else RotationOutcome.REUSED
        return Rotation(rotated, replacement.session_id)

    # ---- idempotency keys

    async def begin_idempotent(
        self, record: IdempotencyRecord, send: OutboxRecord | None = None
    ) -> IdempotencyRecord | None:
        """Claim a key for a call that is about to run. None: it is ours now; else, the call that has it.

        However many begin one key at a time, it is one's. ``send``, if given, is recorded in the same transaction
        and only with the key: there is never a key whose send could not be found, nor a send recorded twice.
        """
        if send is not None and send.id != record.outbox_id:
            raise ValueError("an idempotency key must name the send recorded with it")
        key = {
            "session_id": record.session_id,
            "operation": record.operation,
            "key": record.key,
        }
        begin = key | {
            "fingerprint": record.fingerprint,
            "outbox_id": record.outbox_id,
            "created_at": record.created_at,
        }
        statements: list[Statement] = [("begin_idempotent", begin), ("find_idempotent", key)]
        if send is not None:
            statements.insert(1, ("record_idempotent_send", msgspec.structs.asdict(send) | key))
        begun, *_, found = await self._database.execute_all(statements)
        _require_session(found)
        return None if begun else idempotency_record(found[0])

    async def find_idempotent(
        self, session_id: SessionId, operation: str, key: str
    ) -> IdempotencyRecord | None:
        """The call that has the key, if one has."""
        rows = await self._database.fetch(
            "find_idempotent", session_id=session_id, operation=operation, key=key
        )
        return idempotency_record(rows[0]) if rows else None

    async def finish_idempotent(self, answer: IdempotentAnswer) -> None:
        """Keep the answer for replay. The first answer stays: it is what the client may have seen."""
        await self._database.execute("finish_idempotent", **_answer_values(answer))

    async def forget_idempotent(self, session_id: SessionId, operation: str, key: str) -> None:
        """Give a key back that came to nothing, so that the call may be made again. An answered one stays."""
        await self._database.execute(
            "forget_idempotent", session_id=session_id, operation=operation, key=key
        )

    async def purge_expired(self, now: datetime, *, keys: timedelta, sends: timedelta) -> None:
        """Forget idempotency keys older than ``keys``, sends that ended longer ago than ``sends``, and refresh tokens
        that have expired."""
        await self._database.execute_all(
            [
                ("purge_idempotency_keys", {"before": now - keys}),
                ("purge_outbox_messages", {"before": now - sends}),
                ("purge_refresh_tokens", {"now": now}),
            ]
        )

    # ---- the outbox

    async def record_send(self, send: OutboxRecord) -> None:
        """Remember a message before its first octet goes out."""
        rows = await self._database.execute("record_each_send", **msgspec.structs.asdict(send))
        _require_session(rows)

    async def settle_send(
        self,
        outbox_id: OutboxId,
        *,
        state: SendState,
        result: bytes,
        finished_at: datetime,
        answer: IdempotentAnswer | None = None,
        freed: tuple[SessionId, str, str] | None = None,
    ) -> None:
        """Remember how a send ended, and in the same transaction the ``answer`` of the key that named it; or that this
        key (of a session, for an operation) is ``freed``, since nothing came of it.

        What is known to be sent or to have failed stays so, whatever comes late.
        """
        settled = {"id": outbox_id, "state": state, "result": result, "finished_at": finished_at}
        statements: list[Statement] = [("settle_each_send", settled)]
        if answer is not None:
            statements.append(("finish_idempotent", _answer_values(answer)))
        if freed is not None:
            key = dict(zip(("session_id", "operation", "key"), freed, strict=True))
            statements.append(("forget_idempotent", key))
        await self._database.execute_all(statements)

    async def amend_send(
        self, outbox_id: OutboxId, *, result: bytes, answer: IdempotentAnswer | None = None
    ) -> None:
        """Complete the result of a message that is sent: where its copy is, known only afterwards."""
        statements: list[Statement] = [("amend_each_send", {"id": outbox_id, "result": result})]
        if answer is not None:
            statements.append(("finish_idempotent", _answer_values(answer)))
        await self._database.execute_all(statements)

    async def find_send(self, session_id: SessionId, outbox_id: OutboxId) -> OutboxRecord | None:
        """The send, if it is this session's."""
        rows = await self._database.fetch("find_send", id=outbox_id, session_id=session_id)
        return convert(rows[0], OutboxRecord) if rows else None

    async def settle_interrupted_sends(self, now: datetime) -> int:
        """Rule on what a process that died has left: to be called at start, before any send.

        What was being sent may have been delivered: it becomes ``uncertain``. A key still without an answer, and
        without a send, has done nothing: it is given back. Returns how many sends are uncertain now.
        """
        uncertain, _ = await self._database.execute_all(
            [("settle_interrupted_sends", {"now": now}), ("forget_interrupted_calls", {})]
        )
        return len(uncertain)


def _require_session(rows: list[Row]) -> None:
    """Statements that need a session find no row to work on where it has ended."""
    if not rows:
        raise SessionNotFound("There is no such session.")


def _session_values(session: SessionRecord) -> dict[str, object]:
    values = msgspec.structs.asdict(session)
    for protocol in ("imap", "smtp"):
        server = msgspec.structs.asdict(values.pop(protocol))
        values |= {f"{protocol}_{field}": value for field, value in server.items()}
    return values


def _session(row: Row) -> SessionRecord:
    servers = {
        protocol: {
            field: row[f"{protocol}_{field}"] for field in ("host", "port", "security", "username")
        }
        for protocol in ("imap", "smtp")
    }
    return convert(row | servers, SessionRecord)


def _answer_values(answer: IdempotentAnswer) -> dict[str, object]:
    response = answer.response
    return {
        "session_id": answer.session_id,
        "operation": answer.operation,
        "key": answer.key,
        "status": response.status,
        "headers": msgspec.json.encode(response.headers).decode(),
        "body": response.body,
    }


def idempotency_record(row: Row) -> IdempotencyRecord:
    """The call that has a key, with its answer if there is one."""
    response = None
    if row["status"] is not None:
        headers = msgspec.json.decode(row["headers"], type=dict[str, str])
        response = StoredResponse(row["status"], headers, row["body"])
    return convert(row | {"response": response}, IdempotencyRecord)
