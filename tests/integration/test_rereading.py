"""What was read before and is read again: what the mail server is still asked, and that the answer is as it is now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.script import NORMAL
from tests.fakes.scripted_imap import CAPABILITIES, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, environment, letter
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import (
    MESSAGES,
    PLAINTEXT,
    Box,
    good,
    open_box,
    open_scripted,
    problem,
    verbs,
)

OLD = {"Cache-Control": "max-age=600"}


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture(params=["dovecot", "weak_dovecot"])
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


@pytest.fixture
async def scripted(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    imap_server.capabilities = [*CAPABILITIES, "CONDSTORE"]
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        yield mailbox


@pytest.fixture
async def strong_box(
    dovecot: Dovecot, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(dovecot, base_url, smtp_server) as box:
        yield box


def mark_elsewhere(box: Box, uid: int, flag: str = "\\Flagged") -> None:
    """As another client of the mailbox does it."""
    box.server.doveadm("flags", "add", "-u", box.user, flag, "mailbox", "INBOX", "uid", str(uid))


# ---- pages


async def test_a_page_that_has_not_changed_is_neither_searched_for_nor_fetched(
    strong_box: Box,
) -> None:
    strong_box.append(letter("one"), letter("two"))
    first = await strong_box.page()
    strong_box.said()

    again = await strong_box.page()

    assert again == first
    (asked, noop) = strong_box.said()
    assert asked.startswith(b"UID FETCH 1:2 (UID FLAGS) (CHANGEDSINCE ")
    assert noop == b"NOOP"


async def test_a_page_is_as_it_is_now_whatever_happened_elsewhere(box: Box) -> None:
    box.append(letter("one"), letter("two"), letter("three"))
    pages = [await box.page(), await box.page()]

    mark_elsewhere(box, 1)
    pages.append(await box.page())
    box.server.expunge(box.user, "INBOX", [2])
    box.append(letter("four"))
    pages += [await box.page(), await box.page()]
    mark_elsewhere(box, 4)
    pages.append(await box.page())

    shown = [{row["uid"]: row["flagged"] for row in page["messages"]} for page in pages]
    assert shown == [
        *[{3: False, 2: False, 1: False}] * 2,
        {3: False, 2: False, 1: True},
        *[{4: False, 3: False, 1: True}] * 2,
        {4: True, 3: False, 1: True},
    ]
    assert [page["total"] for page in pages] == [3] * 6


async def test_what_was_told_while_something_else_was_read_is_in_the_next_page(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    await box.page()
    box.server.expunge(box.user, "INBOX", [1])
    box.append(letter("three"))
    good(await box.get(f"{MESSAGES}/2"))

    assert await box.uids() == [3, 2]


async def test_a_page_with_snippets_is_another_than_one_without(box: Box) -> None:
    box.append(letter("one"))
    plain = await box.page()

    with_snippets = await box.page(snippet="true")

    assert "snippet" in with_snippets["messages"][0]
    assert await box.page() == plain


async def test_a_page_of_a_folder_made_anew_has_nothing_of_the_old_one(box: Box) -> None:
    box.server.create_folder(box.user, "Work")
    box.append(letter("old"), folder="Work")
    old = await box.page(folder="Work")

    box.server.kick(box.user)  # Dovecot does not tell those who have the old one selected
    box.server.recreate_folder(box.user, "Work")
    box.append(letter("new"), folder="Work")

    new = await box.page(folder="Work")
    assert [row["subject"] for row in new["messages"]] == ["new"]
    assert new["uid_validity"] != old["uid_validity"]


async def test_a_page_by_flags_is_searched_for_each_time(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    mark_elsewhere(box, 1)
    assert [await box.uids(flagged="true") for _ in range(2)] == [[1], [1]]

    mark_elsewhere(box, 2)

    assert await box.uids(flagged="true") == [2, 1]
    assert await box.uids(flagged="false") == []


async def test_a_page_by_flags_is_true_though_the_server_tells_of_no_flags(
    scripted: Mailbox, imap_server: ScriptedImap
) -> None:
    """Of a message that is not on the page nothing is asked: that it is to be on it now, only a search finds out."""
    inbox = imap_server.folders["INBOX"]
    for number in (1, 2):
        inbox.add(letter(f"m{number}"))
    imap_server.on("SELECT", (b"* OK [HIGHESTMODSEQ 5] highest\r\n", NORMAL))
    imap_server.on("UID FETCH 1 (UID FLAGS) (CHANGEDSINCE", b"{tag} OK nothing\r\n")
    inbox.messages[0].flags.add("\\Flagged")
    pages = [await scripted.get(MESSAGES, flagged="true") for _ in range(2)]

    inbox.messages[1].flags.add("\\Flagged")
    pages.append(await scripted.get(MESSAGES, flagged="true"))

    assert [[row["uid"] for row in good(page)["messages"]] for page in pages] == [[1], [1], [2, 1]]


async def test_each_of_two_pages_of_the_same_folder_stays_itself(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 5)))
    first = await box.page(limit=2)
    second = await box.page(limit=2, cursor=first["next_cursor"])

    again = [await box.page(limit=2), await box.page(limit=2, cursor=first["next_cursor"])]

    assert again == [first, second]


# ---- messages


async def test_of_a_message_that_was_read_before_only_the_flags_are_asked_for(box: Box) -> None:
    box.append(letter("one"))
    first = good(await box.get(f"{MESSAGES}/1"))
    box.said()
    mark_elsewhere(box, 1)

    again = good(await box.get(f"{MESSAGES}/1"))

    assert box.said() == [b"UID FETCH 1 (UID FLAGS)", b"NOOP"]
    assert again == first | {"flagged": True, "flags": ["\\Flagged"]}


async def test_a_message_that_was_read_before_and_is_gone_is_not_found(box: Box) -> None:
    box.append(letter("one"))
    good(await box.get(f"{MESSAGES}/1"))

    box.server.expunge(box.user, "INBOX", [1])

    assert problem(await box.get(f"{MESSAGES}/1"))[:2] == (404, "message-not-found")


async def test_a_message_that_was_read_before_can_still_be_marked_by_reading(box: Box) -> None:
    box.append(letter("one"))
    good(await box.get(f"{MESSAGES}/1"))

    read = good(await box.get(f"{MESSAGES}/1", mark_read="true"))

    assert read["read"]
    assert box.flags(1) == {"\\Seen"}


async def test_a_message_that_has_not_changed_is_not_sent_again(box: Box) -> None:
    box.append(letter("one"))
    first = await box.get(f"{MESSAGES}/1")
    client = box.mailbox.client

    same = await client.get(f"{MESSAGES}/1", headers={"If-None-Match": first.headers["etag"]})
    mark_elsewhere(box, 1)
    changed = await client.get(f"{MESSAGES}/1", headers={"If-None-Match": first.headers["etag"]})

    assert (same.status_code, same.content) == (304, b"")
    assert changed.status_code == 200


# ---- from memory


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/1"])
async def test_an_answer_that_may_be_old_is_given_without_asking_the_mail_server(
    box: Box, path: str
) -> None:
    box.append(letter("one"))
    first = await box.get(path)
    box.said()
    mark_elsewhere(box, 1)

    old = await box.mailbox.client.get(path, headers=OLD)
    known = await box.mailbox.client.get(
        path, headers=OLD | {"If-None-Match": first.headers["etag"]}
    )

    assert box.said() == []
    assert (old.content, int(old.headers["age"]) < 600) == (first.content, True)
    assert known.status_code == 304
    assert "age" not in (await box.get(path)).headers


async def test_what_the_session_itself_has_changed_is_seen_however_old_an_answer_may_be(
    box: Box,
) -> None:
    box.append(letter("one"))
    client = box.mailbox.client
    good(await box.get(MESSAGES))

    good(await box.post(f"{MESSAGES}/1/mark", {"flagged": True}))
    marked = good(await client.get(MESSAGES, headers=OLD))
    good(await box.get(f"{MESSAGES}/1", mark_read="true"))
    read = good(await client.get(MESSAGES, headers=OLD))
    good(await box.delete(f"{MESSAGES}/1", permanent="true"))
    deleted = good(await client.get(MESSAGES, headers=OLD))

    assert marked["messages"][0]["flags"] == ["\\Flagged"]
    assert read["messages"][0]["read"]
    assert deleted["messages"] == []


async def test_reading_marks_also_where_an_answer_may_be_old(box: Box) -> None:
    box.append(letter("one"))
    path = f"{MESSAGES}/1?mark_read=true"
    for _ in range(2):
        good(await box.mailbox.client.get(path))
    box.server.doveadm("flags", "remove", "-u", box.user, "\\Seen", "mailbox", "INBOX", "all")

    good(await box.mailbox.client.get(path, headers=OLD))

    assert box.flags(1) == {"\\Seen"}


# ---- a new connection


async def test_a_listing_on_a_new_connection_selects_and_searches_in_one_breath(box: Box) -> None:
    box.append(letter("one"))
    await box.page()
    box.said()
    box.server.kick(box.user)

    page = await box.page()

    asked = box.said()
    assert verbs(asked) == [b"SELECT", b"UID FETCH", b"UID SEARCH"]
    assert [row["subject"] for row in page["messages"]] == ["one"]
