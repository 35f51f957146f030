"""Marks, moves, copies, deletes and appends, at a server that can do everything and at ones that cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.script import CUT, NORMAL
from tests.fakes.scripted_imap import CAPABILITIES, WEAK_CAPABILITIES, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, letter
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import (
    FOLDERS,
    MESSAGES,
    PLAINTEXT,
    Box,
    good,
    open_box,
    open_scripted,
    problem,
    verbs,
)


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture(params=["dovecot", "weak_dovecot"])
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


# ---- marks


async def test_marks_are_set_and_taken_away_and_told_as_the_server_has_them(box: Box) -> None:
    box.append(letter("one"), flags=["\\Answered"])
    mark = f"{MESSAGES}/1/mark"

    first = good(await box.post(mark, {"read": True, "flagged": True, "add_flags": ["$Work"]}))
    told = box.flags(1)
    second = good(
        await box.post(mark, {"flagged": False, "answered": False, "remove_flags": ["$work"]})
    )

    assert sorted(first.pop("flags")) == ["$Work", "\\Answered", "\\Flagged", "\\Seen"]
    assert told == {"$Work", "\\Answered", "\\Flagged", "\\Seen"}
    assert first == {
        "uid": 1,
        "folder": "INBOX",
        "read": True,
        "flagged": True,
        "answered": True,
        "draft": False,
    }
    assert (second["flags"], box.flags(1)) == (["\\Seen"], {"\\Seen"})


async def test_marking_what_already_is_so_is_no_error(box: Box) -> None:
    """Dovecot says nothing of a message whose flags a STORE does not change."""
    box.append(letter("one"), flags=["\\Seen"])

    again = good(await box.post(f"{MESSAGES}/1/mark", {"read": True}))
    mixed = good(await box.post(f"{MESSAGES}/1/mark", {"read": True, "flagged": False}))

    assert again["flags"] == mixed["flags"] == ["\\Seen"]


async def test_mail_that_has_just_arrived_can_be_marked(box: Box) -> None:
    """A warm connection has not been told of it when the STORE arrives."""
    box.append(letter("one"))
    await box.uids()

    (uid,) = box.append(letter("two"))
    marked = good(await box.post(f"{MESSAGES}/{uid}/mark", {"flagged": True}))

    assert marked["flagged"]
    assert box.flags(uid) == {"\\Flagged"}


async def test_a_mark_is_one_command_a_direction(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    await box.uids()
    box.said()

    good(await box.post(f"{MESSAGES}/2/mark", {"read": True}))
    one = verbs(box.said())
    good(await box.post(f"{MESSAGES}/2/mark", {"read": False, "add_flags": ["$A", "$B"]}))
    two = verbs(box.said())

    assert (one, two) == ([b"UID STORE"], [b"UID STORE"] * 2)


BAD_MARKS: dict[str, tuple[object, list[str]]] = {
    "nothing to change": ({}, []),
    "no flags": ({"add_flags": [], "remove_flags": []}, []),
    "both ways": ({"read": True, "remove_flags": ["\\seen"]}, []),
    "the server's own flag": ({"add_flags": ["\\Recent"]}, ["#/add_flags"]),
    "two words": ({"add_flags": ["a b"]}, ["#/add_flags"]),
    "a list": ({"remove_flags": ["(x)"]}, ["#/remove_flags"]),
    "a second command": ({"add_flags": ["x)\r\nA1 EXPUNGE"]}, ["#/add_flags"]),
    "a literal": ({"add_flags": ["{5}"]}, ["#/add_flags"]),
    "a wildcard": ({"add_flags": ["\\*"]}, ["#/add_flags"]),
    "an empty flag": ({"add_flags": [""]}, ["#/add_flags"]),
    "a flag beyond ASCII": ({"add_flags": ["größe"]}, ["#/add_flags"]),
    "a long flag": ({"add_flags": ["x" * 201]}, ["#/add_flags"]),
    "too many flags": ({"add_flags": [f"f{n}" for n in range(21)]}, ["#/add_flags"]),
    "no boolean": ({"read": "yes"}, ["#/read"]),
    "no list": ({"add_flags": "x"}, ["#/add_flags"]),
    "an unknown field": ({"read": True, "seen": True}, ["#/seen"]),
    "a list for a body": ([], ["#"]),
}


async def test_a_mark_that_is_not_in_the_contract_changes_nothing(box: Box) -> None:
    box.append(letter("one"))
    await box.uids()
    box.said()

    for name, (body, pointers) in BAD_MARKS.items():
        answer = problem(await box.post(f"{MESSAGES}/1/mark", body))
        assert answer == (422, "invalid-request", pointers), name
    for content in (b"", b"{", b"\xff"):
        headers = {"Content-Type": "application/json"}
        response = await box.mailbox.client.post(
            f"{MESSAGES}/1/mark", content=content, headers=headers
        )
        assert problem(response)[:2] == (400, "malformed-json"), content
    assert problem(await box.post(f"{MESSAGES}/1/mark", {"read": True}, x="y"))[0] == 422

    assert verbs(box.said()) == []
    assert box.flags(1) == set()


async def test_a_flag_the_folder_cannot_keep_is_refused(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.folders["INBOX"].kept_flags = "\\Seen \\Deleted"
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        kept = await mailbox.post(f"{MESSAGES}/1/mark", {"read": True})
        lost = await mailbox.post(f"{MESSAGES}/1/mark", {"add_flags": ["$Work"]})

    assert kept.status_code == 200
    assert problem(lost)[:2] == (422, "invalid-request")
    assert imap_server.count("UID STORE") == 1


# ---- moves and copies


async def test_a_message_moves_and_its_place_is_told(box: Box) -> None:
    box.append(letter("stays"), letter("goes"), flags=["\\Flagged"])
    box.append(letter("older"), folder="Archive")

    place = good(await box.post(f"{MESSAGES}/2/move", {"destination": "Archive"}))

    archive = await box.page(folder="Archive")
    assert place == {"folder": "Archive", "uid": 2, "uid_validity": archive["uid_validity"]}
    assert [row["subject"] for row in archive["messages"]] == ["goes", "older"]
    assert archive["messages"][0]["flagged"]
    assert box.subjects() == ["stays"]


async def test_a_copy_leaves_the_original_where_it_is(box: Box) -> None:
    box.append(letter("one"))

    elsewhere = good(await box.post(f"{MESSAGES}/1/copy", {"destination": "\\Archive"}))
    beside = good(await box.post(f"{MESSAGES}/1/copy", {"destination": "INBOX"}))

    assert (elsewhere["folder"], elsewhere["uid"]) == ("Archive", 1)
    assert (beside["folder"], beside["uid"]) == ("INBOX", 2)
    assert box.subjects() == ["one", "one"]
    assert box.subjects("Archive") == ["one"]


async def test_a_move_is_one_command_where_the_server_can(
    base_url: str, smtp_server: ScriptedSmtp, dovecot: Dovecot
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(letter("one"))
        await box.uids()
        box.said()

        good(await box.post(f"{MESSAGES}/1/move", {"destination": "Archive"}))

        assert verbs(box.said()) == [b"SELECT", b"UID MOVE"]


async def test_a_move_asks_nothing_of_the_server_that_it_does_not_offer(
    base_url: str, smtp_server: ScriptedSmtp, weak_dovecot: Dovecot
) -> None:
    async with open_box(weak_dovecot, base_url, smtp_server) as box:
        box.append(letter("one"))

        good(await box.post(f"{MESSAGES}/1/move", {"destination": "Archive"}))

        said = verbs(box.said())
        assert {b"UID COPY", b"EXPUNGE"} <= set(said)
        assert not {b"UID MOVE", b"UID EXPUNGE"} & set(said)


async def test_moving_takes_no_other_message_along(box: Box) -> None:
    """One that another client has marked as deleted, above all."""
    box.append(letter("marked"), flags=["\\Deleted"])
    (uid,) = box.append(letter("goes"))

    good(await box.post(f"{MESSAGES}/{uid}/move", {"destination": "Archive"}))

    assert box.subjects() == ["marked"]
    assert box.flags(1) == {"\\Deleted"}
    assert box.subjects("Archive") == ["goes"]


async def test_a_destination_that_is_not_there_leaves_the_message_where_it_is(box: Box) -> None:
    box.append(letter("one"))

    for action in ("move", "copy"):
        for destination in ("No/Such", "\\Flagged"):
            response = await box.post(f"{MESSAGES}/1/{action}", {"destination": destination})
            assert problem(response)[:2] == (404, "folder-not-found"), (action, destination)

    assert box.subjects() == ["one"]
    assert box.flags(1) == set()
    assert "No/Such" not in await box.folders()


async def test_a_destination_that_cannot_be_is_refused(box: Box) -> None:
    box.append(letter("one"))
    await box.uids()
    box.said()

    for action in ("move", "copy"):
        for destination in ("", "a\0", "Archive\r\nA1 DELETE Sent", "x" * 1001):
            response = await box.post(f"{MESSAGES}/1/{action}", {"destination": destination})
            assert problem(response) == (422, "invalid-request", ["#/destination"]), destination
        for body in ({}, {"destination": 1}, {"destination": None}, {"destination": "A", "x": 1}):
            assert problem(await box.post(f"{MESSAGES}/1/{action}", body))[0] == 422, body
    same = await box.post(f"{MESSAGES}/1/move", {"destination": "inbox"})

    assert problem(same) == (422, "invalid-request", ["#/destination"])
    assert not {b"UID MOVE", b"UID COPY", b"DELETE"} & set(verbs(box.said()))
    assert box.subjects() == ["one"]


async def test_an_awkward_destination_is_one_name_in_one_command(box: Box) -> None:
    box.append(letter("one"))
    for name in ('A" (X', "a{5}", "a{5+}", "&", "会议", "%", "*", "a b"):
        box.said()
        response = await box.post(f"{MESSAGES}/1/copy", {"destination": name})
        assert problem(response)[:2] == (404, "folder-not-found"), name
        said = verbs(box.said())
        assert set(said) <= {b"SELECT", b"UID SEARCH", b"UID COPY", b"LIST"}, name
        assert said.count(b"UID COPY") == 1, name


# ---- deletes


async def test_a_deleted_message_is_in_the_trash(box: Box) -> None:
    box.append(letter("one"), letter("two"))

    deleted = good(await box.delete(f"{MESSAGES}/1"))

    assert deleted == {"deleted": "trashed", "folder": "Trash", "uid": 1}
    assert (box.subjects(), box.subjects("Trash")) == (["two"], ["one"])


async def test_what_is_deleted_in_the_trash_or_for_good_is_gone(box: Box) -> None:
    box.append(letter("here"))
    box.append(letter("there"), folder="Trash")
    gone = {"deleted": "expunged", "folder": None, "uid": None}

    assert good(await box.delete(f"{MESSAGES}/1", permanent="true")) == gone
    assert good(await box.delete(f"{MESSAGES}/1", folder="Trash")) == gone

    assert box.subjects() == box.subjects("Trash") == []


async def test_without_a_trash_a_deleted_message_is_gone(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    del imap_server.folders["Trash"]
    imap_server.folders["INBOX"].add(letter("one"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        deleted = good(await mailbox.delete(f"{MESSAGES}/1"))

    assert deleted == {"deleted": "expunged", "folder": None, "uid": None}
    assert imap_server.folders["INBOX"].messages == []


async def test_deleting_for_good_takes_no_other_message_along(box: Box) -> None:
    """F-20: other mail that is marked as deleted keeps its mark and stays, without UIDPLUS too."""
    box.append(letter("marked 1"), letter("marked 2"), flags=["\\Deleted"])
    (uid,) = box.append(letter("goes"))
    box.append(letter("stays"))

    good(await box.delete(f"{MESSAGES}/{uid}", permanent="true"))

    assert box.subjects() == ["marked 1", "marked 2", "stays"]
    assert [box.flags(uid) for uid in (1, 2, 4)] == [{"\\Deleted"}, {"\\Deleted"}, set()]


async def test_deleting_side_by_side_takes_no_other_message_along(box: Box) -> None:
    """A plain EXPUNGE, where there is no better, must not meet the marks of another request at the same moment."""
    box.append(letter("marked 1"), letter("marked 2"), flags=["\\Deleted"])
    for _ in range(5):
        uids = box.append(*(letter(f"goes {number}") for number in range(8)))

        deleted = await asyncio.gather(
            *(box.delete(f"{MESSAGES}/{uid}", permanent="true") for uid in uids)
        )

        assert [response.status_code for response in deleted] == [200] * 8
        assert box.subjects() == ["marked 1", "marked 2"]
    assert [box.flags(uid) for uid in (1, 2)] == [{"\\Deleted"}, {"\\Deleted"}]


async def test_a_message_already_marked_as_deleted_can_be_deleted_for_good(box: Box) -> None:
    """Dovecot says nothing of it when it is marked again."""
    box.append(letter("marked 1"), letter("marked 2"), flags=["\\Deleted"])

    deleted = good(await box.delete(f"{MESSAGES}/1", permanent="true"))

    assert deleted["deleted"] == "expunged"
    assert box.subjects() == ["marked 2"]


async def test_deleting_refuses_what_is_not_in_the_contract(box: Box) -> None:
    box.append(letter("one"))

    for query in ({"permanent": "perhaps"}, {"forever": "true"}, {"folder": ""}):
        assert problem(await box.delete(f"{MESSAGES}/1", **query))[:2] == (422, "invalid-request")

    assert box.subjects() == ["one"]


# ---- what is not there


async def changes(box: Box, uid: str, **params: str) -> list[httpx.Response]:
    """Every call that changes one message."""
    path = f"{MESSAGES}/{uid}"
    return [
        await box.post(f"{path}/mark", {"flagged": True}, **params),
        await box.post(f"{path}/mark", {"flagged": False}, **params),
        await box.post(f"{path}/move", {"destination": "Archive"}, **params),
        await box.post(f"{path}/copy", {"destination": "Archive"}, **params),
        await box.delete(path, **params),
        await box.delete(path, permanent="true", **params),
    ]


async def test_changing_what_is_not_there_is_a_404_and_changes_nothing(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    await box.uids()
    box.server.expunge(box.user, "INBOX", [2])

    for uid in ("2", "3", "0", "4294967295", "4294967296", "9" * 5000):
        for response in await changes(box, uid):
            assert problem(response)[:2] == (404, "message-not-found"), uid[:20]
    for uid in ("abc", "-1", "1:2", "*", "1,2"):
        for response in await changes(box, uid):
            assert problem(response)[0] == 404, uid
    for response in await changes(box, "1", folder="No such"):
        assert problem(response)[:2] == (404, "folder-not-found")

    assert (box.subjects(), box.flags(1)) == (["one"], set())
    assert box.subjects("Archive") == box.subjects("Trash") == []


@pytest.mark.parametrize("connection", ["warm", "cold"])
async def test_a_uid_of_a_folder_that_was_made_anew_changes_no_other_message(
    box: Box, connection: str
) -> None:
    """T-41. A warm connection still has the old folder selected: Dovecot would find the new messages by the old UIDs."""
    box.server.create_folder(box.user, "Box")
    box.append(letter("old 1"), letter("old 2"), folder="Box")
    await box.uids(folder="Box")

    if connection == "cold":
        box.server.kick(box.user)
    box.server.recreate_folder(box.user, "Box")
    box.append(letter("new 1"), letter("new 2"), folder="Box")
    moved = await box.post(f"{MESSAGES}/1/move", {"destination": "Archive"}, folder="Box")

    for response in (moved, *await changes(box, "1", folder="Box")):
        assert problem(response)[:2] == (404, "message-not-found")
    assert box.subjects("Box") == ["new 1", "new 2"]
    assert box.flags(1, "Box") == set()
    assert box.subjects("Archive") == box.subjects("Trash") == []


@pytest.mark.parametrize("change", range(6))
async def test_the_first_change_after_a_folder_was_made_anew_meets_no_other_message(
    box: Box, change: int
) -> None:
    """Each on a connection that has not been told, which the test above has only for its first."""
    calls: list[Callable[[str], Any]] = [
        lambda path: box.post(f"{path}/mark", {"flagged": True}, folder="Box"),
        lambda path: box.post(f"{path}/mark", {"flagged": False}, folder="Box"),
        lambda path: box.post(f"{path}/copy", {"destination": "Archive"}, folder="Box"),
        lambda path: box.delete(path, folder="Box"),
        lambda path: box.delete(path, folder="Box", permanent="true"),
        lambda path: box.post(
            f"{MESSAGES}/bulk", {"folder": "Box", "uids": [1], "action": "delete"}
        ),
    ]
    box.server.create_folder(box.user, "Box")
    box.append(letter("old"), folder="Box")
    await box.uids(folder="Box")

    box.server.recreate_folder(box.user, "Box")
    box.append(letter("new"), folder="Box")
    response = await calls[change](f"{MESSAGES}/1")

    assert problem(response)[:2] == (404, "message-not-found")
    assert box.subjects("Archive") == box.subjects("Trash") == []


# ---- appends


async def append(box: Box, content: bytes, **params: str) -> httpx.Response:
    headers = {"Content-Type": "message/rfc822"}
    return await box.mailbox.client.post(MESSAGES, content=content, headers=headers, params=params)


async def test_a_message_is_kept_as_it_is(box: Box) -> None:
    content = b"Subject: kept\r\nX-Bin: \xff\r\n\r\n.\r\n8-bit \xe4\r\n" + b"x" * 100_000

    response = await append(box, content, folder="Archive", flags="\\Seen,$Work")

    place = good(response)
    assert response.status_code == 201
    assert (place["folder"], place["uid"]) == ("Archive", 1)
    assert place["uid_validity"] == (await box.page(folder="Archive"))["uid_validity"]
    raw = await box.get(f"{MESSAGES}/1/raw", folder="Archive")
    assert raw.content == content
    assert box.flags(1, "Archive") == {"\\Seen", "$Work"}


async def test_line_ends_are_made_those_of_mail(box: Box) -> None:
    good(await append(box, b"Subject: x\n\none\rtwo\r\nthree\n"))

    raw = await box.get(f"{MESSAGES}/1/raw")
    assert raw.content == b"Subject: x\r\n\r\none\r\ntwo\r\nthree\r\n"


async def test_a_draft_is_composed_from_json_and_keeps_its_bcc(box: Box) -> None:
    draft = {
        "to": ["Bob <bob@example.org>"],
        "bcc": "secret@example.org",
        "subject": "Grüße",
        "body": "Hello.",
    }

    place = good(await box.post(MESSAGES, draft, folder="\\Drafts"))

    assert (place["folder"], place["uid"]) == ("Drafts", 1)
    raw = message_from_bytes((await box.get(f"{MESSAGES}/1/raw", folder="Drafts")).content)
    assert raw["Bcc"] == "secret@example.org"
    message = good(await box.get(f"{MESSAGES}/1", folder="Drafts"))
    assert (message["subject"], message["text"].strip()) == ("Grüße", "Hello.")
    assert message["draft"]
    assert message["from"]["address"] == box.user
    assert box.flags(1, "Drafts") == {"\\Draft"}


async def test_an_append_that_is_not_in_the_contract_keeps_nothing(box: Box) -> None:
    content = letter("x")
    await box.uids()
    box.said()
    refusals = {
        "an empty message": await append(box, b""),
        "an empty folder name": await append(box, content, folder=""),
        "a control character": await append(box, content, folder="a\r\nb"),
        "no flag": await append(box, content, flags="a b"),
        "the server's own flag": await append(box, content, flags="\\Recent"),
        "many flags": await append(box, content, flags=",".join(f"f{n}" for n in range(21))),
        "a NUL": await append(box, b"Subject: \0\r\n\r\n"),
        "an unknown parameter": await append(box, content, flag="x"),
    }
    no_json = await box.mailbox.client.post(
        MESSAGES, content=b"{", headers={"Content-Type": "application/json"}
    )
    another = await box.mailbox.client.post(MESSAGES, content=content)

    for name, response in refusals.items():
        assert problem(response)[:2] == (422, "invalid-request"), name
    assert problem(no_json)[:2] == (400, "malformed-json")
    assert problem(another)[:2] == (415, "unsupported-media-type")
    assert verbs(box.said()) == []


async def test_an_append_to_no_folder_is_a_404(box: Box) -> None:
    response = await append(box, letter("x"), folder="No/Such")

    assert problem(response)[:2] == (404, "folder-not-found")
    assert "No/Such" not in await box.folders()


@pytest.mark.parametrize(
    ("refusal", "answer"),
    [
        (b"{tag} NO [OVERQUOTA] full\r\n", (502, "upstream-error")),
        (b"{tag} NO [TRYCREATE] no folder\r\n", (404, "folder-not-found")),
        (CUT, (503, "upstream-unavailable")),
    ],
)
async def test_a_literal_the_server_does_not_invite_is_an_answer_and_no_wait(
    imap_server: ScriptedImap,
    base_url: str,
    smtp_server: ScriptedSmtp,
    refusal: Any,
    answer: tuple[int, str],
) -> None:
    imap_server.capabilities = list(WEAK_CAPABILITIES)
    imap_server.on("literal", refusal)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.client.post(
            MESSAGES, content=letter("x"), headers={"Content-Type": "message/rfc822"}
        )

        assert problem(response)[:2] == answer
        good(await mailbox.get(MESSAGES))
    assert imap_server.folders["INBOX"].messages == []


# ---- servers that can do less (F-20)


async def test_a_server_that_cannot_tell_where_a_message_is_gives_null(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = list(WEAK_CAPABILITIES)
    imap_server.on("LSUB", b"{tag} OK none\r\n")
    inbox = imap_server.folders["INBOX"]
    inbox.add(letter("marked"), flags=["\\Deleted"])
    for number in range(2, 6):
        inbox.add(letter(f"m{number}"))
    nowhere = {"folder": "Sent", "uid": None, "uid_validity": None}
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        moved = good(await mailbox.post(f"{MESSAGES}/2/move", {"destination": "Sent"}))
        copied = good(await mailbox.post(f"{MESSAGES}/3/copy", {"destination": "Sent"}))
        trashed = good(await mailbox.delete(f"{MESSAGES}/4"))
        expunged = good(await mailbox.delete(f"{MESSAGES}/3", permanent="true"))
        kept = await mailbox.client.post(
            MESSAGES, content=letter("x"), headers={"Content-Type": "message/rfc822"}
        )
        missing = [
            await mailbox.post(f"{MESSAGES}/2/move", {"destination": "Sent"}),
            await mailbox.delete(f"{MESSAGES}/2", permanent="true"),
        ]

    assert moved == copied == nowhere
    assert trashed == {"deleted": "trashed", "folder": "Trash", "uid": None}
    assert expunged["deleted"] == "expunged"
    assert good(kept) == {"folder": "INBOX", "uid": None, "uid_validity": None}
    assert [problem(response)[1] for response in missing] == ["message-not-found"] * 2
    assert [(message.uid, message.flags) for message in inbox.messages] == [
        (1, {"\\Deleted"}),
        (5, set()),
        (6, set()),
    ]
    assert imap_server.connections == 1, "a command broke the connection"


async def test_hundreds_of_other_deleted_messages_fit_into_the_servers_lines(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = list(WEAK_CAPABILITIES)
    inbox = imap_server.folders["INBOX"]
    for uid in range(1_000_001, 1_002_401, 2):  # 9,600 octets, as no two of them are adjacent
        inbox.add(b"Subject: x\r\n\r\n", flags=["\\Deleted"], uid=uid)
    inbox.add(letter("goes"), uid=2_000_000)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        good(await mailbox.delete(f"{MESSAGES}/2000000", permanent="true"))

    assert len(inbox.messages) == 1200
    assert all("\\Deleted" in message.flags for message in inbox.messages)
    assert max(map(len, imap_server.commands)) < 8192


@pytest.mark.parametrize("verb", ["move", "copy"])
async def test_a_server_that_does_not_tell_where_a_message_went_is_believed_that_it_did(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp, verb: str
) -> None:
    """RFC 4315 section 3: COPYUID may be left out, by a server that has UIDPLUS too."""
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.on("UID COPY", b"{tag} OK copied\r\n")
    imap_server.on("UID MOVE", b"* 1 EXPUNGE\r\n{tag} OK moved\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        place = good(await mailbox.post(f"{MESSAGES}/1/{verb}", {"destination": "Sent"}))

    assert place == {"folder": "Sent", "uid": None, "uid_validity": None}


async def test_the_location_of_a_stored_message_is_where_it_is(box: Box) -> None:
    box.append(letter("another message of that number"))
    stored = await box.post(MESSAGES, {"subject": "mine", "body": "x"}, folder="Drafts")

    found = good(await box.mailbox.client.get(stored.headers["location"]))

    assert found["subject"] == "mine"


async def test_a_message_over_the_limit_is_not_stored(box: Box) -> None:
    raw = letter("big", "x" * 70 + "\r\n" * 2)
    raw += b"0123456789abcdef\r\n" * (26 * 1024 * 1024 // 18)

    refused = await box.mailbox.client.post(
        MESSAGES, content=raw, headers={"Content-Type": "message/rfc822"}
    )

    assert problem(refused)[:2] == (413, "payload-too-large")
    assert box.subjects() == []


# ---- connections that die


async def test_a_mark_on_a_connection_that_dies_is_made_once_more(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.on("UID STORE", CUT, NORMAL)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        marked = good(await mailbox.post(f"{MESSAGES}/1/mark", {"read": True}))

    assert marked["read"]


@pytest.mark.parametrize(
    ("command", "capabilities"),
    [
        ("UID MOVE", CAPABILITIES),
        ("UID COPY", WEAK_CAPABILITIES),
    ],
)
async def test_a_move_whose_answer_is_lost_is_not_made_again(
    imap_server: ScriptedImap,
    base_url: str,
    smtp_server: ScriptedSmtp,
    command: str,
    capabilities: tuple[str, ...],
) -> None:
    """It may have been done: a second one would answer that there is no such message, or copy it twice."""
    imap_server.capabilities = list(capabilities)
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.on(command, CUT)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.post(f"{MESSAGES}/1/move", {"destination": "Sent"})

    assert problem(response)[:2] == (503, "upstream-unavailable")
    assert imap_server.count(command) == 1
    assert len(imap_server.folders["INBOX"].messages) == 1, "it was expunged, though not copied"


async def test_a_change_that_has_not_begun_is_begun_on_another_connection(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.on("SELECT", CUT, NORMAL)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        place = good(await mailbox.post(f"{MESSAGES}/1/move", {"destination": "Sent"}))

    assert place["folder"] == "Sent"
    assert imap_server.count("UID MOVE") == 1


async def test_changes_work_after_the_server_ended_the_connection_at_rest(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 6)))
    await box.uids()

    async def kicked(call: Any) -> httpx.Response:
        box.server.kick(box.user)
        response: httpx.Response = await call()
        return response

    good(await kicked(lambda: box.post(f"{MESSAGES}/1/mark", {"read": True})))
    good(await kicked(lambda: box.post(f"{MESSAGES}/2/move", {"destination": "Archive"})))
    good(await kicked(lambda: box.post(f"{MESSAGES}/3/copy", {"destination": "Archive"})))
    good(await kicked(lambda: box.delete(f"{MESSAGES}/4")))
    good(await kicked(lambda: box.delete(f"{MESSAGES}/5", permanent="true")))
    good(await kicked(lambda: append(box, letter("new"))))
    good(await kicked(lambda: box.post(FOLDERS, {"name": "New"})))

    assert box.subjects() == ["m1", "m3", "new"]
    assert box.subjects("Archive") == ["m2", "m3"]
    assert box.subjects("Trash") == ["m4"]
