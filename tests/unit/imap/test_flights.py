"""What is sent before anything is answered: each command that waits for no answer saves a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date

import pytest

from cbemail.errors import FolderNotFound
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import Aside, fetch, is_unchanged, search, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FLAGGED, INBOX, SEEN, FolderPath, Uid, UidSet
from cbemail.imap.search import SearchFilter, SearchProgram, compile_search
from cbemail.imap.selecting import select
from tests.fakes import script
from tests.fakes.fault_proxy import STALL, FaultProxy
from tests.fakes.imap_folders import CannedFolder
from tests.fakes.script import NORMAL
from tests.fakes.scripted_imap import ScriptedImap
from tests.unit.imap.conftest import JOE, MakePool, Open

TODAY = date(2026, 1, 31)
ALL = SearchProgram((b"ALL",))
UIDS = [Uid(1), Uid(2)]
CHANGED = b"* 1 FETCH (UID 1 MODSEQ (8) FLAGS (\\Flagged))\r\n{tag} OK fetched\r\n"
UNCHANGED = b"{tag} OK fetched\r\n"


@pytest.fixture
async def proxy(imap_server: ScriptedImap) -> AsyncIterator[FaultProxy]:
    """Where nothing that the server says comes through any more, what it hears was sent without waiting for it."""
    async with FaultProxy(imap_server.host, imap_server.port) as proxy:
        yield proxy


@pytest.fixture
async def far_pool(proxy: FaultProxy, make_pool: MakePool, open_to: Open) -> ImapPool:
    async def connect(_: SessionId) -> ImapConnection:
        connection = await open_to(proxy)
        proxy.down.fail(STALL)
        return connection

    return make_pool(connect=connect)


@pytest.fixture
def inbox(imap_server: ScriptedImap) -> CannedFolder:
    folder = imap_server.folders["INBOX"]
    for number in (1, 2):
        folder.add(b"Subject: %d\r\n\r\n" % number)
    return folder


def verbs(server: ScriptedImap) -> list[bytes]:
    """What the server was told after the login."""
    named = [b" ".join(command.split(b" ")[:2]) for command in server.commands]
    return [name if name.startswith(b"UID ") else name.split(b" ")[0] for name in named][1:]


# ---- selecting by the way


async def test_what_is_read_first_on_a_connection_is_sent_with_the_select(
    imap_server: ScriptedImap, far_pool: ImapPool
) -> None:
    async def read() -> None:
        async with far_pool.lease(JOE, INBOX, lazily=True) as imap:
            await search(imap, ALL, Aside(UIDS))

    reading = asyncio.create_task(read())
    await imap_server.heard("NOOP")
    reading.cancel()

    assert verbs(imap_server) == [b"SELECT", b"UID FETCH", b"UID SEARCH", b"NOOP"]


async def test_a_folder_selected_by_the_way_is_as_well_known_as_any(
    inbox: CannedFolder, make_pool: MakePool
) -> None:
    pool = make_pool()

    async with pool.lease(JOE, INBOX, lazily=True) as imap:
        found = await search(imap, ALL)
        by_the_way = imap.selected
        selected = await select(imap, INBOX)

    assert found.count == 2
    assert by_the_way == selected


async def test_a_connection_with_another_folder_selected_selects_before_it_reads(
    imap_server: ScriptedImap, inbox: CannedFolder, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with pool.lease(JOE, FolderPath("Sent")):
        pass

    async with pool.lease(JOE, INBOX, lazily=True) as imap:
        assert imap.selected is not None
        assert imap.selected.path == INBOX


async def test_a_select_that_is_refused_takes_what_was_sent_behind_it_and_no_more(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()

    with pytest.raises(FolderNotFound):
        async with pool.lease(JOE, FolderPath("Nowhere"), lazily=True) as imap:
            await search(imap, ALL)
    async with pool.lease(JOE, INBOX) as imap:
        await search(imap, ALL)

    assert imap_server.connections == 1
    assert imap_server.count("SELECT") == 2


async def test_a_folder_that_is_spelled_otherwise_is_read_all_the_same(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    imap_server.folders["Entwürfe"] = CannedFolder()
    imap_server.folders["Entwürfe"].add(b"Subject: one\r\n\r\n")

    async with make_pool().lease(JOE, FolderPath("Entwürfe"), lazily=True) as imap:
        found = await search(imap, ALL)

    assert found.count == 1


async def test_a_lease_that_read_nothing_leaves_nothing_to_select(
    imap_server: ScriptedImap, make_pool: MakePool
) -> None:
    pool = make_pool()
    async with pool.lease(JOE, FolderPath("Nowhere"), lazily=True):
        pass

    async with pool.lease(JOE, INBOX) as imap:
        await fetch(imap, UIDS, b"FLAGS")

    assert b"Nowhere" not in bytes(imap_server.received)


# ---- asking on a guess


async def test_flags_that_were_asked_for_are_no_news(
    imap_server: ScriptedImap, inbox: CannedFolder, imap: ImapConnection
) -> None:
    await select(imap, INBOX)
    aside = Aside(UIDS)

    await search(imap, ALL, aside)

    assert set(aside.rows) == set(UIDS)
    assert imap_server.count("UID SEARCH") == 1


async def test_a_flag_that_changes_after_it_was_told_has_the_search_made_again(
    imap_server: ScriptedImap, inbox: CannedFolder, imap: ImapConnection
) -> None:
    await select(imap, INBOX)
    imap_server.on("UID SEARCH", (b"* 1 FETCH (UID 1 FLAGS (\\Seen))\r\n", NORMAL), NORMAL)
    inbox.messages[0].flags.add("\\Flagged")
    aside = Aside(UIDS)

    await search(imap, compile_search(SearchFilter(read=False), today=TODAY), aside)

    assert imap_server.count("UID SEARCH") == 2
    assert aside.rows[Uid(1)].flags == (FLAGGED,)


async def test_what_has_changed_is_told_once_and_the_search_knows_of_it(
    imap_server: ScriptedImap, inbox: CannedFolder, imap: ImapConnection
) -> None:
    await select(imap, INBOX)
    imap_server.on("UID FETCH", CHANGED, UNCHANGED)
    aside = Aside(UIDS, modseq=5)

    await search(imap, ALL, aside)

    fetched = [command for command in imap_server.commands if command.startswith(b"UID FETCH")]
    assert [command.partition(b" (CHANGED")[2] for command in fetched] == [b"SINCE 5)", b"SINCE 8)"]
    assert (aside.rows[Uid(1)].flags, aside.modseq) == ((FLAGGED,), 8)


@pytest.mark.parametrize(
    ("says", "stands"),
    [
        (UNCHANGED, True),
        (CHANGED, False),
        (b"* 3 EXISTS\r\n{tag} OK fetched\r\n", False),
        (b"* 1 EXPUNGE\r\n{tag} OK fetched\r\n", False),
        (b"* VANISHED 1\r\n{tag} OK fetched\r\n", False),
        (b"* 2 EXISTS\r\n{tag} OK fetched\r\n", True),
    ],
)
async def test_nothing_has_changed_where_the_server_tells_of_nothing(
    imap_server: ScriptedImap,
    inbox: CannedFolder,
    imap: ImapConnection,
    says: bytes,
    stands: object,
) -> None:
    await select(imap, INBOX)
    imap_server.on("UID FETCH", says)

    assert await is_unchanged(imap, Aside(UIDS, modseq=5)) is stands


async def test_one_that_goes_and_one_that_comes_are_two_pieces_of_news(
    inbox: CannedFolder, imap: ImapConnection
) -> None:
    selected = await select(imap, INBOX)
    aside = Aside(UIDS)
    await search(imap, ALL, aside)
    inbox.messages.pop(0)
    inbox.add(b"Subject: three\r\n\r\n")

    await fetch(imap, UIDS, b"FLAGS")

    assert selected.exists == 2
    assert selected.news != aside.news


# ---- changing


async def test_whoever_changes_a_mailbox_is_told_of_before_it_goes_on(
    inbox: CannedFolder, make_pool: MakePool
) -> None:
    pool, told = make_pool(), list[SessionId]()
    pool.on_change.append(told.append)

    async with pool.lease(JOE, INBOX) as imap:
        await fetch(imap, UIDS, b"FLAGS")
    assert told == []
    async with pool.lease(JOE, INBOX) as imap:
        await store_flags(imap, UidSet(UIDS), add=[SEEN])
    assert told == [JOE]
    async with pool.lease(JOE, INBOX) as imap:
        await search(imap, ALL)
    assert told == [JOE]


async def test_a_change_that_was_cut_short_may_have_been_made(
    imap_server: ScriptedImap, inbox: CannedFolder, make_pool: MakePool
) -> None:
    pool, told = make_pool(), list[SessionId]()
    pool.on_change.append(told.append)
    imap_server.on("UID STORE", script.STALL)

    async def change() -> None:
        async with pool.lease(JOE, INBOX) as imap:
            await store_flags(imap, UidSet(UIDS), add=[SEEN])

    changing = asyncio.create_task(change())
    await imap_server.heard("UID STORE")
    changing.cancel()
    await asyncio.wait({changing})

    assert told == [JOE]
