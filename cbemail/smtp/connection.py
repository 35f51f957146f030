"""One submission connection: aiosmtplib opens it and logs in, then it carries envelopes by our own protocol.

aiosmtplib cannot tell "not accepted" from "accepted, and the reply lost", nor can it pipeline. So it does what it
does well, TLS, EHLO and AUTH, and hands its transport over. Its exceptions end here.
"""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from typing import cast

import aiosmtplib

from cbemail.errors import (
    CbemailError,
    CredentialsRejected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import (
    MailHosts,
    MailServer,
    Password,
    Secret,
    Security,
    normalise_host,
)
from cbemail.sasl import BEARER_MECHANISMS, LAST_WORDS, bearer
from cbemail.smtp.channel import ChannelBroken, SmtpChannel
from cbemail.smtp.envelope import Envelope, Extensions
from cbemail.smtp.outcome import Interruption, NotSent, Outcome, Refused
from cbemail.smtp.replies import Phase, Reply, Verdict, classify, explain
from cbemail.smtp.timeouts import DEFAULT_TIMEOUTS, Timeouts
from cbemail.smtp.transaction import Transaction
from cbemail.sockets import acknowledging_at_once
from cbemail.timing import spent_on


class SubmissionConnection:
    """Carries one envelope after another, for one task at a time; a pool lends it out.

    It is *broken* once an answer was not read: timed out, cancelled, garbled or cut off. A broken connection has
    hung up already, and whatever is submitted on it is `NotSent`.
    """

    def __init__(self, channel: SmtpChannel, extensions: Extensions, timeouts: Timeouts) -> None:
        self._channel = channel
        self._extensions = extensions
        self._timeouts = timeouts
        self._left_open = False  # a transaction on the server, begun by MAIL and ended by nothing
        self._begun: Transaction | None = None  # sent with the content of the one before
        self.phase = Phase.MAIL  # of the latest transaction; FINAL after a cancellation: uncertain
        self.sent = 0  # transactions begun

    def is_usable(self) -> bool:
        """Between transactions, and as far as is known the server has not hung up. No I/O."""
        return self._channel.usable

    def goes_on(self) -> bool:
        """Usable, or only for the message that has begun already."""
        return self.is_usable() if self._begun is None else self._channel.is_open

    async def submit(self, envelope: Envelope, following: Envelope | None = None) -> Outcome:
        """Send one message to its recipients, and say what became of it. Never tries twice.

        ``following`` begins in the same write as the content of this one ends, where the server allows it (RFC 2920
        section 3.1): over a long way that halves the time. `has_begun` tells; then it has to be submitted next, or
        the connection given up, by which it was not sent.

        Cancelled before the final dot, the message is taken back by hanging up. After it nothing can do that: a
        caller who needs the outcome shields the call, or looks at ``phase``.

        Raises:
            ValueError: an address is not in envelope form, or there is no recipient. Nothing was sent.
        """
        self.phase = Phase.MAIL
        with spent_on("smtp"):
            try:
                if self._left_open:
                    await self._reset()
            except ChannelBroken as broken:
                return NotSent(broken.reason, Phase.MAIL)
            transaction = self._take_begun(envelope) or self._transaction(envelope)
            behind = self._transaction(following) if following is not None else None
            self.sent += 1
            try:
                outcome = await transaction.run(behind)
            finally:
                self.phase = transaction.phase
            if behind is not None and behind.begun:
                self._begun = behind
        if isinstance(outcome, Refused):
            self._left_open = outcome.phase in (Phase.RCPT, Phase.DATA)
        return outcome

    def has_begun(self, envelope: Envelope) -> bool:
        """Whether this message was begun with the one before."""
        return self._begun is not None and self._begun.envelope is envelope

    def _take_begun(self, envelope: Envelope) -> Transaction | None:
        begun, self._begun = self._begun, None
        if begun is not None and begun.envelope is not envelope:
            self.abort()
            raise ValueError("another message has begun")
        return begun

    def _transaction(self, envelope: Envelope) -> Transaction:
        return Transaction(self._channel, self._extensions, self._timeouts, envelope)

    async def check(self) -> bool:
        """Whether the server still answers. One that does not is hung up on."""
        with spent_on("smtp"):
            try:
                await self._reset()
            except ChannelBroken:
                return False
            return True

    def abort(self) -> None:
        """Hang up at once, without QUIT."""
        self._channel.abort()

    async def close(self) -> None:
        """QUIT, without much patience for the answer, and hang up."""
        await self._channel.close(self._timeouts.quit)

    async def _reset(self) -> None:
        """RSET: as harmless as NOOP, and it clears away a transaction left open (RFC 5321 4.1.1.5)."""
        self._channel.send(b"RSET\r\n", replies=1)
        reply = await self._channel.reply(self._timeouts.reset)
        if not reply.positive:
            raise self._channel.fail(Interruption.GARBLED)
        self._left_open = False


# ---- opening one


async def open_submission(
    server: MailServer, secret: Secret, hosts: MailHosts, timeouts: Timeouts = DEFAULT_TIMEOUTS
) -> SubmissionConnection:
    """Connect to a submission server and log in.

    With ``tls`` or ``starttls`` not an octet of the login leaves in the clear, whatever the server offers or fails
    to offer. A server that knows no AUTH at all is used without only where the session said ``security: none``.

    Raises:
        HostNotAllowed: the host may not be contacted.
        CredentialsRejected: the server refused the login.
        UpstreamUnavailable: it cannot be reached, hung up, or asks to come back later.
        UpstreamTimeout: it took too long.
        UpstreamError: its certificate, its lack of STARTTLS or AUTH, or its answers cannot be accepted.
    """
    sock = await hosts.open_socket(server.host, server.port, server.security)
    client = aiosmtplib.SMTP(
        sock=sock,
        hostname=normalise_host(server.host),  # what the certificate has to name
        use_tls=server.security is Security.TLS,
        start_tls=False,  # never None, its default: that stays in the clear when STARTTLS is not offered
        tls_context=hosts.tls,
        local_hostname=_address_literal(sock.getsockname()[0]),
        timeout=timeouts.step,
    )
    with ExitStack() as on_failure:
        on_failure.callback(_hang_up, client)
        try:
            async with asyncio.timeout(timeouts.opening):
                with acknowledging_at_once(sock):
                    await _greet(client, server.security)
                await _log_in(client, server, secret)
        except TimeoutError as exc:
            raise UpstreamTimeout(_TOO_SLOW, protocol="smtp") from exc
        connection = _take_over(client, timeouts)
        on_failure.pop_all()
    return connection


async def _greet(client: aiosmtplib.SMTP, security: Security) -> None:
    with _translated("connect"):
        await client.connect()
    if security is Security.STARTTLS:
        with _translated("STARTTLS"):
            await client.starttls()  # fails where not offered; forgets EHLO (RFC 3207 4.2)
    with _translated("EHLO"):
        await client.ehlo()


async def _log_in(client: aiosmtplib.SMTP, server: MailServer, secret: Secret) -> None:
    """One login, by the first way that both sides know. A refused password is not tried in other clothes."""
    if _CONTROL.search(server.username) or _CONTROL.search(secret.value):
        raise CredentialsRejected("SMTP: The login holds a control character.")
    if not client.supports_extension("auth") and server.security is Security.NONE:
        return
    known: dict[str, _Method]
    if isinstance(secret, Password):
        known = {"plain": client.auth_plain, "login": client.auth_login}
    else:
        known = {
            each.lower(): partial(_auth_bearer, client, server, each) for each in BEARER_MECHANISMS
        }
    reply = Reply(504)  # RFC 4954 section 4: unrecognised authentication type
    for name, method in known.items():
        if name in client.server_auth_methods and reply.code == 504:
            reply = await _authenticate(method, server.username, secret.value)
    if not reply.positive:
        # Out here, so that the library's exception is no part of this one: a server may echo what it was sent.
        raise _login_refused(reply)


_Method = Callable[[str, str], Awaitable[aiosmtplib.SMTPResponse]]


async def _auth_bearer(
    client: aiosmtplib.SMTP, server: MailServer, mechanism: str, username: str, token: str
) -> aiosmtplib.SMTPResponse:
    """Here, since the library knows one of the two mechanisms only."""
    initial = bearer(mechanism, username, token, host=server.host, port=server.port)
    said = await client.execute_command(b"AUTH", mechanism.encode(), b64encode(initial))
    if said.code == 334:  # the reasons for a refusal
        said = await client.execute_command(b64encode(LAST_WORDS[mechanism]))
    return said


async def _authenticate(method: _Method, username: str, secret: str) -> Reply:
    """The server's last word on a login. The library insists on 235; any 2yz will do (RFC 5321 4.2.1)."""
    with _translated("AUTH"):
        try:
            said = await method(username, secret)
        except aiosmtplib.SMTPAuthenticationError as exc:
            return Reply.of(exc.code, exc.message)
        return Reply.of(said.code, said.message)


def _take_over(client: aiosmtplib.SMTP, timeouts: Timeouts) -> SubmissionConnection:
    transport = client.transport
    if transport is None or transport.is_closing():
        raise UpstreamUnavailable(_HUNG_UP, protocol="smtp", retry_after=_RETRY_AFTER)
    # What asyncio and uvloop give for a socket is always a Transport, whatever the library's annotation says.
    channel = SmtpChannel(cast(asyncio.Transport, transport))
    return SubmissionConnection(channel, Extensions.of(client.esmtp_extensions), timeouts)


def _hang_up(client: aiosmtplib.SMTP) -> None:
    """At once: closing in good order would wait for a TLS peer that may have stopped answering."""
    if client.transport is not None:
        cast(asyncio.Transport, client.transport).abort()
    client.close()


def _address_literal(address: str) -> str:
    """Who we are to EHLO: a client without a name of its own gives its address (RFC 5321 4.1.4, 4.1.3).

    >>> _address_literal("192.0.2.1"), _address_literal("2001:db8::1")
    ('[192.0.2.1]', '[IPv6:2001:db8::1]')
    """
    return f"[{address}]" if ip_address(address).version == 4 else f"[IPv6:{address}]"


# ---- the library's exceptions, as ours

_RETRY_AFTER = 30  # seconds
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # NUL and ^A end a field of PLAIN and XOAUTH2
_HUNG_UP = "The SMTP server closed the connection."
_TOO_SLOW = "The SMTP server took too long to answer."
_BAD_CERTIFICATE = "The certificate of the SMTP server is not valid for this host."
_BAD_TLS = "The SMTP server does not speak TLS as it should."
_NOT_UNDERSTOOD = {
    "connect": "The SMTP server refused the connection.",
    "STARTTLS": "The SMTP server does not offer STARTTLS.",
    "EHLO": "The SMTP server does not speak ESMTP.",
    "AUTH": "The SMTP server broke off the login.",
}


@contextmanager
def _translated(command: str) -> Iterator[None]:
    try:
        yield
    except (aiosmtplib.SMTPException, OSError) as exc:
        raise _translate(exc, command) from exc


def _translate(exc: Exception, command: str) -> UpstreamError:
    """What an exception of the library, or of the TLS layer beneath it, means to our callers."""
    roots = (exc, exc.__cause__)
    if any(isinstance(root, ssl.SSLError) for root in roots):
        bad_certificate = any(isinstance(root, ssl.SSLCertVerificationError) for root in roots)
        detail = _BAD_CERTIFICATE if bad_certificate else _BAD_TLS
        return UpstreamError(detail, protocol="smtp", command=command)
    # ConnectionAbortedError is how asyncio says that a TLS handshake took too long.
    if any(isinstance(root, TimeoutError | ConnectionAbortedError) for root in roots):
        return UpstreamTimeout(_TOO_SLOW, protocol="smtp", command=command)
    match exc:
        case aiosmtplib.SMTPResponseException():
            return _refused(Reply.of(exc.code, exc.message), command)
        case OSError():
            return UpstreamUnavailable(
                _HUNG_UP, protocol="smtp", command=command, retry_after=_RETRY_AFTER
            )
        case _:
            return UpstreamError(_NOT_UNDERSTOOD[command], protocol="smtp", command=command)


def _refused(reply: Reply, command: str) -> UpstreamError:
    """A negative reply, or none at all (the library's code for that is -1), to anything but AUTH."""
    response_code = _spell(reply)
    if 400 <= reply.code < 500 and command != "STARTTLS":  # to go on without it is not an option
        return UpstreamUnavailable(
            "The SMTP server cannot take the connection just now.",
            protocol="smtp",
            command=command,
            response_code=response_code,
            retry_after=_RETRY_AFTER,
        )
    return UpstreamError(
        _NOT_UNDERSTOOD[command], protocol="smtp", command=command, response_code=response_code
    )


def _login_refused(reply: Reply) -> CbemailError:
    if classify(reply, Phase.MAIL) is Verdict.CREDENTIALS:
        return CredentialsRejected(f"SMTP: {explain(reply, Phase.MAIL)}")
    if 400 <= reply.code < 500:
        return UpstreamUnavailable(
            "The SMTP server cannot check the login just now.",
            protocol="smtp",
            command="AUTH",
            response_code=_spell(reply),
            retry_after=_RETRY_AFTER,
        )
    return UpstreamError(
        "The SMTP server takes none of the ways to log in that these credentials allow.",
        protocol="smtp",
        command="AUTH",
        response_code=_spell(reply),
    )


def _spell(reply: Reply) -> str:
    return f"{reply.code} {reply.enhanced or ''}".strip()
