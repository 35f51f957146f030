"""Changing SECRET_KEY: what one key has sealed is sealed with another, all of it, and the old one is needed no more."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from base64 import urlsafe_b64encode
from datetime import timedelta
from pathlib import Path

import duckdb
import httpx
import pytest
from cryptography.fernet import Fernet, InvalidToken

from cbemail.__main__ import main
from cbemail.clock import now
from cbemail.hosts import MailServer, Password, Security
from cbemail.ids import SessionId, new_batch_id, new_session_id
from cbemail.rotation import Rotation, rotate
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.tokens import Tokens
from cbemail.sessions.vault import Vault
from cbemail.settings import Settings
from cbemail.store.batch_records import BatchState
from cbemail.store.batches import BatchRepository
from cbemail.store.database import StoreUnusable
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import RefreshTokenRecord, SessionRecord, SessionState
from cbemail.store.repository import Repository
from cbemail.store.sealed import SealedKind
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import PASSWORD, ScriptedSmtp
from tests.integration import merges
from tests.integration.conftest import (
    API_KEY,
    Mailbox,
    environment,
    letter,
    logged_in,
    serving,
)
from tests.integration.scripted import scripted_credentials
from tests.integration.service import ServiceProcess
from tests.unit.outbox.mailroom import KEY, add_batch

OLD = "the-old-key-0123456789abcdefghijklmnopqr"
NEW = "the-new-key-0123456789abcdefghijklmnopqr"
BOTH = f"{NEW},{OLD}"
MANY = 1000  # sessions, each with a message that waits to be sent
_PATIENCE = 120.0


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file, SECRET_KEY=BOTH)


@pytest.fixture
def store(environ: dict[str, str]) -> Path:
    return Path(environ["DB_PATH"])


@pytest.fixture
def command(tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `main` run as from a shell of its own."""
    monkeypatch.chdir(tmp_path)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


async def seed(store: Path, smtp_port: int, count: int, key: str = OLD) -> list[SessionId]:
    """A store as a service with this key has left it: sessions, and a queued message of each."""
    database = await DuckDbDatabase.open(store)
    repository, batches = Repository(database), BatchRepository(database)
    vault = Vault(KeyRing([key]))
    sessions = [new_session_id() for _ in range(count)]

    async def add(number: int, session_id: SessionId) -> None:
        token = RefreshTokenRecord(os.urandom(32), session_id, now() + timedelta(days=1))
        await repository.add_session(_session(session_id, number, smtp_port, vault), token)
        await add_batch(
            batches,
            [1],
            batch_id=new_batch_id(),
            session_id=session_id,
            sealed_key=vault.seal(session_id, "batch", KEY.secret),
            now=now(),
            state=BatchState.QUEUED,
        )

    await asyncio.gather(*(add(number, session_id) for number, session_id in enumerate(sessions)))
    await database.close()
    return sessions


def _session(session_id: SessionId, number: int, smtp_port: int, vault: Vault) -> SessionRecord:
    email = f"user{number}@example.org"
    secret = Password(PASSWORD)
    return SessionRecord(
        id=session_id,
        email=email,
        name=None,
        provider=None,
        auth="password",
        imap=MailServer("127.0.0.1", 9, Security.NONE, email),
        smtp=MailServer("127.0.0.1", smtp_port, Security.NONE, email),
        state=SessionState.ACTIVE,
        sealed_credentials=vault.seal_secrets(session_id, secret, secret),
        created_at=now(),
        last_used_at=now(),
    )


# A Fernet token in octets: 57 around the ciphertext, which is of whole blocks of 16; and all of it in base64.
_LENGTHS = [-(-(57 + 16 * blocks) // 3) * 4 for blocks in range(4, 14)]


def sealed_under(key: str, store: Path) -> int:
    """How many values there are in any file of the store's folder that ``key`` opens; in use, or left over.

    They lie side by side, so where one ends has to be tried.
    """
    fernet = Fernet(urlsafe_b64encode(KeyRing([key]).keys("vault")[0]))
    files = [file.read_bytes() for file in store.parent.rglob("*") if file.is_file()]
    return sum(
        any(opens(fernet, octets[found.start() : found.start() + length]) for length in _LENGTHS)
        for octets in files
        for found in re.finditer(rb"gAAAA", octets)
    )


def opens(fernet: Fernet, token: bytes) -> bool:
    try:
        fernet.decrypt(token)
    except InvalidToken:
        return False
    return True


async def test_a_thousand_sessions_and_their_queued_mail_need_only_the_new_key_afterwards(
    store: Path,
    environ: dict[str, str],
    command: None,
    certificates: Certificates,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with ScriptedSmtp() as server:
        sessions = await seed(store, server.port, MANY)
        assert sealed_under(OLD, store) > 0, "or nothing is looked at"

        status = await asyncio.to_thread(main, ["keys", "rotate"])

        assert status == 0
        said = capsys.readouterr().out
        assert f"credentials of sessions: {MANY} sealed anew" in said
        assert f"keys of batches: {MANY} sealed anew" in said
        assert "Nothing in the store needs an older key." in said
        assert sealed_under(OLD, store) == 0
        assert sealed_under(NEW, store) > 0
        async with serving(environ | {"SECRET_KEY": NEW}):
            await sent(server, MANY)
        logins = {message.user for message in server.messages}
        assert len(logins) == len(server.messages) == len(sessions)


async def sent(server: ScriptedSmtp, count: int) -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(_PATIENCE):
        while len(server.messages) < count:
            await asyncio.wait({never}, timeout=0.05)


async def test_cached_mail_is_known_after_the_key_was_changed(
    store: Path,
    environ: dict[str, str],
    command: None,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
) -> None:
    imap_server.folders["INBOX"].add(letter("known"))
    async with (
        serving(environ | {"SECRET_KEY": OLD}) as url,
        logged_in(url, scripted_credentials(imap_server, smtp_server)) as mailbox,
    ):
        before = (await mailbox.get("/api/mailbox/messages")).json()
    imap_server.commands.clear()

    assert await asyncio.to_thread(main, ["keys", "rotate"]) == 0

    async with (
        serving(environ | {"SECRET_KEY": NEW}) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        headers = {"X-API-Key": API_KEY, "X-Session-ID": mailbox.session_id}
        after = (await client.get("/api/mailbox/messages", headers=headers)).json()
    assert after == before
    assert sealed_under(OLD, store) == 0
    assert not [command for command in imap_server.commands if b"BODY" in command]


async def test_what_the_old_key_sealed_and_signed_is_good_while_it_is_listed(
    store: Path, environ: dict[str, str]
) -> None:
    async with ScriptedSmtp() as server:
        [session_id] = await seed(store, server.port, 1)
        token = Tokens(KeyRing([OLD]), expire_minutes=5, refresh_days=1).issue(session_id)
        answers = []
        for keys in (BOTH, NEW):
            async with serving(environ | {"SECRET_KEY": keys}) as url:
                answers.append(await called(url, session_id, token.token))
                if keys == BOTH:
                    await sent(server, 1)

    assert answers == [200, 401]


async def called(url: str, session_id: SessionId, token: str) -> int:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        response = await client.get(
            f"/api/sessions/{session_id}", headers={"Authorization": f"Bearer {token}"}
        )
    return response.status_code


async def test_all_that_a_service_has_sealed_is_what_it_was_under_the_new_key(
    store: Path, environ: dict[str, str], imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    message = {"to": "ann@example.net", "subject": "s", "body": "x"}
    imap_server.folders["INBOX"].add(letter("cached"))
    login = scripted_credentials(imap_server, smtp_server)
    keyed = {"Idempotency-Key": "once"}
    async with serving(environ | {"SECRET_KEY": OLD}) as url, logged_in(url, login) as mailbox:
        first = await mailbox.client.post("/api/send", json=message, headers=keyed)
        batch = await merges.started(mailbox, merges.merge(2), **{"Idempotency-Key": "batch"})
        report = await merges.report(mailbox, await merges.until(mailbox, batch))
        assert (await mailbox.get("/api/mailbox/changes")).status_code == 200  # remembered, too
        assert (await mailbox.get("/api/mailbox/messages")).status_code == 200  # cached

    done = await asyncio.to_thread(rotate, store, [NEW, OLD])

    assert {kind for kind in SealedKind if done[kind].renewed} == set(SealedKind)
    assert sealed_under(OLD, store) == 0
    async with (
        serving(environ | {"SECRET_KEY": NEW}) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        client.headers.update({"X-API-Key": API_KEY, "X-Session-ID": mailbox.session_id})
        again = await client.post("/api/send", json=message, headers=keyed)
        known = await client.get(f"/api/send/{first.json()['id']}")
        assert again.headers["idempotency-replayed"] == "true"
        assert first.json() == again.json() == known.json()
        mailbox_then = Mailbox(mailbox.user, mailbox.session_id, "", client)
        assert await merges.report(mailbox_then, batch) == report


def test_rotating_again_finds_nothing_left_to_do(store: Path) -> None:
    asyncio.run(seed(store, 9, 3))

    first = rotate(store, [NEW, OLD])
    second = rotate(store, [NEW, OLD])

    for kind in (SealedKind.CREDENTIALS, SealedKind.BATCH_KEYS):
        assert first[kind] == Rotation(renewed=3)
        assert second[kind] == Rotation(current=3)


def test_a_rotation_that_is_killed_leaves_a_store_that_opens_and_is_done_by_the_next(
    store: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """However far it came: every kill is later than the one before, and the last run is left alone."""
    asyncio.run(seed(store, 9, 600))
    rotation = [sys.executable, "-m", "cbemail", "keys", "rotate"]

    for seconds in (0.6, 0.8, 1.0, 1.2):
        with subprocess.Popen(
            rotation, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL
        ) as run:
            try:
                run.wait(seconds)
            except subprocess.TimeoutExpired:
                run.kill()
        assert asyncio.run(opened(store, [NEW, OLD])) == 1200
    rotate(store, [NEW, OLD])

    assert asyncio.run(opened(store, [NEW])) == 1200
    assert sealed_under(OLD, store) == 0


async def opened(store: Path, keys: list[str]) -> int:
    """How many sealed values there are; each has to open with these keys, as what it is."""
    vault = Vault(KeyRing(keys))
    database = await DuckDbDatabase.open(store)
    sessions = await Repository(database).load_sessions()
    batches = await BatchRepository(database).load_unfinished()
    await database.close()
    for session in sessions:
        vault.open_secrets(session.id, session.sealed_credentials)
    for batch in batches:
        assert vault.open(batch.session_id, "batch", batch.sealed_key) == KEY.secret
    return len(sessions) + len(batches)


def test_a_value_that_no_key_opens_is_told_and_left_as_it_is(
    store: Path, command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(seed(store, 9, 1))
    asyncio.run(seed(store, 9, 2, key="a-key-that-was-lost-0123456789abcdefghij"))

    status = main(["keys", "rotate"])

    said = capsys.readouterr().out
    assert status == 1
    assert "credentials of sessions: 1 sealed anew, 0 were already\n" in said
    assert "4 values open with none of the keys" in said
    assert sealed_under("a-key-that-was-lost-0123456789abcdefghij", store) > 0


def test_a_store_in_use_is_not_touched_and_its_owner_is_named(
    tmp_path: Path,
    environ: dict[str, str],
    command: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ServiceProcess(tmp_path, environ) as service:
        status = main(["keys", "rotate"])

        assert status == 1
        assert f"(process {service.pid}) is using the store" in capsys.readouterr().err


def test_where_there_is_no_store_none_is_made(
    store: Path, command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["keys", "rotate"])

    assert status == 1
    assert capsys.readouterr().err.startswith(f"cbemail: There is no store at {store}")
    assert not store.parent.exists()


def test_where_the_file_cannot_be_written_anew_every_value_still_opens(store: Path) -> None:
    asyncio.run(seed(store, 9, 2))
    store.with_name(store.name + ".new").mkdir()

    with pytest.raises(StoreUnusable):
        rotate(store, [NEW, OLD])

    assert asyncio.run(opened(store, [NEW, OLD])) == 4


def test_every_sealed_column_is_rotated_or_sealed_by_what_is(store: Path) -> None:
    """A new one fails here until somebody has decided which it is: `store/sealed`, or under the key of a batch."""
    asyncio.run(seed(store, 9, 1))
    with duckdb.connect(store) as connection:
        columns = connection.execute(
            "select table_name || '.' || column_name from duckdb_columns() where contains(column_name, 'sealed')"
        ).fetchall()

    rotated = {
        "session.sealed_credentials",
        "batch.sealed_key",
        "folder_state.sealed",
        "cache_key.sealed",
    }
    under_a_batch_key = {"batch_content.sealed", "batch_message.sealed"}

    assert {column for (column,) in columns} == rotated | under_a_batch_key


def test_the_settings_take_several_keys_newest_first(environ: dict[str, str]) -> None:
    assert Settings.from_environ(environ).secret_key == (NEW, OLD)
