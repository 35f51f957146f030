"""What clients of folders may rely on to be remembered, once per database."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from cbemail.errors import SessionNotFound
from cbemail.ids import SessionId
from cbemail.store.database import Database
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.folder_states import STATES_OF_A_FOLDER, FolderStateRecord, FolderStates
from cbemail.store.repository import Repository
from tests.contract.test_repository import session, token

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SESSION, OTHER = SessionId("ses_a"), SessionId("ses_b")


@pytest.fixture(params=["duckdb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Every database the service can keep its state in, opened empty but for the session ``SESSION``."""
    opened = await {"duckdb": DuckDbDatabase.open}[request.param](tmp_path / "db" / "store.duckdb")
    await Repository(opened).add_session(session(), token(b"first"))
    yield opened
    await opened.close()


@pytest.fixture
def states(database: Database) -> FolderStates:
    return FolderStates(database)


def state(line: str = "a", step: int = 0, folder: bytes = b"INBOX") -> FolderStateRecord:
    sealed = f"{line}{step}".encode()
    return FolderStateRecord(f"{line}{step}", SESSION, folder, line, step, sealed, NOW)


async def kept(states: FolderStates, *names: str) -> list[str]:
    """Those of ``names`` that are still there."""
    return [name for name in names if await states.find(SESSION, name) is not None]


async def test_a_state_is_found_as_it_was_by_its_own_session_only(states: FolderStates) -> None:
    await states.keep(state())

    assert await states.find(SESSION, "a0") == state()
    assert await states.find(OTHER, "a0") is None


async def test_the_state_before_is_kept_and_those_before_it_are_not(states: FolderStates) -> None:
    for step in range(3):
        await states.keep(state("a", step))
    await states.keep(state("b", 0))

    assert await kept(states, "a0", "a1", "a2", "b0") == ["a1", "a2", "b0"]


async def test_two_that_followed_from_one_state_are_both_kept(states: FolderStates) -> None:
    await states.keep(state("a", 0))
    await states.keep(state("a", 1))
    await states.keep(structs.replace(state("a", 1), id="again"))

    assert await kept(states, "a0", "a1", "again") == ["a0", "a1", "again"]


async def test_of_too_many_of_one_folder_the_least_recently_used_go(states: FolderStates) -> None:
    await states.keep(state("elsewhere", folder=b"Sent"))
    for number in range(STATES_OF_A_FOLDER):
        await states.keep(structs.replace(state(f"line{number}-"), used_at=NOW + number * SECOND))
    await states.touch(state("line0-"), NOW + 100 * SECOND)

    await states.keep(structs.replace(state("newest"), used_at=NOW + 50 * SECOND))

    names = ["elsewhere0", "line0-0", "line1-0", "line2-0", "newest0"]
    assert await kept(states, *names) == ["elsewhere0", "line0-0", "line2-0", "newest0"]


async def test_a_state_that_nobody_has_used_for_long_is_forgotten(states: FolderStates) -> None:
    await states.keep(state("old"))
    await states.keep(state("used"))
    await states.touch(state("used"), NOW + 2 * SECOND)

    await states.purge(NOW + SECOND)

    assert await kept(states, "old0", "used0") == ["used0"]


async def test_states_end_with_their_session_and_cannot_come_after_it(
    states: FolderStates, database: Database
) -> None:
    await states.keep(state())

    await Repository(database).delete_session(SESSION)

    assert await states.find(SESSION, "a0") is None
    with pytest.raises(SessionNotFound):
        await states.keep(state("a", 1))
