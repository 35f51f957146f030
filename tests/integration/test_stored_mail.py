"""What was read stays known through a restart: what the mail server is still asked, and that the answer is as it is now."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, letter, serving
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import MESSAGES, PLAINTEXT, Box, good, open_box, problem

LETTER = letter(
    "two parts",
    "--x\r\nContent-Type: text/html\r\n\r\n<p>Hello <b>Ann</b></p>\r\n"
    "--x\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=a.pdf\r\n\r\n%PDF\r\n"
    "--x--\r\n",
    **{"Content-Type": "multipart/mixed; boundary=x", "Date": "Mon, 2 Mar 2026 10:00:00 +0100"},
)

ODD = [
    b"\r\n",
    b'From: "\xff" <a@b>\r\nSubject: =?utf-8?q?=FF?= \xff\r\nMessage-ID: \xff\r\n\r\n\xff\x00',
    letter("far", Date="Fri, 31 Dec 9999 23:59:59 -1200"),
    letter("half =?utf-16-be?b?2AA=?=", **{"Content-Type": "text/plain; charset=utf-7"}),
]


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture
def cache(environ: dict[str, str]) -> Path:
    store = Path(environ["DB_PATH"])
    return store.with_name(store.name + ".cache")


@asynccontextmanager
async def first_run(
    server: Dovecot, environ: dict[str, str], smtp: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with serving(environ) as url, open_box(server, url, smtp) as box:
        yield box


@asynccontextmanager
async def next_run(box: Box, environ: dict[str, str]) -> AsyncIterator[Box]:
    """The service once more, and the same session."""
    box.said()
    headers = {"Authorization": box.mailbox.client.headers["Authorization"]}
    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        box.mailbox = replace(box.mailbox, client=client)
        yield box


def mark_elsewhere(box: Box, uid: int) -> None:
    box.server.doveadm(
        "flags", "add", "-u", box.user, "\\Flagged", "mailbox", "INBOX", "uid", str(uid)
    )


def fetched(box: Box) -> list[bytes]:
    """The commands that asked for more than flags."""
    return [command for command in box.said() if b"BODY" in command or b"PREVIEW" in command]


def marked(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"flagged": True, "flags": ["\\Flagged"]}


@pytest.mark.parametrize("params", [{}, {"snippet": "true"}, {"folder": "*"}, {"subject": "o"}])
@pytest.mark.parametrize("kind", ["dovecot", "weak_dovecot"])
async def test_after_a_restart_a_page_is_shown_without_fetching_what_is_known(
    request: pytest.FixtureRequest,
    kind: str,
    environ: dict[str, str],
    smtp_server: ScriptedSmtp,
    params: dict[str, str],
) -> None:
    async with first_run(request.getfixturevalue(kind), environ, smtp_server) as box:
        box.append(LETTER, letter("old one"))
        before = await box.page(**params)
    mark_elsewhere(box, 1)

    async with next_run(box, environ):
        after = await box.page(**params)

        assert fetched(box) == []
    newer, older = before["messages"]
    assert after["messages"] == [newer, marked(older)]


async def test_after_a_restart_only_what_is_new_is_fetched(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.append(letter("one"), letter("two"))
        await box.page()
    box.append(letter("three"))
    box.server.expunge(box.user, "INBOX", [1])

    async with next_run(box, environ):
        page = await box.page()

        (command,) = fetched(box)
        assert command.startswith(b"UID FETCH 3 ")
    assert [row["subject"] for row in page["messages"]] == ["three", "two"]


async def test_after_a_restart_a_conversation_is_shown_without_fetching_what_is_known(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.append(letter("one"), letter("Re: one"))
        before = good(await box.get(f"{MESSAGES}/1/thread"))

    async with next_run(box, environ):
        assert good(await box.get(f"{MESSAGES}/1/thread")) == before
        assert fetched(box) == []


@pytest.mark.parametrize("kind", ["dovecot", "weak_dovecot"])
async def test_after_a_restart_a_message_is_read_without_fetching_its_body(
    request: pytest.FixtureRequest, kind: str, environ: dict[str, str], smtp_server: ScriptedSmtp
) -> None:
    async with first_run(request.getfixturevalue(kind), environ, smtp_server) as box:
        box.append(LETTER)
        before = good(await box.get(f"{MESSAGES}/1"))
    mark_elsewhere(box, 1)

    async with next_run(box, environ):
        after = good(await box.get(f"{MESSAGES}/1"))

        assert fetched(box) == []
    assert after == marked(before)
    assert "Hello Ann" in after["text"].replace("*", "")


async def test_after_a_restart_mail_that_says_little_of_itself_or_nonsense_is_known_as_well(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        uids = box.append(*ODD)
        before = [await box.page(), *[good(await box.get(f"{MESSAGES}/{uid}")) for uid in uids]]

    async with next_run(box, environ):
        after = [await box.page(), *[good(await box.get(f"{MESSAGES}/{uid}")) for uid in uids]]

        assert fetched(box) == []
    assert after == before


async def test_a_message_that_went_while_the_service_was_down_is_not_found(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.append(letter("one"))
        good(await box.get(f"{MESSAGES}/1"))
        await box.page()
    box.server.expunge(box.user, "INBOX", [1])

    async with next_run(box, environ):
        assert problem(await box.get(f"{MESSAGES}/1"))[:2] == (404, "message-not-found")
        assert await box.uids() == []


async def test_of_a_folder_made_anew_while_the_service_was_down_the_new_is_shown(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.server.create_folder(box.user, "Work")
        box.append(letter("old"), folder="Work")
        await box.page(folder="Work")
        good(await box.get(f"{MESSAGES}/1", folder="Work"))
    box.server.recreate_folder(box.user, "Work")
    box.append(letter("new"), folder="Work")

    async with next_run(box, environ):
        (row,) = (await box.page(folder="Work"))["messages"]
        read = good(await box.get(f"{MESSAGES}/1", folder="Work"))

    assert (row["subject"], read["subject"]) == ("new", "new")


async def test_deleting_a_session_leaves_neither_its_key_nor_its_mail(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp, cache: Path
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.append(letter("one"))
        await box.page()
    left = [left_in(cache)]

    async with next_run(box, environ):
        good(await box.get(f"{MESSAGES}/1"))
        assert (await box.delete(f"/api/sessions/{box.mailbox.session_id}")).status_code == 204
    left.append(left_in(cache))

    assert left == [(1, 1), (0, 0)]


def left_in(cache: Path) -> tuple[int, int]:
    """How many keys are in the store, and how many values in the cache beside it."""
    with duckdb.connect(cache.with_suffix(""), read_only=True) as store:
        keys = store.execute("from cache_key").fetchall()
    connection = sqlite3.connect(cache)
    values = connection.execute("select * from value").fetchall()
    connection.close()
    return len(keys), len(values)


async def test_without_room_on_disk_nothing_is_kept_there(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp, cache: Path
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.append(letter("one"))
        before = await box.page()
    assert cache.name in names_beside(cache)

    async with next_run(box, environ | {"CACHE_MAX_MB": "0"}):
        assert await box.page() == before
        assert len(fetched(box)) == 1
        assert not [name for name in names_beside(cache) if "cache" in name]


def names_beside(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()]


async def test_a_damaged_cache_is_no_error(
    dovecot: Dovecot, environ: dict[str, str], smtp_server: ScriptedSmtp, cache: Path
) -> None:
    async with first_run(dovecot, environ, smtp_server) as box:
        box.append(letter("one"))
        before = [await box.page(), good(await box.get(f"{MESSAGES}/1"))]
    damage(cache)

    async with next_run(box, environ):
        assert [await box.page(), good(await box.get(f"{MESSAGES}/1"))] == before


def damage(cache: Path) -> None:
    cache.write_bytes(b"\0" * cache.stat().st_size)
