"""The command `cbemail serve`, with a disk that fails when the process is told so: under the database by SIGUSR1, under
its log by SIGUSR2."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cbemail.__main__ import main
from cbemail.store.files import log_of, wal_of
from tests.unit.store.test_duckdb_database import failing_disk

if __name__ == "__main__":
    with ExitStack() as stack:
        path = Path(os.environ["DB_PATH"])
        for told, under in ((signal.SIGUSR1, wal_of), (signal.SIGUSR2, log_of)):
            breaking = partial(failing_disk, path, under=under)
            signal.signal(told, lambda *_, broken=breaking: stack.enter_context(broken()))
        status = main(["serve"])
    sys.exit(status)
