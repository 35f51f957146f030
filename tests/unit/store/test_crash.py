"""What was acknowledged is there after SIGKILL, at whatever moment; what was not is there whole or not at all."""

import asyncio
import random
import secrets
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb

from cbemail.store.batches import BatchRepository
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.repository import Repository
from tests.contract.test_batches import add_batch
from tests.unit.store import crashing_journal, crashing_writer

KILLS = 10


def start_writer(path: Path, *, callers: int, last: int = 0) -> subprocess.Popen[str]:
    run = secrets.token_hex(4)
    command = [
        sys.executable,
        "-m",
        crashing_writer.__name__,
        str(path),
        run,
        str(callers),
        str(last),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answers(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(what, key); the last line may have been cut."""
    for line in lines:
        if line.endswith("\n"):
            what, key = line.split()
            yield what, key


def killed_at_random(path: Path, *, after: int) -> list[tuple[str, str]]:
    """What many callers were told, killed from outside at some moment after so many answers."""
    with start_writer(path, callers=16) as writer:
        assert writer.stdout is not None
        first = [writer.stdout.readline() for _ in range(after)]
        writer.kill()
        return list(answers([*first, *writer.stdout]))


def killed_with_the_answer(path: Path, *, after: int) -> list[tuple[str, str]]:
    """What a lone caller was told, killed the moment it has its last answer, with nothing else going on."""
    with start_writer(path, callers=1, last=after) as writer:
        assert writer.stdout is not None
        return list(answers(writer.stdout))


def remembered(path: Path) -> dict[str, set[str]]:
    """What is remembered of each key, after a start as the service makes it."""
    asyncio.run(open_and_close(path))
    with duckdb.connect(path) as connection:
        rows = connection.execute(
            "select substr(id, 5), state, status"
            "  from outbox_message left join idempotency_key on outbox_id = id"
        ).fetchall()
    facts = {}
    for key, state, status in rows:
        facts[key] = {"begun"}
        facts[key] |= {"settled"} if state == "sent" else set()
        facts[key] |= {"answered"} if status is not None else set()
    return facts


async def open_and_close(path: Path) -> None:
    await (await DuckDbDatabase.open(path)).close()


def test_nothing_acknowledged_is_lost_and_nothing_is_half_done_when_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    chance = random.Random()
    told: dict[str, set[str]] = defaultdict(set)

    for kill in [killed_at_random, killed_with_the_answer] * (KILLS // 2):
        for what, key in kill(path, after=chance.randrange(1, 200)):
            told[key].add(what)

    facts = remembered(path)
    lost = {key for key, acknowledged in told.items() if not acknowledged <= facts.get(key, set())}
    halves = {key for key, known in facts.items() if ("settled" in known) != ("answered" in known)}
    assert lost == set()
    assert halves == set()


# ---- what becomes of messages


async def with_a_batch(path: Path) -> int:
    database = await DuckDbDatabase.open(path)
    await crashing_writer.add_session(Repository(database))
    batch = await add_batch(BatchRepository(database), crashing_journal.ROWS)
    await database.close()
    return batch


def killed_while_folding(path: Path, batch: int, *, after: int) -> dict[int, int]:
    """How many attempts of each row the process was told are on disk, killed at some moment after so many answers."""
    command = [sys.executable, "-m", crashing_journal.__name__, str(path), str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as appending:
        assert appending.stdout is not None
        first = [appending.stdout.readline() for _ in range(after)]
        appending.kill()
        told = list(answers([*first, *appending.stdout]))
    return {int(row): int(attempts) for row, attempts in told}


async def attempts_of(path: Path, batch: int) -> dict[int, int]:
    """How many attempts are remembered of each row, after a start as the service makes it."""
    database = await DuckDbDatabase.open(path)
    rows = await BatchRepository(database).messages(batch, state=None, after=None, limit=100)
    await database.close()
    return {row.row: row.attempts for row in rows}


def test_no_event_that_was_acknowledged_is_lost_however_often_the_log_was_emptied_when_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.duckdb"
    batch = asyncio.run(with_a_batch(path))
    chance = random.Random()

    for _ in range(KILLS // 2):
        told = killed_while_folding(path, batch, after=chance.randrange(50, 600))
        crashed = path.with_name("store.duckdb.events").exists()
        known = asyncio.run(attempts_of(path, batch))

        assert crashed
        assert all(told[row] <= known[row] <= told[row] + 1 for row in told), (told, known)
