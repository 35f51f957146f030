"""A warm connection that goes from one folder to another: a read selects by the way, and never mistakes the two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes.fault_proxy import FaultProxy, Flow
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import credentials, letter, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import MESSAGES, Box, good, open_box, problem, verbs

# Of each session, so that flights on their way side by side are not taken for one.
ONE_CONNECTION = {"IMAP_CONNECTIONS_PER_SESSION": "1"}
SERVERS = ["dovecot", "condstore_dovecot", "weak_dovecot"]


class WayUp(Flow):
    """Counts flights: how far the way down had come when the client spoke is another each time it has had an answer."""

    def __init__(self, down: Flow) -> None:
        super().__init__()
        self._down = down
        self._heard: set[int] = set()

    def admit(self, segment: bytes) -> tuple[bytes, Any]:
        self._heard.add(self._down.octets)
        return super().admit(segment)

    def flights(self) -> int:
        """How many there were since this was last asked."""
        heard, self._heard = self._heard, set()
        return len(heard)


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | ONE_CONNECTION


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Dovecot:
    server: Dovecot = request.getfixturevalue(request.param)
    return server


@pytest.fixture
async def box(server: Dovecot, base_url: str, smtp_server: ScriptedSmtp) -> AsyncIterator[Box]:
    async with open_box(server, base_url, smtp_server) as box:
        box.append(letter("one"), letter("two"))
        box.append(letter("sent"), folder="Sent")
        yield box


def mark_elsewhere(box: Box, uid: int, folder: str) -> None:
    """As another client of the mailbox does it."""
    box.server.doveadm(
        "flags", "add", "-u", box.user, "\\Flagged", "mailbox", folder, "uid", f"{uid}"
    )


@asynccontextmanager
async def counted(
    server: Dovecot, base_url: str, smtp: ScriptedSmtp
) -> AsyncIterator[tuple[Box, WayUp]]:
    """A box, and the way to its server."""
    async with FaultProxy(server.host, server.imaps_port) as proxy:
        proxy.up = way = WayUp(proxy.down)
        body = credentials(server.fresh_user(), server, smtp.port, security="none")
        body["imap"]["port"] = proxy.port
        server.record(body["email"])
        async with logged_in(base_url, body) as mailbox:
            yield Box(server, mailbox), way


async def test_what_is_read_of_another_folder_takes_one_flight(
    server: Dovecot, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    async with counted(server, base_url, smtp_server) as (box, way):
        box.append(letter("one"), letter("two"))
        box.append(letter("sent"), folder="Sent")
        await box.page(folder="Sent")
        way.flights()

        good(await box.get(f"{MESSAGES}/1"))
        first = way.flights()
        good(await box.get(f"{MESSAGES}/1", folder="Sent"))
        again = way.flights()

    assert (first, again) == (1, 1)


async def test_a_search_everywhere_takes_one_flight_a_folder_that_has_messages(
    server: Dovecot, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    folders = ("INBOX", "Sent", "Drafts")
    async with counted(server, base_url, smtp_server) as (box, way):
        for folder in folders:
            box.append(letter("one"), folder=folder)
        await box.page()
        way.flights()
        await box.folders()
        flights_to_know_the_folders = way.flights()

        await box.page(folder="*", subject="nothing")

        assert way.flights() == flights_to_know_the_folders + len(folders)


async def test_a_list_of_another_folder_that_was_read_before_takes_one_flight(
    dovecot: Dovecot, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(letter("one"))
        await box.page()
        await box.page(folder="Sent")
        box.said()

        await box.page()

        said = box.said()
        assert verbs(said) == [b"SELECT", b"UID FETCH", b"UID SEARCH"]


async def test_a_folder_is_as_it_is_now_whichever_was_read_before(box: Box) -> None:
    for turn in range(3):
        box.append(letter(f"new {turn}"))
        mark_elsewhere(box, turn + 1, "INBOX")
        box.append(letter(f"sent {turn}"), folder="Sent")
        mark_elsewhere(box, turn + 1, "Sent")

        for folder in ("INBOX", "Sent"):
            page = await box.page(folder=folder)

            subjects = [row["subject"] for row in page["messages"]][::-1]
            assert (subjects, page["total"]) == (box.subjects(folder), len(subjects))
            flagged = [row["uid"] for row in page["messages"] if row["flagged"]]
            assert sorted(flagged) == list(range(1, turn + 2))


async def test_what_is_deleted_from_the_folder_before_is_no_news_of_the_next(box: Box) -> None:
    await box.page(folder="Sent")
    await box.page()
    box.server.expunge(box.user, "INBOX", [2])
    box.said()

    page = await box.page(folder="Sent")

    assert [row["subject"] for row in page["messages"]] == ["sent"]
    assert verbs(box.said()).count(b"UID SEARCH") == 1
    assert (await box.get(f"{MESSAGES}/2")).status_code == 404


async def test_a_folder_that_is_gone_is_not_found_and_the_one_before_not_read_in_its_place(
    box: Box,
) -> None:
    box.server.create_folder(box.user, "Plans")
    box.append(letter("plan"), folder="Plans")
    good(await box.get(f"{MESSAGES}/1", folder="Plans"))
    await box.page()
    box.server.delete_folder(box.user, "Plans")

    message = await box.get(f"{MESSAGES}/1", folder="Plans")
    page = await box.get(MESSAGES, folder="Plans")

    assert problem(message) == problem(page) == (404, "folder-not-found", [])
    assert await box.uids() == [2, 1]


async def test_a_folder_made_anew_has_nothing_of_the_old_one_also_where_another_was_read_between(
    box: Box,
) -> None:
    box.server.create_folder(box.user, "Plans")
    box.append(letter("old"), folder="Plans")
    good(await box.get(f"{MESSAGES}/1", folder="Plans"))
    await box.page(folder="Plans")
    await box.page()
    box.server.recreate_folder(box.user, "Plans")
    box.append(letter("new"), folder="Plans")

    [row] = (await box.page(folder="Plans"))["messages"]
    message = good(await box.get(f"{MESSAGES}/1", folder="Plans"))

    assert (row["subject"], message["subject"]) == ("new", "new")


async def test_messages_that_came_to_the_folder_read_before_are_counted_and_found(box: Box) -> None:
    await box.page()
    box.append(letter("three"))

    folders = await box.folders()
    page = await box.page(folder="*", subject="three")

    assert folders["INBOX"]["messages"] == 3
    assert page["total"] == 1
