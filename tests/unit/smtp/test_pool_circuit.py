"""A host that cannot be reached is left alone: for everybody, at once, and not for ever."""

import asyncio
import gc
from collections.abc import Awaitable

import pytest

from cbemail.errors import CbemailError, CredentialsRejected, UpstreamUnavailable
from cbemail.ids import SessionId
from cbemail.smtp.circuit import CircuitPolicy
from cbemail.smtp.outcome import NotSent
from cbemail.smtp.pool import SmtpPool
from tests.fakes.script import CUT, NORMAL, STALL
from tests.fakes.script import Reply as Scripted
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.smtp.conftest import ANN, BOB, ENVELOPE, JOE, MakePool, Open, send, settle, until

BUSY = b"421 4.3.2 busy\r\n"
FAILURES = 3
LONG = CircuitPolicy(failures=FAILURES, shortest=60)
SHORT = CircuitPolicy(failures=FAILURES, shortest=0.05, longest=0.05)


async def error_of(attempt: Awaitable[object]) -> CbemailError:
    with pytest.raises(CbemailError) as caught:
        await attempt
    return caught.value


async def bring_down(server: ScriptedSmtp, pool: SmtpPool, session_id: SessionId = ANN) -> None:
    server.on("connect", BUSY)
    for _ in range(FAILURES):
        await error_of(send(pool, session_id))


async def probe_is_due(server: ScriptedSmtp, pool: SmtpPool, greeting: Scripted) -> None:
    await until(lambda: pool.retry_in(JOE) is None)
    server.on("connect", greeting)


async def test_a_host_that_failed_several_times_in_a_row_is_not_asked_again(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=LONG)
    await bring_down(smtp_server, pool)

    errors = [await error_of(send(pool, each)) for each in (JOE, ANN, BOB)]

    assert smtp_server.connections == FAILURES
    assert {type(error) for error in errors} == {UpstreamUnavailable}
    assert all(59 <= (error.retry_after or 0) <= 60 for error in errors)
    assert 59 < (pool.retry_in(JOE) or 0) <= 60


@pytest.mark.parametrize("said", [CUT, b"554 5.7.1 not you\r\n", b"HTTP/1.1 400 what?\r\n"])
async def test_every_way_not_to_greet_counts(
    smtp_server: ScriptedSmtp, make_pool: MakePool, said: Scripted
) -> None:
    pool = make_pool(circuit=CircuitPolicy(failures=1))
    smtp_server.on("connect", said)

    await error_of(send(pool, JOE))

    assert pool.retry_in(JOE) is not None


async def test_one_success_breaks_the_row(smtp_server: ScriptedSmtp, make_pool: MakePool) -> None:
    pool = make_pool(circuit=LONG, messages_per_connection=1)
    smtp_server.on("connect", BUSY, BUSY, NORMAL, BUSY, BUSY, NORMAL)

    for session_id in (ANN, JOE, BOB, JOE, ANN, BOB):
        await asyncio.gather(send(pool, session_id), return_exceptions=True)

    assert len(smtp_server.messages) == 2


async def test_other_hosts_are_asked_all_the_same(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=LONG, host_of=str)
    await bring_down(smtp_server, pool, ANN)
    smtp_server.on("connect", NORMAL)

    await send(pool, JOE)

    assert pool.retry_in(JOE) is None
    assert pool.retry_in(ANN) is not None


async def test_a_connection_that_is_there_is_lent_all_the_same(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=LONG)
    await send(pool, JOE)
    await bring_down(smtp_server, pool, ANN)

    await send(pool, JOE)

    assert len(smtp_server.messages) == 2


@pytest.mark.parametrize("patience", [10, None])
async def test_who_waits_for_a_host_that_goes_down_need_not_wait(
    smtp_server: ScriptedSmtp, make_pool: MakePool, patience: float | None
) -> None:
    pool = make_pool(circuit=LONG, per_session=1)

    async def borrow() -> None:
        async with pool.lease(JOE, patience=patience):
            pass

    async with pool.lease(JOE):
        waiting = asyncio.create_task(borrow())
        await settle()
        await bring_down(smtp_server, pool, ANN)

        error = await error_of(waiting)

    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after


@pytest.mark.parametrize("said", [b"535 5.7.8 no\r\n", b"454 4.7.0 later\r\n", CUT])
async def test_a_login_that_fails_keeps_nobody_else_from_the_host(
    smtp_server: ScriptedSmtp, make_pool: MakePool, said: Scripted
) -> None:
    pool = make_pool(circuit=LONG)
    smtp_server.on("AUTH", said)
    for _ in range(FAILURES + 1):
        await error_of(send(pool, ANN))
    smtp_server.on("AUTH", NORMAL)

    await send(pool, JOE)

    assert smtp_server.connections == FAILURES + 2


async def test_a_probe_goes_alone_and_opens_the_way_for_all(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=SHORT)
    await bring_down(smtp_server, pool)
    answered = asyncio.Event()

    async def greet(_: bytes) -> Scripted:
        await answered.wait()
        return NORMAL

    await probe_is_due(smtp_server, pool, greet)

    probe = asyncio.create_task(send(pool, JOE))
    await until(lambda: smtp_server.connections == FAILURES + 1)
    meanwhile = await error_of(send(pool, BOB))
    answered.set()
    await probe
    await send(pool, BOB)

    assert isinstance(meanwhile, UpstreamUnavailable)
    assert len(smtp_server.messages) == 2


async def test_a_probe_that_fails_keeps_the_host_left_alone(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=CircuitPolicy(failures=FAILURES, shortest=0.2))
    await bring_down(smtp_server, pool)
    await probe_is_due(smtp_server, pool, BUSY)

    await error_of(send(pool, JOE))

    assert pool.retry_in(JOE) is not None


@pytest.mark.parametrize("said", [b"535 5.7.8 no\r\n", b"454 4.7.0 later\r\n"])
async def test_a_probe_that_reaches_the_login_has_reached_the_host(
    smtp_server: ScriptedSmtp, make_pool: MakePool, said: bytes
) -> None:
    pool = make_pool(circuit=SHORT)
    await bring_down(smtp_server, pool)
    await probe_is_due(smtp_server, pool, NORMAL)
    smtp_server.on("AUTH", said, NORMAL)

    await error_of(send(pool, JOE))

    assert pool.retry_in(JOE) is None
    await send(pool, BOB)


async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=SHORT)
    await bring_down(smtp_server, pool)
    await probe_is_due(smtp_server, pool, STALL)
    probe = asyncio.create_task(send(pool, JOE))
    await until(lambda: smtp_server.connections == FAILURES + 1)

    probe.cancel()
    await asyncio.wait([probe])
    smtp_server.on("connect", NORMAL)

    await send(pool, BOB)


async def test_a_probe_that_was_granted_and_never_begun_leaves_its_place_to_the_next(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=SHORT, per_session=1)
    async with pool.lease(JOE) as connection:
        await bring_down(smtp_server, pool)
        await probe_is_due(smtp_server, pool, NORMAL)
        waiting = asyncio.create_task(send(pool, JOE))
        await settle()
        smtp_server.on("MAIL", CUT, NORMAL)
        assert isinstance(await connection.submit(ENVELOPE), NotSent)
    waiting.cancel()  # it was granted the probe, and has not run since
    await asyncio.wait([waiting])

    await send(pool, BOB)

    assert waiting.cancelled()


async def test_the_login_of_a_new_session_shows_that_the_host_is_back(
    smtp_server: ScriptedSmtp, make_pool: MakePool, open_to: Open
) -> None:
    pool = make_pool(circuit=LONG)
    await bring_down(smtp_server, pool)
    smtp_server.on("connect", NORMAL)

    await pool.adopt(JOE, await open_to(smtp_server, username=JOE))

    await send(pool, JOE)
    await send(pool, ANN)


async def test_failures_are_remembered_while_nobody_has_a_connection(
    smtp_server: ScriptedSmtp, make_pool: MakePool
) -> None:
    pool = make_pool(circuit=LONG)
    await bring_down(smtp_server, pool)

    gc.collect()

    assert pool.retry_in(JOE) is not None


async def test_a_login_that_was_refused_says_nothing_of_the_host(make_pool: MakePool) -> None:
    async def connect(session_id: SessionId) -> None:
        raise CredentialsRejected("SMTP: No.")

    pool = make_pool(circuit=CircuitPolicy(failures=1), connect=connect)

    await error_of(send(pool, JOE))

    assert pool.retry_in(JOE) is None
