"""A process that appends events of a batch and folds them until it is killed, and says on its standard output what it
was told is on disk: a row, and how many attempts of it.

Arguments: the store, and the batch.
"""

import asyncio
import os
import sys
from pathlib import Path

from cbemail.store.batch_records import MessageEvent
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.event_journal import EventJournal
from cbemail.store.records import SendState

ROWS = 5
SMALL_LOG = 3_000  # octets, so that it is emptied again and again


async def append_for_ever(journal: EventJournal, batch: int, row: int, attempts: int) -> None:
    while True:
        attempts += 1
        await journal.append([MessageEvent(batch, row, SendState.SENDING, attempts)])
        os.write(1, f"{row} {attempts}\n".encode())


async def fold_for_ever(journal: EventJournal) -> None:
    while True:
        await journal.fold()


async def main(path: Path, batch: int) -> None:
    database = await DuckDbDatabase.open(path)
    journal = EventJournal(database, largest_log=SMALL_LOG)
    await journal.fold()
    rows = await database.fetch(
        "page_batch_messages", batch=batch, state=None, after=-1, limit=ROWS
    )
    await asyncio.gather(
        fold_for_ever(journal),
        *(append_for_ever(journal, batch, row["row_number"], row["attempts"]) for row in rows),
    )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
