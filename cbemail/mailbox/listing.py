"""A folder page by page, newest first: what SEARCH finds, each row from the cache or one FETCH."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from cbemail.errors import CursorExpired
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import Aside, is_unchanged
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FetchData, FolderPath, SelectData, Uid, UidValidity
from cbemail.imap.repeating import repeatable
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.cache import Shelf
from cbemail.mailbox.finding import Finder, Position
from cbemail.mailbox.rows import RowReader
from cbemail.mailbox.summary import Summary, Unreadable
from cbemail.memory import SessionMemory
from cbemail.timing import spent_on

PAGES_OCTETS = 12 * 1024 * 1024  # of what is remembered of pages, of all sessions
_PAGE_OCTETS, _ROW_OCTETS = 1_000, 500  # of their objects, beside what the rows say


class Page(Struct, frozen=True):
    """Rows, newest first; ``total`` counts all that fit the filter; ``end`` is None on the last page."""

    folder: FolderPath
    uid_validity: UidValidity
    total: int
    messages: list[Summary | Unreadable]
    end: Position | None


class _FetchedPage(Struct, frozen=True):
    """A page as the server gave it: its rows are read after its connection is free for others."""

    selection: SelectData
    total: int
    rows: list[FetchData]
    known: dict[Uid, Summary]
    end: Position | None
    aside: Aside


class _Question(Struct, frozen=True):
    """Which page is asked for."""

    folder: FolderPath
    criteria: SearchFilter
    limit: int
    after: Position | None
    snippets: bool


class _Shown(Struct, frozen=True):
    """A page as it was last read, and its rows' flags. Where the mailbox has mod-sequences, ``modseq`` tells as of which
    they are known; ``news``, of a page of all messages, when it was told which there are (`SelectData`). Both count
    for the one ``selection``: a mailbox that is selected anew may count anew."""

    page: Page
    rows: dict[Uid, FetchData]
    selection: SelectData
    modseq: int | None
    news: int | None

    async def stands(self, imap: ImapConnection, aside: Aside) -> bool:
        """Whether the server says that the page is what it was; False where it cannot tell."""
        if aside.modseq is None or not self.rows or self.selection.news != self.news:
            return False
        return await is_unchanged(imap, aside)

    def aside(self, now: SelectData | None) -> Aside:
        """What to ask for by the way: the flags of the same rows, or what has changed of them."""
        return Aside(list(self.rows), self.modseq if now is self.selection else None)

    def told(self, aside: Aside) -> dict[Uid, FetchData]:
        """The rows as they are now, as far as they are there."""
        if aside.modseq is None:
            return aside.rows
        return self.rows | aside.rows if aside.rows else self.rows


class FolderListing:
    """Pages of folders. Nothing here changes a message.

    A page that was read before most likely has the rows it had: their flags are asked for in the same flight as which
    rows it has now. Where that is so, and all of them are known, the page costs one round trip.
    """

    def __init__(
        self, pool: ImapPool, directory: FolderDirectory, rows: RowReader, finder: Finder
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._rows = rows
        self._finder = finder
        self._pages: SessionMemory[_Question, _Shown] = SessionMemory(PAGES_OCTETS)

    async def page(
        self,
        session_id: SessionId,
        folder_name: str,
        criteria: SearchFilter,
        *,
        limit: int,
        after: Position | None,
        snippets: bool = False,
    ) -> Page:
        """Up to ``limit`` messages that fit ``criteria``, the highest UIDs first, below where ``after`` ended.

        UIDs never move, so what arrives or is expunged between two pages neither repeats nor hides a row.

        Raises:
            CursorExpired: the folder was recreated since ``after`` was given out.
        """
        folder = await self._directory.resolve(session_id, folder_name)
        question = _Question(folder, criteria, limit, after, snippets)

        async def read(imap: ImapConnection) -> _FetchedPage | Page:
            guess = self._pages.get(session_id, question)
            aside = guess.aside(imap.selected) if guess is not None else Aside(())
            if guess is not None and await guess.stands(imap, aside):
                self._directory.show(session_id, imap)
                return guess.page
            found = await self._finder.choose(
                imap, session_id, folder, criteria, limit=limit, after=after, aside=aside
            )
            assert imap.selected is not None  # noqa: S101 - leased with a folder
            validity = imap.selected.uid_validity
            if after is not None and after.uid_validity != validity:
                raise CursorExpired(
                    "The folder was recreated on the mail server: start the listing again."
                )
            self._directory.show(session_id, imap)
            shown = found.uids[:limit]
            told = {}
            if guess is not None and found.searched:
                told = guess.told(aside)
            shelf = Shelf(session_id, folder, validity)
            known = await self._rows.known(shelf, shown, snippets=snippets)
            untold = [uid for uid in shown if uid not in known or uid not in told]
            rows = told | await self._rows.fetch(imap, untold, known, snippets=snippets)
            end = Position(validity, shown[-1]) if len(found.uids) > limit else None
            present = [rows[u] for u in shown if u in rows]
            return _FetchedPage(imap.selected, found.total, present, known, end, aside)

        fetched = await repeatable(self._pool, session_id, folder, read, lazily=True)
        if isinstance(fetched, Page):
            return fetched
        with spent_on("parse"):
            validity = fetched.selection.uid_validity
            messages = await self._rows.make(
                Shelf(session_id, folder, validity),
                fetched.rows,
                fetched.known,
                snippets=snippets,
            )
        page = Page(folder, validity, fetched.total, messages, fetched.end)
        self._remember(session_id, question, fetched, page)
        return page

    async def rows(
        self,
        session_id: SessionId,
        folder: FolderPath,
        uid_validity: UidValidity,
        uids: Sequence[Uid],
        *,
        snippets: bool = False,
    ) -> list[Summary | Unreadable]:
        """The rows of messages that were found before; there is none of what is gone since, with its folder or alone."""
        shelf = Shelf(session_id, folder, uid_validity)
        known = await self._rows.known(shelf, uids, snippets=snippets)

        async def read(imap: ImapConnection) -> list[FetchData]:
            assert imap.selected is not None  # noqa: S101 - leased with a folder
            if imap.selected.uid_validity != uid_validity:
                return []
            self._directory.show(session_id, imap)
            rows = await self._rows.fetch(imap, uids, known, snippets=snippets)
            return [rows[uid] for uid in uids if uid in rows]

        present = await repeatable(self._pool, session_id, folder, read)
        with spent_on("parse"):
            return await self._rows.make(shelf, present, known, snippets=snippets)

    def forget(self, session_id: SessionId) -> None:
        """The session is gone."""
        self._pages.end(session_id)

    def _remember(
        self, session_id: SessionId, question: _Question, fetched: _FetchedPage, page: Page
    ) -> None:
        aside = fetched.aside
        # Of before the rows were read: what has changed since is told once more.
        modseq = fetched.selection.highest_modseq if aside.modseq is None else aside.modseq
        news = aside.news if question.criteria == SearchFilter() else None
        rows = {r.uid: FetchData(r.uid, r.flags) for r in fetched.rows if r.uid is not None}
        shown = _Shown(page, rows, fetched.selection, modseq, news)
        said = len(msgspec.msgpack.encode(page.messages))  # of which a sender can make much
        octets = _PAGE_OCTETS + _ROW_OCTETS * len(rows) + said
        self._pages.put(session_id, question, shown, octets)
