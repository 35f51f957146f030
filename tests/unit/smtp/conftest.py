"""Ways to the scripted SMTP server, one by one or through a pool; all are hung up at the end."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network

import pytest
from anyio.lowlevel import checkpoint

from cbemail.hosts import MailHosts, MailServer, Password, Secret, Security
from cbemail.ids import SessionId
from cbemail.smtp.connection import SubmissionConnection, open_submission
from cbemail.smtp.envelope import Envelope
from cbemail.smtp.outcome import Accepted
from cbemail.smtp.pool import SmtpPool
from cbemail.smtp.timeouts import DEFAULT_TIMEOUTS, Timeouts
from tests.certificates import Certificates
from tests.fakes.listener import Listener
from tests.fakes.scripted_smtp import EXTENSIONS, PASSWORD, ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink

USER = "joe@example.org"
IMPATIENT = 0.2  # seconds; only ever for the one thing a test makes stall
ONE_AT_A_TIME = tuple(each for each in EXTENSIONS if each != "PIPELINING")
GOOD_PASSWORD = Password(PASSWORD)

LOGIN_OCTETS = [  # what a password looks like on the wire
    PASSWORD.encode(),
    base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()),
    base64.b64encode(PASSWORD.encode()),
]

JOE, ANN, BOB = SessionId("ses_joe"), SessionId("ses_ann"), SessionId("ses_bob")
ENVELOPE = Envelope("joe@example.org", ("ann@example.net",), b"Subject: hello\r\n\r\nhello\r\n")

Open = Callable[..., Awaitable[SubmissionConnection]]
MakePool = Callable[..., SmtpPool]


@pytest.fixture
def hosts(certificates: Certificates) -> MailHosts:
    """Loopback is allowed, and the test run's own authority trusted."""
    return MailHosts(
        allow_networks=[ip_network("127.0.0.0/8")], allow_ports=(), ca_file=certificates.ca_file
    )


@pytest.fixture(params=[EXTENSIONS, ONE_AT_A_TIME], ids=["pipelined", "one-at-a-time"])
def server(smtp_server: ScriptedSmtp, request: pytest.FixtureRequest) -> ScriptedSmtp:
    """A scripted server with PIPELINING, and one without."""
    smtp_server.extensions = request.param
    return smtp_server


@pytest.fixture
async def tls_server(certificates: Certificates) -> AsyncIterator[ScriptedSmtp]:
    async with ScriptedSmtp(tls=certificates.server_context(), implicit_tls=True) as server:
        yield server


@pytest.fixture
async def open_to(hosts: MailHosts) -> AsyncIterator[Open]:
    """Opens a connection to a server of the test, in the clear unless told otherwise."""
    async with AsyncExitStack() as goodbyes:

        async def opened(
            server: Listener | SmtpSink,
            security: Security = Security.NONE,
            *,
            host: str = "127.0.0.1",
            secret: Secret = GOOD_PASSWORD,
            username: str = USER,
            timeouts: Timeouts = DEFAULT_TIMEOUTS,
        ) -> SubmissionConnection:
            address = MailServer(host, server.port, security, username)
            connection = await open_submission(address, secret, hosts, timeouts)
            goodbyes.push_async_callback(connection.close)
            return connection

        yield opened


@pytest.fixture
async def make_pool(smtp_server: ScriptedSmtp, open_to: Open) -> AsyncIterator[MakePool]:
    """Pools of connections to the scripted server; every session has its mail there, unless `host_of` differs."""

    async def connect(session_id: SessionId) -> SubmissionConnection:
        return await open_to(smtp_server, username=session_id)

    def host_of(session_id: SessionId) -> str:
        return "mail.example.test"

    async with AsyncExitStack() as closing:

        def made(**options) -> SmtpPool:
            pool = SmtpPool(**{"connect": connect, "host_of": host_of, **options})
            closing.push_async_callback(pool.aclose)
            return pool

        yield made


def never_saw_a_login(server: ScriptedSmtp) -> bool:
    return server.count("AUTH") == 0 and not any(each in server.received for each in LOGIN_OCTETS)


async def send(pool: SmtpPool, session_id: SessionId) -> None:
    async with pool.lease(session_id) as connection:
        assert isinstance(await connection.submit(ENVELOPE), Accepted)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await checkpoint()


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop its turns until the condition holds; a test that waits for nothing fails."""
    async with asyncio.timeout(10):
        while not condition():
            await checkpoint()
