"""What is known of a session's folders between requests: which has which role, and which incarnation was shown.

In memory only, a few hundred octets a session, and forgotten with it.
"""

from functools import partial
from time import monotonic

from msgspec import Struct, field

from cbemail.errors import FolderNotFound, MessageNotFound
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.folders import Listing, Role, assign_roles, list_folders
from cbemail.imap.namespaces import Namespaces, ask_namespaces
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import INBOX, FolderPath, UidValidity
from cbemail.imap.repeating import repeatable

# How long the roles are believed. Who renames the Sent folder elsewhere waits that long for it to be noticed.
ROLES_SECONDS = 300.0

# How a folder is named by its special use, wherever a folder is named.
SPECIAL_USE: dict[str, Role] = {
    "\\inbox": "inbox",
    "\\sent": "sent",
    "\\drafts": "drafts",
    "\\trash": "trash",
    "\\junk": "junk",
    "\\archive": "archive",
    "\\all": "all",
    "\\flagged": "flagged",
}


class _Known(Struct):
    roles: dict[Role, FolderPath] = field(default_factory=dict)
    delimiter: str | None = None
    namespaces: Namespaces | None = None
    listed_at: float | None = None
    shown: dict[FolderPath, UidValidity] = field(default_factory=dict)


class FolderDirectory:
    """Names to paths, for the folders of every session."""

    def __init__(self, pool: ImapPool) -> None:
        self._pool = pool
        self._known: dict[SessionId, _Known] = {}

    async def resolve(self, session_id: SessionId, name: str) -> FolderPath:
        """The path that ``name`` means: itself, or the folder of a special use (``\\Sent``).

        Raises:
            FolderNotFound: the account has no folder of that special use.
        """
        if name.upper() == INBOX:  # RFC 9051 section 5.1: in whatever case
            return INBOX
        role = SPECIAL_USE.get(name.lower())
        if role is None:
            return FolderPath(name)
        path = await self.with_role(session_id, role)
        if path is None:
            raise FolderNotFound(f"This mailbox has no folder for {name}.")
        return path

    async def with_role(self, session_id: SessionId, role: Role) -> FolderPath | None:
        """The folder that has ``role``, if there is one. Asks the server once in a while."""
        return (await self._listed(session_id)).roles.get(role)

    async def delimiter(self, session_id: SessionId) -> str | None:
        """What separates the levels of a path, RFC 9051 section 5.1.1; None in a flat account."""
        known = self._of(session_id).delimiter  # which never changes
        return known or (await self._listed(session_id)).delimiter

    async def namespaces(self, session_id: SessionId) -> Namespaces:
        """Which prefixes the account's folders have; they never change either."""
        known = self._of(session_id)
        if known.namespaces is None:
            known.namespaces = await repeatable(self._pool, session_id, None, ask_namespaces)
        return known.namespaces

    async def _listed(self, session_id: SessionId) -> _Known:
        known = self._of(session_id)
        if known.listed_at is None or monotonic() - known.listed_at > ROLES_SECONDS:
            listing = await repeatable(
                self._pool, session_id, None, partial(list_folders, counts=False)
            )
            self.learn(session_id, listing)
        return known

    def learn(self, session_id: SessionId, listing: Listing) -> None:
        """Take the roles from a listing that was made anyway."""
        known = self._of(session_id)
        known.roles = {role: path for path, role in assign_roles(listing.folders).items()}
        known.delimiter = next((f.delimiter for f in listing.folders if f.delimiter), None)
        known.listed_at = monotonic()

    def changed(self, session_id: SessionId) -> None:
        """A folder was made, renamed or deleted: ask again before the next answer."""
        self._of(session_id).listed_at = None

    def show(self, session_id: SessionId, imap: ImapConnection) -> None:
        """The client is about to see UIDs of the selected folder: they are of this UIDVALIDITY."""
        if imap.selected is not None:
            self._of(session_id).shown[imap.selected.path] = imap.selected.uid_validity

    def require_shown(self, session_id: SessionId, imap: ImapConnection) -> None:
        """Refuse a UID the client knows from a folder that has since been recreated: the number now names another
        message, or none (RFC 9051 section 2.3.1.1). The first UID it names is taken to be of the folder as it is."""
        if imap.selected is None:
            return
        now = imap.selected.uid_validity
        if self._of(session_id).shown.setdefault(imap.selected.path, now) != now:
            raise MessageNotFound(
                "The folder was recreated on the mail server since it was listed: list it again."
            )

    def forget(self, session_id: SessionId) -> None:
        """The session is gone."""
        self._known.pop(session_id, None)

    def _of(self, session_id: SessionId) -> _Known:
        return self._known.setdefault(session_id, _Known())
