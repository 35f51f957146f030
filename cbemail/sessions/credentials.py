"""What the connections of sessions are opened with: their credentials, renewed in time, and given up once refused."""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import (
    CredentialsRejected,
    CredentialsStale,
    SessionNotFound,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import MailHosts
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import open_imap
from cbemail.sessions.login import Login, ServerHealth, check_logins
from cbemail.sessions.renewal import Renewals
from cbemail.sessions.vault import Vault, VaultError
from cbemail.smtp.connection import SubmissionConnection, open_submission
from cbemail.store.records import SessionRecord, SessionState
from cbemail.store.repository import Repository
from cbemail.web import Web

T = TypeVar("T")

_STALE = "The mail server no longer accepts the stored credentials."
_ANEW = "Give the session new credentials, or create a new one."


class SessionHealth(Struct, frozen=True):
    """How a session's two servers answer a login made just now."""

    imap: ServerHealth
    smtp: ServerHealth


class Credentials:
    """The credentials of the sessions there are: opens connections with them, and learns from what servers say to them.

    ``records`` are those of `Sessions`, which stay as new as what becomes of their credentials: on disk and here.
    """

    def __init__(
        self,
        records: dict[SessionId, SessionRecord],
        repository: Repository,
        vault: Vault,
        hosts: MailHosts,
        web: Web,
        clock: Clock,
    ) -> None:
        self._records = records
        self._repository = repository
        self._vault = vault
        self._hosts = hosts
        # The sealed credentials that each connection was opened with: a later refusal is of those, and no others.
        self._logins: WeakKeyDictionary[SubmissionConnection, bytes] = WeakKeyDictionary()
        self._reasons: dict[SessionId, str] = {}  # why they are stale, found out by this process
        self.renewals = Renewals(hosts, web, clock, self._keep_renewed)

    def seal(self, session_id: SessionId, login: Login) -> bytes:
        """The credentials as a record of that session has them."""
        return self._vault.seal_secrets(
            session_id, login.imap_secret, login.smtp_secret, login.grant
        )

    def note_login(self, connection: SubmissionConnection, record: SessionRecord) -> None:
        """The connection was opened with the credentials that the record has."""
        self._logins[connection] = record.sealed_credentials

    def forget(self, record: SessionRecord) -> None:
        """These credentials are none of the session's any more."""
        self._reasons.pop(record.id, None)
        self.renewals.forget(record)

    # ---- logging in

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
        self.note_login(connection, used)
        return connection

    async def check(self, session_id: SessionId) -> SessionHealth:
        """Log in to both servers, and say how it went. An access token is renewed where it is due or refused; nothing
        else is changed by it."""
        record = self._require(session_id)
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
        record = self._require(session_id)
        if record.state is SessionState.CREDENTIALS_STALE:
            raise CredentialsStale(f"{self._reasons.get(session_id, _STALE)} {_ANEW}")
        return record

    def _require(self, session_id: SessionId) -> SessionRecord:
        record = self._records.get(session_id)
        if record is None:
            raise SessionNotFound("There is no such session.")
        return record

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

    # ---- refusals

    def is_current(self, session_id: SessionId, connection: SubmissionConnection) -> bool:
        """Whether the connection was opened with the credentials that the session has now."""
        record = self._records.get(session_id)
        return record is not None and record.sealed_credentials == self._logins.get(connection)

    def may_renew(self, session_id: SessionId) -> bool:
        """Whether a refused login is an access token that can be renewed, rather than the end of the credentials."""
        return self.renewals.may_renew(self._login_of(self._require(session_id)))

    async def refused(self, session_id: SessionId, connection: SubmissionConnection) -> None:
        """A server has refused the login of a connection behind AUTH: the session's access token is renewed, or else
        its credentials are stale; unless they have been replaced since it was opened."""
        record = self._records.get(session_id)
        if record is not None and self.is_current(session_id, connection):
            await self._settle_refusal(record, self._login_of(record))

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
        sealed = self.seal(used.id, login)
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
