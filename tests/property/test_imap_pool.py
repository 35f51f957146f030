"""Whatever order things happen in, the books of the IMAP pool are right: a random walk through all that can happen.

Time is the test's own: nothing is waited for, and an hour may pass between two steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cbemail.errors import CbemailError, UpstreamUnavailable
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.pool import ImapPool
from cbemail.imap.refusals import ServerLimit
from cbemail.metrics import PoolStatistics

PER_SESSION, TOTAL = 2, 3
IDLE_SECONDS, ACQUIRE_SECONDS = 60.0, 10.0

sessions = st.sampled_from([SessionId("ses_joe"), SessionId("ses_ann"), SessionId("ses_bob")])
which = st.integers(0, 1_000)


class StoppedClock(asyncio.SelectorEventLoop):
    """A loop whose clock moves only when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def within(self, call: Callable[[], None]) -> None:
        """Make a call that needs a running loop."""

        async def calling() -> None:
            call()

        self.run_until_complete(calling())

    def settle(self) -> None:
        """Run until there is nothing more to do at this moment."""

        async def turns() -> None:
            for _ in range(12):
                await checkpoint()

        self.run_until_complete(turns())


class Wire(asyncio.Transport):
    """As much of a transport as a connection without a server needs: it can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Borrower:
    """A request: it wants a connection, has one, or is done."""

    def __init__(self, machine: PoolMachine, session: SessionId) -> None:
        self.session = session
        self.connection: ImapConnection | None = None
        self.enough = asyncio.Event()
        self.task = machine.loop.create_task(self._borrow(machine))

    async def _borrow(self, machine: PoolMachine) -> None:
        with suppress(CbemailError):
            async with machine.pool.lease(self.session) as connection:
                assert connection.usable, "lent although it is broken"
                assert connection not in machine.held(), "lent twice"
                assert machine.owner[connection] == self.session, "lent to a stranger"
                self.connection = connection
                try:
                    await self.enough.wait()
                finally:
                    self.connection = None


class PoolMachine(RuleBasedStateMachine):
    """Requests come, finish, are cancelled; logins work, fail or meet a limit; connections die, sessions end."""

    @initialize(idle_seconds=st.sampled_from([IDLE_SECONDS, 0.0]))
    def open_pool(self, idle_seconds: float) -> None:
        self.loop = StoppedClock()
        self.pool = ImapPool(
            self._connect,
            per_session=PER_SESSION,
            total=TOTAL,
            idle_seconds=idle_seconds,
            acquire_seconds=ACQUIRE_SECONDS,
        )
        self.borrowers: list[Borrower] = []
        self.logins: list[tuple[SessionId, asyncio.Future[None]]] = []
        self.owner: dict[ImapConnection, SessionId] = {}
        self.wires: dict[ImapConnection, Wire] = {}

    async def _connect(self, session: SessionId) -> ImapConnection:
        login = (session, self.loop.create_future())
        self.logins.append(login)
        try:
            await login[1]
        finally:
            self.logins.remove(login)
        return self._opened(session)

    def _opened(self, session: SessionId) -> ImapConnection:
        connection = ImapConnection()
        self.owner[connection] = session
        self.wires[connection] = Wire()
        connection.connection_made(self.wires[connection])
        return connection

    def held(self) -> list[ImapConnection]:
        return [b.connection for b in self.borrowers if b.connection is not None]

    def open_wires(self) -> list[ImapConnection]:
        return [connection for connection, wire in self.wires.items() if not wire.closed]

    # ---- what can happen

    @rule(session=sessions)
    def request(self, session: SessionId) -> None:
        self.borrowers.append(Borrower(self, session))

    @rule(session=sessions)
    def two_requests_at_once(self, session: SessionId) -> None:
        self.borrowers += [Borrower(self, session), Borrower(self, session)]

    @precondition(lambda self: self.held())
    @rule(which=which)
    def finish(self, which: int) -> None:
        holding = [each for each in self.borrowers if each.connection is not None]
        holding[which % len(holding)].enough.set()

    @precondition(lambda self: self.borrowers)
    @rule(which=which, turn_came=st.booleans())
    def cancel(self, which: int, *, turn_came: bool) -> None:
        """Also in the very moment in which somebody else gives a connection back."""
        holding = [each for each in self.borrowers if each.connection is not None]
        if turn_came and holding:
            holding[0].enough.set()
        self.borrowers[which % len(self.borrowers)].task.cancel()

    @precondition(lambda self: self.open_wires())
    @rule(which=which)
    def die(self, which: int) -> None:
        """Lent or idle, the server hangs up."""
        connections = self.open_wires()
        connections[which % len(connections)].abort()

    @precondition(lambda self: self.logins)
    @rule(
        which=which,
        error=st.sampled_from([None, None, None, UpstreamUnavailable("No."), ServerLimit("No.")]),
    )
    def answer_login(self, which: int, error: CbemailError | None) -> None:
        _, login = self.logins[which % len(self.logins)]
        if login.done():
            return
        if error is None:
            login.set_result(None)
        else:
            login.set_exception(error)

    @rule(session=sessions)
    def adopt(self, session: SessionId) -> None:
        self.loop.within(lambda: self.pool.adopt(session, self._opened(session)))

    @rule(session=sessions)
    def end_session(self, session: SessionId) -> None:
        self.loop.within(lambda: self.pool.close_session(session))

    @rule(seconds=st.sampled_from([1.0, ACQUIRE_SECONDS, IDLE_SECONDS, 3_600.0]))
    def wait(self, seconds: float) -> None:
        self.loop.now += seconds

    # ---- what always holds

    @invariant()
    def books_are_right(self) -> None:
        self.loop.settle()
        self._bury_the_done()
        told = self.pool.statistics()
        slots = self.pool._slots._by_session.values()

        idle = [connection for slot in slots for connection in slot.idle]
        held = self.held()
        assert told.idle == len(idle) == len(self.pool._slots._idle)
        assert told.lent == len(held), "something is counted that is not there"
        assert told.opening == len(self.logins)
        assert set(self.open_wires()) <= {*held, *idle}, "a connection leaked"
        assert told.lent + told.opening + told.idle <= TOTAL
        assert all(slot.live <= PER_SESSION for slot in slots)
        assert all(connection not in held for connection in idle)

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        waiting = [slot for slot in self.pool._slots._by_session.values() if slot.waiters]
        assert set(waiting) == self.pool._slots._queues
        total_is_reached = self.pool._slots._total == TOTAL and not self.pool._slots._idle
        for slot in waiting:
            assert not slot.idle
            assert slot.live >= slot.bound or total_is_reached
            assert slot.live or total_is_reached, "there is nothing to wait for"
        requests = len([each for each in self.borrowers if each.connection is None])
        assert self.pool.statistics().waiting == requests - len(self.logins)

    def _bury_the_done(self) -> None:
        for borrower in [each for each in self.borrowers if each.task.done()]:
            self.borrowers.remove(borrower)
            if not borrower.task.cancelled():
                borrower.task.result()

    def teardown(self) -> None:
        """When everybody has left, nothing is lent; and when the pool is closed, nothing is open."""
        while self.borrowers:
            for borrower in self.borrowers:
                borrower.enough.set()
            for _, login in self.logins:
                if not login.done():
                    login.set_result(None)
            self.loop.settle()
            self._bury_the_done()
        assert self.pool.statistics().lent == self.pool.statistics().waiting == 0
        self.loop.within(self.pool.close)
        assert self.pool.statistics() == PoolStatistics(0, 0, 0)
        assert self.open_wires() == []
        assert self.pool._slots._by_session == {}
        self.loop.close()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestPool = PoolMachine.TestCase
