from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from msgspec import structs

from cbemail.errors import CredentialsStale, IdempotencyMismatch
from cbemail.hosts import MailServer, Security
from cbemail.ids import OutboxId, SessionId
from cbemail.outbox.idempotency import IdempotencyKey, SealedAnswers
from cbemail.rotation import rotate
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.vault import Vault
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.migrations import load_migrations
from cbemail.store.records import (
    IdempotencyRecord,
    IdempotentAnswer,
    OutboxRecord,
    RefreshTokenRecord,
    SendState,
    SessionRecord,
    SessionState,
    StoredResponse,
)
from cbemail.store.repository import Repository

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
OLD, NEW = "the-old-key-0123456789abcdefghijklmno", "the-new-key-0123456789abcdefghijklmno"
JOE = SessionId("ses_joe")
KEY = IdempotencyKey("POST /api/send", "abc", b"fingerprint")
ANSWER = StoredResponse(200, {"Location": "/api/send/msg_1"}, b'{"accepted": ["ann@example.org"]}')


def answers(*keys: str) -> SealedAnswers:
    return SealedAnswers(Vault(KeyRing(keys or [OLD])))


def answered(key: IdempotencyKey = KEY, session_id: SessionId = JOE) -> IdempotencyRecord:
    """A call and its answer, as the store keeps them."""
    return structs.replace(
        key.claim(session_id, NOW), response=answers().seal(session_id, key, ANSWER)
    )


def test_an_answer_is_kept_sealed_and_given_again_as_it_was() -> None:
    kept = answered()

    assert kept.response is not None
    assert b"example.org" not in kept.response.body
    assert answers().again(kept, KEY) == ANSWER


def test_a_call_that_has_no_answer_yet_has_none() -> None:
    assert answers().again(KEY.claim(JOE, NOW), KEY) is None


def test_a_key_that_was_used_for_another_request_is_refused() -> None:
    with pytest.raises(IdempotencyMismatch):
        answers().again(answered(), structs.replace(KEY, fingerprint=b"other"))


@pytest.mark.parametrize(
    "other",
    [
        answered(session_id=SessionId("ses_ann")),
        answered(structs.replace(KEY, key="abd")),
        answered(structs.replace(KEY, operation="POST /api/send/batch")),
    ],
    ids=["another session's", "another key's", "another call's"],
)
def test_an_answer_that_was_put_in_anothers_place_does_not_open(other: IdempotencyRecord) -> None:
    with pytest.raises(CredentialsStale):
        answers().again(structs.replace(answered(), response=other.response), KEY)


def test_an_answer_does_not_open_without_its_secret() -> None:
    with pytest.raises(CredentialsStale):
        answers(NEW).again(answered(), KEY)


# ---- in the store


VAULT = Vault(KeyRing([OLD]))
LATEST = len(load_migrations("duckdb"))
LOG = next(step for step in load_migrations("duckdb") if step.name == "event_log")  # opened always
RESULT = VAULT.seal(JOE, "result msg_1", b"{}")


async def _seed(store: Path, answer: StoredResponse, result: bytes, steps: int) -> None:
    """A session, and a message it sent under a key; in a store of the schema after so many steps."""
    migrations = load_migrations("duckdb")
    earlier = steps < LATEST
    chosen = [*migrations[:steps], LOG] if earlier else migrations
    database = await DuckDbDatabase.open(store, migrations=chosen)
    repository = Repository(database)
    server = MailServer("mail.example.org", 465, Security.TLS, "joe")
    session = SessionRecord(
        id=JOE,
        email="joe@example.org",
        name=None,
        provider=None,
        auth="password",
        imap=server,
        smtp=server,
        state=SessionState.ACTIVE,
        sealed_credentials=VAULT.seal(JOE, "credentials", b"secret"),
        created_at=NOW,
        last_used_at=NOW,
    )
    await repository.add_session(session, RefreshTokenRecord(b"t", JOE, NOW + timedelta(days=1)))
    send = OutboxRecord(OutboxId("msg_1"), JOE, SendState.SENDING, "<1@example.org>", NOW)
    await repository.begin_idempotent(KEY.claim(JOE, NOW, send.id), send)
    await repository.settle_send(
        send.id,
        state=SendState.SENT,
        result=result,
        finished_at=NOW,
        answer=IdempotentAnswer(JOE, KEY.operation, KEY.key, answer),
    )
    await database.close()
    if earlier:
        with duckdb.connect(store) as connection:
            connection.execute("drop table event_log")
            connection.execute(
                "delete from schema_version where version = $version", {"version": LOG.number}
            )


async def _kept(store: Path) -> tuple[IdempotencyRecord | None, OutboxRecord | None]:
    database = await DuckDbDatabase.open(store)
    repository = Repository(database)
    call = await repository.find_idempotent(JOE, KEY.operation, KEY.key)
    send = await repository.find_send(JOE, OutboxId("msg_1"))
    await database.close()
    return call, send


def test_answers_and_results_go_along_when_the_secret_is_changed(tmp_path: Path) -> None:
    store = tmp_path / "store.duckdb"
    asyncio.run(_seed(store, answers().seal(JOE, KEY, ANSWER), RESULT, steps=LATEST))

    rotate(store, [NEW, OLD])
    call, send = asyncio.run(_kept(store))

    assert call is not None
    assert answers(NEW).again(call, KEY) == ANSWER
    assert send is not None
    assert send.result is not None
    assert Vault(KeyRing([NEW])).open(JOE, "result msg_1", send.result) == b"{}"


def test_what_an_earlier_version_kept_in_clear_is_gone_but_for_what_became_of_the_message(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store.duckdb"
    asyncio.run(_seed(store, ANSWER, b'{"accepted": ["ann@example.org"]}', steps=3))

    call, send = asyncio.run(_kept(store))

    assert call is not None
    assert answers().again(call, KEY) is None
    assert call.outbox_id == "msg_1"
    assert send is not None
    assert (send.state, send.result) == (SendState.SENT, None)
