"""What a client knows of a folder, as the token it carries; and what is kept for it where the server forgets.

The token is sealed: it opens only for its session and folder, so nobody can make one up.
"""

import secrets
import zlib
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from hashlib import blake2b

import msgspec
from msgspec import Struct

from cbemail.clock import Clock
from cbemail.errors import InvalidRequest
from cbemail.ids import SessionId
from cbemail.imap.protocol import Flag, FolderPath, Uid, UidSet, UidValidity
from cbemail.sessions.vault import Vault, VaultError
from cbemail.store.folder_states import FolderStateRecord, FolderStates
from cbemail.turns import off_the_loop

STATES_KEPT = timedelta(days=7)  # unused
_TOUCH_EVERY = timedelta(days=1)  # not each time it is used: that would be a write to each look

_FIELD = "changes"  # what the vault seals tokens as
_PACKED = 4  # what an octet of the packed form, or a message, costs to read or write, in octets of other work

# The flags of each message, where a comparison will need them; else None of each.
Known = dict[Uid, tuple[Flag, ...] | None]


class State(Struct, frozen=True, array_like=True):
    """How far a client has come: it knows what had happened up to ``modseq``, to the UIDs up to ``last``.

    ``kept`` names what else has to be known where the server cannot tell what was removed.
    """

    uid_validity: UidValidity
    modseq: int | None
    last: int
    kept: str | None = None


class _Token(Struct, frozen=True, array_like=True):
    """A state, and the folder it is of."""

    folder: bytes
    state: State


class Memory(Struct, frozen=True):
    """The messages a client knows, and the row that says so."""

    known: Known
    record: FolderStateRecord


_tokens = msgspec.msgpack.Decoder(_Token)
# For each combination of flags the UIDs that have it, as runs: how far from the run before, and how long.
_Packed = list[tuple[tuple[Flag, ...] | None, list[int]]]
_packed = msgspec.msgpack.Decoder(_Packed)


class StateKeeper:
    """Gives out states, and takes them back."""

    def __init__(self, vault: Vault, store: FolderStates, clock: Clock) -> None:
        self._vault = vault
        self._store = store
        self._clock = clock

    def write(self, session_id: SessionId, folder: FolderPath, state: State) -> str:
        """The state as a client carries it."""
        token = msgspec.msgpack.encode(_Token(digest(folder), state))
        sealed = self._vault.seal(session_id, _FIELD, token)
        return sealed.rstrip(b"=").decode()

    def read(self, session_id: SessionId, folder: FolderPath, token: str) -> State:
        """What `write` was given, for this session and folder; anything else is an InvalidRequest."""
        sealed = token.encode("ascii", "replace")
        try:
            opened = self._vault.open(session_id, _FIELD, sealed + b"=" * (-len(sealed) % 4))
            content = _tokens.decode(opened)
        except (VaultError, msgspec.DecodeError) as exc:
            raise _no_state() from exc
        if content.folder != digest(folder):
            raise _no_state()
        return content.state

    async def recall(self, session_id: SessionId, state: State) -> Memory | None:
        """What is kept for a state; None where nothing is, or not any more."""
        record = await self._store.find(session_id, state.kept) if state.kept is not None else None
        if record is None:
            return None
        now = self._clock()
        if now - record.used_at > _TOUCH_EVERY:
            await self._store.touch(record, now)
        try:
            packed = self._vault.open(session_id, _field(record.id), record.sealed)
        except VaultError:  # its key is gone
            return None
        return Memory(await off_the_loop(len(packed) * _PACKED, partial(unpack, packed)), record)

    async def keep(
        self, session_id: SessionId, folder: FolderPath, known: Known, after: Memory | None
    ) -> str:
        """Keep what a client is about to know, ``after`` what it knew; give its name for the state."""
        packed = await off_the_loop(len(known) * _PACKED, partial(pack, known))
        state_id = secrets.token_hex(12)
        record = FolderStateRecord(
            id=state_id,
            session_id=session_id,
            folder=digest(folder),
            line=after.record.line if after is not None else state_id,
            step=after.record.step + 1 if after is not None else 0,
            sealed=self._vault.seal(session_id, _field(state_id), packed),
            used_at=self._clock(),
        )
        await self._store.keep(record)
        return state_id


def digest(folder: FolderPath) -> bytes:
    """What stands for a folder where its name is nobody's business."""
    return blake2b(folder.encode(), digest_size=8).digest()


def pack(known: Known) -> bytes:
    """``known`` in few octets: a folder of twenty thousand messages in some twenty thousand at most."""
    by_flags: dict[tuple[Flag, ...] | None, list[Uid]] = {}
    for uid, flags in known.items():
        by_flags.setdefault(flags, []).append(uid)
    packed = [(flags, _runs(uids)) for flags, uids in by_flags.items()]
    return zlib.compress(msgspec.msgpack.encode(packed))


def unpack(octets: bytes) -> Known:
    """What `pack` was given."""
    known: Known = {}
    for flags, runs in _packed.decode(zlib.decompress(octets)):
        end = 0
        for gap, length in zip(runs[::2], runs[1::2], strict=True):
            start = end + gap
            end = start + length
            known.update((Uid(uid), flags) for uid in range(start, end))
    return known


def _runs(uids: Iterable[Uid]) -> list[int]:
    runs: list[int] = []
    end = 0
    for first, last in UidSet(uids).ranges():
        runs += (first - end, last + 1 - first)
        end = last + 1
    return runs


def _field(state_id: str) -> str:
    return f"folder-state/{state_id}"


def _no_state() -> InvalidRequest:
    return InvalidRequest.at(
        "#/since", "This is no state of this folder: ask without since, and list the folder again."
    )
