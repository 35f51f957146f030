"""What breaks, vanishes or changes under us: connections at any octet, folders and messages, certificates."""

from __future__ import annotations

import imaplib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificates
from tests.fakes.fault_proxy import RESET, FaultProxy
from tests.fakes.script import NORMAL, STALL
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, letter, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import FOLDERS, MESSAGES, good, problem
from tests.integration.scripted import scripted_mailbox

STEP = 7  # octets from one fault to the next: no line and no literal is missed


def login(user: str, imap_port: int, security: str, smtp: ScriptedSmtp) -> dict[str, Any]:
    return {
        "email": user,
        "password": Dovecot.password,
        "imap": {"host": "localhost", "port": imap_port, "security": security},
        "smtp": {"host": "localhost", "port": smtp.port, "security": "none"},
    }


# ---- connections


@pytest.fixture
async def proxy(dovecot: Dovecot) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(dovecot.host, dovecot.imap_port) as proxy:
        yield proxy


@pytest.fixture
async def box(
    base_url: str, dovecot: Dovecot, proxy: FaultProxy, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session that goes through the proxy, unencrypted: so that an octet of the network is an octet of IMAP."""
    user = dovecot.fresh_user()
    async with logged_in(base_url, login(user, proxy.port, "none", smtp_server)) as box:
        yield box


def subjects(dovecot: Dovecot, user: str) -> list[str]:
    """Those of all messages of the user, whatever the folder."""
    said = dovecot.doveadm(
        *("-f", "tab", "fetch", "-u", user, "hdr.subject", "mailbox", "*", "all")
    )
    return said.splitlines()[1:]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_read_that_is_reset_at_any_octet_is_read_again(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot
) -> None:
    """Each message is longer than the farthest octet, and none has been read before."""
    octets = range(1, 2_001, STEP)
    dovecot.append(box.user, *(letter(str(octet), "x" * 2_000) for octet in octets))
    good(await box.get(MESSAGES, limit=1))
    descriptors = open_descriptors()

    for uid, octet in enumerate(octets, 1):
        proxy.down.fail(RESET, after=octet)
        message = good(await box.get(f"{MESSAGES}/{uid}"))
        assert (message["subject"], len(message["text"].strip())) == (str(octet), 2_000)

    assert proxy.connections == 1 + len(octets)
    assert open_descriptors() <= descriptors + 5


@pytest.mark.parametrize(("direction", "octets"), [("up", 60), ("down", 700)])
async def test_a_move_that_is_reset_at_any_octet_leaves_each_message_once(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot, direction: str, octets: int
) -> None:
    after = range(0, octets, STEP)
    stored = [str(octet) for octet in after]
    dovecot.append(box.user, *map(letter, stored))
    good(await box.get(MESSAGES, limit=1))

    statuses = set()
    for uid, octet in enumerate(after, 1):
        getattr(proxy, direction).fail(RESET, after=octet)
        moved = await box.post(f"{MESSAGES}/{uid}/move", {"destination": "Archive"})
        statuses.add(moved.status_code)

    assert statuses <= {200, 503}
    assert 503 in statuses
    assert sorted(subjects(dovecot, box.user)) == sorted(stored)


@pytest.mark.parametrize(("direction", "octets"), [("up", 400), ("down", 100)])
async def test_an_append_that_is_reset_at_any_octet_stores_the_message_once_at_most(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot, direction: str, octets: int
) -> None:
    good(await box.get(FOLDERS))

    stored: dict[str, int] = {}
    for octet in range(0, octets, STEP):
        getattr(proxy, direction).fail(RESET, after=octet)
        response = await box.client.post(
            MESSAGES,
            content=letter(str(octet), "z" * 200),
            headers={"Content-Type": "message/rfc822"},
        )
        stored[str(octet)] = response.status_code

    assert set(stored.values()) == {201, 503}
    there = subjects(dovecot, box.user)
    assert len(there) == len(set(there))
    assert {subject for subject, status in stored.items() if status == 201} <= set(there)


async def test_a_farewell_in_the_middle_of_an_answer_is_not_waited_out(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    """Who waited for the tag would be told of a timeout, and not ask again."""
    farewell = b"* 1 FETCH (UID 7 FLAGS ())\r\n* BYE shutting down\r\n"
    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        good(await mailbox.get(MESSAGES, limit=1))
        imap_server.on("UID FETCH", (farewell, STALL), NORMAL)

        message = good(await mailbox.get(f"{MESSAGES}/7"))

    assert message["subject"] == "seven"
    assert imap_server.connections == 2


# ---- what another client does meanwhile


@dataclass(frozen=True)
class Shared:
    """A mailbox that another client, with a connection of its own, has open as well."""

    mailbox: Mailbox
    other: Callable[[], AbstractContextManager[imaplib.IMAP4]]

    async def make(self, *messages: bytes) -> str:
        """A folder with these messages, which the service has selected."""
        path = good(await self.mailbox.post(FOLDERS, {"name": "Box"}))["path"]
        self.append(path, *messages)
        good(await self.mailbox.get(MESSAGES, folder=path))
        return str(path)

    def append(self, path: str, *messages: bytes) -> None:
        with self.other() as client:
            for message in messages:
                assert client.append(path, "", "", message)[0] == "OK"

    def count(self, path: str) -> int:
        """Messages, as the other client sees them."""
        with self.other() as client:
            status, [count] = client.select(path, readonly=True)
        assert (status, count is None) == ("OK", False)
        return int(count or 0)

    def run(self, *commands: tuple[str, ...]) -> None:
        with self.other() as client:
            for name, *arguments in commands:
                assert getattr(client, name)(*arguments)[0] == "OK", name


@pytest.fixture(params=["dovecot", "cyrus"])
async def shared(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Shared]:
    server = request.getfixturevalue(request.param)
    user = server.fresh_user()
    body = login(user, server.imaps_port, "tls", smtp_server)
    async with logged_in(base_url, body) as mailbox:
        yield Shared(mailbox, lambda: server.imap(user))


async def test_what_another_client_has_expunged_is_gone_and_nothing_else(shared: Shared) -> None:
    box = await shared.make(letter("one"), letter("two"), letter("three"))

    shared.run(("select", box), ("store", "2", "+FLAGS", "(\\Deleted)"), ("expunge",))

    read = await shared.mailbox.get(f"{MESSAGES}/2", folder=box)
    marked = await shared.mailbox.post(f"{MESSAGES}/2/mark", {"read": True}, folder=box)
    page = good(await shared.mailbox.get(MESSAGES, folder=box))
    assert problem(read)[:2] == problem(marked)[:2] == (404, "message-not-found")
    assert [row["subject"] for row in page["messages"]] == ["three", "one"]


async def test_a_folder_that_was_deleted_under_us_is_a_404_whatever_is_asked_of_it(
    shared: Shared,
) -> None:
    box = await shared.make(letter("one"))

    shared.run(("delete", box))

    client = shared.mailbox
    for response in (
        await client.get(MESSAGES, folder=box),
        await client.get(f"{MESSAGES}/1", folder=box),
        await client.get(f"{MESSAGES}/1/raw", folder=box),
        await client.get("/api/mailbox/changes", folder=box),
        await client.post(f"{MESSAGES}/1/move", {"destination": "\\Archive"}, folder=box),
        await client.delete(f"{MESSAGES}/1", folder=box),
    ):
        assert problem(response)[0] == 404, response.text
    assert good(await client.get(MESSAGES))["total"] == 0


async def test_a_folder_that_was_made_anew_under_us_shows_no_message_under_an_old_uid(
    shared: Shared,
) -> None:
    box = await shared.make(letter("old 1"), letter("old 2"))
    page = good(await shared.mailbox.get(MESSAGES, folder=box, limit=1))

    shared.run(("delete", box), ("create", box))
    shared.append(box, letter("new 1"), letter("new 2"))

    stale = await shared.mailbox.get(f"{MESSAGES}/1", folder=box)
    rest = await shared.mailbox.get(MESSAGES, folder=box, limit=1, cursor=page["next_cursor"])
    assert problem(stale)[:2] == (404, "message-not-found")
    assert problem(rest)[:2] == (410, "cursor-expired")


@pytest.mark.parametrize("wanted", [{}, {"subject": "new"}, {"read": "false", "snippet": "true"}])
async def test_a_folder_that_was_made_anew_under_us_is_listed_as_it_is_now(
    shared: Shared, wanted: dict[str, str]
) -> None:
    """At the second look at the latest: Cyrus may first say that all is gone, and leave it at that. And Dovecot itself
    may lose what is appended right after, where the clock strikes between deletion and creation: so it is asked."""
    box = await shared.make(letter("old"))

    shared.run(("delete", box), ("create", box))
    shared.append(box, letter("new 1"), letter("new 2"))

    good(await shared.mailbox.get(MESSAGES, folder=box, **wanted))
    page = good(await shared.mailbox.get(MESSAGES, folder=box, **wanted))
    held = shared.count(box)
    assert [row["subject"] for row in page["messages"]] == ["new 2", "new 1"][2 - held :]


async def test_a_folder_that_the_server_has_lost_is_selected_again(
    base_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        good(await mailbox.get(MESSAGES))
        imap_server.on("UID FETCH", b"{tag} NO Mailbox does not exist\r\n", NORMAL)

        message = good(await mailbox.get(f"{MESSAGES}/7"))

    assert message["subject"] == "seven"
    assert imap_server.count("SELECT") == 2


# ---- certificates


@pytest.fixture
def impostor(tmp_path: Path) -> Certificates:
    """The same name, by an authority that nobody knows."""
    return Certificates.issue(tmp_path)


async def test_a_certificate_that_turns_bad_is_told_and_speaks_against_nobody(
    base_url: str,
    imap_server: ScriptedImap,
    smtp_server: ScriptedSmtp,
    impostor: Certificates,
) -> None:
    async with scripted_mailbox(base_url, imap_server, smtp_server) as mailbox:
        good_tls, imap_server.tls = imap_server.tls, impostor.server_context()
        imap_server.hang_up()

        distrusted = await mailbox.get(MESSAGES)
        session = good(await mailbox.get(f"/api/sessions/{mailbox.session_id}"))
        imap_server.tls = good_tls
        trusted = good(await mailbox.get(MESSAGES))

    assert problem(distrusted)[:2] == (502, "upstream-error")
    assert "certificate" in distrusted.json()["detail"]
    assert session["state"] == "active"
    assert trusted["total"] == 1
