"""All that can be done with the mailboxes of sessions, put together."""

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.ids import SessionId
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.pool import ImapPool
from cbemail.mailbox.actions import MailboxActions
from cbemail.mailbox.cache import SummaryCache
from cbemail.mailbox.changes import FolderChanges
from cbemail.mailbox.everywhere import AccountListing
from cbemail.mailbox.finding import Finder
from cbemail.mailbox.folder_state import StateKeeper
from cbemail.mailbox.folders import MailboxFolders
from cbemail.mailbox.listing import FolderListing
from cbemail.mailbox.parts import PartReader
from cbemail.mailbox.reading import MessageReader
from cbemail.mailbox.rows import RowReader
from cbemail.mailbox.stored_cache import StoredCache
from cbemail.mailbox.threads import ThreadReader


class Mailbox(Struct, frozen=True):
    """Each call names a session, and borrows a connection of it. What they remember of a session is theirs to forget."""

    directory: FolderDirectory
    cache: SummaryCache
    finder: Finder
    folders: MailboxFolders
    listing: FolderListing
    account: AccountListing
    reader: MessageReader
    parts: PartReader
    threads: ThreadReader
    changes: FolderChanges
    actions: MailboxActions

    @classmethod
    def over(
        cls, imap: ImapPool, states: StateKeeper, clock: Clock, stored: StoredCache | None
    ) -> "Mailbox":
        """The mailboxes behind ``imap``; what is read of them is also kept on disk, where there is a cache for it."""
        directory = FolderDirectory(imap)
        cache = SummaryCache(behind=stored)
        rows = RowReader(cache)
        finder = Finder(clock)
        listing = FolderListing(imap, directory, rows, finder)
        return cls(
            directory=directory,
            cache=cache,
            finder=finder,
            folders=MailboxFolders(imap, directory),
            listing=listing,
            account=AccountListing(imap, directory, listing, clock),
            reader=MessageReader(imap, directory, stored),
            parts=PartReader(imap, directory),
            threads=ThreadReader(imap, directory, listing),
            changes=FolderChanges(imap, directory, rows, states),
            actions=MailboxActions(imap, directory, clock),
        )

    def forget(self, session_id: SessionId) -> None:
        """The session is gone."""
        for each in (
            self.directory,
            self.cache,
            self.finder,
            self.listing,
            self.account,
            self.reader,
        ):
            each.forget(session_id)
