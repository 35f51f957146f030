"""Lends authenticated connections, a few a session, kept warm between requests.

Who gets which connection is decided without awaiting; connecting and selecting happen outside the decision. So the
books (how many are open, who waits) are right at every `await`, whatever is cancelled there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count

from msgspec import Struct, field

from cbemail.errors import CbemailError, Overloaded, UpstreamUnavailable
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.protocol import FolderPath
from cbemail.imap.refusals import ServerLimit
from cbemail.imap.selecting import select
from cbemail.metrics import WAIT_SECONDS, Distribution, PoolStatistics, timed
from cbemail.timing import spent_on

ACQUIRE_SECONDS = 10.0  # how long a request waits for its turn before it is told to come back
WAITERS_PER_SESSION = 256  # more than that could not be served in that time anyway

# How long a session makes do with the connections it has after the server took no more of them: long where it said
# that this is a limit, a moment where it merely failed, and where it has a limit but we have nothing to share.
LIMIT_MEMORY_SECONDS = 60.0
FAILURE_MEMORY_SECONDS = 1.0

Connect = Callable[[SessionId], Awaitable[ImapConnection]]


class _Waiter(Struct, eq=False):
    """A request in the queue. Its turn brings a connection, or None: open one, its place is taken."""

    turn: asyncio.Future[ImapConnection | None]
    number: int  # in order of arrival, over all sessions


class _Slot(Struct, eq=False):
    """One session's connections, and who wants one. A waiter and an idle connection are never here together."""

    session_id: SessionId
    bound: int
    recovery: asyncio.TimerHandle | None = None  # while the bound is a learnt one
    opening: int = 0
    lent: dict[ImapConnection, bool] = {}  # and whether it may be lent again
    idle: list[ImapConnection] = []  # the most recently used last
    waiters: deque[_Waiter] = field(default_factory=deque)
    leases: int = 0  # under way, from before the connection is found
    closed: bool = False

    @property
    def live(self) -> int:
        return self.opening + len(self.lent) + len(self.idle)


class ImapPool:
    """Connections per session, bounded per session and in total.

    Args:
        connect: opens and authenticates a connection for a session.
        per_session: connections one session may have at once.
        total: connections over all sessions; the least recently used idle one gives way to a new one.
        idle_seconds: how long an unused connection stays open; 0 gives each lease a connection of its own.
        acquire_seconds: how long a lease waits for its turn.
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
        self._total = 0  # live connections, those of closed sessions included
        self._opening = 0  # of them
        # The least recently used first. While there is one, nobody waits for the total alone.
        self._idle: OrderedDict[ImapConnection, tuple[_Slot, asyncio.TimerHandle]] = OrderedDict()
        self._queues: set[_Slot] = set()  # those with waiters
        self._numbers = count(1)
        self._closed = False
        self.waits = Distribution(WAIT_SECONDS)
        # Told, before whoever changed a mailbox goes on, that a session may have.
        self.on_change: list[Callable[[SessionId], None]] = []

    @asynccontextmanager
    async def lease(
        self, session_id: SessionId, folder: FolderPath | None = None, *, lazily: bool = False
    ) -> AsyncIterator[ImapConnection]:
        """Lend a connection, with ``folder`` selected if one is named, for as long as the block runs.

        Prefers an idle connection that already has ``folder`` selected (no round trip), then any idle one, then a new
        one. A session that already has ``per_session`` connections out waits its turn, first come first served.

        The connection goes back to the pool only if the block left it between commands. Leaving mid-command, by error
        or by cancellation, closes it: the reply still on its way would be taken for the answer to the next command.

        Args:
            lazily: on a connection with no folder selected, leave it to the first read to select this one (`messages`),
                a round trip less.

        Raises:
            Overloaded: no connection came free in time.
            CredentialsStale: the server no longer accepts the stored credentials.
            FolderNotFound: ``folder`` does not exist, or cannot be selected.
        """
        if self._closed:
            raise _session_closed()
        slot = self._slot(session_id)
        slot.leases += 1
        try:
            connection = await self._ready(slot, folder, lazily=lazily)
            try:
                yield connection
            finally:
                self._release(slot, connection)
        finally:
            slot.leases -= 1
            self._forget_if_unused(slot)

    # ---- with the network, between decisions

    async def _ready(
        self, slot: _Slot, folder: FolderPath | None, *, lazily: bool
    ) -> ImapConnection:
        """A connection with ``folder`` selected. That one kept warm has died may only show in its first command: then,
        and once, another takes its place."""
        is_last = False
        while True:
            connection = await self._acquire(slot, folder)
            try:
                if folder is not None and not _has_selected(connection, folder):
                    if lazily and connection.selected is None:
                        connection.to_select = folder
                    else:
                        await select(connection, folder)
            except UpstreamUnavailable:
                died = connection.broken
                self._release(slot, connection)
                if is_last or not died:
                    raise
                is_last = True
            except BaseException:
                self._release(slot, connection)
                raise
            else:
                return connection

    async def _acquire(self, slot: _Slot, folder: FolderPath | None) -> ImapConnection:
        deadline = asyncio.get_running_loop().time() + self._acquire_seconds
        came_first = False
        while True:
            connection = (
                self._take_idle(slot, folder)
                or await self._turn(slot, deadline, came_first=came_first)
                or await self._open(slot)
            )
            if connection is not None:
                return connection
            came_first = True  # was let out of the queue for nothing

    async def _turn(
        self, slot: _Slot, deadline: float, *, came_first: bool
    ) -> ImapConnection | None:
        """Queue for a connection; None: open one, its place is taken."""
        waiter = self._enqueue(slot, came_first=came_first)
        try:
            if not waiter.turn.done():
                with spent_on("wait"), timed(self.waits):
                    timeout = deadline - asyncio.get_running_loop().time()
                    await asyncio.wait({waiter.turn}, timeout=timeout)
        except asyncio.CancelledError:
            self._give_up(slot, waiter)
            raise
        if not waiter.turn.done():
            self._give_up(slot, waiter)
            raise _busy()
        return waiter.turn.result()

    async def _open(self, slot: _Slot) -> ImapConnection | None:
        """Open the connection whose place is taken; None where the server takes no more than there are."""
        try:
            connection = await self._connect(slot.session_id)
        except CbemailError as error:
            self._leave_place(slot, error)
            if not isinstance(error, ServerLimit):
                raise
            if slot.live == 0:
                raise _limited() from error
            return None
        except BaseException:
            self._leave_place(slot)
            raise
        self._lend_opened(slot, connection)
        if slot.closed:
            self._release(slot, connection)
            raise _session_closed()
        return connection

    # ---- decisions: who may have one

    def _slot(self, session_id: SessionId) -> _Slot:
        return self._slots.setdefault(session_id, _Slot(session_id, self._per_session))

    def _forget_if_unused(self, slot: _Slot) -> None:
        """A session without connections costs nothing here, unless a limit was learnt for it."""
        unused = slot.leases == 0 and slot.live == 0 and slot.recovery is None
        if unused and self._slots.get(slot.session_id) is slot:
            del self._slots[slot.session_id]

    def _take_idle(self, slot: _Slot, folder: FolderPath | None) -> ImapConnection | None:
        """The idle connection with ``folder`` selected, or the latest used; one that the server closed is dropped."""
        for connection in [each for each in slot.idle if each.broken]:
            self._drop_idle(connection)
        if not slot.idle:
            return None
        fitting = (each for each in reversed(slot.idle) if _has_selected(each, folder))
        connection = next(fitting, slot.idle[-1])
        slot.idle.remove(connection)
        _, timer = self._idle.pop(connection)
        timer.cancel()
        slot.lent[connection] = True
        return connection

    def _has_room(self, slot: _Slot) -> bool:
        return slot.live < slot.bound and (self._total < self._total_bound or bool(self._idle))

    def _take_place(self, slot: _Slot) -> bool:
        """Count one more connection if the bounds allow it; who gets the place opens a connection, or leaves it."""
        if not self._has_room(slot):
            return False
        if self._total >= self._total_bound:
            self._drop_idle(next(iter(self._idle)))
        slot.opening += 1
        self._opening += 1
        self._total += 1
        return True

    def _leave_place(self, slot: _Slot, error: CbemailError | None = None) -> None:
        """The connection was not opened. What the server refused to one is not tried again at once by all the others:
        they share what is open, and if nothing is, they are told the same."""
        slot.opening -= 1
        self._opening -= 1
        self._total -= 1
        if error is not None and not slot.closed:
            self._learn_from(slot, error)
        self._serve()

    def _learn_from(self, slot: _Slot, error: CbemailError) -> None:
        limited = isinstance(error, ServerLimit)
        if slot.live == 0:
            self._fail_waiters(slot, _limited() if limited else error)
        if limited and slot.live:
            self._learn_bound(slot, LIMIT_MEMORY_SECONDS)
        elif limited or slot.live:
            self._learn_bound(slot, FAILURE_MEMORY_SECONDS)

    def _learn_bound(self, slot: _Slot, memory: float) -> None:
        if slot.recovery is not None:
            slot.recovery.cancel()
        slot.bound = slot.live
        slot.recovery = asyncio.get_running_loop().call_later(memory, self._forget_bound, slot)

    def _forget_bound(self, slot: _Slot) -> None:
        slot.bound, slot.recovery = self._per_session, None
        self._serve()
        self._forget_if_unused(slot)

    def _lend_opened(self, slot: _Slot, connection: ImapConnection) -> None:
        slot.opening -= 1
        self._opening -= 1
        slot.lent[connection] = True

    # ---- decisions: who waits

    def _enqueue(self, slot: _Slot, *, came_first: bool) -> _Waiter:
        if slot.closed:
            raise _session_closed()
        if slot.bound == 0:
            raise _limited()  # there is nothing to wait for
        if len(slot.waiters) >= WAITERS_PER_SESSION:
            raise _busy()
        turn = asyncio.get_running_loop().create_future()
        waiter = _Waiter(turn, next(self._numbers))
        if came_first:
            slot.waiters.appendleft(waiter)
        else:
            slot.waiters.append(waiter)
        self._queues.add(slot)
        self._serve()
        return waiter

    def _dequeue(self, slot: _Slot, waiter: _Waiter) -> None:
        slot.waiters.remove(waiter)
        if not slot.waiters:
            self._queues.discard(slot)

    def _serve(self) -> None:
        """Let those who wait open what there is room for, the longest waiting first."""
        while ready := [slot for slot in self._queues if self._has_room(slot)]:
            slot = min(ready, key=lambda each: each.waiters[0].number)
            waiter = slot.waiters[0]
            self._take_place(slot)
            self._dequeue(slot, waiter)
            waiter.turn.set_result(None)

    def _give_up(self, slot: _Slot, waiter: _Waiter) -> None:
        """Leave the queue; and if the turn came at this very moment, pass it on."""
        if not waiter.turn.done():
            self._dequeue(slot, waiter)
        elif waiter.turn.exception() is None:
            connection = waiter.turn.result()
            if connection is None:
                self._leave_place(slot)
            else:
                self._release(slot, connection)

    def _fail_waiters(self, slot: _Slot, error: CbemailError) -> None:
        for waiter in list(slot.waiters):
            self._dequeue(slot, waiter)
            waiter.turn.set_exception(error)

    # ---- decisions: what becomes of a connection

    def _release(self, slot: _Slot, connection: ImapConnection) -> None:
        """Take a connection back: for the next who waits, or to be kept warm, or to be closed."""
        may_be_lent = slot.lent.pop(connection) and not slot.closed and connection.usable
        if connection.has_changed:
            connection.has_changed = False
            for tell in self.on_change:
                tell(slot.session_id)
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

    def _keep(self, slot: _Slot, connection: ImapConnection) -> None:
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

    # ---- for those who know more

    def adopt(self, session_id: SessionId, connection: ImapConnection) -> None:
        """Take over a connection that was opened elsewhere: the login that proved a new session's credentials."""
        slot = self._slot(session_id)
        slot.leases += 1  # so that an idle connection that gives way does not take the slot with it
        if not self._closed and self._take_place(slot):
            self._lend_opened(slot, connection)
            self._release(slot, connection)
        else:
            connection.close()
        slot.leases -= 1
        self._forget_if_unused(slot)

    def deselect(self, session_id: SessionId, folder: FolderPath) -> None:
        """Let no later lease find ``folder``, or one below it, selected: it is about to be deleted or renamed."""
        slot = self._slots.get(session_id)
        if slot is None:
            return
        for connection in list(slot.idle):
            if connection.selected is not None and connection.selected.path.startswith(folder):
                self._drop_idle(connection)
        slot.lent = dict.fromkeys(slot.lent, False)  # which of them will have selected it is open

    # ---- closing

    def close_session(self, session_id: SessionId) -> None:
        """Close what a session has open. What is lent is closed when it comes back."""
        slot = self._slots.pop(session_id, None)
        if slot is None:
            return
        slot.closed = True
        if slot.recovery is not None:
            slot.recovery.cancel()
        self._fail_waiters(slot, _session_closed())
        for connection in list(slot.idle):
            self._drop_idle(connection)

    def close(self) -> None:
        """Close every session's connections, and lend none any more."""
        self._closed = True
        for session_id in list(self._slots):
            self.close_session(session_id)

    def statistics(self) -> PoolStatistics:
        """Counts over all sessions."""
        idle = len(self._idle)
        lent = self._total - self._opening - idle
        waiting = sum(len(slot.waiters) for slot in self._queues)
        return PoolStatistics(lent, idle, waiting, self._opening)


def _has_selected(connection: ImapConnection, folder: FolderPath | None) -> bool:
    selected = connection.selected
    return selected is not None and selected.path == folder and not selected.emptied


def _busy() -> Overloaded:
    return Overloaded(
        "Every connection this session may have to its mail server is busy.", retry_after=2
    )


def _limited() -> Overloaded:
    return Overloaded(
        "The mail server allows this mailbox no further connection at the moment.", retry_after=5
    )


def _session_closed() -> Overloaded:
    return Overloaded("The session's connections were closed.", retry_after=1)
