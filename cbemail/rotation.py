"""Everything that is sealed, sealed anew under the newest key: what `cbemail keys rotate` does.

Page by page, each on disk before the next, and no value harmed by being looked at twice: where it was interrupted it
is simply run again. Last the file is written anew, since the old values can be found in it for as long as nothing else
has taken their room.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, structs

from cbemail.sessions.keys import KeyRing
from cbemail.sessions.vault import Vault, VaultError
from cbemail.store.compaction import compact
from cbemail.store.database import StoreUnusable
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.sealed import SealedKind, SealedValue, SealedValues


class Rotation(Struct, frozen=True):
    """How many values of one kind were sealed anew, were so already, and open with none of the keys."""

    renewed: int = 0
    current: int = 0
    lost: int = 0


def rotate(path: Path, secret_keys: Sequence[str]) -> dict[SealedKind, Rotation]:
    """Seal what is in the store at ``path`` with the first of the keys, whichever of them it is sealed with now.

    Raises:
        StoreUnusable: there is no store, or the service has it open.
    """
    if not path.exists():
        raise StoreUnusable(f"There is no store at {path}, so there is nothing to rotate.")
    done = asyncio.run(_rotate(path, Vault(KeyRing(secret_keys))))
    compact(path)
    return done


async def _rotate(path: Path, vault: Vault) -> dict[SealedKind, Rotation]:
    database = await DuckDbDatabase.open(path)
    try:
        values = SealedValues(database)
        return {kind: await _rotate_kind(values, kind, vault) for kind in SealedKind}
    finally:
        await database.close()


async def _rotate_kind(values: SealedValues, kind: SealedKind, vault: Vault) -> Rotation:
    done = Rotation()
    after = ""
    while page := await values.page(kind, after):
        after = page[-1].row
        old = [value for value in page if vault.needs_rotation(value.sealed)]
        renewed = [new for value in old for new in _renewed(value, vault)]
        if renewed:
            await values.replace(kind, renewed)
        done = Rotation(
            done.renewed + len(renewed),
            done.current + len(page) - len(old),
            done.lost + len(old) - len(renewed),
        )
    return done


def _renewed(value: SealedValue, vault: Vault) -> list[SealedValue]:
    """The value under the newest key; none where no key opens it."""
    try:
        return [structs.replace(value, sealed=vault.rotate(value.sealed))]
    except VaultError:
        return []
