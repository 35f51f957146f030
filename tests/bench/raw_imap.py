"""The least an IMAP client can do: send the same commands again and again, and count the answers unread."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import cast

import uvloop

from cbemail.mailbox.summary import SUMMARY_ITEMS
from tests.integration.dovecot import Dovecot

_TAG = b"zz9"
_ANSWERED = b"\r\n" + _TAG + b" OK"


def page_rate(
    dovecot: Dovecot, users: Sequence[str], uids: str, *, in_flight: int, seconds: float
) -> float:
    """Pages a second of `SUMMARY_ITEMS`, one TLS connection a user, ``in_flight`` FETCHes at once on each."""
    fetch = f"UID FETCH {uids} (UID ".encode() + SUMMARY_ITEMS + b")"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_rate(dovecot, users, [fetch], in_flight, seconds))


def conversation_rate(
    dovecot: Dovecot, users: Sequence[str], uids: str, *, seconds: float
) -> float:
    """Pages a second when, as the service does, NOOP and SEARCH are answered before each FETCH."""
    search = b"a NOOP\r\n" + _TAG + b" UID SEARCH RETURN (ALL) ALL"
    fetch = f"UID FETCH {uids} (UID ".encode() + SUMMARY_ITEMS + b")"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_rate(dovecot, users, [search, fetch], 1, seconds))


def append_rate(dovecot: Dovecot, users: Sequence[str], message: bytes, *, seconds: float) -> float:
    """Messages a second that Dovecot files in Sent, one connection a user, one at a time on each."""
    append = b"APPEND Sent (\\Seen) {%d+}\r\n%b" % (len(message), message)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_rate(dovecot, users, [append], 1, seconds))


async def _rate(
    dovecot: Dovecot, users: Sequence[str], commands: list[bytes], in_flight: int, seconds: float
) -> float:
    context = ssl.create_default_context(cafile=dovecot.ca_file)
    clients = [await _open(dovecot, user, context) for user in users]
    for client in clients:
        client.begin(commands, in_flight)
    await asyncio.wait([client.lost for client in clients], timeout=seconds)
    pages = sum(client.answers for client in clients) / len(commands)
    for client in clients:
        client.transport.abort()
    return pages / seconds


async def _open(dovecot: Dovecot, user: str, context: ssl.SSLContext) -> _Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        _Client, dovecot.host, dovecot.imaps_port, ssl=context, server_hostname="localhost"
    )
    await client.ask(f'LOGIN "{user}" "{dovecot.password}"'.encode())
    await client.ask(b"SELECT INBOX")
    return client


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.answers = 0
        self.lost = asyncio.get_running_loop().create_future()
        self._waiting: asyncio.Future[None] | None = None
        self._commands: list[bytes] = []
        self._sent = 0
        self._tail = b""

    async def ask(self, command: bytes) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(_TAG + b" " + command + b"\r\n")
        await self._waiting
        self._waiting = None

    def begin(self, commands: list[bytes], in_flight: int) -> None:
        self._commands = commands
        self.answers = 0
        for _ in range(in_flight):
            self._send_next()

    def _send_next(self) -> None:
        command = self._commands[self._sent % len(self._commands)]
        self._sent += 1
        self.transport.write(_TAG + b" " + command + b"\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        answered = seen.count(_ANSWERED)
        self._tail = seen[
            1 - len(_ANSWERED) :
        ]  # it may be cut anywhere; too short to be counted twice
        self.answers += answered
        if self._waiting is not None and answered:
            self._waiting.set_result(None)
        elif self._commands:
            for _ in range(answered):
                self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
