"""One road through the mailbox, at servers of different minds: what a client is told is the same at each of them.

Dovecot is the reference. What a server cannot do at all is told as the documentation has it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cbemail.demo import mailhost
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, letter, logged_in
from tests.integration.cyrus import Cyrus
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import FOLDERS, MESSAGES, good, problem
from tests.integration.test_messages import leaf, mime

CHANGES = "/api/mailbox/changes"
ROLES = ("Archive", "Drafts", "Junk", "Sent", "Trash")
PASSWORD = "secret"
PICTURE = bytes(range(256)) * 20


@dataclass(frozen=True)
class Account:
    """A fresh user of an IMAP server: ``login`` is the ``imap`` of `POST /api/sessions`."""

    address: str
    login: dict[str, Any]
    prefix: str = ""  # of every folder but INBOX
    delimiter: str = "/"
    takes_keywords: bool = True

    def credentials(self, smtp: ScriptedSmtp) -> dict[str, Any]:
        return {
            "email": self.address,
            "password": PASSWORD,
            "imap": self.login,
            "smtp": {"host": "localhost", "port": smtp.port, "security": "none"},
        }


@dataclass(frozen=True)
class Road:
    """A session at that server. Every answer is a good one."""

    account: Account
    mailbox: Mailbox

    async def get(self, path: str, **params: Any) -> Any:
        return good(await self.mailbox.get(path, **params))

    async def post(self, path: str, body: object) -> Any:
        return good(await self.mailbox.post(path, body))

    async def store(self, *messages: bytes, **params: str) -> list[int]:
        """Their UIDs, which begin where the server likes."""
        uids = []
        for message in messages:
            response = await self.mailbox.client.post(
                MESSAGES,
                content=message,
                headers={"Content-Type": "message/rfc822"},
                params=params,
            )
            uids.append(good(response)["uid"])
        return uids

    async def subjects(self, **params: Any) -> list[str]:
        """Those of a listing, the oldest first."""
        page = await self.get(MESSAGES, **params)
        return [row["subject"] for row in reversed(page["messages"])]

    async def folders(self) -> dict[str, dict[str, Any]]:
        return {folder["path"]: folder for folder in (await self.get(FOLDERS))["folders"]}


@asynccontextmanager
async def pymap() -> AsyncIterator[Account]:
    """The server of `cbemail demo`: no SPECIAL-USE, ESEARCH, CONDSTORE, SORT or THREAD, and no flags of one's own."""
    account = mailhost.Account("joe@example.test", PASSWORD)
    mailbox = mailhost.Mailbox(account)
    await mailbox.fill(ROLES, [])
    imap, smtp = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    login = {"host": "localhost", "port": imap.getsockname()[1], "security": "none"}
    async with mailhost.serving(mailbox, imap, smtp):
        yield Account(account.address, login, takes_keywords=False)


def real(server: Dovecot | Cyrus, prefix: str = "", delimiter: str = "/") -> Account:
    login = {"host": "localhost", "port": server.imaps_port, "security": "tls"}
    return Account(server.fresh_user(), login, prefix, delimiter)


@pytest.fixture(params=["dovecot", "cyrus", "pymap"])
async def account(request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    if request.param == "pymap":
        async with pymap() as account:
            yield account
    elif request.param == "cyrus":
        yield real(request.getfixturevalue("cyrus"), prefix="INBOX.", delimiter=".")
    else:
        yield real(request.getfixturevalue("dovecot"))


@pytest.fixture
async def road(base_url: str, account: Account, smtp_server: ScriptedSmtp) -> AsyncIterator[Road]:
    async with logged_in(base_url, account.credentials(smtp_server)) as mailbox:
        yield Road(account, mailbox)


async def test_a_wrong_password_is_refused_as_such(
    client: httpx.AsyncClient, account: Account, smtp_server: ScriptedSmtp
) -> None:
    body = account.credentials(smtp_server) | {"password": "wrong"}

    refused = await client.post("/api/sessions", json=body)

    assert problem(refused)[:2] == (401, "credentials-rejected")


async def test_every_folder_has_its_role_and_counts(road: Road) -> None:
    await road.store(letter("one"))
    await road.store(letter("two"), flags="\\Seen")

    folders = await road.folders()

    roles = {f"{road.account.prefix}{name}": name.lower() for name in ROLES}
    assert {path: folder["role"] for path, folder in folders.items()} == {"INBOX": "inbox"} | roles
    assert (folders["INBOX"]["messages"], folders["INBOX"]["unread"]) == (2, 1)


async def test_a_folder_is_made_renamed_and_deleted(road: Road) -> None:
    prefix, delimiter = road.account.prefix, road.account.delimiter

    made = await road.post(FOLDERS, {"name": "Büro/2026"})
    await road.store(letter("kept"), folder=made["path"])
    renamed = good(
        await road.mailbox.client.patch(f"{FOLDERS}/{made['path']}", json={"name": "Büro/2027"})
    )
    kept = await road.subjects(folder=renamed["path"])
    deleted = await road.mailbox.delete(f"{FOLDERS}/{renamed['path']}")

    assert (made["path"], made["name"]) == (f"{prefix}Büro{delimiter}2026", "2026")
    assert renamed["path"] == f"{prefix}Büro{delimiter}2027"
    assert kept == ["kept"]
    assert deleted.status_code == 204
    assert renamed["path"] not in await road.folders()


async def test_pages_follow_each_other_newest_first_and_stay_while_mail_comes(road: Road) -> None:
    uids = await road.store(*(letter(f"m{number}", f"Text {number}") for number in range(5)))

    first = await road.get(MESSAGES, limit=3, snippet=True)
    await road.store(letter("new"))
    second = await road.get(MESSAGES, limit=3, snippet=True, cursor=first["next_cursor"])

    rows = first["messages"] + second["messages"]
    assert [row["uid"] for row in rows] == uids[::-1]
    assert [row["snippet"] for row in rows] == [f"Text {number}" for number in reversed(range(5))]
    assert (first["total"], second["next_cursor"]) == (5, None)


FILTERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "unread": ({"read": "false"}, ["Lunch", "other"]),
    "read": ({"q": "is:read"}, ["Re: Lunch"]),
    "flagged": ({"flagged": "true"}, []),
    "answered": ({"answered": "false"}, ["Lunch", "Re: Lunch", "other"]),
    "from": ({"from": "ann@example.org"}, ["Lunch", "Re: Lunch", "other"]),
    "cc": ({"cc": "cleo"}, ["Lunch"]),
    "subject": ({"subject": "lunch"}, ["Lunch", "Re: Lunch"]),
    "text": ({"text": "x-kind"}, ["Lunch"]),
    "body": ({"body": "pear"}, ["other"]),
    "beyond ASCII": ({"body": "grüße"}, ["Lunch"]),
    "since": ({"since": "2026-01-01"}, ["Lunch", "Re: Lunch", "other"]),
    "before": ({"before": "2026-01-01"}, []),
    "larger": ({"larger": "2000"}, ["other"]),
    "smaller": ({"smaller": "2000"}, ["Lunch", "Re: Lunch"]),
    "attachments": ({"has_attachments": "true"}, ["other"]),
    "header": ({"header": "X-Kind:apple"}, ["Lunch"]),
    "query": ({"q": "from:ann -pear newer:7d"}, ["Lunch", "Re: Lunch"]),
    "neither": ({"q": "from:ann -subject:lunch -is:unread"}, []),
}


async def test_each_filter_finds_what_fits_it(road: Road) -> None:
    german = letter(
        "Lunch",
        "Viele Grüße",
        Cc="cleo@example.org",
        X_Kind="apple",
        Content_Type="text/plain; charset=utf-8",
        Content_Transfer_Encoding="8bit",
    )
    picture = 'Content-Disposition: attachment; filename="p.png"'
    with_picture = mime(
        b"\r\na pear",
        leaf("image/png", PICTURE, picture),
        head="Subject: other\r\nFrom: ann@example.org\r\nMIME-Version: 1.0",
    )
    await road.store(german)
    await road.store(letter("Re: Lunch"), flags="\\Seen")
    await road.store(with_picture)

    found = {name: await road.subjects(**params) for name, (params, _) in FILTERS.items()}

    assert found == {name: subjects for name, (_, subjects) in FILTERS.items()}


async def test_a_message_is_read_with_its_attachment(road: Road) -> None:
    whole = mime(
        leaf("text/html; charset=utf-8", "<p>Grüße<script>alert(1)</script></p>".encode()),
        leaf("image/png", PICTURE, 'Content-Disposition: attachment; filename="Büro.png"'),
        head="Subject: =?utf-8?q?B=C3=BCro?=\r\nMIME-Version: 1.0",
    )
    [uid] = await road.store(whole)

    message = await road.get(f"{MESSAGES}/{uid}")
    [attachment] = message["attachments"]
    part = await road.mailbox.get(f"{MESSAGES}/{uid}/attachments/{attachment['id']}")
    raw = await road.mailbox.get(f"{MESSAGES}/{uid}/raw")

    assert (message["subject"], message["has_attachments"]) == ("Büro", True)
    assert (message["text"].strip(), message["html"]) == ("Grüße", "<p>Grüße</p>")
    assert part.content == PICTURE
    assert raw.content == whole


async def test_marks_are_told_as_the_server_has_them(road: Road) -> None:
    [uid] = await road.store(letter("one"))

    marked = await road.post(f"{MESSAGES}/{uid}/mark", {"read": True, "flagged": True})
    unmarked = await road.post(f"{MESSAGES}/{uid}/mark", {"flagged": False})
    keyword = await road.mailbox.post(f"{MESSAGES}/{uid}/mark", {"add_flags": ["$Work"]})

    assert sorted(marked["flags"]) == ["\\Flagged", "\\Seen"]
    assert unmarked["flags"] == ["\\Seen"]
    if road.account.takes_keywords:
        assert sorted(good(keyword)["flags"]) == ["$Work", "\\Seen"]
    else:
        assert problem(keyword)[:2] == (422, "invalid-request")


async def test_messages_move_and_are_copied_and_deleted_and_their_places_told(road: Road) -> None:
    one, two, three, four = await road.store(*(letter(name) for name in ("1", "2", "3", "4")))

    copied = await road.post(f"{MESSAGES}/{one}/copy", {"destination": "\\Archive"})
    moved = await road.post(f"{MESSAGES}/{two}/move", {"destination": "\\Archive"})
    trashed = good(await road.mailbox.delete(f"{MESSAGES}/{three}"))
    removed = good(await road.mailbox.delete(f"{MESSAGES}/{four}", permanent="true"))

    archive = await road.get(MESSAGES, folder="\\Archive")
    assert await road.subjects() == ["1"]
    assert [row["uid"] for row in archive["messages"]] == [moved["uid"], copied["uid"]]
    assert (trashed["deleted"], removed["deleted"]) == ("trashed", "expunged")
    assert await road.subjects(folder="\\Trash") == ["3"]
    assert problem(await road.mailbox.get(f"{MESSAGES}/{two}"))[:2] == (404, "message-not-found")


async def test_many_are_changed_at_once_and_the_missing_told(road: Road) -> None:
    one, two, three = await road.store(*(letter(name) for name in ("1", "2", "3")))
    bulk = f"{MESSAGES}/bulk"

    marked = await road.post(bulk, {"action": "mark", "uids": [one, three + 9], "flagged": True})
    moved = await road.post(
        bulk, {"action": "move", "filter": {"flagged": True}, "destination": "\\Archive"}
    )
    removed = await road.post(bulk, {"action": "delete", "uids": [two], "permanent": True})

    assert (marked["changed"], marked["missing"]) == (1, [three + 9])
    assert [result["uid"] for result in moved["results"]] == [one]
    assert removed["results"] == [{"uid": two}]
    assert (await road.subjects(), await road.subjects(folder="\\Archive")) == (["3"], ["1"])


async def test_a_conversation_is_found_from_any_of_its_messages(road: Road) -> None:
    one, other, two = await road.store(
        letter("Lunch", Message_ID="<a@x>", Date="Sat, 3 Jan 2026 10:01:00 +0000"),
        letter("other", Message_ID="<z@x>", Date="Sat, 3 Jan 2026 10:02:00 +0000"),
        letter("Re: Lunch", References="<a@x>", Date="Sat, 3 Jan 2026 10:03:00 +0000"),
    )

    threads = [await road.get(f"{MESSAGES}/{uid}/thread") for uid in (one, two, other)]

    assert [[row["uid"] for row in thread["messages"]] for thread in threads] == [
        [one, two],
        [one, two],
        [other],
    ]


async def test_what_has_happened_is_told_and_nothing_else(road: Road) -> None:
    one, two = await road.store(letter("1"), letter("2"))
    before = await road.get(CHANGES)

    await road.post(f"{MESSAGES}/{one}/mark", {"flagged": True})
    good(await road.mailbox.delete(f"{MESSAGES}/{two}"))
    [three] = await road.store(letter("3"))
    after = await road.get(CHANGES, since=before["state"])
    again = await road.get(CHANGES, since=after["state"])

    assert after["flags"] == [{"uid": one, "flags": ["\\Flagged"]}]
    assert ([row["uid"] for row in after["new"]], after["removed"]) == ([three], [two])
    assert not after["reset"]
    assert (again["new"], again["flags"], again["removed"]) == ([], [], [])


async def test_all_folders_are_one_list_but_for_trash_and_junk(road: Road) -> None:
    for name in ("Archive", "Junk", "Trash"):
        await road.store(letter(name), folder=f"\\{name}")
    await road.store(letter("Inbox"))

    page = await road.get(MESSAGES, folder="*")

    folders = {row["subject"]: row["folder"] for row in page["messages"]}
    assert folders == {"Inbox": "INBOX", "Archive": f"{road.account.prefix}Archive"}
    assert (page["total"], page["skipped"]) == (2, [])
