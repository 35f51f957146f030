"""Access tokens renewed in time: by one refresh at a time for a session, whoever waits for it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

from msgspec import structs

from cbemail.clock import Clock
from cbemail.errors import CbemailError, CredentialsRejected, UpstreamTimeout, UpstreamUnavailable
from cbemail.hosts import MailHosts
from cbemail.imap.connection import ImapConnection
from cbemail.sessions.login import Login, log_in
from cbemail.sessions.oauth2 import PROTOCOL, RETRY_SECONDS, exchange
from cbemail.smtp.connection import SubmissionConnection
from cbemail.store.records import SessionRecord
from cbemail.web import Web

log = logging.getLogger(__name__)

# Of the expiry: time for what begins with the token, and for clocks that differ.
AHEAD = timedelta(seconds=60)
# A token refused so soon after it was given is not refused for its age.
FRESH = timedelta(minutes=5)
CLOSING_SECONDS = 3.0

Keep = Callable[[SessionRecord, Login], Awaitable[None]]


class Renewals:
    """Renews the access tokens of sessions that have a grant.

    ``keep`` puts renewed credentials on disk in place of those the record has, unless others are there by then. It is
    called at once: where the endpoint has rotated the refresh token, a process that dies between its answer and the
    commit, a few milliseconds, leaves the session with one that is used up. Nobody is given an access token before.
    """

    def __init__(self, hosts: MailHosts, web: Web, clock: Clock, keep: Keep) -> None:
        self._hosts = hosts
        self._web = web
        self._clock = clock
        self._keep = keep
        # By the sealed credentials that are renewed: others of the same session are none of their business.
        self._under_way: dict[bytes, asyncio.Task[None]] = {}
        self._held: dict[bytes, tuple[float, UpstreamUnavailable | UpstreamTimeout]] = {}
        self._unkept: dict[bytes, Login] = {}
        self._refused: set[bytes] = set()
        self.outcomes: Counter[str] = Counter()  # renewed, refused, failed

    def is_due(self, record: SessionRecord, login: Login) -> bool:
        """Whether the token is about to expire, is being renewed, or is no good any more."""
        under_way = record.sealed_credentials in self._under_way
        return under_way or self.is_refused(record) or self.is_spent(login, ahead=AHEAD)

    def is_spent(self, login: Login, *, ahead: timedelta = timedelta()) -> bool:
        """Whether there is no token yet, or it has expired, or will have in that time."""
        grant = login.grant
        if grant is None:
            return False
        if not login.imap_secret.value:
            return True
        return grant.expires_at is not None and grant.expires_at - ahead <= self._clock()

    def note_refusal(self, record: SessionRecord) -> None:
        """A mail server has refused the token: it is not tried again, however long the endpoint is in trouble."""
        self._refused.add(record.sealed_credentials)

    def is_refused(self, record: SessionRecord) -> bool:
        return record.sealed_credentials in self._refused

    def may_renew(self, login: Login) -> bool:
        """Whether another token may be accepted where this one was refused: not if it is fresh from the endpoint, and
        has not expired since."""
        grant = login.grant
        if grant is None:
            return False
        is_fresh = grant.renewed_at is not None and self._clock() - grant.renewed_at <= FRESH
        return not is_fresh or self.is_spent(login)

    async def prove(self, login: Login) -> tuple[Login, ImapConnection, SubmissionConnection]:
        """Log in to both servers with new credentials; give the login as it is then. A grant gives the access token
        where there is none, or where the one at hand is refused. Nothing is stored: should the login fail with a
        refresh token that the endpoint has rotated, its owner has to authorise anew.

        Raises:
            HostNotAllowed, CredentialsRejected, UpstreamUnavailable, UpstreamTimeout, UpstreamError
        """
        if login.grant is not None:
            await self._web.vet(login.grant.token_url)
        if self.is_spent(login):
            login = await self._exchange(login)
        try:
            return login, *await log_in(login, self._hosts)
        except CredentialsRejected:
            if not self.may_renew(login):
                raise
        login = await self._exchange(login)
        return login, *await log_in(login, self._hosts)

    async def _exchange(self, login: Login) -> Login:
        if login.grant is None:
            raise ValueError("a login without a grant cannot be renewed")
        try:
            token, grant = await exchange(self._web, login.grant, self._clock)
        except CredentialsRejected:
            self.outcomes["refused"] += 1
            raise
        except CbemailError:
            self.outcomes["failed"] += 1
            raise
        self.outcomes["renewed"] += 1
        return structs.replace(login, imap_secret=token, smtp_secret=token, grant=grant)

    async def renew(self, record: SessionRecord, login: Login) -> None:
        """Renew the session's token, or wait until whoever is at it has done so.

        The refresh goes on when everybody who waited for it has gone: a refresh token that the endpoint has rotated
        would be lost with it. An endpoint that failed is left alone for as long as it asked for; whoever comes
        meanwhile is told what the one before was.

        Raises:
            CredentialsRejected, UpstreamUnavailable, UpstreamTimeout, HostNotAllowed: as `oauth2.exchange`.
            Overloaded: the store has no room for the new credentials just now. They are not lost.
        """
        key = record.sealed_credentials
        task = self._under_way.get(key)
        if task is None:
            self._require_turn(key)
            task = self._under_way[key] = asyncio.create_task(self._renew(record, login))
            task.add_done_callback(self._finished)
        await asyncio.shield(task)

    def forget(self, record: SessionRecord) -> None:
        """These credentials are none of the session's any more."""
        self._held.pop(record.sealed_credentials, None)
        self._unkept.pop(record.sealed_credentials, None)
        self._refused.discard(record.sealed_credentials)

    async def close(self) -> None:
        """Let what is under way come to its end, since what an endpoint has given is given once."""
        tasks = set(self._under_way.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _renew(self, record: SessionRecord, login: Login) -> None:
        key = record.sealed_credentials
        try:
            renewed = self._unkept.get(key) or await self._exchange(login)
            self._unkept[key] = renewed  # until it is on disk, which may take more than one attempt
            await self._keep(record, renewed)
            self.forget(record)
        except (UpstreamUnavailable, UpstreamTimeout) as error:
            self._hold(key, error)
            log.warning("the access token of session %s is not renewed: %s", record.id, error.code)
            raise
        except CredentialsRejected:
            log.warning("the token endpoint of session %s refuses to renew its token", record.id)
            raise
        finally:
            del self._under_way[key]
        log.info("the access token of session %s is renewed", record.id)

    def _hold(self, key: bytes, error: UpstreamUnavailable | UpstreamTimeout) -> None:
        now = asyncio.get_running_loop().time()
        self._held = {each: held for each, held in self._held.items() if held[0] > now}
        self._held[key] = (now + (error.retry_after or RETRY_SECONDS), error)

    def _require_turn(self, key: bytes) -> None:
        until, error = self._held.get(key, (0.0, None))
        seconds = until - asyncio.get_running_loop().time()
        if error is not None and seconds > 0:
            raise type(error)(error.detail, protocol=PROTOCOL, retry_after=max(1, round(seconds)))

    def _finished(self, task: asyncio.Task[None]) -> None:
        """Nobody may be left to hear of an error; of ours somebody has to."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, CbemailError):
            log.error("renewing an access token failed", exc_info=error)
