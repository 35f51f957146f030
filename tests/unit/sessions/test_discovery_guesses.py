"""A guess is believed once a server proves its name by TLS and greets, and nobody is told anything for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cbemail.hosts import Security
from cbemail.sessions.probe import Protocol, is_there
from cbemail.sessions.provider import Endpoint, Setup, Source
from tests.certificates import Certificates
from tests.fakes.listener import Listener
from tests.fakes.script import CUT, NORMAL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.sessions.mail_world import MailWorld

DOMAIN = "acme.org"
NAMES = tuple(f"{name}{DOMAIN}" for name in ("imap.", "mail.", "smtp.", ""))


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of the domain's own servers."""
    return Certificates.issue(tmp_path_factory.mktemp("acme"), *NAMES)


@pytest.fixture
async def world(acme: Certificates) -> AsyncIterator[MailWorld]:
    world = MailWorld(acme, local=True)
    yield world
    await world.web.close()


Start = Callable[[Listener, str, int], Awaitable[None]]


@pytest.fixture
async def start(world: MailWorld) -> AsyncIterator[Start]:
    """Start a server behind a port of a name, until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(server: Listener, name: str, port: int) -> None:
            await stack.enter_async_context(server)
            world.names.lead_port(name, port, server.port)

        yield start


async def find(world: MailWorld) -> Setup | None:
    return await world.discovery().find(f"joe@{DOMAIN}", admit=world.admit)


def imaps(certificates: Certificates) -> ScriptedImap:
    return ScriptedImap(tls=certificates.server_context(), implicit_tls=True)


def smtps(certificates: Certificates) -> ScriptedSmtp:
    return ScriptedSmtp(tls=certificates.server_context(), implicit_tls=True)


async def test_servers_with_the_usual_names_are_found(
    world: MailWorld, start: Start, acme: Certificates
) -> None:
    imap, smtp = imaps(acme), smtps(acme)
    await start(imap, "imap.acme.org", 993)
    await start(smtp, "smtp.acme.org", 465)

    setup = await find(world)

    assert setup is not None
    assert setup.source is Source.GUESS
    assert setup.imap == Endpoint("imap.acme.org", 993)
    assert setup.smtp == Endpoint("smtp.acme.org", 465)
    assert imap.received == smtp.received == b""


async def test_a_submission_server_that_begins_tls_in_the_middle_is_found(
    world: MailWorld, start: Start, acme: Certificates
) -> None:
    smtp = ScriptedSmtp(tls=acme.server_context())
    await start(imaps(acme), "mail.acme.org", 993)
    await start(smtp, "mail.acme.org", 587)

    setup = await find(world)

    assert setup is not None
    assert setup.imap.host == setup.smtp.host == "mail.acme.org"
    assert (setup.smtp.port, setup.smtp.security) == (587, Security.STARTTLS)
    assert smtp.received == b"EHLO [127.0.0.1]\r\nSTARTTLS\r\n"


async def test_of_two_names_the_more_usual_one_is_taken(
    world: MailWorld, start: Start, acme: Certificates
) -> None:
    for name in ("mail.acme.org", "imap.acme.org"):
        await start(imaps(acme), name, 993)
    for name, port in (("mail.acme.org", 465), ("smtp.acme.org", 465)):
        await start(smtps(acme), name, port)

    setup = await find(world)

    assert setup is not None
    assert (setup.imap.host, setup.smtp.host) == ("imap.acme.org", "smtp.acme.org")


async def test_half_a_guess_is_none(world: MailWorld, start: Start, acme: Certificates) -> None:
    await start(imaps(acme), "imap.acme.org", 993)

    assert await find(world) is None


# ---- what proves a server

PORTS = {Protocol.IMAP: (993, 143), Protocol.SMTP: (465, 587)}


async def test_a_certificate_for_another_name_proves_nothing(
    world: MailWorld, start: Start, acme: Certificates
) -> None:
    await start(imaps(acme), "other.acme.org", 993)
    await start(imaps(acme), "imap.acme.org", 993)

    assert not await is_there(Protocol.IMAP, Endpoint("other.acme.org", 993), world.hosts)
    assert await is_there(Protocol.IMAP, Endpoint("imap.acme.org", 993), world.hosts)


async def test_a_certificate_that_nobody_vouches_for_proves_nothing(
    world: MailWorld, start: Start, tmp_path: Path
) -> None:
    stranger = Certificates.issue(tmp_path, "smtp.acme.org")
    await start(smtps(stranger), "smtp.acme.org", 465)
    await start(ScriptedSmtp(tls=stranger.server_context()), "smtp.acme.org", 587)
    behind = Endpoint("smtp.acme.org", 587, Security.STARTTLS)

    assert not await is_there(Protocol.SMTP, Endpoint("smtp.acme.org", 465), world.hosts)
    assert not await is_there(Protocol.SMTP, behind, world.hosts)


@pytest.mark.parametrize(
    ("protocol", "greeting"),
    [
        (Protocol.IMAP, b"* BYE not today\r\n"),
        (Protocol.IMAP, b"220 mail.acme.org ESMTP\r\n"),
        (Protocol.IMAP, b"HTTP/1.1 400 Bad Request\r\n"),
        (Protocol.IMAP, b"* OK " + b"x" * 100_000 + b"\r\n"),
        (Protocol.IMAP, b"* O"),
        (Protocol.SMTP, b"554 no\r\n"),
        (Protocol.SMTP, b"220-" + b"x" * 100_000 + b"\r\n"),
        (Protocol.SMTP, b"* OK ready\r\n"),
        (Protocol.SMTP, b""),
    ],
)
async def test_who_does_not_greet_is_no_mail_server(
    world: MailWorld, start: Start, acme: Certificates, protocol: Protocol, greeting: bytes
) -> None:
    server = imaps(acme) if protocol is Protocol.IMAP else smtps(acme)
    server.on("connect", (greeting, CUT))
    port = PORTS[protocol][0]
    await start(server, "mail.acme.org", port)

    assert not await is_there(protocol, Endpoint("mail.acme.org", port), world.hosts)

    assert server.received == b""


@pytest.mark.parametrize(
    ("protocol", "command", "reply", "there"),
    [
        (Protocol.IMAP, "STARTTLS", NORMAL, True),
        (Protocol.IMAP, "STARTTLS", (b"* 1 EXISTS\r\n", NORMAL), True),
        (Protocol.IMAP, "STARTTLS", b"{tag} BAD what?\r\n", False),
        (Protocol.IMAP, "STARTTLS", (b"{tag} OK\r\n", CUT), False),
        (Protocol.IMAP, "STARTTLS", CUT, False),
        (Protocol.SMTP, "EHLO", (b"250-mail.acme.org\r\n", NORMAL), True),
        (Protocol.SMTP, "EHLO", b"502 what?\r\n", False),
        (Protocol.SMTP, "STARTTLS", b"454 not now\r\n", False),
        (Protocol.SMTP, "STARTTLS", (b"220 go\r\n", b"Sorry.\r\n", CUT), False),
    ],
)
async def test_where_tls_begins_in_the_middle_it_has_to_begin(
    world: MailWorld,
    start: Start,
    acme: Certificates,
    protocol: Protocol,
    command: str,
    reply: Reply,
    there: bool,  # noqa: FBT001 - a column of the table
) -> None:
    server_type = ScriptedImap if protocol is Protocol.IMAP else ScriptedSmtp
    server = server_type(tls=acme.server_context())
    server.on(command, reply)
    port = PORTS[protocol][1]
    await start(server, "mail.acme.org", port)
    endpoint = Endpoint("mail.acme.org", port, Security.STARTTLS)

    assert await is_there(protocol, endpoint, world.hosts) is there


async def test_nobody_is_at_a_port_that_is_closed(world: MailWorld) -> None:
    world.names.lead_port("imap.acme.org", 993, 1)

    assert not await is_there(Protocol.IMAP, Endpoint("imap.acme.org", 993), world.hosts)
