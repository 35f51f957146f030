"""Whoever is cancelled, and wherever: the pool keeps count, and the next borrower gets what is his."""

import asyncio
import random

import pytest
from anyio.lowlevel import checkpoint

from cbemail.ids import SessionId
from tests.fakes.script import STALL
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.smtp.conftest import ANN, BOB, ENVELOPE, JOE, MakePool, send, settle


async def test_a_cancelled_waiter_leaves_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(per_session=1)
    async with pool.lease(JOE):
        cancelled, patient = (asyncio.create_task(send(pool, JOE)) for _ in range(2))
        await settle()
        cancelled.cancel()
        await settle()
        [host] = pool._hosts.all()
        assert len(host.waiters) == 1

    await patient

    assert cancelled.cancelled()


async def test_a_waiter_cancelled_in_the_moment_of_its_turn_passes_it_on(
    make_pool: MakePool,
) -> None:
    pool = make_pool(per_session=1)
    async with pool.lease(JOE):
        cancelled, patient = (asyncio.create_task(send(pool, JOE)) for _ in range(2))
        await settle()
    cancelled.cancel()  # it was granted the connection, and has not run since

    await patient

    assert cancelled.cancelled()


async def test_a_cancelled_opening_makes_room_for_the_next(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(per_session=1)
    smtp_server.on("AUTH", STALL, b"235 2.7.0 yes\r\n")
    cancelled = asyncio.create_task(send(pool, JOE))
    await smtp_server.heard("AUTH")
    patient = asyncio.create_task(send(pool, JOE))

    cancelled.cancel()

    await patient
    assert cancelled.cancelled()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_cancelled_the_limits_hold_and_nothing_is_lost(
    smtp_server: ScriptedSmtp, make_pool: MakePool, seed: int
) -> None:
    """150 borrowers, a third of them cancelled anywhere."""
    chance = random.Random(seed)
    out = {JOE: 0, ANN: 0, BOB: 0}
    most = {"host": 0, JOE: 0, ANN: 0, BOB: 0}

    async def borrow(session_id: SessionId) -> None:
        async with pool.lease(session_id) as connection:
            out[session_id] += 1
            most[session_id] = max(most[session_id], out[session_id])
            most["host"] = max(most["host"], sum(out.values()))
            try:
                await connection.submit(ENVELOPE)
            finally:
                out[session_id] -= 1

    pool = make_pool(per_session=2, per_host=4, messages_per_connection=5)
    tasks = [asyncio.create_task(borrow(chance.choice([JOE, ANN, BOB]))) for _ in range(150)]
    for task in chance.sample(tasks, 50):
        for _ in range(chance.randrange(8)):
            await checkpoint()
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    assert most[JOE] <= 2
    assert most["host"] <= 4
    async with pool.lease(JOE), pool.lease(JOE), pool.lease(ANN), pool.lease(BOB):
        pass  # every right to a connection came back
