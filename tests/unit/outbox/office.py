"""The outbox of a service, whole, for tests: sessions at scripted servers, a store, and the dispatch between them.

It can be closed and opened again on the same store, as by a restart. The wall clock is the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from cbemail.hosts import MailHosts, MailServer, Password, Security
from cbemail.ids import SessionId
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.pool import ImapPool
from cbemail.outbox.backlog import Backlog
from cbemail.outbox.batches import Batches
from cbemail.outbox.dispatch import Dispatch, Policy
from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.sent import SentFolder
from cbemail.outbox.steering import Steering
from cbemail.outbox.upstreams import Upstreams
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.login import Login
from cbemail.sessions.registry import Sessions
from cbemail.sessions.tokens import Tokens
from cbemail.sessions.vault import Vault
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batch_records import BatchRecord, BatchState, MessageRow
from cbemail.store.batches import BatchRepository
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import SendState
from cbemail.store.repository import Repository
from cbemail.web import Web
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import PASSWORD, ScriptedSmtp
from tests.unit.outbox.mailroom import KEY, SOON, BrokenQueries, add_batch
from tests.unit.smtp.conftest import settle

KEYRING = KeyRing(["only-for-tests-0123456789abcdefghijklmnop"])
PATIENCE = 10  # seconds until a test that waits for nothing fails


class Wall:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


@dataclass
class Office:
    database: BrokenQueries
    repository: BatchRepository
    sessions: Sessions
    vault: Vault
    smtp: SmtpPool
    dispatch: Dispatch
    batches: Batches
    steering: Steering
    clock: Wall
    login: Login

    async def session(self, email: str = "joe@example.org") -> SessionId:
        """A new session at the two servers."""
        opened = await self.sessions.create(email, None, self.login)
        opened.imap.close()
        await opened.smtp.close()
        return opened.record.id

    async def stored(
        self,
        session_id: SessionId,
        messages: int | Sequence[int],
        name: str = "bat_a",
        **changes: Any,
    ) -> BatchRecord:
        """A batch that is on disk, and that nobody carries yet: of so many messages to one recipient each, or of one
        for each number, to so many."""
        known: dict[str, Any] = {
            "batch_id": name,
            "session_id": session_id,
            "sealed_key": self.vault.seal(session_id, "batch", KEY.secret),
            "now": self.clock(),
            "state": BatchState.QUEUED,
        }
        return await add_batch(self.repository, _each(messages), **(known | changes))

    async def started(
        self,
        session_id: SessionId,
        messages: int | Sequence[int],
        name: str = "bat_a",
        **changes: Any,
    ) -> LiveBatch:
        record = await self.stored(session_id, messages, name, **changes)
        return self.dispatch.take_up(record, {SendState.QUEUED: sum(_each(messages))}, ())

    async def record(self, live: LiveBatch) -> BatchRecord:
        """As it is on disk."""
        found = await self.repository.find_batch(live.record.session_id, live.record.id)
        assert found is not None
        return found

    async def rows(self, live: LiveBatch) -> list[MessageRow]:
        return await self.repository.messages(live.number, state=None, after=None, limit=100_000)

    async def states(self, live: LiveBatch) -> list[SendState]:
        return [row.state for row in await self.rows(live)]

    async def quiet(self) -> None:
        """Let everybody go on until nobody has anything more for the disk."""
        for _ in range(3):
            await settle()
            await self.database._database._writes.drained()

    def pass_by(self, **time: float) -> None:
        """Let time pass, and everybody who waits for it notice."""
        self.clock.advance(**time)
        for live in list(self.dispatch._lives.values()):
            live.nudged.set()
        self.dispatch._reconciler._armed.set()


def _each(messages: int | Sequence[int]) -> Sequence[int]:
    return [1] * messages if isinstance(messages, int) else messages


async def until(live: LiveBatch, *states: BatchState) -> None:
    """Wait until the batch is in one of these states (``completed`` where none is named)."""
    changed = live.watch()
    async with asyncio.timeout(PATIENCE):
        while live.record.state not in (states or (BatchState.COMPLETED,)):
            changed.clear()
            await changed.wait()
    live.unwatch(changed)


@asynccontextmanager
async def open_office(
    path: Path,
    smtp: ScriptedSmtp,
    imap: ScriptedImap,
    certificates: Certificates,
    *,
    policy: Policy = Policy(retry=SOON, restart_seconds=0.01),  # noqa: B008 - frozen
    clock: Wall | None = None,
    connections: int = 2,
    per_day: int | None = None,
) -> AsyncIterator[Office]:
    """Open the outbox over the store at ``path``. Nothing is taken up before `Dispatch.start`."""
    clock = clock or Wall()
    opened = await DuckDbDatabase.open(path)
    database = BrokenQueries(opened)
    hosts = MailHosts(
        allow_networks=[ip_network("127.0.0.0/8")], allow_ports=(), ca_file=certificates.ca_file
    )
    tokens = Tokens(KEYRING, expire_minutes=60, refresh_days=30)
    vault = Vault(KEYRING)
    web = Web(hosts)
    sessions = Sessions(
        Repository(database), vault, tokens, hosts, web, clock, time_to_live=timedelta(days=30)
    )
    await sessions.load()
    repository = BatchRepository(database)
    limits = ProviderLimits(connections=connections, per_day=per_day)
    upstreams = Upstreams(sessions.require, lambda _: limits, repository, clock)
    pool = SmtpPool(
        sessions.credentials.connect_smtp,
        lambda session_id: f"{session_id}.example.test",
        limit_of=upstreams.connections,
        per_session=connections,
        circuit=policy.circuit,
    )
    mailboxes = ImapPool(
        sessions.credentials.connect_imap, per_session=2, total=8, idle_seconds=30.0
    )
    sent = SentFolder(mailboxes, FolderDirectory(mailboxes))
    dispatch = Dispatch(repository, sessions, vault, pool, upstreams, sent, clock, policy)
    sessions.on_end += [pool.close_session, mailboxes.close_session, dispatch.forget_session]
    sessions.on_renewal += [pool.close_session, dispatch.resume_session]
    login = Login(
        MailServer("localhost", imap.port, Security.STARTTLS, "joe"),
        Password(PASSWORD),
        MailServer("localhost", smtp.port, Security.STARTTLS, "joe"),
        Password(PASSWORD),
    )
    batches = Batches(repository, dispatch)
    steering = Steering(repository, dispatch, batches, Backlog(dispatch.lives), clock)
    office = Office(
        database, repository, sessions, vault, pool, dispatch, batches, steering, clock, login
    )
    try:
        yield office
    finally:
        await dispatch.drain(5.0)
        await pool.aclose()
        mailboxes.close()
        await sessions.credentials.renewals.close()
        await web.close()
        await opened.close()
