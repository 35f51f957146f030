"""A mailroom for tests: a store with batches in it, a scripted mail server, and all that carries the one to the other.

Everything is real but the server, and the wall clock, which stands still until it is set.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

from cbemail.hosts import MailHosts, MailServer, Password, Security
from cbemail.ids import SessionId
from cbemail.outbox.content import (
    Recipient,
    StoredMessage,
    encode_content,
    encode_recipient,
    place_of_content,
    place_of_row,
)
from cbemail.outbox.courier import Courier
from cbemail.outbox.journal import Journal
from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.pacing import Upstream
from cbemail.outbox.retry import RetryPolicy
from cbemail.outbox.room import Room
from cbemail.outbox.sealing import BatchKey
from cbemail.outbox.sender import Orders, Tools
from cbemail.outbox.workshop import Job, Workshop
from cbemail.smtp.connection import SubmissionConnection, open_submission
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batch_records import (
    BatchKind,
    BatchOptions,
    BatchRecord,
    BatchState,
    MessageEvent,
    MessageRow,
    NewMessageRow,
)
from cbemail.store.batches import BatchRepository
from cbemail.store.database import Database, Entry, Log, Row, Statement, StatementFailed
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.event_journal import _decode
from cbemail.store.records import SendState
from cbemail.store.repository import Repository
from cbemail.store.staged_batches import StagedBatches
from tests.contract.test_batches import NOW, SESSION, not_folded
from tests.contract.test_repository import session, token
from tests.fakes.script import NORMAL, Reply
from tests.fakes.scripted_smtp import PASSWORD, ScriptedSmtp

T = TypeVar("T")

KEY = BatchKey(bytes(range(32)))
SOON = RetryPolicy(delays=(0,), spread=0)
LOOPBACK = MailHosts(allow_networks=[ip_network("127.0.0.0/8")], allow_ports=())


class Impatient(Upstream):
    """One whose holds are over at once."""

    def hold(self, now: float, seconds: float) -> None:
        super().hold(now, min(seconds, 0.02))


APPEND = "append"  # to the log


class BrokenLog:
    """A real log, that fails as a query does that is named `APPEND`."""

    def __init__(self, log: Log, fail: Callable[[str], None]) -> None:
        self._log = log
        self._fail = fail
        self.entries = log.entries
        self.clear = log.clear

    @property
    def octets(self) -> int:
        return self._log.octets

    def append(self, entry: Entry) -> asyncio.Future[None]:
        self._fail(APPEND)
        return self._log.append(entry)


class BrokenQueries:
    """A real database, of which chosen queries fail for a while, as by a mistake of ours."""

    def __init__(self, database: DuckDbDatabase) -> None:
        self._database = database
        self.failed = database.failed
        self.statistics = database.statistics
        self.log = BrokenLog(database.log, self._fail)
        self.fails: Counter[str] = Counter()  # how often each is to fail yet

    def _fail(self, *queries: str) -> None:
        for query in queries:
            if self.fails[query] > 0:
                self.fails[query] -= 1
                raise StatementFailed(query, "BinderException")

    async def fetch(self, query: str, /, **values: object) -> list[Row]:
        self._fail(query)
        return await self._database.fetch(query, **values)

    async def execute(self, query: str, /, **values: object) -> list[Row]:
        self._fail(query)
        return await self._database.execute(query, **values)

    async def execute_all(self, statements: Sequence[Statement], /) -> list[list[Row]]:
        self._fail(*(query for query, _ in statements))
        return await self._database.execute_all(statements)

    async def close(self) -> None:
        await self._database.close()


def sender(message: int) -> str:
    return f"s{message}@example.org"


def address(row: int) -> str:
    return f"r{row}@example.org"


def plain(message: int) -> bytes:
    """The content of a message, as it is stored."""
    text = f"Subject: message {message}\r\n\r\nhello {message}\r\n".encode()
    return encode_content(StoredMessage(text, sender(message)))


def known(row: int) -> bytes:
    return encode_recipient(Recipient(address(row)))


def rejected_row(row: int) -> NewMessageRow:
    return NewMessageRow(
        row=row,
        position=row,
        content=0,
        state=SendState.REJECTED,
        message_id=f"<{row}@example.org>",
        sealed=KEY.seal(place_of_row(row), known(row)),
        code="invalid-address",
        detail="This is no address.",
    )


async def add_batch(
    repository: BatchRepository,
    recipients: Sequence[int],
    *,
    batch_id: str = "bat_a",
    session_id: SessionId = SESSION,
    sealed_key: bytes = b"",
    now: datetime = NOW,
    state: BatchState = BatchState.RUNNING,
    contents: Mapping[int, bytes] | None = None,
    people: Mapping[int, bytes] | None = None,
    options: BatchOptions = BatchOptions(),  # noqa: B008 - frozen
    kind: BatchKind = BatchKind.BATCH,
    rejected: int = 0,
) -> BatchRecord:
    """A published batch, sealed with `KEY`: one message for each number, to so many recipients; and behind these so
    many that were rejected.

    ``contents`` and ``people`` replace what is stored of a message, and of a row, before it is sealed.
    """
    record = BatchRecord(
        number=0,
        id=batch_id,
        kind=kind,
        session_id=session_id,
        name=None,
        state=BatchState.QUEUED,
        options=options,
        token="0123456789abcdef01234567",
        sealed_key=sealed_key,
        created_at=now,
    )
    staged = StagedBatches(repository._database)
    number = await staged.begin(record)
    rows: list[NewMessageRow] = []
    pieces: list[tuple[int, int, bytes]] = []
    for message, count in enumerate(recipients):
        content = (contents or {}).get(message, plain(message))
        pieces.append((message, 0, KEY.seal(place_of_content(message, 0), content)))
        for _ in range(count):
            row = len(rows)
            person = (people or {}).get(row, known(row))
            rows.append(
                NewMessageRow(
                    row=row,
                    position=message,
                    content=message,
                    state=SendState.QUEUED,
                    message_id=f"<{message}@example.org>",
                    sealed=KEY.seal(place_of_row(row), person),
                    next_attempt_at=now,
                )
            )
    rows += [rejected_row(len(rows) + number) for number in range(rejected)]
    await staged.add_contents(number, pieces)
    await staged.add_messages(number, rows)
    await staged.publish(number, state=state)
    found = await repository.find_batch(session_id, batch_id)
    assert found is not None
    return found


def noting(found: list[T], look: Callable[[], T]) -> Reply:
    """The usual answer, and in that moment a look at something."""

    def reply(_: bytes) -> Reply:
        found.append(look())
        return NORMAL

    return reply


async def on_disk(database: Database, batch: int) -> list[SendState]:
    """The state of every row, as a restart in this moment would find it."""
    while True:
        before = await not_folded(database)
        rows = await database.fetch(
            "page_batch_messages", batch=batch, state=None, after=-1, limit=100_000
        )
        if before == await not_folded(database):
            break  # nothing was folded in between
    states = {row["row_number"]: SendState(row["state"]) for row in rows}
    for entry in before:
        states |= {e.row: e.state for e in _decode(entry.payload) if e.batch == batch}
    return [states[row] for row in sorted(states)]


Settled = Callable[[Job, Sequence[MessageEvent]], Awaitable[None]]


@dataclass
class Mailroom:
    """One session, ``connections`` of which to ``server`` may be had."""

    database: BrokenQueries
    repository: BatchRepository
    journal: Journal
    server: ScriptedSmtp
    smtp: SmtpPool
    room: Room
    upstream: Upstream
    now: datetime = NOW
    halts: list[tuple[str, timedelta | None]] = field(default_factory=list)
    settled: list[tuple[int, SendState]] = field(default_factory=list)

    async def batch(self, messages: int | Sequence[int], **changes: Any) -> LiveBatch:
        """A batch of so many messages to one recipient each; or of one for each number, to so many."""
        recipients = [1] * messages if isinstance(messages, int) else messages
        record = await add_batch(self.repository, recipients, **changes)
        return LiveBatch(record, {SendState.QUEUED: sum(recipients)}, (), lambda: self.now)

    def courier(
        self, live: LiveBatch, settled: Settled | None = None, retry: RetryPolicy = SOON
    ) -> Courier:
        def halt(reason: str, pause: timedelta | None) -> None:
            self.halts.append((reason, pause))
            live.change(state=BatchState.PAUSED, paused_reason=reason)
            live.nudged.set()

        async def note(_: Job, events: Sequence[MessageEvent]) -> None:
            self.settled += [(event.row, event.state) for event in events]

        def refused(_: SubmissionConnection) -> None:
            halt("credentials-stale", None)

        tools = Tools(self.repository, self.journal, self.smtp, self.room, lambda: self.now, retry)
        workshop = Workshop(self.repository, live.record, KEY)
        return Courier(live, workshop, self.upstream, tools, Orders(halt, refused, settled or note))

    async def rows(self, live: LiveBatch) -> list[MessageRow]:
        return await self.repository.messages(live.number, state=None, after=None, limit=100_000)

    async def states(self, live: LiveBatch) -> list[SendState]:
        return [row.state for row in await self.rows(live)]

    def arrived(self) -> list[str]:
        """To whom messages came, in their order."""
        return [to for message in self.server.messages for to in message.recipients]


@asynccontextmanager
async def open_mailroom(
    path: Path, server: ScriptedSmtp, *, connections: int = 1, messages_per_connection: int = 100
) -> AsyncIterator[Mailroom]:
    database = await DuckDbDatabase.open(path)
    await Repository(database).add_session(session(), token(b"first"))

    async def connect(_: SessionId) -> SubmissionConnection:
        mail = MailServer("127.0.0.1", server.port, Security.NONE, "joe@example.org")
        return await open_submission(mail, Password(PASSWORD), LOOPBACK)

    smtp = SmtpPool(
        connect,
        lambda _: "mail.example.test",
        per_session=connections,
        messages_per_connection=messages_per_connection,
    )
    breakable = BrokenQueries(database)
    repository = BatchRepository(breakable)
    journal = Journal(repository)
    upstream = Impatient(ProviderLimits(connections=connections))
    try:
        yield Mailroom(breakable, repository, journal, server, smtp, Room(1 << 22), upstream)
    finally:
        await journal.flush(5)
        await smtp.aclose()
        await database.close()
