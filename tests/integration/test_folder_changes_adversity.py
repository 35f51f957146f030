"""`changes` at servers that lie, forget or lose count: what cannot be told is begun anew, and nothing costs without bound."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cbemail.mailbox import comparison
from tests.fakes.imap_folders import CannedFolder
from tests.fakes.script import NORMAL
from tests.fakes.scripted_imap import CAPABILITIES, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, letter
from tests.integration.followers import CHANGES, Follower
from tests.integration.mailboxes import PLAINTEXT, open_scripted, problem


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | PLAINTEXT


@pytest.fixture
def inbox(imap_server: ScriptedImap) -> CannedFolder:
    """Three messages."""
    inbox = imap_server.folders["INBOX"]
    for subject in ("one", "two", "three"):
        inbox.add(letter(subject))
    return inbox


@pytest.fixture
async def mailbox(
    imap_server: ScriptedImap, inbox: CannedFolder, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """At a server with QRESYNC, which lasts until a test takes it away."""
    imap_server.capabilities = [*CAPABILITIES, "CONDSTORE", "QRESYNC"]
    imap_server.on("ENABLE", b"* ENABLED QRESYNC\r\n{tag} OK enabled\r\n")
    says(imap_server, b"* OK [HIGHESTMODSEQ 10] highest")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        yield mailbox


def says(server: ScriptedImap, *lines: bytes) -> None:
    """What it adds to its answers to SELECT from now on."""
    server.on("SELECT", (b"".join(line + b"\r\n" for line in lines), NORMAL))


async def begun(mailbox: Mailbox) -> Follower:
    follower = Follower(mailbox)
    await follower.begin()
    assert len(follower.copy) == 3
    return follower


# ---- servers that remember


@pytest.mark.parametrize(
    "said",
    [
        b"* OK [HIGHESTMODSEQ 9] lower than it was",
        b"* OK [HIGHESTMODSEQ 0] none",
        b"* OK [HIGHESTMODSEQ x] not a number",
        b"* OK [NOMODSEQ] no longer",
    ],
)
async def test_a_server_that_has_lost_count_makes_it_begin_anew(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox, said: bytes
) -> None:
    follower = await begun(mailbox)
    del inbox.messages[0]
    says(imap_server, said)

    await follower.catch_up()

    assert (follower.resets, follower.copy) == (1, {2: set(), 3: set()})
    assert not (await follower.follow())["reset"]


async def test_uids_that_went_backwards_make_it_begin_anew(
    inbox: CannedFolder, mailbox: Mailbox
) -> None:
    follower = await begun(mailbox)
    inbox.messages.clear()
    inbox.uid_next = 1
    inbox.add(letter("one again"))

    await follower.catch_up()

    assert (follower.resets, follower.copy) == (1, {1: set()})


@pytest.mark.parametrize("number", [b"0", b"4294967299", b"9999999999999999999", b"x"])
async def test_a_server_whose_next_uid_is_none_is_followed_by_comparison(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox, number: bytes
) -> None:
    """Asked for by ranges up to that UID, it would be asked for what is no UID."""
    says(imap_server, b"* OK [HIGHESTMODSEQ 10] highest", b"* OK [UIDNEXT " + number + b"] next")
    follower = await begun(mailbox)
    says(imap_server, b"* OK [HIGHESTMODSEQ 11] highest", b"* OK [UIDNEXT " + number + b"] next")
    inbox.add(letter("four"))

    await follower.catch_up()

    assert (follower.resets, len(follower.copy)) == (0, 4)


async def test_uids_that_never_were_are_not_told_as_removed(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox
) -> None:
    """A server that has forgotten may name all UIDs there are, known or not (RFC 7162 section 3.2.5.2)."""
    follower = await begun(mailbox)
    del inbox.messages[1]
    says(imap_server, b"* OK [HIGHESTMODSEQ 11] highest", b"* VANISHED (EARLIER) 2,4:4294967295")

    answer = await follower.follow()

    assert (answer["removed"], answer["reset"]) == ([2], False)


async def test_more_removed_than_a_folder_can_have_had_makes_it_begin_anew(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox
) -> None:
    inbox.add(letter("of a high UID"), uid=200_000)
    follower = Follower(mailbox)
    await follower.begin()
    says(imap_server, b"* OK [HIGHESTMODSEQ 11] highest", b"* VANISHED (EARLIER) 1:200000")

    await follower.catch_up()

    assert (follower.resets, len(follower.copy)) == (1, 4)


@pytest.mark.parametrize("line", [b"* VANISHED (EARLIER)", b"* VANISHED (EARLIER) x:y"])
async def test_a_server_that_cannot_say_what_was_removed_is_a_502(
    imap_server: ScriptedImap, mailbox: Mailbox, line: bytes
) -> None:
    follower = await begun(mailbox)
    says(imap_server, b"* OK [HIGHESTMODSEQ 11] highest", line)

    response = await mailbox.get(CHANGES, since=follower.state)

    assert problem(response)[:2] == (502, "upstream-error")


async def test_flags_of_what_is_not_known_yet_are_not_told(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox
) -> None:
    follower = await begun(mailbox)
    inbox.add(letter("four"))
    says(
        imap_server,
        b"* OK [HIGHESTMODSEQ 11] highest",
        b"* 4 FETCH (UID 4 FLAGS (\\Seen) MODSEQ (11))",
        b"* 1 FETCH (UID 1 FLAGS (\\Seen \\Recent) MODSEQ (11))",
    )

    answer = await follower.follow()

    assert answer["flags"] == [{"uid": 1, "flags": ["\\Seen"]}]
    assert [row["uid"] for row in answer["new"]] == [4]


async def test_a_server_that_no_longer_remembers_makes_it_begin_anew(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox
) -> None:
    follower = await begun(mailbox)
    imap_server.capabilities = list(CAPABILITIES)
    imap_server.hang_up()

    await follower.catch_up()
    inbox.messages[0].flags.add("\\Seen")
    await follower.catch_up()

    assert (follower.resets, follower.copy) == (1, {1: {"\\Seen"}, 2: set(), 3: set()})


async def test_a_server_that_has_learnt_to_remember_goes_on_from_what_was_compared(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "CONDSTORE"]
    imap_server.hang_up()
    follower = await begun(mailbox)
    imap_server.capabilities.append("QRESYNC")
    imap_server.hang_up()
    says(imap_server, b"* OK [HIGHESTMODSEQ 11] highest", b"* VANISHED (EARLIER) 2")
    inbox.add(letter("four"))

    answer = await follower.follow()

    assert (answer["removed"], answer["reset"]) == ([2], False)
    assert [row["uid"] for row in answer["new"]] == [4]


# ---- servers that do not


async def test_a_server_that_tells_flags_only_and_has_lost_count_makes_it_begin_anew(
    imap_server: ScriptedImap, inbox: CannedFolder, mailbox: Mailbox
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "CONDSTORE"]
    imap_server.hang_up()
    follower = await begun(mailbox)
    inbox.messages[0].flags.add("\\Seen")
    says(imap_server, b"* OK [HIGHESTMODSEQ 9] lower than it was")

    await follower.catch_up()

    assert (follower.resets, follower.copy[1]) == (1, {"\\Seen"})


@pytest.fixture
async def follower(imap_server: ScriptedImap, mailbox: Mailbox) -> Follower:
    """One whose server knows neither QRESYNC nor CONDSTORE."""
    imap_server.capabilities = list(CAPABILITIES)
    imap_server.hang_up()
    says(imap_server)
    return await begun(mailbox)


async def test_a_state_that_is_not_kept_any_more_makes_it_begin_anew(
    inbox: CannedFolder, follower: Follower
) -> None:
    old = follower.state
    for _ in range(3):  # each is good until the one after it has been used
        inbox.add(letter("new"))
        await follower.follow()
    follower.state = old

    await follower.catch_up()

    assert (follower.resets, len(follower.copy)) == (1, 6)


async def test_flags_in_another_order_are_no_change(
    imap_server: ScriptedImap, inbox: CannedFolder, follower: Follower
) -> None:
    inbox.messages[0].flags |= {"\\Seen", "\\Flagged"}
    first = await follower.follow()
    imap_server.on("UID FETCH 1:3", (b"* 1 FETCH (UID 1 FLAGS (\\Seen \\Flagged))\r\n{tag} OK\r\n"))

    again = await follower.follow()

    assert [change["uid"] for change in first["flags"]] == [1]
    assert (again["flags"], again["state"]) == ([], first["state"])


async def test_uids_below_the_highest_are_new_where_a_server_makes_such(
    inbox: CannedFolder, follower: Follower
) -> None:
    inbox.add(letter("ten"), uid=10)
    await follower.catch_up()
    late = inbox.add(letter("late"), uid=7)
    inbox.messages.sort(key=lambda message: message.uid)

    answer = await follower.follow()

    assert [row["uid"] for row in answer["new"]] == [late.uid]


async def test_a_message_that_cannot_be_understood_is_a_row_that_says_so(
    inbox: CannedFolder, follower: Follower
) -> None:
    inbox.add(letter("four"), BODYSTRUCTURE=b"NIL")

    [row] = (await follower.ask())["new"]

    assert sorted(row) == ["error", "folder", "uid"]


async def test_a_message_the_server_never_describes_does_not_come_again_and_again(
    imap_server: ScriptedImap, inbox: CannedFolder, follower: Follower
) -> None:
    inbox.add(letter("four"))
    imap_server.on("UID FETCH 4", b"{tag} OK nothing\r\n")

    answers = [await follower.follow() for _ in range(2)]

    assert [(answer["new"], answer["more"]) for answer in answers] == [([], False)] * 2
    assert answers[1]["removed"] == []


async def test_a_folder_too_large_to_be_compared_is_a_422(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "MAX_COMPARED", 2)

    response = await follower.mailbox.get(CHANGES)

    assert problem(response) == (422, "invalid-request", ["#/folder"])


async def test_a_server_that_names_four_thousand_million_messages_is_a_422(
    imap_server: ScriptedImap, mailbox: Mailbox, follower: Follower
) -> None:
    imap_server.on("UID SEARCH", b"* ESEARCH UID ALL 1:4294967295\r\n{tag} OK found\r\n")

    response = await mailbox.get(CHANGES)

    assert problem(response) == (422, "invalid-request", ["#/folder"])
