"""The demo's mail host: one mailbox behind IMAP (pymap) and SMTP (aiosmtpd) on loopback, in memory.

Whatever is handed to its SMTP server arrives in its own INBOX, whoever it is for: no mail leaves the machine. An
address that begins with ``nobody@`` is refused, so that a failure can be seen, too.
"""

import asyncio
import logging
import secrets
import socket
import ssl
from argparse import Namespace
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from proxyprotocol.reader import ProxyProtocolReader
from proxyprotocol.version import ProxyProtocolVersion
from pymap.backend.dict import Config, Identity, Login
from pymap.concurrent import Subsystem
from pymap.imap import IMAPServer
from pymap.parsing.message import AppendMessage
from pymap.parsing.specials import FetchRequirement
from pymap.parsing.specials.flag import Flag
from pymap.user import UserMetadata
from pysasl.hashing import Cleartext

from cbemail.clock import now
from cbemail.demo.structure import repair

LARGEST_MESSAGE = 200 * 1024 * 1024  # octets: more than the service takes for sending


class Account(NamedTuple):
    """Who may log in to the mail host."""

    address: str
    password: str


class Letter(NamedTuple):
    r"""A message as it lies in a folder. ``flags`` are system flags, such as ``\Seen``."""

    folder: str
    content: bytes
    received_at: datetime
    flags: frozenset[str]


class Mailbox:
    """The folders of the one account, and what is in them. They live as long as this object."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.config = _Config(account)
        self.login = Login(self.config)
        self._identity = Identity(account.address, self.login, None, frozenset())

    async def fill(self, folders: Iterable[str], letters: Iterable[Letter]) -> None:
        """Let the account log in, make these folders beside INBOX, and put the letters in, in their order."""
        user = UserMetadata(self.config, self.account.address, password=self.account.password)
        await self._identity.set(user)
        async with self._identity.new_session() as session:
            for folder in folders:
                await session.create_mailbox(folder)
                await session.subscribe(folder)
            for letter in letters:
                flags = frozenset(Flag(flag.encode()) for flag in letter.flags)
                message = AppendMessage(letter.content, letter.received_at, flags)
                await session.append_messages(letter.folder, [message])

    async def folders(self) -> list[str]:
        """Every folder, INBOX first."""
        async with self._identity.new_session() as session:
            tree = await session.mailbox_set.list_mailboxes()
            return [entry.name for entry in tree.list() if entry.exists]

    async def letters(self) -> list[Letter]:
        """All that is in the folders now."""
        found = []
        async with self._identity.new_session() as session:
            for folder in await self.folders():
                stored = await session.mailbox_set.get_mailbox(folder)
                async for message in stored.messages():
                    loaded = await message.load_content(FetchRequirement.CONTENT)
                    flags = frozenset(bytes(flag).decode() for flag in message.permanent_flags)
                    content = bytes(loaded.get_body())
                    found.append(Letter(folder, content, message.internal_date, flags))
        return found

    async def deliver(self, content: bytes) -> None:
        """Put a message that has just come into INBOX."""
        async with self._identity.new_session() as session:
            await session.append_messages("INBOX", [AppendMessage(content, now())])


@asynccontextmanager
async def serving(
    mailbox: Mailbox, imap: socket.socket, smtp: socket.socket
) -> AsyncIterator[None]:
    """Serve the mailbox on these two listening sockets, which are closed at the end."""
    for library in ("pymap", "mail.log"):  # they warn of clients that hang up
        logging.getLogger(library).setLevel(logging.ERROR)
    repair()
    loop = asyncio.get_running_loop()
    reader = ProxyProtocolReader(ProxyProtocolVersion.get(None))
    converse = reader.get_callback(IMAPServer(mailbox.login, mailbox.config))
    delivery = _Delivery(mailbox)

    def submission() -> SMTP:
        return SMTP(
            delivery,
            data_size_limit=LARGEST_MESSAGE,
            enable_SMTPUTF8=True,
            hostname="localhost",
            authenticator=delivery.authenticate,
            auth_require_tls=False,
            loop=loop,
        )

    async with (
        await asyncio.start_server(converse, sock=imap),
        await loop.create_server(submission, sock=smtp),
    ):
        yield


class _Config(Config):
    """pymap's configuration, with nothing in it that is taken from the environment or asked of the network."""

    def __init__(self, account: Account) -> None:
        super().__init__(
            Namespace(),
            host=None,
            port=0,
            tls_enabled=False,
            ssl_context=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),  # never used
            proxy_protocol=ProxyProtocolVersion.get(None),
            hash_context=Cleartext(),  # the password is made for one run: no hash to wait for at every login
            cpu_subsystem=Subsystem.for_asyncio(),
            max_append_len=LARGEST_MESSAGE,
            demo_data=False,
            demo_user=account.address,
            demo_password=account.password,
        )

    @property
    def greeting(self) -> bytes:
        return b"the mail host of cbemail demo"  # pymap's would look up the machine's name


class _Delivery:
    """What aiosmtpd asks of us: who may send, to whom, and where it goes."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: object
    ) -> AuthResult:
        account = self._mailbox.account
        known = LoginPassword(account.address.encode(), account.password.encode())
        right = isinstance(login, LoginPassword) and all(
            secrets.compare_digest(given, ours) for given, ours in zip(login, known, strict=True)
        )
        return AuthResult(success=right, handled=False)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self,
        _server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if not session.authenticated:
            return "530 5.7.0 Authentication required"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(  # noqa: N802
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if address.lower().startswith("nobody@"):
            return "550 5.1.1 There is no such mailbox"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        content = envelope.content
        if not isinstance(content, bytes):
            raise TypeError("aiosmtpd decodes messages only where it is told to")
        trace = [f"Return-Path: <{envelope.mail_from}>"]  # RFC 5321 4.4
        trace += [f"Delivered-To: {address}" for address in envelope.rcpt_tos]
        head = "".join(f"{line}\r\n" for line in trace)
        await self._mailbox.deliver(head.encode() + content)
        return "250 2.0.0 OK, delivered to the demo's own mailbox"
