"""A small, valid IMAP server, until a test scripts it to be anything else.

    async with ScriptedImap() as server:
        server.folders["INBOX"].add(b"Subject: seven\\r\\n\\r\\n", uid=7)
        server.on("UID FETCH 7", STALL)
        server.on("NOOP", (b"* 3 EXISTS\\r\\n", NORMAL))
        server.on("SELECT", b"{tag} NO [NONEXISTENT] gone\\r\\n")

Commands are scripted and remembered without their tag; ``{tag}`` in scripted octets becomes the tag in hand.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from tests.fakes.imap_arguments import NotUnderstood, parse_arguments, text_of
from tests.fakes.imap_folders import CannedFolder
from tests.fakes.imap_session import ImapSession, Refused
from tests.fakes.listener import Gone
from tests.fakes.script import Conversation, ScriptedServer

PASSWORD = "secret"
TOKEN = "token"

# What Dovecot 2.3 offers, as far as this server can do it.
CAPABILITIES = (
    *(
        "IMAP4rev1",
        "SASL-IR",
        "ID",
        "ENABLE",
        "IDLE",
        "NAMESPACE",
        "LITERAL+",
        "AUTH=PLAIN",
        "AUTH=XOAUTH2",
    ),
    *(
        "UIDPLUS",
        "MOVE",
        "UNSELECT",
        "ESEARCH",
        "CHILDREN",
        "LIST-EXTENDED",
        "LIST-STATUS",
        "SPECIAL-USE",
    ),
)
WEAK_CAPABILITIES = ("IMAP4rev1",)

_LITERAL = re.compile(rb"\{(\d+)(\+?)\}$")


class ScriptedImap(ScriptedServer):
    """Says what it is told; otherwise serves `folders` to any user with the right password or token.

    Each capability in ``capabilities`` that is taken away takes its behaviour with it, and a command that needs
    it is answered BAD. Folder names are as on the wire, in modified UTF-7. ``connect`` scripts the greeting,
    ``response`` the client's answer to a challenge, ``literal`` the invitation to send one: a tagged NO instead
    refuses it, and with it the command.
    """

    def __init__(
        self,
        capabilities: Iterable[str] = CAPABILITIES,
        *,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
    ) -> None:
        super().__init__(tls=tls, implicit_tls=implicit_tls)
        self.capabilities = list(capabilities)
        self.delimiter = "/"
        self.tokens = {TOKEN}  # access tokens that are good
        self.folders: dict[str, CannedFolder] = {
            "INBOX": CannedFolder(),
            "Sent": CannedFolder(("\\Sent",)),
            "Drafts": CannedFolder(("\\Drafts",)),
            "Trash": CannedFolder(("\\Trash",)),
        }
        self._writers: set[asyncio.StreamWriter] = set()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await _ImapConversation(self, reader, writer).run()
        finally:
            self._writers.discard(writer)

    def push(self, octets: bytes) -> None:
        """Say something unasked on every open connection: ``* BYE …``, ``* 4 EXISTS``."""
        for writer in self._writers:
            writer.write(octets)

    def can(self, capability: str) -> bool:
        return capability in self.capabilities


class _ImapConversation(Conversation):
    """Everything about a connection that is not about folders: lines, literals, tags, TLS and logging in."""

    def __init__(
        self, server: ScriptedImap, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(server, reader, writer)
        self._imap = server
        self._encrypted = writer.get_extra_info("ssl_object") is not None
        self._session = ImapSession(server.folders, server.capabilities, server.delimiter)
        self._logged_in = False
        self._tag = b"*"
        self._commands: dict[str, Callable[[bytes], Awaitable[None]]] = {
            "CAPABILITY": self._capability,
            "STARTTLS": self._starttls,
            "LOGIN": self._login,
            "AUTHENTICATE": self._authenticate,
            "IDLE": self._idle,
            "LOGOUT": self._logout,
        }

    async def run(self) -> None:
        greeting = f"* OK [CAPABILITY {self._offer()}] ready\r\n".encode()
        await self.answer(b"connect", partial(self.say, greeting))
        while True:
            tag, command = await self._read_command()
            if command is None:
                await self.say(tag + b" BAD this server takes no such literal\r\n")
                continue
            self._tag = tag
            self._imap.record(command)
            await self.answer(command, partial(self._perform, command), self._spell)

    def _spell(self, octets: bytes) -> bytes:
        return octets.replace(b"{tag}", self._tag)

    def _offer(self) -> str:
        offered = list(self._imap.capabilities)
        if self._imap.tls is not None and not self._encrypted:
            offered.append("STARTTLS")
        return " ".join(offered)

    async def _read_command(self) -> tuple[bytes, bytes | None]:
        """The tag, and the command with its literals in place; None for one with a literal we do not offer."""
        text = await self.read_until(b"\r\n")
        while literal := _LITERAL.search(text[:-2]):
            if literal[2] and not self._imap.can("LITERAL+"):
                return text.partition(b" ")[0], None
            if not literal[2] and not await self._invite(text.partition(b" ")[0]):
                text = await self.read_until(b"\r\n")
                continue
            text += await self.read_exactly(int(literal[1]))
            text += await self.read_until(b"\r\n")
        tag, _, command = text[:-2].partition(b" ")
        return tag, command

    async def _invite(self, tag: bytes) -> bool:
        """Ask for a literal, and say whether that is what was said."""
        self._tag = tag
        await self.answer(b"literal", partial(self.say, b"+ go on\r\n"), self._spell)
        return tag + b" NO" not in self.said

    async def _perform(self, command: bytes) -> None:
        name = command.split(b" ", 1)[0].decode("ascii", "replace").upper()
        try:
            if name in self._commands:
                await self._commands[name](command)
            elif not self._logged_in and name != "NOOP":
                await self._finish("BAD log in first")
            else:
                done = self._session.perform(command)
                await self.say(b"".join(line + b"\r\n" for line in done.untagged))
                await self._finish(f"OK {done.text}")
        except Refused as refusal:
            await self._finish(f"NO {refusal}")
        except (NotUnderstood, IndexError) as misunderstanding:
            await self._finish(f"BAD not understood: {misunderstanding}")

    async def _finish(self, status: str) -> None:
        await self.say(self._tag + b" " + status.encode() + b"\r\n")

    async def _capability(self, command: bytes) -> None:
        await self.say(f"* CAPABILITY {self._offer()}\r\n".encode())
        await self._finish("OK done")

    async def _logout(self, command: bytes) -> None:
        await self.say(b"* BYE logging out\r\n")
        await self._finish("OK done")
        raise Gone

    async def _starttls(self, command: bytes) -> None:
        if self._imap.tls is None or self._encrypted:
            raise NotUnderstood("STARTTLS")
        await self._finish("OK begin")
        await self.start_tls()

    async def start_tls(self) -> None:
        await super().start_tls()
        self._encrypted = True

    async def _idle(self, command: bytes) -> None:
        if not (self._logged_in and self._imap.can("IDLE")):
            raise NotUnderstood("IDLE")
        await self.say(b"+ idling\r\n")
        line = (await self.read_until(b"\r\n"))[:-2]
        self._imap.record(line)
        if line.upper() != b"DONE":
            raise NotUnderstood("DONE was due")
        await self._finish("OK done")

    async def _login(self, command: bytes) -> None:
        words = [text_of(word) for word in parse_arguments(command)]
        if len(words) != 3:
            raise NotUnderstood("LOGIN takes a user and a password")
        await self._admit(authentic=words[2] == PASSWORD)

    async def _authenticate(self, command: bytes) -> None:
        words = command.decode().split(" ")
        mechanism = words[1].upper()
        if not self._imap.can(f"AUTH={mechanism}"):
            raise NotUnderstood(mechanism)
        try:
            response = await self._respond(words[2] if len(words) > 2 else None)
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise NotUnderstood("a response in base64 was due") from exc
        if mechanism == "PLAIN":
            await self._admit(authentic=response.split("\0")[-1:] == [PASSWORD])
            return
        authentic = any(f"auth=Bearer {token}\x01" in response for token in self._imap.tokens)
        if (
            not authentic
        ):  # RFC 7628 section 3.2.3: the reason, which the client answers with its last words
            await self._challenge(base64.b64encode(b'{"status":"401"}'))
        await self._admit(authentic=authentic)

    async def _respond(self, initial: str | None) -> str:
        if initial is None:
            return base64.b64decode(await self._challenge(b""), validate=True).decode()
        if not self._imap.can("SASL-IR"):
            raise NotUnderstood("an initial response")
        return base64.b64decode(initial, validate=True).decode()

    async def _challenge(self, challenge: bytes) -> bytes:
        said = b"+ " + challenge + b"\r\n"
        await self.answer(b"response", partial(self.say, said), self._spell)
        line = (await self.read_until(b"\r\n"))[:-2]
        self._imap.record(line)
        return line

    async def _admit(self, *, authentic: bool) -> None:
        if not authentic:
            raise Refused("[AUTHENTICATIONFAILED] authentication failed")
        self._logged_in = True
        await self._finish(f"OK [CAPABILITY {self._offer()}] logged in")
