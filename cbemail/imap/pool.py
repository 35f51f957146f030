"""Lends authenticated connections, a few a session, kept warm between requests.

Who gets which connection is decided without awaiting; connecting and selecting happen outside the decision. So the
books (how many are open, who waits) are right at every `await`, whatever is cancelled there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from msgspec import Struct, field

from cbemail.errors import CbemailError, Overloaded
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection, ServerLimit
from cbemail.imap.messages import select
from cbemail.imap.protocol import FolderPath
from cbemail.timing import spent_on

ACQUIRE_SECONDS = 10.0  # how long a request waits for its turn before it is told to come back
WAITERS_PER_SESSION = 256  # more than that could not be served in that time anyway
LIMIT_MEMORY_SECONDS = 300.0  # how long a server's own limit is believed before one more is tried

Connect = Callable[[SessionId], Awaitable[ImapConnection]]


class _Slot(Struct, eq=False):
    """One session's connections. ``live`` counts those lent, idle and being opened."""

    session_id: SessionId
    bound: int
    live: int = 0
    idle: list[ImapConnection] = field(default_factory=list)  # the most recently used last
    waiters: deque[_Waiter] = field(default_factory=deque)
    bound_learnt_at: float | None = None


class _Waiter(Struct, eq=False):
    """A request in the queue. It is answered with a connection, or with None: open one, it is already counted."""

    slot: _Slot
    turn: asyncio.Future[ImapConnection | None]


class PoolStatistics(Struct, frozen=True):
    lent: int
    idle: int
    waiting: int


class ImapPool:
    """Connections per session, bounded per session and in total.

    Args:
        connect: opens and authenticates a connection for a session.
        per_session: connections one session may have at once.
        total: connections over all sessions; the least recently used idle one gives way to a new one.
        idle_seconds: how long an unused connection stays open; 0 closes it at once.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        per_session: int,
        total: int,
        idle_seconds: float,
        acquire_seconds: float = ACQUIRE_SECONDS,
    ) -> None:
        self._connect = connect
        self._per_session = per_session
        self._total_bound = total
        self._idle_seconds = idle_seconds
        self._acquire_seconds = acquire_seconds
        self._slots: dict[SessionId, _Slot] = {}
        self._idle: OrderedDict[ImapConnection, tuple[_Slot, asyncio.TimerHandle]] = OrderedDict()
        self._total = 0

    @asynccontextmanager
    async def lease(
        self, session_id: SessionId, folder: FolderPath | None = None
    ) -> AsyncIterator[ImapConnection]:
        """Lend a connection, with ``folder`` selected if one is named, for as long as the block runs.

        Prefers an idle connection that already has ``folder`` selected (no round trip), then any idle one, then a new
        one. A session that already has ``per_session`` connections out waits its turn, first come first served.

        The connection goes back to the pool only if the block left it between commands. Leaving mid-command, by error
        or by cancellation, closes it: the reply still on its way would be taken for the answer to the next command.

        Raises:
            Overloaded: no connection came free in time.
            CredentialsStale: the server no longer accepts the stored credentials.
            FolderNotFound: ``folder`` does not exist, or cannot be selected.
        """
        slot = self._slots.get(session_id)
        if slot is None:
            slot = self._slots[session_id] = _Slot(session_id, self._per_session)
        try:
            with spent_on("wait"):
                connection = await self._acquire(slot, folder)
        finally:
            self._forget_if_empty(slot)
        try:
            if folder is not None and (
                connection.selected is None or connection.selected.path != folder
            ):
                await select(connection, folder)
            yield connection
        finally:
            self._release(slot, connection)
            self._forget_if_empty(slot)

    # ---- acquiring

    async def _acquire(self, slot: _Slot, folder: FolderPath | None) -> ImapConnection:
        connection = self._take_idle(slot, folder)
        if connection is not None:
            return connection
        if not slot.waiters and self._grant(slot):
            return await self._open(slot)
        connection = await self._wait(slot)
        if connection is not None:
            return connection
        return await self._open(slot)

    def _take_idle(self, slot: _Slot, folder: FolderPath | None) -> ImapConnection | None:
        if slot.waiters:
            return None  # they were here first
        while slot.idle:
            fitting = (
                i
                for i in reversed(range(len(slot.idle)))
                if (selected := slot.idle[i].selected) is not None and selected.path == folder
            )
            connection = slot.idle.pop(next(fitting, -1))
            _, timer = self._idle.pop(connection)
            timer.cancel()
            if not connection.broken:
                return connection
            self._uncount(slot)
        return None

    def _grant(self, slot: _Slot) -> bool:
        """Count one more connection for ``slot`` if that is allowed; its opener must open or uncount it."""
        now = asyncio.get_running_loop().time()
        if slot.bound_learnt_at is not None and now - slot.bound_learnt_at > LIMIT_MEMORY_SECONDS:
            slot.bound, slot.bound_learnt_at = min(slot.bound + 1, self._per_session), now
        if slot.live >= slot.bound:
            return False
        if self._total >= self._total_bound and not self._evict():
            return False
        slot.live += 1
        self._total += 1
        return True

    def _evict(self) -> bool:
        """Close the idle connection that was used longest ago, whosever it is."""
        if not self._idle:
            return False
        connection = next(iter(self._idle))
        self._discard_idle(connection)
        return True

    async def _wait(self, slot: _Slot) -> ImapConnection | None:
        if len(slot.waiters) >= WAITERS_PER_SESSION:
            raise _busy()
        waiter = _Waiter(slot, asyncio.get_running_loop().create_future())
        slot.waiters.append(waiter)
        try:
            async with asyncio.timeout(self._acquire_seconds):
                return await waiter.turn
        except BaseException as exc:
            self._give_up(waiter)
            if isinstance(exc, TimeoutError):
                raise _busy() from exc
            raise

    def _give_up(self, waiter: _Waiter) -> None:
        """Leave the queue; and if the turn came at this very moment, pass it on."""
        if waiter in waiter.slot.waiters:
            waiter.slot.waiters.remove(waiter)
        elif waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
            connection = waiter.turn.result()
            if connection is None:
                self._uncount(waiter.slot)
            else:
                self._release(waiter.slot, connection)

    async def _open(self, slot: _Slot) -> ImapConnection:
        """Open the connection that is already counted."""
        try:
            connection = await self._connect(slot.session_id)
        except BaseException as exc:
            self._uncount(slot)
            if isinstance(exc, ServerLimit) and slot.live > 0:
                slot.bound, slot.bound_learnt_at = slot.live, asyncio.get_running_loop().time()
                return await self._acquire_after_limit(slot)
            if isinstance(exc, ServerLimit):
                raise _busy() from exc
            if isinstance(exc, CbemailError) and slot.live == 0:
                self._fail_waiters(slot, exc)
            raise
        return connection

    async def _acquire_after_limit(self, slot: _Slot) -> ImapConnection:
        """The server allows fewer than we do: share those that are open."""
        connection = self._take_idle(slot, None) or await self._wait(slot)
        return connection or await self._open(slot)

    def _fail_waiters(self, slot: _Slot, error: CbemailError) -> None:
        """Tell all who wait what the first one learnt: each would only try, and fail, after the other."""
        while slot.waiters:
            turn = slot.waiters.popleft().turn
            if not turn.done():
                turn.set_exception(error)

    # ---- giving back

    def _release(self, slot: _Slot, connection: ImapConnection) -> None:
        if connection.broken or slot.live > slot.bound:
            connection.close()
            self._uncount(slot)
            return
        while slot.waiters:
            turn = slot.waiters.popleft().turn
            if not turn.done():
                turn.set_result(connection)
                return
        if self._idle_seconds <= 0:
            connection.close()
            self._uncount(slot)
            return
        slot.idle.append(connection)
        timer = asyncio.get_running_loop().call_later(
            self._idle_seconds, self._discard_idle, connection
        )
        self._idle[connection] = (slot, timer)
        if self._total >= self._total_bound:
            self._serve_others()

    def _uncount(self, slot: _Slot) -> None:
        """A connection is gone: whoever waits for one may open another."""
        slot.live -= 1
        self._total -= 1
        self._serve(slot)
        if self._total == self._total_bound - 1:
            self._serve_others()

    def _serve(self, slot: _Slot) -> None:
        while slot.waiters and self._grant(slot):
            turn = slot.waiters.popleft().turn
            if turn.done():
                slot.live -= 1
                self._total -= 1
            else:
                turn.set_result(None)

    def _serve_others(self) -> None:
        """Sessions that wait only because of the total: rare, so a scan will do."""
        for slot in list(self._slots.values()):
            if slot.waiters and slot.live < slot.bound:
                self._serve(slot)

    def _discard_idle(self, connection: ImapConnection) -> None:
        slot, timer = self._idle.pop(connection)
        timer.cancel()
        slot.idle.remove(connection)
        connection.close()
        self._uncount(slot)
        self._forget_if_empty(slot)

    def _forget_if_empty(self, slot: _Slot) -> None:
        """A session without connections costs nothing here, unless a limit was learnt for it."""
        unused = slot.live == 0 and not slot.waiters and slot.bound_learnt_at is None
        if unused and self._slots.get(slot.session_id) is slot:
            del self._slots[slot.session_id]

    # ---- for those who know more

    def adopt(self, session_id: SessionId, connection: ImapConnection) -> None:
        """Take over a connection that was opened elsewhere: the login that proved a new session's credentials."""
        slot = self._slots.setdefault(session_id, _Slot(session_id, self._per_session))
        if self._grant(slot):
            self._release(slot, connection)
        else:
            connection.close()
        self._forget_if_empty(slot)

    def deselect(self, session_id: SessionId, folder: FolderPath) -> None:
        """Close idle connections that have ``folder`` selected: it is about to be deleted or renamed under them."""
        slot = self._slots.get(session_id)
        for connection in list(slot.idle) if slot is not None else ():
            if connection.selected is not None and connection.selected.path == folder:
                self._discard_idle(connection)

    # ---- closing

    def close_session(self, session_id: SessionId) -> None:
        """Close what a session has open. What is lent is closed when it comes back."""
        slot = self._slots.pop(session_id, None)
        if slot is None:
            return
        slot.bound = 0
        self._fail_waiters(slot, Overloaded("The session was closed."))
        for connection in list(slot.idle):
            self._discard_idle(connection)

    def close(self) -> None:
        """Close every session's connections."""
        for session_id in list(self._slots):
            self.close_session(session_id)

    def statistics(self) -> PoolStatistics:
        """Counts over all sessions: connections lent or opening, idle ones, and requests that wait."""
        idle = len(self._idle)
        waiting = sum(len(slot.waiters) for slot in self._slots.values())
        return PoolStatistics(self._total - idle, idle, waiting)


def _busy() -> Overloaded:
    return Overloaded(
        "Every connection this session may have to its mail server is busy.", retry_after=2
    )
