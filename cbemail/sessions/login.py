"""The proof of a mailbox: a login at its IMAP and its SMTP server, both at once, before anything is stored."""

import asyncio
from time import perf_counter

from msgspec import Struct, structs

from cbemail.errors import CbemailError, CredentialsRejected, HostNotAllowed
from cbemail.hosts import MailHosts, MailServer, Secret
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import open_imap
from cbemail.sessions.oauth2 import Grant
from cbemail.smtp.connection import SubmissionConnection, open_submission


class Login(Struct, frozen=True):
    """The two servers of a mailbox, and what opens them. With a ``grant`` both secrets are the one access token it was
    exchanged for; an empty one, where it has not been yet."""

    imap: MailServer
    imap_secret: Secret
    smtp: MailServer
    smtp_secret: Secret
    grant: Grant | None = None


async def vetted(login: Login, hosts: MailHosts) -> Login:
    """``login`` with its hosts judged and in the one spelling to keep them in. What is forbidden is told before
    anything is contacted.

    Raises:
        HostNotAllowed, UpstreamUnavailable, UpstreamTimeout
    """
    imap, smtp = login.imap, login.smtp
    names = await asyncio.gather(
        hosts.vet(imap.host, imap.port, imap.security),
        hosts.vet(smtp.host, smtp.port, smtp.security),
    )
    return structs.replace(
        login,
        imap=structs.replace(imap, host=names[0]),
        smtp=structs.replace(smtp, host=names[1]),
    )


async def log_in(login: Login, hosts: MailHosts) -> tuple[ImapConnection, SubmissionConnection]:
    """Log in to both servers, side by side, and give the two connections.

    Where both fail, a refused login is told rather than a server that cannot be reached: it is what the caller can
    change. IMAP comes before SMTP.

    Raises:
        HostNotAllowed, CredentialsRejected, UpstreamUnavailable, UpstreamTimeout, UpstreamError
    """
    imap = asyncio.create_task(open_imap(login.imap, login.imap_secret, hosts))
    smtp = asyncio.create_task(open_submission(login.smtp, login.smtp_secret, hosts))
    both = False
    try:
        await asyncio.wait({imap, smtp})
        failures = [error for task in (imap, smtp) if (error := task.exception()) is not None]
        if failures:
            raise min(failures, key=_rank)
        both = True
        return imap.result(), smtp.result()
    finally:
        if not both:
            _discard(imap)
            _discard(smtp)


def _discard(opening: asyncio.Task[ImapConnection] | asyncio.Task[SubmissionConnection]) -> None:
    """Close what the task has opened, or may open yet."""
    opening.cancel()
    opening.add_done_callback(_abort_opened)


def _abort_opened(
    opened: asyncio.Task[ImapConnection] | asyncio.Task[SubmissionConnection],
) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().abort()


def _rank(failure: BaseException) -> int:
    if not isinstance(failure, CbemailError):
        return 0  # a defect of ours, or a cancellation: not to be hidden behind another's refusal
    return 1 if isinstance(failure, CredentialsRejected | HostNotAllowed) else 2


class ServerHealth(Struct, frozen=True):
    """One login, just made: how long it took, or the code of what went wrong."""

    ok: bool
    latency_ms: int
    error: str | None


async def check_logins(login: Login, hosts: MailHosts) -> tuple[ServerHealth, ServerHealth]:
    """Log in to both servers and out again, and say how it went."""
    return await asyncio.gather(_check_imap(login, hosts), _check_smtp(login, hosts))


async def _check_imap(login: Login, hosts: MailHosts) -> ServerHealth:
    start = perf_counter()
    try:
        connection = await open_imap(login.imap, login.imap_secret, hosts)
    except CbemailError as error:
        return _health(start, error)
    connection.close()
    return _health(start)


async def _check_smtp(login: Login, hosts: MailHosts) -> ServerHealth:
    start = perf_counter()
    try:
        connection = await open_submission(login.smtp, login.smtp_secret, hosts)
    except CbemailError as error:
        return _health(start, error)
    health = _health(start)
    await connection.close()
    return health


def _health(start: float, error: CbemailError | None = None) -> ServerHealth:
    latency = round((perf_counter() - start) * 1000)
    return ServerHealth(error is None, latency, error.code if error is not None else None)
