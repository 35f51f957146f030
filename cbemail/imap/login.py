"""From a host name to an authenticated connection: TCP, TLS or STARTTLS, greeting, login, capabilities.

Nothing is sent before a valid greeting, no credential before TLS where TLS is due, and nothing learnt before TLS or
login is believed after it (RFC 9051 sections 6.2.1 and 11.1).
"""

import asyncio
import base64
import logging
import ssl

from cbemail.errors import (
    CredentialsRejected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import AccessToken, MailHosts, MailServer, Secret, Security
from cbemail.imap.connection import (
    Completion,
    ImapConnection,
    ServerLimit,
    said_bye,
    speaks_of_a_limit,
)
from cbemail.imap.protocol import StatusResponse
from cbemail.imap.wire import Command, astring
from cbemail.timing import spent_on

log = logging.getLogger(__name__)

TLS_SECONDS = 10.0
GREETING_SECONDS = 30.0

_CAPABILITY = Command("CAPABILITY")
_STARTTLS = Command("STARTTLS")


async def open_imap(server: MailServer, secret: Secret, hosts: MailHosts) -> ImapConnection:
    """Connect to ``server`` and log in.

    Raises:
        HostNotAllowed: the address may not be contacted.
        CredentialsRejected: the server refused the login.
        ServerLimit: the server allows no further connection of this mailbox now.
        UpstreamUnavailable, UpstreamTimeout: it cannot be reached, hung up, or is silent.
        UpstreamError: it is no IMAP server, its certificate is not good, or it does not offer what is required.
    """
    connection = await _connect(server, hosts)
    try:
        greeting = await _greeting(connection)
        if server.security is Security.STARTTLS:
            await _start_tls(connection, server, hosts, greeting)
        else:
            connection.refresh_capabilities([greeting])
        if greeting.status != "PREAUTH":
            await _authenticate(connection, server, secret)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _connect(server: MailServer, hosts: MailHosts) -> ImapConnection:
    sock = await hosts.open_socket(server.host, server.port, server.security)
    implicit = server.security is Security.TLS
    try:
        with spent_on("imap"):
            async with asyncio.timeout(TLS_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    ImapConnection,
                    sock=sock,
                    ssl=hosts.tls if implicit else None,
                    server_hostname=server.host if implicit else None,
                )
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError):  # TimeoutError and ssl.SSLError among them
            raise _tls_failure(exc) from exc
        raise
    return connection


def _tls_failure(exc: OSError) -> UpstreamError:
    if isinstance(exc, TimeoutError):
        return UpstreamTimeout(
            "The mail server did not answer in time.", protocol="imap", retry_after=10
        )
    if isinstance(exc, ssl.SSLCertVerificationError):
        return UpstreamError(
            "The certificate of the IMAP server is not valid for its name.", protocol="imap"
        )
    if isinstance(exc, ssl.SSLError):
        return UpstreamError("The IMAP server does not speak TLS as it should.", protocol="imap")
    return UpstreamUnavailable(
        "The IMAP server closed the connection.", protocol="imap", retry_after=10
    )


async def _greeting(connection: ImapConnection) -> StatusResponse:
    try:
        with spent_on("imap"):
            async with asyncio.timeout(GREETING_SECONDS):
                greeting = await connection.greeting
    except TimeoutError as exc:
        raise UpstreamTimeout(
            "The IMAP server did not greet in time.", protocol="imap", retry_after=10
        ) from exc
    if greeting.status == "BYE":
        raise said_bye(greeting)
    if greeting.status not in {"OK", "PREAUTH"}:
        raise UpstreamError("The server does not greet as an IMAP server does.", protocol="imap")
    return greeting


async def _start_tls(
    connection: ImapConnection, server: MailServer, hosts: MailHosts, greeting: StatusResponse
) -> None:
    """RFC 9051 section 6.2.1. A server that cannot is refused: going on in the clear is what an attacker wants."""
    if greeting.status == "PREAUTH":  # it never allows STARTTLS any more (RFC 9051 section 11.1)
        raise UpstreamError(
            "The IMAP server skipped TLS, which this session requires.", protocol="imap"
        )
    (completion,) = await connection.run(_STARTTLS)
    if not completion.ok:
        raise UpstreamError(
            "The IMAP server does not offer STARTTLS.", protocol="imap", command="STARTTLS"
        )
    connection.forget_buffered()
    try:
        with spent_on("imap"):
            connection.transport = await connection.loop.start_tls(
                connection.transport,
                connection,
                hosts.tls,
                server_hostname=server.host,
                ssl_handshake_timeout=TLS_SECONDS,
            )
    except OSError as exc:
        raise _tls_failure(exc) from exc


async def _authenticate(connection: ImapConnection, server: MailServer, secret: Secret) -> None:
    if not connection.capabilities:
        await _learn_capabilities(connection)
    if isinstance(secret, AccessToken):
        completion = await _authenticate_xoauth2(connection, server.username, secret.value)
    elif {"AUTH=PLAIN", "SASL-IR"} <= connection.capabilities:
        completion = await _authenticate_plain(connection, server.username, secret.value)
    elif "LOGINDISABLED" not in connection.capabilities:
        completion = await _login(connection, server.username, secret.value)
    elif "AUTH=PLAIN" in connection.capabilities:
        completion = await _authenticate_plain(connection, server.username, secret.value)
    else:
        raise UpstreamError(
            "The IMAP server offers no way to log in with a password on this connection.",
            protocol="imap",
        )
    if not completion.ok:
        raise _login_refused(completion.status)
    connection.capabilities = frozenset()
    if not connection.refresh_capabilities([completion.status, *completion.responses]):
        await _learn_capabilities(connection)


async def _learn_capabilities(connection: ImapConnection) -> None:
    completion = await connection.run_one(_CAPABILITY)
    connection.refresh_capabilities(completion.responses)


async def _login(connection: ImapConnection, username: str, password: str) -> Completion:
    (completion,) = await connection.run(Command("LOGIN", (astring(username), astring(password))))
    return completion


async def _authenticate_plain(
    connection: ImapConnection, username: str, password: str
) -> Completion:
    """RFC 4616: no authorisation identity, both values in UTF-8, so that any password can be sent."""
    return await _authenticate_sasl(connection, "PLAIN", f"\0{username}\0{password}".encode())


async def _authenticate_xoauth2(
    connection: ImapConnection, username: str, token: str
) -> Completion:
    message = f"user={username}\x01auth=Bearer {token}\x01\x01".encode()
    return await _authenticate_sasl(connection, "XOAUTH2", message)


async def _authenticate_sasl(
    connection: ImapConnection, mechanism: str, initial: bytes
) -> Completion:
    """One client message. A further challenge is a refusal with its reasons (XOAUTH2): the empty answer ends it."""
    encoded = base64.b64encode(initial)
    ahead = "SASL-IR" in connection.capabilities  # RFC 4959: a round trip less
    command = Command("AUTHENTICATE", (mechanism.encode(), *((encoded,) if ahead else ())))
    answers = iter(() if ahead else (encoded,))
    return await connection.continue_with(command, lambda _challenge: next(answers, b""))


def _login_refused(status: StatusResponse) -> Exception:
    """A NO to a login is the credentials' fault, unless the server says that it is its own (RFC 5530)."""
    code = status.code.name if status.code is not None else ""
    log.info("IMAP login refused: [%s] %s", code, status.text)
    if speaks_of_a_limit(status):
        return ServerLimit(
            "The mail server allows no more connections for this mailbox.",
            protocol="imap",
            retry_after=5,
        )
    if code in {"UNAVAILABLE", "INUSE", "SERVERBUG", "CONTACTADMIN"}:
        return UpstreamUnavailable(
            "The mail server cannot check the login at the moment.", protocol="imap", retry_after=30
        )
    if code == "PRIVACYREQUIRED":
        return UpstreamError("The IMAP server wants TLS before a login.", protocol="imap")
    return CredentialsRejected("The IMAP server refused the user name or password.")
