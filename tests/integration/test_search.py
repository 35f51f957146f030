"""Searching: what a filter finds, in a folder or in all of them, what it costs, and what the next page is of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from cbemail.api.codec import encode_cursor
from cbemail.mailbox import everywhere, finding
from tests.fakes.imap_folders import CannedFolder
from tests.fakes.script import CUT, NORMAL, STALL, Act
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, letter
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

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture(params=["dovecot", "weak_dovecot"])
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


def arrived(box: Box, folder: str, subject: str, days: int) -> None:
    """A message that arrived so many days after `DAY`."""
    box.server.append(box.user, letter(subject), folder=folder, date=DAY + timedelta(days=days))


async def pages(box: Box, *read: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    """Every page of a list, or all that follow one that was ``read``."""
    found = list(read) or [await box.page(**params)]
    while found[-1]["next_cursor"] is not None:
        found.append(await box.page(cursor=found[-1]["next_cursor"], **params))
    return found[len(read) :]


def subjects(*pages: dict[str, Any]) -> list[str]:
    return [row["subject"] for page in pages for row in page["messages"]]


# ---- pages


async def test_the_pages_after_the_first_do_not_search_again(box: Box) -> None:
    box.append(*(letter(f"invoice {number}") for number in range(7)), letter("other"))
    first = await box.page(subject="invoice", limit=3)
    box.said()

    second = await box.page(subject="invoice", limit=3, cursor=first["next_cursor"])
    third = await box.page(subject="invoice", limit=3, cursor=second["next_cursor"])

    assert [row["uid"] for row in second["messages"] + third["messages"]] == [4, 3, 2, 1]
    assert [page["total"] for page in (first, second, third)] == [7, 7, 7]
    assert third["next_cursor"] is None
    assert verbs(box.said()) == [b"UID FETCH", b"UID FETCH"]


# ---- everywhere


async def test_all_folders_are_one_list_newest_first(box: Box) -> None:
    box.server.create_folder(box.user, "Projects/2026")
    for folder, subject, days in (
        ("INBOX", "inbox 5", 5),
        ("INBOX", "inbox 1", 1),
        ("Projects/2026", "project 3", 3),
        ("Sent", "sent 4", 4),
        ("Trash", "trash", 9),
        ("Junk", "junk", 9),
    ):
        arrived(box, folder, subject, days)

    found = await pages(box, folder="*", limit=2)

    assert subjects(*found) == ["inbox 5", "sent 4", "project 3", "inbox 1"]
    assert [row["folder"] for row in found[0]["messages"]] == ["INBOX", "Sent"]
    assert {name: found[0][name] for name in ("folder", "uid_validity", "total", "skipped")} == {
        "folder": "*",
        "uid_validity": None,
        "total": 4,
        "skipped": [],
    }


async def test_later_pages_are_of_the_search_of_the_first(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 7)))
    first = await box.page(read="false", limit=2)

    good(await box.post(f"{MESSAGES}/3/mark", {"read": True}))
    box.server.expunge(box.user, "INBOX", [4])
    box.append(letter("new"))
    second = await box.page(read="false", limit=2, cursor=first["next_cursor"])
    third = await box.page(read="false", limit=2, cursor=second["next_cursor"])
    anew = await box.page(read="false")

    assert [(row["uid"], row["read"]) for row in second["messages"]] == [(3, True)]
    assert [row["uid"] for row in third["messages"]] == [2, 1]
    assert [row["uid"] for row in anew["messages"]] == [7, 6, 5, 2, 1]


@pytest.mark.parametrize("folder", ["INBOX", "*"])
async def test_a_search_that_is_no_longer_remembered_is_made_again(
    box: Box, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (finding, everywhere):
        monkeypatch.setattr(module, "FOUND_SECONDS", 0.0)
    for number in range(1, 6):
        arrived(box, "INBOX", f"invoice {number}", number)
    first = await box.page(folder=folder, subject="invoice", limit=2)
    box.said()

    rest = await pages(box, first, folder=folder, subject="invoice", limit=2)

    assert subjects(*rest) == ["invoice 3", "invoice 2", "invoice 1"]
    assert verbs(box.said()).count(b"UID SEARCH") == 2


async def test_a_page_without_a_filter_looks_at_few_uids_of_a_great_folder(box: Box) -> None:
    box.append(*[b"Subject: x\r\n\r\n"] * 2_000)
    box.server.expunge(box.user, "INBOX", range(1_001, 1_996))
    await box.uids(limit=1)
    box.said()

    newest = await box.page(limit=3)
    across = await box.page(limit=3, cursor=newest["next_cursor"])
    older = await box.page(limit=3, cursor=across["next_cursor"])

    assert [row["uid"] for row in newest["messages"]] == [2_000, 1_999, 1_998]
    assert [row["uid"] for row in across["messages"]] == [1_997, 1_996, 1_000]
    assert [row["uid"] for row in older["messages"]] == [999, 998, 997]
    assert [page["total"] for page in (newest, across, older)] == [1_005] * 3
    windows = [command.split(b" UID ")[1] for command in box.said() if b"SEARCH" in command]
    assert windows == [b"1986:*", b"1983:1997", b"1758:1997", b"1:1997", b"985:999"]


async def test_the_total_is_right_over_a_connection_that_is_told_of_expunges_by_uid(
    box: Box,
) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 6)))
    good(await box.get("/api/mailbox/changes"))  # enables QRESYNC: from then on, VANISHED
    assert (await box.page(limit=1))["total"] == 5

    box.server.expunge(box.user, "INBOX", [2, 3])

    page = await box.page(limit=2)
    assert (subjects(page), page["total"]) == (["m5", "m4"], 3)


async def test_a_cursor_nobody_was_given_is_refused_or_leads_nowhere(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    validity = (await box.page())["uid_validity"]

    async def ask(uid: int, **more: Any) -> httpx.Response:
        position = {"uid_validity": validity, "uid": uid}
        if more:
            position = {"received_at": 0, "folder": "INBOX"} | position
        return await box.get(MESSAGES, cursor=encode_cursor(position), **more)

    for uid in (-1, 0, 2**32):
        assert problem(await ask(uid)) == (422, "invalid-request", ["#/cursor"])
        assert problem(await ask(uid, folder="*")) == (422, "invalid-request", ["#/cursor"])
    assert good(await ask(1))["messages"] == good(await ask(1, folder="*"))["messages"] == []
    assert [row["uid"] for row in good(await ask(2**32 - 1))["messages"]] == [2, 1]


# ---- charsets


async def test_a_text_is_searched_for_in_a_charset_that_the_server_names(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    refusal = b"{tag} NO [BADCHARSET (US-ASCII KOI8-R ISO-8859-1)] no\r\n"
    imap_server.on("UID SEARCH RETURN (ALL) CHARSET UTF-8", refusal)
    found = b"* ESEARCH UID ALL 1\r\n{tag} OK found\r\n"
    imap_server.on("UID SEARCH RETURN (ALL) CHARSET ISO-8859-1", found)
    imap_server.folders["INBOX"].add(letter("one"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        page = good(await mailbox.get(MESSAGES, subject="Grüße"))

    assert [row["uid"] for row in page["messages"]] == [1]
    searches = [said for said in imap_server.commands if said.startswith(b"UID SEARCH")]
    assert ["Grüße".encode("iso-8859-1") in said for said in searches] == [False, True]


async def test_a_server_that_refuses_a_charset_it_has_named_is_not_asked_for_ever(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.on("UID SEARCH", b"{tag} NO [BADCHARSET (UTF-8 ISO-8859-1)] no\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.get(MESSAGES, subject="Grüße")

    assert problem(response)[:2] == (422, "invalid-request")
    assert imap_server.count("UID SEARCH") == 2


async def test_the_list_is_by_arrival_and_not_by_when_a_message_came_to_its_folder(
    box: Box,
) -> None:
    for subject, days in (("old", 1), ("new", 9), ("middle", 5)):
        arrived(box, "INBOX", subject, days)
    arrived(box, "Archive", "in between", 7)
    for uid in (2, 1):
        good(await box.post(f"{MESSAGES}/{uid}/move", {"destination": "Archive"}))

    found = await pages(box, folder="*", limit=1)

    assert subjects(*found) == ["new", "in between", "middle", "old"]
    assert [row["uid"] for page in found for row in page["messages"]] == [2, 1, 3, 3]


async def test_messages_of_the_same_second_have_an_order_too(box: Box) -> None:
    for folder in ("Sent", "INBOX"):
        for number in (1, 2, 3):
            arrived(box, folder, f"{folder} {number}", 0)

    found = await pages(box, folder="*", limit=2)

    expected = ["INBOX 3", "INBOX 2", "INBOX 1", "Sent 3", "Sent 2", "Sent 1"]
    assert subjects(*found) == expected


async def test_folders_of_many_messages_are_put_in_order_as_far_as_it_is_read(
    box: Box, dovecot: Dovecot
) -> None:
    sent: list[tuple[int, str, int]] = []
    for batch in range(35):
        folder, day = ("Archive", "INBOX")[batch % 7 == 0], batch * 11 % 35
        moment = DAY + timedelta(days=day)
        uids = box.server.append(box.user, *[letter("x")] * 20, folder=folder, date=moment)
        sent += [(-day, folder, -uid) for uid in uids]
    expected = [(folder, -minus_uid) for _, folder, minus_uid in sorted(sent)]
    box.said()

    first = await box.page(folder="*", limit=200)
    searched = verbs(box.said())
    rest = await pages(box, first, folder="*", limit=200)
    read = set(verbs(box.said()))

    rows = [row for page in (first, *rest) for row in page["messages"]]
    assert [(row["folder"], row["uid"]) for row in rows] == expected
    assert searched.count(b"UID SEARCH") == 2
    assert searched.count(b"UID SORT") == int(box.server is dovecot)  # the other does not offer it
    assert not {b"UID SEARCH", b"UID SORT"} & read


async def test_filters_hold_in_every_folder(box: Box) -> None:
    for folder in ("INBOX", "Sent", "Archive"):
        box.append(letter(f"invoice in {folder}"), letter("other"), folder=folder)

    page = await box.page(folder="*", q='invoice -"in Sent"')
    wrong = await box.get(MESSAGES, folder="*", q="nonsense:x")

    assert sorted(subjects(page)) == ["invoice in Archive", "invoice in INBOX"]
    assert page["total"] == 2
    assert problem(wrong) == (422, "invalid-request", ["#/q"])


async def test_the_account_is_listed_stably_while_mail_comes_and_goes(box: Box) -> None:
    for number in range(1, 5):
        arrived(box, "INBOX", f"inbox {number}", number)
        arrived(box, "Sent", f"sent {number}", number)
    first = await box.page(folder="*", limit=3)

    arrived(box, "INBOX", "new", 9)
    box.server.expunge(box.user, "Sent", [3])
    good(await box.post(f"{MESSAGES}/2/move", {"destination": "Trash"}))
    second = await box.page(folder="*", limit=3, cursor=first["next_cursor"])
    third = await box.page(folder="*", limit=3, cursor=second["next_cursor"])

    assert subjects(first) == ["inbox 4", "sent 4", "inbox 3"]
    assert subjects(second, third) == ["sent 2", "inbox 1", "sent 1"]
    assert [page["total"] for page in (first, second, third)] == [8, 8, 8]


async def test_a_folder_made_anew_between_two_pages_shows_no_other_messages(box: Box) -> None:
    box.server.create_folder(box.user, "Box")
    for number in range(1, 4):
        arrived(box, "Box", f"old {number}", number)
    arrived(box, "INBOX", "oldest", 0)
    first = await box.page(folder="*", limit=1)

    box.server.kick(box.user)
    box.server.recreate_folder(box.user, "Box")
    for number in range(1, 4):
        arrived(box, "Box", f"new {number}", number)
    second = await box.page(folder="*", limit=5, cursor=first["next_cursor"])
    stale = await box.delete(f"{MESSAGES}/3", folder="Box")

    assert subjects(first, second) == ["old 3", "oldest"]
    assert problem(stale)[:2] == (404, "message-not-found")
    assert box.subjects("Box") == ["new 1", "new 2", "new 3"]


# ---- everywhere, at servers of all kinds


@pytest.fixture
def folders(imap_server: ScriptedImap) -> dict[str, CannedFolder]:
    """INBOX, Work and Sent with a message each, which arrived in this order, the last in Sent."""
    imap_server.folders["Work"] = CannedFolder()
    for second, name in enumerate(("INBOX", "Work", "Sent")):
        imap_server.folders[name].add(
            letter(f"in {name}")
        ).date = f"01-Mar-2026 10:00:0{second} +0000"
    return imap_server.folders


async def test_folders_that_have_nothing_to_show_are_not_searched(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    folders["Trash"].add(letter("in Trash"))
    folders["Starred"] = CannedFolder(("\\Flagged",))
    folders["Starred"].add(letter("in INBOX"))
    folders["Empty"] = CannedFolder()
    folders["Above"] = CannedFolder(("\\Noselect",))
    folders["Trash/Old"] = CannedFolder()
    folders["Trash/Old"].add(letter("in Trash/Old"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        page = good(await mailbox.get(MESSAGES, folder="*"))

    assert subjects(page) == ["in Sent", "in Work", "in INBOX"]
    selected = {said.split(b'"')[1] for said in imap_server.commands if said.startswith(b"SELECT")}
    assert selected == {b"INBOX", b"Work", b"Sent"}


async def test_a_folder_that_fails_is_told_and_fails_no_other(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    imap_server.on('SELECT "Work"', b"{tag} NO [CORRUPTION] index is broken\r\n")
    imap_server.on('SELECT "Sent"', b"{tag} NO [NONEXISTENT] just deleted\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        page = good(await mailbox.get(MESSAGES, folder="*"))

    assert subjects(page) == ["in INBOX"]
    assert page["total"] == 1
    assert [(skip["folder"], skip["code"]) for skip in page["skipped"]] == [
        ("Work", "upstream-unavailable")
    ]
    assert page["skipped"][0]["detail"].endswith(".")


async def test_where_no_folder_can_be_searched_there_is_no_page(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    imap_server.on("UID SEARCH", b"{tag} NO [SERVERBUG] no\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.get(MESSAGES, folder="*")

    assert problem(response)[:2] == (502, "upstream-error")


async def test_a_lost_connection_fails_the_page_rather_than_a_folder(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    imap_server.on('SELECT "Work"', CUT)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.get(MESSAGES, folder="*")

    assert problem(response)[:2] == (503, "upstream-unavailable")


async def test_a_search_of_the_account_leaves_a_connection_for_other_calls(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    folders["Drafts"].add(letter("in Drafts"))
    may_go_on = asyncio.Event()

    async def hold(_: bytes) -> Act:
        await may_go_on.wait()
        return NORMAL

    for name in ("Drafts", "Sent", "Work"):
        imap_server.on(f'SELECT "{name}"', hold)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        search = asyncio.create_task(mailbox.get(MESSAGES, folder="*"))
        await imap_server.heard('SELECT "Drafts"')
        await imap_server.heard('SELECT "Sent"')
        meanwhile = good(await mailbox.get(MESSAGES))
        may_go_on.set()
        page = good(await search)

    assert subjects(meanwhile) == ["in INBOX"]
    assert page["total"] == 4


async def test_folders_there_is_no_time_for_are_told(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(everywhere, "SEARCH_SECONDS", 0.3)
    folders["Drafts"].add(letter("in Drafts"))
    imap_server.on('SELECT "Drafts"', STALL)
    imap_server.on('SELECT "Sent"', STALL)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        page = good(await mailbox.get(MESSAGES, folder="*"))

    assert subjects(page) == ["in INBOX"]
    assert [skip["folder"] for skip in page["skipped"]] == ["Drafts", "Sent", "Work"]
    assert {skip["code"] for skip in page["skipped"]} == {"upstream-timeout"}


async def test_more_than_can_be_put_in_order_is_refused_with_a_hint(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    imap_server.on("UID SEARCH", b"* ESEARCH UID ALL 1:4294967295\r\n{tag} OK found\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.get(MESSAGES, folder="*")

    assert problem(response) == (422, "invalid-request", ["#/folder"])
    assert "narrow" in response.json()["detail"]


async def test_gmail_is_searched_in_the_folder_of_all_mail_and_by_its_own_index(
    imap_server: ScriptedImap,
    folders: dict[str, CannedFolder],
    base_url: str,
    smtp_server: ScriptedSmtp,
) -> None:
    imap_server.capabilities.append("X-GM-EXT-1")
    folders["[Gmail]/Alle"] = CannedFolder(("\\All",))
    for number in range(1, 4):
        folders["[Gmail]/Alle"].add(letter(f"mail {number}"))
    imap_server.on("UID SEARCH", b"* ESEARCH UID ALL 1:3\r\n{tag} OK found\r\n")
    query = {"folder": "*", "limit": 2, "q": 'from:ann "q3 report" -draft has:attachment'}
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        first = good(await mailbox.get(MESSAGES, **query))
        second = good(await mailbox.get(MESSAGES, **query, cursor=first["next_cursor"]))

    assert subjects(first, second) == ["mail 3", "mail 2", "mail 1"]
    assert {row["folder"] for row in first["messages"]} == {"[Gmail]/Alle"}
    assert (first["folder"], first["uid_validity"], first["total"]) == ("*", None, 3)
    (said,) = [command for command in imap_server.commands if command.startswith(b"UID SEARCH")]
    of_index = rb'X-GM-RAW "in:anywhere \"q3 report\" -\"draft\" has:attachment"'
    assert said == b'UID SEARCH RETURN (ALL) FROM "ann" ' + of_index
