"""What becomes of messages, appended to a log and folded into their rows by the hundred.

Every message in flight waits for what is recorded of it, and the log takes a tenth of the time that a transaction does. So
each group of events is one entry of it; in memory it is kept as it is, until the next fold brings it into the rows, in
one transaction.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec

from cbemail.store.batch_records import MessageEvent
from cbemail.store.database import Database, Entry, Row, Statement

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[MessageEvent]).decode

# The log is emptied whenever all of it is folded; where it never is, because events come all the time, those who bring
# some wait at this size until it is: a blink, once in some fifty thousand messages.
LARGEST_LOG = 16 * 1024 * 1024

_Group = tuple[int, Sequence[MessageEvent]]


class EventJournal:
    """One instance a database: it numbers the groups, and knows which are not folded in yet."""

    def __init__(self, database: Database, *, largest_log: int = LARGEST_LOG) -> None:
        self._database = database
        self._largest_log = largest_log
        self._folding = asyncio.Lock()  # an older fold must not come after a newer one
        self._waiting: list[_Group] = []  # on disk, by number
        self._under_way: set[asyncio.Future[None]] = set()  # to it
        self._open = asyncio.Event()
        self._open.set()
        self._last = 0
        self._is_known = False  # that memory holds what the disk does
        self._has_earlier = False  # that an earlier version has left some in a table

    async def append(self, events: Sequence[MessageEvent]) -> None:
        """Put events on disk, all or none. Of one row the later event counts.

        Done whole, even where the caller is cancelled: what is on disk must be known to be.
        """
        if not events:
            return
        if not self._is_known:
            async with self._folding:
                await self._know()
        await self._open.wait()
        self._last += 1
        group = (self._last, events)
        appending = self._database.log.append(Entry(self._last, _encode(events)))
        self._under_way.add(appending)
        appending.add_done_callback(partial(self._appended, group))
        await asyncio.shield(appending)

    def _appended(self, group: _Group, appending: "asyncio.Future[None]") -> None:
        self._under_way.discard(appending)
        if appending.exception() is None:
            self._waiting.append(group)

    async def fold(self, *statements: Statement) -> list[list[Row]]:
        """The results of ``statements``, in a transaction that brings the rows up to date before.

        Done whole, even where the caller is cancelled: what is folded in must be known to be.
        """
        task = asyncio.create_task(self._fold(statements))
        return await asyncio.shield(task)

    async def _fold(self, statements: Sequence[Statement]) -> list[list[Row]]:
        async with self._folding:
            await self._know()
            if self._database.log.octets <= self._largest_log:
                return await self._fold_in(statements)
            self._open.clear()  # so that it is emptied
            try:
                return await self._fold_in(statements)
            finally:
                self._open.set()

    async def _fold_in(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """What is on disk; what was asked for before is waited for."""
        if self._under_way:
            await asyncio.wait(set(self._under_way))
        groups = list(self._waiting)
        if not groups:
            return await self._database.execute_all(statements) if statements else []
        folded = _fold_of(groups)
        if self._has_earlier:
            folded.append(("forget_earlier_events", {}))
        done = await self._database.execute_all([*folded, *statements])
        del self._waiting[: len(groups)]
        self._has_earlier = False
        if not self._waiting and not self._under_way:
            self._database.log.clear()
        return done[len(folded) :]

    async def _know(self) -> None:
        """Read what a process before has left."""
        if self._is_known:
            return
        [state] = await self._database.fetch("find_log")
        earlier = await self._database.fetch("load_earlier_events")
        entries = await self._database.log.entries(state["folded"])
        if not self._is_known:
            found = [(row["sequence"], row["events"]) for row in earlier] + list(entries)
            self._waiting = [(number, _decode(events)) for number, events in found]
            self._last = max([state["folded"], *(number for number, _ in found)])
            self._has_earlier = bool(earlier)
            self._is_known = True


def _fold_of(groups: Sequence[_Group]) -> list[Statement]:
    latest = {(event.batch, event.row): event for _, events in groups for event in events}
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
    return [rows, ("note_folded", {"sequence": groups[-1][0]})]
