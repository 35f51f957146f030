"""Who gets which connection, who waits for it, and when it is let go."""

import asyncio

import pytest
from anyio.lowlevel import checkpoint

from cbemail.errors import CredentialsRejected, Overloaded
from cbemail.ids import SessionId
from cbemail.smtp.outcome import Accepted
from cbemail.timing import open_account
from tests.fakes.script import CUT, STALL
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.smtp.conftest import ANN, BOB, ENVELOPE, JOE, MakePool, Open, send, settle, until

# ---- reuse


async def test_a_connection_serves_its_session_again(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()

    for _ in range(3):
        await send(pool, JOE)

    assert smtp_server.connections == 1
    assert smtp_server.count("AUTH") == 1


async def test_an_adopted_connection_is_the_next_to_be_lent(
    smtp_server: ScriptedSmtp, make_pool: MakePool, open_to: Open
) -> None:
    pool = make_pool()
    await pool.adopt(JOE, await open_to(smtp_server, username=JOE))

    await send(pool, JOE)

    assert smtp_server.connections == 1


async def test_a_connection_serves_no_other_session(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()

    await send(pool, JOE)
    await send(pool, ANN)

    assert [message.user for message in smtp_server.messages] == [JOE, ANN]


async def test_a_connection_retires_after_its_number_of_messages(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(messages_per_connection=2)

    for _ in range(5):
        await send(pool, JOE)

    assert smtp_server.connections == 3
    await smtp_server.heard("QUIT", 2)


async def test_an_unused_connection_is_let_go(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(idle_seconds=0)

    await send(pool, JOE)

    await smtp_server.heard("QUIT")
    await send(pool, JOE)
    assert smtp_server.connections == 2


# ---- a stale connection costs no message


async def test_a_connection_the_server_closed_is_not_lent(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with pool.lease(JOE) as connection:
        pass

    smtp_server.hang_up()
    await until(lambda: not connection.is_usable())

    await send(pool, JOE)
    assert smtp_server.connections == 2


@pytest.mark.parametrize("said", [CUT, b"421 4.4.2 idle for too long\r\n", b"500 what?\r\n"])
async def test_a_connection_long_unused_is_asked_first(
    smtp_server: ScriptedSmtp, make_pool: MakePool, said: bytes
) -> None:
    pool = make_pool(check_after=0)
    await send(pool, JOE)
    smtp_server.on("RSET", said)

    await send(pool, JOE)

    assert smtp_server.connections == 2
    assert len(smtp_server.messages) == 2


async def test_a_connection_just_used_is_not_asked(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()

    await send(pool, JOE)
    await send(pool, JOE)

    assert smtp_server.count("RSET") == 0


async def test_a_broken_connection_is_never_lent_again(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()
    smtp_server.on("MAIL", CUT)
    async with pool.lease(JOE) as broken:
        await broken.submit(ENVELOPE)

    assert pool._hosts.slots() == []
    async with pool.lease(JOE) as connection:
        assert connection is not broken


async def test_a_cancelled_submission_does_not_answer_the_next_borrower(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=1)
    smtp_server.on("MAIL", STALL)
    impatient = asyncio.create_task(send(pool, JOE))
    await smtp_server.heard("MAIL")

    impatient.cancel()
    await asyncio.wait([impatient])
    smtp_server.on("MAIL", b"250 2.1.0 ok\r\n")

    await send(pool, JOE)
    assert smtp_server.connections == 2


async def test_an_error_in_the_block_between_messages_costs_no_connection(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()

    with pytest.raises(LookupError):
        async with pool.lease(JOE):
            raise LookupError

    await send(pool, JOE)
    assert smtp_server.connections == 1


# ---- limits


async def test_a_session_has_so_many_connections_and_its_next_message_waits(
    make_pool: MakePool,
) -> None:
    pool = make_pool(per_session=2)
    async with pool.lease(JOE) as first, pool.lease(JOE) as second:
        waiting = asyncio.create_task(send(pool, JOE))
        await settle()
        assert not waiting.done()

    await waiting

    assert first is not second


async def test_waiters_are_served_in_the_order_they_came(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    served: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.lease(JOE):
            served.append(number)
            await checkpoint()

    async with pool.lease(JOE):
        borrowers = [asyncio.create_task(borrow(number)) for number in range(5)]
        await settle()
    await asyncio.gather(*borrowers)

    assert served == [0, 1, 2, 3, 4]


async def test_who_comes_later_does_not_overtake_who_waits_for_the_host(
    make_pool: MakePool,
) -> None:
    pool = make_pool(per_host=1)
    served: list[SessionId] = []

    async def borrow(session_id: SessionId) -> None:
        async with pool.lease(session_id):
            served.append(session_id)
            await checkpoint()

    async with pool.lease(JOE):
        tasks = [asyncio.create_task(borrow(each)) for each in (ANN, JOE, BOB)]
        await settle()
    await asyncio.gather(*tasks)

    assert served == [ANN, JOE, BOB]


async def test_a_full_host_gives_up_the_longest_idle_connection_of_a_stranger(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_host=2)
    for session_id in (JOE, ANN, JOE):
        await send(pool, session_id)

    await send(pool, BOB)

    await smtp_server.heard("QUIT")
    await send(pool, JOE)
    assert smtp_server.connections == 3, "it was not Joe's, who had used his last"


async def test_sessions_of_other_hosts_are_not_held_up(make_pool: MakePool) -> None:
    def host_of(session_id: SessionId) -> str:
        return session_id

    pool = make_pool(per_host=1, host_of=host_of)

    async with pool.lease(JOE):
        await send(pool, ANN)


async def test_who_waits_too_long_is_told_to_come_back(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1, acquire_timeout=0.05)

    async with pool.lease(JOE):
        with pytest.raises(Overloaded) as caught:
            await send(pool, JOE)
    await send(pool, JOE)

    assert caught.value.retry_after


async def test_a_login_that_fails_makes_room_for_the_next(
    make_pool: MakePool, smtp_server: ScriptedSmtp
) -> None:
    pool = make_pool(per_session=1)
    smtp_server.on("AUTH", b"535 5.7.8 no\r\n", b"235 2.7.0 yes\r\n")

    first, second = await asyncio.gather(send(pool, JOE), send(pool, JOE), return_exceptions=True)

    assert isinstance(first, CredentialsRejected)
    assert second is None


# ---- endings


async def test_closing_a_session_hangs_up_what_is_idle_now_and_what_is_lent_later(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool()
    await send(pool, ANN)
    async with pool.lease(JOE) as lent:
        async with pool.lease(JOE):
            pass

        pool.close_session(JOE)

        await smtp_server.heard("QUIT")
        assert isinstance(await lent.submit(ENVELOPE), Accepted)
    await smtp_server.heard("QUIT", 2)
    await send(pool, ANN)
    assert smtp_server.connections == 3, "the other session kept its connection"


async def test_a_closed_pool_lends_nothing(smtp_server: ScriptedSmtp, make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    async with pool.lease(JOE):
        waiting = asyncio.create_task(send(pool, JOE))
        await settle()

        await pool.aclose()

        with pytest.raises(Overloaded):
            await waiting
        with pytest.raises(Overloaded):
            await send(pool, ANN)
    await smtp_server.heard("QUIT")


# ---- where the time went


async def test_waiting_and_smtp_are_counted_apart(make_pool: MakePool) -> None:
    pool = make_pool()
    account = open_account()

    await send(pool, JOE)

    assert set(account) == {"wait", "smtp"}
