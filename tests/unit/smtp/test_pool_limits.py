"""How many connections a session may have, who gives way to whom, and how long one waits."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from anyio.lowlevel import checkpoint

from cbemail.errors import CredentialsRejected, CredentialsStale, Overloaded, SessionNotFound
from cbemail.ids import SessionId
from cbemail.smtp.connection import SubmissionConnection
from cbemail.smtp.pool import SmtpPool
from tests.fakes.script import CUT, STALL
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.smtp.conftest import ANN, BOB, JOE, MakePool, Open, send, settle, until


async def borrow_all(stack: AsyncExitStack, pool: SmtpPool, *sessions: SessionId) -> None:
    for session_id in sessions:
        await stack.enter_async_context(pool.lease(session_id))


async def waits(stack: AsyncExitStack, pool: SmtpPool, session_id: SessionId) -> None:
    """A batch of the session waits for a connection, until the stack is left."""

    async def borrow() -> None:
        async with pool.lease(session_id, patience=None):
            pass

    task = asyncio.create_task(borrow())

    async def leave() -> None:
        task.cancel()
        await asyncio.wait([task])

    stack.push_async_callback(leave)
    await settle()
    assert not task.done()


# ---- a limit that changes


async def test_a_session_has_no_more_connections_than_it_may_just_now(make_pool: MakePool) -> None:
    pool = make_pool(limit_of=lambda _: 1, per_session=3)

    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE)
        with pytest.raises(Overloaded):
            async with pool.lease(JOE, patience=0):
                pass
        await send(pool, ANN)


async def test_no_limit_is_above_the_cap_nor_below_one(make_pool: MakePool) -> None:
    limits = {JOE: 100, ANN: 0}
    pool = make_pool(limit_of=limits.__getitem__, per_session=2)

    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, JOE, ANN)
        for session_id in (JOE, ANN):
            with pytest.raises(Overloaded):
                async with pool.lease(session_id, patience=0):
                    pass


async def test_a_connection_beyond_a_limit_that_fell_goes_when_it_comes_back(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    limits = {JOE: 3}
    pool = make_pool(limit_of=limits.__getitem__)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, JOE, JOE)
        limits[JOE] = 1

    await smtp_server.heard("QUIT", 2)
    await send(pool, JOE)
    assert smtp_server.connections == 3


async def test_an_idle_connection_beyond_a_limit_that_fell_goes_before_another_is_lent(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    limits = {JOE: 3}
    pool = make_pool(limit_of=limits.__getitem__)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, JOE, JOE)
    limits[JOE] = 1

    async with pool.lease(JOE):
        assert len(pool._hosts.slots()) == 1

    await smtp_server.heard("QUIT", 2)


async def test_when_a_limit_rises_who_waits_comes_before_who_comes(make_pool: MakePool) -> None:
    limits = {JOE: 1}
    pool = make_pool(limit_of=limits.__getitem__)
    served: list[str] = []

    async def borrow(name: str) -> None:
        async with pool.lease(JOE):
            served.append(name)
            await checkpoint()

    async with pool.lease(JOE):
        first = asyncio.create_task(borrow("first"))
        await settle()
        limits[JOE] = 2
        second = asyncio.create_task(borrow("second"))
        await asyncio.gather(first, second)

    assert served == ["first", "second"]


# ---- fairness


async def test_no_session_has_more_than_half_of_what_its_host_may_have(
    make_pool: MakePool,
) -> None:
    pool = make_pool(per_host=4, per_session=10)

    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, JOE)
        with pytest.raises(Overloaded):
            async with pool.lease(JOE, patience=0):
                pass
        await borrow_all(stack, pool, ANN, BOB)


async def test_others_wait_where_the_host_is_full(make_pool: MakePool) -> None:
    pool = make_pool(per_host=2)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, ANN)
        before = pool.others_wait(JOE)
        await waits(stack, pool, BOB)

        assert not before
        assert pool.others_wait(JOE)
        assert pool.others_wait(ANN)


async def test_who_is_at_a_limit_of_its_own_waits_for_nobody_else(make_pool: MakePool) -> None:
    pool = make_pool(per_host=2)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, ANN)
        await waits(stack, pool, ANN)

        assert not pool.others_wait(JOE), "a connection of Joe's would not help Ann"


async def test_a_batch_gives_way_to_a_message_of_its_session_and_not_to_another_batch(
    make_pool: MakePool,
) -> None:
    pool = make_pool(per_session=1)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE)
        await waits(stack, pool, JOE)
        after_batch = pool.others_wait(JOE)
        message = asyncio.create_task(send(pool, JOE))
        await settle()

        assert not after_batch
        assert pool.others_wait(JOE)
    await message


async def test_two_batches_that_give_way_take_turns(make_pool: MakePool) -> None:
    pool = make_pool(per_host=1)
    turns: list[SessionId] = []

    async def carry(session_id: SessionId) -> None:
        left = 3
        while left:
            async with pool.lease(session_id, patience=None):
                turns.append(session_id)
                while left:
                    await checkpoint()
                    left -= 1
                    if pool.others_wait(session_id):
                        break

    await asyncio.gather(carry(JOE), carry(ANN))

    assert turns[:4] == [JOE, ANN, JOE, ANN]


async def test_a_session_that_has_ended_is_told_so_by_the_lease_alone(make_pool: MakePool) -> None:
    def host_of(session_id: SessionId) -> str:
        raise SessionNotFound("There is no such session.")

    pool = make_pool(host_of=host_of)

    assert not pool.others_wait(JOE)
    assert pool.retry_in(JOE) is None
    with pytest.raises(SessionNotFound):
        await send(pool, JOE)


# ---- logins


async def test_two_logins_of_a_session_are_under_way_at_most(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=4)
    smtp_server.on("AUTH", STALL)
    tasks = [asyncio.create_task(send(pool, JOE)) for _ in range(4)]
    await smtp_server.heard("AUTH", 2)
    await settle()

    assert smtp_server.connections == 2
    await _cancel(tasks)


async def test_when_one_login_is_done_the_next_may_begin(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=4)

    async with AsyncExitStack() as stack:
        await asyncio.gather(*(borrow_all(stack, pool, JOE) for _ in range(4)))

    assert smtp_server.connections == 4


async def test_a_password_that_was_changed_is_tried_twice_at_most(
    smtp_server: ScriptedSmtp, make_pool: MakePool, open_to: Open
) -> None:
    """As the sessions do: the first refusal makes it stale, and a stale one is refused without a login."""
    stale = False

    async def connect(session_id: SessionId) -> SubmissionConnection:
        nonlocal stale
        if stale:
            raise CredentialsStale("The login is not accepted any more.")
        try:
            return await open_to(smtp_server, username=session_id)
        except CredentialsRejected:
            stale = True
            raise

    pool = make_pool(connect=connect, per_session=8)
    smtp_server.on("AUTH", b"535 5.7.8 no\r\n")

    errors = await asyncio.gather(*(send(pool, JOE) for _ in range(8)), return_exceptions=True)

    assert smtp_server.count("AUTH") <= 2
    assert {type(error) for error in errors} == {CredentialsRejected, CredentialsStale}


async def test_connections_that_died_unnoticed_are_replaced_two_at_a_time(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=4, check_after=0)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, JOE, JOE, JOE)
    smtp_server.on("RSET", CUT)
    smtp_server.on("AUTH", STALL)

    tasks = [asyncio.create_task(send(pool, JOE)) for _ in range(4)]
    await smtp_server.heard("AUTH", 6)
    await until(lambda: len(pool._hosts.all()[0].waiters) == 2)

    assert smtp_server.connections == 6
    await _cancel(tasks)


async def test_who_gives_up_while_a_connection_is_asked_makes_room_for_the_next(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=1, check_after=0)
    await send(pool, JOE)
    smtp_server.on("RSET", STALL)
    asking = asyncio.create_task(send(pool, JOE))
    await smtp_server.heard("RSET")
    waiting = asyncio.create_task(send(pool, JOE))
    await settle()

    await _cancel([asking])

    await waiting
    assert smtp_server.connections == 2


# ---- patience


async def test_a_batch_waits_longer_than_a_client_would(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1, acquire_timeout=0.01)

    async def batch() -> None:
        async with pool.lease(JOE, patience=None):
            pass

    async with pool.lease(JOE):
        waiting = asyncio.create_task(batch())
        for _ in range(3):
            with pytest.raises(Overloaded):
                await send(pool, JOE)
        assert not waiting.done()

    await waiting


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# ---- sessions of one login, which the mail server takes for one client


def one_login(_: SessionId) -> str:
    return "joe"


async def test_sessions_of_one_login_share_its_connections(make_pool: MakePool) -> None:
    pool = make_pool(account_of=one_login, limit_of=lambda _: 2, per_session=10)

    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, ANN)
        for session_id in (JOE, ANN, BOB):
            with pytest.raises(Overloaded):
                async with pool.lease(session_id, patience=0):
                    pass


async def test_an_idle_connection_gives_way_to_another_session_of_its_login(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(account_of=one_login, limit_of=lambda _: 1, per_session=10)

    await send(pool, JOE)
    await send(pool, ANN)

    assert [message.user for message in smtp_server.messages] == [JOE, ANN]
    assert pool.statistics().idle == 1


async def test_a_session_keeps_its_own_idle_connection_and_the_others_give_way(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    limit = 3
    pool = make_pool(account_of=one_login, limit_of=lambda _: limit, per_session=10)
    for session_id in (JOE, ANN, BOB):
        await send(pool, session_id)

    limit = 1
    await send(pool, JOE)

    assert smtp_server.connections == 3
    assert pool.statistics().idle == 1


async def test_of_two_batches_of_one_login_the_larger_gives_way_to_the_smaller(
    make_pool: MakePool,
) -> None:
    pool = make_pool(account_of=one_login, limit_of=lambda _: 2, per_session=10)

    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, JOE)
        await waits(stack, pool, ANN)
        with_both = pool.others_wait(JOE)
    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE, ANN)
        await waits(stack, pool, ANN)

        assert with_both
        assert not pool.others_wait(JOE), "or each would log in for every message"


async def test_a_batch_gives_way_to_a_message_of_another_session_of_its_login(
    make_pool: MakePool,
) -> None:
    pool = make_pool(account_of=one_login, limit_of=lambda _: 1, per_session=10)

    async with AsyncExitStack() as stack:
        await borrow_all(stack, pool, JOE)
        message = asyncio.create_task(send(pool, ANN))
        await settle()

        assert pool.others_wait(JOE)
    await message
