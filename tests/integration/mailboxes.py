"""A mailbox from both sides: over HTTP, as its owner, and at the mail server, behind the service's back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, logged_in
from tests.integration.dovecot import Dovecot

FOLDERS = "/api/mailbox/folders"
MESSAGES = "/api/mailbox/messages"

# What the service is configured with to talk to scripted servers: their TLS is another test's business.
PLAINTEXT = {"ALLOW_PLAINTEXT_LOGIN": "true"}

_LITERAL = re.compile(rb"\{(\d+)\+?\}$")
_TIME = re.compile(rb"^\d+\.\d{6} ", re.MULTILINE)  # Dovecot puts it before each line it records
_OUR_TAG = re.compile(rb"[A-Z]{4}\d+")


@dataclass
class Box:
    """A fresh user at a real Dovecot, whose every command is recorded."""

    server: Dovecot
    mailbox: Mailbox
    _heard: dict[str, int] = field(default_factory=dict)  # commands, of each connection

    @property
    def user(self) -> str:
        return self.mailbox.user

    # ---- over HTTP

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.mailbox.get(path, **params)

    async def post(self, path: str, body: object = None, **params: Any) -> httpx.Response:
        return await self.mailbox.post(path, body, **params)

    async def patch(self, path: str, body: object) -> httpx.Response:
        return await self.mailbox.client.patch(path, json=body)

    async def delete(self, path: str, **params: Any) -> httpx.Response:
        return await self.mailbox.delete(path, **params)

    async def page(self, **params: Any) -> dict[str, Any]:
        """A listing that is good."""
        return good(await self.get(MESSAGES, **params))

    async def uids(self, **params: Any) -> list[int]:
        """The UIDs of a listing, in its order."""
        return [row["uid"] for row in (await self.page(**params))["messages"]]

    async def folders(self, **params: Any) -> dict[str, dict[str, Any]]:
        """Every folder, by path."""
        answer = good(await self.get(FOLDERS, **params))
        return {folder["path"]: folder for folder in answer["folders"]}

    # ---- at the server

    def append(
        self, *messages: bytes, folder: str = "INBOX", flags: Iterable[str] = ()
    ) -> list[int]:
        return self.server.append(self.user, *messages, folder=folder, flags=flags)

    def subjects(self, folder: str = "INBOX") -> list[str]:
        """The subjects of what is really in a folder, in UID order."""
        return self._fetch("hdr.subject", folder)

    def flags(self, uid: int, folder: str = "INBOX") -> set[str]:
        """The flags a message really has."""
        (flags,) = self._fetch("flags", folder, "uid", str(uid))
        return set(flags.split()) - {"\\Recent"}

    def _fetch(self, item: str, folder: str, *query: str) -> list[str]:
        said = self.server.doveadm(
            *("-f", "tab", "fetch", "-u", self.user, item, "mailbox", folder, *query)
        )
        return said.splitlines()[1:]

    def said(self) -> list[bytes]:
        """The commands the service gave to the server since this was last asked, without tags, literals in place."""
        news = []
        for connection, recorded in self.server.recorded(self.user).items():
            commands = [
                command
                for tag, command in split_commands(_TIME.sub(b"", recorded))
                if _OUR_TAG.fullmatch(tag)
            ]
            news += commands[self._heard.get(connection, 0) :]
            self._heard[connection] = len(commands)
        return news


def good(response: httpx.Response) -> dict[str, Any]:
    """The answer of a call that went well."""
    assert response.is_success, response.text
    answer: dict[str, Any] = response.json()
    return answer


def problem(response: httpx.Response) -> tuple[int, str, list[str]]:
    """Status, code and pointers of a problem document that is as it should be."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert document["status"] == response.status_code
    assert document["type"] == f"/problems/{document['code']}"
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["detail"][0].isupper(), document["detail"]
    assert document["detail"].endswith("."), document["detail"]
    pointers = [error["pointer"] for error in document.get("errors", [])]
    return response.status_code, document["code"], pointers


def verbs(commands: Iterable[bytes]) -> list[bytes]:
    """What each command does: ``SELECT``, ``UID FETCH``. A NOOP does nothing."""
    named = [
        b" ".join(command.split(b" ")[: 2 if command.startswith(b"UID ") else 1])
        for command in commands
    ]
    return [name for name in named if name != b"NOOP"]


@asynccontextmanager
async def open_box(server: Dovecot, base_url: str, smtp: ScriptedSmtp) -> AsyncIterator[Box]:
    """A session of a fresh user. The IMAP server is real, the SMTP server plays no part."""
    user = server.fresh_user()
    server.record(user)
    async with logged_in(base_url, _login(user, server.imaps_port, "tls", smtp)) as mailbox:
        yield Box(server, mailbox)


@asynccontextmanager
async def open_scripted(
    imap: ScriptedImap, base_url: str, smtp: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session whose IMAP server is scripted, and has forgotten how it was logged in to. Needs `PLAINTEXT`."""
    login = _login("joe@example.test", imap.port, "none", smtp)
    async with logged_in(base_url, login) as mailbox:
        imap.commands.clear()
        yield mailbox


def _login(user: str, imap_port: int, security: str, smtp: ScriptedSmtp) -> dict[str, Any]:
    return {
        "email": user,
        "password": Dovecot.password,
        "imap": {"host": "localhost", "port": imap_port, "security": security},
        "smtp": {"host": "localhost", "port": smtp.port, "security": "none"},
    }


def split_commands(octets: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Tags and commands, as RFC 9051 section 4.3 divides them: a literal does not end the command it is in."""
    while octets:
        line, _, octets = octets.partition(b"\r\n")
        while literal := _LITERAL.search(line):
            size = int(literal[1])
            rest, _, after = octets[size:].partition(b"\r\n")
            line, octets = line + b"\r\n" + octets[:size] + rest, after
        tag, _, command = line.partition(b" ")
        yield tag, command
