"""Accounts at their servers: one for all sessions of a login, which knows what was sent before it was asked."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from cbemail.errors import SessionNotFound
from cbemail.ids import SessionId
from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.upstreams import Upstreams
from cbemail.store.batches import BatchRepository
from cbemail.store.database import StatementFailed
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import SessionRecord
from cbemail.store.repository import Repository
from tests.contract.test_batches import NOW, add_batch, record, sent
from tests.contract.test_repository import session, token
from tests.unit.outbox.mailroom import BrokenQueries
from tests.unit.smtp.conftest import settle
from tests.unit.store.test_event_journal import slow_disk

JOE, JOES_OTHER, ANN = SessionId("ses_joe"), SessionId("ses_joe_2"), SessionId("ses_ann")
HOUR = timedelta(hours=1)


def session_of(session_id: SessionId, username: str) -> SessionRecord:
    record = session(session_id)
    return structs.replace(record, smtp=structs.replace(record.smtp, username=username))


@pytest.fixture
def sessions() -> dict[SessionId, SessionRecord]:
    return {
        JOE: session_of(JOE, "joe@example.org"),
        JOES_OTHER: session_of(JOES_OTHER, "Joe@Example.org"),
        ANN: session_of(ANN, "ann@example.org"),
    }


@pytest.fixture
async def database(
    tmp_path: Path, sessions: dict[SessionId, SessionRecord]
) -> AsyncIterator[BrokenQueries]:
    opened = await DuckDbDatabase.open(tmp_path / "store.duckdb")
    for known in sessions.values():
        await Repository(opened).add_session(known, token(known.id.encode(), known.id))
    yield BrokenQueries(opened)
    await opened.close()


@pytest.fixture
def repository(database: BrokenQueries) -> BatchRepository:
    return BatchRepository(database)


@pytest.fixture
def upstreams(sessions: dict[SessionId, SessionRecord], repository: BatchRepository) -> Upstreams:
    """A provider that allows three recipients a day, and what an account has at it."""

    def find(session_id: SessionId) -> SessionRecord:
        if session_id not in sessions:
            raise SessionNotFound("There is no such session.")
        return sessions[session_id]

    return Upstreams(find, lambda _: ProviderLimits(per_day=3), repository, lambda: NOW)


def now() -> float:
    return asyncio.get_running_loop().time()


async def send_before(repository: BatchRepository, session_id: SessionId, *hours: float) -> None:
    """A batch, of which a message was sent so many hours ago each."""
    number = await add_batch(repository, len(hours), record=record(f"bat_{session_id}", session_id))
    await repository.record([sent(number, row, NOW - age * HOUR) for row, age in enumerate(hours)])


async def test_sessions_of_one_login_share_an_account_and_others_do_not(
    upstreams: Upstreams,
) -> None:
    assert await upstreams.of(JOE) is await upstreams.of(JOES_OTHER)
    assert await upstreams.of(JOE) is not await upstreams.of(ANN)


async def test_what_was_sent_before_counts_whichever_session_sent_it(
    upstreams: Upstreams, repository: BatchRepository
) -> None:
    await send_before(repository, JOE, 30, 23, 2)
    await send_before(repository, JOES_OTHER, 1)
    await send_before(repository, ANN, 1)

    joe = await upstreams.of(JOE)

    assert joe.day_delay(now()) == pytest.approx(2 * 3600, abs=60), "the first of three is 23 old"
    assert (await upstreams.of(ANN)).day_delay(now(), recipients=2) == 0


async def test_what_is_sent_while_it_is_known_is_not_counted_twice(
    upstreams: Upstreams, repository: BatchRepository
) -> None:
    (await upstreams.of(JOE)).take(now(), recipients=2)
    await send_before(repository, JOE, 0, 0)

    assert (await upstreams.of(JOES_OTHER)).day_delay(now()) == 0


async def test_two_who_ask_at_once_get_one_account(
    upstreams: Upstreams, repository: BatchRepository, database: BrokenQueries
) -> None:
    """The second must not count what the first has taken, and does while the disk is slow."""
    await send_before(repository, JOE, 1)

    with slow_disk(database._database):
        asking = [asyncio.create_task(upstreams.of(each)) for each in (JOE, JOES_OTHER)]
        await settle()
    first, second = await asyncio.gather(*asking)

    assert first is second


async def test_a_store_that_fails_once_is_asked_again(
    upstreams: Upstreams, repository: BatchRepository, database: BrokenQueries
) -> None:
    await send_before(repository, JOE, 1, 1, 1)
    database.fails["count_sent_by_hour"] = 1

    with pytest.raises(StatementFailed):
        await upstreams.of(JOE)

    assert (await upstreams.of(JOE)).day_delay(now()) > 0


async def test_a_provider_without_a_days_limit_costs_no_look_into_the_store(
    sessions: dict[SessionId, SessionRecord], repository: BatchRepository, database: BrokenQueries
) -> None:
    database.fails["count_sent_by_hour"] = 1

    upstreams = Upstreams(sessions.__getitem__, lambda _: ProviderLimits(), repository, lambda: NOW)

    assert (await upstreams.of(JOE)).day_delay(now(), recipients=1000) == 0


async def test_a_clock_that_was_set_back_makes_nobody_wait_longer_than_a_day_and_an_hour(
    upstreams: Upstreams, repository: BatchRepository
) -> None:
    await send_before(repository, JOE, -5, -5, -5)

    assert (await upstreams.of(JOE)).day_delay(now()) <= 25 * 3600


# ---- sessions that end


async def test_a_session_that_has_ended_has_an_answer_for_the_pool_and_leaves_nothing_behind(
    upstreams: Upstreams,
) -> None:
    gone = SessionId("ses_gone")

    with pytest.raises(SessionNotFound):
        await upstreams.of(gone)

    assert upstreams.connections(gone) == 2
    assert upstreams._known == {}


async def test_a_session_that_ends_while_its_account_is_looked_up_leaves_nothing_behind(
    upstreams: Upstreams, sessions: dict[SessionId, SessionRecord], database: BrokenQueries
) -> None:
    with slow_disk(database._database):
        asking = asyncio.create_task(upstreams.of(JOE))
        await settle()
        del sessions[JOE]
        upstreams.forget(JOE)
    with pytest.raises(SessionNotFound):
        await asking

    upstreams.forget(ANN)

    assert upstreams._known == {}
    assert upstreams._accounts == {}


async def test_a_login_that_comes_back_has_sent_what_it_has_sent(
    upstreams: Upstreams, sessions: dict[SessionId, SessionRecord]
) -> None:
    """Its rows went with the session; its provider has not forgotten."""
    (await upstreams.of(JOE)).take(now(), recipients=3)

    upstreams.forget(JOE)

    assert (await upstreams.of(JOES_OTHER)).day_delay(now()) > 0
    assert upstreams._left == set()


async def test_an_account_that_nothing_counts_for_goes_with_its_last_session(
    upstreams: Upstreams,
) -> None:
    await upstreams.of(JOE)
    await upstreams.of(JOES_OTHER)

    upstreams.forget(JOE)
    shared = len(upstreams._known)
    upstreams.forget(JOES_OTHER)
    upstreams.forget(ANN)  # of which nothing was ever known

    assert (shared, upstreams._known) == (1, {})


async def test_the_pool_is_told_how_many_connections_the_account_may_have(
    upstreams: Upstreams,
) -> None:
    (await upstreams.of(JOE)).throttled(now())
    await upstreams.of(JOES_OTHER)

    assert [upstreams.connections(each) for each in (JOE, JOES_OTHER, ANN)] == [1, 1, 2]
