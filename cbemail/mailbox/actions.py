"""Changing mail: marks, moves, copies, deletes and appends, of one message or of ten thousand."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.errors import InvalidRequest, MessageNotFound
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import append, chunks, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import (
    ANSWERED,
    FLAGGED,
    SEEN,
    Flag,
    FolderPath,
    Relocated,
    Uid,
    UidSet,
    UidValidity,
)
from cbemail.imap.relocation import copy, expunge, move
from cbemail.imap.repeating import awake, begin, repeatable
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.finding import find, program_for
from cbemail.mailbox.summary import Flags

MAX_FLAGS = 20  # in one call: a UID set goes before them, and a command line has its limits
MAX_BULK = 10_000  # messages one bulk call changes; it is one command a chunk, so the bound is the answer's size


class Change(Struct, frozen=True):
    """Flags to set and to take away."""

    add: tuple[Flag, ...]
    remove: tuple[Flag, ...]


def flag_change(
    *,
    read: bool | None,
    flagged: bool | None,
    answered: bool | None,
    add_flags: Sequence[str],
    remove_flags: Sequence[str],
) -> Change:
    """The change that the fields of a mark request mean.

    Raises:
        InvalidRequest: it would change nothing, or sets and removes the same flag.
    """
    for flags, pointer in ((add_flags, "#/add_flags"), (remove_flags, "#/remove_flags")):
        _require_few(flags, pointer)
    wanted = ((read, SEEN), (flagged, FLAGGED), (answered, ANSWERED))
    add = [flag for value, flag in wanted if value is True] + [Flag(f) for f in add_flags]
    remove = [flag for value, flag in wanted if value is False] + [Flag(f) for f in remove_flags]
    both = {flag.lower() for flag in add} & {flag.lower() for flag in remove}
    if both:
        raise InvalidRequest(f"The flag {min(both)} cannot be both set and removed.")
    if not add and not remove:
        raise InvalidRequest(
            "Name at least one change: read, flagged, answered, add_flags or remove_flags."
        )
    return Change(tuple(add), tuple(remove))


def _require_few(flags: Sequence[str], pointer: str) -> None:
    if len(flags) > MAX_FLAGS:
        raise InvalidRequest.at(pointer, f"One call takes at most {MAX_FLAGS} flags.")


class Marked(Flags, frozen=True):
    """The flags of a message as the server has them now."""

    uid: Uid
    folder: FolderPath


class Place(Struct, frozen=True):
    """Where a message is now; ``uid`` is None only where the server cannot tell (no UIDPLUS)."""

    folder: FolderPath
    uid: Uid | None
    uid_validity: UidValidity | None


class Deletion(StrEnum):
    TRASHED = "trashed"
    EXPUNGED = "expunged"


class Deleted(Struct, frozen=True):
    """What became of a deleted message, and where it is now: nowhere (None) when expunged."""

    deleted: Deletion
    folder: FolderPath | None
    uid: Uid | None


class BulkResult(Struct, frozen=True, omit_defaults=True):
    """One message that was changed; ``new_uid`` is its UID in the destination of a move or copy, if known."""

    uid: Uid
    new_uid: Uid | None = None


class BulkAnswer(Struct, frozen=True):
    """``matched`` messages were there, ``changed`` of them were changed; ``missing`` were named and are not there."""

    matched: int
    changed: int
    results: list[BulkResult]
    missing: list[Uid]


class MailboxActions:
    """Every call resolves its folders, leases one connection, and says what the server made of it."""

    def __init__(self, pool: ImapPool, directory: FolderDirectory, clock: Clock) -> None:
        self._pool = pool
        self._directory = directory
        self._clock = clock

    async def mark(
        self, session_id: SessionId, folder_name: str, uid: Uid, change: Change
    ) -> Marked:
        """Change flags of one message. One that is gone is a MessageNotFound."""
        folder = await self._directory.resolve(session_id, folder_name)

        async def store(imap: ImapConnection) -> Flags:
            self._directory.require_shown(session_id, imap)
            _require_storable(imap, change)
            rows = await store_flags(imap, UidSet([uid]), add=change.add, remove=change.remove)
            if uid not in rows:  # UID STORE of an absent UID answers OK (RFC 9051 section 6.4.9)
                raise _no_message(uid, folder)
            return Flags.of(rows[uid])

        flags = await repeatable(self._pool, session_id, folder, store)
        return Marked(
            flags.flags, flags.read, flags.flagged, flags.answered, flags.draft, uid, folder
        )

    async def move(
        self, session_id: SessionId, folder_name: str, uid: Uid, destination_name: str
    ) -> Place:
        """Move one message and say where it is now. Moving what is not there is a MessageNotFound."""
        folder = await self._directory.resolve(session_id, folder_name)
        destination = await self._directory.resolve(session_id, destination_name)
        _require_another(folder, destination)
        async with self._changing(session_id, folder, [uid]) as imap:
            told = await move(imap, UidSet([uid]), destination)
        return _place(told, uid, folder, destination)

    async def copy(
        self, session_id: SessionId, folder_name: str, uid: Uid, destination_name: str
    ) -> Place:
        """Copy one message; as `move`."""
        folder = await self._directory.resolve(session_id, folder_name)
        destination = await self._directory.resolve(session_id, destination_name)
        async with self._changing(session_id, folder, [uid]) as imap:
            told = await copy(imap, UidSet([uid]), destination)
        return _place(told, uid, folder, destination)

    async def delete(
        self, session_id: SessionId, folder_name: str, uid: Uid, *, permanent: bool
    ) -> Deleted:
        """To the trash; or for good, where it is in the trash already, there is no trash, or ``permanent``."""
        folder = await self._directory.resolve(session_id, folder_name)
        trash = None if permanent else await self._directory.with_role(session_id, "trash")
        async with self._changing(session_id, folder, [uid]) as imap:
            if trash is None or trash == folder:
                if uid not in await expunge(imap, UidSet([uid])):
                    raise _no_message(uid, folder)
                return Deleted(Deletion.EXPUNGED, None, None)
            told = await move(imap, UidSet([uid]), trash)
        place = _place(told, uid, folder, trash)
        return Deleted(Deletion.TRASHED, place.folder, place.uid)

    async def append(
        self,
        session_id: SessionId,
        folder_name: str,
        content: bytes,
        *,
        flags: Sequence[Flag],
        received_at: datetime | None = None,
    ) -> Place:
        """Store a message as it is. A folder that does not exist is a FolderNotFound."""
        _require_few(flags, "#/flags")
        folder = await self._directory.resolve(session_id, folder_name)
        async with awake(self._pool, session_id) as imap:
            told = await append(imap, folder, content, flags=flags, received_at=received_at)
        return Place(folder, told.uid, told.uid_validity)

    # ---- many at once

    async def bulk_mark(
        self, session_id: SessionId, folder_name: str, chosen: "Chosen", change: Change
    ) -> BulkAnswer:
        """Change flags of all that are chosen."""
        folder = await self._directory.resolve(session_id, folder_name)
        async with self._changing(session_id, folder, chosen) as imap:
            _require_storable(imap, change)
            uids = await self._choose(imap, chosen)
            done: list[BulkResult] = []
            for chunk in chunks(uids):
                rows = await store_flags(imap, chunk, add=change.add, remove=change.remove)
                done += [BulkResult(uid) for uid in chunk if uid in rows]
        return _bulk_answer(uids, done)

    async def bulk_relocate(
        self,
        session_id: SessionId,
        folder_name: str,
        chosen: "Chosen",
        destination_name: str,
        *,
        keep: bool,
    ) -> BulkAnswer:
        """Move (or with ``keep`` copy) all that are chosen."""
        folder = await self._directory.resolve(session_id, folder_name)
        destination = await self._directory.resolve(session_id, destination_name)
        if not keep:
            _require_another(folder, destination)
        async with self._changing(session_id, folder, chosen) as imap:
            uids = await self._choose(imap, chosen)
            return await _bulk_relocate(imap, uids, destination, keep=keep)

    async def bulk_delete(
        self, session_id: SessionId, folder_name: str, chosen: "Chosen", *, permanent: bool
    ) -> BulkAnswer:
        """Delete all that are chosen, by the rules of `delete`."""
        folder = await self._directory.resolve(session_id, folder_name)
        trash = None if permanent else await self._directory.with_role(session_id, "trash")
        async with self._changing(session_id, folder, chosen) as imap:
            uids = await self._choose(imap, chosen)
            if trash is not None and trash != folder:
                return await _bulk_relocate(imap, uids, trash, keep=False)
            gone = [BulkResult(uid) for chunk in chunks(uids) for uid in await expunge(imap, chunk)]
        return _bulk_answer(uids, gone)

    def _changing(
        self, session_id: SessionId, folder: FolderPath, chosen: "Chosen"
    ) -> AbstractAsyncContextManager[ImapConnection]:
        """Lend a connection on which ``folder`` is what the client means by it: selected this very moment, and where it
        has chosen by UID, the one whose UIDs it knows."""

        async def start(imap: ImapConnection, _: AsyncExitStack) -> ImapConnection:
            if not isinstance(chosen, SearchFilter):
                self._directory.require_shown(session_id, imap)
            return imap

        return begin(self._pool, session_id, folder, start, anew=True)

    async def _choose(self, imap: ImapConnection, chosen: "Chosen") -> list[Uid]:
        if not isinstance(chosen, SearchFilter):
            return sorted(set(chosen))
        found = await find(imap, program_for(imap, chosen, self._clock().date()))
        if found.count > MAX_BULK:
            raise InvalidRequest.at(
                "#/filter",
                f"The filter fits {found.count} messages, and one call changes at most {MAX_BULK}: narrow it.",
            )
        return list(found)


Chosen = Sequence[Uid] | SearchFilter  # messages by UID, or all that fit a filter


def _place(told: Relocated, uid: Uid, folder: FolderPath, destination: FolderPath) -> Place:
    if uid not in told.uids:
        raise _no_message(uid, folder)
    return Place(destination, told.uids[uid], told.uid_validity)


async def _bulk_relocate(
    imap: ImapConnection, uids: Sequence[Uid], destination: FolderPath, *, keep: bool
) -> BulkAnswer:
    done: list[BulkResult] = []
    for chunk in chunks(uids):
        told = await (copy if keep else move)(imap, chunk, destination)
        done += [BulkResult(uid, new) for uid, new in told.uids.items()]
    return _bulk_answer(uids, done)


def _bulk_answer(uids: Sequence[Uid], done: Sequence[BulkResult]) -> BulkAnswer:
    changed = {result.uid for result in done}
    return BulkAnswer(
        matched=len(changed),
        changed=len(changed),
        results=sorted(done, key=lambda result: result.uid),
        missing=[uid for uid in uids if uid not in changed],
    )


def _require_another(folder: FolderPath, destination: FolderPath) -> None:
    if folder == destination:
        raise InvalidRequest.at("#/destination", f"The message already is in {folder}.")


def _require_storable(imap: ImapConnection, change: Change) -> None:
    """A flag the mailbox cannot keep would seem set, and be gone with the connection (PERMANENTFLAGS, RFC 9051 7.1)."""
    permanent = imap.selected.permanent_flags if imap.selected is not None else None
    if permanent is None or "\\*" in permanent:
        return
    known = {flag.lower() for flag in permanent}
    for flag in change.add:
        if flag.lower() not in known:
            raise InvalidRequest(f"This folder cannot keep the flag {flag}.")


def _no_message(uid: Uid, folder: FolderPath) -> MessageNotFound:
    return MessageNotFound(f"There is no message {uid} in {folder}.")
