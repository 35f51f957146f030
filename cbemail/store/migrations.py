"""The schema, one numbered SQL file a step; which steps a database still lacks. Engines apply them."""

import re
from collections.abc import Sequence

from msgspec import Struct

from cbemail.store.database import SQL, StoreUnusable

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(Struct, frozen=True):
    """One step of the schema. Once released it never changes: a correction is the next step."""

    number: int
    name: str
    sql: str


def load_migrations(engine: str) -> list[Migration]:
    """The steps for ``engine``, in order."""
    migrations = []
    for file in (SQL / "migrations" / engine).iterdir():
        if match := _FILE.fullmatch(file.name):
            number, name = match.groups()
            migrations.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    migrations.sort(key=lambda migration: migration.number)
    return migrations


def pending(migrations: Sequence[Migration], version: int) -> list[Migration]:
    """The steps a database at ``version`` lacks.

    Raises:
        StoreUnusable: the database has steps this code has never heard of.
    """
    newest = migrations[-1].number
    if version > newest:
        raise StoreUnusable(
            f"The store was last used by a newer cbemail (its schema is {version}, this version knows {newest}): "
            "run that version, or restore a backup."
        )
    return [migration for migration in migrations if migration.number > version]
