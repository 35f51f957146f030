"""The copy of a sent message in the Sent folder, and the mark on the message it answers."""

import logging

from msgspec import Struct

from cbemail.errors import CbemailError
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import append, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import SEEN, Flag, FolderPath, Uid, UidSet, UidValidity
from cbemail.imap.repeating import awake, repeatable

log = logging.getLogger(__name__)


class Saved(Struct, frozen=True):
    """Where the copy is; ``uid`` is None where the server cannot tell."""

    folder: FolderPath
    uid: Uid | None


class Original(Struct, frozen=True):
    """The message that a sent one answers or forwards, and the flag that says so (``\\Answered``, ``$Forwarded``)."""

    folder: FolderPath
    uid: Uid
    uid_validity: UidValidity
    flag: Flag


class SentFolder:
    """Both tasks come after the message is sent, which they can no longer fail: what goes wrong is logged."""

    def __init__(self, pool: ImapPool, directory: FolderDirectory) -> None:
        self._pool = pool
        self._directory = directory

    async def save(self, session_id: SessionId, content: bytes) -> Saved | None:
        """File a copy; None where there is no Sent folder, or the server does not take it."""
        try:
            folder = await self._directory.with_role(session_id, "sent")
            if folder is None:
                return None
            async with awake(self._pool, session_id) as imap:
                told = await append(imap, folder, content, flags=[SEEN])
        except CbemailError as error:
            log.warning("a sent message could not be filed in Sent: %s", error.code)
            return None
        return Saved(folder, told.uid)

    async def mark(self, session_id: SessionId, original: Original) -> None:
        """Flag the original. A folder recreated meanwhile holds another message of that number: left alone."""

        async def store(imap: ImapConnection) -> None:
            if imap.selected is not None and imap.selected.uid_validity == original.uid_validity:
                await store_flags(imap, UidSet([original.uid]), add=[original.flag])

        try:
            await repeatable(self._pool, session_id, original.folder, store)
        except CbemailError as error:
            log.warning("the original of a reply could not be flagged: %s", error.code)
