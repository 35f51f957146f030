"""What is asked of servers that remember more or less, and what is believed of what they tell."""

from __future__ import annotations

import pytest

from cbemail.imap.connection import ImapConnection
from cbemail.imap.protocol import INBOX, FolderPath, Uid, UidValidity
from cbemail.imap.selecting import select
from cbemail.imap.sync import FLAG_ROWS, Since, flags_of, resync
from tests.fakes.script import NORMAL
from tests.fakes.scripted_imap import CAPABILITIES, ScriptedImap
from tests.unit.imap.conftest import Open

SINCE = Since(UidValidity(1), 5, 9)
ENABLED = b"* ENABLED QRESYNC\r\n{tag} OK enabled\r\n"


@pytest.fixture
async def imap(imap_server: ScriptedImap, open_to: Open) -> ImapConnection:
    """A connection to a server that has QRESYNC."""
    imap_server.capabilities = [*CAPABILITIES, "CONDSTORE", "QRESYNC"]
    imap_server.on("ENABLE", ENABLED)
    return await open_to(imap_server)


def sent(server: ScriptedImap, prefix: str) -> list[bytes]:
    return [command for command in server.commands if command.startswith(prefix.encode())]


async def test_what_happened_is_asked_for_with_the_select(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    says = (
        b"* OK [HIGHESTMODSEQ 8] highest\r\n* VANISHED (EARLIER) 3,5:6\r\n"
        b"* 2 FETCH (UID 4 MODSEQ (7) FLAGS (\\Seen))\r\n"
    )
    imap_server.on("SELECT", (says, NORMAL))

    found = await resync(imap, INBOX, SINCE)

    assert sent(imap_server, "SELECT") == [b'SELECT "INBOX" (QRESYNC (1 5 1:9))']
    assert (found.mailbox.highest_modseq, found.mailbox) == (8, imap.selected)
    assert found.removed == ((3, 3), (5, 6))
    assert found.flags == {4: ("\\Seen",)}


async def test_qresync_is_enabled_once_and_with_nothing_selected(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    await select(imap, INBOX)
    imap_server.commands.clear()

    for _ in range(2):
        await resync(imap, INBOX, SINCE)

    assert [command.split(b" ")[0] for command in imap_server.commands] == [
        b"UNSELECT",
        b"ENABLE",
        b"SELECT",
        b"SELECT",
    ]


async def test_a_server_that_enables_nothing_is_not_asked_what_it_removed(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("ENABLE", b"* ENABLED\r\n{tag} OK nothing\r\n")

    for _ in range(2):
        await resync(imap, INBOX, SINCE)

    assert sent(imap_server, "SELECT") == [b'SELECT "INBOX" (CONDSTORE)'] * 2
    assert imap_server.count("ENABLE") == 1


async def test_where_nothing_was_known_nothing_is_asked_of_it(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    await resync(imap, INBOX)
    await resync(imap, INBOX, Since(UidValidity(1), 5, 0))

    assert set(sent(imap_server, "SELECT")) == {b'SELECT "INBOX" (CONDSTORE)'}


async def test_a_server_without_either_is_asked_for_neither(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    found = await resync(await open_to(imap_server), INBOX, SINCE)

    assert sent(imap_server, "SELECT") == [b'SELECT "INBOX"']
    assert found.mailbox.highest_modseq is None


async def test_what_is_still_said_of_the_folder_before_is_not_taken_for_this_ones(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    await resync(imap, FolderPath("Sent"))
    says = (
        b"* OK [HIGHESTMODSEQ 99] of the other\r\n* VANISHED (EARLIER) 1\r\n"
        b"* 1 FETCH (UID 1 FLAGS (\\Deleted))\r\n* OK [CLOSED] closed\r\n"
        b"* OK [HIGHESTMODSEQ 8] highest\r\n* VANISHED (EARLIER) 2\r\n"
    )
    imap_server.on("SELECT", (says, NORMAL))

    found = await resync(imap, INBOX, SINCE)

    assert (found.mailbox.highest_modseq, found.removed, found.flags) == (8, ((2, 2),), {})


async def test_a_folder_that_keeps_no_count_has_no_highest_mod_sequence(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("SELECT", (b"* OK [NOMODSEQ] not here\r\n", NORMAL))

    assert (await resync(imap, INBOX)).mailbox.highest_modseq is None


async def test_flags_are_asked_for_in_flights_that_a_server_may_answer_in_full(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    await select(imap, INBOX)
    imap_server.on("UID FETCH", b"* 1 FETCH (UID 1 FLAGS (\\Seen) MODSEQ (7))\r\n{tag} OK\r\n")

    flags = await flags_of(imap, [Uid(uid) for uid in range(1, FLAG_ROWS + 3)], changed_since=6)

    assert sent(imap_server, "UID FETCH") == [
        b"UID FETCH 1:%d (UID FLAGS) (CHANGEDSINCE 6)" % FLAG_ROWS,
        b"UID FETCH %d:%d (UID FLAGS) (CHANGEDSINCE 6)" % (FLAG_ROWS + 1, FLAG_ROWS + 2),
    ]
    assert flags == {1: ("\\Seen",)}
