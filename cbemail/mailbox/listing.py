"""A folder page by page, newest first: what SEARCH finds, each row from the cache or one FETCH."""

from __future__ import annotations

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.errors import CursorExpired
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import fetch_page
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FetchData, FolderPath, Uid, UidValidity
from cbemail.imap.repeating import repeatable
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.cache import Shelf, SummaryCache
from cbemail.mailbox.finding import find
from cbemail.mailbox.summary import SUMMARY_ITEMS, Summary, Unreadable, summarise, with_flags
from cbemail.timing import spent_on
from cbemail.turns import Turn


class Position(Struct, frozen=True):
    """Where a page ended: the next one holds lower UIDs, and only of this UIDVALIDITY."""

    uid_validity: UidValidity
    uid: Uid


class Page(Struct, frozen=True):
    """Rows, newest first; ``total`` counts all that fit the filter; ``end`` is None on the last page."""

    folder: FolderPath
    uid_validity: UidValidity
    total: int
    messages: list[Summary | Unreadable]
    end: Position | None


class _FetchedPage(Struct, frozen=True):
    """A page as the server gave it: its rows are read after its connection is free for others."""

    uid_validity: UidValidity
    total: int
    rows: list[FetchData]
    known: dict[Uid, Summary]
    end: Position | None


class FolderListing:
    """Pages of folders. Nothing here changes a message."""

    def __init__(
        self, pool: ImapPool, directory: FolderDirectory, cache: SummaryCache, clock: Clock
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._cache = cache
        self._clock = clock

    async def page(
        self,
        session_id: SessionId,
        folder_name: str,
        criteria: SearchFilter,
        *,
        limit: int,
        after: Position | None,
    ) -> Page:
        """Up to ``limit`` messages that fit ``criteria``, the highest UIDs first, below where ``after`` ended.

        UIDs never move, so what arrives or is expunged between two pages neither repeats nor hides a row.

        Raises:
            CursorExpired: the folder was recreated since ``after`` was given out.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def read(imap: ImapConnection) -> _FetchedPage:
            assert imap.selected is not None  # noqa: S101 - leased with a folder
            validity = imap.selected.uid_validity
            if after is not None and after.uid_validity != validity:
                raise CursorExpired(
                    "The folder was recreated on the mail server: start the listing again."
                )
            self._directory.show(session_id, imap)
            found = await find(imap, criteria, today=self._clock().date())
            uids = found.newest(limit + 1, below=after.uid if after is not None else None)
            shown = uids[:limit]
            shelf = Shelf(session_id, folder, validity)
            known = {u: row for u in shown if (row := self._cache.get(shelf, u)) is not None}
            unknown = [u for u in shown if u not in known]
            rows = await fetch_page(imap, list(known), unknown, SUMMARY_ITEMS) if shown else {}
            end = Position(validity, shown[-1]) if len(uids) > limit else None
            present = [rows[u] for u in shown if u in rows]
            return _FetchedPage(validity, found.count, present, known, end)

        fetched = await repeatable(self._pool, session_id, folder, read)
        with spent_on("parse"):
            messages = await self._summaries(session_id, folder, fetched)
        return Page(folder, fetched.uid_validity, fetched.total, messages, fetched.end)

    async def _summaries(
        self, session_id: SessionId, folder: FolderPath, fetched: _FetchedPage
    ) -> list[Summary | Unreadable]:
        """The rows of a page: of what is known only the flags are new, and what is new is known from now on."""
        shelf = Shelf(session_id, folder, fetched.uid_validity)
        messages: list[Summary | Unreadable] = []
        turn = Turn()
        for row in fetched.rows:
            await turn.share()
            known = fetched.known.get(row.uid) if row.uid is not None else None
            if known is not None:
                messages.append(with_flags(known, row.flags or ()))
                continue
            summary = summarise(row, folder)
            if isinstance(summary, Summary):
                self._cache.put(shelf, summary, len(row.sections["HEADER.FIELDS"]))
            messages.append(summary)
        return messages
