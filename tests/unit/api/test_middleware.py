"""How many requests the service lets in at once."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from cbemail.api.middleware import Front


class Client:
    """Makes requests of one application, and keeps what is answered."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def get(self, path: str) -> tuple[Message, bytes]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await self._front(scope, _receive, send)
        return sent[0], b"".join(message.get("body", b"") for message in sent)


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


class Slow:
    """Answers at once, but for `/slow`, which waits until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.called = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            self.called.set()
            await self.let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_more_requests_at_once_than_the_service_bears_are_told_to_come_back() -> None:
    app = Slow()
    client = Client(Front(app, at_once=1))
    slow = asyncio.create_task(client.get("/slow"))
    await app.called.wait()

    start, body = await client.get("/x")
    alive, _ = await client.get("/healthz")
    ready, _ = await client.get("/readyz")
    app.let_go.set()
    first, _ = await slow
    later, _ = await client.get("/x")

    assert (start["status"], json.loads(body)["code"]) == (503, "overloaded")
    assert (b"retry-after", b"1") in start["headers"]
    assert any(name == b"x-request-id" for name, _ in start["headers"])
    assert [alive["status"], ready["status"], first["status"], later["status"]] == [200] * 4


async def test_a_request_that_fails_makes_room_for_the_next() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            raise ConnectionAbortedError
        await Slow()(scope, receive, send)

    client = Client(Front(failing, at_once=1))
    with pytest.raises(ConnectionAbortedError):
        await client.get("/bad")

    start, _ = await client.get("/good")

    assert start["status"] == 200
