"""A process that writes until it is killed, and says on its standard output what it was told is on disk.

Arguments: the store, a name for the run, how many callers write at once, and after how many answers the process
is to kill itself (0: somebody else will).
"""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from cbemail.hosts import MailServer, Security
from cbemail.ids import OutboxId, SessionId
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.records import (
    IdempotencyRecord,
    IdempotentAnswer,
    OutboxRecord,
    RefreshTokenRecord,
    SendState,
    SessionRecord,
    SessionState,
    StoredResponse,
)
from cbemail.store.repository import Repository

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SESSION = SessionId("ses_a")
OPERATION = "POST /api/send"
RESPONSE = StoredResponse(200, {}, b"x" * 300)


def call(key: str) -> IdempotencyRecord:
    return IdempotencyRecord(SESSION, OPERATION, key, b"", OutboxId("msg_" + key), NOW)


def send(key: str) -> OutboxRecord:
    return OutboxRecord(OutboxId("msg_" + key), SESSION, SendState.SENDING, "<1@example.com>", NOW)


async def add_session(repository: Repository) -> None:
    server = MailServer("mail.example.com", 993, Security.TLS, "a")
    session = SessionRecord(
        SESSION, "a@example.com", None, None, "password", server, server,
        SessionState.ACTIVE, b"", NOW, NOW,
    )  # fmt: skip
    await repository.add_session(session, RefreshTokenRecord(b"", SESSION, NOW))


class Teller:
    """Passes answers on, and dies with the last one it was to pass on."""

    def __init__(self, last: int) -> None:
        self._left = last

    def tell(self, what: str, key: str) -> None:
        sys.stdout.write(f"{what} {key}\n")
        sys.stdout.flush()
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def write_for_ever(repository: Repository, teller: Teller, caller: str) -> None:
    number = 0
    while True:
        number += 1
        key = f"{caller}-{number}"
        await repository.begin_idempotent(call(key), send(key))
        teller.tell("begun", key)
        if number % 3 == 0:  # the same key leaves and comes back, in one transaction at times
            await repository.forget_idempotent(SESSION, OPERATION, key)
            await repository.begin_idempotent(call(key))
        if number % 2 == 0:
            await repository.settle_send(
                OutboxId("msg_" + key), state=SendState.SENT, result=b"{}", finished_at=NOW,
                answer=IdempotentAnswer(SESSION, OPERATION, key, RESPONSE),
            )  # fmt: skip
            teller.tell("settled", key)


async def main(path: Path, run: str, callers: int, last: int) -> None:
    repository = Repository(await DuckDbDatabase.open(path))
    if not await repository.load_sessions():
        await add_session(repository)
    teller = Teller(last)
    await asyncio.gather(
        *(write_for_ever(repository, teller, f"{run}-{caller}") for caller in range(callers))
    )


if __name__ == "__main__":
    path, run, callers, last = sys.argv[1:]
    asyncio.run(main(Path(path), run, int(callers), int(last)))
