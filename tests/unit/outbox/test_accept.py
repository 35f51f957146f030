import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anyio import CancelScope
from anyio.lowlevel import checkpoint
from msgspec import Raw, structs

from cbemail.errors import (
    IdempotencyConflict,
    IdempotencyMismatch,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    SessionNotFound,
)
from cbemail.hosts import MailHosts, MailServer, Security
from cbemail.ids import SessionId
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.pool import ImapPool
from cbemail.mime.address import Address
from cbemail.outbox import sieve, staging
from cbemail.outbox.accept import Acceptance, NewBatch
from cbemail.outbox.backlog import STANDSTILL_WAIT, Backlog, Limits
from cbemail.outbox.batch import BatchView
from cbemail.outbox.batches import Batches
from cbemail.outbox.content import (
    MessageTemplate,
    StoredMessage,
    decode_content,
    place_of_content,
)
from cbemail.outbox.dispatch import Dispatch, Policy
from cbemail.outbox.idempotency import IdempotencyKey
from cbemail.outbox.limits import limits_of_session
from cbemail.outbox.recipients import Entries, Entry, Unfit, from_file, from_json
from cbemail.outbox.sealing import BatchKey
from cbemail.outbox.sent import SentFolder
from cbemail.outbox.upstreams import Upstreams
from cbemail.outbox.workshop import open_recipient
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.registry import Sessions
from cbemail.sessions.tokens import Tokens
from cbemail.sessions.vault import Vault
from cbemail.smtp.pool import SmtpPool
from cbemail.store.batch_records import (
    LARGEST_VALUE,
    BatchKind,
    BatchOptions,
    BatchRecord,
    BatchState,
    MessageRow,
)
from cbemail.store.batches import BatchRepository
from cbemail.store.database import Database
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import (
    IdempotencyRecord,
    RefreshTokenRecord,
    SendState,
    SessionRecord,
    SessionState,
    StoredResponse,
)
from cbemail.store.repository import Repository
from cbemail.store.spool import SpoolFormat
from cbemail.store.staged_batches import StagedBatches
from cbemail.web import Web

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SESSION = SessionId("ses_a")
OTHER = SessionId("ses_b")
VAULT = Vault(KeyRing(["a secret of at least thirty-two characters"]))
LIMITS = Limits(session_messages=3_300, session_batches=3)
KEY = IdempotencyKey("POST /api/send/batch", "key", b"fingerprint")
TEMPLATE = MessageTemplate(
    Address("Me", "me@example.com"), subject="Hello {{ name }}", text="Dear {{ name }}."
)


# ---- the parts, all real; none of it sends, since it is draining


def clock() -> datetime:
    return NOW


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await DuckDbDatabase.open(tmp_path / "db" / "store.duckdb")
    yield opened
    await opened.close()


@pytest.fixture
async def repository(database: Database) -> Repository:
    repository = Repository(database)
    for session_id in (SESSION, OTHER):
        server = MailServer("mail.example.com", 465, Security.TLS, "me")
        record = SessionRecord(
            id=session_id,
            email="me@example.com",
            name=None,
            provider=None,
            auth="password",
            imap=server,
            smtp=server,
            state=SessionState.ACTIVE,
            sealed_credentials=b"sealed",
            created_at=NOW,
            last_used_at=NOW,
        )
        token = RefreshTokenRecord(session_id.encode(), session_id, NOW + timedelta(days=1))
        await repository.add_session(record, token)
    return repository


@pytest.fixture
def store(database: Database) -> BatchRepository:
    return BatchRepository(database)


@pytest.fixture
async def dispatch(repository: Repository, store: BatchRepository) -> AsyncIterator[Dispatch]:
    hosts = MailHosts(allow_ports=[465])
    tokens = Tokens(KeyRing(["s" * 32]), expire_minutes=60, refresh_days=30)
    web = Web(hosts)
    sessions = Sessions(
        repository, VAULT, tokens, hosts, web, clock, time_to_live=timedelta(days=30)
    )
    await sessions.load()
    smtp = SmtpPool(sessions.credentials.connect_smtp, lambda _: "mail.example.com:465")
    imap = ImapPool(sessions.credentials.connect_imap, per_session=1, total=1, idle_seconds=1.0)
    sent = SentFolder(imap, FolderDirectory(imap))
    upstreams = Upstreams(sessions.require, limits_of_session, store, clock)
    dispatch = Dispatch(store, sessions, VAULT, smtp, upstreams, sent, clock, Policy())
    dispatch.begin_drain()
    yield dispatch
    await dispatch.drain(1.0)
    await smtp.aclose()
    imap.close()


@pytest.fixture
def backlog(dispatch: Dispatch) -> Backlog:
    return Backlog(dispatch.lives)


@pytest.fixture
def acceptance(
    database: Database, repository: Repository, dispatch: Dispatch, backlog: Backlog
) -> Acceptance:
    return Acceptance(StagedBatches(database), repository, dispatch, backlog, VAULT, clock)


def render(view: BatchView) -> StoredResponse:
    return StoredResponse(202, {"Location": view.id}, msgspec.json.encode(view))


def merge(*recipients: object, **changes: Any) -> NewBatch:
    """A mail merge to these recipients."""
    raws = msgspec.json.decode(msgspec.json.encode(recipients), type=list[Raw])
    batch = NewBatch(
        session_id=SESSION,
        kind=BatchKind.BATCH,
        name="news",
        options=BatchOptions(),
        send_at=None,
        template=TEMPLATE,
        entries=from_json(raws),
        reject_invalid=False,
        dedupe=True,
    )
    return structs.replace(batch, **changes)


def ann(to: object = "ann@example.com", **fields: object) -> dict[str, object]:
    """A recipient that is good."""
    return {"to": to, "variables": {"name": "Ann"}} | fields


def listed(entries: Sequence[Entry | Unfit]) -> Entries:
    async def pieces() -> AsyncIterator[Sequence[Entry | Unfit]]:
        yield entries

    return pieces


def messages(*entries: Entry | Unfit, **changes: Any) -> NewBatch:
    """A batch of messages that are composed."""
    return merge(template=None, entries=listed(entries), **changes)


class Gate:
    """Entries that come when they are let through; until then, and after a while, the acceptance is under way."""

    def __init__(self, *, before: int = 1, after: Exception | None = None) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self._before = before
        self._after = after

    async def __call__(self) -> AsyncIterator[Sequence[Entry | Unfit]]:
        for start in range(0, self._before, 250):
            yield [good(i) for i in range(start, min(start + 250, self._before))]
        self.reached.set()
        await self.open.wait()
        if self._after is not None:
            raise self._after
        yield [good(self._before)]


def good(position: int) -> Entry:
    to = [Address(None, f"person{position}@example.com")]
    return Entry(position, to, variables={"name": f"Person {position}"})


async def accepted(acceptance: Acceptance, batch: NewBatch) -> BatchView:
    view = await acceptance.accept(batch, None, render)
    assert isinstance(view, BatchView)
    return view


class Stored:
    """What the store has of a batch, opened."""

    def __init__(self, record: BatchRecord, rows: list[MessageRow]) -> None:
        self.record = record
        self.rows = rows
        self.key = BatchKey(VAULT.open(record.session_id, "batch", record.sealed_key))
        self.recipients = [open_recipient(self.key, row) for row in rows]


async def stored(store: BatchRepository, batch_id: str) -> Stored:
    record = await store.find_batch(SESSION, batch_id)
    assert record is not None
    return Stored(
        record, await store.messages(record.number, state=None, after=None, limit=100_000)
    )


async def nothing_stored(database: Database, store: BatchRepository) -> bool:
    """Whether no batch has a row or a content, whatever its state."""
    batches = list(range(1, 20))
    rows = await database.fetch("count_batch_messages", batches=batches)
    contents = [await store.load_content(batch, 0) for batch in batches]
    return not rows and not any(contents) and not await store.page(SESSION, before=None, limit=9)


# ---- what is stored


async def test_every_recipient_is_a_row_with_its_own_values(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    batch = merge(
        ann(),
        {"to": "Bob <bob@example.com>", "variables": {"name": "Bob"}, "key": "7"},
    )

    view = await accepted(acceptance, batch)

    found = await stored(store, view.id)
    assert [(r.address, r.key, r.variables) for r in found.recipients] == [
        ("ann@example.com", None, {"name": "Ann"}),
        ("bob@example.com", "7", {"name": "Bob"}),
    ]
    assert found.recipients[1].to == [Address("Bob", "bob@example.com")]
    assert [(row.row, row.position, row.state, row.next_attempt_at) for row in found.rows] == [
        (0, 0, SendState.QUEUED, NOW),
        (1, 1, SendState.QUEUED, NOW),
    ]
    assert found.rows[0].message_id != found.rows[1].message_id
    assert all(row.message_id.endswith("@example.com>") for row in found.rows)


async def test_the_view_says_what_was_accepted(acceptance: Acceptance) -> None:
    view = await accepted(acceptance, merge(ann(), ann("no address"), name="spring"))

    assert view.id.startswith("bat_")
    assert (view.name, view.state, view.created_at) == ("spring", BatchState.QUEUED, NOW)
    assert (view.counts.total, view.counts.queued, view.counts.rejected) == (2, 1, 1)
    assert [(r.index, r.to, r.code) for r in view.rejected] == [
        (1, "no address", "invalid-address")
    ]


async def test_a_batch_is_found_as_it_was_answered(
    acceptance: Acceptance, store: BatchRepository, dispatch: Dispatch
) -> None:
    view = await accepted(acceptance, merge(ann(), ann("no address")))

    assert await Batches(store, dispatch).find(SESSION, view.id) == view


async def test_each_mailbox_of_a_recipient_is_a_row_of_one_message(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    recipient = ann(["a@b.c", "d@e.f"], cc="A@b.c", bcc=["g@Müller.de", "d@e.f"])

    view = await accepted(acceptance, merge(recipient, ann("next@b.c")))

    found = await stored(store, view.id)
    assert [r.address.lower() for r in found.recipients] == [
        "a@b.c",
        "d@e.f",
        "g@xn--mller-kva.de",
        "next@b.c",
    ]
    assert [row.position for row in found.rows] == [0, 0, 0, 1]
    assert len({row.message_id for row in found.rows[:3]}) == 1
    assert {tuple(a.address for a in r.cc) for r in found.recipients[:3]} == {("A@b.c",)}
    assert view.counts.queued == 4


async def test_a_template_is_kept_once_in_pieces_that_open(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    template = structs.replace(TEMPLATE, text="{{ name }} " + "x" * 2_500_000)

    view = await accepted(acceptance, merge(ann(), template=template))

    found = await stored(store, view.id)
    pieces = await store.load_content(found.record.number, 0)
    opened = [
        found.key.open(place_of_content(0, number), piece) for number, piece in enumerate(pieces)
    ]
    assert max(map(len, pieces)) == LARGEST_VALUE
    assert decode_content(b"".join(opened)) == template


async def test_a_message_that_is_composed_is_a_content_of_its_own(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    composed = [StoredMessage(b"content %d" % i, "me@example.com") for i in range(3)]
    to = [[Address(None, f"p{i}@b.c")] for i in range(3)]

    view = await accepted(
        acceptance,
        messages(
            Entry(0, to[0], message=composed[0], message_id="<0@x>"),
            Unfit(1, "?", "invalid-recipient", "No."),
            Entry(2, to[2], bcc=to[1], message=composed[2], message_id="<2@x>"),
        ),
    )

    found = await stored(store, view.id)
    assert [(row.position, row.message_id) for row in found.rows] == [
        (0, "<0@x>"),
        (1, ""),
        (2, "<2@x>"),
        (2, "<2@x>"),
    ]
    for row in (found.rows[0], *found.rows[2:]):
        [piece] = await store.load_content(found.record.number, row.content)
        opened = found.key.open(place_of_content(row.content, 0), piece)
        assert decode_content(opened) == composed[row.position]


async def test_a_single_message_is_a_batch_of_its_own_kind(
    acceptance: Acceptance, store: BatchRepository, dispatch: Dispatch
) -> None:
    entry = Entry(
        0,
        [Address(None, "a@b.c")],
        message=StoredMessage(b"x", "me@example.com"),
        message_id="<0@x>",
    )

    view = await accepted(acceptance, messages(entry, kind=BatchKind.SEND, name=None))

    found = await Batches(store, dispatch).find_send(SESSION, view.id)
    assert view.id.startswith("msg_")
    assert found is not None
    assert (found.state, found.message_id) == (SendState.QUEUED, "<0@x>")


async def test_a_batch_for_later_is_due_then(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    later = NOW + timedelta(hours=1)

    view = await accepted(acceptance, merge(ann(), send_at=later))

    found = await stored(store, view.id)
    assert (view.state, view.send_at) == (BatchState.SCHEDULED, later)
    assert found.rows[0].next_attempt_at == later


async def test_a_batch_for_a_time_that_has_passed_is_due_now(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    view = await accepted(acceptance, merge(ann(), send_at=NOW))

    found = await stored(store, view.id)
    assert view.state is BatchState.QUEUED
    assert found.rows[0].next_attempt_at == NOW


async def test_texts_are_kept_as_they_are(acceptance: Acceptance, store: BatchRepository) -> None:
    """threats.md T-30: no value is ever part of a statement."""
    hostile = ["'", '"; DROP TABLE batch; --', "$1", "?", "%s", "\\", "\0", "{{ name }}"]

    view = await accepted(
        acceptance,
        merge(
            *(
                ann(f"p{i}@b.c", variables={"name": "Ann", text: text})
                for i, text in enumerate(hostile)
            ),
            name='"; DROP TABLE batch; --',
        ),
    )

    found = await stored(store, view.id)
    assert [r.variables for r in found.recipients] == [{"name": "Ann", t: t} for t in hostile]
    assert found.record.name == '"; DROP TABLE batch; --'


# ---- who cannot be sent to


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a@b.c", "a@b.c"),
        ("a@b.c", "Ann <A@B.C>"),
        ("a@müller.de", "a@xn--mller-kva.de"),
        (["a@b.c", "d@e.f"], ["D@e.f", "a@b.c"]),
    ],
)
async def test_an_address_is_taken_once(
    acceptance: Acceptance, first: object, second: object
) -> None:
    view = await accepted(acceptance, merge(ann(first), ann(second)))

    assert [(r.index, r.code) for r in view.rejected] == [(1, "duplicate")]


@pytest.mark.parametrize(
    ("first", "second"),
    [("a@b.c", "a@b.d"), (["a@b.c", "d@e.f"], "a@b.c"), ("strasse@b.c", "straße@b.c")],
)
async def test_other_people_are_no_duplicates(
    acceptance: Acceptance, first: object, second: object
) -> None:
    view = await accepted(acceptance, merge(ann(first), ann(second)))

    assert view.rejected == []


async def test_an_address_may_come_again_after_it_was_refused(acceptance: Acceptance) -> None:
    view = await accepted(acceptance, merge({"to": "a@b.c"}, ann("a@b.c"), ann("a@b.c")))

    assert [(r.index, r.code) for r in view.rejected] == [
        (0, "missing-variable"),
        (2, "duplicate"),
    ]


async def test_duplicates_stay_where_that_is_asked_for(acceptance: Acceptance) -> None:
    view = await accepted(acceptance, merge(ann(), ann(), dedupe=False))

    assert view.counts.queued == 2


async def test_a_missing_variable_is_named(acceptance: Acceptance) -> None:
    view = await accepted(acceptance, merge({"to": "a@b.c", "variables": {"nmae": "A"}}, ann()))

    [rejection] = view.rejected
    assert (rejection.index, rejection.to) == (0, "a@b.c")
    assert "name" in rejection.detail


async def test_variables_have_64_kb(acceptance: Acceptance) -> None:
    variables = {"name": "Ann", "more": ["x" * 1000] * 66}

    view = await accepted(acceptance, merge(ann("a@b.c", variables=variables), ann()))

    assert [(r.index, r.code) for r in view.rejected] == [(0, "too-large")]


async def test_a_number_that_cannot_be_kept_spoils_its_recipient(acceptance: Acceptance) -> None:
    raw = Raw(b'{"to":"a@b.c","variables":{"name":"A","n":123456789012345678901234567890}}')
    good = Raw(b'{"to":"d@e.f","variables":{"name":"A"}}')

    view = await accepted(acceptance, merge(entries=from_json([raw, good])))

    assert [(r.index, r.code) for r in view.rejected] == [(0, "invalid-recipient")]


async def test_a_rejected_recipient_is_a_row_with_what_was_written(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    written = "c@d.co\r\nRCPT TO:<x@y.z>\0" + "a" * 1000

    view = await accepted(acceptance, merge(ann(), ann(written, key="k")))

    found = await stored(store, view.id)
    row, recipient = found.rows[1], found.recipients[1]
    assert (row.state, row.code, row.next_attempt_at) == (
        SendState.REJECTED,
        "invalid-address",
        None,
    )
    assert row.detail is not None
    assert recipient.address.startswith("c@d.coRCPT TO:<x@y.z>aaa")
    assert len(recipient.address) == 320
    assert view.rejected[0].to == recipient.address


async def test_a_batch_nobody_can_be_sent_of_is_refused(
    acceptance: Acceptance, database: Database, store: BatchRepository
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await acceptance.accept(merge(ann("x"), ann("y")), None, render)

    assert [e.pointer for e in refusal.value.errors] == ["#/recipients/0", "#/recipients/1"]
    assert await nothing_stored(database, store)


async def test_an_empty_batch_is_refused(
    acceptance: Acceptance, database: Database, store: BatchRepository
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await acceptance.accept(merge(), None, render)

    assert [e.pointer for e in refusal.value.errors] == ["#/recipients"]
    assert await nothing_stored(database, store)


async def test_a_batch_may_be_refused_for_one_recipient(
    acceptance: Acceptance, database: Database, store: BatchRepository
) -> None:
    bad = [ann(f"bad {i}") for i in range(150)]

    with pytest.raises(InvalidRequest) as refusal:
        await acceptance.accept(merge(ann(), *bad, reject_invalid=True), None, render)

    assert [e.pointer for e in refusal.value.errors] == [f"#/recipients/{i}" for i in range(1, 101)]
    assert "150" in refusal.value.detail
    assert await nothing_stored(database, store)


async def test_what_would_be_refused_for_one_recipient_is_accepted_without(
    acceptance: Acceptance,
) -> None:
    view = await accepted(acceptance, merge(ann("a@b.c"), ann("d@e.f"), reject_invalid=True))

    assert view.counts.queued == 2


async def test_a_message_to_nobody_is_rejected(acceptance: Acceptance) -> None:
    message = StoredMessage(b"x", "me@example.com")
    nobody = Entry(0, [], message=message, message_id="<0@x>")
    hidden = Entry(1, [], bcc=[Address(None, "a@b.c")], message=message, message_id="<1@x>")

    view = await accepted(acceptance, messages(nobody, hidden))

    assert [(r.index, r.code) for r in view.rejected] == [(0, "invalid-recipient")]
    assert view.counts.queued == 1


async def test_messages_are_pointed_at_as_messages(acceptance: Acceptance) -> None:
    unfit = Unfit(0, "?", "invalid-recipient", "No.")

    with pytest.raises(InvalidRequest) as refusal:
        await acceptance.accept(messages(unfit), None, render)

    assert [e.pointer for e in refusal.value.errors] == ["#/messages/0"]


async def test_a_batch_has_so_many_recipients_at_most(
    acceptance: Acceptance,
    database: Database,
    store: BatchRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sieve, "MAX_RECIPIENTS", 3)

    await accepted(acceptance, merge(ann(["a@b.c", "d@e.f"]), ann()))
    with pytest.raises(InvalidRequest, match="at most 3"):
        await acceptance.accept(merge(ann(["a@b.c", "d@e.f"]), ann(), ann("?")), None, render)

    assert len(await store.page(SESSION, before=None, limit=9)) == 1
    assert len(await database.fetch("count_batch_messages", batches=[1, 2, 3])) == 1


async def test_a_batch_takes_so_much_room_at_most(
    acceptance: Acceptance,
    database: Database,
    store: BatchRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "MAX_OCTETS", 100_000)
    many = [ann(f"a{i}@b.c", variables={"name": "x" * 1000}) for i in range(100)]

    with pytest.raises(PayloadTooLarge):
        await acceptance.accept(merge(*many), None, render)

    assert await nothing_stored(database, store)


# ---- all of it, or nothing


@pytest.mark.parametrize("failure", [InvalidRequest("Row 9: no."), ValueError("a defect of ours")])
async def test_what_breaks_off_in_the_middle_leaves_nothing(
    acceptance: Acceptance, database: Database, store: BatchRepository, failure: Exception
) -> None:
    gate = Gate(before=3000, after=failure)
    gate.open.set()

    with pytest.raises(type(failure)):
        await acceptance.accept(merge(entries=gate), KEY, render)

    assert await nothing_stored(database, store)
    assert await acceptance.replay(SESSION, KEY) is None


async def test_a_batch_being_accepted_is_seen_by_nobody(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    gate = Gate(before=3000)
    accepting = asyncio.create_task(acceptance.accept(merge(entries=gate), None, render))
    await gate.reached.wait()

    assert await store.page(SESSION, before=None, limit=9) == []
    assert await store.load_unfinished() == []

    gate.open.set()
    await accepting
    assert len(await store.page(SESSION, before=None, limit=9)) == 1


async def test_a_session_that_ends_meanwhile_takes_its_batch_along(
    acceptance: Acceptance, repository: Repository, database: Database, store: BatchRepository
) -> None:
    gate = Gate()
    accepting = asyncio.create_task(acceptance.accept(merge(entries=gate), KEY, render))
    await gate.reached.wait()

    await repository.delete_session(SESSION)
    gate.open.set()

    with pytest.raises(SessionNotFound):
        await accepting
    assert await nothing_stored(database, store)


async def test_a_client_that_hangs_up_does_not_undo_it(acceptance: Acceptance) -> None:
    """threats.md F-35. What the entries are read from stays until they are: the call ends only then."""
    gate = Gate()
    hung_up = CancelScope()
    ended = asyncio.Event()

    async def request() -> None:
        with hung_up:
            try:
                await acceptance.accept(merge(entries=gate), KEY, render)
            finally:
                ended.set()

    requesting = asyncio.create_task(request())
    await gate.reached.wait()
    hung_up.cancel()
    for _ in range(10):
        await checkpoint()
    assert not ended.is_set()
    gate.open.set()
    await requesting

    answer = await acceptance.replay(SESSION, KEY)
    assert answer is not None
    assert msgspec.json.decode(answer.body)["counts"]["queued"] == 2


async def test_shutdown_waits_for_what_is_being_accepted(acceptance: Acceptance) -> None:
    gate = Gate()
    accepting = asyncio.create_task(acceptance.accept(merge(entries=gate), None, render))
    await gate.reached.wait()

    draining = asyncio.create_task(acceptance.drain(10.0))
    gate.open.set()
    await draining

    assert isinstance(await accepting, BatchView)
    with pytest.raises(Overloaded):
        await acceptance.accept(merge(ann()), None, render)


async def test_shutdown_breaks_off_what_takes_too_long(
    acceptance: Acceptance, database: Database, store: BatchRepository
) -> None:
    gate = Gate(before=3000)
    accepting = asyncio.create_task(acceptance.accept(merge(entries=gate), KEY, render))
    await gate.reached.wait()

    await acceptance.drain(0.01)

    with pytest.raises(Overloaded):
        await accepting
    assert await nothing_stored(database, store)


# ---- idempotency keys


async def test_a_key_is_answered_again_as_it_was(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    first = await acceptance.accept(merge(ann(), ann("?")), KEY, render)
    assert isinstance(first, BatchView)

    again = await acceptance.accept(merge(ann()), KEY, render)

    assert again == render(first)
    assert await acceptance.replay(SESSION, KEY) == render(first)
    assert len(await store.page(SESSION, before=None, limit=9)) == 1


async def test_a_key_is_answered_by_the_next_process_too(
    acceptance: Acceptance,
    database: Database,
    repository: Repository,
    dispatch: Dispatch,
    backlog: Backlog,
) -> None:
    """threats.md F-2: the first one died before its answer was out."""
    first = await acceptance.accept(merge(ann()), KEY, render)
    next_process = Acceptance(StagedBatches(database), repository, dispatch, backlog, VAULT, clock)

    again = await next_process.accept(merge(ann()), KEY, render)

    assert isinstance(first, BatchView)
    assert again == render(first)


async def test_what_is_kept_for_a_key_names_nobody(
    acceptance: Acceptance, repository: Repository
) -> None:
    await acceptance.accept(merge(ann(), ann("bob at example.com")), KEY, render)

    answer = await acceptance.replay(SESSION, KEY)
    kept = await repository.find_idempotent(SESSION, KEY.operation, KEY.key)
    assert answer is not None
    assert b"bob at example.com" in answer.body
    assert kept is not None
    assert kept.response is not None
    assert b"example.com" not in kept.response.body


async def test_a_key_belongs_to_one_body(acceptance: Acceptance) -> None:
    await acceptance.accept(merge(ann()), KEY, render)
    other = structs.replace(KEY, fingerprint=b"other")

    with pytest.raises(IdempotencyMismatch):
        await acceptance.accept(merge(ann()), other, render)
    with pytest.raises(IdempotencyMismatch):
        await acceptance.replay(SESSION, other)


async def test_a_key_belongs_to_one_session_and_call(acceptance: Acceptance) -> None:
    await acceptance.accept(merge(ann()), KEY, render)
    other_call = structs.replace(KEY, operation="POST /api/send")

    assert await acceptance.replay(OTHER, KEY) is None
    assert isinstance(
        await acceptance.accept(merge(ann(), session_id=OTHER), KEY, render), BatchView
    )
    assert isinstance(await acceptance.accept(merge(ann()), other_call, render), BatchView)


async def test_a_key_in_use_is_told_to_wait(acceptance: Acceptance) -> None:
    gate = Gate()
    accepting = asyncio.create_task(acceptance.accept(merge(entries=gate), KEY, render))
    await gate.reached.wait()

    with pytest.raises(IdempotencyConflict) as conflict:
        await acceptance.accept(merge(ann()), KEY, render)
    with pytest.raises(IdempotencyConflict):
        await acceptance.replay(SESSION, KEY)

    gate.open.set()
    await accepting
    assert conflict.value.retry_after == 1


async def test_a_key_is_free_again_when_nothing_came_of_it(acceptance: Acceptance) -> None:
    with pytest.raises(InvalidRequest):
        await acceptance.accept(merge(ann("?")), KEY, render)

    assert isinstance(await acceptance.accept(merge(ann()), KEY, render), BatchView)


async def test_of_many_with_one_key_one_is_accepted(
    acceptance: Acceptance, store: BatchRepository
) -> None:
    """threats.md T-67: fifty at once, of which some may come when the first is done, and fifty that come again."""
    first = await asyncio.gather(
        *(acceptance.accept(merge(ann()), KEY, render) for _ in range(50)), return_exceptions=True
    )
    again = await asyncio.gather(*(acceptance.accept(merge(ann()), KEY, render) for _ in range(50)))

    [view] = [answer for answer in first if isinstance(answer, BatchView)]
    refused = sum(isinstance(answer, IdempotencyConflict) for answer in first)
    assert refused + first.count(render(view)) == 49
    assert [answer for answer in again if answer != render(view)] == []
    assert len(await store.page(SESSION, before=None, limit=9)) == 1


async def test_a_key_that_somebody_else_took_meanwhile_is_theirs(
    acceptance: Acceptance, repository: Repository, database: Database, store: BatchRepository
) -> None:
    """Another process, or a message that is sent at once with the same key."""
    gate = Gate(before=3000)
    accepting = asyncio.create_task(acceptance.accept(merge(entries=gate), KEY, render))
    await gate.reached.wait()
    theirs = IdempotencyRecord(SESSION, KEY.operation, KEY.key, KEY.fingerprint, None, NOW)
    await repository.begin_idempotent(theirs)

    gate.open.set()

    with pytest.raises(IdempotencyConflict):
        await accepting
    assert await nothing_stored(database, store)


# ---- dry runs


async def test_a_dry_run_tells_all_and_stores_nothing(
    acceptance: Acceptance, database: Database, store: BatchRepository
) -> None:
    good = [ann(f"a{i}@b.c", bcc="x@y.z") for i in range(7)]
    bad = [ann(f"bad {i}") for i in range(150)]

    run = await acceptance.dry_run(merge(ann("?"), *good, *bad, reject_invalid=True))

    assert (run.counts.total, run.counts.queued, run.counts.rejected) == (165, 14, 151)
    assert [r.index for r in run.rejected] == [0, *range(8, 158)]
    assert [(m.index, m.subject) for m in run.messages] == [(i, "Hello Ann") for i in range(1, 6)]
    assert run.messages[0].to == [Address(None, "a0@b.c")]
    assert run.messages[0].bcc == [Address(None, "x@y.z")]
    assert await nothing_stored(database, store)


async def test_a_dry_run_of_a_template_that_is_wrong_is_refused(acceptance: Acceptance) -> None:
    template = structs.replace(TEMPLATE, subject="{{ name")

    with pytest.raises(InvalidRequest):
        await acceptance.dry_run(merge(ann(), template=template))


# ---- many


async def test_twenty_thousand_of_a_file_each_keep_their_own_secret(
    acceptance: Acceptance, store: BatchRepository, tmp_path: Path
) -> None:
    """threats.md T-26; and others get their turn meanwhile."""
    path = tmp_path / "upload"
    lines = (f"person{i}@example.com,Person {i},token-{i}\n" for i in range(20_000))
    path.write_text("email,name,token\n" + "".join(lines))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    elsewhere = asyncio.create_task(others())
    view = await accepted(acceptance, merge(entries=from_file(path, SpoolFormat.CSV)))
    elsewhere.cancel()

    found = await stored(store, view.id)
    assert view.counts.queued == 20_000
    assert [(row.row, row.position) for row in found.rows] == [(i, i) for i in range(20_000)]
    assert [(r.address, r.variables["token"]) for r in found.recipients] == [
        (f"person{i}@example.com", f"token-{i}") for i in range(20_000)
    ]
    assert len({row.message_id for row in found.rows}) == 20_000
    assert turns > 100


# ---- as much as may wait


@pytest.fixture
def narrow(database: Database, repository: Repository, dispatch: Dispatch) -> Acceptance:
    """One that takes in little."""
    backlog = Backlog(dispatch.lives, LIMITS)
    return Acceptance(StagedBatches(database), repository, dispatch, backlog, VAULT, clock)


async def test_a_session_with_too_many_batches_is_told_before_anything_is_read(
    narrow: Acceptance, database: Database
) -> None:
    for _ in range(LIMITS.session_batches):
        await accepted(narrow, merge(ann()))
    gate = Gate()
    gate.open.set()

    with pytest.raises(RateLimited) as refused:
        await narrow.accept(merge(entries=gate), None, render)

    assert not gate.reached.is_set()
    assert refused.value.retry_after == STANDSTILL_WAIT
    assert len(await database.fetch("count_batch_messages", batches=list(range(1, 20)))) == 3


async def test_of_two_batches_that_fit_one_by_one_the_first_to_be_read_is_accepted(
    narrow: Acceptance, store: BatchRepository
) -> None:
    gates = [Gate(before=LIMITS.session_messages * 2 // 3) for _ in range(2)]
    both = [asyncio.create_task(narrow.accept(merge(entries=gate), None, render)) for gate in gates]
    for gate in gates:
        await gate.reached.wait()
    for gate in gates:
        gate.open.set()

    answers = await asyncio.gather(*both, return_exceptions=True)

    assert sorted(type(answer).__name__ for answer in answers) == ["BatchView", "RateLimited"]
    assert len(await store.page(SESSION, before=None, limit=9)) == 1


async def test_what_found_no_room_leaves_nothing_and_its_key_is_free(
    narrow: Acceptance, database: Database, store: BatchRepository
) -> None:
    gate = Gate(before=LIMITS.session_messages)
    gate.open.set()

    with pytest.raises(RateLimited):
        await narrow.accept(merge(entries=gate), KEY, render)

    assert await nothing_stored(database, store)
    assert await narrow.replay(SESSION, KEY) is None


async def test_a_dry_run_needs_no_room(narrow: Acceptance) -> None:
    for _ in range(LIMITS.session_batches):
        await accepted(narrow, merge(ann()))

    dry = await narrow.dry_run(merge(ann()))

    assert dry.counts.queued == 1
