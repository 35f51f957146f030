"""The command `cbemail serve`, with a disk that fails when the process is told so by SIGUSR1."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from cbemail.__main__ import main
from tests.unit.store.test_duckdb_database import failing_disk

if __name__ == "__main__":
    with ExitStack() as stack:
        path = Path(os.environ["DB_PATH"])
        signal.signal(signal.SIGUSR1, lambda *_: stack.enter_context(failing_disk(path)))
        status = main(["serve"])
    sys.exit(status)
