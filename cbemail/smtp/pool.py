"""Lends submission connections: few to each session, few to each host, and none that is not between transactions.

Every decision is made without awaiting, on plain lists of slots; the network comes before it or after it. So a task
that is cancelled, wherever it is, leaves the count of connections right.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from cbemail.errors import Overloaded
from cbemail.ids import SessionId
from cbemail.smtp.connection import SubmissionConnection
from cbemail.timing import spent_on

_RETRY_AFTER = 5  # seconds; a transaction takes one or two
_NONE_FREE = "Every connection this session may have to its SMTP server is busy."
_SHUTTING_DOWN = "The service is shutting down."


@dataclass(eq=False)
class _Host:
    """Who has a connection to one mail host, and who waits for one."""

    slots: list["_Slot"] = field(default_factory=list)  # idle ones in the order they became idle
    waiters: deque["_Waiter"] = field(default_factory=deque)


@dataclass(eq=False)
class _Slot:
    """The right to one connection: being opened, lent out, or idle."""

    session_id: SessionId
    host: _Host
    connection: SubmissionConnection | None = None
    last_used: float = 0.0
    expiry: asyncio.TimerHandle | None = None  # while it is idle, and only then
    retiring: bool = False  # its session ended: not to be lent again

    @property
    def idle(self) -> bool:
        return self.expiry is not None


@dataclass(eq=False)
class _Waiter:
    session_id: SessionId
    granted: asyncio.Future[_Slot]


class SmtpPool:
    """Keeps connections warm for ``idle_seconds``, each for the session that logged in on it and no other."""

    def __init__(
        self,
        connect: Callable[[SessionId], Awaitable[SubmissionConnection]],
        host_of: Callable[[SessionId], Awaitable[str]],
        *,
        per_host: int = 20,
        per_session: int = 3,  # what Exchange Online allows a mailbox
        messages_per_connection: int = 100,
        idle_seconds: float = 30.0,
        check_after: float = 10.0,  # seconds unused: then it is asked first whether it still lives
        acquire_timeout: float = 30.0,
    ) -> None:
        self._connect = connect
        self._host_of = host_of
        self._per_host = per_host
        self._per_session = per_session
        self._messages_per_connection = messages_per_connection
        self._idle_seconds = idle_seconds
        self._check_after = check_after
        self._acquire_timeout = acquire_timeout
        # A host is known for as long as somebody has a connection to it, or wants one.
        self._hosts: WeakValueDictionary[str, _Host] = WeakValueDictionary()
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def lease(self, session_id: SessionId) -> AsyncIterator[SubmissionConnection]:
        """Lend a connection of the session, for as long as the block runs: an idle one, or a new one.

        Who finds all connections of the session or of its host out waits, first come first served; a host that is
        full gives up another session's idle connection first. A connection that the block left broken, by error or
        by cancellation, is gone: the next borrower never sees it. So who shields a submission from cancellation has to
        shield the lease around it.

        Raises:
            Overloaded: none came free within ``acquire_timeout`` seconds.
            CbemailError: whatever ``connect`` raised, when a new one had to be opened.
        """
        host = await self._host_of(session_id)
        with spent_on("wait"):
            slot = await self._acquire(session_id, host)
        try:
            yield await self._ready(slot)
        finally:
            self._release(slot)

    async def adopt(self, session_id: SessionId, connection: SubmissionConnection) -> None:
        """Take over a connection that was opened elsewhere: the login that proved a new session's credentials."""
        host = self._hosts.setdefault(await self._host_of(session_id), _Host())
        slot = self._take(session_id, host)
        if slot is None or slot.connection is not None:
            self._say_goodbye(connection)
        else:
            slot.connection = connection
        if slot is not None:
            self._release(slot)

    def close_session(self, session_id: SessionId) -> None:
        """Let go of a session that ended, or whose login changed. What is lent out finishes first."""
        for slot in self._all_slots():
            if slot.session_id == session_id:
                slot.retiring = True
                if slot.idle:
                    self._remove(slot)

    async def aclose(self) -> None:
        """Lend no more, and say QUIT wherever nothing is under way. What is lent out goes when it comes back."""
        self._closed = True
        for waiter in [each for host in self._hosts.values() for each in host.waiters]:
            if not waiter.granted.done():
                waiter.granted.set_exception(Overloaded(_SHUTTING_DOWN, retry_after=_RETRY_AFTER))
        for slot in self._all_slots():
            if slot.idle:
                self._remove(slot)
        await asyncio.gather(*self._goodbyes)

    # ---- the network, before and after decisions

    async def _acquire(self, session_id: SessionId, host_name: str) -> _Slot:
        if self._closed:
            raise Overloaded(_SHUTTING_DOWN, retry_after=_RETRY_AFTER)
        host = self._hosts.setdefault(host_name, _Host())
        slot = self._take(session_id, host)
        if slot is not None:
            return slot
        waiter = _Waiter(session_id, asyncio.get_running_loop().create_future())
        host.waiters.append(waiter)
        try:
            async with asyncio.timeout(self._acquire_timeout):
                return await waiter.granted
        except TimeoutError as exc:
            self._give_back(waiter)
            raise Overloaded(_NONE_FREE, retry_after=_RETRY_AFTER) from exc
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise
        finally:
            if waiter in host.waiters:
                host.waiters.remove(waiter)

    async def _ready(self, slot: _Slot) -> SubmissionConnection:
        """The slot's connection, if it still lives, or a new one in its place."""
        connection = slot.connection
        if connection is not None:
            unused = asyncio.get_running_loop().time() - slot.last_used
            if connection.is_usable() and (unused < self._check_after or await connection.check()):
                return connection
            slot.connection = None
            self._say_goodbye(connection)
        with spent_on("smtp"):
            slot.connection = await self._connect(slot.session_id)
        return slot.connection

    def _say_goodbye(self, connection: SubmissionConnection) -> None:
        task = asyncio.get_running_loop().create_task(connection.close())
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    # ---- decisions

    def _take(self, session_id: SessionId, host: _Host) -> _Slot | None:
        """A slot, if the session may have one now. The one place where the limits are."""
        for slot in [each for each in host.slots if _hung_up(each)]:
            self._remove(slot)
        own = [slot for slot in host.slots if slot.session_id == session_id]
        for slot in reversed(own):  # the latest used is the likeliest to live
            if slot.idle:
                _stop_expiry(slot)
                return slot
        if len(own) >= self._per_session:
            return None
        if len(host.slots) >= self._per_host:
            stranger = next((slot for slot in host.slots if slot.idle), None)
            if stranger is None:
                return None
            self._remove(stranger)
        slot = _Slot(session_id, host)
        host.slots.append(slot)
        return slot

    def _release(self, slot: _Slot) -> None:
        """Make a slot idle if its connection can serve again, or free it; either may be what a waiter waits for."""
        connection = slot.connection
        host = slot.host
        if (
            connection is not None
            and connection.is_usable()
            and connection.sent < self._messages_per_connection
            and not slot.retiring
            and not self._closed
        ):
            loop = asyncio.get_running_loop()
            slot.last_used = loop.time()
            slot.expiry = loop.call_later(self._idle_seconds, self._remove, slot)
            host.slots.remove(slot)
            host.slots.append(slot)
        else:
            self._remove(slot)
        self._serve(host)

    def _serve(self, host: _Host) -> None:
        """Grant what came free to the first who can use it; a waiter at its session's limit is passed over."""
        for waiter in list(host.waiters):
            if waiter.granted.done():
                continue
            slot = self._take(waiter.session_id, host)
            if slot is not None:
                host.waiters.remove(waiter)
                waiter.granted.set_result(slot)
                return

    def _give_back(self, waiter: _Waiter) -> None:
        """Of a waiter that gave up in the very moment its slot was granted."""
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._release(granted.result())

    def _remove(self, slot: _Slot) -> None:
        _stop_expiry(slot)
        slot.host.slots.remove(slot)
        if slot.connection is not None:
            self._say_goodbye(slot.connection)

    def _all_slots(self) -> list[_Slot]:
        return [slot for host in self._hosts.values() for slot in host.slots]


def _stop_expiry(slot: _Slot) -> None:
    if slot.expiry is not None:
        slot.expiry.cancel()
        slot.expiry = None


def _hung_up(slot: _Slot) -> bool:
    return slot.idle and slot.connection is not None and not slot.connection.is_usable()
