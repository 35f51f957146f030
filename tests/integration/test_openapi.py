"""What the service answers is what its document says: every operation is called, every good answer compared."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from cbemail.api.report import REPORTS
from cbemail.api.routes import OPERATIONS
from tests.integration.conftest import API_KEY, Mailbox, credentials, letter
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix

Schema = dict[str, Any]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


class Document:
    """The service's OpenAPI document, and which of its operations have been seen to keep it."""

    def __init__(self, document: Schema) -> None:
        self._paths: Schema = document["paths"]
        self._schemas: Schema = document["components"]["schemas"]
        self.kept: set[str] = set()

    def check(self, response: httpx.Response) -> None:
        """The answer is a good one, of a status, media type and shape that the document gives."""
        operation = self._operation(response.request)
        answers = operation["responses"]
        assert response.is_success, response.text
        assert str(response.status_code) in answers, operation["operationId"]
        content = answers[str(response.status_code)].get("content", {})
        assert bool(response.content) == bool(content)
        kind = response.headers.get("content-type", "").partition(";")[0]
        assert not content or kind in content or "*/*" in content
        schema = content.get(kind, {}).get("schema")
        if schema is not None:
            faults = list(self._faults(response.json(), schema, "$"))
            assert not faults, operation["operationId"]
        self.kept.add(operation["operationId"])

    def _operation(self, request: httpx.Request) -> Schema:
        method = request.method.lower()
        found = [
            path
            for path, methods in self._paths.items()
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), request.url.path) and method in methods
        ]
        described: Schema = self._paths[min(found, key=lambda path: path.count("{"))][method]
        return described

    def _faults(self, value: Any, schema: Schema, path: str) -> Iterator[str]:
        """Where ``value`` is not as ``schema`` says; a field the schema does not name is a fault too."""
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        options = schema.get("anyOf") or schema.get("oneOf")
        if options is not None:
            each = [list(self._faults(value, option, path)) for option in options]
            yield from min(each, key=len) if all(each) else []
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{path}: {value!r} is none of {schema['enum']}"
        elif "type" in schema and not isinstance(value, TYPES[schema["type"]]):
            yield f"{path}: {value!r} is no {schema['type']}"
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._faults(item, schema["items"], f"{path}[{index}]")
        elif isinstance(value, dict) and "properties" in schema:
            yield from self._faults_of_object(value, schema, path)
        elif schema.get("format") == "date-time":
            datetime.fromisoformat(value)

    def _faults_of_object(self, value: Schema, schema: Schema, path: str) -> Iterator[str]:
        for name in schema.get("required", []):
            if name not in value:
                yield f"{path}.{name} is missing"
        for name, item in value.items():
            if name not in schema["properties"]:
                yield f"{path}.{name} is not in the document"
            else:
                yield from self._faults(item, schema["properties"][name], f"{path}.{name}")


@pytest.fixture
async def document(client: httpx.AsyncClient) -> Document:
    return Document((await client.get("/openapi.json")).json())


async def test_every_operation_answers_what_the_document_says(
    document: Document,
    client: httpx.AsyncClient,
    mailbox: Mailbox,
    dovecot: Dovecot,
    postfix: Postfix,
) -> None:
    async for response in a_day_of_use(client, mailbox, dovecot, postfix):
        document.check(response)

    assert document.kept == {operation.name for operation in OPERATIONS}


async def a_day_of_use(
    client: httpx.AsyncClient, mailbox: Mailbox, dovecot: Dovecot, postfix: Postfix
) -> AsyncIterator[httpx.Response]:
    """Every call there is, with arguments that make it succeed."""
    for path in ("/healthz", "/readyz", "/openapi.json", "/problems/not-found"):
        yield await client.get(path)
    for path in ("/", "/docs", "/gate", "/gate/check"):
        yield await client.get(path)
    stylesheet = re.search(r'"(/assets/[^"]+[.]css)"', (await client.get("/")).text)
    yield await client.get(stylesheet[1] if stylesheet else "")
    yield await client.post("/gate", json={"pin": "1234"})
    yield await client.get("/api/discover", params={"email": "joe@gmail.com"})
    body = credentials(mailbox.user, dovecot, postfix.smtps_port)
    created = await client.post("/api/sessions", json=body)
    yield created
    session, key = f"/api/sessions/{created.json()['session_id']}", {"X-API-Key": API_KEY}
    yield await client.get("/metrics", headers=key)
    yield await client.get("/api/sessions", headers=key)
    yield await client.get(session, headers=key)
    yield await client.get(session + "/health", headers=key)
    token = {"refresh_token": created.json()["refresh_token"]}
    yield await client.post(session + "/token", json=token)
    password = {"password": dovecot.password}
    yield await client.put(session + "/credentials", json=password, headers=key)
    yield await client.delete(session, headers=key)

    yield await mailbox.post("/api/mailbox/folders", {"name": "Projects"})
    yield await mailbox.client.patch("/api/mailbox/folders/Projects", json={"name": "Work"})
    yield await mailbox.get("/api/mailbox/folders")
    messages = "/api/mailbox/messages"
    draft = {
        "to": "Ann <ann@example.org>",
        "subject": "With a file",
        "html": "<p>Hello</p>",
        "attachments": [{"filename": "a.txt", "content": "aGVsbG8="}],
    }
    stored = await mailbox.post(messages, draft)
    yield stored
    raw = {"Content-Type": "message/rfc822"}
    for subject in ("one", "two"):
        yield await mailbox.client.post(messages, content=letter(subject), headers=raw)
    yield await mailbox.get(messages)
    yield await mailbox.get("/api/mailbox/changes")
    message = f"{messages}/{stored.json()['uid']}"
    yield await mailbox.get(message)
    yield await mailbox.get(message + "/thread", snippet="true")
    yield await mailbox.get(message + "/raw")
    [attachment] = (await mailbox.get(message)).json()["attachments"]
    yield await mailbox.get(f"{message}/attachments/{attachment['id']}")
    yield await mailbox.post(message + "/mark", {"read": True, "add_flags": ["$Label"]})
    yield await mailbox.post(message + "/copy", {"destination": "Work"})
    yield await mailbox.post(messages + "/bulk", {"action": "mark", "uids": [1, 99], "read": True})
    yield await mailbox.post(message + "/move", {"destination": "Work"})
    yield await mailbox.delete(messages + "/2")
    yield await mailbox.delete("/api/mailbox/folders/Work")

    sent = await mailbox.post("/api/send", {"to": "ann@example.org", "body": "Hello."})
    yield sent
    yield await mailbox.get(f"/api/send/{sent.json()['id']}")
    later = {"to": "ann@example.org", "body": "Later.", "send_at": in_an_hour()}
    queued = await mailbox.post("/api/send", later)
    yield queued
    yield await mailbox.delete(f"/api/send/{queued.json()['id']}")
    async for response in a_mail_merge(mailbox):
        yield response


async def a_mail_merge(mailbox: Mailbox) -> AsyncIterator[httpx.Response]:
    batches = "/api/send/batch"
    merge = {
        "template": {"subject": "Hello {{ name }}", "body": "Yours, Joe"},
        "recipients": [{"to": "ann@example.org", "variables": {"name": "Ann"}}, {"to": "nobody"}],
    }
    yield await mailbox.post(batches, merge | {"dry_run": True})
    wait = {"Prefer": "wait=30"}
    sent = await mailbox.client.post(batches, json=merge, headers=wait)
    yield sent
    batch = f"{batches}/{sent.json()['id']}"
    yield await mailbox.get(batches)
    yield await mailbox.get(batch)
    yield await mailbox.get(batch + "/messages")
    for media_type in REPORTS:
        accept = {"Accept": media_type}
        yield await mailbox.client.get(batch + "/messages", headers=accept)
    yield await mailbox.get(batch + "/events")
    yield await mailbox.client.get(batch + "/events", headers={"Last-Event-ID": "1-done"})
    yield await mailbox.post(batch + "/retry")
    form: dict[str, tuple[str | None, bytes | str]] = {
        "batch": (None, json.dumps({"template": merge["template"], "send_at": in_an_hour()})),
        "recipients": ("people.csv", b"to,name\r\nann@example.org,Ann\r\n"),
    }
    scheduled = await mailbox.client.post(batches, files=form)
    yield scheduled
    for verb in ("pause", "resume", "cancel"):
        yield await mailbox.post(f"{batches}/{scheduled.json()['id']}/{verb}")


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


async def test_the_document_is_the_same_for_everybody(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    anonymous = await client.get("/openapi.json")
    known = await mailbox.get("/openapi.json")

    assert anonymous.content == known.content
    assert mailbox.session_id not in anonymous.text
