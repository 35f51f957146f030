"""What the service holds in memory: of a large attachment a little, of a session less."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from msgspec import structs

from cbemail.hosts import MailServer, Password, Security
from cbemail.ids import SessionId, new_session_id
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.vault import Vault
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import RefreshTokenRecord, SessionRecord, SessionState
from cbemail.store.repository import Repository
from tests.bench import mail
from tests.bench.conftest import account
from tests.bench.figures import show
from tests.bench.service import Client, Service
from tests.certificates import Certificates
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.conftest import API_KEY, SECRET_KEY
from tests.integration.dovecot import Dovecot

_SESSIONS = 1000
_REGISTERED, _ACTIVE = 10_000, 500
_PAGE = 20
_SERVER = MailServer("imap.example.test", 993, Security.TLS, "")  # which is never asked
_KEY = {"X-API-Key": API_KEY}
_WARM = 'cbemail_connections{protocol="imap",state="idle"}'
_ATTACHMENT = 30_000_000  # octets, encoded
_SLOW_READ = 131_072  # octets a slow client takes at a time
_SLOW_PAUSE = 0.01  # seconds between; so it takes some 10 MB/s at most


def test_a_large_attachment(service: Service, dovecot: Dovecot, sink: SmtpSink) -> None:
    client = service.log_in(account(dovecot, sink))
    dovecot.append(client.user, mail.attachment_message(1_000_000))
    dovecot.append(client.user, mail.attachment_message(_ATTACHMENT))
    download(service, client, uid=1)  # what is loaded and grown once, whatever the size

    for name, pause in (("a fast client", 0.0), ("a slow client", _SLOW_PAUSE)):
        service.forget_highest()
        before = service.resident_mb
        start = time.perf_counter()
        octets = download(service, client, uid=2, pause=pause)
        show(
            f"memory added by a 30 MB attachment, {name}",
            service.highest_mb - before,
            "MB",
            at_most=8,
            resident_before_mb=round(before, 1),
            decoded_octets=octets,
            seconds=round(time.perf_counter() - start, 2),
        )


def download(service: Service, client: Client, *, uid: int, pause: float = 0.0) -> int:
    """Read an attachment to its end, pausing between reads; say how large the answer was."""
    request = client.request("GET", f"/api/mailbox/messages/{uid}/attachments/2")
    octets = 0
    reading = threading.Event()  # never set: waiting for it is the pause
    with socket.socket() as connection:
        if pause:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_READ)
        connection.connect((service.host, service.port))
        connection.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        head = connection.recv(_SLOW_READ)
        assert head.startswith(b"HTTP/1.1 200"), head
        octets += len(head)
        while chunk := connection.recv(_SLOW_READ):
            octets += len(chunk)
            if pause:
                reading.wait(pause)
    return octets


def test_a_thousand_sessions(tmp_path: Path, certificates: Certificates) -> None:
    ca_file = certificates.ca_file
    full = directory(tmp_path, "full")
    asyncio.run(write_sessions(full, [f"user{n}@example.test" for n in range(_SESSIONS)], _SERVER))

    without = resident_without_sessions(tmp_path, ca_file)
    with Service.running(full, ca_file) as service:
        resident = service.resident_mb

    show(
        f"resident with {_SESSIONS} sessions",
        resident,
        "MB",
        at_most=120,
        without_sessions_mb=round(without, 1),
    )


def test_ten_thousand_sessions_some_of_them_active(tmp_path: Path, dovecot: Dovecot) -> None:
    full = directory(tmp_path, "full")
    users = [dovecot.fresh_user() for _ in range(_REGISTERED)]
    server = MailServer("localhost", dovecot.imaps_port, Security.TLS, "")
    sessions = asyncio.run(write_sessions(full, users, server))
    for user in users[:_ACTIVE]:
        dovecot.append(user, *mail.everyday_mail(_PAGE))

    without = resident_without_sessions(tmp_path, dovecot.ca_file)
    with Service.running(full, dovecot.ca_file, IMAP_IDLE_SECONDS="1500") as service:
        registered = service.resident_mb
        list_each(service, sessions[:_ACTIVE])
        resident = service.resident_mb
        warm = warm_connections(service)

    assert warm == _ACTIVE
    show(
        f"resident with {_REGISTERED} sessions, {_ACTIVE} of them with a warm TLS connection",
        resident,
        "MB",
        at_most=250,
        without_sessions_mb=round(without, 1),
        registered_mb=round(registered, 1),
        a_warm_session_kb=round(1024 * (resident - registered) / _ACTIVE, 1),
    )


def directory(tmp_path: Path, name: str) -> Path:
    """Where a service may keep its store."""
    path = tmp_path / name
    path.mkdir()
    return path


def resident_without_sessions(tmp_path: Path, ca_file: Path) -> float:
    with Service.running(directory(tmp_path, "empty"), ca_file) as service:
        return service.resident_mb


def list_each(service: Service, sessions: list[SessionId]) -> None:
    """One page of each session's mail, in the name of a trusted service."""
    with httpx.Client(base_url=service.url, headers=_KEY, timeout=60, trust_env=False) as client:
        for session_id in sessions:
            named = {"X-Session-ID": session_id}
            response = client.get(f"/api/mailbox/messages?limit={_PAGE}", headers=named)
            assert len(response.json()["messages"]) == _PAGE, response.text


def warm_connections(service: Service) -> int:
    told = httpx.get(f"{service.url}/metrics", headers=_KEY, timeout=60, trust_env=False).text
    line = next(line for line in told.splitlines() if line.startswith(_WARM))
    return int(float(line.rpartition(" ")[2]))


async def write_sessions(folder: Path, users: list[str], server: MailServer) -> list[SessionId]:
    """A store as a service that ran before has left it: a session a user, whose mail is at ``server``."""
    database = await DuckDbDatabase.open(folder / "db" / "cbemail.duckdb")
    repository = Repository(database)
    vault = Vault(KeyRing([SECRET_KEY]))
    made = [new_session(vault, number, user, server) for number, user in enumerate(users)]
    await asyncio.gather(*(repository.add_session(*session) for session in made))
    await database.close()
    return [session.id for session, _ in made]


def new_session(
    vault: Vault, number: int, email: str, server: MailServer
) -> tuple[SessionRecord, RefreshTokenRecord]:
    session_id = new_session_id()
    now = datetime.now(UTC).replace(microsecond=0)
    secret = Password(Dovecot.password)
    record = SessionRecord(
        id=session_id,
        email=email,
        name=f"User {number}",
        provider=None,
        auth="password",
        imap=structs.replace(server, username=email),
        smtp=MailServer("smtp.example.test", 465, Security.TLS, email),
        state=SessionState.ACTIVE,
        sealed_credentials=vault.seal_secrets(session_id, secret, secret),
        created_at=now,
        last_used_at=now,
    )
    token_hash = number.to_bytes(32, "big")
    return record, RefreshTokenRecord(token_hash, session_id, now + timedelta(days=30))
