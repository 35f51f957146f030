"""What becomes of messages, appended to a journal and folded into their rows by the hundred.

To change thirty rows where they lie takes the engine four times as long as to append one value, and that is what every
message in flight waits for. So each group of events is one row of the journal, encoded; in memory it is kept as it is,
until the next fold brings it into the rows and empties the journal, in one transaction.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from cbemail.store.batch_records import MessageEvent
from cbemail.store.database import Database, Row, Statement

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[MessageEvent]).decode


_Group = tuple[int, Sequence[MessageEvent]]


class EventJournal:
    """One instance a database: it numbers the groups, and knows which are not folded in yet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._folding = asyncio.Lock()  # an older fold must not come after a newer one
        self._waiting: list[_Group] = []  # on disk or on their way, by number
        self._last = 0
        self._is_known = False  # that memory holds what the disk does

    async def append(self, events: Sequence[MessageEvent]) -> None:
        """Put events on disk, all or none. Of one row the later event counts.

        Done whole, even where the caller is cancelled: from the first await on it is the database's, which does one
        thing after the other. So a fold that is asked for meanwhile comes after it, and knows of it.
        """
        if not events:
            return
        if not self._is_known:
            async with self._folding:
                await self._know()
        self._last += 1
        group = (self._last, events)
        self._waiting.append(group)
        try:
            await self._database.execute_gathered(
                "record_batch_events", sequence=self._last, events=_encode(events)
            )
        except Exception:
            self._waiting = [each for each in self._waiting if each is not group]
            raise

    async def fold(self, *statements: Statement) -> list[list[Row]]:
        """The results of ``statements``, in a transaction that brings the rows up to date before.

        Done whole, even where the caller is cancelled: what is folded in must be known to be.
        """
        task = asyncio.create_task(self._fold(statements))
        return await asyncio.shield(task)

    async def _fold(self, statements: Sequence[Statement]) -> list[list[Row]]:
        async with self._folding:
            await self._know()
            groups = list(self._waiting)
            if groups:
                folded = _fold_of(groups)
                _, _, *results = await self._database.execute_all([*folded, *statements])
                done = {number for number, _ in groups}
                self._waiting = [group for group in self._waiting if group[0] not in done]
                return results
        return await self._database.execute_all(statements) if statements else []

    async def _know(self) -> None:
        """Read what a process before has left."""
        if self._is_known:
            return
        rows = await self._database.fetch("load_batch_events")
        if not self._is_known:
            self._waiting = [(row["sequence"], _decode(row["events"])) for row in rows]
            self._last = max([self._last, *(row["sequence"] for row in rows)])
            self._is_known = True


def _fold_of(groups: Sequence[_Group]) -> list[Statement]:
    latest = {
        (event.batch, event.row): event
        for _, events in sorted(groups, key=lambda group: group[0])
        for event in events
    }
    events = list(latest.values())
    rows: Statement = (
        "fold_batch_events",
        {
            "batches": [event.batch for event in events],
            "rows": [event.row for event in events],
            "states": [event.state.value for event in events],
            "attempts": [event.attempts for event in events],
            "statuses": [event.status for event in events],
            "enhanced": [event.enhanced for event in events],
            "details": [event.detail for event in events],
            "next_attempts": [event.next_attempt_at for event in events],
            "finished": [event.finished_at for event in events],
        },
    )
    return [rows, ("empty_batch_events", {"sequences": [number for number, _ in groups]})]
