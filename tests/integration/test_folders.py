"""`/api/mailbox/folders`, at a server that can do everything, at one that can do nothing extra, and at odd ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from cbemail.mailbox.everywhere import EVERYWHERE
from tests.fakes.imap_folders import CannedFolder
from tests.fakes.script import NORMAL
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


def at(path: str) -> str:
    """Where a folder is, with its slashes as they are."""
    return f"{FOLDERS}/{quote(path)}"


# ---- listing


async def test_every_folder_is_listed_with_its_role_and_counts(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    box.append(letter("three"), flags=["\\Seen"])

    folders = await box.folders()

    inbox = folders["INBOX"]
    assert (inbox["messages"], inbox["unread"], inbox["uid_next"]) == (3, 2, 4)
    assert inbox["uid_validity"] == (await box.page())["uid_validity"]
    assert inbox["selectable"]
    assert {path: folder["role"] for path, folder in folders.items()} == {
        "INBOX": "inbox",
        "Archive": "archive",
        "Drafts": "drafts",
        "Junk": "junk",
        "Sent": "sent",
        "Trash": "trash",
    }
    assert next(iter(folders)) == "INBOX"


async def test_a_listing_without_counts_asks_for_none(box: Box) -> None:
    box.said()

    folders = await box.folders(counts="false")

    assert folders["INBOX"]["messages"] is folders["INBOX"]["uid_next"] is None
    assert not [command for command in box.said() if b"STATUS" in command]


async def test_names_are_unicode_and_levels_are_told(box: Box) -> None:
    box.server.create_folder(box.user, "Entwürfe & Co/会议")

    folder = (await box.folders())["Entwürfe & Co/会议"]
    parent = (await box.folders())["Entwürfe & Co"]

    assert (folder["name"], folder["delimiter"], folder["has_children"]) == ("会议", "/", False)
    assert parent["has_children"]


async def test_a_folder_that_only_holds_others_is_not_selectable(box: Box) -> None:
    box.server.create_folder(box.user, "Top/Leaf")

    top = (await box.folders())["Top"]

    assert not top["selectable"]
    assert top["messages"] is None
    assert problem(await box.get(MESSAGES, folder="Top"))[:2] == (404, "folder-not-found")


# ---- making


async def test_a_new_folder_is_subscribed_and_where_its_location_says(box: Box) -> None:
    response = await box.post(FOLDERS, {"name": "Büro/2026 & später"})

    folder = good(response)
    assert response.status_code == 201
    assert folder["path"] == "Büro/2026 & später"
    assert folder["subscribed"]
    assert (folder["messages"], folder["role"]) == (0, None)
    located = await box.patch(response.headers["location"], {"subscribed": False})
    assert good(located)["path"] == "Büro/2026 & später"


async def test_a_slash_in_a_folders_path_may_be_raw_or_escaped(box: Box) -> None:
    for path in ("A/raw", "A/escaped"):
        good(await box.post(FOLDERS, {"name": path}))

    raw = await box.delete(f"{FOLDERS}/A/raw")
    escaped = await box.delete(f"{FOLDERS}/A%2Fescaped")

    assert (raw.status_code, escaped.status_code) == (204, 204)
    assert not {"A/raw", "A/escaped"} & (await box.folders()).keys()


async def test_making_a_folder_that_exists_is_a_409(box: Box) -> None:
    good(await box.post(FOLDERS, {"name": "Box"}))

    for name in ("Box", "INBOX", "inbox"):
        assert problem(await box.post(FOLDERS, {"name": name}))[:2] == (409, "folder-exists")


async def test_a_folder_below_inbox_is_found_however_inbox_is_written(box: Box) -> None:
    folder = good(await box.post(FOLDERS, {"name": "inbox/Sub"}))

    assert folder["path"] == "INBOX/Sub"


# ---- changing


async def test_renaming_takes_the_messages_the_children_and_their_subscriptions_along(
    box: Box,
) -> None:
    for name in ("Old", "Old/Child"):
        good(await box.post(FOLDERS, {"name": name}))
    box.append(letter("one"), folder="Old/Child")

    folder = good(await box.patch(at("Old"), {"name": "New/Place"}))

    folders = await box.folders()
    assert folder["path"] == "New/Place"
    assert folder["subscribed"]
    assert folders["New/Place/Child"]["subscribed"]
    assert folders["New/Place/Child"]["messages"] == 1
    assert not {"Old", "Old/Child"} & {path for path in folders if folders[path]["selectable"]}


async def test_a_renamed_folder_stays_unsubscribed(box: Box) -> None:
    box.server.create_folder(box.user, "Old")

    folder = good(await box.patch(at("Old"), {"name": "New"}))

    assert not folder["subscribed"]


async def test_a_subscription_can_be_taken_away_and_given_back(box: Box) -> None:
    good(await box.post(FOLDERS, {"name": "Box"}))

    without = good(await box.patch(at("Box"), {"subscribed": False}))
    again = good(await box.patch(at("Box"), {"subscribed": True}))

    assert (without["subscribed"], again["subscribed"]) == (False, True)


async def test_a_folder_in_use_can_be_renamed_and_deleted(box: Box) -> None:
    """Warm connections have the folder, and one below it, selected."""
    for name in ("Old", "Old/Child"):
        good(await box.post(FOLDERS, {"name": name}))
        box.append(letter(name), folder=name)
        assert await box.uids(folder=name) == [1]

    good(await box.patch(at("Old"), {"name": "New"}))
    for name in ("Old", "Old/Child"):
        assert (await box.get(MESSAGES, folder=name)).status_code == 404
    assert await box.uids(folder="New/Child") == [1]
    assert (await box.delete(at("New/Child"))).status_code == 204

    assert problem(await box.get(MESSAGES, folder="New/Child"))[:2] == (404, "folder-not-found")


async def test_a_folder_that_was_deleted_and_made_again_is_empty(box: Box) -> None:
    good(await box.post(FOLDERS, {"name": "Box"}))
    box.append(letter("one"), folder="Box")
    assert await box.uids(folder="Box") == [1]

    await box.delete(at("Box"))
    good(await box.post(FOLDERS, {"name": "Box"}))

    assert await box.uids(folder="Box") == []


async def test_inbox_is_neither_renamed_nor_deleted(box: Box) -> None:
    box.append(letter("one"))
    box.said()

    for name in ("INBOX", "inbox", "Inbox", "\\Inbox"):
        assert problem(await box.delete(at(name)))[:2] == (409, "folder-protected")
        renamed = await box.patch(at(name), {"name": "Other"})
        assert problem(renamed)[:2] == (409, "folder-protected")

    assert not {b"DELETE", b"RENAME"} & set(verbs(box.said()))
    assert box.subjects() == ["one"]


async def test_a_folder_that_is_not_there_is_a_404(box: Box) -> None:
    missing = at("No/Such")

    assert problem(await box.patch(missing, {"name": "X"}))[:2] == (404, "folder-not-found")
    assert problem(await box.patch(missing, {"subscribed": True}))[:2] == (404, "folder-not-found")
    assert problem(await box.delete(missing))[:2] == (404, "folder-not-found")


async def test_a_folder_cannot_be_moved_into_itself_or_onto_another(box: Box) -> None:
    for name in ("Box", "Other"):
        good(await box.post(FOLDERS, {"name": name}))
        box.append(letter(name), folder=name)

    into_itself = await box.patch(at("Box"), {"name": "Box/Box"})
    onto_another = await box.patch(at("Box"), {"name": "Other"})

    assert problem(into_itself) == (422, "invalid-request", ["#/name"])
    assert problem(onto_another)[:2] == (409, "folder-exists")
    assert (box.subjects("Box"), box.subjects("Other")) == (["Box"], ["Other"])


async def test_a_folder_can_be_named_by_its_special_use(box: Box) -> None:
    box.append(letter("sent"), folder="Sent")

    listed = await box.page(folder="\\sent")
    changed = good(await box.patch(at("\\Archive"), {"subscribed": False}))

    assert listed["folder"] == "Sent"
    assert listed["total"] == 1
    assert changed["path"] == "Archive"


# ---- names that are more than names (T-18)

AWKWARD = (
    *('INBOX" (X', '"', "\\", "back\\slash", "a{5}", "a{5+}", "{0}", "(", ")", "a b", " a"),
    *("INBOX (CONDSTORE)", "%", "*", "a*b%", "&", "&-", "&AAA-", "~", "#x", "]", "[a]", "NIL"),
    *("Entwürfe", "会议", "🎉", "e\u0301", "a" * 200),
)


async def test_an_awkward_name_is_the_name_of_one_folder_and_nothing_else(box: Box) -> None:
    good(await box.get(FOLDERS))
    for name in AWKWARD:
        box.said()

        made = await box.post(FOLDERS, {"name": name})

        assert made.status_code in {201, 422}, name  # 422: the server wants no such name
        said = [command for command in box.said() if command != b"NAMESPACE"]  # asked for once
        assert verbs(said)[:1] == [b"CREATE"], name
        assert set(verbs(said)) <= {b"CREATE", b"SUBSCRIBE", b"LIST", b"LSUB", b"STATUS"}, name
        if made.status_code == 201:
            assert made.json()["path"] == name
            await box.get(FOLDERS)
            box.said()
            if name != EVERYWHERE:  # where it is listed, that is every folder
                assert await box.uids(folder=name) == []
                assert verbs(box.said()) == [b"SELECT", b"UID SEARCH"], name
            assert (await box.delete(at(name))).status_code == 204
    assert set(await box.folders()) == {"INBOX", "Archive", "Drafts", "Junk", "Sent", "Trash"}


REFUSED = (
    *("", " ", "/", "a//b", "/a", "a/", "a/ /b", "\0", "a\0b", "INBOX\r\nA1 DELETE INBOX", "a\nb"),
    *("a\rb", "a\tb", "\x7f", "\x85", "\u2028", "a" * 1001, "\\Sent", "\\trash", "\\Inbox"),
)


async def test_a_name_that_no_folder_can_have_is_refused_before_the_server_hears_of_it(
    box: Box,
) -> None:
    before = set(await box.folders())
    good(await box.post(FOLDERS, {"name": "Box"}))
    box.said()

    for name in REFUSED:
        made = problem(await box.post(FOLDERS, {"name": name}))
        renamed = problem(await box.patch(at("Box"), {"name": name}))
        assert made == renamed == (422, "invalid-request", ["#/name"]), repr(name)

    assert not {b"CREATE", b"RENAME", b"SUBSCRIBE"} & set(verbs(box.said()))
    assert set(await box.folders()) == before | {"Box"}


async def test_a_path_with_control_characters_is_refused_before_the_server_hears_of_it(
    box: Box,
) -> None:
    good(await box.get(FOLDERS))
    box.said()

    for name in ("INBOX\r\nA1 DELETE Sent", "a\0", "a\nb", "\u2028", "a" * 1001):
        assert (await box.delete(at(name))).status_code in {404, 422}
        listed = await box.get(MESSAGES, folder=name)
        assert problem(listed) == (422, "invalid-request", ["#/folder"])

    assert verbs(box.said()) == []


# ---- bad input


async def test_what_is_not_in_the_contract_is_refused(box: Box) -> None:
    client = box.mailbox.client
    before = await box.folders()
    json = {"Content-Type": "application/json"}

    refusals = {
        "no body": await client.post(FOLDERS),
        "an empty body": await client.post(FOLDERS, content=b"", headers=json),
        "broken JSON": await client.post(FOLDERS, content=b'{"name"', headers=json),
        "another type": await client.post(FOLDERS, content=b"name=x"),
        "no name": await box.post(FOLDERS, {}),
        "a name that is no text": await box.post(FOLDERS, {"name": 7}),
        "an unknown field": await box.post(FOLDERS, {"name": "X", "colour": "red"}),
        "half a character": await client.post(FOLDERS, content=rb'{"name":"\ud800"}', headers=json),
        "no change": await box.patch(at("Sent"), {}),
        "an unknown change": await box.patch(at("Sent"), {"path": "X"}),
        "an unknown parameter": await box.get(FOLDERS, count="false"),
        "a parameter that is no boolean": await box.get(FOLDERS, counts="maybe"),
        "a parameter twice": await client.get(f"{FOLDERS}?counts=true&counts=true"),
        "a wrong method": await client.put(at("Sent"), json={"name": "X"}),
    }

    assert {name: problem(response) for name, response in refusals.items()} == {
        "no body": (415, "unsupported-media-type", []),
        "an empty body": (400, "malformed-json", []),
        "broken JSON": (400, "malformed-json", []),
        "another type": (415, "unsupported-media-type", []),
        "no name": (422, "invalid-request", ["#/name"]),
        "a name that is no text": (422, "invalid-request", ["#/name"]),
        "an unknown field": (422, "invalid-request", ["#/colour"]),
        "half a character": (400, "malformed-json", []),
        "no change": (422, "invalid-request", []),
        "an unknown change": (422, "invalid-request", ["#/path"]),
        "an unknown parameter": (422, "invalid-request", ["#/count"]),
        "a parameter that is no boolean": (422, "invalid-request", ["#/counts"]),
        "a parameter twice": (422, "invalid-request", []),
        "a wrong method": (405, "method-not-allowed", []),
    }
    assert await box.folders() == before


# ---- servers with ideas of their own

HOSTILE = (
    b"INBOX\r\nA1 DELETE INBOX",
    b"nul\0",
    b"&AGEAYg",  # modified UTF-7 that never ends
    b"&!!-",
    b"..",
    b"../../etc/passwd",
    b"%",
    b"*",
    b'quote"',
    b"back\\slash",
    b"{5}",
    b"th\xe9",
    b"caf\xc3\xa9",
    b"x" * 10_000,
)


def listing(names: tuple[bytes, ...]) -> bytes:
    """A LIST of names in literals, which can say anything."""
    lines = [b'* LIST (\\HasNoChildren) "/" {%d}\r\n%b\r\n' % (len(name), name) for name in names]
    return b"".join(lines) + b"{tag} OK listed\r\n"


@pytest.mark.parametrize("capabilities", [CAPABILITIES, WEAK_CAPABILITIES], ids=["strong", "weak"])
async def test_hostile_names_are_listed_and_can_never_be_more_than_a_name(
    imap_server: ScriptedImap,
    base_url: str,
    smtp_server: ScriptedSmtp,
    capabilities: tuple[str, ...],
) -> None:
    imap_server.capabilities = [c for c in capabilities if c != "LIST-STATUS"]
    imap_server.folders["INBOX"].add(letter("here"))
    for command in ("SELECT", "DELETE", "STATUS", "UID COPY"):
        imap_server.on(command, b"{tag} NO [NONEXISTENT] no such folder\r\n")
    imap_server.on('SELECT "INBOX"', NORMAL)
    imap_server.on("LIST", listing(HOSTILE))
    imap_server.on("LSUB", b"{tag} OK none\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        paths = [folder["path"] for folder in good(await mailbox.get(FOLDERS))["folders"]]
        assert len(paths) == len(HOSTILE)
        for path in paths:
            imap_server.commands.clear()

            if path != EVERYWHERE:
                await mailbox.get(MESSAGES, folder=path)
            await mailbox.delete(at(path))
            await mailbox.post(f"{MESSAGES}/1/copy", {"destination": path})

            said = verbs(imap_server.commands)
            assert set(said) <= {b"SELECT", b"LIST", b"DELETE", b"UID SEARCH", b"UID COPY"}, path
            assert max(said.count(verb) for verb in (b"DELETE", b"UID COPY")) <= 1, path


@pytest.mark.parametrize("name", ["Tom & Jerry", "Entwürfe"])
@pytest.mark.parametrize("known", ["listed before", "never listed"])
async def test_a_folder_the_server_spells_in_its_own_way_can_be_used(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp, name: str, known: str
) -> None:
    """Neither is modified UTF-7 (RFC 3501 section 5.1.3), and the server knows its folder by these octets only."""
    imap_server.folders[name] = CannedFolder()
    imap_server.folders[name].add(letter("there"))
    imap_server.folders["INBOX"].add(letter("here"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        if known == "listed before":
            folders = good(await mailbox.get(FOLDERS))["folders"]
            assert name in [folder["path"] for folder in folders]

        page = good(await mailbox.get(MESSAGES, folder=name))
        place = good(await mailbox.post(f"{MESSAGES}/1/move", {"destination": name}))
        back = await mailbox.post(f"{MESSAGES}/1/copy", {"destination": "INBOX"}, folder=name)
        gone = await mailbox.delete(at(name))

    assert [row["subject"] for row in page["messages"]] == ["there"]
    assert (place["folder"], place["uid"]) == (name, 2)
    assert good(back)["folder"] == "INBOX"
    assert gone.status_code == 204
    assert name not in imap_server.folders


async def test_a_server_that_goes_on_with_folders_that_are_gone_is_not_asked_about_them(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    """A connection that has one selected would be answered as if nothing had happened."""
    for name in ("Old", "Old/Child"):
        imap_server.folders[name] = CannedFolder()
        imap_server.folders[name].add(letter(name))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        for name in ("Old", "Old/Child"):
            assert good(await mailbox.get(MESSAGES, folder=name))["total"] == 1

        good(await mailbox.client.patch(at("Old"), json={"name": "New"}))

        for name in ("Old/Child", "Old"):
            response = await mailbox.get(MESSAGES, folder=name)
            assert problem(response)[:2] == (404, "folder-not-found")
        assert good(await mailbox.get(MESSAGES, folder="New/Child"))["total"] == 1


async def test_roles_are_told_by_name_where_the_server_does_not(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = list(WEAK_CAPABILITIES)
    imap_server.delimiter = "."
    imap_server.folders = {
        name: CannedFolder()
        for name in ("INBOX", "INBOX.Gesendet", "INBOX.Entw&APw-rfe", "INBOX.Papierkorb", "Work")
    }
    imap_server.on("LSUB", b'* LSUB () "." "Work"\r\n{tag} OK done\r\n')
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        folders = good(await mailbox.get(FOLDERS))["folders"]

    assert {folder["path"]: folder["role"] for folder in folders} == {
        "INBOX": "inbox",
        "INBOX.Gesendet": "sent",
        "INBOX.Entwürfe": "drafts",
        "INBOX.Papierkorb": "trash",
        "Work": None,
    }
    assert [folder["path"] for folder in folders if folder["subscribed"]] == ["Work"]
    assert folders[0]["has_children"]


async def test_a_slash_separates_levels_whatever_the_servers_delimiter_is(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.delimiter = "."
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        folder = good(await mailbox.post(FOLDERS, {"name": "Projects/2026"}))

    assert (folder["path"], folder["delimiter"]) == ("Projects.2026", ".")
    assert "Projects.2026" in imap_server.folders


async def test_a_status_that_is_refused_leaves_one_folder_without_counts(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = [c for c in imap_server.capabilities if c != "LIST-STATUS"]
    imap_server.on('STATUS "Sent"', b"{tag} NO [NOPERM] not yours\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        folders = {f["path"]: f for f in good(await mailbox.get(FOLDERS))["folders"]}

    assert folders["Sent"]["messages"] is None
    assert folders["Trash"]["messages"] == 0


async def test_a_refusal_of_the_server_is_told_in_our_words(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.on(
        "CREATE",
        b"{tag} NO [CANNOT] secret-server-words\r\n",
        b"{tag} NO [OVERQUOTA] secret-server-words\r\n",
        b"{tag} NO [ALREADYEXISTS] secret-server-words\r\n",
        b"{tag} BAD secret-server-words\r\n",
        NORMAL,
    )

    async def create(mailbox_post: httpx.Response) -> tuple[int, str]:
        assert "secret-server-words" not in mailbox_post.text
        return problem(mailbox_post)[:2]

    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        refusals = [await create(await mailbox.post(FOLDERS, {"name": "X"})) for _ in range(4)]
        made = await mailbox.post(FOLDERS, {"name": "X"})

    assert refusals == [
        (422, "invalid-request"),
        (502, "upstream-error"),
        (409, "folder-exists"),
        (502, "upstream-error"),
    ]
    assert made.status_code == 201, "a connection that heard BAD was used again"
