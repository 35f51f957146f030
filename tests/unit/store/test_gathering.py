"""Statements that serve many callers at once: each of them must see only its own outcome."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cbemail.errors import SessionNotFound
from cbemail.hosts import MailServer, Security
from cbemail.ids import OutboxId, SessionId
from cbemail.store.database import StatementFailed
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import (
    OutboxRecord,
    RefreshTokenRecord,
    SendState,
    SessionRecord,
    SessionState,
)
from cbemail.store.repository import Repository

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SESSION = SessionId("ses_a")
SERVER = MailServer("mail.example.com", 993, Security.TLS, "joe")


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    """One that knows the session ``SESSION``."""
    database = await DuckDbDatabase.open(tmp_path / "store.duckdb")
    repository = Repository(database)
    session = SessionRecord(
        SESSION, "joe@example.com", None, None, "password", SERVER, SERVER, SessionState.ACTIVE, b"", NOW, NOW
    )  # fmt: skip
    await repository.add_session(
        session, RefreshTokenRecord(b"first", SESSION, NOW + timedelta(days=1))
    )
    yield repository
    await database.close()


def send(number: int, session_id: SessionId = SESSION) -> OutboxRecord:
    outbox_id = OutboxId(f"msg_{number}")
    return OutboxRecord(outbox_id, session_id, SendState.SENDING, f"<{number}@example.com>", NOW)


async def settle(repository: Repository, number: int, state: SendState, result: bytes) -> None:
    await repository.settle_send(
        OutboxId(f"msg_{number}"), state=state, result=result, finished_at=NOW
    )


async def test_many_sends_at_once_are_each_settled_with_their_own_result(
    repository: Repository,
) -> None:
    numbers = range(300)  # more than one transaction takes

    await asyncio.gather(*(repository.record_send(send(number)) for number in numbers))
    await asyncio.gather(
        *(settle(repository, number, SendState.SENT, b"%d" % number) for number in numbers)
    )

    for number in (0, 1, 150, 299):
        found = await repository.find_send(SESSION, OutboxId(f"msg_{number}"))
        assert found is not None
        assert (found.state, found.result) == (SendState.SENT, b"%d" % number)
        assert (found.message_id, found.finished_at) == (f"<{number}@example.com>", NOW)


async def test_the_sends_of_a_session_that_has_ended_are_refused_among_others(
    repository: Repository,
) -> None:
    ended = SessionId("ses_ended")
    sends = [send(number, ended if number % 3 == 0 else SESSION) for number in range(9)]

    outcomes = await asyncio.gather(
        *(repository.record_send(each) for each in sends), return_exceptions=True
    )

    refused = [number for number, outcome in enumerate(outcomes) if outcome is not None]
    assert refused == [0, 3, 6]
    assert {type(outcomes[number]) for number in refused} == {SessionNotFound}
    assert await repository.find_send(SESSION, OutboxId("msg_1")) is not None


async def test_a_send_that_cannot_be_recorded_fails_its_own_caller_only(
    repository: Repository,
) -> None:
    outcomes = await asyncio.gather(
        *(repository.record_send(send(number)) for number in (1, 2, 1, 3)), return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes] == [
        *[type(None)] * 2, StatementFailed, type(None),
    ]  # fmt: skip


async def test_of_two_that_settle_one_send_at_once_the_first_stays(repository: Repository) -> None:
    await repository.record_send(send(1))

    await asyncio.gather(
        settle(repository, 1, SendState.SENT, b"first"),
        settle(repository, 1, SendState.FAILED, b"second"),
    )

    found = await repository.find_send(SESSION, OutboxId("msg_1"))
    assert found is not None
    assert (found.state, found.result) == (SendState.SENT, b"first")
