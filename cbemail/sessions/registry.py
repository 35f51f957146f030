"""The sessions there are: all of them in memory, each on disk before anybody hears of it.

A request asks no SQL: it finds its session here. What the store must know at once (a new session, its end, a changed
credential) is awaited; what it may know later (when a session was last used) is written in bulk.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope
from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import (
    CbemailError,
    CredentialsRejected,
    CredentialsStale,
    SessionNotFound,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import AccessToken, MailHosts
from cbemail.ids import SessionId, new_session_id
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import open_imap
from cbemail.sessions.login import Login, ServerHealth, check_logins, vetted
from cbemail.sessions.providers import find_provider_by_host
from cbemail.sessions.renewal import Renewals
from cbemail.sessions.tokens import Tokens, hash_refresh_token
from cbemail.sessions.vault import Vault, VaultError
from cbemail.smtp.connection import SubmissionConnection, open_submission
from cbemail.store.records import SessionRecord, SessionState
from cbemail.store.repository import Repository, RotationOutcome
from cbemail.web import Web

log = logging.getLogger(__name__)

T = TypeVar("T")

_STALE = "The mail server no longer accepts the stored credentials."
_ANEW = "Give the session new credentials, or create a new one."


class OpenedSession(Struct, frozen=True):
    """A session just made, its first refresh token, and the connection whose login proved it."""

    record: SessionRecord
    refresh_token: str
    imap: ImapConnection
    smtp: SubmissionConnection


class SessionHealth(Struct, frozen=True):
    """How a session's two servers answer a login made just now."""

    imap: ServerHealth
    smtp: ServerHealth


class Sessions:
    """Makes, finds and ends sessions, and opens connections for them.

    ``on_end`` callbacks hear of every session that ends, so that nothing of it is kept anywhere else; ``on_renewal``
    of one that has new credentials, so that what waited for them goes on.
    """

    def __init__(
        self,
        repository: Repository,
        vault: Vault,
        tokens: Tokens,
        hosts: MailHosts,
        web: Web,
        clock: Clock,
        *,
        time_to_live: timedelta,
    ) -> None:
        self._repository = repository
        self._vault = vault
        self._tokens = tokens
        self._hosts = hosts
        self._clock = clock
        self._time_to_live = time_to_live
        self._records: dict[SessionId, SessionRecord] = {}
        self._used: dict[SessionId, datetime] = {}  # newer than what the record says
        # The sealed credentials that each connection was opened with: a later refusal is of those, and no others.
        self._logins: WeakKeyDictionary[SubmissionConnection, bytes] = WeakKeyDictionary()
        self._reasons: dict[
            SessionId, str
        ] = {}  # why credentials are stale, where this process found it out
        self.renewals = Renewals(hosts, web, clock, self._keep_renewed)
        self.on_end: list[Callable[[SessionId], None]] = []
        self.on_renewal: list[Callable[[SessionId], None]] = []

    async def load(self) -> None:
        """Read every session from the store. Once, at the start."""
        self._records = {record.id: record for record in await self._repository.load_sessions()}

    # ---- making

    async def create(self, email: str, name: str | None, login: Login) -> OpenedSession:
        """Prove the credentials at both servers, then store the session.

        Raises:
            HostNotAllowed, CredentialsRejected, UpstreamUnavailable, UpstreamTimeout, UpstreamError: nothing is stored.
        """
        login, imap, smtp = await self.renewals.prove(await vetted(login, self._hosts))
        try:
            session_id = new_session_id()
            now = self._clock()
            provider = find_provider_by_host(login.smtp.host)
            record = SessionRecord(
                id=session_id,
                email=email,
                name=name,
                provider=provider.name if provider is not None else None,
                auth="oauth2" if isinstance(login.imap_secret, AccessToken) else "password",
                imap=login.imap,
                smtp=login.smtp,
                state=SessionState.ACTIVE,
                sealed_credentials=self._seal(session_id, login),
                created_at=now,
                last_used_at=now,
            )
            refresh_token, refresh = self._tokens.new_refresh_token(session_id)
            with CancelScope(shield=True):  # on disk and in memory, or in neither
                await self._repository.add_session(record, refresh)
                self._records[session_id] = record
                self._logins[smtp] = record.sealed_credentials
        except BaseException:
            imap.abort()
            smtp.abort()
            raise
        return OpenedSession(record, refresh_token, imap, smtp)

    # ---- finding

    def require(self, session_id: SessionId) -> SessionRecord:
        """The session, as it is now; SessionNotFound if there is none (any more)."""
        record = self._records.get(session_id)
        if record is None:
            raise SessionNotFound("There is no such session.")
        used = self._used.get(session_id)
        return structs.replace(record, last_used_at=used) if used is not None else record

    def count(self) -> int:
        return len(self._records)

    def exists(self, session_id: SessionId) -> bool:
        return session_id in self._records

    def use(self, session_id: SessionId) -> SessionRecord:
        """The session, which is in use now; its record tells of earlier uses only. SessionNotFound if there is none."""
        record = self._records.get(session_id)
        if record is None:
            raise SessionNotFound("There is no such session.")
        self.touch(session_id)
        return record

    def touch(self, session_id: SessionId) -> None:
        """Note that the session is in use; the store hears of it later."""
        self._used[session_id] = self._clock()

    def page(self, *, after: SessionId | None, limit: int) -> list[SessionRecord]:
        """Up to ``limit`` sessions in the order of their ids, those behind ``after``."""
        ids = sorted(i for i in self._records if after is None or i > after)
        return [self.require(session_id) for session_id in ids[:limit]]

    # ---- tokens

    async def refresh(self, session_id: SessionId, refresh_token: str) -> str:
        """Use up a refresh token of the session, and give the next one.

        One that was used before has been copied: whoever holds it, the session ends (RFC 9700 section 4.14.2).

        Raises:
            Unauthenticated: the token is unknown, expired, of another session, or was used before.
        """
        token, replacement = self._tokens.new_refresh_token(session_id)
        rotation = await self._repository.rotate_refresh_token(
            hash_refresh_token(refresh_token), replacement=replacement, now=self._clock()
        )
        if rotation.outcome is RotationOutcome.REUSED and rotation.session_id is not None:
            log.warning("a refresh token was used twice: session %s ends", rotation.session_id)
            await self.end(rotation.session_id)
        if rotation.outcome is not RotationOutcome.ROTATED:
            raise Unauthenticated("The refresh token is not valid.")
        self.touch(session_id)
        return token

    # ---- credentials

    def _seal(self, session_id: SessionId, login: Login) -> bytes:
        return self._vault.seal_secrets(
            session_id, login.imap_secret, login.smtp_secret, login.grant
        )

    def _login_of(self, record: SessionRecord) -> Login:
        """The session's servers and opened credentials.

        Raises:
            CredentialsStale: they cannot be opened with the present SECRET_KEY.
        """
        try:
            imap, smtp, grant = self._vault.open_secrets(record.id, record.sealed_credentials)
        except VaultError as exc:
            raise CredentialsStale(
                "The stored credentials cannot be opened any more: create a new session."
            ) from exc
        return Login(record.imap, imap, record.smtp, smtp, grant)

    async def replace_credentials(self, session_id: SessionId, login: Login) -> SessionRecord:
        """Prove new credentials of the same mailbox, then use them from now on."""
        login, imap, smtp = await self.renewals.prove(login)
        imap.close()
        await smtp.close()
        sealed = self._seal(session_id, login)
        auth = "oauth2" if isinstance(login.imap_secret, AccessToken) else "password"
        with CancelScope(shield=True):  # on disk and in memory, or in neither
            await self._repository.replace_credentials(
                session_id, sealed=sealed, auth=auth, state=SessionState.ACTIVE
            )
            replaced = self.require(session_id)
            self._forget_credentials(replaced)
            record = structs.replace(
                replaced,
                sealed_credentials=sealed,
                auth=auth,
                state=SessionState.ACTIVE,
            )
            self._records[session_id] = record
        for tell in self.on_renewal:
            tell(session_id)
        return record

    def is_current(self, session_id: SessionId, connection: SubmissionConnection) -> bool:
        """Whether the connection was opened with the credentials that the session has now."""
        record = self._records.get(session_id)
        return record is not None and record.sealed_credentials == self._logins.get(connection)

    def may_renew(self, session_id: SessionId) -> bool:
        """Whether a refused login is an access token that can be renewed, rather than the end of the credentials."""
        return self.renewals.may_renew(self._login_of(self.require(session_id)))

    async def refused(self, session_id: SessionId, connection: SubmissionConnection) -> None:
        """A server has refused the login of a connection behind AUTH: the session's access token is renewed, or else
        its credentials are stale; unless they have been replaced since it was opened."""
        record = self._records.get(session_id)
        if record is not None and self.is_current(session_id, connection):
            await self._settle_refusal(record, self._login_of(record))

    async def check(self, session_id: SessionId) -> SessionHealth:
        """Log in to both servers, and say how it went. An access token is renewed where it is due or refused; nothing
        else is changed by it."""
        record = self.require(session_id)
        if record.state is SessionState.CREDENTIALS_STALE:
            return SessionHealth(*await check_logins(self._login_of(record), self._hosts))
        try:
            used, login = await self._usable(session_id)
            health = await check_logins(login, self._hosts)
            refused = any(server.error == CredentialsRejected.code for server in health)
            if refused and self.renewals.may_renew(login):
                await self._settle_refusal(used, login)
                _, login = await self._usable(session_id)
                health = await check_logins(login, self._hosts)
        except UpstreamError as error:  # of the token endpoint
            down = ServerHealth(ok=False, latency_ms=0, error=error.code)
            health = (down, down)
        return SessionHealth(*health)

    async def connect_imap(self, session_id: SessionId) -> ImapConnection:
        """A new IMAP connection of the session. Credentials refused once are not tried again: servers lock accounts
        for less."""
        connection, _ = await self._connect(
            session_id, lambda login: open_imap(login.imap, login.imap_secret, self._hosts)
        )
        return connection

    async def connect_smtp(self, session_id: SessionId) -> SubmissionConnection:
        """A new SMTP connection of the session, as `connect_imap`."""
        connection, used = await self._connect(
            session_id, lambda login: open_submission(login.smtp, login.smtp_secret, self._hosts)
        )
        self._logins[connection] = used.sealed_credentials
        return connection

    async def _connect(
        self, session_id: SessionId, open_one: Callable[[Login], Awaitable[T]]
    ) -> tuple[T, SessionRecord]:
        """A connection, and the session as it was when it was asked for. Those that were refused may have been replaced
        meanwhile: whoever waits for this is told of what is so now."""
        renewed = False  # here: a second refusal is not one of age
        while True:
            used, login = await self._usable(session_id)
            try:
                return await open_one(login), used
            except CredentialsRejected:
                if renewed:
                    await self._mark_stale(used, _STALE)
                else:
                    renewed = await self._settle_refusal(used, login)

    async def _usable(self, session_id: SessionId) -> tuple[SessionRecord, Login]:
        """The session and its credentials, as good as they are known to be: an access token is renewed before it
        expires. One that is good yet will do where the endpoint is in trouble."""
        record = self._require_active(session_id)
        login = self._login_of(record)
        if not self.renewals.is_due(record, login):
            return record, login
        try:
            await self._renew(record, login)
        except (UpstreamUnavailable, UpstreamTimeout):
            if self.renewals.is_spent(login) or self.renewals.is_refused(record):
                raise
        record = self._require_active(session_id)
        return record, self._login_of(record)

    def _require_active(self, session_id: SessionId) -> SessionRecord:
        record = self.require(session_id)
        if record.state is SessionState.CREDENTIALS_STALE:
            raise CredentialsStale(f"{self._reasons.get(session_id, _STALE)} {_ANEW}")
        return record

    async def _settle_refusal(self, used: SessionRecord, login: Login) -> bool:
        """The server refuses these credentials. An access token has its time, and then another takes its place, which
        is what this says; but one that has just been renewed is not refused for its age."""
        if not self.renewals.may_renew(login):
            await self._mark_stale(used, _STALE)
            return False
        if self._is_unchanged(used):
            self.renewals.note_refusal(used)
        await self._renew(used, login)
        return True

    async def _renew(self, used: SessionRecord, login: Login) -> None:
        if not self._is_unchanged(used):
            return
        try:
            await self.renewals.renew(used, login)
        except CredentialsRejected as refusal:
            await self._mark_stale(used, refusal.detail)

    async def _keep_renewed(self, used: SessionRecord, login: Login) -> None:
        """On disk, then in memory. What has been given meanwhile in place of the old credentials is newer than these."""
        sealed = self._seal(used.id, login)
        kept = await self._repository.renew_credentials(
            used.id, sealed=used.sealed_credentials, renewed=sealed
        )
        if kept and self._is_unchanged(used):
            current = self._records[used.id]
            self._records[used.id] = structs.replace(current, sealed_credentials=sealed)

    async def _mark_stale(self, used: SessionRecord, reason: str) -> None:
        """These credentials are refused. What has been replaced meanwhile stays as good as it is."""
        current = self._records.get(used.id)
        if current is None or not self._is_unchanged(used):
            return
        if current.state is SessionState.CREDENTIALS_STALE:
            return
        self._records[used.id] = structs.replace(current, state=SessionState.CREDENTIALS_STALE)
        self._reasons[used.id] = reason
        await self._repository.mark_stale(used.id, sealed=used.sealed_credentials)

    def _is_unchanged(self, used: SessionRecord) -> bool:
        """Whether the session still has the credentials that it had then."""
        current = self._records.get(used.id)
        return current is not None and current.sealed_credentials == used.sealed_credentials

    def _forget_credentials(self, record: SessionRecord) -> None:
        self._reasons.pop(record.id, None)
        self.renewals.forget(record)

    # ---- ending

    async def end(self, session_id: SessionId) -> None:
        """End a session: for clients at once, and on disk before this returns. Ending it twice does no harm.

        Where the store cannot forget it now (Overloaded) it has not ended, and may be ended again.
        """
        record = self._records.pop(session_id, None)
        if record is None:
            return
        try:
            await self._repository.delete_session(session_id)
        except CbemailError:
            self._records[session_id] = record
            raise
        self._used.pop(session_id, None)
        self._forget_credentials(record)
        for tell in self.on_end:
            tell(session_id)

    async def save_use(self) -> None:
        """Tell the store when sessions were last used, all of them in one statement."""
        used, self._used = self._used, {}
        if not used:
            return
        for session_id, moment in used.items():
            record = self._records.get(session_id)
            if record is not None:
                self._records[session_id] = structs.replace(record, last_used_at=moment)
        await self._repository.touch_sessions(used)

    async def end_unused(self) -> int:
        """End the sessions nobody has used for the time a session lives; say how many."""
        oldest = self._clock() - self._time_to_live
        ended = 0
        for session_id in list(self._records):
            if self.exists(session_id) and self.require(session_id).last_used_at < oldest:
                await self.end(session_id)
                ended += 1
        return ended
