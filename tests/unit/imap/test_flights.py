"""What is sent before anything is answered: each command that waits for no answer saves a round trip."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import date

import pytest

from cbemail.errors import FolderNotFound
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.folders import delete_folder
from cbemail.imap.messages import Aside, fetch, is_unchanged, search, store_flags
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FLAGGED, INBOX, SEEN, FolderPath, Uid, UidSet
from cbemail.imap.search import SearchFilter, SearchProgram, compile_search
from cbemail.imap.selecting import select
from cbemail.imap.sync import resync
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


# ---- from one folder to another


SENT = FolderPath("Sent")
OLD_NEWS = b"* 2 EXPUNGE\r\n* 2 FETCH (UID 2 FLAGS (\\Deleted))\r\n* 7 EXISTS\r\n"


@pytest.fixture
async def elsewhere(make_pool: MakePool) -> ImapPool:
    """Its one connection is kept warm with Sent selected."""
    pool = make_pool(per_session=1)
    async with pool.lease(JOE, SENT):
        pass
    return pool


async def test_another_folder_is_selected_in_the_flight_of_what_is_read_of_it(
    imap_server: ScriptedImap, proxy: FaultProxy, make_pool: MakePool, open_to: Open
) -> None:
    async def connect(_: SessionId) -> ImapConnection:
        return await open_to(proxy)

    pool = make_pool(connect=connect)
    async with pool.lease(JOE, SENT):
        pass
    proxy.down.fail(STALL)

    async def read() -> None:
        async with pool.lease(JOE, INBOX, lazily=True) as imap:
            await search(imap, ALL, Aside(UIDS))

    reading = asyncio.create_task(read())
    await imap_server.heard("NOOP")
    reading.cancel()

    assert verbs(imap_server) == [b"SELECT", b"SELECT", b"UID FETCH", b"UID SEARCH", b"NOOP"]


@pytest.mark.parametrize("boundary", [b"", b"* OK [CLOSED] done with it\r\n"])
async def test_what_is_still_said_of_the_folder_before_is_not_taken_for_the_new_ones(
    imap_server: ScriptedImap, inbox: CannedFolder, elsewhere: ImapPool, boundary: bytes
) -> None:
    imap_server.on('SELECT "INBOX"', (OLD_NEWS + boundary, NORMAL))
    imap_server.on("UID FETCH", UNCHANGED)
    aside = Aside(UIDS, modseq=5)

    async with elsewhere.lease(JOE, INBOX, lazily=True) as imap:
        found = await search(imap, ALL, aside)
        by_the_way = imap.selected
        imap_server.on('SELECT "INBOX"', NORMAL)
        selected = await select(imap, INBOX)

    assert (list(found), aside.rows) == (UIDS, {})
    assert by_the_way == selected
    assert imap_server.count("UID SEARCH") == 1


async def test_codes_that_are_still_said_of_the_folder_before_are_not_taken_for_the_new_ones(
    imap_server: ScriptedImap, inbox: CannedFolder, elsewhere: ImapPool
) -> None:
    imap_server.on('SELECT "INBOX"', (b"* OK [UIDVALIDITY 99] of the one before\r\n", NORMAL))

    async with elsewhere.lease(JOE, INBOX, lazily=True) as imap:
        await search(imap, ALL)

        assert imap.selected is not None
        assert imap.selected.uid_validity == 1


async def test_what_comes_behind_the_select_has_the_search_made_again(
    imap_server: ScriptedImap, inbox: CannedFolder, elsewhere: ImapPool
) -> None:
    def arrive(_: bytes) -> script.Reply:
        inbox.add(b"Subject: three\r\n\r\n")
        return b"* SEARCH 1 2\r\n* 3 EXISTS\r\n{tag} OK searched\r\n"

    imap_server.on("UID SEARCH", arrive, NORMAL)

    async with elsewhere.lease(JOE, INBOX, lazily=True) as imap:
        found = await search(imap, ALL)

    assert list(found) == [1, 2, 3]


async def test_answers_from_a_folder_that_should_not_be_selected_any_more_count_for_nothing(
    imap_server: ScriptedImap, inbox: CannedFolder, elsewhere: ImapPool
) -> None:
    imap_server.folders["Sent"].add(b"Subject: sent\r\n\r\n")
    refusal = b"* 1 EXISTS\r\n{tag} NO [NONEXISTENT] and so we stay where we are\r\n"
    imap_server.on('SELECT "Nowhere"', refusal)
    aside = Aside(UIDS)

    with pytest.raises(FolderNotFound):
        async with elsewhere.lease(JOE, FolderPath("Nowhere"), lazily=True) as imap:
            await search(imap, ALL, aside)
    async with elsewhere.lease(JOE, INBOX, lazily=True) as imap:
        found = await search(imap, ALL)

    assert imap_server.count("UID SEARCH") == 2  # the first was answered, too
    assert (list(found), aside.rows) == (UIDS, {})
    assert imap_server.connections == 1


async def test_a_folder_that_is_spelled_otherwise_is_read_and_not_the_one_before(
    imap_server: ScriptedImap, elsewhere: ImapPool
) -> None:
    imap_server.folders["Entwürfe"] = CannedFolder()
    imap_server.folders["Entwürfe"].add(b"Subject: one\r\n\r\n")
    imap_server.on('SELECT "Entw&', b"{tag} NO we stay where we are\r\n")

    async with elsewhere.lease(JOE, FolderPath("Entwürfe"), lazily=True) as imap:
        found = await search(imap, ALL)

    assert found.count == 1


async def test_what_was_answered_ahead_of_the_select_is_asked_for_again(
    imap_server: ScriptedImap, inbox: CannedFolder, elsewhere: ImapPool
) -> None:
    def answer_ahead(_: bytes) -> script.Reply:
        ((name, number),) = re.findall(rb"([A-Z]+)(\d+) SELECT \"INBOX\"", imap_server.received)
        return (b"* SEARCH 7\r\n%b%d OK searched\r\n" % (name, int(number) + 1), NORMAL)

    imap_server.on('SELECT "INBOX"', answer_ahead)
    imap_server.on("UID SEARCH", b"", NORMAL)

    async with elsewhere.lease(JOE, INBOX, lazily=True) as imap:
        found = await search(imap, ALL)

    assert list(found) == UIDS


async def test_a_lease_that_read_nothing_has_left_the_folder_before_selected(
    imap_server: ScriptedImap, inbox: CannedFolder, elsewhere: ImapPool
) -> None:
    async with elsewhere.lease(JOE, INBOX, lazily=True) as imap:
        imap.capabilities |= {"QRESYNC"}

    async with elsewhere.lease(JOE) as imap:
        await resync(imap, INBOX)

    assert verbs(imap_server) == [b"SELECT", b"UNSELECT", b"ENABLE", b"SELECT"]


async def test_a_folder_is_left_before_it_is_deleted_also_where_another_was_to_be_read(
    imap_server: ScriptedImap, elsewhere: ImapPool
) -> None:
    async with elsewhere.lease(JOE, INBOX, lazily=True):
        pass

    async with elsewhere.lease(JOE) as imap:
        await delete_folder(imap, SENT)

    assert verbs(imap_server)[:3] == [b"SELECT", b"UNSELECT", b"DELETE"]


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
