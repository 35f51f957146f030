"""The memory of batches that are being accepted, which nobody is told of yet. The SQL is in ``sql/queries.sql``."""

from collections.abc import Sequence

import msgspec

from cbemail.errors import SessionNotFound
from cbemail.store.batch_records import BatchRecord, BatchState, NewMessageRow
from cbemail.store.database import Database, Row
from cbemail.store.records import IdempotencyRecord, StoredResponse
from cbemail.store.repository import idempotency_record

_PIECES = 64  # of a content, written at a time


class StagedBatches:
    """Batches on their way to disk, over any `Database`: begun, filled, and then published or discarded.

    `BatchRepository` does not find one before `publish`. Its start throws away those that a process left behind as it
    died. What belongs to a session goes with it and cannot be added after it. A method returns when its change is on
    disk. Every one raises `Overloaded` where the database is out of disk or has failed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, record: BatchRecord) -> int:
        """Begin a batch, whose contents and rows will follow; gives its number.

        Raises:
            SessionNotFound: its session has ended.
        """
        values = msgspec.structs.asdict(record)
        del values["number"], values["state"]
        values["options"] = msgspec.json.encode(record.options).decode()
        rows = await self._database.execute("add_batch", **values)
        _require_batch(rows)
        return int(rows[0]["number"])

    async def add_content(self, batch: int, number: int, pieces: Sequence[bytes]) -> None:
        """Keep one of the contents of a batch, piece by piece, which bounds the memory it takes.

        Raises:
            SessionNotFound: the batch went away with its session.
        """
        for start in range(0, len(pieces), _PIECES):
            some = enumerate(pieces[start : start + _PIECES], start)
            await self.add_contents(batch, [(number, piece, sealed) for piece, sealed in some])

    async def add_contents(self, batch: int, pieces: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep many small contents at once: the number, the piece and what is sealed of each.

        Raises:
            SessionNotFound: the batch went away with its session.
        """
        values = {
            "batch": batch,
            "numbers": [number for number, _, _ in pieces],
            "pieces": [piece for _, piece, _ in pieces],
            "sealed": [sealed for _, _, sealed in pieces],
        }
        await self._add("add_batch_contents", batch, values)

    async def add_messages(self, batch: int, rows: Sequence[NewMessageRow]) -> None:
        """Add rows. A few thousand at a time is best.

        Raises:
            SessionNotFound: the batch went away with its session.
        """
        values = {
            "batch": batch,
            "rows": [row.row for row in rows],
            "positions": [row.position for row in rows],
            "contents": [row.content for row in rows],
            "states": [row.state.value for row in rows],
            "message_ids": [row.message_id for row in rows],
            "sealed": [row.sealed for row in rows],
            "next_attempts": [row.next_attempt_at for row in rows],
            "codes": [row.code for row in rows],
            "details": [row.detail for row in rows],
        }
        await self._add("add_batch_messages", batch, values)

    async def publish(
        self,
        batch: int,
        *,
        state: BatchState,
        key: IdempotencyRecord | None = None,
        answer: StoredResponse | None = None,
    ) -> IdempotencyRecord | None:
        """Let a batch be seen, and with it its idempotency key and answer. None: it is done.

        However many publish with one key at a time, one does; the others change nothing, and get the call that has
        the key.

        Raises:
            SessionNotFound: the session has ended meanwhile. Nothing was published.
        """
        if (key is None) != (answer is None):
            raise ValueError("a key of a batch is kept with its answer, and only so")
        if key is None or answer is None:
            _require_batch(await self._database.execute("publish_batch", batch=batch, state=state))
            return None
        named = {"session_id": key.session_id, "operation": key.operation, "key": key.key}
        kept = named | {
            "batch": batch,
            "fingerprint": key.fingerprint,
            "created_at": key.created_at,
            "status": answer.status,
            "headers": msgspec.json.encode(answer.headers).decode(),
            "body": answer.body,
        }
        _, published, found = await self._database.execute_all(
            [
                ("record_batch_answer", kept),
                ("publish_batch_with_key", named | {"batch": batch, "state": state}),
                ("find_idempotent", named),
            ]
        )
        if published:
            return None
        _require_batch(found)
        return idempotency_record(found[0])

    async def discard(self, batch: int) -> None:
        """Throw away a batch. One that was published stays."""
        queries = ("discard_batch_content", "discard_batch_messages", "discard_batch")
        await self._database.execute_all([(query, {"batch": batch}) for query in queries])

    async def _add(self, query: str, batch: int, values: dict[str, object]) -> None:
        _, found = await self._database.execute_all(
            [(query, values), ("find_accepting_batch", {"batch": batch})]
        )
        _require_batch(found)


def _require_batch(rows: list[Row]) -> None:
    """Statements that need a batch, and a session it belongs to, find no row to work on where that has ended."""
    if not rows:
        raise SessionNotFound("There is no such session.")
