"""From a request to a call and back: deadlines, clients that leave, and failures of every kind."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from cbemail.api.bodies import LARGE, Bodies
from cbemail.api.middleware import Front
from cbemail.api.operation import Access, Call, Operation, Upload
from cbemail.errors import FolderNotFound, MessageNotFound

Handler = Callable[[Call[object, None]], Awaitable[Response]]


class Exchange:
    """One request to one operation, as a server would make it; the client stays until it is told to leave."""

    def __init__(self, handler: Handler, *, seconds: float | None = 60, **path: str) -> None:
        self._operation: Operation[Any, Any] = Operation(
            "GET", "/x", handler, access=Access.OPEN, answers={}, tag="", seconds=seconds
        )
        self._path = path
        self._left = asyncio.Event()
        self._asked = False
        self.bodies = Bodies(2 * LARGE, patience=0)
        self.sent: list[Message] = []

    async def run(self) -> None:
        scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": "/x",
            "headers": [],
            "query_string": b"",
            "path_params": self._path,
            "state": {"services": SimpleNamespace(bodies=self.bodies)},
        }
        await Front(self._operation)(scope, self._receive, self._send)

    def leave(self) -> None:
        self._left.set()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def problem(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(b"".join(m.get("body", b"") for m in self.sent))
        return document

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def for_ever(call: Call[object, None]) -> Response:
    await asyncio.Event().wait()
    return Response()


async def test_a_request_that_takes_too_long_is_given_up_with_a_504() -> None:
    exchange = Exchange(for_ever, seconds=0)

    await exchange.run()

    assert exchange.status == 504
    assert exchange.problem["code"] == "upstream-timeout"
    assert (b"retry-after", b"5") in exchange.sent[0]["headers"]


async def test_a_client_that_leaves_ends_its_call_and_gets_no_answer() -> None:
    begun = asyncio.Event()

    async def handler(call: Call[object, None]) -> Response:
        begun.set()
        return await for_ever(call)

    exchange = Exchange(handler)
    running = asyncio.create_task(exchange.run())
    await begun.wait()

    exchange.leave()
    await asyncio.wait_for(running, timeout=10)

    assert exchange.sent == []


async def test_a_client_that_leaves_late_does_not_lose_its_answer() -> None:
    async def handler(call: Call[object, None]) -> Response:
        return Response("done")

    exchange = Exchange(handler)
    exchange.leave()

    await exchange.run()

    assert exchange.status == 200


async def test_a_defect_is_logged_with_its_trace_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(call: Call[object, None]) -> Response:
        raise ZeroDivisionError("the secret is hunter2")

    exchange = Exchange(handler)

    await exchange.run()

    assert (exchange.status, exchange.problem["code"]) == (500, "internal-error")
    assert "hunter2" not in json.dumps(exchange.problem)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info


async def test_an_answer_that_cannot_be_finished_ends_the_connection() -> None:
    """Another status would come too late, and an end of the body would be a lie."""

    class Half(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise FolderNotFound("It went away.")

    async def handler(call: Call[object, None]) -> Response:
        return Half()

    exchange = Exchange(handler)

    with pytest.raises(ConnectionAbortedError):
        await exchange.run()

    assert [message["type"] for message in exchange.sent] == [
        "http.response.start",
        "http.response.body",
    ]


@pytest.mark.parametrize("text", ["1", "0000000007", "4294967295"])
async def test_a_message_is_named_by_its_uid(text: str) -> None:
    found: list[int] = []

    async def handler(call: Call[object, None]) -> Response:
        found.append(call.uid)
        return Response()

    await Exchange(handler, uid=text).run()

    assert found == [int(text)]


@pytest.mark.parametrize(
    "text", ["0", "-1", "+1", "1.0", "4294967296", "9" * 5000, "", " 1", "\N{SUPERSCRIPT TWO}", "x"]
)
async def test_what_is_no_uid_names_no_message(text: str) -> None:
    async def handler(call: Call[object, None]) -> Response:
        with pytest.raises(MessageNotFound):
            _ = call.uid
        return Response("refused")

    exchange = Exchange(handler, uid=text)

    await exchange.run()

    assert exchange.status == 200


# ---- bodies that the handler reads


class Sending(Exchange):
    """A client that sends a body in pieces, and leaves when it is told to."""

    def __init__(self, handler: Callable[[Call[object, Upload]], Awaitable[Response]]) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # the operation is another
        self._operation = Operation(
            "POST", "/x", handler, access=Access.OPEN, answers={}, tag="", body=Upload
        )
        self._pieces = [b"one", b"two", b"three"]

    async def _receive(self) -> Message:
        await checkpoint()  # as a network does: whoever else wants to receive may try
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        return await super()._receive()


async def test_a_handler_reads_a_large_body_itself_and_all_of_it() -> None:
    async def handler(call: Call[object, Upload]) -> Response:
        return Response(bytes(await call.body.octets(11)))

    exchange = Sending(handler)
    exchange._asked = True

    await exchange.run()

    assert exchange.sent[1]["body"] == b"onetwothree"


async def test_a_large_body_is_given_up_once_it_is_too_large() -> None:
    async def handler(call: Call[object, Upload]) -> Response:
        return Response(bytes(await call.body.octets(10)))

    exchange = Sending(handler)

    await exchange.run()

    assert (exchange.status, exchange.problem["code"]) == (413, "payload-too-large")


@pytest.mark.parametrize("failure", [None, MessageNotFound("None."), ValueError("ours")])
async def test_the_room_of_a_body_is_given_back_when_its_call_is_over(
    failure: Exception | None,
) -> None:
    async def handler(call: Call[object, Upload]) -> Response:
        await call.body.octets(2 * LARGE)
        if failure is not None:
            raise failure
        return Response()

    exchange = Sending(handler)
    exchange._asked = True
    exchange._pieces = [b"x" * LARGE] * 2

    await exchange.run()

    await exchange.bodies.take(2 * LARGE)


async def test_a_client_that_leaves_when_its_body_is_read_ends_its_call() -> None:
    begun = asyncio.Event()

    async def handler(call: Call[object, Upload]) -> Response:
        await call.body.octets(11)
        begun.set()
        await asyncio.Event().wait()
        return Response()

    exchange = Sending(handler)
    exchange._asked = True
    running = asyncio.create_task(exchange.run())
    await begun.wait()

    exchange.leave()
    await asyncio.wait_for(running, timeout=10)

    assert exchange.sent == []


async def test_a_client_that_leaves_amid_its_body_ends_its_call() -> None:
    async def handler(call: Call[object, Upload]) -> Response:
        return Response(bytes(await call.body.octets(11)))

    exchange = Sending(handler)
    exchange._asked = True
    exchange._pieces = []
    exchange.leave()

    await exchange.run()

    assert exchange.sent == []
