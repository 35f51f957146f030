"""A folder compared with what a client was told of it, for servers that do not remember what they removed.

It holds whatever a server's UIDs do: what is new and what is gone is told by nothing but the comparison. With
CONDSTORE (RFC 7162) the server says whose flags have changed; without, all flags are compared as well.
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from cbemail.errors import InvalidRequest
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import search
from cbemail.imap.protocol import Flag, SelectData, Uid
from cbemail.imap.search import SearchProgram
from cbemail.imap.sync import flags_of
from cbemail.mailbox.folder_state import Known, Memory, State
from cbemail.mailbox.summary import Flags

# Messages of a folder that is compared: what is listed for it, and kept of it for each client.
MAX_COMPARED = 100_000

_ALL = SearchProgram((b"ALL",))


class Comparison(Struct, frozen=True):
    """What is there and was not known, what was known and is gone, and what was known and is there: all of that, and
    those of it whose flags are others now. In ascending order."""

    fresh: list[Uid]
    removed: list[Uid]
    left: list[Uid]
    changed: dict[Uid, tuple[Flag, ...]]


class Basis(Struct, frozen=True):
    """What a folder is compared with: the messages a client knows; and the mod-sequence since which flags count, None
    where they have to be compared."""

    known: Known
    changed_since: int | None


def find_basis(box: SelectData, given: State, memory: Memory | None) -> Basis | None:
    """What the folder can be compared with, if there is anything: it is the same folder, what was known of it is still
    kept, and either side tells flags."""
    if memory is None or given.uid_validity != box.uid_validity:
        return None
    now, then = box.highest_modseq or 0, given.modseq or 0
    if 0 < then <= now:  # lower: the server lost count
        return Basis(memory.known, then)
    return None if None in memory.known.values() else Basis(memory.known, None)


async def compare(imap: ImapConnection, box: SelectData, given: State, basis: Basis) -> Comparison:
    """Compare the selected folder with what was known when ``given`` was given out.

    Raises:
        InvalidRequest: there are too many messages in it.
    """
    known = basis.known
    unmoved = box.exists == len(known) and box.uid_next == given.last + 1
    present = set(known) if unmoved else await present_uids(imap, box)
    left = sorted(present & known.keys())
    told: dict[Uid, tuple[Flag, ...]] = {}
    if basis.changed_since is None or basis.changed_since != box.highest_modseq:
        told = await flags_of(imap, left, changed_since=basis.changed_since)
    now = {uid: stable(told[uid]) for uid in left if uid in told}
    return Comparison(
        fresh=sorted(present - known.keys()),
        removed=sorted(known.keys() - present),
        left=left,
        changed={uid: flags for uid, flags in now.items() if known[uid] != flags},
    )


async def present_uids(imap: ImapConnection, box: SelectData) -> set[Uid]:
    """Every message of the selected folder.

    Raises:
        InvalidRequest: these are too many.
    """
    if box.exists <= MAX_COMPARED:
        found = await search(imap, _ALL)
        if found.count <= MAX_COMPARED:
            return set(found)
    raise InvalidRequest.at(
        "#/folder",
        f"This mail server does not tell what has changed, and a folder of more than {MAX_COMPARED} messages is not"
        " compared with what it was.",
    )


async def know_all(imap: ImapConnection, box: SelectData) -> Known:
    """All that is there, as what a client knows from now on."""
    present = sorted(await present_uids(imap, box))
    if box.highest_modseq:
        return dict.fromkeys(present)
    told = await flags_of(imap, present)
    return {uid: stable(told.get(uid, ())) for uid in present}


@lru_cache(maxsize=1_000)  # a folder has thousands of messages, and a dozen combinations of flags
def stable(flags: tuple[Flag, ...]) -> tuple[Flag, ...]:
    """Flags as they can be compared: servers give them in any order, and ``\\Recent`` to the first who looks."""
    return tuple(sorted(Flags.of(flags).flags))
