"""Clients that send too much, stop half-way or hang up: what they cost, and what goes on without them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
from anyio.lowlevel import checkpoint

from cbemail.logs import logging_to
from tests.fakes.script import NORMAL, STALL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox
from tests.integration.scripted import scripted_mailbox

MEGABYTE = 1024 * 1024


@pytest.fixture
async def scripted(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        yield mailbox


# ---- raw connections


class Connection:
    """A client that does just what it is told, on one TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, base_url: str) -> Connection:
        url = urlsplit(base_url)
        return cls(*await asyncio.open_connection(url.hostname, url.port))

    async def say(self, *lines: str, then: bytes = b"") -> None:
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + then)
        await self._writer.drain()

    async def status(self) -> int:
        """Of the next response; what is left of it is not read."""
        async with asyncio.timeout(10):
            line = await self._reader.readline()
        return int(line.split()[1])

    async def hang_up(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@pytest.fixture
async def connection(base_url: str) -> AsyncIterator[Connection]:
    connection = await Connection.to(base_url)
    yield connection
    await connection.hang_up()


def post(path: str, mailbox: Mailbox, *headers: str) -> list[str]:
    authorization = f"Authorization: {mailbox.client.headers['Authorization']}"
    kind = "Content-Type: application/json"
    return [f"POST {path} HTTP/1.1", "Host: x", authorization, kind, *headers]


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(
    mailbox: Mailbox, connection: Connection
) -> None:
    await connection.say(*post("/api/send", mailbox, f"Content-Length: {100 * MEGABYTE}"))

    assert await connection.status() == 413


async def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(
    mailbox: Mailbox, connection: Connection
) -> None:
    chunk = b"%x\r\n%b\r\n" % (MEGABYTE + 1, b" " * (MEGABYTE + 1))

    await connection.say(
        *post("/api/mailbox/folders", mailbox, "Transfer-Encoding: chunked"), then=chunk
    )

    assert await connection.status() == 413, "the end of the body was waited for"


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(
    mailbox: Mailbox, connection: Connection, base_url: str
) -> None:
    stream = io.StringIO()

    with logging_to(stream, level="INFO", style="json"):
        await connection.say(*post("/api/send", mailbox, "Content-Length: 1000"), then=b'{"to":')
        await connection.hang_up()
        await logged(stream, "/api/send")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["info"]


async def logged(stream: io.StringIO, path: str) -> None:
    """Wait until a request of this path is in the log."""
    async with asyncio.timeout(10):
        while f'"path":"{path}"' not in stream.getvalue():
            await checkpoint()


# ---- clients that leave while the mail server works


async def test_a_client_that_hangs_up_cancels_its_read_and_costs_one_connection(
    scripted: Mailbox, imap_server: ScriptedImap, connection: Connection
) -> None:
    imap_server.on("UID FETCH", STALL, NORMAL)
    authorization = f"Authorization: {scripted.client.headers['Authorization']}"
    before = imap_server.connections
    await connection.say("GET /api/mailbox/messages/7 HTTP/1.1", "Host: x", authorization)
    await imap_server.heard("UID FETCH")

    await connection.hang_up()
    async with asyncio.timeout(10):
        while imap_server.open_connections:
            await checkpoint()
    response = await scripted.get("/api/mailbox/messages/7")

    assert response.status_code == 200
    assert response.json()["subject"] == "seven"
    assert imap_server.connections == before + 1


async def test_a_client_that_hangs_up_does_not_stop_a_message_on_its_way(
    scripted: Mailbox, smtp_server: ScriptedSmtp, connection: Connection
) -> None:
    held = asyncio.Event()

    async def hold(_: bytes) -> Reply:
        await held.wait()
        return NORMAL

    smtp_server.on(".", hold)
    body = b'{"to": "ann@example.org", "body": "x", "save_to_sent": false}'
    await connection.say(
        *post("/api/send", scripted, f"Content-Length: {len(body)}", "Idempotency-Key: k"),
        then=body,
    )
    await smtp_server.heard(".")

    await connection.hang_up()
    held.set()
    async with asyncio.timeout(10):
        while not smtp_server.messages:
            await checkpoint()
        while (again := await send_again(scripted, body)).status_code == 409:
            await checkpoint()

    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["state"] == "sent"
    assert len(smtp_server.messages) == 1


async def send_again(mailbox: Mailbox, body: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    return await mailbox.client.post("/api/send", content=body, headers=headers)
