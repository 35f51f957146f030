"""The sessions there are: all of them in memory, each on disk before anybody hears of it.

A request asks no SQL: it finds its session here. What the store must know at once (a new session, its end, a changed
credential) is awaited; what it may know later (when a session was last used) is written in bulk.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from anyio import CancelScope
from msgspec import Struct, structs

from cbemail.clock import Clock
from cbemail.errors import CbemailError, SessionNotFound, Unauthenticated
from cbemail.hosts import AccessToken, MailHosts
from cbemail.ids import SessionId, new_session_id
from cbemail.imap.connection import ImapConnection
from cbemail.sessions.credentials import Credentials
from cbemail.sessions.login import Login, vetted
from cbemail.sessions.providers import find_provider_by_host
from cbemail.sessions.tokens import Tokens, hash_refresh_token
from cbemail.sessions.vault import Vault
from cbemail.smtp.connection import SubmissionConnection
from cbemail.store.records import SessionRecord, SessionState
from cbemail.store.repository import Repository, RotationOutcome
from cbemail.web import Web

log = logging.getLogger(__name__)


class OpenedSession(Struct, frozen=True):
    """A session just made, its first refresh token, and the connections whose logins proved it."""

    record: SessionRecord
    refresh_token: str
    imap: ImapConnection
    smtp: SubmissionConnection


class Sessions:
    """Makes, finds and ends sessions; ``credentials`` are what connections of them are opened with.

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
        self._tokens = tokens
        self._hosts = hosts
        self._clock = clock
        self._time_to_live = time_to_live
        self._records: dict[SessionId, SessionRecord] = {}
        self._used: dict[SessionId, datetime] = {}  # newer than what the record says
        self.credentials = Credentials(self._records, repository, vault, hosts, web, clock)
        self.on_end: list[Callable[[SessionId], None]] = []
        self.on_renewal: list[Callable[[SessionId], None]] = []

    async def load(self) -> None:
        """Read every session from the store. Once, at the start."""
        for record in await self._repository.load_sessions():
            self._records[record.id] = record

    # ---- making

    async def create(self, email: str, name: str | None, login: Login) -> OpenedSession:
        """Prove the credentials at both servers, then store the session.

        Raises:
            HostNotAllowed, CredentialsRejected, UpstreamUnavailable, UpstreamTimeout, UpstreamError: nothing is stored.
        """
        login, imap, smtp = await self.credentials.renewals.prove(await vetted(login, self._hosts))
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
                sealed_credentials=self.credentials.seal(session_id, login),
                created_at=now,
                last_used_at=now,
            )
            refresh_token, refresh = self._tokens.new_refresh_token(session_id)
            with CancelScope(shield=True):  # on disk and in memory, or in neither
                await self._repository.add_session(record, refresh)
                self._records[session_id] = record
                self.credentials.note_login(smtp, record)
        except BaseException:
            imap.abort()
            smtp.abort()
            raise
        return OpenedSession(record, refresh_token, imap, smtp)

    async def replace_credentials(self, session_id: SessionId, login: Login) -> SessionRecord:
        """Prove new credentials of the same mailbox, then use them from now on."""
        login, imap, smtp = await self.credentials.renewals.prove(login)
        imap.close()
        await smtp.close()
        sealed = self.credentials.seal(session_id, login)
        auth = "oauth2" if isinstance(login.imap_secret, AccessToken) else "password"
        with CancelScope(shield=True):  # on disk and in memory, or in neither
            await self._repository.replace_credentials(
                session_id, sealed=sealed, auth=auth, state=SessionState.ACTIVE
            )
            replaced = self.require(session_id)
            self.credentials.forget(replaced)
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

    # ---- finding

    def record(self, session_id: SessionId) -> SessionRecord:
        """The session; SessionNotFound if there is none (any more). Of its latest uses the record may not tell."""
        record = self._records.get(session_id)
        if record is None:
            raise SessionNotFound("There is no such session.")
        return record

    def require(self, session_id: SessionId) -> SessionRecord:
        """The session as it is now; SessionNotFound if there is none (any more)."""
        record = self.record(session_id)
        used = self._used.get(session_id)
        return structs.replace(record, last_used_at=used) if used is not None else record

    def count(self) -> int:
        return len(self._records)

    def exists(self, session_id: SessionId) -> bool:
        return session_id in self._records

    def use(self, session_id: SessionId) -> SessionRecord:
        """The session, noted as in use; SessionNotFound if there is none (any more)."""
        record = self.record(session_id)
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
        self.credentials.forget(record)
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
