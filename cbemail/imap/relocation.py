"""Messages that leave a mailbox or come to stand in another: COPY, MOVE and EXPUNGE (RFC 9051 section 6.4)."""

import asyncio
from collections.abc import Iterable
from weakref import WeakValueDictionary

from cbemail.errors import UpstreamError
from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.messages import chunks, store_command
from cbemail.imap.naming import run_naming
from cbemail.imap.parser import copyuid, search_uids
from cbemail.imap.protocol import DELETED, FolderPath, Relocated, StatusResponse, Uid, UidSet
from cbemail.imap.wire import Command, flag_list

_NOOP = Command("NOOP")
_EXPUNGE = Command("EXPUNGE")
_DELETED = flag_list([DELETED])

EXPUNGES = (
    3  # tries of a plain EXPUNGE; a server busy with another's leaves a message behind now and then
)


async def copy(connection: ImapConnection, uids: UidSet, destination: FolderPath) -> Relocated:
    """UID COPY. A destination that does not exist is a FolderNotFound, never created (RFC 9051 6.4.7)."""
    completion = await _relocate(connection, "UID COPY", uids, destination)
    return _told(completion) or _untold(await existing(connection, uids))


async def existing(connection: ImapConnection, uids: UidSet) -> list[Uid]:
    """Those of ``uids`` that are in the mailbox."""
    return await _uids_found(connection, b"UID", str(uids).encode())


async def _uids_found(connection: ImapConnection, *keys: bytes) -> list[Uid]:
    completion = await connection.run_one(Command("UID SEARCH", keys))
    return [uid for found in completion.read("SEARCH", search_uids) for uid in found]


async def move(connection: ImapConnection, uids: UidSet, destination: FolderPath) -> Relocated:
    """UID MOVE (RFC 6851), or where it is missing the COPY, STORE, EXPUNGE it stands for, of these messages only."""
    if "MOVE" not in connection.capabilities:
        copied = await copy(connection, uids, destination)
        if (
            copied.uids
        ):  # only what was copied: a message that came back in between stays where it is
            await expunge(connection, UidSet(copied.uids))
        return copied
    tells = "UIDPLUS" in connection.capabilities
    there = list(uids) if tells else await existing(connection, uids)
    completion = await _relocate(connection, "UID MOVE", uids, destination)
    left = completion.untagged("EXPUNGE") or completion.untagged("VANISHED")
    return _told(completion) or _untold(there if left or not tells else [])


async def _relocate(
    connection: ImapConnection, verb: str, uids: UidSet, destination: FolderPath
) -> Completion:
    completion = await run_naming(
        connection,
        destination,
        lambda name: Command(verb, (str(uids).encode(), name)),
        pointer="#/destination",
    )
    return completion.require_ok()


def _told(completion: Completion) -> Relocated | None:
    """What COPYUID tells; a MOVE may give it several times, untagged (RFC 6851 4.3). None where it tells nothing: the
    server has no UIDPLUS, or may not say (RFC 4315 section 3), or there was nothing to relocate."""
    merged: Relocated | None = None
    for response in (*completion.responses, completion.status):
        code = response.code if isinstance(response, StatusResponse) else None
        if code is not None and code.name == "COPYUID":
            told = copyuid(code)
            if told is None:
                return None
            uids = told.uids if merged is None else merged.uids | told.uids
            merged = Relocated(told.uid_validity, uids)
    return merged


def _untold(uids: Iterable[Uid]) -> Relocated:
    """Relocated, where to is not known."""
    return Relocated(None, dict.fromkeys(uids))


async def expunge(connection: ImapConnection, uids: UidSet) -> list[Uid]:
    """Remove ``uids`` for good, and no other message, though it be flagged ``\\Deleted``; say which were there.

    Without UID EXPUNGE (RFC 4315) a plain EXPUNGE would take every deleted message: the mark is taken from the others
    for that moment, in which no other such EXPUNGE of ours may run in the mailbox. Should we die then, they are kept
    rather than lost.
    """
    if "UIDPLUS" in connection.capabilities:
        return await _uid_expunge(connection, uids)
    there = await existing(connection, uids)
    if not there:
        return []
    async with _alone_in_mailbox(connection):
        left = there
        for _ in range(EXPUNGES):
            await _expunge_only(connection, UidSet(left))
            left = await existing(connection, UidSet(left))
            if not left:
                return there
    raise UpstreamError(
        "The mail server did not remove what it was told to remove.",
        protocol="imap",
        command="EXPUNGE",
    )


async def _uid_expunge(connection: ImapConnection, uids: UidSet) -> list[Uid]:
    """In one flight, the question first which are there: neither STORE nor EXPUNGE tells that for sure."""
    chosen = str(uids).encode()
    completions = await connection.run(
        Command("UID SEARCH", (b"UID", chosen)),
        store_command(uids, b"+FLAGS.SILENT", _DELETED),
        Command("UID EXPUNGE", (chosen,)),
    )
    for completion in completions:
        completion.require_ok()
    return [uid for found in completions[0].read("SEARCH", search_uids) for uid in found]


async def _expunge_only(connection: ImapConnection, uids: UidSet) -> None:
    await connection.run_one(_NOOP)  # marks made over another connection may be news to this one
    others = set(await _uids_found(connection, b"DELETED")) - set(uids)
    await _set_deleted(connection, b"-FLAGS.SILENT", others)
    completions = await connection.run(store_command(uids, b"+FLAGS.SILENT", _DELETED), _EXPUNGE)
    await _set_deleted(connection, b"+FLAGS.SILENT", others)
    for completion in completions:
        completion.require_ok()


_expunging: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()


def _alone_in_mailbox(connection: ImapConnection) -> asyncio.Lock:
    """The lock of the selected mailbox, shared by all connections to it, of whatever session."""
    path = connection.selected.path if connection.selected is not None else ""
    return _expunging.setdefault((connection.account, path), asyncio.Lock())


async def _set_deleted(connection: ImapConnection, verb: bytes, uids: Iterable[Uid]) -> None:
    for chunk in chunks(uids):
        await connection.run_one(store_command(chunk, verb, _DELETED))
