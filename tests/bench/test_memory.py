"""What the service holds in memory: of a large attachment a little, of a session less."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cbemail.hosts import MailServer, Password, Security
from cbemail.ids import new_session_id
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
from tests.integration.conftest import SECRET_KEY
from tests.integration.dovecot import Dovecot

_SESSIONS = 1000
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
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    asyncio.run(write_sessions(full / "db" / "cbemail.duckdb", _SESSIONS))

    with Service.running(empty, ca_file) as service:
        without = service.resident_mb
    with Service.running(full, ca_file) as service:
        resident = service.resident_mb

    show(
        f"resident with {_SESSIONS} sessions",
        resident,
        "MB",
        at_most=120,
        without_sessions_mb=round(without, 1),
    )


async def write_sessions(path: Path, count: int) -> None:
    """A store as a service that ran before has left it."""
    database = await DuckDbDatabase.open(path)
    repository = Repository(database)
    vault = Vault(KeyRing([SECRET_KEY]))
    await asyncio.gather(*(repository.add_session(*new_session(vault, n)) for n in range(count)))
    await database.close()


def new_session(vault: Vault, number: int) -> tuple[SessionRecord, RefreshTokenRecord]:
    session_id = new_session_id()
    now = datetime.now(UTC).replace(microsecond=0)
    email = f"user{number}@example.test"
    secret = Password("an app password of sixteen")
    record = SessionRecord(
        id=session_id,
        email=email,
        name=f"User {number}",
        provider=None,
        auth="password",
        imap=MailServer("imap.example.test", 993, Security.TLS, email),
        smtp=MailServer("smtp.example.test", 465, Security.TLS, email),
        state=SessionState.ACTIVE,
        sealed_credentials=vault.seal_secrets(session_id, secret, secret),
        created_at=now,
        last_used_at=now,
    )
    token_hash = number.to_bytes(32, "big")
    return record, RefreshTokenRecord(token_hash, session_id, now + timedelta(days=30))
