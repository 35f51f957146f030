"""What has happened in a folder since a client last asked.

A server with QRESYNC (RFC 7162) remembers what it removed, and tells as the folder is selected. For any other, what is
there is compared with what the client was told, which is kept for that.
"""

from __future__ import annotations

from itertools import islice

from msgspec import Struct, structs

from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import Found, search
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FetchData, Flag, FolderPath, SelectData, Uid
from cbemail.imap.repeating import repeatable
from cbemail.imap.search import SearchProgram
from cbemail.imap.sync import Resynced, Since, resync
from cbemail.imap.values import MAX_UID
from cbemail.mailbox.cache import Shelf
from cbemail.mailbox.comparison import Basis, compare, find_basis, know_all, stable
from cbemail.mailbox.folder_state import Known, Memory, State, StateKeeper
from cbemail.mailbox.rows import RowReader
from cbemail.mailbox.summary import Summary, Unreadable
from cbemail.timing import spent_on

# Removed messages in one answer. A server that names more has forgotten what it removed when, and names all that ever
# was: the client is better off beginning anew.
MAX_REMOVED = 100_000


class FlagChange(Struct, frozen=True):
    """All flags that a message has now."""

    uid: Uid
    flags: list[Flag]


class Changes(Struct, frozen=True):
    """What has happened, and the state it led to. ``new`` has the lowest UIDs first."""

    state: str
    new: list[Summary | Unreadable]
    flags: list[FlagChange]
    removed: list[Uid]
    reset: bool
    more: bool


class _Step(Struct, frozen=True):
    """From what a client knows to what it is about to know.

    ``page`` are the UIDs it is told of as new, and ``rows`` what there is to tell, beside what is ``listed`` already.
    ``known`` is what has to be kept for it from now on, where that is not what was kept before.
    """

    state: State
    page: list[Uid] = []
    more: bool = False
    removed: list[Uid] = []
    flags: dict[Uid, tuple[Flag, ...]] = {}
    reset: bool = False
    known: Known | None = None
    listed: dict[Uid, Summary] = {}
    rows: dict[Uid, FetchData] = {}


class FolderChanges:
    """Follows folders. Nothing here changes a message."""

    def __init__(
        self, pool: ImapPool, directory: FolderDirectory, rows: RowReader, keeper: StateKeeper
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._rows = rows
        self._keeper = keeper

    async def since(
        self,
        session_id: SessionId,
        folder_name: str,
        token: str | None,
        *,
        limit: int,
        snippets: bool = False,
    ) -> Changes:
        """What has happened since the state ``token``, with up to ``limit`` new messages; without one, the state now.

        Who goes from state to state misses nothing and is told nothing twice: each leads from what was known to how the
        folder was when it was selected, and what happens meanwhile is in the next. Where that cannot be said, it begins
        anew (``reset``): what was known counts no more, and all there is comes as new, page by page.

        Raises:
            InvalidRequest: this is no state of this folder; or the folder is too large to be compared.
        """
        folder = await self._directory.resolve(session_id, folder_name)
        given = self._keeper.read(session_id, folder, token) if token is not None else None
        memory = await self._keeper.recall(session_id, given) if given is not None else None

        async def look(imap: ImapConnection) -> _Step:
            found = await resync(imap, folder, _since(given))
            self._directory.show(session_id, imap)
            step = await _step(imap, found, given, memory, limit)
            shelf = Shelf(session_id, folder, step.state.uid_validity)
            listed = await self._rows.known(shelf, step.page, snippets=snippets)
            rows = await self._rows.fetch(imap, step.page, listed, snippets=snippets)
            return structs.replace(step, listed=listed, rows=rows)

        step = await repeatable(self._pool, session_id, None, look)
        state = await self._state_after(step, session_id, folder, memory)
        if token is None or state != given:
            token = self._keeper.write(session_id, folder, state)
        shelf = Shelf(session_id, folder, state.uid_validity)
        with spent_on("parse"):
            # One that is gone already is told as removed the next time, at most.
            present = [step.rows[uid] for uid in step.page if uid in step.rows]
            new = await self._rows.make(shelf, present, step.listed, snippets=snippets)
        return Changes(
            state=token,
            new=new,
            flags=[FlagChange(uid, list(flags)) for uid, flags in step.flags.items()],
            removed=step.removed,
            reset=step.reset,
            more=step.more,
        )

    async def _state_after(
        self, step: _Step, session_id: SessionId, folder: FolderPath, memory: Memory | None
    ) -> State:
        """The state that a step led to; what going on from there will take is kept."""
        if step.known is None:
            return step.state
        known = _with_page(step.known, step)
        kept = await self._keeper.keep(session_id, folder, known, after=memory)
        return structs.replace(step.state, kept=kept)


def _since(given: State | None) -> Since | None:
    if given is None or given.modseq is None:
        return None
    return Since(given.uid_validity, given.modseq, given.last)


async def _step(
    imap: ImapConnection, found: Resynced, given: State | None, memory: Memory | None, limit: int
) -> _Step:
    box = found.mailbox
    can_tell = "QRESYNC" in imap.enabled and box.highest_modseq is not None
    if can_tell and box.uid_next is not None and 0 < box.uid_next <= MAX_UID:
        now = State(box.uid_validity, box.highest_modseq, box.uid_next - 1)
        return _Step(now) if given is None else await _told(imap, found, given, now, limit)
    if given is None:
        known = await know_all(imap, box)
        return _Step(_state(box, max(known, default=0)), known=known)
    return await _compared(imap, box, given, find_basis(box, given, memory), limit)


# ---- where the server tells


async def _told(
    imap: ImapConnection, found: Resynced, given: State, now: State, limit: int
) -> _Step:
    removed = Found(_within(found.removed, 1, given.last))
    goes_on = (
        given.uid_validity == now.uid_validity
        and given.modseq is not None
        and given.modseq <= (now.modseq or 0)  # lower: the server lost count
        and given.last <= now.last
        and removed.count <= MAX_REMOVED
    )
    last = given.last if goes_on else 0
    page, more = await _new_uids(imap, last + 1, now.last, limit)
    return _Step(
        structs.replace(now, last=page[-1]) if more else now,
        page,
        more,
        removed=list(removed) if goes_on else [],
        flags={uid: stable(row) for uid, row in found.flags.items() if uid <= last},
        reset=not goes_on,
    )


async def _new_uids(
    imap: ImapConnection, first: int, last: int, limit: int
) -> tuple[list[Uid], bool]:
    """The lowest UIDs from ``first`` to ``last``, and whether there are more. Few are not looked for first: what is not
    there will not be in what is fetched."""
    if last - first < limit:
        return [Uid(uid) for uid in range(first, last + 1)], False
    found = await search(imap, SearchProgram((b"UID", b"%d:%d" % (first, last))))
    uids = list(islice(Found(_within(found.ranges, first, last)), limit + 1))
    return uids[:limit], len(uids) > limit


def _within(
    ranges: tuple[tuple[int, int], ...], lowest: int, highest: int
) -> tuple[tuple[int, int], ...]:
    """``ranges`` in order, without what lies outside: a server names four thousand million UIDs in a dozen octets."""
    clipped = ((max(first, lowest), min(last, highest)) for first, last in sorted(ranges))
    return tuple((first, last) for first, last in clipped if first <= last)


# ---- where what is there is compared


async def _compared(
    imap: ImapConnection, box: SelectData, given: State, basis: Basis | None, limit: int
) -> _Step:
    reset = basis is None
    basis = basis or Basis({}, None)
    found = await compare(imap, box, given, basis)
    page, more = found.fresh[:limit], len(found.fresh) > limit
    known: Known = dict.fromkeys([*found.left, *page])
    if not box.highest_modseq:  # the next time, too, flags will have to be compared
        known |= {uid: found.changed.get(uid, basis.known[uid]) for uid in found.left}
    highest = page[-1] if page else max(found.left, default=0)
    is_kept = not reset and not page and known == basis.known
    return _Step(
        _state(box, highest, kept=given.kept, more=more),
        page,
        more,
        found.removed,
        found.changed,
        reset,
        known=None if is_kept else known,
    )


def _state(box: SelectData, highest: int, *, kept: str | None = None, more: bool = False) -> State:
    """The state in which the UIDs up to ``highest`` are known, and with ``more`` no others have been looked at."""
    last = highest if more else max(highest, (box.uid_next or 1) - 1)
    return State(box.uid_validity, box.highest_modseq, last, kept)


def _with_page(known: Known, step: _Step) -> Known:
    """``known`` with the flags that new messages are told with, where flags are compared."""
    if step.state.modseq is not None:
        return known
    told = {uid: stable(step.rows[uid].flags or ()) for uid in step.page if uid in step.rows}
    return known | dict.fromkeys(step.page, ()) | told
