"""Fault upon fault, of every kind: each is told, and none of them uses anything up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cbemail.errors import UpstreamError
from cbemail.ids import SessionId
from cbemail.imap import connection as connection_module
from cbemail.imap import login as login_module
from cbemail.imap.connection import ImapConnection
from cbemail.imap.pool import ImapPool
from cbemail.imap.repeating import repeatable
from cbemail.imap.wire import Command
from cbemail.metrics import PoolStatistics
from tests.fakes.script import CUT, NORMAL, STALL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.unit.imap.conftest import IMPATIENT, MakePool, until

NOOP, FETCH = Command("NOOP"), Command("UID FETCH", (b"7", b"(BODY.PEEK[])"))
HALF_A_LITERAL = b"* 1 FETCH (UID 7 BODY[] {100000}\r\n" + b"x" * 50_000
BYE = b"* BYE shutting down\r\n"

# What the server is asked, and what it then does for once.
FAULTS: dict[str, tuple[str, Reply]] = {
    "never greets": ("connect", STALL),
    "hangs up before greeting": ("connect", CUT),
    "will not have us": ("connect", BYE),
    "says nothing to a login": ("AUTHENTICATE", STALL),
    "falls silent": ("NOOP", STALL),
    "hangs up": ("NOOP", CUT),
    "ends before the tag": ("NOOP", (BYE, STALL)),
    "says what is no IMAP": ("NOOP", b"* 1 FETCH (((\r\n"),
    "falls silent in a literal": ("UID FETCH", (HALF_A_LITERAL, STALL)),
    "hangs up in a literal": ("UID FETCH", (HALF_A_LITERAL, CUT)),
}
SESSIONS = [SessionId(f"ses_{number}") for number in range(25)]


async def ask(pool: ImapPool, session: SessionId) -> None:
    async def both(imap: ImapConnection) -> None:
        await imap.run_one(NOOP)
        async with imap.streaming(FETCH) as stream:
            async for _ in stream:
                pass

    await repeatable(pool, session, None, both)


def in_use() -> list[int]:
    """File descriptors and tasks."""
    return [len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())]


async def test_a_thousand_faults_use_up_nothing(
    imap_server: ScriptedImap, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    monkeypatch.setattr(login_module, "GREETING_SECONDS", IMPATIENT)
    monkeypatch.setattr(connection_module, "COMMAND_SECONDS", IMPATIENT)
    monkeypatch.setattr(connection_module, "SECONDS_PER_OCTET", 0.0)

    async def meet_each() -> list[int]:
        """Each fault once in each session. Gives what is in use when all is over."""
        for asked, reply in FAULTS.values():
            imap_server.on(asked, reply)
            told = await asyncio.gather(
                *(ask(pool, session) for session in SESSIONS), return_exceptions=True
            )
            imap_server.on(asked, NORMAL)
            assert all(isinstance(error, UpstreamError) for error in told), told
        await until(lambda: imap_server.open_connections == 0)
        return in_use()

    first, *_, last = [await meet_each() for _ in range(4)]

    assert imap_server.connections >= 4 * len(FAULTS) * len(SESSIONS) == 1_000
    assert last == pytest.approx(first, abs=5)
    assert pool.statistics() == PoolStatistics(0, 0, 0)
