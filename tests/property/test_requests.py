"""No request gives a 500: whatever the body, query, path or headers, every answer is one the document announces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbemail.api.operation import Operation
from cbemail.api.routes import OPERATIONS
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import API_KEY, SECRET_KEY, letter, serving
from tests.property.schemas import Json, anything, values

USER = {"email": "joe@example.org", "password": "secret"}


class Service:
    """The service before scripted mail servers, in a loop that runs while a request is made."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient, servers: Any) -> None:
        self._runner = runner
        self._client = client
        self._servers = servers
        self.document: dict[str, Any] = self.request("GET", "/openapi.json").json()
        self.session_id = ""

    def request(self, method: str, target: str, **rest: Any) -> httpx.Response:
        """Send one request, its target exactly as it is."""
        request = self._client.build_request(method, "/", **rest)
        request.extensions = {"target": target.encode("ascii")} | request.extensions
        return self._runner.run(self._client.send(request))

    def need_session(self) -> None:
        """Log in, unless that was done and the session is still there."""
        path = f"/api/sessions/{self.session_id or 'none'}"
        if self.request("GET", path, headers={"X-API-Key": API_KEY}).status_code == 200:
            return
        created = self.request("POST", "/api/sessions", json=USER | self._servers)
        assert created.status_code == 201, created.text
        self.session_id = created.json()["session_id"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environ = {
        "SECRET_KEY": SECRET_KEY,
        "API_KEYS": API_KEY,
        "DB_PATH": str(tmp_path_factory.mktemp("store") / "cbemail.duckdb"),
        "ALLOW_MAIL_NETWORKS": "127.0.0.0/8",
    }
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        imap = runner.run(stack.enter_async_context(ScriptedImap()))
        smtp = runner.run(stack.enter_async_context(ScriptedSmtp()))
        imap.folders["INBOX"].add(letter("one"), uid=1)
        imap.folders["INBOX"].add(letter("seven"), uid=7)
        url = runner.run(stack.enter_async_context(serving(environ)))
        client = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False)
        runner.run(stack.enter_async_context(client))
        servers = {
            "imap": {"host": "127.0.0.1", "port": imap.port, "security": "none"},
            "smtp": {"host": "127.0.0.1", "port": smtp.port, "security": "none"},
        }
        yield Service(runner, client, servers)
        runner.run(stack.aclose())


# ---- what is asked

FOLDERS = st.sampled_from(["INBOX", "Trash", "\\Sent", "*", "no such"]) | st.text(max_size=20)
HOSTS = st.sampled_from(["127.0.0.1", "127.1", "::1", "10.0.0.1", "x\r\n", "", " "])
ADDRESSES = st.sampled_from(["joe@example.org", "Ann <ann@example.org>", "@", "a@b@c"]) | st.text(
    max_size=20
)
NAMED: dict[str, Json] = {
    "folder": FOLDERS,
    "destination": FOLDERS,
    "host": HOSTS,  # or names would be looked up
    "email": ADDRESSES,
    "address": ADDRESSES,
    "to": ADDRESSES,
    "send_at": st.sampled_from(["2026-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00", "now", None]),
}
SEGMENTS: dict[str, Json] = {
    "uid": st.sampled_from(
        ["7", "0", "-1", "4294967295", "4294967296", "9" * 5000, "\N{ARABIC-INDIC DIGIT SEVEN}"]
    ),
    "path": FOLDERS,
}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
HEADERS = st.sampled_from(
    [
        {},
        {"Range": "bytes=0-,0-,0-"},
        {"Prefer": "respond-async, wait=-1"},
        {"Prefer": 'wait="0", wait=60'},
        {"Last-Event-ID": "7-done"},
        {"If-None-Match": '*, "", W/"x'},
        {"Idempotency-Key": "k"},
        {"Accept": "text/csv;q=x"},
        {"Expect": "nothing"},
        {"X-Request-ID": "a b\tc"},
    ]
)


def described(service: Service, operation: Operation) -> dict[str, Any]:
    path = operation.path.replace(":path", "")
    found: dict[str, Any] = service.document["paths"][path][operation.method.lower()]
    return found


@st.composite
def targets(draw: st.DrawFn, service: Service, operation: Operation) -> str:
    path = operation.path
    for name in ("uid", "path:path", "id", "code"):
        segment = draw(SEGMENTS.get(name.partition(":")[0], WORDS))
        if name == "id" and draw(st.booleans()):
            segment = service.session_id
        path = path.replace("{" + name + "}", quote(segment, safe=""))
    names = [
        parameter["name"]
        for parameter in described(service, operation).get("parameters", [])
        if parameter["in"] == "query"
    ]
    query = draw(
        st.dictionaries(st.sampled_from(names) if names else WORDS, WORDS | FOLDERS, max_size=4)
    )
    pairs = [f"{quote(name)}={quote(value)}" for name, value in query.items()]
    return path + ("?" + "&".join(pairs) if pairs else "")


FORM_PARTS = {
    "batch": [b'{"template": {"body": "{{ x }}"}}', b'{"messages": []}', b"{", b""],
    "recipients": [
        b"to,x\r\nann@example.org,1\r\n",
        b'to,x\r\n"',
        b"\xff\0",
        b'{"to": "a@b.example"}',
    ],
    "x": [b""],
}
FORM_TYPES = ["", "text/csv", "application/x-ndjson", "application/x-parquet", "image/png"]


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, str]:
    """A form such as a batch may be, most of the time; some break off."""
    body = b""
    names = st.lists(st.sampled_from([*FORM_PARTS]), max_size=3) | st.just(["batch", "recipients"])
    for name in draw(names):
        kind = f"Content-Type: {draw(st.sampled_from(FORM_TYPES))}\r\n"
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n{kind}\r\n'.encode()
        body += draw(st.sampled_from(FORM_PARTS[name])) + b"\r\n"
    body += b"--b--\r\n"
    return body[
        : draw(st.integers(0, len(body)) | st.just(len(body)))
    ], "multipart/form-data; boundary=b"


@st.composite
def bodies(draw: st.DrawFn, service: Service, operation: Operation) -> tuple[bytes, str]:
    """A body and its media type: one the document allows, most of the time."""
    components = service.document["components"]["schemas"]
    content = described(service, operation).get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content and draw(st.booleans()):
        return draw(forms())
    schema = content.get("application/json", {}).get("schema")
    if schema is None or draw(st.integers(0, 9)) == 0:
        body = draw(st.binary(max_size=50) | anything.map(lambda value: json.dumps(value).encode()))
        kind = draw(st.sampled_from(["application/json", "message/rfc822", "text/plain", ";", ""]))
        return body, kind
    return json.dumps(draw(values(schema, components, NAMED))).encode(), "application/json"


# ---- what is answered


def check_announced(service: Service, operation: Operation, response: httpx.Response) -> None:
    """The status is one the document names for this operation, and an error has the one shape there is."""
    status = response.status_code
    assert str(status) in described(service, operation)["responses"], response.text
    if response.headers.get("content-type") == "application/problem+json":
        problem = response.json()
        assert {"type", "title", "status", "detail", "code", "request_id"} <= problem.keys()
        assert problem["status"] == status


def is_of_no_operation(response: httpx.Response) -> bool:
    """A drawn path can be another's, or nobody's: a folder named ``..``, an id with a slash."""
    return response.status_code == 405 or (
        response.status_code == 404 and response.json()["code"] == "not-found"
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@given(data=st.data())
@settings(max_examples=settings().max_examples // 4, suppress_health_check=[HealthCheck.too_slow])
def test_no_request_gives_a_500(
    service: Service, operation: Operation, data: st.DataObject
) -> None:
    service.need_session()
    target = data.draw(targets(service, operation))
    body, kind = data.draw(bodies(service, operation))
    headers = data.draw(HEADERS) | {"Content-Type": kind, "X-API-Key": API_KEY}
    headers["X-Session-ID"] = service.session_id

    response = service.request(operation.method, target, content=body, headers=headers)

    assert response.status_code != 500, response.text
    if not is_of_no_operation(response):
        check_announced(service, operation, response)
