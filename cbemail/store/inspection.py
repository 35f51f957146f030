"""A DuckDB store that no service has open, looked at without a change to it."""

from pathlib import Path

from cbemail.store import files
from cbemail.store.duckdb_file import explained, read_version, refuse_damaged_log
from cbemail.store.migrations import load_migrations, pending


def missing_steps(path: Path) -> int:
    """How many steps of the schema the next start will take.

    Raises:
        StoreUnusable: in one sentence, why the service cannot start on this file.
    """
    with explained(path):
        files.refuse_unfit(path)
        refuse_damaged_log(files.wal_of(path))
        version = read_version(path, read_only=True)
    return len(pending(load_migrations("duckdb"), version))
