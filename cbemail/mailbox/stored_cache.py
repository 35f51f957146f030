"""The cache below memory: what was read of mailboxes stays known through restarts, and where memory is too small.

Nothing waits for it to write: values gather in memory, and go to disk together, about once a second.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import anyio.to_thread
from msgspec import Struct

from cbemail.clock import Clock
from cbemail.errors import CbemailError
from cbemail.ids import SessionId
from cbemail.mailbox.cache_key import CacheKey, CacheKeyError, Name, Shape
from cbemail.memory import SessionMemory
from cbemail.sessions.vault import Vault, VaultError
from cbemail.store.cache_file import CachedValue, CacheFile, FoundValue
from cbemail.store.cache_keys import CacheKeys
from cbemail.turns import off_the_loop

log = logging.getLogger(__name__)

V = TypeVar("V")

QUEUE_OCTETS = 4 * 1024 * 1024  # what waits to be written at most; more than that is not kept
FLUSH_SECONDS = 1.0  # between writes
TIDY_SECONDS = 60.0  # between looks for what is of no more use
TOUCH_SECONDS = 3600  # what was used less long ago need not be said to be in use

_KEYS_OCTETS = 1024 * 1024
_KEY_OCTETS = 500
_KEY = "key"
_FIELD = "cache"  # what the vault seals keys as


class _Slot(Struct, frozen=True):
    """The key of a session; None where it has none yet, and so nothing is kept of it."""

    key: CacheKey | None


class _Waiting(Struct, frozen=True):
    shape: Shape[Any]
    name: Name
    packed: bytes


class StoredCache:
    """Values of sessions by shape and name. What fails here is a miss, and no error to anybody.

    A session's values are sealed with a key of its own, which goes with the session in the same write.
    """

    def __init__(
        self, file: CacheFile, keys: CacheKeys, vault: Vault, clock: Clock, *, kept: timedelta
    ) -> None:
        self._file = file
        self._sealed_keys = keys
        self._vault = vault
        self._clock = clock
        self._kept = kept
        self._keys: SessionMemory[str, _Slot] = SessionMemory(_KEYS_OCTETS)
        self._waiting: dict[tuple[SessionId, bytes, Name], _Waiting] = {}
        self._octets = 0  # that wait
        self._touched: set[tuple[SessionId, bytes]] = set()
        self._ended: list[SessionId] = []
        self._writing = asyncio.Lock()

    @property
    def octets(self) -> int:
        """What the values take on disk."""
        return self._file.octets

    async def find(
        self, session_id: SessionId, shape: Shape[V], names: Iterable[Name]
    ) -> dict[Name, tuple[V, int]]:
        """Those of the values that are kept, and how many octets each was packed in."""
        try:
            key = await self._key(session_id)
        except CbemailError:  # the store is full or has failed: the mail server is asked, then
            return {}
        if key is None:
            return {}
        places = {key.place(shape, name): name for name in names}
        found = await self._file.find(session_id, places)
        self._touch_old(session_id, found)
        octets = sum(len(value.sealed) for value in found.values())
        return await off_the_loop(octets, partial(_open_all, key, shape, places, found))

    def put(self, session_id: SessionId, shape: Shape[Any], name: Name, packed: bytes) -> None:
        """Keep a value, as its shape packs it, in the place of what was there; unless too much waits."""
        place = (session_id, shape.format, name)
        before = self._waiting.pop(place, None)
        self._octets -= len(before.packed) if before is not None else 0
        if self._octets + len(packed) > QUEUE_OCTETS:
            return
        self._waiting[place] = _Waiting(shape, name, packed)
        self._octets += len(packed)

    def touch(self, session_id: SessionId, shape: Shape[Any], name: Name) -> None:
        """The value is in use, though nobody had to ask for it here."""
        slot = self._keys.get(session_id, _KEY)
        if slot is not None and slot.key is not None:
            self._touched.add((session_id, slot.key.place(shape, name)))

    def forget(self, session_id: SessionId) -> None:
        """The session is gone, and its key with it: nothing opens any more, and is deleted with the next write."""
        self._keys.end(session_id)
        self._ended.append(session_id)

    async def run(self) -> None:
        """Write what was read, and now and then delete what is of no more use, for ever."""
        tidied = -TIDY_SECONDS
        while True:
            if monotonic() - tidied >= TIDY_SECONDS:
                tidied = monotonic()
                await self.tidy()
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write what waits: all of it, even where the caller is cancelled."""
        await asyncio.shield(asyncio.create_task(self._flush()))

    async def tidy(self) -> None:
        """Delete what nobody has used for too long, and what is of sessions that there are no more."""
        async with self._tolerantly():
            await self._file.retain(await self._sealed_keys.sessions())
            await self._file.purge(self._clock() - self._kept)

    async def _flush(self) -> None:
        async with self._tolerantly():
            waiting, self._waiting, self._octets = self._waiting, {}, 0
            touched, self._touched = self._touched, set()
            ended, self._ended = self._ended, []
            now = self._clock()
            for session_id in ended:
                await self._file.forget(session_id)
            if touched:
                await self._file.touch(touched, now)
            of_session: dict[SessionId, list[_Waiting]] = {}
            for (session_id, *_), value in waiting.items():
                of_session.setdefault(session_id, []).append(value)
            for session_id, values in of_session.items():
                key = await self._key(session_id) or await self._new_key(session_id)
                if key is not None:
                    seal = partial(_seal_all, key, session_id, values)
                    await self._file.keep(await anyio.to_thread.run_sync(seal), now)

    @asynccontextmanager
    async def _tolerantly(self) -> AsyncIterator[None]:
        """One at a time. A store that is full or failed for the moment ends nothing."""
        async with self._writing:
            try:
                yield
            except CbemailError as error:
                log.warning("mail was not kept on disk: %s", error.code)

    async def _key(self, session_id: SessionId) -> CacheKey | None:
        """The session's key; None where it has none, or SECRET_KEY was replaced since."""
        slot = self._keys.get(session_id, _KEY)
        if slot is not None:
            return slot.key
        sealed = await self._sealed_keys.find(session_id)
        slot = self._keys.get(session_id, _KEY)  # one may have been made meanwhile
        if slot is None:
            slot = _Slot(self._opened(session_id, sealed) if sealed is not None else None)
            self._keys.put(session_id, _KEY, slot, _KEY_OCTETS)
        return slot.key

    def _opened(self, session_id: SessionId, sealed: bytes) -> CacheKey | None:
        try:
            return CacheKey(self._vault.open(session_id, _FIELD, sealed))
        except VaultError:
            return None

    async def _new_key(self, session_id: SessionId) -> CacheKey | None:
        """A key for the session from now on; None where it has ended."""
        key = CacheKey.new()
        sealed = self._vault.seal(session_id, _FIELD, key.secret)
        if not await self._sealed_keys.keep(session_id, sealed):
            return None
        self._keys.put(session_id, _KEY, _Slot(key), _KEY_OCTETS)
        return key

    def _touch_old(self, session_id: SessionId, found: dict[bytes, FoundValue]) -> None:
        oldest = self._clock().timestamp() - TOUCH_SECONDS
        self._touched |= {
            (session_id, place) for place, value in found.items() if value.used_at < oldest
        }


def _open_all(
    key: CacheKey, shape: Shape[V], places: dict[bytes, Name], found: dict[bytes, FoundValue]
) -> dict[Name, tuple[V, int]]:
    opened = {}
    for place, value in found.items():
        with suppress(CacheKeyError):  # it counts as not kept, until another takes its place
            packed = key.open(place, value.sealed)
            opened[places[place]] = (shape.unpack(packed), len(packed))
    return opened


def _seal_all(
    key: CacheKey, session_id: SessionId, values: Sequence[_Waiting]
) -> list[CachedValue]:
    sealed = []
    for each in values:
        place = key.place(each.shape, each.name)
        sealed.append(CachedValue(session_id, place, key.seal(place, each.packed)))
    return sealed
