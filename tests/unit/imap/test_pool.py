"""Who gets which connection; and whatever happens to a borrower, the books are right and nobody gets another's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from cbemail.errors import (
    CredentialsStale,
    FolderNotFound,
    InvalidRequest,
    Overloaded,
    UpstreamError,
    UpstreamUnavailable,
)
from cbemail.ids import SessionId
from cbemail.imap import slots as module
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import append, fetch, fetch_command, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import DELETED, INBOX, FolderPath, Uid, UidSet
from cbemail.imap.refusals import ServerLimit
from cbemail.imap.wire import Command
from cbemail.metrics import PoolStatistics
from cbemail.timing import open_account
from tests.fakes.script import CUT, NORMAL, STALL
from tests.fakes.scripted_imap import ScriptedImap
from tests.unit.imap.conftest import ANN, BOB, IMPATIENT, JOE, MakePool, Open, settle, until

NOOP = Command("NOOP")
SENT, TRASH = FolderPath("Sent"), FolderPath("Trash")

Body = Callable[[ImapConnection], Awaitable[object]]


class Borrower:
    """A task that leases a connection and keeps it until told to let go."""

    def __init__(
        self, pool: ImapPool, session: SessionId, folder: FolderPath | None = None
    ) -> None:
        self.connection: ImapConnection | None = None
        self._enough = asyncio.Event()
        self.task = asyncio.create_task(self._borrow(pool, session, folder))

    async def _borrow(self, pool: ImapPool, session: SessionId, folder: FolderPath | None) -> None:
        async with pool.lease(session, folder) as self.connection:
            await self._enough.wait()

    async def served(self) -> ImapConnection:
        await until(lambda: self.connection is not None or self.task.done())
        if self.connection is None:
            await self.task
        assert self.connection is not None
        return self.connection

    async def leave(self) -> None:
        self._enough.set()
        await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def use(pool: ImapPool, session: SessionId = JOE, folder: FolderPath | None = None) -> None:
    async with pool.lease(session, folder) as imap:
        await imap.run_one(NOOP)


@asynccontextmanager
async def lent(pool: ImapPool, *sessions: SessionId) -> AsyncIterator[list[ImapConnection]]:
    """One connection for each of ``sessions``, out at once."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.lease(session)) for session in sessions]


def nothing_but_idle(pool: ImapPool, idle: int) -> bool:
    """The books are balanced, outside and inside."""
    live = sum(slot.live for slot in pool._slots._by_session.values())
    return pool.statistics() == PoolStatistics(0, idle, 0) and live == pool._slots._total == idle


# ---- nothing is lent after an interrupted command


async def test_cancelled_fetch_does_not_answer_the_next_caller(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    """A client that hangs up mid-FETCH must not leave its reply to somebody else."""
    pool = make_pool(per_session=1)
    imap_server.folders["INBOX"].add(b"Subject: eight\r\n\r\n", uid=8)
    imap_server.on("UID FETCH 7", STALL)

    async def read(uid: int) -> bytes:
        async with pool.lease(JOE, INBOX) as imap:
            return (await fetch(imap, [Uid(uid)], b"BODY.PEEK[]"))[Uid(uid)].sections[""]

    impatient = asyncio.create_task(read(7))
    await imap_server.heard("UID FETCH 7")
    impatient.cancel()
    message = await read(8)

    assert impatient.cancelled()
    assert message.startswith(b"Subject: eight")
    assert imap_server.connections == 2, "the interrupted connection was reused"


async def test_cancelled_select_does_not_move_the_next_caller_to_its_folder(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    """The worst that can happen: ``\\Deleted`` set on messages of a folder nobody named."""
    pool = make_pool(per_session=1)
    imap_server.folders["INBOX"].add(b"x")
    imap_server.folders["Trash"].add(b"x")
    await use(pool, JOE, INBOX)
    imap_server.on('SELECT "Trash"', STALL)

    impatient = Borrower(pool, JOE, TRASH)
    await imap_server.heard('SELECT "Trash"')
    await impatient.cancel()
    async with pool.lease(JOE, INBOX) as imap:
        await store_flags(imap, UidSet([1]), add=[DELETED])

    assert imap_server.folders["INBOX"].messages[0].flags == {"\\Deleted"}
    assert imap_server.folders["Trash"].messages[0].flags == set()


async def test_leaving_a_stream_early_costs_its_connection(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    imap_server.folders["INBOX"].add(b"x" * (4 << 20))

    async with (
        pool.lease(JOE, INBOX) as imap,
        imap.streaming(fetch_command(UidSet([1]), b"BODY.PEEK[]")) as stream,
    ):
        await stream.started()

    assert nothing_but_idle(pool, 0)


async def test_a_command_still_running_when_the_block_ends_is_cut_off(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    imap_server.on("NOOP", STALL)

    async with pool.lease(JOE) as imap:
        left_behind = asyncio.create_task(imap.run_one(NOOP))
        await imap_server.heard("NOOP")

    with pytest.raises(UpstreamUnavailable):
        await left_behind
    assert nothing_but_idle(pool, 0)


async def test_messages_stored_side_by_side_keep_their_own_octets(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    contents = [b"Subject: %d\r\n\r\n%b" % (i, b"x" * 1_000 * i) for i in range(20)]

    async def store(content: bytes) -> int | None:
        async with pool.lease(JOE) as imap:
            return (await append(imap, INBOX, content)).uid

    uids = await asyncio.gather(*(store(content) for content in contents))

    stored = {message.uid: message.raw for message in imap_server.folders["INBOX"].messages}
    assert [stored[uid] for uid in uids if uid is not None] == contents


async def test_many_callers_on_few_connections_each_get_their_own_answer(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    """With cancellations in between, at every point a request can be at."""
    pool = make_pool(per_session=2)
    inbox = imap_server.folders["INBOX"]
    for uid in range(1, 201):
        inbox.add(b"Subject: %d\r\n\r\n" % uid, uid=uid)

    async def read(uid: int) -> bytes:
        async with pool.lease(JOE, INBOX) as imap:
            return (await fetch(imap, [Uid(uid)], b"BODY.PEEK[]"))[Uid(uid)].sections[""]

    tasks = [asyncio.create_task(read(uid)) for uid in range(1, 201)]
    for turn, task in enumerate(tasks[::7]):
        for _ in range(turn):
            await settle()
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    for uid, result in enumerate(results, start=1):
        assert isinstance(result, asyncio.CancelledError) or result == b"Subject: %d\r\n\r\n" % uid
    assert pool.statistics().lent == pool.statistics().waiting == 0
    assert nothing_but_idle(pool, pool.statistics().idle)


# ---- which connection


async def test_a_connection_serves_its_session_again_and_no_other(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()

    await use(pool, JOE)
    await use(pool, JOE)
    await use(pool, ANN)

    assert imap_server.connections == 2
    assert nothing_but_idle(pool, 2)


async def test_the_connection_that_has_the_folder_selected_is_preferred(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    first, second = Borrower(pool, JOE, INBOX), Borrower(pool, JOE, SENT)
    await first.served()
    await second.served()
    await first.leave()
    await second.leave()

    for folder in (INBOX, SENT, SENT, INBOX):
        await use(pool, JOE, folder)

    assert imap_server.count("SELECT") == 2


async def test_without_a_folder_in_mind_the_latest_used_is_lent(make_pool: MakePool) -> None:
    pool = make_pool()
    async with lent(pool, JOE, JOE) as (first, second):
        pass

    async with pool.lease(JOE) as again:
        assert again is first  # the context managers ended in reverse order
    assert second is not first


async def test_a_folder_that_does_not_exist_costs_no_connection(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()

    with pytest.raises(FolderNotFound):
        await use(pool, JOE, FolderPath("Nowhere"))
    await use(pool, JOE, INBOX)

    assert imap_server.connections == 1


async def test_a_name_that_cannot_be_sent_costs_no_connection_either(make_pool: MakePool) -> None:
    pool = make_pool()

    with pytest.raises(InvalidRequest):
        await use(pool, JOE, FolderPath("INBOX\r\nA1 DELETE INBOX"))

    assert nothing_but_idle(pool, 1)


# ---- taking turns


async def test_no_session_has_more_than_its_connections(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=3)

    await asyncio.gather(*(use(pool) for _ in range(20)))

    assert imap_server.connections == 3
    assert nothing_but_idle(pool, 3)


async def test_who_came_first_is_served_first(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    holder = Borrower(pool, JOE)
    await holder.served()
    order: list[int] = []

    async def queue(number: int) -> None:
        async with pool.lease(JOE):
            order.append(number)

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(queue(number)))
        await settle()
    assert pool.statistics() == PoolStatistics(1, 0, 5)
    await holder.leave()
    await asyncio.gather(*tasks)

    assert order == [0, 1, 2, 3, 4]


async def test_who_waits_too_long_is_told_when_to_come_back(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1, acquire_seconds=IMPATIENT)

    async with pool.lease(JOE):
        with pytest.raises(Overloaded) as caught:
            await use(pool, JOE)
        assert pool.statistics() == PoolStatistics(1, 0, 0)

    assert caught.value.retry_after is not None
    assert nothing_but_idle(pool, 1)


async def test_a_queue_that_is_hopeless_takes_nobody_in(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITERS_PER_SESSION", 1)
    pool = make_pool(per_session=1)
    holder = Borrower(pool, JOE)
    await holder.served()
    waiting = Borrower(pool, JOE)
    await settle()

    with pytest.raises(Overloaded):
        await use(pool, JOE)

    await holder.leave()
    await waiting.served()
    await waiting.leave()


async def test_the_time_in_the_queue_is_told_as_wait(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    holder = Borrower(pool, JOE)
    await holder.served()
    account = open_account()
    waiting = Borrower(pool, JOE)
    await settle()

    await holder.leave()
    await waiting.served()
    await waiting.leave()

    assert set(account) == {"wait"}


async def test_a_broken_connection_makes_room_for_one_who_waits(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=1)
    holder = Borrower(pool, JOE)
    first = await holder.served()
    waiting = Borrower(pool, JOE)
    await settle()

    first.abort()
    await holder.leave()
    second = await waiting.served()
    await waiting.leave()

    assert second is not first
    assert imap_server.connections == 2


# ---- the total


async def test_the_least_recently_used_idle_connection_gives_way(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(total=2)
    await use(pool, JOE)
    await use(pool, ANN)
    await use(pool, JOE)

    await use(pool, BOB)
    await use(pool, JOE)

    assert imap_server.connections == 3
    assert imap_server.count("LOGOUT") == 1
    assert nothing_but_idle(pool, 2)


async def test_one_session_waits_for_anothers_connection_when_the_total_is_reached(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(total=1)
    joe = Borrower(pool, JOE)
    await joe.served()
    ann, bob = Borrower(pool, ANN), Borrower(pool, BOB)
    await settle()
    assert pool.statistics() == PoolStatistics(1, 0, 2)

    await joe.leave()
    await ann.served()
    await settle()
    assert pool.statistics() == PoolStatistics(1, 0, 1)
    await ann.leave()
    await bob.served()
    await bob.leave()

    assert imap_server.connections == 3
    assert nothing_but_idle(pool, 1)


async def test_of_several_sessions_that_wait_for_the_total_the_first_is_served_first(
    make_pool: MakePool,
) -> None:
    pool = make_pool(total=2, per_session=2)
    joe, other = Borrower(pool, JOE), Borrower(pool, JOE)
    await joe.served()
    await other.served()
    waiting = []
    for session in (BOB, ANN, JOE):
        waiting.append(Borrower(pool, session))
        await settle()
    bob, ann, _ = waiting

    joe_connection = await joe.served()
    joe_connection.abort()
    await joe.leave()
    await bob.served()

    assert ann.connection is None
    for borrower in (other, bob, *waiting[1:]):
        await borrower.served()
        await borrower.leave()


# ---- keeping warm, and letting go


async def test_an_unused_connection_is_closed_when_its_time_is_up(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(idle_seconds=IMPATIENT)

    await use(pool)
    await imap_server.heard("LOGOUT")

    assert nothing_but_idle(pool, 0)
    assert pool._slots._by_session == {}


async def test_zero_seconds_mean_a_connection_for_each_lease(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(idle_seconds=0, per_session=2)

    await asyncio.gather(*(use(pool) for _ in range(6)))

    assert imap_server.connections == 6
    assert nothing_but_idle(pool, 0)
    assert pool._slots._by_session == {}


async def test_a_connection_that_is_in_use_does_not_expire(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(idle_seconds=IMPATIENT)
    await use(pool, JOE)

    async with pool.lease(JOE) as imap:
        await use(pool, ANN)
        await imap_server.heard("LOGOUT")  # Ann's, which was unused for as long as Joe's was used
        assert (await imap.run_one(NOOP)).ok

    assert imap_server.connections == 2


async def test_a_connection_the_server_closed_meanwhile_is_not_lent(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with lent(pool, JOE, JOE) as connections:
        pass

    imap_server.push(b"* BYE idle for too long\r\n")
    await until(lambda: all(connection.broken for connection in connections))
    await use(pool)

    assert imap_server.connections == 3
    assert nothing_but_idle(pool, 1)


async def test_a_connection_that_turns_out_dead_in_its_first_command_is_replaced(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    await use(pool)
    imap_server.on("SELECT", CUT, NORMAL)

    await use(pool, JOE, INBOX)

    assert imap_server.connections == 2
    assert nothing_but_idle(pool, 1)


async def test_a_server_that_always_hangs_up_is_not_tried_for_ever(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    imap_server.on("SELECT", CUT)

    with pytest.raises(UpstreamUnavailable):
        await use(pool, JOE, INBOX)

    assert imap_server.connections == 2
    assert nothing_but_idle(pool, 0)


# ---- cancelled, wherever it is


@pytest.mark.parametrize("stalled", ["AUTHENTICATE", "SELECT", "NOOP"])
async def test_whoever_is_cancelled_leaves_the_books_right(
    imap_server: ScriptedImap, make_pool: MakePool, stalled: str
) -> None:
    pool = make_pool(per_session=1)
    imap_server.on(stalled, STALL, NORMAL)
    task = asyncio.create_task(use(pool, JOE, INBOX))
    await imap_server.heard(stalled)
    waiting = asyncio.create_task(use(pool, JOE, INBOX))
    await settle()

    task.cancel()
    await asyncio.wait({task})
    await waiting

    assert task.cancelled()
    assert imap_server.connections == 2
    assert nothing_but_idle(pool, 1)


async def test_who_is_cancelled_in_the_queue_leaves_it(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    holder = Borrower(pool, JOE)
    await holder.served()
    gone, staying = Borrower(pool, JOE), Borrower(pool, JOE)
    await settle()

    await gone.cancel()
    assert pool.statistics() == PoolStatistics(1, 0, 1)
    await holder.leave()
    await staying.served()
    await staying.leave()

    assert nothing_but_idle(pool, 1)


@pytest.mark.parametrize("idle_seconds", [60, 0], ids=["a connection", "a place"])
async def test_a_turn_that_comes_in_the_moment_of_the_cancellation_is_passed_on(
    make_pool: MakePool, idle_seconds: float
) -> None:
    pool = make_pool(per_session=1, idle_seconds=idle_seconds)
    holder = Borrower(pool, JOE)
    await holder.served()
    gone, next_one = Borrower(pool, JOE), Borrower(pool, JOE)
    await settle()

    holder._enough.set()
    await until(lambda: pool.statistics().waiting == 1)  # its turn has come, it does not know yet
    await gone.cancel()
    await next_one.served()

    assert gone.connection is None
    await next_one.leave()
    await holder.leave()
    assert pool.statistics() == PoolStatistics(0, 1 if idle_seconds else 0, 0)


# ---- logins that fail


class Door:
    """Opens connections one by one when the test says so, or fails to."""

    def __init__(self, imap_server: ScriptedImap, open_to: Open) -> None:
        self.knocks = 0
        self.errors: list[Exception] = []
        self.opens = asyncio.Event()
        self._server = imap_server
        self._open_to = open_to

    async def connect(self, session_id: SessionId) -> ImapConnection:
        self.knocks += 1
        await self.opens.wait()
        if self.errors:
            raise self.errors.pop(0)
        return await self._open_to(self._server, username=session_id)


@pytest.fixture
def door(imap_server: ScriptedImap, open_to: Open) -> Door:
    return Door(imap_server, open_to)


@pytest.mark.parametrize("error", [CredentialsStale("No."), UpstreamUnavailable("No.")])
async def test_a_login_that_fails_is_told_to_all_who_wait_and_tried_once(
    make_pool: MakePool, door: Door, error: UpstreamError
) -> None:
    pool = make_pool(connect=door.connect, per_session=1)
    door.errors = [error]
    tasks = [asyncio.create_task(use(pool)) for _ in range(10)]
    await settle()

    door.opens.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert results == [error] * 10
    assert door.knocks == 1
    assert pool._slots._by_session == {}


async def test_logins_that_fail_side_by_side_are_told_to_all_who_wait(
    make_pool: MakePool, door: Door
) -> None:
    pool = make_pool(connect=door.connect, per_session=3)
    door.errors = [UpstreamUnavailable("No.") for _ in range(3)]
    tasks = [asyncio.create_task(use(pool)) for _ in range(10)]
    await settle()

    door.opens.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} == {UpstreamUnavailable}
    assert door.knocks == 3
    assert nothing_but_idle(pool, 0)


async def test_while_others_are_open_those_who_wait_share_them(
    make_pool: MakePool, door: Door
) -> None:
    """One login that fails says nothing of the connections there are, and does not let the others try in turn."""
    pool = make_pool(connect=door.connect, per_session=2)
    door.opens.set()
    holder = Borrower(pool, JOE)
    await holder.served()
    door.opens.clear()
    door.errors = [UpstreamUnavailable("No.")]
    failing = asyncio.create_task(use(pool))
    await settle()
    waiting = [asyncio.create_task(use(pool)) for _ in range(5)]
    await settle()

    door.opens.set()
    with pytest.raises(UpstreamUnavailable):
        await failing
    await holder.leave()
    await asyncio.gather(*waiting)

    assert door.knocks == 2
    assert nothing_but_idle(pool, 1)


async def test_a_login_that_failed_is_tried_again_by_the_next_request(
    make_pool: MakePool, door: Door
) -> None:
    pool = make_pool(connect=door.connect)
    door.opens.set()
    door.errors = [UpstreamUnavailable("No.")]

    with pytest.raises(UpstreamUnavailable):
        await use(pool)
    await use(pool)

    assert door.knocks == 2


# ---- limits of the server's own


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("AUTHENTICATE", b"{tag} NO [LIMIT] enough\r\n"),
        ("connect", (b"* BYE Maximum number of connections from user+IP exceeded\r\n", CUT)),
    ],
)
async def test_a_limit_of_the_server_is_learnt_and_kept_to(
    imap_server: ScriptedImap, make_pool: MakePool, command: str, refusal
) -> None:
    pool = make_pool(per_session=5)
    imap_server.on(command, NORMAL, NORMAL, refusal)

    await asyncio.gather(*(use(pool) for _ in range(30)))
    before = imap_server.connections
    await asyncio.gather(*(use(pool) for _ in range(30)))

    assert before <= 5
    assert imap_server.connections == before, "a login was tried that the server had refused"
    assert nothing_but_idle(pool, 2)


async def test_who_was_refused_by_a_limit_is_served_before_those_who_came_later(
    make_pool: MakePool, door: Door
) -> None:
    pool = make_pool(connect=door.connect, per_session=2)
    door.opens.set()
    holder = Borrower(pool, JOE)
    await holder.served()
    door.opens.clear()
    door.errors = [ServerLimit("Enough.")]
    refused, later = Borrower(pool, JOE), Borrower(pool, JOE)
    await settle()

    door.opens.set()
    await until(lambda: pool.statistics().waiting == 2)
    await holder.leave()
    await refused.served()

    assert later.connection is None
    await refused.leave()
    await later.served()
    await later.leave()


async def test_a_limit_is_forgotten_after_a_while(
    imap_server: ScriptedImap, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_MEMORY_SECONDS", 0)
    pool = make_pool(per_session=2)
    imap_server.on("AUTHENTICATE", NORMAL, b"{tag} NO [LIMIT] enough\r\n", NORMAL)
    first = Borrower(pool, JOE)
    await first.served()
    second = Borrower(pool, JOE)
    await second.served()

    assert imap_server.count("AUTHENTICATE") == 3
    await first.leave()
    await second.leave()
    assert nothing_but_idle(pool, 2)


async def test_where_others_use_up_the_limit_one_login_is_tried_and_all_are_told(
    imap_server: ScriptedImap, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mailbox's other clients have it; there is nothing of ours to wait for."""
    monkeypatch.setattr(module, "FAILURE_MEMORY_SECONDS", 60)
    pool = make_pool(per_session=1)
    imap_server.on("AUTHENTICATE", b"{tag} NO [LIMIT] enough\r\n", NORMAL)

    results = await asyncio.gather(*(use(pool) for _ in range(10)), return_exceptions=True)
    with pytest.raises(Overloaded):
        await use(pool)

    assert {type(result) for result in results} == {Overloaded}
    assert imap_server.connections == 1
    pool._slots._forget_bound(pool._slots._by_session[JOE])
    await use(pool)
    assert nothing_but_idle(pool, 1)


# ---- sessions that end


async def test_what_a_session_has_idle_is_closed_with_it(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    await use(pool, JOE)
    await use(pool, ANN)

    pool.close_session(JOE)

    await imap_server.heard("LOGOUT")
    assert nothing_but_idle(pool, 1)
    assert list(pool._slots._by_session) == [ANN]


async def test_what_is_lent_when_its_session_ends_is_closed_when_it_comes_back(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()

    async with pool.lease(JOE) as imap:
        pool.close_session(JOE)
        await imap.run_one(NOOP)
        assert pool.statistics() == PoolStatistics(1, 0, 0)

    await imap_server.heard("LOGOUT")
    assert nothing_but_idle(pool, 0)


async def test_who_waits_when_the_session_ends_is_told(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    holder = Borrower(pool, JOE)
    await holder.served()
    waiting = Borrower(pool, JOE)
    await settle()

    pool.close_session(JOE)

    with pytest.raises(Overloaded):
        await waiting.served()
    await holder.leave()
    assert nothing_but_idle(pool, 0)


async def test_a_connection_that_is_opened_after_its_session_ended_is_not_lent(
    imap_server: ScriptedImap, make_pool: MakePool, door: Door
) -> None:
    """It logged in with credentials that were replaced meanwhile, or are to be forgotten."""
    pool = make_pool(connect=door.connect)
    opening = Borrower(pool, JOE)
    await settle()

    pool.close_session(JOE)
    door.opens.set()

    with pytest.raises(Overloaded):
        await opening.served()
    await imap_server.heard("LOGOUT")
    assert nothing_but_idle(pool, 0)


async def test_a_session_that_is_renewed_does_not_get_its_old_connections(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=1)
    old = Borrower(pool, JOE)
    old_connection = await old.served()

    pool.close_session(JOE)
    async with pool.lease(JOE) as new_connection:
        await old.leave()
        assert new_connection is not old_connection

    assert nothing_but_idle(pool, 1)


async def test_a_closed_pool_lends_nothing_and_keeps_nothing(
    imap_server: ScriptedImap, make_pool: MakePool, open_to: Open
) -> None:
    pool = make_pool()
    await use(pool, ANN)
    async with pool.lease(JOE):
        pool.close()
        with pytest.raises(Overloaded):
            await use(pool, BOB)
    pool.adopt(BOB, await open_to(imap_server))

    await imap_server.heard("LOGOUT", times=3)
    assert nothing_but_idle(pool, 0)
    assert pool._slots._by_session == {}


# ---- adopted, deselected


async def test_the_connection_that_proved_a_login_is_the_first_to_be_lent(
    imap_server: ScriptedImap, make_pool: MakePool, open_to: Open
) -> None:
    pool = make_pool()
    proof = await open_to(imap_server)

    pool.adopt(JOE, proof)

    async with pool.lease(JOE) as imap:
        assert imap is proof


@pytest.mark.parametrize("bounds", [{"per_session": 1}, {"total": 1}])
async def test_a_connection_beyond_the_bounds_is_not_adopted(
    imap_server: ScriptedImap, make_pool: MakePool, open_to: Open, bounds: dict[str, int]
) -> None:
    pool = make_pool(**bounds)

    async with pool.lease(JOE):
        pool.adopt(JOE, await open_to(imap_server))

    await imap_server.heard("LOGOUT")
    assert nothing_but_idle(pool, 1)


async def test_a_connection_that_died_meanwhile_is_not_adopted(
    imap_server: ScriptedImap, make_pool: MakePool, open_to: Open
) -> None:
    pool = make_pool()
    dead = await open_to(imap_server)
    dead.abort()

    pool.adopt(JOE, dead)

    assert nothing_but_idle(pool, 0)
    assert pool._slots._by_session == {}


async def test_a_folder_about_to_go_is_selected_nowhere_any_more(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    below = FolderPath("Sent/2026")
    imap_server.folders[below] = imap_server.folders["Sent"]
    borrowers = [Borrower(pool, JOE, folder) for folder in (SENT, below, INBOX)]
    for borrower in borrowers:
        await borrower.served()
    for borrower in borrowers:
        await borrower.leave()

    pool.deselect(JOE, SENT)

    assert nothing_but_idle(pool, 1)
    async with pool.lease(JOE, INBOX):
        pass
    assert imap_server.count("SELECT") == 3


async def test_a_connection_lent_while_a_folder_goes_is_not_kept(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    """It has the old folder selected, or is about to: a new one of that name would be taken for it."""
    pool = make_pool()

    async with pool.lease(JOE, SENT):
        pool.deselect(JOE, SENT)

    assert nothing_but_idle(pool, 0)


async def test_nothing_is_deselected_where_nothing_is_known(make_pool: MakePool) -> None:
    pool = make_pool()

    pool.deselect(JOE, SENT)
    pool.close_session(JOE)

    assert nothing_but_idle(pool, 0)
