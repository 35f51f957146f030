"""Lends submission connections: few to each account, few to each host, and none that is not between transactions.

Every decision is made without awaiting, on plain lists of slots; the network comes before it or after it. So a task
that is cancelled, wherever it is, leaves the count of connections right.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from functools import partial
from math import ceil
from types import EllipsisType

from cbemail.errors import CbemailError, Overloaded, SessionNotFound, UpstreamUnavailable
from cbemail.ids import SessionId
from cbemail.metrics import WAIT_SECONDS, Distribution, PoolStatistics, timed
from cbemail.smtp.circuit import DEFAULT_CIRCUIT, CircuitPolicy, was_reached
from cbemail.smtp.connection import SubmissionConnection
from cbemail.smtp.slots import Host, Hosts, Slot, Waiter
from cbemail.timing import spent_on

_LOGINS = 2  # of one session under way at once: so few are tried when its password was changed
_RETRY_AFTER = 5  # seconds; a transaction takes one or two
_NONE_FREE = "Every connection this session may have to its SMTP server is busy."
_UNREACHABLE = (
    "The SMTP server could not be reached several times in a row, and is left alone for now."
)


class SmtpPool:
    """Keeps connections warm for ``idle_seconds``, each for the session that logged in on it and no other.

    Args:
        host_of: names the server of a session; sessions with the same name share ``per_host`` and a circuit.
        account_of: whom the mail server counts connections for: sessions of one login share a limit. Without it each
            session is an account. Like ``limit_of`` it must know an answer for a session that has ended, too.
        limit_of: how many connections a session's account may have just now. What is lent out when the limit falls
            goes when it comes back.
        per_session: the most that ``limit_of`` can allow, and what counts without it. No account ever has more than
            half of what its host may have (one, if that is one): so another never waits for one batch alone.
    """

    def __init__(
        self,
        connect: Callable[[SessionId], Awaitable[SubmissionConnection]],
        host_of: Callable[[SessionId], str],
        *,
        account_of: Callable[[SessionId], Hashable] = str,
        limit_of: Callable[[SessionId], int] | None = None,
        per_host: int = 20,
        per_session: int = 3,  # what Exchange Online allows a mailbox
        messages_per_connection: int = 100,
        idle_seconds: float = 30.0,
        check_after: float = 10.0,  # seconds unused: then it is asked first whether it still lives
        acquire_timeout: float = 30.0,
        circuit: CircuitPolicy = DEFAULT_CIRCUIT,
    ) -> None:
        self._connect = connect
        self._host_of = host_of
        self._account_of = account_of
        self._limit_of = limit_of
        self._per_host = per_host
        self._per_session = max(1, min(per_session, per_host // 2))
        self.messages_per_connection = messages_per_connection
        self._idle_seconds = idle_seconds
        self._check_after = check_after
        self._acquire_timeout = acquire_timeout
        self._hosts = Hosts(circuit)
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._closed = False
        self.waits = Distribution(WAIT_SECONDS)

    @asynccontextmanager
    async def lease(
        self, session_id: SessionId, *, patience: float | EllipsisType | None = ...
    ) -> AsyncIterator[SubmissionConnection]:
        """Lend a connection of the session, for as long as the block runs: an idle one, or a new one.

        Who finds all connections of the session or of its host out waits, first come first served: for ``patience``
        seconds, ``acquire_timeout`` if not given, for ever if None. A host that is full gives up another session's
        idle connection first. A connection that the block left broken, by error or by cancellation, is gone: the next
        borrower never sees it. So who shields a submission from cancellation has to shield the lease around it.

        A host that could not be reached several times in a row is left alone for a while (`retry_in`): nobody waits
        for it then, and only connections that are there already are lent.

        Raises:
            Overloaded: none came free in that time.
            UpstreamUnavailable: the host is left alone.
            CbemailError: whatever ``connect`` raised, when a new one had to be opened.
        """
        host = self._hosts.of(self._host_of(session_id))
        seconds = self._acquire_timeout if isinstance(patience, EllipsisType) else patience
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        with spent_on("wait"):
            slot = await self._acquire(session_id, host, deadline)
        while slot.connection is not None and not await self._lives(slot, slot.connection):
            with spent_on("wait"):
                slot = await self._acquire(session_id, host, deadline, first=True)
        try:
            yield slot.connection or await self._open(slot)
        finally:
            self._release(slot)

    def others_wait(self, session_id: SessionId) -> bool:
        """Whether a batch of the session should give a connection back between two messages: somebody else cannot
        have one before, be it another account, a client that waits for the answer to a message of this one, or a batch
        of another session of it that has fewer."""
        host = self._known_host(session_id)
        if host is None:
            return False
        # A batch of the same session, most often the same batch, waits for no more than there is.
        others = [
            each for each in host.waiters if not each.patient or each.session_id != session_id
        ]
        if not others:
            return False
        full = len(host.slots) >= self._per_host
        account = self._account_of(session_id)
        lent = Counter(slot.session_id for slot in host.slots if not slot.idle)
        return any(
            not waiter.patient or lent[session_id] > lent[waiter.session_id] + 1
            if waiter.account == account
            else full and self._is_below_limit(waiter.session_id, host)
            for waiter in others
            if not waiter.granted.done()
        )

    def retry_in(self, session_id: SessionId) -> float | None:
        """Seconds for which the session's host is left alone; None: it may be asked for a connection now."""
        if not self._hosts.troubled:  # asked for every message, and hardly ever a question
            return None
        host = self._known_host(session_id)
        return None if host is None else host.circuit.retry_in(_now())

    async def adopt(self, session_id: SessionId, connection: SubmissionConnection) -> None:
        """Take over a connection that was opened elsewhere: the login that proved a new session's credentials."""
        host = self._hosts.of(self._host_of(session_id))
        self._hosts.reached(host)
        slot = self._take(session_id, host)
        if slot is None or slot.connection is not None:
            self._say_goodbye(connection)
        else:
            slot.connection = connection
        if slot is not None:
            self._release(slot)

    def statistics(self) -> PoolStatistics:
        """Counts over all sessions and hosts."""
        slots = self._hosts.slots()
        idle = sum(slot.idle for slot in slots)
        opening = sum(slot.connection is None for slot in slots)
        waiting = sum(len(host.waiters) for host in self._hosts.all())
        return PoolStatistics(len(slots) - idle - opening, idle, waiting, opening)

    @property
    def left_alone(self) -> int:
        """How many hosts could not be reached several times in a row, and are asked for no connection just now."""
        now = _now()
        return sum(host.circuit.retry_in(now) is not None for host in self._hosts.troubled)

    def close_session(self, session_id: SessionId) -> None:
        """Let go of a session that ended, or whose login changed. What is lent out finishes first."""
        for slot in self._hosts.slots():
            if slot.session_id == session_id:
                slot.retiring = True
                if slot.idle:
                    self._remove(slot)

    async def aclose(self) -> None:
        """Lend no more, and say QUIT wherever nothing is under way. What is lent out goes when it comes back."""
        self._closed = True
        for host in self._hosts.all():
            host.refuse_waiters(_shutting_down)
        for slot in self._hosts.slots():
            if slot.idle:
                self._remove(slot)
        await asyncio.gather(*self._goodbyes)

    # ---- the network, before and after decisions

    async def _acquire(
        self, session_id: SessionId, host: Host, deadline: float | None, *, first: bool = False
    ) -> Slot:
        """A slot, now or when it is our turn: the next turn for who had one, with a dead connection (``first``)."""
        if self._closed:
            raise _shutting_down()
        if not first:
            self._serve(host)  # a limit may have risen: who waits comes before us
        slot = self._take(session_id, host)
        if slot is not None:
            return slot
        seconds = host.circuit.retry_in(_now())
        if seconds is not None:
            raise _left_alone(seconds)
        granted: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiter = Waiter(session_id, self._account_of(session_id), deadline is None, granted)
        if first:
            host.waiters.appendleft(waiter)
            self._serve(host)  # the place of the dead one may do for another
        else:
            host.waiters.append(waiter)
        return await self._turn_of(waiter, host, deadline)

    async def _turn_of(self, waiter: Waiter, host: Host, deadline: float | None) -> Slot:
        try:
            with timed(self.waits):
                async with asyncio.timeout_at(deadline):
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

    async def _lives(self, slot: Slot, connection: SubmissionConnection) -> bool:
        """Whether a connection that was idle can be lent; if not, its slot is gone with it."""
        try:
            if connection.is_usable() and (
                _now() - slot.last_used < self._check_after or await connection.check()
            ):
                return True
        except asyncio.CancelledError:
            self._remove(slot)
            self._serve(slot.host)
            raise
        self._remove(slot)
        return False

    async def _open(self, slot: Slot) -> SubmissionConnection:
        try:
            with spent_on("smtp"):
                connection = await self._connect(slot.session_id)
        except CbemailError as error:
            self._learn(slot, error)
            raise
        self._hosts.reached(slot.host)
        slot.probe = False
        slot.connection = connection
        self._serve(slot.host)  # one login fewer under way
        return connection

    def _say_goodbye(self, connection: SubmissionConnection) -> None:
        task = asyncio.get_running_loop().create_task(connection.close())
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    # ---- decisions

    def _take(self, session_id: SessionId, host: Host) -> Slot | None:
        """A slot, if the session may have one now. The one place where the limits are."""
        for slot in [each for each in host.slots if each.hung_up]:
            self._remove(slot)
        account = self._account_of(session_id)
        shared = [slot for slot in host.slots if slot.account == account]
        idle = [slot for slot in shared if slot.idle]
        idle.sort(key=lambda slot: slot.session_id == session_id)  # its own last: they go last
        room = self._limit(session_id) - (len(shared) - len(idle))
        if room <= 0:
            return None
        if idle and idle[-1].session_id == session_id:
            for slot in idle[:-room]:
                self._remove(slot)
            idle[-1].stop_expiry()  # the latest used is the likeliest to live
            return idle[-1]
        opening = sum(slot.connection is None for slot in shared)
        if opening >= _LOGINS or host.circuit.retry_in(_now()) is not None:
            return None
        for slot in idle[: max(0, len(idle) + 1 - room)]:
            self._remove(slot)
        return self._new_slot(session_id, host)

    def _new_slot(self, session_id: SessionId, host: Host) -> Slot | None:
        if len(host.slots) >= self._per_host:
            stranger = next((slot for slot in host.slots if slot.idle), None)
            if stranger is None:
                return None
            self._remove(stranger)
        slot = Slot(
            session_id, self._account_of(session_id), host, probe=host.circuit.let_through()
        )
        host.slots.append(slot)
        return slot

    def _limit(self, session_id: SessionId) -> int:
        if self._limit_of is None:
            return self._per_session
        return max(1, min(self._limit_of(session_id), self._per_session))

    def _is_below_limit(self, session_id: SessionId, host: Host) -> bool:
        account = self._account_of(session_id)
        lent = [slot for slot in host.slots if slot.account == account and not slot.idle]
        return len(lent) < self._limit(session_id)

    def _release(self, slot: Slot) -> None:
        """Make a slot idle if its connection can serve again, or free it; either may be what a waiter waits for."""
        host = slot.host
        if self._can_serve_again(slot):
            slot.last_used = _now()
            slot.expiry = asyncio.get_running_loop().call_later(
                self._idle_seconds, self._remove, slot
            )
            host.slots.remove(slot)
            host.slots.append(slot)
        else:
            self._remove(slot)
        self._serve(host)

    def _can_serve_again(self, slot: Slot) -> bool:
        connection = slot.connection
        own = sum(each.account == slot.account for each in slot.host.slots)
        return (
            connection is not None
            and connection.is_usable()
            and connection.sent < self.messages_per_connection
            and not slot.retiring
            and not self._closed
            and own <= self._limit(slot.session_id)
        )

    def _serve(self, host: Host) -> None:
        """Grant what is free to those who can use it, in their order; who is at their account's limit is passed over."""
        passed: set[SessionId] = set()
        for waiter in list(host.waiters):
            if waiter.granted.done() or waiter.session_id in passed:
                continue
            slot = self._take(waiter.session_id, host)
            if slot is None:
                passed.add(waiter.session_id)
            else:
                host.waiters.remove(waiter)
                waiter.granted.set_result(slot)

    def _give_back(self, waiter: Waiter) -> None:
        """Of a waiter that gave up in the very moment its slot was granted."""
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._release(granted.result())

    def _remove(self, slot: Slot) -> None:
        slot.stop_expiry()
        slot.host.slots.remove(slot)
        slot.host.circuit.withdrawn(probe=slot.probe)
        if slot.connection is not None:
            self._say_goodbye(slot.connection)

    def _learn(self, slot: Slot, error: CbemailError) -> None:
        """What an opening that failed says of the host. Who waits for a host that is now left alone need not."""
        host = slot.host
        reached = was_reached(error)
        if reached is None:
            return
        if reached:
            self._hosts.reached(host)
        else:
            now = _now()
            self._hosts.failed(host, now, probe=slot.probe)
            seconds = host.circuit.retry_in(now)
            if seconds is not None:
                host.refuse_waiters(partial(_left_alone, seconds))
        slot.probe = False

    def _known_host(self, session_id: SessionId) -> Host | None:
        """None also where the session has ended: to say so is for `lease`."""
        try:
            return self._hosts.find(self._host_of(session_id))
        except SessionNotFound:
            return None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _left_alone(seconds: float) -> UpstreamUnavailable:
    return UpstreamUnavailable(_UNREACHABLE, protocol="smtp", retry_after=max(1, ceil(seconds)))


def _shutting_down() -> Overloaded:
    return Overloaded("The service is shutting down.", retry_after=_RETRY_AFTER)
