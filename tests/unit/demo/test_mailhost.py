"""The demo's mail host, as the clients of two protocols see it."""

from __future__ import annotations

import asyncio
import imaplib
import smtplib
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TypeVar

import pytest

from cbemail.demo.letters import FOLDERS, letters
from cbemail.demo.mailhost import Account, Mailbox, serving

T = TypeVar("T")

LETTERS = letters(datetime(2026, 5, 4, 12, 0, tzinfo=UTC))
ACCOUNT = Account("robin@demo.example", "a password")
MESSAGE = b"Subject: Hello\r\n\r\n.A line that begins with a dot\r\n\xc3\xa9\r\n"


class Host:
    """A mail host that runs, asked from other threads, since Python's clients wait for their answers."""

    def __init__(self, mailbox: Mailbox, imap: int, smtp: int) -> None:
        self.mailbox = mailbox
        self._imap = imap
        self._smtp = smtp

    async def smtp(self, talk: Callable[[smtplib.SMTP], T]) -> T:
        def run() -> T:
            with smtplib.SMTP("127.0.0.1", self._smtp, "localhost", timeout=10) as client:
                client.ehlo()
                return talk(client)

        return await asyncio.to_thread(run)

    async def imap(self, talk: Callable[[imaplib.IMAP4], T], account: Account = ACCOUNT) -> T:
        def run() -> T:
            with imaplib.IMAP4("127.0.0.1", self._imap, timeout=10) as client:
                client.login(*account)
                return talk(client)

        return await asyncio.to_thread(run)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    imap, smtp = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    mailbox = Mailbox(ACCOUNT)
    await mailbox.fill(FOLDERS, LETTERS)
    ports = imap.getsockname()[1], smtp.getsockname()[1]
    async with serving(mailbox, imap, smtp):
        yield Host(mailbox, *ports)


async def test_it_takes_no_mail_from_who_has_not_logged_in(host: Host) -> None:
    code, said = await host.smtp(lambda client: client.mail("ann@example.org"))

    assert (code, said) == (530, b"5.7.0 Authentication required")


@pytest.mark.parametrize(
    ("address", "password"),
    [
        (ACCOUNT.address, "another password"),
        (ACCOUNT.address, "a passwor"),
        ("ann@example.org", ACCOUNT.password),
    ],
)
async def test_another_login_is_refused_by_both_servers(
    host: Host, address: str, password: str
) -> None:
    with pytest.raises(smtplib.SMTPAuthenticationError):
        await host.smtp(lambda client: client.login(address, password))
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        await host.imap(lambda client: client.noop(), Account(address, password))


async def test_a_message_arrives_octet_for_octet_and_says_for_whom_it_was(host: Host) -> None:
    def send(client: smtplib.SMTP) -> object:
        client.login(*ACCOUNT)
        return client.sendmail(ACCOUNT.address, ["ann@a.example", "ben@b.example"], MESSAGE)

    assert await host.smtp(send) == {}

    newest = [letter for letter in await host.mailbox.letters() if letter.folder == "INBOX"][-1]
    assert newest.flags == frozenset()
    assert newest.content == (
        b"Return-Path: <robin@demo.example>\r\n"
        b"Delivered-To: ann@a.example\r\nDelivered-To: ben@b.example\r\n" + MESSAGE
    )


async def test_nobody_is_refused_and_the_others_get_their_mail(host: Host) -> None:
    def send(client: smtplib.SMTP) -> dict[str, tuple[int, bytes]]:
        client.login(*ACCOUNT)
        return client.sendmail(ACCOUNT.address, ["Nobody@a.example", "ben@b.example"], MESSAGE)

    before = len(await host.mailbox.letters())

    refused = await host.smtp(send)

    assert refused == {"Nobody@a.example": (550, b"5.1.1 There is no such mailbox")}
    assert len(await host.mailbox.letters()) == before + 1


async def test_the_structure_of_a_message_has_the_sizes_and_names_of_its_parts(host: Host) -> None:
    def fetch(client: imaplib.IMAP4) -> bytes:
        client.select(readonly=True)
        _, [found] = client.uid("SEARCH", "SUBJECT", "Visitor")
        _, [answer] = client.uid("FETCH", found.decode(), "(BODYSTRUCTURE)")
        assert isinstance(answer, bytes)
        return answer

    structure = await host.imap(fetch)

    text = b"The numbers of last year for the report are attached. August!\r\n\r\nMina\r\n\r\n"
    assert b'"7bit" %d ' % len(text) in structure
    assert b'"name" "visitors.csv"' in structure
    assert b'"attachment"' in structure


async def test_all_that_is_in_the_mailbox_can_fill_another(host: Host) -> None:
    other = Mailbox(ACCOUNT)

    _inbox, *folders = await host.mailbox.folders()
    await other.fill(folders, await host.mailbox.letters())

    assert await other.folders() == await host.mailbox.folders()
    assert await other.letters() == await host.mailbox.letters()
    assert sorted(await other.letters()) == sorted(LETTERS)
