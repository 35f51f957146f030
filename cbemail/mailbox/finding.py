"""From a filter to UIDs: the server's SEARCH, and for what SEARCH cannot say, the structure of what it found."""

from array import array
from collections.abc import Iterator
from datetime import date
from time import monotonic
from typing import Annotated, Self

from msgspec import Meta, Struct

from cbemail.clock import Clock
from cbemail.errors import InvalidRequest
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import Aside, Found, fetch, search
from cbemail.imap.protocol import FetchData, FolderPath, SelectData, Uid, UidSet, UidValidity
from cbemail.imap.search import SearchFilter, SearchProgram, compile_search
from cbemail.imap.selecting import select
from cbemail.mailbox.structure import lay_out
from cbemail.memory import SessionMemory

# Messages whose structure one request may look at. A server answers some 20,000 a second; past that, narrow first.
MAX_STRUCTURES = 20_000

# What a search has found is good for its later pages for so long, and all sessions together keep so much of it.
FOUND_SECONDS = 600.0
FOUND_OCTETS = 16 * 1024 * 1024
_FOUND_OCTETS = 1_000  # of one search, beside what it found

# A window of UIDs is made for so many times as many messages as are wanted, and each further one is so much wider.
_ROOM = 2
_WIDER = 16


class Position(Struct, frozen=True):
    """Where a page ended: the next one holds lower UIDs, and only of this UIDVALIDITY."""

    uid_validity: UidValidity
    # A cursor may be anybody's text, and this goes to the server.
    uid: Annotated[Uid, Meta(ge=1, le=2**32 - 1)]


class Selection(Struct, frozen=True):
    """The UIDs for a page, newest first, one more than it shows where it is not the last; ``total`` counts all that
    fit. Not ``searched`` now, they may be gone meanwhile, and what was asked aside has not been."""

    uids: list[Uid]
    total: int
    searched: bool = True


class _Search(Struct, frozen=True):
    """What was searched for, and in which folder: the next page is of the same."""

    folder: FolderPath
    uid_validity: UidValidity
    program: SearchProgram


class _Kept(Struct, frozen=True):
    """What a search found, first and last of each range in eight octets, and until when it is good."""

    ranges: bytes
    until: float

    @classmethod
    def of(cls, found: Found, until: float) -> Self:
        return cls(array("I", [uid for ends in found.ranges for uid in ends]).tobytes(), until)

    @property
    def found(self) -> Found:
        uids = memoryview(self.ranges).cast("I")
        return Found(tuple(zip(uids[::2], uids[1::2], strict=True)))


class Finder:
    """Finds the messages of pages. The pages after the first are of what the first one's search has found."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: SessionMemory[_Search, _Kept] = SessionMemory(FOUND_OCTETS)

    async def choose(
        self,
        imap: ImapConnection,
        session_id: SessionId,
        folder: FolderPath,
        criteria: SearchFilter,
        *,
        limit: int,
        after: Position | None,
        aside: Aside | None = None,
    ) -> Selection:
        """The messages of ``folder`` for the page of ``limit`` that follows ``after``.

        Without a filter only those UIDs are looked at that will hold the page, so that it costs the same in a great
        folder as in a small one. With a filter the first page searches, and those after it do not, unless what was
        found is no longer remembered.

        Args:
            imap: a connection on which the folder is selected, or will be by the first read.
            aside: as for `find`.
        """
        program = program_for(imap, criteria, self._clock().date())
        if program.takes_all:
            return await _newest(imap, folder, limit, after, aside)
        if after is not None:
            kept = self._kept.get(session_id, _Search(folder, after.uid_validity, program))
            if kept is not None and monotonic() < kept.until:
                if imap.selected is None:
                    await select(imap, folder)
                return _selection(kept.found, limit, after, searched=False)
        found = await find(imap, program, aside)
        self._keep(imap, session_id, folder, program, found, limit)
        return _selection(found, limit, after)

    def _keep(
        self,
        imap: ImapConnection,
        session_id: SessionId,
        folder: FolderPath,
        program: SearchProgram,
        found: Found,
        limit: int,
    ) -> None:
        if imap.selected is None or found.count <= limit:
            return
        asked = _Search(folder, imap.selected.uid_validity, program)
        kept = _Kept.of(found, monotonic() + FOUND_SECONDS)
        self._kept.put(session_id, asked, kept, _FOUND_OCTETS + len(kept.ranges))

    def forget(self, session_id: SessionId) -> None:
        """The session is gone."""
        self._kept.end(session_id)


def _selection(
    found: Found, limit: int, after: Position | None, *, searched: bool = True
) -> Selection:
    below = after.uid if after is not None else None
    return Selection(found.newest(limit + 1, below=below), found.count, searched)


# ---- without a filter


async def _newest(
    imap: ImapConnection,
    folder: FolderPath,
    limit: int,
    after: Position | None,
    aside: Aside | None,
) -> Selection:
    """The highest UIDs below ``after``, from a window of UIDs that is made wider until it holds as many.

    To name all of a folder takes a server without ESEARCH six octets a message, and one with it as many where most
    others were deleted: a page is to cost that neither in time nor in octets.
    """
    if imap.selected is None and "ESEARCH" not in imap.capabilities:
        await select(imap, folder)
    found = Found(())
    for window in _windows(imap.selected, limit + 1, after):
        found = await search(imap, SearchProgram(window), aside)
        if found.count > limit:
            break
        aside = None  # it has been told by now
    total = imap.selected.exists if imap.selected is not None else found.count
    return Selection(_selection(found, limit, after).uids, total)


def _windows(
    folder: SelectData | None, count: int, after: Position | None
) -> Iterator[tuple[bytes, ...]]:
    """Keys for UIDs that may hold ``count`` messages below ``after``: twice as many UIDs as would do, were the messages
    spread evenly; then more; at last all there are. Only these where nothing is known of the folder, which is then
    selected in the flight of the search."""
    last = b"%d" % max(1, after.uid - 1) if after is not None else b"*"
    if folder is not None and folder.uid_next is not None and folder.exists:
        top = after.uid if after is not None else folder.uid_next
        span = _ROOM * count * folder.uid_next // folder.exists
        while span < top - 1:
            yield b"UID", b"%d:%b" % (top - span, last)
            span *= _WIDER
    yield (b"UID", b"1:" + last) if after is not None else (b"ALL",)


# ---- with one


def program_for(imap: ImapConnection, criteria: SearchFilter, today: date) -> SearchProgram:
    """What finds ``criteria`` on this server. An InvalidRequest where a value cannot be searched for."""
    return compile_search(criteria, today=today, gmail="X-GM-EXT-1" in imap.capabilities)


async def find(imap: ImapConnection, program: SearchProgram, aside: Aside | None = None) -> Found:
    """The UIDs in the selected folder that ``program`` finds.

    IMAP has no search key for attachments, and the header does not tell them: where they are asked for, the structure
    of every message that satisfies the rest is looked at, so that the count is true. Gmail knows them.

    Args:
        aside: what to fetch in the flight of the search, on the guess that it will be found.

    Raises:
        InvalidRequest: too many messages would have to be looked at.
    """
    found = await search(imap, program, aside)
    if program.has_attachments is None or not found.count:
        return found
    if found.count > MAX_STRUCTURES:
        raise InvalidRequest.at(
            "#/has_attachments",
            f"The filter has_attachments looks at every message that fits the other filters, and these are {found.count}: narrow"
            f" them to {MAX_STRUCTURES} (by since, before, from, …).",
        )
    rows = await fetch(imap, found, b"BODYSTRUCTURE")
    fitting = [uid for uid, row in rows.items() if has_attachments(row) is program.has_attachments]
    return Found(tuple(UidSet(fitting).ranges()) if fitting else ())


def has_attachments(row: FetchData) -> bool:
    """Whether a message has an attachment that is not shown within its text."""
    if row.body_structure is None:
        return False
    layout = lay_out(row.body_structure)
    return any(part.id not in layout.inline for part in layout.attachments)
