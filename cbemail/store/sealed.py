"""Every value that is sealed under SECRET_KEY itself, for whoever has to seal them anew.

Recipients and texts of batches are not among them: they are sealed with the key of their batch, which is. Nor is cached
mail, which is sealed with the key of its session.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct, convert

from cbemail.store.database import Database

PAGE = 500  # values a transaction: few enough to be held, many enough that the disk is not what takes long


class SealedKind(StrEnum):
    """What holds them."""

    CREDENTIALS = "credentials"  # of sessions
    BATCH_KEYS = "batch_keys"
    ANSWERS = "answers"  # to idempotency keys
    RESULTS = "results"  # of messages sent
    FOLDER_STATES = "folder_states"
    CACHE_KEYS = "cache_keys"


class SealedValue(Struct, frozen=True):
    """One value. ``row`` names its row among those of its kind."""

    row: str
    sealed: bytes


class SealedValues:
    """The sealed values of a store, over any `Database`, in pages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, kind: SealedKind, after: str = "") -> list[SealedValue]:
        """The values of the rows that follow ``after``, in their order; none, and that was all."""
        rows = await self._database.fetch(f"page_sealed_{kind}", after=after, limit=PAGE)
        return convert(rows, list[SealedValue])

    async def replace(self, kind: SealedKind, values: Sequence[SealedValue]) -> None:
        """Keep these in the place of what their rows have, all of them or none. A row that is gone is passed over."""
        await self._database.execute(
            f"replace_sealed_{kind}",
            rows=[value.row for value in values],
            sealed=[value.sealed for value in values],
        )
