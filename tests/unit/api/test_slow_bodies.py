"""Bodies that do not come, or hardly: whoever sends them is told so, and holds nothing for long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from cbemail.api.bodies import LARGE, Bodies
from cbemail.api.codec import BODY_OCTETS_A_SECOND, json_response, read_chunks
from cbemail.api.middleware import Front
from cbemail.api.operation import Access, Call, Operation, Raw, Upload
from cbemail.api.problems import problem_response
from cbemail.errors import RequestTimeout


class Drip:
    """Pieces of a body that are there, behind which nothing ever comes, be it ``all_of_it`` or not. An empty one makes
    its reader wait a turn."""

    def __init__(self, *pieces: bytes, all_of_it: bool = False) -> None:
        self._pieces = list(pieces)
        self._all = all_of_it

    async def receive(self) -> Message:
        if not self._pieces:
            await asyncio.Event().wait()
        piece = self._pieces.pop(0)
        if not piece:
            await checkpoint()
        more = bool(self._pieces) or not self._all
        return {"type": "http.request", "body": piece, "more_body": more}

    def request(self) -> Request:
        return Request({"type": "http", "method": "POST", "headers": []}, self.receive)


async def read_all(request: Request, patience: float) -> bytes:
    read = read_chunks(request, 10**9, patience=patience)
    return b"".join([chunk async for chunk in read])


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(RequestTimeout):
        await asyncio.wait_for(read_all(Drip(b"a").request(), 0), timeout=10)


async def test_what_is_there_is_read_however_late_it_is() -> None:
    """It may be our disk that was slow."""
    chunks = read_chunks(Drip(b"a", b"b").request(), 10, patience=-1)

    assert [await anext(chunks), await anext(chunks)] == [b"a", b"b"]
    await chunks.aclose()


@pytest.mark.parametrize(("seconds_earned", "in_time"), [(1000, True), (1, False)])
async def test_a_body_earns_its_time_by_what_has_come_of_it(
    seconds_earned: int, *, in_time: bool
) -> None:
    """It began 500 seconds ago."""
    drip = Drip(b"x" * BODY_OCTETS_A_SECOND * seconds_earned, b"", b"y")
    chunks = read_chunks(drip.request(), 10**9, patience=-500)
    await anext(chunks)

    following = asyncio.create_task(anext(chunks))
    await asyncio.wait({following})

    assert (following.exception() is None) is in_time
    await chunks.aclose()


# ---- a whole request


async def for_ever(call: Call[object, Any]) -> Response:
    return await asyncio.Future()


async def read_upload(call: Call[object, Upload]) -> Response:
    return json_response({"octets": len(await call.body.octets(10))})


async def outcome_of(body: type[Any], endpoint: Any, drip: Drip) -> tuple[int, dict[bytes, bytes]]:
    """How a request ends that may take no time at all."""
    operation: Operation[Any, Any] = Operation(
        "POST", "/x", endpoint, access=Access.OPEN, answers={}, tag="", body=body, seconds=0
    )
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/x",
        "headers": [(b"content-length", b"10")],
        "query_string": b"",
        "state": {"services": SimpleNamespace(bodies=Bodies(LARGE, patience=0))},
    }
    await Front(operation)(scope, drip.receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(("body", "endpoint"), [(Raw, for_ever), (Upload, read_upload)])
async def test_a_body_that_is_not_complete_when_the_time_is_up_is_the_clients_fault(
    body: type[Any], endpoint: Any
) -> None:
    status, headers = await outcome_of(body, endpoint, Drip(b"abc"))

    assert status == 408
    assert headers[b"connection"] == b"close"


async def test_what_takes_too_long_after_a_whole_body_is_not() -> None:
    status, headers = await outcome_of(Raw, for_ever, Drip(b"abc", all_of_it=True))

    assert status == 504
    assert b"connection" not in headers


def test_whoever_was_too_slow_may_try_again() -> None:
    response = problem_response(RequestTimeout("The body came too slowly."), "x")

    assert (response.status_code, response.headers["retry-after"]) == (408, "5")
