"""The books of the pool: how many connections each session has, which of them are idle, and who waits for one.

Everything here is decided without awaiting, so the books are right at every `await` of those who use them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from itertools import count

from msgspec import Struct, field

from cbemail.errors import CbemailError, Overloaded
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.protocol import FolderPath
from cbemail.imap.refusals import ServerLimit
from cbemail.metrics import PoolStatistics

WAITERS_PER_SESSION = 256  # more than that could not be served in the time that a request waits

# How long a session makes do with the connections it has after the server took no more of them: long where it said
# that this is a limit, a moment where it merely failed, and where it has a limit but we have nothing to share.
LIMIT_MEMORY_SECONDS = 60.0
FAILURE_MEMORY_SECONDS = 1.0


class Waiter(Struct, eq=False):
    """A request in the queue. Its turn brings a connection, or None: open one, its place is taken."""

    turn: asyncio.Future[ImapConnection | None]
    number: int  # in order of arrival, over all sessions


class Slot(Struct, eq=False):
    """One session's connections, and who wants one. A waiter and an idle connection are never here together."""

    session_id: SessionId
    bound: int
    recovery: asyncio.TimerHandle | None = None  # while the bound is a learnt one
    opening: int = 0
    lent: dict[ImapConnection, bool] = {}  # and whether it may be lent again
    idle: list[ImapConnection] = []  # the most recently used last
    waiters: deque[Waiter] = field(default_factory=deque)
    leases: int = 0  # under way, from before the connection is found
    closed: bool = False

    @property
    def live(self) -> int:
        return self.opening + len(self.lent) + len(self.idle)


class Slots:
    """The slots of all sessions, within the bounds of each and of all together."""

    def __init__(self, *, per_session: int, total: int, idle_seconds: float) -> None:
        self._per_session = per_session
        self._total_bound = total
        self._idle_seconds = idle_seconds
        self._by_session: dict[SessionId, Slot] = {}
        self._total = 0  # live connections, those of closed sessions included
        self._opening = 0  # of them
        # The least recently used first. While there is one, nobody waits for the total alone.
        self._idle: OrderedDict[ImapConnection, tuple[Slot, asyncio.TimerHandle]] = OrderedDict()
        self._queues: set[Slot] = set()  # those with waiters
        self._numbers = count(1)

    # ---- who has a slot

    def enter(self, session_id: SessionId) -> Slot:
        """The session's slot, which stays until `leave`: a connection is wanted of it, or brought to it."""
        slot = self._by_session.setdefault(session_id, Slot(session_id, self._per_session))
        slot.leases += 1
        return slot

    def leave(self, slot: Slot) -> None:
        slot.leases -= 1
        self._forget_if_unused(slot)

    def _forget_if_unused(self, slot: Slot) -> None:
        """A session without connections costs nothing here, unless a limit was learnt for it."""
        unused = slot.leases == 0 and slot.live == 0 and slot.recovery is None
        if unused and self._by_session.get(slot.session_id) is slot:
            del self._by_session[slot.session_id]

    # ---- who may have a connection

    def take_idle(self, slot: Slot, folder: FolderPath | None) -> ImapConnection | None:
        """The idle connection with ``folder`` selected, or the latest used; one that the server closed is dropped."""
        for connection in [each for each in slot.idle if each.broken]:
            self._drop_idle(connection)
        if not slot.idle:
            return None
        fitting = (each for each in reversed(slot.idle) if has_selected(each, folder))
        connection = next(fitting, slot.idle[-1])
        slot.idle.remove(connection)
        _, timer = self._idle.pop(connection)
        timer.cancel()
        slot.lent[connection] = True
        return connection

    def _has_room(self, slot: Slot) -> bool:
        return slot.live < slot.bound and (self._total < self._total_bound or bool(self._idle))

    def take_place(self, slot: Slot) -> bool:
        """Count one more connection if the bounds allow it; who gets the place opens a connection, or leaves it."""
        if not self._has_room(slot):
            return False
        if self._total >= self._total_bound:
            self._drop_idle(next(iter(self._idle)))
        slot.opening += 1
        self._opening += 1
        self._total += 1
        return True

    def leave_place(self, slot: Slot, error: CbemailError | None = None) -> None:
        """The connection was not opened. What the server refused to one is not tried again at once by all the others:
        they share what is open, and if nothing is, they are told the same."""
        slot.opening -= 1
        self._opening -= 1
        self._total -= 1
        if error is not None and not slot.closed:
            self._learn_from(slot, error)
        self._serve()

    def fill_place(self, slot: Slot, connection: ImapConnection) -> None:
        """The connection was opened, and is lent to who opened it."""
        slot.opening -= 1
        self._opening -= 1
        slot.lent[connection] = True

    def _learn_from(self, slot: Slot, error: CbemailError) -> None:
        is_limit = isinstance(error, ServerLimit)
        if slot.live == 0:
            self._fail_waiters(slot, limited() if is_limit else error)
        if is_limit and slot.live:
            self._learn_bound(slot, LIMIT_MEMORY_SECONDS)
        elif is_limit or slot.live:
            self._learn_bound(slot, FAILURE_MEMORY_SECONDS)

    def _learn_bound(self, slot: Slot, memory: float) -> None:
        if slot.recovery is not None:
            slot.recovery.cancel()
        slot.bound = slot.live
        slot.recovery = asyncio.get_running_loop().call_later(memory, self._forget_bound, slot)

    def _forget_bound(self, slot: Slot) -> None:
        slot.bound, slot.recovery = self._per_session, None
        self._serve()
        self._forget_if_unused(slot)

    # ---- who waits

    def enqueue(self, slot: Slot, *, came_first: bool) -> Waiter:
        if slot.closed:
            raise session_closed()
        if slot.bound == 0:
            raise limited()  # there is nothing to wait for
        if len(slot.waiters) >= WAITERS_PER_SESSION:
            raise busy()
        turn = asyncio.get_running_loop().create_future()
        waiter = Waiter(turn, next(self._numbers))
        if came_first:
            slot.waiters.appendleft(waiter)
        else:
            slot.waiters.append(waiter)
        self._queues.add(slot)
        self._serve()
        return waiter

    def _dequeue(self, slot: Slot, waiter: Waiter) -> None:
        slot.waiters.remove(waiter)
        if not slot.waiters:
            self._queues.discard(slot)

    def _serve(self) -> None:
        """Let those who wait open what there is room for, the longest waiting first."""
        while ready := [slot for slot in self._queues if self._has_room(slot)]:
            slot = min(ready, key=lambda each: each.waiters[0].number)
            waiter = slot.waiters[0]
            self.take_place(slot)
            self._dequeue(slot, waiter)
            waiter.turn.set_result(None)

    def give_up(self, slot: Slot, waiter: Waiter) -> None:
        """Leave the queue; and if the turn came at this very moment, pass it on."""
        if not waiter.turn.done():
            self._dequeue(slot, waiter)
        elif waiter.turn.exception() is None:
            connection = waiter.turn.result()
            if connection is None:
                self.leave_place(slot)
            else:
                self.take_back(slot, connection)

    def _fail_waiters(self, slot: Slot, error: CbemailError) -> None:
        for waiter in list(slot.waiters):
            self._dequeue(slot, waiter)
            waiter.turn.set_exception(error)

    # ---- what becomes of a connection

    def take_back(self, slot: Slot, connection: ImapConnection) -> None:
        """Take a connection back: for the next who waits, or to be kept warm, or to be closed."""
        may_be_lent = slot.lent.pop(connection) and not slot.closed and connection.usable
        if (
            connection.vanished
        ):  # and the server with it: each of the others would be found so after seconds only
            for each in slot.idle:
                each.abort()
        if not may_be_lent or self._idle_seconds <= 0:
            connection.close()
            self._total -= 1
        elif slot.waiters:
            waiter = slot.waiters[0]
            self._dequeue(slot, waiter)
            slot.lent[connection] = True
            waiter.turn.set_result(connection)
        else:
            self._keep(slot, connection)
        self._serve()

    def _keep(self, slot: Slot, connection: ImapConnection) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._idle_seconds, self._drop_idle, connection)
        slot.idle.append(connection)
        self._idle[connection] = (slot, timer)

    def _drop_idle(self, connection: ImapConnection) -> None:
        """Close an idle connection. Nobody can be waiting for its place, or it would not be idle."""
        slot, timer = self._idle.pop(connection)
        timer.cancel()
        slot.idle.remove(connection)
        connection.close()
        self._total -= 1
        self._forget_if_unused(slot)

    def deselect(self, session_id: SessionId, folder: FolderPath) -> None:
        """Let no later lease find ``folder``, or one below it, selected."""
        slot = self._by_session.get(session_id)
        if slot is None:
            return
        for connection in list(slot.idle):
            if connection.selected is not None and connection.selected.path.startswith(folder):
                self._drop_idle(connection)
        slot.lent = dict.fromkeys(slot.lent, False)  # which of them will have selected it is open

    def close_session(self, session_id: SessionId) -> None:
        """Close what a session has open. What is lent is closed when it comes back."""
        slot = self._by_session.pop(session_id, None)
        if slot is None:
            return
        slot.closed = True
        if slot.recovery is not None:
            slot.recovery.cancel()
        self._fail_waiters(slot, session_closed())
        for connection in list(slot.idle):
            self._drop_idle(connection)

    def close(self) -> None:
        for session_id in list(self._by_session):
            self.close_session(session_id)

    def statistics(self) -> PoolStatistics:
        """Counts over all sessions."""
        idle = len(self._idle)
        lent = self._total - self._opening - idle
        waiting = sum(len(slot.waiters) for slot in self._queues)
        return PoolStatistics(lent, idle, waiting, self._opening)


def has_selected(connection: ImapConnection, folder: FolderPath | None) -> bool:
    selected = connection.selected
    return selected is not None and selected.path == folder and not selected.emptied


# ---- why there is none


def busy() -> Overloaded:
    return Overloaded(
        "Every connection this session may have to its mail server is busy.", retry_after=2
    )


def limited() -> Overloaded:
    return Overloaded(
        "The mail server allows this mailbox no further connection at the moment.", retry_after=5
    )


def session_closed() -> Overloaded:
    return Overloaded("The session's connections were closed.", retry_after=1)
