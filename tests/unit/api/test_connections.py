"""Connections that clients leave hanging, over real sockets. The times are those of a test, else the product's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from cbemail.api.connections import CONNECTIONS, PIPELINED, Connection

App = Callable[[Scope, Receive, Send], Awaitable[None]]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE = 20.0


class Impatient(Connection):
    head_seconds = 0.05
    reader_seconds = 1.0


@asynccontextmanager
async def listening(
    app: App, kind: type[Connection] = Impatient, *, others: int = 0
) -> AsyncIterator[tuple[str, int]]:
    """``app`` behind connections of this kind; there seem to be so many ``others``."""
    config = uvicorn.Config(
        app, http=kind, ws="none", lifespan="off", log_config=None, access_log=False
    )
    config.load()
    state = ServerState()
    state.connections.update(object() for _ in range(others))  # type: ignore[misc]  # they are counted only
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: kind(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()
        await asyncio.gather(*state.tasks)


@asynccontextmanager
async def connected(
    address: tuple[str, int],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def the_end(reader: asyncio.StreamReader) -> bytes:
    """What is read until the other side closes."""
    received = b""
    async with asyncio.timeout(PATIENCE):
        try:
            while octets := await reader.read(65_536):
                received += octets
        except ConnectionResetError:
            pass
    return received


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


class Held:
    """An application whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.called = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        self.called.set()
        await self.let_go.wait()
        await hello(scope, receive, send)


# ---- heads


@pytest.mark.parametrize("octets", [b"", b"\r\n", b"GET / HTTP/1.1\r\nX: ", REQUEST[:-2]])
async def test_a_connection_that_sends_no_whole_head_is_closed(octets: bytes) -> None:
    async with listening(hello) as address, connected(address) as (reader, writer):
        writer.write(octets)

        assert await the_end(reader) == b""


@pytest.mark.parametrize("octets", [b"\r\n", b"GET / HTTP/1.1\r\nX: "])
async def test_so_is_one_that_has_sent_a_whole_one_before(octets: bytes) -> None:
    """uvicorn's time between requests is over with the first octet of the next."""
    async with listening(hello) as address, connected(address) as (reader, writer):
        writer.write(REQUEST)
        await reader.readuntil(b"hello")

        writer.write(octets)

        assert await the_end(reader) == b""


async def test_a_head_that_drips_has_no_longer_than_one_that_stops() -> None:
    async with listening(hello) as address, connected(address) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        end = asyncio.create_task(the_end(reader))

        for _ in range(round(PATIENCE / 0.01)):
            writer.write(b"x")
            if (await asyncio.wait({end}, timeout=0.01))[0]:
                break

        assert end.done()
        assert await end == b""


async def test_a_request_that_takes_longer_than_a_head_may_is_answered() -> None:
    held = Held()
    async with listening(held) as address, connected(address) as (reader, writer):
        writer.write(REQUEST[:20])
        writer.write(REQUEST[20:])
        await held.called.wait()

        asyncio.get_running_loop().call_later(3 * Impatient.head_seconds, held.let_go.set)

        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("behind", [b"", REQUEST], ids=["alone", "behind a request"])
async def test_a_head_that_does_not_end_is_not_kept(behind: bytes) -> None:
    held = Held()
    async with listening(held, Connection) as address, connected(address) as (reader, writer):
        writer.write(behind + b"GET / HTTP/1.1\r\n")
        end = asyncio.create_task(the_end(reader))
        sent = 0

        while not end.done() and sent < 100 * Connection.head_octets:
            writer.write(b"X: " + b"x" * 10_000 + b"\r\n")
            sent += 10_000
            await asyncio.wait({end}, timeout=0.001)
        held.let_go.set()

        assert end.done(), f"{sent} octets of a head were taken"


async def test_a_long_body_before_half_a_head_is_no_part_of_it() -> None:
    class Strict(Connection):
        head_octets = 1000

    post = b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
    async with listening(hello, Strict) as address, connected(address) as (reader, writer):
        writer.write(post + REQUEST[:20])
        await reader.readuntil(b"hello")

        writer.write(REQUEST[20:])

        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_more_connections_than_the_service_bears_are_closed_at_once() -> None:
    async with (
        listening(hello, Connection, others=CONNECTIONS) as address,
        connected(address) as (reader, _),
    ):
        assert await the_end(reader) == b""


# ---- requests sent without waiting


async def test_a_few_requests_that_are_sent_at_once_are_answered_in_turn() -> None:
    held = Held()
    async with listening(held) as address, connected(address) as (reader, writer):
        writer.write(REQUEST * (1 + PIPELINED))
        held.let_go.set()

        for _ in range(1 + PIPELINED):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_a_thousand_are_not_even_looked_at() -> None:
    held = Held()
    heads = 0

    class Counting(Impatient):
        def on_headers_complete(self) -> None:
            nonlocal heads
            heads += 1
            super().on_headers_complete()

    async with listening(held, Counting) as address, connected(address) as (reader, writer):
        writer.write(REQUEST * 1000)

        end = await the_end(reader)
        held.let_go.set()

    assert end == b""
    assert held.calls == 1
    assert heads <= PIPELINED + 2


# ---- bodies that nobody reads


async def test_a_body_that_is_not_wanted_has_as_long_as_a_head() -> None:
    async with listening(hello) as address, connected(address) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        await reader.readuntil(b"hello")

        writer.write(b"x")

        assert await the_end(reader) == b""


# ---- clients that do not read

needs_user_timeout = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel cannot be told to wait so long only"
)


@asynccontextmanager
async def deaf(address: tuple[str, int], request: bytes) -> AsyncIterator[None]:
    """A client that asks, and takes nothing."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)  # noqa: FBT003 - socket's signature
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, request)
        yield


@needs_user_timeout
async def test_a_client_that_takes_nothing_of_a_stream_is_gone_after_a_while() -> None:
    gone = asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asyncio.create_task(_disconnected(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not asked.done():
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        gone.set()

    async with listening(stream) as address, deaf(address, REQUEST):
        await asyncio.wait_for(gone.wait(), PATIENCE)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@needs_user_timeout
async def test_an_answer_that_nobody_takes_is_not_kept_for_ever() -> None:
    """Nothing waits for it any more: the connection is to be closed once all is sent."""
    lost = asyncio.Event()

    class Watched(Impatient):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[Any] = [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 10_000_000})

    async with listening(large, Watched) as address, deaf(address, REQUEST):
        await asyncio.wait_for(lost.wait(), PATIENCE)
