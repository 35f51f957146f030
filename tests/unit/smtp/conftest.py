"""A way to the scripted SMTP server, and connections to it that are hung up at the end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network

import pytest

from cbemail.hosts import MailHosts, MailServer, Password, Secret, Security
from cbemail.smtp.connection import SubmissionConnection, open_submission
from cbemail.smtp.timeouts import DEFAULT_TIMEOUTS, Timeouts
from tests.certificates import Certificates
from tests.fakes.listener import Listener
from tests.fakes.scripted_smtp import PASSWORD

USER = "joe@example.org"
GOOD_PASSWORD = Password(PASSWORD)

Open = Callable[..., Awaitable[SubmissionConnection]]


@pytest.fixture
def hosts(certificates: Certificates) -> MailHosts:
    """Loopback is allowed, and the test run's own authority trusted."""
    return MailHosts(
        allow_networks=[ip_network("127.0.0.0/8")], allow_ports=(), ca_file=certificates.ca_file
    )


@pytest.fixture
async def open_to(hosts: MailHosts) -> AsyncIterator[Open]:
    """Opens a connection to a server of the test, in the clear unless told otherwise."""
    async with AsyncExitStack() as goodbyes:

        async def opened(
            server: Listener,
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
