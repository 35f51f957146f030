"""A submission server that accepts everything, until a test scripts it to do otherwise.

async with ScriptedSmtp() as server:
    server.on("RCPT TO:<bob@", b"450 4.2.1 later\\r\\n", NORMAL)   # greylisted once
    server.on(".", CUT)                                          # took the message, then hung up
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from tests.fakes.listener import Gone
from tests.fakes.script import Conversation, ScriptedServer

PASSWORD = "secret"
TOKEN = "token"

EXTENSIONS = ("PIPELINING", "SIZE 26214400", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
MECHANISMS = ("PLAIN", "LOGIN", "XOAUTH2")

_PATH = re.compile(rb"(?:FROM|TO):\s*<([^>]*)>\s*(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Captured:
    """One message the server took responsibility for. ``content`` is what was said between DATA and the dot."""

    sender: str
    recipients: list[str]
    content: bytes
    parameters: str = ""  # of MAIL FROM: "SIZE=120 BODY=8BITMIME SMTPUTF8"
    user: str | None = None


class ScriptedSmtp(ScriptedServer):
    """Says what it is told, and otherwise accepts any message, from anybody with the right password.

    The script knows the verbs, ``connect`` for the greeting and ``.`` for the end of a message; a challenge's
    answer is looked up as ``response``. A message is captured when its dot arrives, whatever the script replies.

    ``strict`` servers end a line, and a message, at CR LF only (RFC 5321 section 2.3.8). The others also do it at a
    bare LF: what a message must survive too, or one mail becomes two (SMTP smuggling).
    """

    def __init__(
        self,
        *,
        extensions: tuple[str, ...] = EXTENSIONS,
        mechanisms: tuple[str, ...] = MECHANISMS,
        strict: bool = True,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
    ) -> None:
        super().__init__(tls=tls, implicit_tls=implicit_tls)
        self.extensions = extensions
        self.mechanisms = mechanisms
        self.end_of_line = b"\r\n" if strict else b"\n"
        self.messages: list[Captured] = []
        self.tokens = {TOKEN}  # access tokens that are good

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _SmtpConversation(self, reader, writer).run()

    def capture(self, message: Captured) -> None:
        """Called once for each message, before its reply. A subclass may pass it on."""
        self.messages.append(message)


class _SmtpConversation(Conversation):
    def __init__(
        self, server: ScriptedSmtp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(server, reader, writer)
        self._smtp = server
        self._user: str | None = None
        self._encrypted = writer.get_extra_info("ssl_object") is not None
        self._reset()
        self._verbs: dict[str, Callable[[bytes], Awaitable[None]]] = {
            "EHLO": self._ehlo,
            "HELO": self._ok,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._ok,
            "QUIT": self._quit,
        }

    def _reset(self) -> None:
        self._sender: str | None = None
        self._parameters = ""
        self._recipients: list[str] = []

    async def run(self) -> None:
        await self.answer(b"connect", partial(self.say, b"220 mail.example.test ESMTP\r\n"))
        while True:
            line = await self._read_line()
            self._smtp.record(line)
            verb = line.split(b" ", 1)[0].decode("ascii", "replace").upper()
            await self.answer(line, partial(self._verbs.get(verb, self._unknown), line))
            await self._take_effect(verb, line)

    async def _take_effect(self, verb: str, line: bytes) -> None:
        """What was answered counts, whether the script or the server said it."""
        path = _PATH.search(line)
        if verb == "MAIL" and path and self.said.startswith(b"250"):
            self._sender, self._parameters = path[1].decode(), path[2].decode()
        elif verb == "RCPT" and path and self.said.startswith(b"25"):
            self._recipients.append(path[1].decode())
        elif verb == "DATA" and self.said.startswith(b"354"):
            await self._take_message()

    async def _read_line(self) -> bytes:
        line = await self.read_until(self._smtp.end_of_line)
        return line.removesuffix(b"\n").removesuffix(b"\r")

    # ---- verbs

    async def _ehlo(self, line: bytes) -> None:
        self._reset()
        keywords = list(self._smtp.extensions)
        if self._smtp.mechanisms:
            keywords.append("AUTH " + " ".join(self._smtp.mechanisms))
        if self._smtp.tls is not None and not self._encrypted:
            keywords.append("STARTTLS")
        lines = ["mail.example.test", *keywords]
        said = [f"250-{text}\r\n" for text in lines[:-1]] + [f"250 {lines[-1]}\r\n"]
        await self.say("".join(said).encode())

    async def _ok(self, line: bytes) -> None:
        await self.say(b"250 2.0.0 Ok\r\n")

    async def _unknown(self, line: bytes) -> None:
        await self.say(b"500 5.5.2 Command not recognised\r\n")

    async def _rset(self, line: bytes) -> None:
        self._reset()
        await self._ok(line)

    async def _quit(self, line: bytes) -> None:
        await self.say(b"221 2.0.0 Bye\r\n")
        raise Gone

    async def _starttls(self, line: bytes) -> None:
        if self._smtp.tls is None or self._encrypted:
            await self.say(b"503 5.5.1 Not now\r\n")
            return
        await self.say(b"220 2.0.0 Ready to start TLS\r\n")
        await self.start_tls()

    async def start_tls(self) -> None:
        await super().start_tls()
        self._encrypted = True
        self._reset()  # RFC 3207 section 4.2: nothing said before counts

    async def _mail(self, line: bytes) -> None:
        if self._sender is not None:
            await self.say(b"503 5.5.1 Nested MAIL\r\n")
        elif _PATH.search(line) is None:
            await self.say(b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n")
        else:
            await self.say(b"250 2.1.0 Ok\r\n")

    async def _rcpt(self, line: bytes) -> None:
        if self._sender is None:
            await self.say(b"503 5.5.1 Need MAIL first\r\n")
        elif _PATH.search(line) is None:
            await self.say(b"501 5.5.4 Syntax: RCPT TO:<address>\r\n")
        else:
            await self.say(b"250 2.1.5 Ok\r\n")

    async def _data(self, line: bytes) -> None:
        if self._recipients:
            await self.say(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        else:
            await self.say(b"554 5.5.1 No valid recipients\r\n")

    async def _take_message(self) -> None:
        content = await self._read_content()
        self._smtp.record(b".")
        self._smtp.capture(
            Captured(self._sender or "", self._recipients, content, self._parameters, self._user)
        )
        self._reset()
        await self.answer(b".", partial(self.say, b"250 2.0.0 Ok: queued\r\n"))

    async def _read_content(self) -> bytes:
        lines: list[bytes] = []
        while True:
            line = await self.read_until(self._smtp.end_of_line)
            if line.removesuffix(b"\n").removesuffix(b"\r") == b".":
                return b"".join(lines)
            # RFC 5321 section 4.5.2: a leading dot was added for the way.
            lines.append(line.removeprefix(b"."))

    # ---- AUTH (RFC 4954)

    async def _auth(self, line: bytes) -> None:
        mechanism, _, initial = line.partition(b" ")[2].decode().partition(" ")
        if mechanism.upper() not in self._smtp.mechanisms:
            await self.say(b"504 5.5.4 Unrecognised authentication type\r\n")
            return
        attempt = {
            "PLAIN": self._plain,
            "LOGIN": self._login,
            "XOAUTH2": self._xoauth2,
            "OAUTHBEARER": self._oauthbearer,
        }
        try:
            self._user = await attempt[mechanism.upper()](initial)
        except (binascii.Error, ValueError):
            await self.say(b"501 5.5.2 Cannot decode that\r\n")
            return
        if self._user is None:
            await self.say(b"535 5.7.8 Error: authentication failed\r\n")
        else:
            await self.say(b"235 2.7.0 Authentication successful\r\n")

    async def _plain(self, initial: str) -> str | None:
        _, user, password = (await self._respond(initial, b"")).split("\0")
        return user if password == PASSWORD else None

    async def _login(self, initial: str) -> str | None:
        user = await self._respond(initial, b"Username:")
        password = await self._respond("", b"Password:")
        return user if password == PASSWORD else None

    async def _xoauth2(self, initial: str) -> str | None:
        fields = dict(
            field.split("=", 1)
            for field in (await self._respond(initial, b"")).split("\x01")
            if field
        )
        return await self._by_token(fields["user"], fields["auth"])

    async def _oauthbearer(self, initial: str) -> str | None:
        header, *pairs = (await self._respond(initial, b"")).split("\x01")  # RFC 7628 section 3.1
        fields = dict(pair.split("=", 1) for pair in pairs if pair)
        return await self._by_token(header.split(",")[1].removeprefix("a="), fields["auth"])

    async def _by_token(self, user: str, auth: str) -> str | None:
        if auth.removeprefix("Bearer ") in self._smtp.tokens:
            return user
        await self._respond(
            "", b'{"status":"401"}'
        )  # the reason; the client answers its last words
        return None

    async def _respond(self, initial: str, challenge: bytes) -> str:
        """The client's initial response, or its answer to ``challenge``."""
        if initial:
            return base64.b64decode(initial, validate=True).decode()
        said = b"334 " + base64.b64encode(challenge) + b"\r\n"
        await self.answer(b"response", partial(self.say, said))
        line = await self._read_line()
        self._smtp.record(line)
        return base64.b64decode(line, validate=True).decode()
