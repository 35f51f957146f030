"""`POST /api/mailbox/messages/bulk`: many messages, few commands, and those that are not there fail no other."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_imap import CAPABILITIES, WEAK_CAPABILITIES, ScriptedImap
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

BULK = f"{MESSAGES}/bulk"


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture(params=["dovecot", "weak_dovecot"])
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


async def bulk(box: Box, **body: Any) -> dict[str, Any]:
    return good(await box.post(BULK, body))


async def test_many_messages_are_marked_and_the_missing_are_told(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 6)))

    answer = await bulk(box, action="mark", uids=[5, 2, 9, 2], flagged=True, add_flags=["$Work"])

    assert answer == {
        "matched": 2,
        "changed": 2,
        "results": [{"uid": 2}, {"uid": 5}],
        "missing": [9],
    }
    assert box.flags(2) == box.flags(5) == {"\\Flagged", "$Work"}
    assert box.flags(1) == box.flags(3) == set()


async def test_marking_counts_those_that_already_were_so(box: Box) -> None:
    box.append(letter("one"), letter("two"), flags=["\\Seen"])
    box.append(letter("three"))

    answer = await bulk(box, action="mark", uids=[1, 2, 3, 4], read=True)

    assert (answer["changed"], answer["missing"]) == (3, [4])


async def test_messages_are_chosen_by_a_filter(box: Box) -> None:
    box.append(letter("invoice 1"), letter("other"), letter("invoice 2"))

    answer = await bulk(box, action="mark", filter={"subject": "invoice", "read": False}, read=True)
    again = await bulk(box, action="mark", filter={"subject": "invoice", "read": False}, read=True)
    by_query = await bulk(box, action="mark", filter={"q": "is:unread"}, flagged=True)

    assert [result["uid"] for result in answer["results"]] == [1, 3]
    assert again == {"matched": 0, "changed": 0, "results": [], "missing": []}
    assert [result["uid"] for result in by_query["results"]] == [2]


async def test_many_messages_move_and_each_ones_place_is_told(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 6)))
    box.append(letter("older"), folder="Archive")

    answer = await bulk(box, action="move", uids=[4, 1, 3, 7], destination="\\Archive")

    assert answer["results"] == [
        {"uid": 1, "new_uid": 2},
        {"uid": 3, "new_uid": 3},
        {"uid": 4, "new_uid": 4},
    ]
    assert (answer["matched"], answer["changed"], answer["missing"]) == (3, 3, [7])
    assert box.subjects() == ["m2", "m5"]
    assert box.subjects("Archive") == ["older", "m1", "m3", "m4"]


async def test_many_messages_are_copied_even_into_their_own_folder(box: Box) -> None:
    box.append(letter("one"), letter("two"))

    elsewhere = await bulk(box, action="copy", filter={}, destination="Archive")
    beside = await bulk(box, action="copy", uids=[1], destination="INBOX")

    assert elsewhere["changed"] == 2
    assert beside["results"] == [{"uid": 1, "new_uid": 3}]
    assert box.subjects() == ["one", "two", "one"]
    assert box.subjects("Archive") == ["one", "two"]


async def test_many_messages_are_deleted_by_the_rules_for_one(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 5)))
    box.append(letter("in the trash"), folder="Trash")

    trashed = await bulk(box, action="delete", uids=[1, 2])
    for_good = await bulk(box, action="delete", uids=[3, 9], permanent=True)
    emptied = await bulk(box, action="delete", folder="\\Trash", filter={"subject": "in the trash"})

    assert trashed["results"] == [{"uid": 1, "new_uid": 2}, {"uid": 2, "new_uid": 3}]
    assert (for_good["results"], for_good["missing"]) == ([{"uid": 3}], [9])
    assert emptied["changed"] == 1
    assert box.subjects() == ["m4"]
    assert box.subjects("Trash") == ["m1", "m2"]


async def test_deleting_many_for_good_takes_no_other_message_along(box: Box) -> None:
    box.append(letter("marked 1"), letter("marked 2"), flags=["\\Deleted"])
    box.append(letter("goes"), letter("stays"))

    answer = await bulk(box, action="delete", uids=[1, 3], permanent=True)

    assert [result["uid"] for result in answer["results"]] == [1, 3]
    assert box.subjects() == ["marked 2", "stays"]
    assert box.flags(2) == {"\\Deleted"}


async def test_each_kind_of_change_is_one_command(
    base_url: str, smtp_server: ScriptedSmtp, dovecot: Dovecot
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(*(letter(f"m{number}") for number in range(1, 301)))
        await box.folders()
        box.said()

        async def said(**body: Any) -> list[bytes]:
            await bulk(box, **body)
            return verbs(box.said())

        half = list(range(2, 301, 2))
        mark = await said(action="mark", uids=half, read=True, remove_flags=["$Work"])
        copy = await said(action="copy", uids=half, destination="Archive")
        move = await said(action="move", uids=half[:50], destination="Archive")
        delete = await said(action="delete", uids=half[50:100])
        expunge = await said(action="delete", uids=half[100:], permanent=True)
        by_filter = await said(action="mark", filter={"read": False}, read=True)

        assert mark == [b"SELECT", b"UID STORE", b"UID STORE"]
        assert copy == [b"SELECT", b"UID COPY"]
        assert move == delete == [b"SELECT", b"UID MOVE"]
        assert expunge == [b"SELECT", b"UID SEARCH", b"UID STORE", b"UID EXPUNGE"]
        assert by_filter == [b"SELECT", b"UID SEARCH", b"UID STORE"]
        assert len(box.subjects()) == 150


async def test_ten_thousand_messages_are_changed_at_once(
    base_url: str, smtp_server: ScriptedSmtp, dovecot: Dovecot
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(*[b"Subject: x\r\n\r\n"] * 10_000)

        marked = await bulk(box, action="mark", filter={}, read=True)
        moved = await bulk(box, action="move", uids=[*range(1, 10_001)], destination="Archive")

        assert (marked["changed"], moved["changed"]) == (10_000, 10_000)
        assert moved["results"][9_999] == {"uid": 10_000, "new_uid": 10_000}
        assert (await box.page())["total"] == 0


async def test_ten_thousand_uids_that_are_not_adjacent_are_as_few_commands_as_will_do(
    base_url: str, smtp_server: ScriptedSmtp, dovecot: Dovecot
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(*[b"Subject: x\r\n\r\n"] * 10_000)
        odd = [*range(1, 20_000, 2)]  # the half of them is not there
        await box.folders()
        box.said()

        marked = await bulk(box, action="mark", uids=odd, read=True)
        mark = box.said()
        moved = await bulk(box, action="move", uids=odd, destination="Archive")
        move = box.said()

    assert (marked["changed"], moved["matched"], moved["changed"]) == (5_000, 5_000, 5_000)
    assert marked["missing"] == moved["missing"] == odd[5_000:]
    assert moved["results"] == [
        {"uid": uid, "new_uid": new} for new, uid in enumerate(odd[:5_000], 1)
    ]
    fewest = math.ceil(len(",".join(map(str, odd))) / 7_000)
    assert verbs(mark).count(b"UID STORE") == fewest
    assert verbs(mark).count(b"UID FETCH") <= fewest  # what the STOREs were silent about
    assert verbs(move) == [b"SELECT", *[b"UID MOVE"] * fewest]
    assert max(map(len, mark + move)) < 8_192


@pytest.mark.parametrize("capabilities", [CAPABILITIES, WEAK_CAPABILITIES], ids=["strong", "weak"])
async def test_uids_that_are_not_adjacent_fit_into_the_servers_lines(
    imap_server: ScriptedImap,
    base_url: str,
    smtp_server: ScriptedSmtp,
    capabilities: tuple[str, ...],
) -> None:
    imap_server.capabilities = list(capabilities)
    uids = list(range(1_000_001, 1_002_401, 2))  # 9,600 octets
    for uid in uids:
        imap_server.folders["INBOX"].add(b"Subject: x\r\n\r\n", uid=uid)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        marked = good(
            await mailbox.post(BULK, {"action": "mark", "uids": uids, "add_flags": ["$A"]})
        )
        copied = good(
            await mailbox.post(BULK, {"action": "copy", "uids": uids, "destination": "Sent"})
        )
        deleted = good(
            await mailbox.post(BULK, {"action": "delete", "uids": uids, "permanent": True})
        )

    assert marked["changed"] == copied["changed"] == deleted["changed"] == 1200
    assert copied["results"][0]["uid"] == 1_000_001
    assert ("new_uid" in copied["results"][0]) == ("UIDPLUS" in capabilities)
    assert len(imap_server.folders["Sent"].messages) == 1200
    assert imap_server.folders["INBOX"].messages == []
    assert max(map(len, imap_server.commands)) < 8192


async def test_more_messages_than_one_call_may_change_are_left_as_they_are(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.on("UID SEARCH", b"* ESEARCH UID ALL 1:10001\r\n{tag} OK found\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        fitting = await mailbox.post(BULK, {"action": "delete", "filter": {}, "permanent": True})
        named = await mailbox.post(BULK, {"action": "delete", "uids": [*range(1, 10_002)]})

    assert problem(fitting) == (422, "invalid-request", ["#/filter"])
    assert problem(named) == (422, "invalid-request", ["#/uids"])
    assert set(verbs(imap_server.commands)) <= {b"SELECT", b"UID SEARCH", b"LOGOUT"}


async def test_uids_of_a_folder_that_was_made_anew_change_no_other_messages(box: Box) -> None:
    box.server.create_folder(box.user, "Box")
    box.append(letter("old 1"), letter("old 2"), folder="Box")
    await box.uids(folder="Box")

    box.server.recreate_folder(box.user, "Box")
    box.append(letter("new 1"), letter("new 2"), folder="Box")
    chosen = {"folder": "Box", "uids": [1, 2]}
    answers = [
        await box.post(BULK, {"action": "move", "destination": "Archive"} | chosen),
        await box.post(BULK, {"action": "copy", "destination": "Archive"} | chosen),
        await box.post(BULK, {"action": "delete"} | chosen),
        await box.post(BULK, {"action": "delete", "permanent": True} | chosen),
        await box.post(BULK, {"action": "mark", "read": True} | chosen),
    ]

    assert [problem(answer)[:2] for answer in answers] == [(404, "message-not-found")] * 5
    assert box.subjects("Box") == ["new 1", "new 2"]
    assert box.flags(1, "Box") == set()
    assert box.subjects("Archive") == box.subjects("Trash") == []


async def test_folders_that_are_not_there_are_404s_and_change_nothing(box: Box) -> None:
    box.append(letter("one"))

    for body in (
        {"action": "move", "destination": "No/Such"},
        {"action": "copy", "destination": "No/Such"},
        {"action": "move", "destination": "Archive", "folder": "No/Such"},
        {"action": "mark", "read": True, "folder": "No/Such"},
        {"action": "delete", "folder": "\\Flagged"},
    ):
        response = await box.post(BULK, {"uids": [1]} | body)
        assert problem(response)[:2] == (404, "folder-not-found"), body

    assert (box.subjects(), box.flags(1)) == (["one"], set())


BAD: dict[str, tuple[object, list[str]]] = {
    "nothing": ({}, ["#/action"]),
    "no messages": ({"action": "delete"}, []),
    "messages twice": ({"action": "delete", "uids": [1], "filter": {}}, []),
    "an empty list": ({"action": "delete", "uids": []}, ["#/uids"]),
    "the UID 0": ({"action": "delete", "uids": [1, 0]}, ["#/uids/1"]),
    "a UID of 33 bits": ({"action": "delete", "uids": [2**32]}, ["#/uids/0"]),
    "a negative UID": ({"action": "delete", "uids": [-1]}, ["#/uids/0"]),
    "a UID that is text": ({"action": "delete", "uids": ["1"]}, ["#/uids/0"]),
    "a set": ({"action": "delete", "uids": "1:*"}, ["#/uids"]),
    "no action": ({"uids": [1]}, ["#/action"]),
    "an unknown action": ({"action": "burn", "uids": [1]}, ["#/action"]),
    "an unknown field": ({"action": "delete", "uids": [1], "forever": True}, ["#/forever"]),
    "an unknown filter": ({"action": "delete", "filter": {"colour": "red"}}, ["#/filter/colour"]),
    "a wrong filter": ({"action": "delete", "filter": {"larger": -1}}, ["#/larger"]),
    "a wrong query": ({"action": "delete", "filter": {"q": 'a"'}}, ["#/q"]),
    "no destination": ({"action": "move", "uids": [1]}, ["#/destination"]),
    "the same folder": (
        {"action": "move", "uids": [1], "destination": "inbox"},
        ["#/destination"],
    ),
    "an impossible destination": (
        {"action": "move", "uids": [1], "destination": "a\r\nb"},
        ["#/destination"],
    ),
    "nothing to mark": ({"action": "mark", "uids": [1]}, []),
    "a field of move": (
        {"action": "mark", "uids": [1], "read": True, "destination": "Archive"},
        ["#/destination"],
    ),
    "a field of mark": ({"action": "delete", "uids": [1], "read": False}, ["#/read"]),
    "a field of delete": (
        {"action": "copy", "uids": [1], "destination": "Archive", "permanent": True},
        ["#/permanent"],
    ),
    "a control character": ({"action": "delete", "uids": [1], "folder": "a\0"}, ["#/folder"]),
}


async def test_what_is_not_in_the_contract_changes_nothing(box: Box) -> None:
    box.append(letter("one"))
    await box.uids()
    box.said()

    for name, (body, pointers) in BAD.items():
        assert problem(await box.post(BULK, body)) == (422, "invalid-request", pointers), name
    empty = await box.mailbox.client.post(
        BULK, content=b"", headers={"Content-Type": "application/json"}
    )
    get = await box.get(BULK)

    assert problem(empty)[:2] == (400, "malformed-json")
    assert problem(get)[0] in {404, 405}
    assert not {b"UID STORE", b"UID MOVE", b"UID COPY", b"EXPUNGE"} & set(verbs(box.said()))
    assert (box.subjects(), box.flags(1)) == (["one"], set())
