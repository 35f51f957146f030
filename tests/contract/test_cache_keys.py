"""What the message cache may rely on to be remembered of its keys, once per database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cbemail.ids import SessionId
from cbemail.store.cache_keys import CacheKeys
from cbemail.store.database import Database
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.repository import Repository
from cbemail.store.sealed import SealedKind, SealedValue, SealedValues
from tests.contract.test_repository import session, token

SESSION, OTHER = SessionId("ses_a"), SessionId("ses_b")


@pytest.fixture(params=["duckdb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Every database the service can keep its state in, opened empty but for the session ``SESSION``."""
    opened = await {"duckdb": DuckDbDatabase.open}[request.param](tmp_path / "db" / "store.duckdb")
    await Repository(opened).add_session(session(), token(b"first"))
    yield opened
    await opened.close()


@pytest.fixture
def keys(database: Database) -> CacheKeys:
    return CacheKeys(database)


async def test_a_key_is_found_by_its_own_session_only(keys: CacheKeys) -> None:
    assert await keys.keep(SESSION, b"sealed")

    assert await keys.find(SESSION) == b"sealed"
    assert await keys.find(OTHER) is None
    assert await keys.sessions() == {SESSION}


async def test_a_session_has_one_key_the_last(keys: CacheKeys) -> None:
    await keys.keep(SESSION, b"first")

    assert await keys.keep(SESSION, b"second")

    assert await keys.find(SESSION) == b"second"


async def test_keys_end_with_their_session_and_cannot_come_after_it(
    keys: CacheKeys, database: Database
) -> None:
    await keys.keep(SESSION, b"sealed")

    await Repository(database).delete_session(SESSION)

    assert await keys.find(SESSION) is None
    assert not await keys.keep(SESSION, b"late")
    assert await keys.sessions() == set()


async def test_keys_are_sealed_anew_with_everything_else_that_is_sealed(
    keys: CacheKeys, database: Database
) -> None:
    await keys.keep(SESSION, b"old")
    values = SealedValues(database)

    (value,) = await values.page(SealedKind.CACHE_KEYS)
    await values.replace(SealedKind.CACHE_KEYS, [SealedValue(value.row, b"new")])

    assert value.sealed == b"old"
    assert await keys.find(SESSION) == b"new"
    assert await values.page(SealedKind.CACHE_KEYS, after=value.row) == []
