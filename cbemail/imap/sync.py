"""What has happened in a mailbox since it was last looked at (RFC 7162): options in, data out."""

from collections.abc import Sequence

from msgspec import Struct

from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.parser import capabilities, fetch_data, vanished_data
from cbemail.imap.protocol import Flag, FolderPath, SelectData, Uid, UidValidity
from cbemail.imap.selecting import select_with, unselect
from cbemail.imap.wire import Command
from cbemail.turns import Turn

_ENABLE = Command("ENABLE", (b"QRESYNC",))

# Messages whose flags are asked for in one FETCH: a fifth of what one flight may bring.
FLAG_ROWS = 20_000


class Since(Struct, frozen=True):
    """What is known of a mailbox: all that had happened up to ``modseq``, to the UIDs up to ``last``."""

    uid_validity: UidValidity
    modseq: int
    last: int


class Resynced(Struct, frozen=True):
    """A mailbox as it was the moment it was selected, and what had become until then of what was known.

    Where the server keeps no record of what was removed, or the mailbox is not the one that was known, ``removed`` and
    ``flags`` are empty. ``removed`` may name UIDs that never were, and four thousand million of them.
    """

    mailbox: SelectData
    removed: tuple[tuple[int, int], ...] = ()
    flags: dict[Uid, tuple[Flag, ...]] = {}


async def resync(
    connection: ImapConnection, folder: FolderPath, since: Since | None = None
) -> Resynced:
    """Select ``folder`` and learn, in the same round trip, what has happened ``since`` (RFC 7162 section 3.2.5).

    The mailbox's own moment is the one of the SELECT: what happens from then on is not in the answer, whatever is told
    of it in passing, and will be in the next, since its mod-sequence is above ``highest_modseq``.

    Raises:
        FolderNotFound: there is none, or it holds no messages.
    """
    parameter: tuple[bytes, ...] = ()
    if await remembers_removed(connection) and since is not None and since.last > 0:
        known = (since.uid_validity, since.modseq, since.last)
        parameter = (b"(QRESYNC (%d %d 1:%d))" % known,)
    elif not connection.capabilities.isdisjoint({"CONDSTORE", "QRESYNC"}):
        parameter = (b"(CONDSTORE)",)
    mailbox, completion = await select_with(connection, folder, *parameter)
    if not parameter:
        mailbox.highest_modseq = None  # it may be told all the same, and be of no use
    vanished = completion.read("VANISHED", vanished_data)
    removed = [each for told in vanished if told.earlier for each in told.ranges]
    return Resynced(mailbox, tuple(removed), await _flags_told(completion))


async def remembers_removed(connection: ImapConnection) -> bool:
    """Whether the server has QRESYNC, which is enabled then: once a connection, and with no mailbox selected (RFC 5161
    section 3.1). From then on VANISHED takes the place of EXPUNGE."""
    if "QRESYNC" in connection.capabilities and "QRESYNC" not in connection.enabled:
        is_selected = connection.selected is not None or connection.to_unselect
        if is_selected and "UNSELECT" in connection.capabilities:
            await unselect(connection)
        completion = await connection.run_one(_ENABLE)
        told = [capabilities(response) for response in completion.untagged("ENABLED")]
        connection.enabled = frozenset().union(*told)
        if "QRESYNC" not in connection.enabled:
            connection.capabilities -= {"QRESYNC"}  # so that it is not asked each time
    return "QRESYNC" in connection.enabled


async def flags_of(
    connection: ImapConnection, uids: Sequence[Uid], *, changed_since: int | None = None
) -> dict[Uid, tuple[Flag, ...]]:
    """The flags of ``uids``, in ascending order: all of them, or of those that have changed since a mod-sequence
    (RFC 7162 section 3.1.4.1). What is gone is not in the answer; what is told of others is."""
    modifier = (b"(CHANGEDSINCE %d)" % changed_since,) if changed_since is not None else ()
    flags: dict[Uid, tuple[Flag, ...]] = {}
    for start in range(0, len(uids), FLAG_ROWS):
        chunk = uids[start : start + FLAG_ROWS]
        span = b"%d:%d" % (chunk[0], chunk[-1])
        command = Command("UID FETCH", (span, b"(UID FLAGS)", *modifier))
        flags |= await _flags_told(await connection.run_one(command))
    return flags


async def _flags_told(completion: Completion) -> dict[Uid, tuple[Flag, ...]]:
    """By UID. A change that a server tells of by number only is one it was not asked for, and will tell again."""
    flags: dict[Uid, tuple[Flag, ...]] = {}
    turn = Turn()
    for response in completion.untagged("FETCH"):
        await turn.share()
        row = fetch_data(response)
        if row.uid is not None and row.flags is not None:
            flags[row.uid] = row.flags
    return flags
