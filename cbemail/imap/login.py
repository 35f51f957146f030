"""From a host name to an authenticated connection: TCP, TLS or STARTTLS, greeting, login, capabilities.

Nothing is sent before a valid greeting, no credential before TLS where TLS is due, and nothing learnt before TLS or
login is believed after it (RFC 9051 sections 6.2.1 and 11.1).
"""

import asyncio
import base64
import ssl
from collections.abc import Iterable

from cbemail.errors import UpstreamError, UpstreamTimeout
from cbemail.hosts import AccessToken, MailHosts, MailServer, Secret, Security
from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.parser import capabilities
from cbemail.imap.protocol import Response, ResponseCode, StatusResponse, Untagged
from cbemail.imap.refusals import farewell, login_refusal, lost, silence
from cbemail.imap.wire import Command, astring
from cbemail.sasl import BEARER_MECHANISMS, LAST_WORDS, bearer, plain
from cbemail.sockets import acknowledge_at_once
from cbemail.timing import spent_on

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
    connection.account = f"{server.username}@{server.host}"
    try:
        greeting = await _greeting(connection)
        if server.security is Security.STARTTLS:
            await _start_tls(connection, server, hosts, greeting)
        else:
            _learn(connection, [greeting])
        if not connection.capabilities:
            await _ask_capabilities(connection)
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
    except OSError as exc:  # TimeoutError and ssl.SSLError among them
        raise _tls_failure(exc) from exc
    acknowledge_at_once(sock)
    return connection


def _tls_failure(exc: OSError) -> UpstreamError:
    if isinstance(exc, TimeoutError):
        return silence()
    if isinstance(exc, ssl.SSLCertVerificationError):
        return UpstreamError(
            "The certificate of the IMAP server is not valid for its name.", protocol="imap"
        )
    if isinstance(exc, ssl.SSLError):
        return UpstreamError("The IMAP server does not speak TLS as it should.", protocol="imap")
    return lost()


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
        raise farewell(greeting)
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
    await upgrade(connection, hosts.tls, server.host)


async def upgrade(connection: ImapConnection, context: ssl.SSLContext, server_name: str) -> None:
    """Go on in TLS, after the OK to STARTTLS, as if nothing had been said before.

    Whatever stands behind that OK in the clear may be anybody's, and was put there to be believed after the handshake:
    it ends the connection.

    Raises:
        UpstreamError: there was something, or the handshake failed.
        UpstreamUnavailable, UpstreamTimeout: the connection was lost, or the server is silent.
    """
    if not connection.is_quiet:
        raise UpstreamError("The IMAP server spoke out of turn when TLS was due.", protocol="imap")
    if connection.broken:
        raise lost()
    connection.capabilities = frozenset()
    try:
        with spent_on("imap"):
            async with asyncio.timeout(TLS_SECONDS):
                transport: asyncio.Transport | None = await connection.loop.start_tls(
                    connection.transport, connection, context, server_hostname=server_name
                )
    except OSError as exc:
        raise _tls_failure(exc) from exc
    if transport is None or connection.broken:  # lost meanwhile, for no reason that asyncio knows
        raise lost()
    connection.transport = transport


# ---- who we are


async def _authenticate(connection: ImapConnection, server: MailServer, secret: Secret) -> None:
    if isinstance(secret, AccessToken):
        completion = await _by_token(connection, server, secret.value)
    elif "AUTH=PLAIN" in connection.capabilities:
        completion = await _sasl(connection, "PLAIN", plain(server.username, secret.value))
    elif "LOGINDISABLED" not in connection.capabilities:
        login = Command("LOGIN", (astring(server.username), astring(secret.value)))
        (completion,) = await connection.run(login)
    else:
        raise UpstreamError(
            "The IMAP server offers no way to log in with a password on this connection.",
            protocol="imap",
        )
    if not completion.ok:
        raise login_refusal(completion.status)
    if not _learn(connection, [completion.status, *completion.responses]):
        await _ask_capabilities(connection)


async def _by_token(connection: ImapConnection, server: MailServer, token: str) -> Completion:
    for mechanism in BEARER_MECHANISMS:
        if f"AUTH={mechanism}" in connection.capabilities:
            initial = bearer(mechanism, server.username, token, host=server.host, port=server.port)
            return await _sasl(connection, mechanism, initial, LAST_WORDS[mechanism])
    raise UpstreamError("The IMAP server does not offer OAuth2 logins.", protocol="imap")


async def _sasl(
    connection: ImapConnection, mechanism: str, initial: bytes, last_words: bytes = b""
) -> Completion:
    """One client message. A further challenge is a refusal with its reasons: the last words end it."""
    answers = [base64.b64encode(initial), base64.b64encode(last_words)]
    arguments = [mechanism.encode()]
    if "SASL-IR" in connection.capabilities:  # RFC 4959: a round trip less
        arguments.append(answers.pop(0))
    return await connection.run_dialogue(Command("AUTHENTICATE", tuple(arguments)), answers)


# ---- what the server can do


def _learn(connection: ImapConnection, responses: Iterable[Response]) -> bool:
    """Take the capabilities that ``responses`` tell, if they do. They are never merged with older ones: what a server
    offers before login or TLS says nothing about after (RFC 9051 sections 6.2.1 and 7.2.2)."""
    connection.capabilities = frozenset()
    for response in responses:
        told = response.code if isinstance(response, StatusResponse) else response
        if isinstance(told, ResponseCode | Untagged) and told.name == "CAPABILITY":
            connection.capabilities = capabilities(told)
            return True
    return False


async def _ask_capabilities(connection: ImapConnection) -> None:
    completion = await connection.run_one(_CAPABILITY)
    _learn(connection, completion.responses)
