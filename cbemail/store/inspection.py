"""A DuckDB store that no service has open, looked at without a change to it."""

from pathlib import Path

from cbemail.store import files
from cbemail.store.duckdb_file import (
    connect,
    end_of_log,
    explained,
    read_version,
    refuse_damaged_log,
)
from cbemail.store.migrations import load_migrations, pending

_EVENT_LOG = "event_log"  # the step of the schema that brings the log


def missing_steps(path: Path) -> int:
    """How many steps of the schema the next start will take.

    Raises:
        StoreUnusable: in one sentence, why the service cannot start on this file.
    """
    with explained(path):
        if not path.exists():
            files.refuse_missing(path)
        files.refuse_unfit(path)
        refuse_damaged_log(files.wal_of(path))
        version = read_version(path, read_only=True)
        steps = pending(load_migrations("duckdb"), version)
        if _EVENT_LOG not in {step.name for step in steps}:
            with connect(path, read_only=True) as connection:
                end_of_log(path, connection)
    return len(steps)
