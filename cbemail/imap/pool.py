"""Lends authenticated connections, a few a session, kept warm between requests.

Who gets which connection is decided in `slots`, without awaiting; connecting and selecting happen here, between two
decisions. So the books (how many are open, who waits) are right at every `await`, whatever is cancelled there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cbemail.errors import CbemailError, UpstreamUnavailable
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.protocol import FolderPath
from cbemail.imap.refusals import ServerLimit
from cbemail.imap.selecting import select, select_later
from cbemail.imap.slots import Slot, Slots, busy, has_selected, limited, session_closed
from cbemail.metrics import WAIT_SECONDS, Distribution, PoolStatistics, timed
from cbemail.timing import spent_on

ACQUIRE_SECONDS = 10.0  # how long a request waits for its turn before it is told to come back

Connect = Callable[[SessionId], Awaitable[ImapConnection]]


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
        self._slots = Slots(per_session=per_session, total=total, idle_seconds=idle_seconds)
        self._acquire_seconds = acquire_seconds
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
            lazily: leave it to the first read to select ``folder`` (`messages`), a round trip less.

        Raises:
            Overloaded: no connection came free in time.
            CredentialsStale: the server no longer accepts the stored credentials.
            FolderNotFound: ``folder`` does not exist, or cannot be selected.
        """
        if self._closed:
            raise session_closed()
        slot = self._slots.enter(session_id)
        try:
            connection = await self._ready(slot, folder, lazily=lazily)
            try:
                yield connection
            finally:
                self._release(slot, connection)
        finally:
            self._slots.leave(slot)

    # ---- with the network, between decisions

    async def _ready(
        self, slot: Slot, folder: FolderPath | None, *, lazily: bool
    ) -> ImapConnection:
        """A connection with ``folder`` selected. That one kept warm has died may only show in its first command: then,
        and once, another takes its place."""
        is_last = False
        while True:
            connection = await self._acquire(slot, folder)
            try:
                if folder is not None and not has_selected(connection, folder):
                    if lazily:
                        select_later(connection, folder)
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

    async def _acquire(self, slot: Slot, folder: FolderPath | None) -> ImapConnection:
        deadline = asyncio.get_running_loop().time() + self._acquire_seconds
        came_first = False
        while True:
            connection = (
                self._slots.take_idle(slot, folder)
                or await self._turn(slot, deadline, came_first=came_first)
                or await self._open(slot)
            )
            if connection is not None:
                return connection
            came_first = True  # was let out of the queue for nothing

    async def _turn(
        self, slot: Slot, deadline: float, *, came_first: bool
    ) -> ImapConnection | None:
        """Queue for a connection; None: open one, its place is taken."""
        waiter = self._slots.enqueue(slot, came_first=came_first)
        try:
            if not waiter.turn.done():
                with spent_on("wait"), timed(self.waits):
                    timeout = deadline - asyncio.get_running_loop().time()
                    await asyncio.wait({waiter.turn}, timeout=timeout)
        except asyncio.CancelledError:
            self._slots.give_up(slot, waiter)
            raise
        if not waiter.turn.done():
            self._slots.give_up(slot, waiter)
            raise busy()
        return waiter.turn.result()

    async def _open(self, slot: Slot) -> ImapConnection | None:
        """Open the connection whose place is taken; None where the server takes no more than there are."""
        try:
            connection = await self._connect(slot.session_id)
        except CbemailError as error:
            self._slots.leave_place(slot, error)
            if not isinstance(error, ServerLimit):
                raise
            if slot.live == 0:
                raise limited() from error
            return None
        except BaseException:
            self._slots.leave_place(slot)
            raise
        self._slots.fill_place(slot, connection)
        if slot.closed:
            self._release(slot, connection)
            raise session_closed()
        return connection

    def _release(self, slot: Slot, connection: ImapConnection) -> None:
        if connection.has_changed:
            connection.has_changed = False
            for tell in self.on_change:
                tell(slot.session_id)
        self._slots.take_back(slot, connection)

    # ---- for those who know more

    def adopt(self, session_id: SessionId, connection: ImapConnection) -> None:
        """Take over a connection that was opened elsewhere: the login that proved a new session's credentials."""
        slot = self._slots.enter(session_id)
        if not self._closed and self._slots.take_place(slot):
            self._slots.fill_place(slot, connection)
            self._release(slot, connection)
        else:
            connection.close()
        self._slots.leave(slot)

    def deselect(self, session_id: SessionId, folder: FolderPath) -> None:
        """Let no later lease find ``folder``, or one below it, selected: it is about to be deleted or renamed."""
        self._slots.deselect(session_id, folder)

    # ---- closing

    def close_session(self, session_id: SessionId) -> None:
        """Close what a session has open. What is lent is closed when it comes back."""
        self._slots.close_session(session_id)

    def close(self) -> None:
        """Close every session's connections, and lend none any more."""
        self._closed = True
        self._slots.close()

    def statistics(self) -> PoolStatistics:
        """Counts over all sessions."""
        return self._slots.statistics()
