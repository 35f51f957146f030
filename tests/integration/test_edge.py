"""The edge: odd paths, methods, headers and bodies. Each gets an answer, and the same kind of one."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from cbemail.api.operation import Access
from cbemail.api.problems import INTERNAL_CODE, PROBLEMS
from cbemail.api.routes import OPERATIONS
from cbemail.logs import logging_to
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox
from tests.integration.scripted import scripted_mailbox


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """A problem document, whole and consistent with its response."""
    problem = response.json()
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"/problems/{code}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "no-store" in response.headers["cache-control"]


async def at(client: httpx.AsyncClient, method: str, target: str) -> httpx.Response:
    """Send the target exactly as it is."""
    request = client.build_request(method, "/")
    request.extensions = request.extensions | {"target": target.encode("ascii")}
    return await client.send(request)


@pytest.fixture
async def scripted(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        yield mailbox


# ---- request ids and the log


@pytest.mark.parametrize("own", ["a", "A-Z_0.9", "x" * 128])
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, own: str) -> None:
    response = await client.get("/nowhere", headers={"X-Request-ID": own})

    assert response.headers["x-request-id"] == response.json()["request_id"] == own


@pytest.mark.parametrize(
    "own", ["", "x" * 129, "a b", 'a"b', "a\tb", "a,b", "é", "{}", "\x85", "a;level=ERROR"]
)
async def test_another_request_id_is_replaced(client: httpx.AsyncClient, own: str) -> None:
    header = (b"X-Request-ID", own.encode("latin-1"))

    first = await client.get("/nowhere", headers=[header])
    second = await client.get("/nowhere", headers=[header])

    ids = {first.headers["x-request-id"], second.headers["x-request-id"]}
    assert len(ids) == 2
    assert own not in ids


async def test_no_request_can_forge_a_line_of_the_log(mailbox: Mailbox) -> None:
    forged = '\r\n{"level":"error","message":"forged"}'
    stream = io.StringIO()

    with logging_to(stream, level="DEBUG", style="json"):
        headers = [(b"User-Agent", b"\x85forged"), (b"X-Request-ID", b"forged;x")]
        await mailbox.client.get("/forged%0d%0aforged", headers=headers)
        await mailbox.get("/api/mailbox/messages", folder=forged, q=forged)
        await mailbox.post("/api/send", {"to": "a@example.org", "subject": forged})

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["path"] for line in lines if line["message"] == "request"] == [
        "(no route)",
        "/api/mailbox/messages",
        "/api/send",
    ]
    assert [line for line in lines if "forged" in line["message"]] == []


# ---- paths and methods


@pytest.mark.parametrize(
    "target",
    [
        "//api/sessions",
        "/api//sessions",
        "/api/sessions/",
        "/api/sessions//",
        "/x/../api/sessions",
        "/api/./sessions",
        "/api/sessions;x=1",
        "/api%2Fsessions%00",
        "/API/sessions",
        "/api/sessions%20",
        "/api/mailbox/messages/../../sessions",
        "/api/mailbox/messages/7/raw/x",
        "*",
    ],
)
async def test_a_path_that_is_not_exactly_one_of_ours_is_nothing(
    mailbox: Mailbox, target: str
) -> None:
    response = await at(mailbox.client, "GET", target)

    assert response.status_code == 404, response.text
    assert response.json()["code"] in {"not-found", "session-not-found", "message-not-found"}


@pytest.mark.parametrize(
    "target",
    ["/%61pi/sessions", "/api/%73essions", "/api%2Fsessions", "http://x.test/api/sessions"],
)
async def test_another_spelling_of_a_path_is_guarded_as_the_path_is(
    client: httpx.AsyncClient, target: str
) -> None:
    assert_problem(await at(client, "GET", target), 401, "unauthenticated")


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PROPFIND"])
async def test_a_method_that_a_path_has_not_is_told_those_it_has(
    client: httpx.AsyncClient, method: str
) -> None:
    for path in {operation.path for operation in OPERATIONS}:
        methods = {operation.method for operation in OPERATIONS if operation.path == path}

        response = await at(client, method, path.replace("{", "").replace("}", ""))

        assert_problem(response, 405, "method-not-allowed")
        allowed = set(response.headers["allow"].split(", "))
        assert allowed == methods | ({"HEAD"} if "GET" in methods else set())


async def test_head_is_get_without_the_body(mailbox: Mailbox) -> None:
    for path in ("/healthz", "/openapi.json", "/api/mailbox/messages", "/nowhere"):
        got = await mailbox.client.get(path)
        head = await mailbox.client.head(path)

        assert head.status_code == got.status_code
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        assert head.headers["content-length"] == got.headers["content-length"]


async def test_every_problem_leads_to_what_it_means(client: httpx.AsyncClient) -> None:
    for code in [*(kind.code for kind in PROBLEMS), INTERNAL_CODE]:
        response = await client.get(f"/problems/{code}")

        assert response.status_code == 200, code
        assert response.headers["content-type"].startswith("text/html")
        assert response.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert code in response.text


async def test_a_problem_that_is_none_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.get("/problems/%3Cscript%3E")

    assert_problem(response, 404, "not-found")
    assert "<script>" not in response.text


async def test_health_and_readiness_are_told_to_anybody(client: httpx.AsyncClient) -> None:
    alive, ready = await client.get("/healthz"), await client.get("/readyz")

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    ready_document = {"status": "ready", "store": "ok", "outbox": "ok"}
    assert (ready.status_code, ready.json()) == (200, ready_document)


# ---- headers


async def test_what_holds_mail_is_kept_by_no_cache_and_says_where_the_time_went(
    scripted: Mailbox,
) -> None:
    answers = [
        await scripted.get("/api/mailbox/folders"),
        await scripted.get("/api/mailbox/messages"),
        await scripted.get("/api/mailbox/messages/7"),
        await scripted.get("/api/mailbox/messages/7/raw"),
        await scripted.get("/api/mailbox/messages/8"),
        await scripted.post("/api/send", {"to": "ann@example.org", "body": "x"}),
    ]

    for response in answers:
        assert response.headers["cache-control"] == "private, no-store"
        assert response.headers["vary"] == "Authorization, X-API-Key, X-Session-ID"
        assert response.headers["x-content-type-options"] == "nosniff"
        phases = [
            entry.partition(";")[0] for entry in response.headers["server-timing"].split(", ")
        ]
        assert "auth" in phases
        assert {"imap", "smtp"} & set(phases)


async def test_nothing_else_is_kept_by_a_cache_either(mailbox: Mailbox) -> None:
    for path in (f"/api/sessions/{mailbox.session_id}", "/healthz", "/nowhere", "/openapi.json"):
        assert (await mailbox.get(path)).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "header",
    [
        ("Range", "bytes=0-," * 5000 + "0-"),
        ("Range", "bytes=99999999999999999999-"),
        ("Prefer", "respond-async, wait=99999999999"),
        ("Accept", "application/vnd.apache.parquet;q=nan"),
        ("Accept-Encoding", "br;q=x, *;q=0"),
        ("If-None-Match", '"' * 5000),
        ("If-Modified-Since", "yesterday"),
        ("Origin", "https://evil.example"),
        ("X-Forwarded-For", "1.2.3.4, ::::"),
        ("X-Forwarded-Proto", "javascript"),
        ("Host", "evil.example"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("Upgrade", "websocket"),
    ],
    ids=lambda header: f"{header[0]}: {header[1][:20]}",
)
async def test_a_header_we_do_not_know_changes_nothing(
    mailbox: Mailbox, header: tuple[str, str]
) -> None:
    plain = await mailbox.get("/api/mailbox/messages")

    response = await mailbox.client.get("/api/mailbox/messages", headers=[header])

    assert response.status_code == 200
    assert response.content == plain.content
    assert "access-control-allow-origin" not in response.headers


# ---- bodies


def send(**fields: object) -> bytes:
    return json.dumps({"to": "ann@example.org", **fields}).encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed-json"),
        (b"\x00", 400, "malformed-json"),
        (b"\xff\xfe{}", 400, "malformed-json"),
        (b"{}{}", 400, "malformed-json"),
        (b'{"subject": "\xff"}', 400, "malformed-json"),
        (b'{"reply": ' + b"[" * 100_000, 422, "invalid-request"),
        (b'{"to": ' + b"[" * 100_000, 422, "invalid-request"),
        (b"[]", 422, "invalid-request"),
        (b"null", 422, "invalid-request"),
        (b'{"reply": {"uid": NaN}}', 400, "malformed-json"),
        (b'{"reply": {"uid": ' + b"9" * 5000 + b', "mode": "reply"}}', 422, "invalid-request"),
        (b'{"reply": {"uid": 1e400, "mode": "reply"}}', 422, "invalid-request"),
        (send(to=["a@example.org"] * 1_000_000), 422, "invalid-request"),
        (send(subject="a\x00b"), 422, "invalid-request"),
        (send(subjet="typo"), 422, "invalid-request"),
        (send(id="msg_1"), 422, "invalid-request"),
        (send(state="sent"), 422, "invalid-request"),
        (send(session_id="ses_1"), 422, "invalid-request"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_bad_body_is_the_callers_mistake(
    mailbox: Mailbox, body: bytes, status: int, code: str
) -> None:
    response = await mailbox.client.post(
        "/api/send", content=body, headers={"Content-Type": "application/json"}
    )

    assert_problem(response, status, code)


async def test_of_a_name_given_twice_the_last_counts(
    mailbox: Mailbox,
) -> None:
    response = await mailbox.client.post(
        "/api/mailbox/folders",
        content=b'{"name": "First", "name": "Last"}',
        headers={"Content-Type": "application/json"},
    )

    assert (response.status_code, response.json()["path"]) == (201, "Last")


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", ""])
async def test_a_body_of_another_kind_is_not_guessed_at(mailbox: Mailbox, kind: str) -> None:
    response = await mailbox.client.post(
        "/api/send", content=send(body="x"), headers={"Content-Type": kind}
    )

    assert_problem(response, 415, "unsupported-media-type")


async def test_every_unknown_field_and_parameter_is_refused(mailbox: Mailbox) -> None:
    for operation in OPERATIONS:
        path = operation.path.replace("{path:path}", "INBOX").replace("{uid}", "1")
        path = path.replace("/sessions/{id}", f"/sessions/{mailbox.session_id}")
        if operation.access in {Access.SERVICE, Access.OPERATOR}:
            continue
        response = await mailbox.client.request(
            operation.method, path.replace("{id}", "1"), params={"no_such_parameter": "1"}
        )
        assert response.status_code == 422, operation.name

    sent = await mailbox.post("/api/send", {"to": "ann@example.org", "sender": "x"})
    assert sent.json()["errors"] == [
        {"pointer": "#/sender", "detail": "Object contains unknown field sender."}
    ]
