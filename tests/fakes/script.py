"""What a scripted server is told to say: octets, and the ways a server can fail to say them.

A reply is octets, said exactly so, or one of

- `NORMAL`     what the server would have done without a script
- `STALL`      nothing more, with the connection left open until the client closes it
- `CUT`        the connection is closed
- `START_TLS`  the TLS handshake, at once
- `Trickle`    octets, one a segment;  `Split`  octets in two segments
- a tuple      several of these, in order: ``(b"250-mail.exam", CUT)``
- a callable   given the command, gives a reply; it may be ``async``, to hold the reply until the test lets go
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from inspect import isawaitable
from typing import Final

from tests.fakes.listener import Gone, Listener, let_client_read

_PATIENCE = 10  # seconds until `heard` gives a test up that would otherwise hang


class Act(Enum):
    NORMAL = auto()
    STALL = auto()
    CUT = auto()
    START_TLS = auto()


NORMAL: Final = Act.NORMAL
STALL: Final = Act.STALL
CUT: Final = Act.CUT
START_TLS: Final = Act.START_TLS


@dataclass(frozen=True)
class Trickle:
    """Each octet in a segment of its own."""

    octets: bytes


@dataclass(frozen=True)
class Split:
    """The octets in two segments, of which the first is ``at`` long."""

    octets: bytes
    at: int


Step = bytes | Act | Trickle | Split
Reply = Step | tuple[Step, ...] | Callable[[bytes], "Reply | Awaitable[Reply]"]


class Script:
    """Replies by the beginning of a command, without regard to case. The rule added last wins.

    A prefix that ends in a letter or digit covers whole words only: ``UID FETCH 7`` is not ``UID FETCH 70``.
    """

    def __init__(self) -> None:
        self._rules: list[tuple[str, list[Reply]]] = []

    def add(self, prefix: str, replies: tuple[Reply, ...]) -> None:
        if not replies:
            raise ValueError("a rule needs at least one reply")
        self._rules.insert(0, (prefix, list(replies)))

    def next_reply(self, command: bytes) -> Reply:
        """The reply to ``command``: of several replies each is used once, the last for ever."""
        for prefix, replies in self._rules:
            if begins(command, prefix):
                return replies.pop(0) if len(replies) > 1 else replies[0]
        return NORMAL


def begins(command: bytes, prefix: str) -> bool:
    start = prefix.upper().encode()
    if not command.upper().startswith(start):
        return False
    return not (prefix[-1:].isalnum() and command[len(start) : len(start) + 1].isalnum())


class ScriptedServer(Listener):
    """A listener with a script and a memory: what it was told, and how often."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, implicit_tls: bool = False) -> None:
        super().__init__(tls=tls, implicit_tls=implicit_tls)
        self.script = Script()
        self.commands: list[bytes] = []  # every one, of all connections, in order of arrival
        self.received = bytearray()  # every octet of every client, after TLS was taken off
        self._heard_more = asyncio.Event()

    def on(self, prefix: str, *replies: Reply) -> None:
        """Answer commands that begin with ``prefix`` by the script; ``"connect"`` is the greeting.

        With several replies each answers one command, and the last all that follow.
        """
        self.script.add(prefix, replies)

    def record(self, command: bytes) -> None:
        self.commands.append(command)
        self._heard_more.set()
        self._heard_more = asyncio.Event()

    def count(self, prefix: str) -> int:
        """How many commands so far began with ``prefix``."""
        return sum(begins(command, prefix) for command in self.commands)

    async def heard(self, prefix: str, times: int = 1) -> None:
        """Wait until that many commands beginning with ``prefix`` have arrived."""
        async with asyncio.timeout(_PATIENCE):
            while self.count(prefix) < times:
                await self._heard_more.wait()


class Conversation:
    """One connection of a `ScriptedServer`: reads octets, and carries replies out."""

    def __init__(
        self, server: ScriptedServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self.said = b""  # in the answer to the command in hand

    async def read_until(self, separator: bytes) -> bytes:
        octets = await self._reader.readuntil(separator)
        self._server.received += octets
        return octets

    async def read_exactly(self, size: int) -> bytes:
        octets = await self._reader.readexactly(size)
        self._server.received += octets
        return octets

    async def say(self, octets: bytes) -> None:
        self.said += octets
        self._writer.write(octets)
        await self._writer.drain()

    async def start_tls(self) -> None:
        assert self._server.tls is not None, "this server was given no certificate"
        await self._writer.start_tls(self._server.tls)

    async def answer(
        self,
        command: bytes,
        normal: Callable[[], Awaitable[None]],
        spell: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """Carry out the script's reply to ``command``; ``spell`` finishes octets, such as an IMAP tag's."""
        self.said = b""
        reply = self._server.script.next_reply(command)
        while callable(reply):
            said = reply(command)
            reply = await said if isawaitable(said) else said
        for step in reply if isinstance(reply, tuple) else (reply,):
            await self._carry_out(step, normal, spell)

    async def _carry_out(
        self, step: Step, normal: Callable[[], Awaitable[None]], spell: Callable[[bytes], bytes]
    ) -> None:
        match step:
            case bytes():
                await self.say(spell(step))
            case Trickle(octets):
                await self._say_apart(
                    [octet.to_bytes(1, byteorder="big") for octet in spell(octets)]
                )
            case Split(octets, at):
                await self._say_apart([spell(octets)[:at], spell(octets)[at:]])
            case Act.NORMAL:
                await normal()
            case Act.STALL:
                await self._stall()
            case Act.CUT:
                raise Gone
            case Act.START_TLS:
                await self.start_tls()

    async def _say_apart(self, segments: list[bytes]) -> None:
        for segment in segments:
            await self.say(segment)
            await let_client_read()

    async def _stall(self) -> None:
        while octets := await self._reader.read(65536):
            self._server.received += octets
        raise Gone
