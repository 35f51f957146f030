"""A DuckDB store written anew: what rows once held and no longer hold is in the old file, and goes with it."""

import os
from pathlib import Path

import duckdb

from cbemail.store import files
from cbemail.store.duckdb_file import MEMORY_LIMIT, explained

_CONTAINED = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "memory_limit": MEMORY_LIMIT,
    "threads": "1",
}


def compact(path: Path) -> None:
    """Put a copy of the rows there are in the place of the store at ``path``, which no service may have open.

    DuckDB changes a row by writing another one, and reuses the room of the first when it comes to it. So a secret that
    was replaced can be found in the file for long; in a copy it never was. After a crash there is the old file or the
    new one, whole. It takes as much free disk as the store is large.

    Raises:
        StoreUnusable: in one sentence, why it could not be done; the store is as it was.
    """
    with explained(path):
        path = path.resolve()  # a link stays a link
        files.keep_private()
        lock = files.claim(path)
        new = path.with_name(path.name + ".new")
        try:
            files.remove(new)
            _copy_rows(path, new)
            files.put_in_place(new, path)
        finally:
            os.close(lock)


def _copy_rows(source: Path, target: Path) -> None:
    temporary = {"temp_directory": f"{target}.tmp"}
    with duckdb.connect(":memory:", config={**_CONTAINED, **temporary}) as connection:
        connection.execute("set allowed_directories = $folder", {"folder": [str(source.parent)]})
        connection.execute("set enable_external_access = false")
        connection.execute("attach $path as source (read_only)", {"path": str(source)})
        connection.execute("attach $path as target", {"path": str(target)})
        connection.execute("copy from database source to target")
        connection.execute("checkpoint target")
