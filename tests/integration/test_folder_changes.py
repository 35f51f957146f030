"""What has happened since: a copy kept by `changes` is the folder, whatever the server can tell and whatever happens."""

from __future__ import annotations

import asyncio
import imaplib
import threading
from collections.abc import AsyncIterator
from random import Random

import pytest

from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import letter
from tests.integration.followers import CHANGES, Follower, truth
from tests.integration.mailboxes import MESSAGES, PLAINTEXT, Box, open_box, problem, verbs

SERVERS = ["dovecot", "condstore_dovecot", "weak_dovecot"]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | PLAINTEXT


@pytest.fixture(params=SERVERS)
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    """A fresh user at a server that remembers all, or flags only, or nothing."""
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


@pytest.fixture
async def follower(box: Box) -> Follower:
    """One who knows three messages in the INBOX."""
    box.append(*(letter(subject) for subject in ("one", "two", "three")))
    follower = Follower(box.mailbox)
    await follower.begin()
    return follower


# ---- one thing at a time


async def test_where_nothing_has_happened_the_state_stays_as_it_is(follower: Follower) -> None:
    state = follower.state

    answer = await follower.follow()

    assert answer == {
        "state": state,
        "new": [],
        "flags": [],
        "removed": [],
        "reset": False,
        "more": False,
    }


async def test_a_message_that_came_is_told_as_a_listing_tells_it(
    box: Box, follower: Follower
) -> None:
    [uid] = box.append(letter("four"), flags=["\\Flagged"])

    answer = await follower.follow()

    [row] = (await box.page(limit=1))["messages"]
    assert (answer["new"], row["uid"]) == ([row], uid)
    assert (answer["flags"], answer["removed"], answer["more"]) == ([], [], False)


async def test_flags_that_were_changed_are_told_whole(box: Box, follower: Follower) -> None:
    await box.post(f"{MESSAGES}/2/mark", {"flagged": True, "add_flags": ["$Forwarded"]})

    answer = await follower.follow()

    [change] = answer["flags"]
    assert (change["uid"], sorted(change["flags"])) == (2, ["$Forwarded", "\\Flagged"])
    assert (answer["new"], answer["removed"]) == ([], [])


async def test_what_was_deleted_or_moved_away_is_told_as_removed(
    box: Box, follower: Follower
) -> None:
    box.server.expunge(box.user, "INBOX", [1])
    await box.post(f"{MESSAGES}/3/move", {"destination": "Archive"})

    answer = await follower.follow()

    assert (answer["removed"], answer["new"], answer["flags"]) == ([1, 3], [], [])


async def test_more_than_asked_for_comes_page_by_page_oldest_first(
    box: Box, follower: Follower
) -> None:
    box.append(*(letter(f"new {number}") for number in range(5)))
    follower.limit = 2

    pages = [await follower.follow() for _ in range(4)]

    assert [[row["uid"] for row in page["new"]] for page in pages] == [[4, 5], [6, 7], [8], []]
    assert [page["more"] for page in pages] == [True, True, False, False]


async def test_what_was_not_told_yet_is_never_told_as_removed(box: Box, follower: Follower) -> None:
    box.append(*(letter(f"new {number}") for number in range(4)))
    follower.limit = 1
    await follower.follow()

    box.server.expunge(box.user, "INBOX", [4, 6])
    await follower.catch_up()

    assert follower.copy == truth(box.server, box.user)


async def test_an_answer_that_was_lost_is_given_again(box: Box, follower: Follower) -> None:
    box.server.expunge(box.user, "INBOX", [2])
    box.append(letter("four"))
    lost = await follower.ask()
    box.append(letter("five"))

    answer = await follower.follow()

    assert (lost["removed"], answer["removed"]) == ([2], [2])
    assert [row["uid"] for row in answer["new"]] == [4, 5]
    await follower.catch_up()
    assert follower.copy == truth(box.server, box.user)


async def test_two_who_follow_one_folder_do_not_disturb_each_other(
    box: Box, follower: Follower
) -> None:
    slow = Follower(box.mailbox)
    await slow.begin()
    for number in range(40):
        box.append(letter(f"new {number}"))
        await follower.follow()

    await slow.catch_up()

    assert slow.resets == follower.resets == 0
    assert slow.copy == follower.copy == truth(box.server, box.user)


async def test_a_folder_that_was_recreated_is_told_from_its_beginning(box: Box) -> None:
    box.server.create_folder(box.user, "Projects")
    box.append(letter("old"), folder="Projects")
    follower = Follower(box.mailbox, "Projects", limit=1)
    await follower.begin()
    box.server.recreate_folder(box.user, "Projects")
    box.append(letter("new"), letter("newer"), folder="Projects")

    answers = [await follower.follow(), await follower.follow()]

    assert [(answer["reset"], answer["more"]) for answer in answers] == [
        (True, True),
        (False, False),
    ]
    assert [row["subject"] for answer in answers for row in answer["new"]] == ["new", "newer"]


async def test_an_empty_folder_can_be_followed(box: Box) -> None:
    follower = Follower(box.mailbox)
    await follower.begin()
    await follower.follow()

    box.append(letter("first"))
    await follower.follow()

    assert follower.copy == {1: set()}


async def test_a_folder_that_was_deleted_is_a_404(box: Box) -> None:
    box.server.create_folder(box.user, "Projects")
    follower = Follower(box.mailbox, "Projects")
    await follower.begin()
    box.server.delete_folder(box.user, "Projects")

    response = await box.get(CHANGES, folder="Projects", since=follower.state)

    assert problem(response) == (404, "folder-not-found", [])


@pytest.mark.parametrize("state", ["", "x", "gAAAA", "é", "null", "A" * 5000])
async def test_what_is_no_state_is_a_422(box: Box, state: str) -> None:
    assert problem(await box.get(CHANGES, since=state)) == (422, "invalid-request", ["#/since"])


async def test_a_state_is_good_for_its_own_folder_only(box: Box, follower: Follower) -> None:
    response = await box.get(CHANGES, folder="Sent", since=follower.state)

    assert problem(response) == (422, "invalid-request", ["#/since"])


# ---- what it costs


@pytest.mark.parametrize(
    ("server", "for_nothing", "for_one"),
    [
        ("dovecot", ["SELECT"], ["SELECT", "UID FETCH"]),
        ("condstore_dovecot", ["SELECT"], ["SELECT", "UID SEARCH", "UID FETCH", "UID FETCH"]),
        ("weak_dovecot", ["SELECT", "UID FETCH"], ["SELECT", "UID SEARCH", *["UID FETCH"] * 2]),
    ],
)
async def test_what_is_asked_depends_on_what_has_happened_and_not_on_the_folder(
    server: str,
    for_nothing: list[str],
    for_one: list[str],
    request: pytest.FixtureRequest,
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    async with open_box(request.getfixturevalue(server), base_url, smtp_server) as box:
        box.append(*(letter("old") for _ in range(50)))
        follower = Follower(box.mailbox)
        await follower.begin()
        await follower.follow()
        box.said()

        await follower.follow()
        nothing = verbs(box.said())
        box.append(letter("new"))
        await follower.follow()
        one = verbs(box.said())

    assert [verb.decode() for verb in nothing] == for_nothing
    assert [verb.decode() for verb in one] == for_one


async def test_a_look_at_a_folder_reads_nothing_and_marks_nothing(
    box: Box, follower: Follower
) -> None:
    box.append(letter("four"))

    await follower.follow()

    assert box.flags(4) == set()


# ---- beside the listing


async def test_the_first_words_of_what_came_are_told_where_they_are_asked_for(
    box: Box, follower: Follower
) -> None:
    box.append(letter("four", text="Shall we meet?"))

    [row] = (await follower.ask())["new"]
    [with_words] = (await follower.ask(snippet="true"))["new"]

    assert with_words == row | {"snippet": "Shall we meet?"}


async def test_what_was_told_as_new_is_listed_without_being_described_again(
    box: Box, follower: Follower
) -> None:
    box.append(letter("four"))
    [row] = (await follower.ask(snippet="true"))["new"]
    box.said()

    page = await box.page(limit=1, snippet="true")

    assert page["messages"] == [row]
    assert not any(b"BODY" in said or b"PREVIEW" in said for said in box.said())


async def test_what_was_listed_is_told_as_new_without_being_described_again(
    box: Box, follower: Follower
) -> None:
    box.append(letter("four"))
    await box.page()
    await box.post(f"{MESSAGES}/4/mark", {"flagged": True})
    box.said()

    [row] = (await follower.ask())["new"]

    assert (row["subject"], row["flagged"]) == ("four", True)
    assert not any(b"BODY" in said for said in box.said())


# ---- whatever happens


class Owner:
    """Does to a mailbox what its owner might, in an order that depends on the seed alone."""

    def __init__(self, client: imaplib.IMAP4, seed: int) -> None:
        self._client = client
        self._random = Random(seed)

    def act(self) -> None:
        acts = [
            self._append,
            self._append,
            self._mark,
            self._expunge,
            self._move_out,
            self._move_in,
        ]
        self._random.choice(acts)()

    def _append(self) -> None:
        for number in range(self._random.randint(1, 4)):
            self._client.append("INBOX", "", "", letter(f"message {number}"))

    def _some(self) -> str:
        self._client.select("INBOX")
        uids = self._client.uid("SEARCH", "ALL")[1][0].split()
        some = self._random.sample(uids, min(len(uids), self._random.randint(1, 3)))
        return b",".join(some).decode()

    def _mark(self) -> None:
        flag = self._random.choice(["\\Seen", "\\Flagged", "\\Answered", "$Label1"])
        if chosen := self._some():
            self._client.uid("STORE", chosen, self._random.choice(["+FLAGS", "-FLAGS"]), flag)

    def _expunge(self) -> None:
        if chosen := self._some():
            self._client.uid("STORE", chosen, "+FLAGS", "\\Deleted")
            self._client.expunge()

    def _move_out(self) -> None:
        if chosen := self._some():
            self._client.uid("MOVE", chosen, "Archive")

    def _move_in(self) -> None:
        self._client.select("Archive")
        self._client.uid("MOVE", "1:*", "INBOX")


@pytest.mark.parametrize("seed", range(4))
async def test_a_copy_is_the_folder_after_whatever_was_done_to_it(box: Box, seed: int) -> None:
    random = Random(seed)
    follower = Follower(box.mailbox)
    await follower.begin()
    with box.server.imap(box.user) as client:
        owner = Owner(client, seed)

        for _ in range(60):
            await asyncio.to_thread(owner.act)
            follower.limit = random.randint(1, 6)
            if random.random() < 0.1:
                await follower.ask()  # and the answer is lost
            if random.random() < 0.5:
                await follower.follow()
            if random.random() < 0.1:
                await follower.catch_up()
                assert follower.copy == truth(box.server, box.user)

    await follower.catch_up()
    assert follower.copy == truth(box.server, box.user)
    assert follower.resets == follower.strays == 0


async def test_a_copy_is_the_folder_though_much_is_done_while_it_is_told(box: Box) -> None:
    follower = Follower(box.mailbox, limit=3)
    await follower.begin()
    over = threading.Event()

    def act() -> None:
        with box.server.imap(box.user) as client:
            owner = Owner(client, seed=7)
            for _ in range(150):
                owner.act()
        over.set()

    acting = asyncio.create_task(asyncio.to_thread(act))
    while not over.is_set():
        await follower.follow()
    await acting

    await follower.catch_up()
    assert follower.copy == truth(box.server, box.user)
    assert follower.resets == 0
