"""The whole account as one list, newest first: its folders are searched side by side, and what they have is merged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from heapq import merge
from itertools import islice
from time import monotonic
from typing import TypeVar

from msgspec import Struct, field

from cbemail.clock import Clock
from cbemail.errors import FolderNotFound, InvalidRequest, UpstreamError, UpstreamTimeout
from cbemail.ids import SessionId
from cbemail.imap.arrival import arrivals, newest_first, sorts
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.folders import folder_of_all, folders_of_account, list_folders
from cbemail.imap.messages import FETCH_ROWS
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FolderPath, Uid, UidValidity
from cbemail.imap.repeating import repeatable
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.finding import FOUND_OCTETS, FOUND_SECONDS, Position, find, program_for
from cbemail.mailbox.listing import FolderListing
from cbemail.mailbox.strand import AccountPosition, Strand
from cbemail.mailbox.summary import Summary, Unreadable
from cbemail.memory import SessionMemory

T = TypeVar("T")

EVERYWHERE = "*"  # how an account is named, where a folder can be

# Connections that one search of an account uses at once: of the three a session has, one is left for its other calls,
# which have their turn after each folder anyway.
SIDE_BY_SIDE = 2

SEARCH_SECONDS = 40.0  # for all folders of an account; those that it did not come to are told
MAX_DATED = 20_000  # messages whose arrival one search may ask for, where the server does not sort


class Skipped(Struct, frozen=True):
    """A folder that could not be searched, and why: ``code`` and ``detail`` are those of a problem."""

    folder: FolderPath
    code: str
    detail: str


class AccountPage(Struct, frozen=True):
    """Rows, newest first; ``total`` counts all that fit the filter in the folders that could be searched."""

    total: int
    messages: list[Summary | Unreadable]
    end: AccountPosition | None
    skipped: list[Skipped]


class _Found(Struct):
    """What a search of the account has found, and until when it is good for further pages."""

    until: float
    strands: list[Strand] = field(default_factory=list)
    skipped: dict[FolderPath, Skipped] = field(default_factory=dict)
    dated: int = 0

    @property
    def total(self) -> int:
        return sum(map(len, self.strands))

    @property
    def octets(self) -> int:
        return 1_000 + sum(strand.octets for strand in self.strands) + 500 * len(self.skipped)


class AccountListing:
    """Pages of a whole account. Nothing here changes a message.

    The first page searches, and those after it do not: they are of what it found, for ten minutes. A folder that fails
    does not fail the others.
    """

    def __init__(
        self,
        pool: ImapPool,
        directory: FolderDirectory,
        listing: FolderListing,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._listing = listing
        self._clock = clock
        self._kept: SessionMemory[SearchFilter, _Found] = SessionMemory(FOUND_OCTETS)

    async def page(
        self,
        session_id: SessionId,
        criteria: SearchFilter,
        *,
        limit: int,
        after: AccountPosition | None,
        snippets: bool = False,
    ) -> AccountPage:
        """Up to ``limit`` messages that fit ``criteria``, the last arrivals first, behind where ``after`` ended: from
        every folder but the trash and the junk folder.

        Raises:
            InvalidRequest: a value cannot be searched for, or more was found than can be put in order.
        """
        of_one = partial(self._page_of_one, session_id, criteria, limit, after, snippets)
        if after is not None and after.received_at is None:
            return await of_one(after.folder)
        found = self._kept.get(session_id, criteria) if after is not None else None
        if found is None or monotonic() >= found.until:
            whole, folders = await self._folders(session_id)
            if whole is not None:
                return await of_one(whole)
            found = await self._search(session_id, folders, criteria)
        await self._date(session_id, found, limit + 1, after)
        behind = (strand.behind(after) for strand in found.strands)
        places = list(islice(merge(*behind, key=lambda place: place.rank), limit + 1))
        if len(places) > limit:
            self._kept.put(session_id, criteria, found, found.octets)
        shown = places[:limit]
        skipped = dict(found.skipped)
        rows = await self._rows(session_id, shown, skipped, snippets=snippets)
        return AccountPage(
            found.total,
            [rows[place] for place in shown if place in rows],
            shown[-1] if len(places) > limit else None,
            [skipped[folder] for folder in sorted(skipped)],
        )

    def forget(self, session_id: SessionId) -> None:
        """The session is gone."""
        self._kept.end(session_id)

    async def _folders(self, session_id: SessionId) -> tuple[FolderPath | None, list[FolderPath]]:
        """The folder that has all messages, on Gmail, whose other folders share theirs; and the folders to search."""

        async def read(imap: ImapConnection) -> tuple[FolderPath | None, list[FolderPath]]:
            listing = await list_folders(imap, counts=True)
            self._directory.learn(session_id, listing)
            whole = folder_of_all(listing) if "X-GM-EXT-1" in imap.capabilities else None
            return whole, folders_of_account(listing)

        return await repeatable(self._pool, session_id, None, read)

    async def _page_of_one(
        self,
        session_id: SessionId,
        criteria: SearchFilter,
        limit: int,
        after: AccountPosition | None,
        snippets: bool,  # noqa: FBT001 - all of it is what `page` was asked
        folder: FolderPath,
    ) -> AccountPage:
        """A page of an account that has one folder of all messages: by UID, which costs nothing to put in order."""
        position = Position(after.uid_validity, after.uid) if after is not None else None
        page = await self._listing.page(
            session_id, folder, criteria, limit=limit, after=position, snippets=snippets
        )
        end = None
        if page.end is not None:
            end = AccountPosition(None, folder, page.end.uid_validity, page.end.uid)
        return AccountPage(page.total, page.messages, end, [])

    # ---- searching

    async def _search(
        self, session_id: SessionId, folders: Sequence[FolderPath], criteria: SearchFilter
    ) -> _Found:
        found = _Found(monotonic() + FOUND_SECONDS)
        left = dict.fromkeys(folders)

        async def search(folder: FolderPath) -> None:
            read = partial(self._strand, criteria=criteria, found=found)
            strand = await self._in_folder(session_id, folder, read, found.skipped, lazily=True)
            if strand is not None:
                found.strands.append(strand)
            del left[folder]

        try:
            async with asyncio.timeout(SEARCH_SECONDS):
                await _side_by_side(folders, search)
        except TimeoutError:
            too_late = UpstreamTimeout("There was no time left for this folder.")
            found.skipped |= {folder: _skipped(folder, too_late) for folder in left}
        if folders and len(found.skipped) == len(folders):
            raise UpstreamError("No folder of this mailbox could be searched.", protocol="imap")
        return found

    async def _strand(
        self, imap: ImapConnection, *, criteria: SearchFilter, found: _Found
    ) -> Strand:
        program = program_for(imap, criteria, self._clock().date())
        fitting = await find(imap, program)
        assert imap.selected is not None  # noqa: S101 - by the search, at the latest
        folder, validity = imap.selected.path, imap.selected.uid_validity
        if fitting.count > FETCH_ROWS and sorts(imap):
            order = await newest_first(imap, program)
            if program.has_attachments is not None:  # which SORT knows as little of as SEARCH
                members = frozenset(fitting)
                order = [uid for uid in order if uid in members]
            return Strand(folder, validity, order)
        found.dated += fitting.count
        if found.dated > MAX_DATED:
            raise InvalidRequest.at(
                "#/folder",
                f"This mail server cannot sort, and in all folders together more than {MAX_DATED} messages fit:"
                " narrow them (by since, from, …), or ask for one folder.",
            )
        return Strand(folder, validity, fitting, await arrivals(imap, fitting))

    async def _date(
        self, session_id: SessionId, found: _Found, count: int, after: AccountPosition | None
    ) -> None:
        """Have the arrivals of as many messages of each folder as may stand on the page."""

        async def date(strand: Strand) -> None:
            uids = strand.undated(count, after)
            read = partial(arrivals, uids=uids)
            seconds = await self._in_folder(session_id, strand.folder, read, found.skipped)
            if seconds is None:
                strand.end_here()
            else:
                strand.date(uids, seconds)

        while short := [strand for strand in found.strands if strand.undated(count, after)]:
            await _side_by_side(short, date)

    async def _rows(
        self,
        session_id: SessionId,
        places: Sequence[AccountPosition],
        skipped: dict[FolderPath, Skipped],
        *,
        snippets: bool,
    ) -> dict[AccountPosition, Summary | Unreadable]:
        """The rows of ``places``; there is none of a message that is gone."""
        of_folder: dict[tuple[FolderPath, UidValidity], dict[Uid, AccountPosition]] = {}
        for place in places:
            of_folder.setdefault((place.folder, place.uid_validity), {})[place.uid] = place
        rows: dict[AccountPosition, Summary | Unreadable] = {}

        async def read(folder: tuple[FolderPath, UidValidity]) -> None:
            wanted = of_folder[folder]
            work = partial(self._listing.rows, session_id, *folder, list(wanted), snippets=snippets)
            told = await _tolerantly(folder[0], work, skipped)
            rows.update({wanted[row.uid]: row for row in told or ()})

        await _side_by_side(of_folder, read)
        return rows

    async def _in_folder(
        self,
        session_id: SessionId,
        folder: FolderPath,
        read: Callable[[ImapConnection], Awaitable[T]],
        skipped: dict[FolderPath, Skipped],
        *,
        lazily: bool = False,
    ) -> T | None:
        work = partial(repeatable, self._pool, session_id, folder, read, lazily=lazily)
        return await _tolerantly(folder, work, skipped)


async def _tolerantly(
    folder: FolderPath,
    work: Callable[[], Awaitable[T]],
    skipped: dict[FolderPath, Skipped],
) -> T | None:
    """Do what concerns one folder; where that fails, note it, and give None. A folder that was deleted since it was
    listed is not worth a note."""
    try:
        return await work()
    except FolderNotFound:
        return None
    except UpstreamError as error:
        if not _concerns_one_folder(error):
            raise
        skipped[folder] = _skipped(folder, error)
        return None


def _concerns_one_folder(error: UpstreamError) -> bool:
    """Whether the server has refused a command, or was too long about it. A lost connection, or a login that is good no
    longer, concerns all folders; and what the server does not understand is a defect, to be seen as one."""
    refused = bool(error.command) and error.response_code != "BAD"
    return refused or isinstance(error, UpstreamTimeout)


def _skipped(folder: FolderPath, error: UpstreamError) -> Skipped:
    return Skipped(folder, error.code, error.detail)


async def _side_by_side(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do ``work`` for each item, a few at a time. The first failure ends them all."""
    waiting = iter(items)

    async def take_turns() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.create_task(take_turns()) for _ in range(SIDE_BY_SIDE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
