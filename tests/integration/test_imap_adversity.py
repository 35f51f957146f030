"""A real Dovecot behind a bad network: what breaks is told or repaired, and no message is lost, doubled or mistaken."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cbemail.imap import connection as connection_module
from cbemail.imap import login as login_module
from tests.certificates import Certificates
from tests.fakes.fault_proxy import CUT, HALF_CLOSE, STALL, FaultProxy
from tests.fakes.listener import Listener
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, credentials, letter, logged_in
from tests.integration.dovecot import Dovecot

MESSAGES = "/api/mailbox/messages"
SUBJECTS = [f"message {number}" for number in range(1, 31)]
IMPATIENT = 0.3  # seconds, for the one thing a test makes stall


@pytest.fixture
async def proxy(dovecot: Dovecot) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(dovecot.host, dovecot.imap_port) as proxy:
        yield proxy


def _body(
    user: str, dovecot: Dovecot, imap_port: int, smtp_server: ScriptedSmtp
) -> dict[str, object]:
    body = credentials(user, dovecot, smtp_server.port, "starttls")
    return body | {"imap": {"host": "localhost", "port": imap_port, "security": "none"}}


@pytest.fixture
async def box(
    base_url: str, dovecot: Dovecot, proxy: FaultProxy, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session of a fresh user with thirty messages, whose IMAP goes through the proxy, unencrypted: so that an octet
    of the network is an octet of IMAP."""
    user = dovecot.fresh_user()
    dovecot.append(user, *(letter(subject) for subject in SUBJECTS))
    async with logged_in(base_url, _body(user, dovecot, proxy.port, smtp_server)) as box:
        assert (await box.get(MESSAGES, limit=1)).status_code == 200  # warm, with INBOX selected
        yield box


def subjects(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [row["subject"] for row in reversed(response.json()["messages"])]


def everywhere(dovecot: Dovecot, user: str) -> list[str]:
    """The subjects of all messages of the user, whatever the folder."""
    said = dovecot.doveadm(
        *("-f", "tab", "fetch", "-u", user, "hdr.subject", "mailbox", "*", "all")
    )
    return sorted(said.splitlines()[1:])


# ---- reading


@pytest.mark.parametrize("fault", [CUT, HALF_CLOSE])
@pytest.mark.parametrize("after", [0, 1, 30, 100, 700, 2_000, 5_000])
async def test_a_listing_that_breaks_off_anywhere_is_simply_read_again(
    box: Mailbox, proxy: FaultProxy, fault, after: int
) -> None:
    proxy.down.fail(fault, after=after)

    response = await box.get(MESSAGES)

    assert subjects(response) == SUBJECTS
    assert proxy.connections == 2


@pytest.mark.parametrize("after", [0, 1, 10, 40])
async def test_a_command_that_breaks_off_anywhere_is_simply_sent_again(
    box: Mailbox, proxy: FaultProxy, after: int
) -> None:
    proxy.up.fail(CUT, after=after)

    assert subjects(await box.get(MESSAGES)) == SUBJECTS


async def test_a_folder_to_be_selected_on_a_dead_connection_is_selected_on_another(
    box: Mailbox, proxy: FaultProxy
) -> None:
    proxy.up.fail(CUT)

    response = await box.get(MESSAGES, folder="Sent")

    assert subjects(response) == []


async def test_a_server_that_was_restarted_meanwhile_goes_unnoticed(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot
) -> None:
    dovecot.kick(box.user)

    assert subjects(await box.get(MESSAGES)) == SUBJECTS


async def test_octets_that_come_one_by_one_come_all_the_same(
    box: Mailbox, proxy: FaultProxy
) -> None:
    proxy.down.trickle = True

    assert subjects(await box.get(MESSAGES, limit=5)) == SUBJECTS[-5:]


async def test_a_server_that_falls_silent_is_a_504_and_its_connection_is_gone(
    box: Mailbox, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "COMMAND_SECONDS", IMPATIENT)
    proxy.down.fail(STALL, after=50)

    silent = await box.get(MESSAGES)
    monkeypatch.undo()
    again = await box.get(MESSAGES)

    assert silent.status_code == 504
    assert silent.json()["code"] == "upstream-timeout"
    assert subjects(again) == SUBJECTS


async def test_a_download_that_breaks_off_is_not_taken_for_the_whole(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot
) -> None:
    (uid,) = dovecot.append(box.user, letter("great", "x" * 70 + "\r\n" + "y" * 2_000_000))
    proxy.down.fail(CUT, after=1_000_000)

    with pytest.raises(httpx.RemoteProtocolError):
        await box.get(f"{MESSAGES}/{uid}/raw")
    whole = await box.get(f"{MESSAGES}/{uid}/raw")

    assert len(whole.content) > 2_000_000


async def test_a_network_that_breaks_again_and_again_never_mixes_up_answers(
    box: Mailbox, proxy: FaultProxy
) -> None:
    async def read(uid: int) -> httpx.Response:
        return await box.get(f"{MESSAGES}/{uid}")

    reading = [asyncio.create_task(read(uid)) for uid in range(1, 31) for _ in range(3)]
    for task in reading[::15]:
        await task
        proxy.hang_up()
    responses = await asyncio.gather(*reading)

    for number, response in enumerate(responses):
        assert response.status_code in {200, 503}, response.text
        if response.status_code == 200:
            assert response.json()["subject"] == SUBJECTS[number // 3]
    assert subjects(await box.get(MESSAGES)) == SUBJECTS


# ---- changing


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("after", [0, 1, 7, 20, 60])
async def test_a_move_that_breaks_off_anywhere_leaves_one_message(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot, direction: str, after: int
) -> None:
    """Whether it was moved may be uncertain, and is then said to be. It is not moved twice."""
    getattr(proxy, direction).fail(CUT, after=after)

    response = await box.post(f"{MESSAGES}/7/move", {"destination": "Archive"})

    assert response.status_code in {200, 503}
    assert everywhere(dovecot, box.user) == sorted(SUBJECTS)
    assert len((await box.get(MESSAGES)).json()["messages"]) in {29, 30}


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("after", [0, 1, 30, 45, 100, 400])
async def test_an_append_that_breaks_off_anywhere_stores_the_message_once_or_not_at_all(
    box: Mailbox, proxy: FaultProxy, dovecot: Dovecot, direction: str, after: int
) -> None:
    getattr(proxy, direction).fail(CUT, after=after)

    response = await box.client.post(
        MESSAGES,
        content=letter("new", "z" * 300),
        headers={"Content-Type": "message/rfc822"},
    )
    stored = everywhere(dovecot, box.user).count("new")

    if response.status_code == 201:
        assert stored == 1
    else:
        assert response.status_code == 503
        assert stored <= 1


# ---- logging in


async def test_a_server_that_is_down_is_a_503_and_not_the_credentials_fault(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    user = dovecot.fresh_user()
    async with FaultProxy(dovecot.host, dovecot.imap_port) as proxy:
        body = _body(user, dovecot, proxy.port, smtp_server)
        async with logged_in(base_url, body) as box:
            await proxy.__aexit__(None, None, None)

            response = await box.get(MESSAGES)
            session = await box.get(f"/api/sessions/{box.session_id}")

    assert response.status_code == 503
    assert response.json()["code"] == "upstream-unavailable"
    assert session.json()["state"] == "active"


@pytest.mark.parametrize("after", [0, 1, 20, 120, 140, 200])
async def test_a_login_that_breaks_off_anywhere_is_a_503_or_no_matter(
    base_url: str,
    dovecot: Dovecot,
    proxy: FaultProxy,
    smtp_server: ScriptedSmtp,
    client: httpx.AsyncClient,
    after: int,
) -> None:
    proxy.down.fail(CUT, after=after)
    body = _body(dovecot.fresh_user(), dovecot, proxy.port, smtp_server)

    broken = await client.post("/api/sessions", json=body)
    again = await client.post("/api/sessions", json=body)

    assert broken.status_code == 503
    assert broken.json()["code"] == "upstream-unavailable"
    assert again.status_code == 201


class Mute(Listener):
    """Takes connections, and says nothing."""

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_servers_that_never_greet_use_up_nothing(
    client: httpx.AsyncClient,
    dovecot: Dovecot,
    smtp_server: ScriptedSmtp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(login_module, "GREETING_SECONDS", IMPATIENT)

    async with Mute() as mute:
        body = _body(dovecot.fresh_user(), dovecot, mute.port, smtp_server)

        async def knock() -> httpx.Response:
            return await client.post("/api/sessions", json=body)

        first = await knock()
        before = open_descriptors()
        responses = [await knock() for _ in range(8)]
        after = open_descriptors()

    assert {response.status_code for response in (first, *responses)} == {504}
    assert after <= before + 2


@pytest.fixture
def narrow_dovecot(certificates: Certificates) -> Iterator[Dovecot]:
    """Lets each user connect twice at a time."""
    with tempfile.TemporaryDirectory(prefix="cbemail-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # its processes are other users
        with Dovecot.running(directory, certificates, connections_per_user=2) as server:
            yield server


async def test_a_limit_of_dovecots_is_learnt_and_everybody_is_served(
    base_url: str, narrow_dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    user = narrow_dovecot.fresh_user()
    narrow_dovecot.append(user, *(letter(subject) for subject in SUBJECTS))
    async with FaultProxy(narrow_dovecot.host, narrow_dovecot.imap_port) as proxy:
        body = _body(user, narrow_dovecot, proxy.port, smtp_server)
        async with logged_in(base_url, body) as box:
            responses = await asyncio.gather(*(box.get(MESSAGES) for _ in range(20)))
            logins = proxy.connections
            later = await asyncio.gather(*(box.get(MESSAGES) for _ in range(20)))

        assert all(subjects(response) == SUBJECTS for response in (*responses, *later))
        assert logins <= 3
        assert proxy.connections == logins
