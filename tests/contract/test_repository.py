"""What the service may rely on its memory for, once per database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from cbemail.errors import InvalidRequest, SessionNotFound
from cbemail.hosts import MailServer, Security
from cbemail.ids import OutboxId, SessionId
from cbemail.store.database import Database, StatementFailed
from cbemail.store.duckdb_database import DuckDbDatabase
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
from cbemail.store.repository import Repository, RotationOutcome

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
SESSION = SessionId("ses_a")
OTHER = SessionId("ses_b")
SEND = OutboxId("msg_a")
OPERATION = "POST /api/send"
RESPONSE = StoredResponse(
    200, {"Content-Type": "application/json", "X-Ü": "ß"}, b'{"id":"msg_a"}\x00'
)


@pytest.fixture(params=["duckdb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Every database the service can keep its state in, opened empty."""
    opened = await {"duckdb": DuckDbDatabase.open}[request.param](tmp_path / "db" / "store.duckdb")
    yield opened
    await opened.close()


@pytest.fixture
async def repository(database: Database) -> Repository:
    """One that knows the session ``SESSION`` and its refresh token ``b"first"``."""
    repository = Repository(database)
    await repository.add_session(session(), token(b"first"))
    return repository


def session(session_id: SessionId = SESSION) -> SessionRecord:
    return SessionRecord(
        id=session_id,
        email="jörg@example.com",
        name=None,
        provider="example",
        auth="password",
        imap=MailServer("imap.example.com", 993, Security.TLS, "jörg"),
        smtp=MailServer("smtp.example.com", 587, Security.STARTTLS, "jörg@example.com"),
        state=SessionState.ACTIVE,
        sealed_credentials=b"\x00sealed\xff",
        created_at=NOW,
        last_used_at=NOW,
    )


def token(
    token_hash: bytes, session_id: SessionId = SESSION, expires_at: datetime = NOW + DAY
) -> RefreshTokenRecord:
    return RefreshTokenRecord(token_hash, session_id, expires_at)


def call(
    key: str = "key",
    *,
    session_id: SessionId = SESSION,
    outbox_id: OutboxId | None = None,
    created_at: datetime = NOW,
) -> IdempotencyRecord:
    return IdempotencyRecord(session_id, OPERATION, key, b"fingerprint", outbox_id, created_at)


def answer(key: str = "key", response: StoredResponse = RESPONSE) -> IdempotentAnswer:
    return IdempotentAnswer(SESSION, OPERATION, key, response)


def send(outbox_id: OutboxId = SEND, session_id: SessionId = SESSION) -> OutboxRecord:
    return OutboxRecord(outbox_id, session_id, SendState.SENDING, "<1@example.com>", NOW)


# ---- sessions


async def test_a_session_comes_back_as_it_was_given(repository: Repository) -> None:
    assert await repository.load_sessions() == [session()]


async def test_sessions_come_oldest_first(repository: Repository) -> None:
    older = structs.replace(session(OTHER), created_at=NOW - DAY)
    await repository.add_session(older, token(b"other", OTHER))

    loaded = await repository.load_sessions()

    assert [record.id for record in loaded] == [OTHER, SESSION]


async def test_a_session_is_not_kept_without_its_refresh_token(repository: Repository) -> None:
    with pytest.raises(StatementFailed):
        await repository.add_session(session(OTHER), token(b"first", OTHER))  # taken

    assert await repository.load_sessions() == [session()]


async def test_a_time_in_another_zone_comes_back_as_the_same_moment_in_utc(
    repository: Repository,
) -> None:
    elsewhere = datetime.fromisoformat("2026-03-02T01:30:00+05:30")

    await repository.touch_sessions({SESSION: elsewhere})

    [loaded] = await repository.load_sessions()
    assert loaded.last_used_at == elsewhere
    assert loaded.last_used_at.tzinfo is UTC


async def test_replaced_credentials_are_the_ones_loaded_next(repository: Repository) -> None:
    await repository.mark_stale(SESSION, sealed=session().sealed_credentials)

    await repository.replace_credentials(
        SESSION, sealed=b"new", auth="oauth2", state=SessionState.ACTIVE
    )

    assert await repository.load_sessions() == [
        structs.replace(session(), sealed_credentials=b"new", auth="oauth2")
    ]


async def test_credentials_that_were_replaced_meanwhile_are_not_made_stale(
    repository: Repository,
) -> None:
    await repository.replace_credentials(
        SESSION, sealed=b"new", auth="password", state=SessionState.ACTIVE
    )

    await repository.mark_stale(SESSION, sealed=session().sealed_credentials)

    [loaded] = await repository.load_sessions()
    assert loaded.state is SessionState.ACTIVE


async def test_a_session_state_is_remembered(repository: Repository) -> None:
    await repository.mark_stale(SESSION, sealed=session().sealed_credentials)

    [loaded] = await repository.load_sessions()
    assert loaded.state is SessionState.CREDENTIALS_STALE


async def test_many_sessions_are_touched_at_once_and_ended_ones_passed_over(
    repository: Repository,
) -> None:
    await repository.add_session(session(OTHER), token(b"other", OTHER))

    await repository.touch_sessions({SESSION: NOW + DAY, OTHER: NOW, SessionId("ses_gone"): NOW})

    loaded = await repository.load_sessions()
    assert {record.id: record.last_used_at for record in loaded} == {SESSION: NOW + DAY, OTHER: NOW}


async def test_a_late_touch_does_not_turn_time_back(repository: Repository) -> None:
    await repository.touch_sessions({SESSION: NOW + DAY})

    await repository.touch_sessions({SESSION: NOW})

    [loaded] = await repository.load_sessions()
    assert loaded.last_used_at == NOW + DAY


async def test_touching_no_session_is_fine(repository: Repository) -> None:
    await repository.touch_sessions({})

    assert await repository.load_sessions() == [session()]


async def test_a_deleted_session_takes_everything_with_it(repository: Repository) -> None:
    await repository.begin_idempotent(call(outbox_id=SEND), send())

    await repository.delete_session(SESSION)

    assert await repository.load_sessions() == []
    assert await repository.find_send(SESSION, SEND) is None
    await repository.add_session(session(), token(b"first"))  # its token is free again
    assert await repository.begin_idempotent(call()) is None


async def test_deleting_a_session_leaves_other_sessions_alone(repository: Repository) -> None:
    await repository.add_session(session(OTHER), token(b"other", OTHER))
    await repository.begin_idempotent(call(session_id=OTHER, outbox_id=SEND), send(SEND, OTHER))

    await repository.delete_session(SESSION)

    assert [record.id for record in await repository.load_sessions()] == [OTHER]
    assert await repository.find_send(OTHER, SEND) is not None
    assert await repository.begin_idempotent(call(session_id=OTHER)) is not None
    assert (await rotate(repository, b"other", session_id=OTHER)) is RotationOutcome.ROTATED


async def test_deleting_a_session_twice_is_fine(repository: Repository) -> None:
    await repository.delete_session(SESSION)

    await repository.delete_session(SESSION)

    assert await repository.load_sessions() == []


async def test_nothing_can_be_added_to_a_deleted_session(repository: Repository) -> None:
    await repository.delete_session(SESSION)

    for addition in (
        repository.add_refresh_token(token(b"late")),
        repository.begin_idempotent(call()),
        repository.record_send(send()),
        repository.replace_credentials(SESSION, sealed=b"", auth="", state=SessionState.ACTIVE),
    ):
        with pytest.raises(SessionNotFound):
            await addition


async def test_a_session_deleted_while_it_is_changed_stays_deleted(repository: Repository) -> None:
    async def touch(minute: int) -> None:
        await repository.touch_sessions({SESSION: NOW + timedelta(minutes=minute)})

    await asyncio.gather(
        *(touch(minute) for minute in range(20)),
        repository.delete_session(SESSION),
        *(touch(minute) for minute in range(20, 40)),
    )

    assert await repository.load_sessions() == []


@pytest.mark.parametrize("text", ["nul\0", "half a pair \ud800"])
async def test_text_that_not_every_database_can_keep_is_refused(
    repository: Repository, text: str
) -> None:
    with pytest.raises(InvalidRequest):
        await repository.begin_idempotent(call(text))
    with pytest.raises(InvalidRequest):
        await repository.touch_sessions({SessionId(text): NOW})


@pytest.mark.parametrize(
    "text", ["'", '"; drop table session; --', "$1", "$name", "?", "\\", "\x1a\u2028😀"]
)
async def test_text_is_data_whatever_it_looks_like(repository: Repository, text: str) -> None:
    assert await repository.begin_idempotent(call(text)) is None

    found = await repository.begin_idempotent(call(text))

    assert found is not None
    assert found.key == text
    assert await repository.load_sessions() == [session()]


# ---- refresh tokens


async def rotate(
    repository: Repository,
    used: bytes,
    replacement: bytes = b"next",
    *,
    session_id: SessionId = SESSION,
    now: datetime = NOW,
) -> RotationOutcome:
    rotation = await repository.rotate_refresh_token(
        used, replacement=token(replacement, session_id), now=now
    )
    assert rotation.session_id == (
        None if rotation.outcome is RotationOutcome.UNKNOWN else session_id
    )
    return rotation.outcome


async def test_a_refresh_token_is_good_once_and_its_replacement_after_it(
    repository: Repository,
) -> None:
    outcomes = [
        await rotate(repository, b"first", b"second"),
        await rotate(repository, b"second", b"third"),
        await rotate(repository, b"first", b"stolen"),
        await rotate(repository, b"stolen", b"fourth"),
    ]

    assert outcomes == [
        RotationOutcome.ROTATED,
        RotationOutcome.ROTATED,
        RotationOutcome.REUSED,
        RotationOutcome.UNKNOWN,
    ]


async def test_of_two_hundred_that_use_one_refresh_token_one_wins(repository: Repository) -> None:
    replacements = [f"next {n}".encode() for n in range(200)]

    outcomes = await asyncio.gather(
        *(rotate(repository, b"first", replacement) for replacement in replacements)
    )

    assert outcomes.count(RotationOutcome.ROTATED) == 1
    assert outcomes.count(RotationOutcome.REUSED) == 199
    winner = replacements[outcomes.index(RotationOutcome.ROTATED)]
    assert await rotate(repository, winner, b"after") is RotationOutcome.ROTATED


async def test_an_expired_refresh_token_is_unknown_used_or_not(repository: Repository) -> None:
    await rotate(repository, b"first", b"second")

    assert await rotate(repository, b"first", b"x", now=NOW + DAY) is RotationOutcome.UNKNOWN
    assert await rotate(repository, b"second", b"y", now=NOW + DAY) is RotationOutcome.UNKNOWN


async def test_a_refresh_token_is_good_for_its_own_session_only(repository: Repository) -> None:
    await repository.add_session(session(OTHER), token(b"other", OTHER))

    assert await rotate(repository, b"first", b"x", session_id=OTHER) is RotationOutcome.UNKNOWN
    assert await rotate(repository, b"first", b"y") is RotationOutcome.ROTATED


async def test_a_session_may_have_several_refresh_tokens(repository: Repository) -> None:
    await repository.add_refresh_token(token(b"another"))

    assert await rotate(repository, b"another", b"x") is RotationOutcome.ROTATED
    assert await rotate(repository, b"first", b"y") is RotationOutcome.ROTATED


# ---- idempotency keys


async def test_a_key_is_ours_once_and_then_shows_who_has_it(repository: Repository) -> None:
    record = call(outbox_id=SEND)

    first = await repository.begin_idempotent(record)
    second = await repository.begin_idempotent(
        structs.replace(record, fingerprint=b"another", created_at=NOW + DAY)
    )

    assert first is None
    assert second == record


async def test_of_two_hundred_that_begin_one_key_one_has_it_and_one_send_is_recorded(
    repository: Repository,
) -> None:
    async def begin(number: int) -> IdempotencyRecord | None:
        outbox_id = OutboxId(f"msg_{number}")
        return await repository.begin_idempotent(call(outbox_id=outbox_id), send(outbox_id))

    found = await asyncio.gather(*(begin(number) for number in range(200)))

    winner = OutboxId(f"msg_{found.index(None)}")
    assert found.count(None) == 1
    assert {record.outbox_id for record in found if record} == {winner}
    assert await repository.find_send(SESSION, winner) == send(winner)
    assert await repository.settle_interrupted_sends(NOW) == 1


async def test_a_key_cannot_be_recorded_with_a_send_it_does_not_name(
    repository: Repository,
) -> None:
    with pytest.raises(ValueError, match="must name the send"):
        await repository.begin_idempotent(call(outbox_id=None), send())


async def test_a_key_is_its_sessions_and_its_operations_own(repository: Repository) -> None:
    await repository.add_session(session(OTHER), token(b"other", OTHER))
    await repository.begin_idempotent(call())

    of_other_session = await repository.begin_idempotent(call(session_id=OTHER))
    of_other_call = await repository.begin_idempotent(structs.replace(call(), operation="POST /x"))

    assert of_other_session is None
    assert of_other_call is None


async def test_the_first_answer_of_a_key_is_the_one_replayed(repository: Repository) -> None:
    await repository.begin_idempotent(call())
    await repository.finish_idempotent(answer())

    await repository.finish_idempotent(answer(response=StoredResponse(500, {}, b"")))

    found = await repository.begin_idempotent(call())
    assert found == structs.replace(call(), response=RESPONSE)


async def test_a_forgotten_key_may_be_begun_again(repository: Repository) -> None:
    await repository.begin_idempotent(call())

    await repository.forget_idempotent(SESSION, OPERATION, "key")

    assert await repository.begin_idempotent(call()) is None


async def test_an_answered_key_is_not_forgotten(repository: Repository) -> None:
    await repository.begin_idempotent(call())
    await repository.finish_idempotent(answer())

    await repository.forget_idempotent(SESSION, OPERATION, "key")

    found = await repository.begin_idempotent(call())
    assert found is not None
    assert found.response == RESPONSE


async def test_old_keys_and_expired_tokens_are_purged_and_young_ones_kept(
    repository: Repository, database: Database
) -> None:
    await repository.add_refresh_token(token(b"expired", expires_at=NOW))
    await repository.begin_idempotent(call("old", created_at=NOW - DAY - timedelta(seconds=1)))
    await repository.begin_idempotent(call("young", created_at=NOW - DAY))

    await repository.purge_expired(NOW, keys=DAY, sends=30 * DAY)

    assert await repository.begin_idempotent(call("old")) is None
    assert await repository.begin_idempotent(call("young")) is not None
    assert await rotate(repository, b"first") is RotationOutcome.ROTATED
    await repository.add_refresh_token(token(b"expired"))  # the purged one is not in its way


async def test_a_key_can_be_looked_up_without_claiming_it(repository: Repository) -> None:
    absent = await repository.find_idempotent(SESSION, OPERATION, "key")
    await repository.begin_idempotent(call())

    found = await repository.find_idempotent(SESSION, OPERATION, "key")

    assert absent is None
    assert found == call()
    assert await repository.find_idempotent(OTHER, OPERATION, "key") is None


async def test_sends_that_ended_long_ago_are_purged_and_unfinished_ones_kept(
    repository: Repository,
) -> None:
    running, recent = OutboxId("msg_running"), OutboxId("msg_recent")
    for outbox_id in (SEND, running, recent):
        await repository.record_send(send(outbox_id))
    for outbox_id, ended in ((SEND, NOW - timedelta(seconds=1)), (recent, NOW)):
        await repository.settle_send(
            outbox_id, state=SendState.SENT, result=b"{}", finished_at=ended
        )

    await repository.purge_expired(NOW + 30 * DAY, keys=DAY, sends=30 * DAY)

    assert await repository.find_send(SESSION, SEND) is None
    assert await repository.find_send(SESSION, recent) is not None
    assert await repository.find_send(SESSION, running) is not None


# ---- the outbox


async def test_a_recorded_send_is_found_by_its_own_session_only(repository: Repository) -> None:
    await repository.record_send(send())

    assert await repository.find_send(SESSION, SEND) == send()
    assert await repository.find_send(OTHER, SEND) is None
    assert await repository.find_send(SESSION, OutboxId("msg_none")) is None


async def settle(repository: Repository, state: SendState, result: bytes = b"{}") -> None:
    await repository.settle_send(SEND, state=state, result=result, finished_at=NOW + DAY)


async def test_a_settled_send_shows_its_outcome(repository: Repository) -> None:
    await repository.record_send(send())

    await settle(repository, SendState.SENT, b'{"state":"sent"}')

    assert await repository.find_send(SESSION, SEND) == structs.replace(
        send(), state=SendState.SENT, result=b'{"state":"sent"}', finished_at=NOW + DAY
    )


@pytest.mark.parametrize("known", [SendState.SENT, SendState.FAILED])
async def test_what_is_known_of_a_send_is_not_made_uncertain(
    repository: Repository, known: SendState
) -> None:
    await repository.record_send(send())
    await settle(repository, known)

    await settle(repository, SendState.UNCERTAIN)

    found = await repository.find_send(SESSION, SEND)
    assert found is not None
    assert found.state is known


async def test_an_uncertain_send_can_still_be_proved(repository: Repository) -> None:
    await repository.record_send(send())
    await settle(repository, SendState.UNCERTAIN)

    await settle(repository, SendState.SENT)

    found = await repository.find_send(SESSION, SEND)
    assert found is not None
    assert found.state is SendState.SENT


async def test_a_send_and_the_answer_of_its_key_are_settled_together(
    repository: Repository,
) -> None:
    record = call(outbox_id=SEND)
    await repository.begin_idempotent(record, send())

    await repository.settle_send(
        SEND, state=SendState.SENT, result=b"{}", finished_at=NOW, answer=answer()
    )

    found = await repository.find_send(SESSION, SEND)
    assert found is not None
    assert found.state is SendState.SENT
    replay = await repository.begin_idempotent(record)
    assert replay == structs.replace(record, response=RESPONSE)


async def test_the_result_of_a_sent_message_can_be_completed_with_its_answer(
    repository: Repository,
) -> None:
    await repository.begin_idempotent(call(outbox_id=SEND), send())
    await settle(repository, SendState.SENT)

    await repository.amend_send(SEND, result=b'{"saved":true}', answer=answer())

    found = await repository.find_send(SESSION, SEND)
    assert found is not None
    assert (found.state, found.result) == (SendState.SENT, b'{"saved":true}')
    replay = await repository.find_idempotent(SESSION, OPERATION, "key")
    assert replay is not None
    assert replay.response == RESPONSE


async def test_a_send_that_is_not_sent_is_not_amended(repository: Repository) -> None:
    await repository.record_send(send())
    await settle(repository, SendState.UNCERTAIN, b"{}")

    await repository.amend_send(SEND, result=b'{"saved":true}')

    found = await repository.find_send(SESSION, SEND)
    assert found is not None
    assert found.result == b"{}"


async def test_an_interrupted_send_becomes_uncertain_and_a_settled_one_stays(
    repository: Repository,
) -> None:
    interrupted = OutboxId("msg_interrupted")
    await repository.record_send(send())
    await repository.record_send(send(interrupted))
    await settle(repository, SendState.SENT)

    count = await repository.settle_interrupted_sends(NOW + DAY)

    assert count == 1
    assert await repository.find_send(SESSION, interrupted) == structs.replace(
        send(interrupted), state=SendState.UNCERTAIN, finished_at=NOW + DAY
    )
    settled = await repository.find_send(SESSION, SEND)
    assert settled is not None
    assert settled.state is SendState.SENT


async def test_an_interrupted_call_keeps_its_key_only_if_something_may_have_been_sent(
    repository: Repository,
) -> None:
    nothing_sent = OutboxId("msg_never_recorded")
    await repository.begin_idempotent(call("sent", outbox_id=SEND), send())
    await repository.begin_idempotent(call("not yet", outbox_id=nothing_sent))
    await repository.begin_idempotent(call("no send"))
    await repository.begin_idempotent(call("answered"))
    await repository.finish_idempotent(answer("answered"))

    await repository.settle_interrupted_sends(NOW)

    assert await repository.begin_idempotent(call("sent")) == call("sent", outbox_id=SEND)
    assert await repository.begin_idempotent(call("not yet")) is None
    assert await repository.begin_idempotent(call("no send")) is None
    assert await repository.begin_idempotent(call("answered")) is not None
