"""The memory of batches that were accepted: what has become of each recipient. The SQL is in ``sql/queries.sql``."""

from asyncio import Event
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import convert

from cbemail.ids import SessionId
from cbemail.store.batch_records import (
    EARLIER_TRY,
    BatchOptions,
    BatchRecord,
    BatchState,
    MessageEvent,
    MessageRow,
)
from cbemail.store.database import Database, Row, Statement
from cbemail.store.event_journal import EventJournal
from cbemail.store.records import SendState

_PIECES = 64  # of a content, read at a time
_INTERRUPTED = "The service stopped while this message was being sent: it may have been delivered."


class BatchRepository:
    """Batches once they are published (`StagedBatches`): their contents, their messages and the journal of these, over
    any `Database`.

    A method that changes something returns when the change is on disk. Time is an argument. What belongs to a
    session goes with it. Every method raises `Overloaded` where the database is out of disk or has failed.

    What becomes of a message is appended to a journal, which costs a tenth of changing its row, and is folded into
    the rows by the hundred (`EventJournal`). Nobody sees the difference: whoever asks for rows has the journal folded
    in first. One instance a database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._journal = EventJournal(database)

    @property
    def failed(self) -> Event:
        """Set once nothing can be written any more, and the process should exit."""
        return self._database.failed

    # ---- batches

    async def load_unfinished(self) -> list[BatchRecord]:
        """Batches with something left to do, the oldest first."""
        return _records(await self._database.fetch("load_unfinished_batches"))

    async def load_undecided(self) -> list[BatchRecord]:
        """Batches, in whatever state, that have uncertain messages."""
        await self._journal.fold()
        return _records(await self._database.fetch("load_undecided_batches"))

    async def find_batch(self, session_id: SessionId, batch_id: str) -> BatchRecord | None:
        """The batch, if it is this session's and was published."""
        rows = await self._database.fetch("find_batch", session_id=session_id, id=batch_id)
        return _records(rows)[0] if rows else None

    async def page(
        self, session_id: SessionId, *, before: int | None, limit: int
    ) -> list[BatchRecord]:
        """Batches of a session (of the kind ``batch``) whose number is below ``before``, the newest first."""
        rows = await self._database.fetch(
            "page_batches", session_id=session_id, before=before, limit=limit
        )
        return _records(rows)

    async def counts(self, batches: Sequence[int]) -> dict[int, dict[SendState, int]]:
        """How many messages each batch has in each state; only states that occur."""
        await self._journal.fold()
        rows = await self._database.fetch("count_batch_messages", batches=list(batches))
        counts: dict[int, dict[SendState, int]] = {batch: {} for batch in batches}
        for row in rows:
            counts[row["batch"]][SendState(row["state"])] = row["messages"]
        return counts

    async def set_state(
        self,
        batch: int,
        state: BatchState,
        *,
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
        paused_reason: str | None = None,
        paused_until: datetime | None = None,
    ) -> None:
        """Remember the state of a published batch, with all that goes with it: what is not given is cleared.

        Only ``started_at`` is set once, and stays as it was first given. A batch that is gone is passed over.
        """
        await self._database.execute(
            "set_batch_state",
            batch=batch,
            state=state,
            started_at=started_at,
            finished_at=finished_at,
            paused_reason=paused_reason,
            paused_until=paused_until,
        )

    # ---- sending

    async def claim(
        self, batch: int, *, now: datetime, held: Sequence[int], limit: int, suspects: int
    ) -> list[MessageRow]:
        """Take up to ``limit`` rows that are due, the longest overdue first.

        ``held`` are those the caller has taken and recorded no outcome of: nothing else keeps a row from being
        given again. So a batch has one caller at a time.

        A row of which the making has begun ``suspects`` times (`count_claims`) without an outcome may be what kills the process, or have been beside what does. Such are taken only when no
        other row is due, in groups that are an eighth as large with each claim more and alone in the end, and none
        while another group of them is held.
        """
        await self._journal.fold()
        due = {"batch": batch, "now": now, "held": list(held), "suspects": suspects, "limit": limit}
        found = await self._database.fetch("find_due_batch_messages", **due)
        if not found and limit:
            found = await self._database.fetch("find_suspect_batch_messages", **due)
            found = _group_of_suspects(found, limit, suspects)
        if not found:
            return []
        rows = [row["row_number"] for row in found]
        return _messages(
            await self._database.fetch("load_claimed_messages", **_chosen(batch, rows))
        )

    async def count_claims(self, batch: int, rows: Sequence[int]) -> None:
        """The making of rows that were claimed is about to begin, for the first of them: should the process die of it,
        the next one knows. It counts until a row has an outcome."""
        await self._database.execute("count_batch_claims", **_chosen(batch, rows))

    async def next_due(self, batch: int, *, held: Sequence[int]) -> datetime | None:
        """When the next row that is not ``held`` may be tried. None: no row is left to be tried."""
        await self._journal.fold()
        rows = await self._database.fetch("next_due_batch_message", batch=batch, held=list(held))
        due: datetime | None = rows[0]["next_attempt_at"]
        return due

    async def record(self, events: Sequence[MessageEvent]) -> None:
        """Append to the journal, all or none. Of one row the later event counts."""
        await self._journal.append(events)

    async def fold(self) -> None:
        """Bring the rows up to date with the journal, and empty it.

        The latest event of a row says all about it: what that leaves out is cleared. An outcome (any state but
        ``sending``) ends the row's count of claims.
        """
        await self._journal.fold()

    async def sent_by_hour(
        self, *, host: str, username: str, since: datetime
    ) -> list[tuple[datetime, int]]:
        """How many recipients an account was, or may have been, sent messages to since then, in batches and one by one,
        by the hour. The account is a login at an SMTP host, both in lower case, whatever its sessions."""
        await self._journal.fold()
        rows = await self._database.fetch(
            "count_sent_by_hour", host=host, username=username, since=since
        )
        return [(row["began"], row["recipients"]) for row in rows]

    # ---- steering

    async def move_messages(
        self,
        batch: int,
        *,
        states: Sequence[SendState],
        to: SendState,
        now: datetime,
        held: Sequence[int] = (),
    ) -> dict[SendState, int]:
        """Move all rows in ``states``, but those ``held``; says how many left each state.

        To ``queued`` they go as good as new, due at once; to any other state for good, finished ``now``.
        """
        chosen = {"batch": batch, "states": [state.value for state in states], "held": list(held)}
        if to is SendState.QUEUED:
            move: Statement = (
                "requeue_batch_messages",
                chosen | {"now": now, "earlier_try": EARLIER_TRY},
            )
        elif to in {SendState.SENDING, SendState.DEFERRED}:
            raise ValueError(f"messages do not become {to} in bulk")
        else:
            move = ("end_batch_messages", chosen | {"now": now, "to": to})
        rows, _ = await self._journal.fold(("count_batch_messages_to_move", chosen), move)
        return {SendState(row["state"]): row["messages"] for row in rows}

    # ---- messages

    async def messages(
        self, batch: int, *, state: SendState | None, after: int | None, limit: int
    ) -> list[MessageRow]:
        """Rows after the row ``after``, in their order; those in ``state``, or all."""
        await self._journal.fold()
        first = -1 if after is None else after
        rows = await self._database.fetch(
            "page_batch_messages", batch=batch, state=state, after=first, limit=limit
        )
        return _messages(rows)

    async def rejected(self, batches: Sequence[int], *, limit: int) -> dict[int, list[MessageRow]]:
        """The first rows of each batch that were never queued. They are so from the beginning: no journal holds any."""
        rows = await self._database.fetch(
            "load_rejected_messages", batches=list(batches), limit=limit
        )
        rejected: dict[int, list[MessageRow]] = {batch: [] for batch in batches}
        for row, message in zip(rows, _messages(rows), strict=True):
            rejected[row["batch"]].append(message)
        return rejected

    async def undecided(self, batch: int) -> list[MessageRow]:
        """Every row that is uncertain."""
        await self._journal.fold()
        return _messages(await self._database.fetch("load_undecided_messages", batch=batch))

    async def load_content(self, batch: int, number: int) -> list[bytes]:
        """The pieces of a content, read some at a time: the engine holds no more of them."""
        content: list[bytes] = []
        found: list[Row] = []
        while not content or len(found) == _PIECES:
            first = len(content)
            found = await self._database.fetch(
                "load_batch_content", batch=batch, number=number, first=first, end=first + _PIECES
            )
            content += [piece["sealed"] for piece in found]
            if not found:
                break
        return content

    async def sent_message_ids(self, batch: int, message_ids: Sequence[str]) -> set[str]:
        """Those of the messages that another recipient of the batch is known to have been sent."""
        rows = await self._database.fetch(
            "find_sent_message_ids", batch=batch, message_ids=list(message_ids)
        )
        return {row["message_id"] for row in rows}

    async def decide(
        self, batch: int, row: int, *, sent: bool, detail: str | None, now: datetime
    ) -> bool:
        """What became of an uncertain message after all: it was ``sent``, or is to be sent again. False: it is no
        longer uncertain, since somebody else has decided."""
        [decided] = await self._journal.fold(
            (
                "decide_message",
                {
                    "batch": batch,
                    "row": row,
                    "state": SendState.SENT if sent else SendState.QUEUED,
                    "detail": detail,
                    "next_attempt_at": None if sent else now,
                    "finished_at": now if sent else None,
                },
            )
        )
        return bool(decided)

    async def content_octets(self, batch: int, number: int) -> int:
        """How large a content is, without reading it."""
        [row] = await self._database.fetch("measure_batch_content", batch=batch, number=number)
        return int(row["octets"])

    # ---- housekeeping

    async def recover(self, now: datetime) -> int:
        """Rule on what a process that died has left: to be called at start, before any claim.

        What was being sent may have been delivered: it becomes ``uncertain``; says how many did. What a cancelled batch
        had still waiting is cancelled. Batches that were being accepted are thrown away: nobody has been told of them.
        """
        uncertain, *_ = await self._journal.fold(
            ("settle_interrupted_messages", {"now": now, "detail": _INTERRUPTED}),
            ("cancel_interrupted_messages", {"now": now}),
            ("forget_unfinished_content", {}),
            ("forget_unfinished_messages", {}),
            ("forget_unfinished_batches", {}),
        )
        return len(uncertain)

    async def purge(self, before: datetime) -> None:
        """Forget batches that finished before then, with everything of theirs; one after the other, lest others wait."""
        queries = (
            "purge_batch_content",
            "purge_batch_messages",
            "purge_batch",
        )
        for row in await self._database.fetch("list_ended_batches", before=before):
            values = {"batch": row["number"], "before": before}
            await self._database.execute_all([(query, values) for query in queries])


def _records(rows: list[Row]) -> list[BatchRecord]:
    return [
        convert(
            row | {"options": msgspec.json.decode(row["options"], type=BatchOptions)}, BatchRecord
        )
        for row in rows
    ]


def _chosen(batch: int, rows: Sequence[int]) -> dict[str, Any]:
    """The bounds are for the engine, which finds rows by them."""
    return {"batch": batch, "rows": list(rows), "first": min(rows), "last": max(rows)}


def _group_of_suspects(found: Sequence[Row], limit: int, suspects: int) -> list[Row]:
    """Of rows in the order of their claims, those that go together."""
    if not found:
        return []
    fewest = found[0]["claims"]
    size = max(1, limit // 8 ** (fewest - suspects + 1))
    return [row for row in found[:size] if row["claims"] == fewest]


def _messages(rows: list[Row]) -> list[MessageRow]:
    return [convert(row | {"row": row["row_number"]}, MessageRow) for row in rows]
