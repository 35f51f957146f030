"""Opening a submission connection: TLS or nothing, one login, and every way that can fail."""

import asyncio
import ssl
from pathlib import Path

import aiosmtplib
import pytest
import uvloop

from cbemail.errors import (
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import MailHosts, MailServer, Password, Security
from cbemail.smtp.connection import _translate, open_submission
from cbemail.smtp.envelope import Envelope
from cbemail.smtp.outcome import Accepted
from cbemail.smtp.timeouts import Timeouts
from tests.certificates import Certificates
from tests.fakes.script import CUT, NORMAL, STALL, START_TLS, Trickle
from tests.fakes.script import Reply as Scripted
from tests.fakes.scripted_smtp import EXTENSIONS, PASSWORD, ScriptedSmtp
from tests.unit.smtp.conftest import ENVELOPE, IMPATIENT, USER, Open, never_saw_a_login, until

LARGE = Envelope("joe@example.org", ("ann@example.net",), (b"x" * 998 + b"\r\n") * 5_000)
SOON = Timeouts(step=IMPATIENT)


# ---- TLS


async def test_implicit_tls_carries_messages(tls_server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(tls_server, Security.TLS)

    outcomes = [await connection.submit(ENVELOPE), await connection.submit(LARGE)]

    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert [each.content for each in tls_server.messages] == [ENVELOPE.content, LARGE.content]
    assert tls_server.messages[0].user == USER


async def test_starttls_carries_messages(smtp_server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(smtp_server, Security.STARTTLS)

    outcomes = [await connection.submit(ENVELOPE), await connection.submit(LARGE)]

    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert smtp_server.count("EHLO") == 2, "what was offered in the clear does not count"
    assert [each.content for each in smtp_server.messages] == [ENVELOPE.content, LARGE.content]


@pytest.mark.parametrize("security", Security)
def test_the_transport_of_uvloop_is_taken_over_as_well(
    certificates: Certificates, hosts: MailHosts, security: Security
) -> None:
    async def conversation() -> list[bytes]:
        async with ScriptedSmtp(
            tls=certificates.server_context(), implicit_tls=security is Security.TLS
        ) as server:
            address = MailServer("127.0.0.1", server.port, security, USER)
            connection = await open_submission(address, Password(PASSWORD), hosts)
            await connection.submit(ENVELOPE)
            await connection.submit(LARGE)
            await connection.close()
            return [each.content for each in server.messages]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        contents = runner.run(conversation())

    assert contents == [ENVELOPE.content, LARGE.content]


async def test_a_server_without_starttls_never_sees_the_login(open_to: Open) -> None:
    async with ScriptedSmtp() as server:
        with pytest.raises(UpstreamError, match="does not offer STARTTLS") as caught:
            await open_to(server, Security.STARTTLS)

    assert caught.type is UpstreamError
    assert never_saw_a_login(server)


@pytest.mark.parametrize(
    "said", [b"454 4.7.0 TLS not available\r\n", b"500 what?\r\n", b"220\r\n", b"HTTP/1.1 400\r\n"]
)
async def test_a_server_that_does_not_start_tls_never_sees_the_login(
    smtp_server: ScriptedSmtp, open_to: Open, said: bytes
) -> None:
    smtp_server.on("STARTTLS", said)

    with pytest.raises(UpstreamError) as caught:
        await open_to(smtp_server, Security.STARTTLS, timeouts=SOON)

    assert caught.value.code in {"upstream-error", "upstream-timeout"}
    assert never_saw_a_login(smtp_server)


async def test_what_was_injected_before_tls_is_forgotten(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    """An attacker on the way appends replies in the clear; believed, they would stand in for the real EHLO."""
    injected = b"250-mail.evil\r\n250 AUTH XOAUTH2\r\n235 2.7.0 welcome\r\n"
    smtp_server.on("STARTTLS", (b"220 go\r\n" + injected, START_TLS))

    connection = await open_to(smtp_server, Security.STARTTLS)
    await connection.submit(ENVELOPE)

    assert smtp_server.count("AUTH PLAIN") == 1
    assert smtp_server.messages[0].user == USER


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_a_certificate_of_an_unknown_authority_never_sees_the_login(
    tmp_path: Path, open_to: Open, security: Security
) -> None:
    others = Certificates.issue(tmp_path)
    context = others.server_context()
    async with ScriptedSmtp(tls=context, implicit_tls=security is Security.TLS) as server:
        with pytest.raises(UpstreamError, match="certificate") as caught:
            await open_to(server, security)

    assert caught.type is UpstreamError
    assert never_saw_a_login(server)


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_the_host_the_session_named_is_what_the_certificate_must_name(
    tmp_path: Path, security: Security, open_to: Open, hosts: MailHosts
) -> None:
    """Trusted authority, wrong name: only the name can be what is refused."""
    others = Certificates.issue(tmp_path, "localhost")
    hosts.tls.load_verify_locations(others.ca_file)
    context = others.server_context()
    async with ScriptedSmtp(tls=context, implicit_tls=security is Security.TLS) as server:
        await open_to(server, security, host="localhost")
        with pytest.raises(UpstreamError, match="certificate"):
            await open_to(server, security, host="127.0.0.1")


async def test_a_server_that_speaks_no_tls_is_an_upstream_error(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    with pytest.raises(UpstreamError, match="TLS") as caught:
        await open_to(smtp_server, Security.TLS)

    assert caught.type is UpstreamError
    assert never_saw_a_login(smtp_server)


# ---- servers that do not play along


STEPS = ["connect", "EHLO", "STARTTLS", "AUTH"]


def security_for(step: str) -> Security:
    return Security.STARTTLS if step == "STARTTLS" else Security.NONE


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("said", "error"),
    [
        (CUT, UpstreamUnavailable),
        (STALL, UpstreamTimeout),
        ((b"2", CUT), UpstreamUnavailable),
        (b"250-more\r\n" * 5_000, UpstreamError),
        (b"2x0 what\r\n", UpstreamError),
    ],
    ids=["cut", "stall", "cut-inside", "endless", "bad-code"],
)
async def test_a_server_that_fails_while_opening_is_told_apart(
    smtp_server: ScriptedSmtp, open_to: Open, step: str, said: Scripted, error: type[UpstreamError]
) -> None:
    smtp_server.on(step, said)

    with pytest.raises(UpstreamError) as caught:
        await open_to(smtp_server, security_for(step), timeouts=SOON)

    assert caught.type is error
    assert caught.value.protocol == "smtp"


@pytest.mark.parametrize(
    ("greeting", "error"),
    [(b"421 4.3.2 busy\r\n", UpstreamUnavailable), (b"554 5.7.1 not you\r\n", UpstreamError)],
)
async def test_a_greeting_may_be_a_refusal(
    smtp_server: ScriptedSmtp, open_to: Open, greeting: bytes, error: type[UpstreamError]
) -> None:
    smtp_server.on("connect", greeting)

    with pytest.raises(UpstreamError) as caught:
        await open_to(smtp_server)

    assert caught.type is error
    assert "not you" not in caught.value.detail


async def test_a_server_that_drips_for_ever_meets_the_deadline_of_the_whole(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.on("EHLO", (Trickle(b"250-slow"), STALL))

    with pytest.raises(UpstreamTimeout):
        await open_to(smtp_server, timeouts=Timeouts(opening=0.3))


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancelled_opening_leaves_nothing_open(
    smtp_server: ScriptedSmtp, open_to: Open, step: str
) -> None:
    smtp_server.on(step, STALL)
    opening = asyncio.ensure_future(open_to(smtp_server, security_for(step)))
    await until(
        lambda: bool(smtp_server.count(step) or (step == "connect" and smtp_server.connections))
    )

    opening.cancel()

    with pytest.raises(asyncio.CancelledError):
        await opening  # `nothing_left_behind` does the rest


async def test_a_server_without_a_name_for_us_gets_our_address(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    await open_to(smtp_server)

    assert smtp_server.commands[0] == b"EHLO [127.0.0.1]"


async def test_extensions_are_those_offered_after_tls(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    """PIPELINING promised in the clear could make us talk ahead of a server that cannot follow."""
    without = tuple(each for each in EXTENSIONS if each != "PIPELINING")
    promised = b"250-mail.example.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n"
    smtp_server.extensions = without
    smtp_server.on("EHLO", promised, NORMAL)
    connection = await open_to(smtp_server, Security.STARTTLS, timeouts=Timeouts(command=IMPATIENT))
    smtp_server.on("MAIL", STALL)

    await connection.submit(ENVELOPE)

    assert smtp_server.received.endswith(b"\r\n")
    assert b"RCPT" not in smtp_server.received


# ---- the translation is complete

EXPORTED = [
    each
    for name in aiosmtplib.__all__
    if isinstance(each := getattr(aiosmtplib, name), type) and issubclass(each, Exception)
]
BAD_CERTIFICATE = ssl.SSLCertVerificationError(1, "self-signed")


def an_instance(kind: type[Exception]) -> Exception:
    arguments: dict[type[Exception], tuple[object, ...]] = {
        aiosmtplib.SMTPSenderRefused: (550, "no", "a@b"),
        aiosmtplib.SMTPRecipientRefused: (550, "no", "a@b"),
        aiosmtplib.SMTPRecipientsRefused: ([],),
    }
    response = issubclass(kind, aiosmtplib.SMTPResponseException)
    return kind(*arguments.get(kind, (550, "no") if response else ("no",)))


@pytest.mark.parametrize("kind", EXPORTED)
@pytest.mark.parametrize("command", STEPS)
def test_every_exception_of_the_library_becomes_one_of_ours(
    kind: type[Exception], command: str
) -> None:
    assert len(EXPORTED) >= 15

    error = _translate(an_instance(kind), command)

    assert isinstance(error, UpstreamError)
    assert isinstance(error, UpstreamTimeout) == issubclass(kind, TimeoutError)
    assert error.command == command
    assert error.detail.startswith(("The SMTP server", "The certificate"))


@pytest.mark.parametrize(
    ("exc", "error"),
    [
        (BAD_CERTIFICATE, UpstreamError),
        (ssl.SSLError(1, "wrong version"), UpstreamError),
        (TimeoutError(), UpstreamTimeout),
        (ConnectionResetError(), UpstreamUnavailable),
        (OSError(113, "no route"), UpstreamUnavailable),
    ],
)
def test_what_the_system_raises_beneath_the_library_is_translated_too(
    exc: OSError, error: type[UpstreamError]
) -> None:
    wrapped = aiosmtplib.SMTPConnectError("no")
    wrapped.__cause__ = exc

    assert type(_translate(exc, "STARTTLS")) is error
    assert type(_translate(wrapped, "connect")) is error
