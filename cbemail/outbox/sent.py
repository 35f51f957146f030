"""The copy of a sent message in the Sent folder, the mark on the message it answers, and the proof that it was sent."""

import logging
from datetime import UTC, datetime

from msgspec import Struct

from cbemail.errors import CbemailError
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import append, search, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import SEEN, Flag, FolderPath, Uid, UidSet, UidValidity
from cbemail.imap.repeating import awake, repeatable
from cbemail.imap.search import SearchFilter, compile_search

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
    """`save` and `mark` come after the message is sent, which they can no longer fail: what goes wrong is logged."""

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

    async def save_once(
        self, session_id: SessionId, content: bytes, message_id: str
    ) -> Saved | None:
        """`save`, and once more where that failed, unless the copy is there after all."""
        saved = await self.save(session_id, content)
        if saved is None:
            try:
                if not await self.holds(session_id, message_id):
                    saved = await self.save(session_id, content)
            except CbemailError as error:
                log.warning("the Sent folder could not be asked: %s", error.code)
        return saved

    async def mark(self, session_id: SessionId, original: Original) -> None:
        """Flag the original. A folder recreated meanwhile holds another message of that number: left alone."""

        async def store(imap: ImapConnection) -> None:
            if imap.selected is not None and imap.selected.uid_validity == original.uid_validity:
                await store_flags(imap, UidSet([original.uid]), add=[original.flag])

        try:
            await repeatable(self._pool, session_id, original.folder, store)
        except CbemailError as error:
            log.warning("the original of a reply could not be flagged: %s", error.code)

    async def holds(self, session_id: SessionId, message_id: str) -> bool:
        """Whether the Sent folder has a message of this Message-ID: proof that the server took it. That it has none
        proves nothing.

        Raises:
            CbemailError: the mailbox cannot be asked just now.
        """
        folder = await self._directory.with_role(session_id, "sent")
        if folder is None:
            return False
        wanted = SearchFilter(header=("Message-ID", message_id))
        program = compile_search(wanted, today=datetime.now(UTC).date())

        async def look(imap: ImapConnection) -> bool:
            return (await search(imap, program)).count > 0

        return await repeatable(self._pool, session_id, folder, look)
