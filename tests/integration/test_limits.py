"""What one client may do to the service, and to mail servers through it: as much as it is allowed, and no more."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx
import pytest

from cbemail.__main__ import FILES
from cbemail.api.limits import WAITING_OF_A_SESSION
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import API_KEY, Mailbox, environment, serving
from tests.integration.nginx import Nginx
from tests.integration.scripted import scripted_credentials, scripted_mailbox
from tests.integration.servers import free_port
from tests.integration.service import ServiceProcess


@asynccontextmanager
async def limited(
    tmp_path: Path, certificates: Certificates, **limits: str
) -> AsyncIterator[httpx.AsyncClient]:
    environ = environment(tmp_path, certificates.ca_file, **limits)
    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield client


def assert_rate_limited(response: httpx.Response, *, retry_after: range) -> None:
    assert response.status_code == 429, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "rate-limited"
    assert int(response.headers["retry-after"]) in retry_after


# ---- requests of a session


async def test_a_session_that_asks_too_often_is_told_when_to_come_back(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async with limited(tmp_path, certificates, REQUEST_RATE_LIMIT="2/hour") as nobody:
        base_url = str(nobody.base_url)
        async with (
            scripted_mailbox(base_url, imap_server, smtp_server) as busy,
            scripted_mailbox(base_url, imap_server, smtp_server) as other,
        ):
            path = f"/api/sessions/{busy.session_id}"
            allowed = [await busy.get(path) for _ in range(2)]
            refused = await busy.get("/api/mailbox/folders")
            by_key = await nobody.get(path, headers={"X-API-Key": API_KEY})
            anothers = await other.get("/api/mailbox/folders")

    assert [response.status_code for response in allowed] == [200, 200]
    assert allowed[0].headers["ratelimit-policy"] == '"requests";q=2;w=3600'
    assert allowed[0].headers["ratelimit"] == '"requests";r=1;t=1800'
    assert_rate_limited(refused, retry_after=range(1790, 1801))
    assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert_rate_limited(by_key, retry_after=range(1790, 1801))
    assert anothers.status_code == 200


async def test_a_session_has_only_so_many_requests_under_way(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    """However little it sends of each; and that is no reason to restart the service."""
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(limited(tmp_path, certificates))
        base_url = str(nobody.base_url)
        mailbox = await stack.enter_async_context(
            scripted_mailbox(base_url, imap_server, smtp_server)
        )
        for _ in range(WAITING_OF_A_SESSION):
            await stack.enter_async_context(half_a_request(mailbox))

        refused = await mailbox.get("/api/mailbox/folders")
        alive = [await nobody.get("/healthz"), await nobody.get("/readyz")]

    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert [response.status_code for response in alive] == [200, 200]


async def test_requests_whose_clients_have_gone_make_room(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async with (
        limited(tmp_path, certificates) as nobody,
        scripted_mailbox(str(nobody.base_url), imap_server, smtp_server) as mailbox,
    ):
        for _ in range(3):
            async with AsyncExitStack() as stack:
                for _ in range(WAITING_OF_A_SESSION // 2):
                    await stack.enter_async_context(half_a_request(mailbox))

        answer = await mailbox.get("/api/mailbox/folders")

    assert answer.status_code == 200


@asynccontextmanager
async def half_a_request(mailbox: Mailbox) -> AsyncIterator[None]:
    """A request whose body does not come. The service has begun with it: it has asked for the body."""
    address = urlsplit(str(mailbox.client.base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    token = mailbox.client.headers["Authorization"]
    lines = (
        "POST /api/send HTTP/1.1",
        "Host: x",
        f"Authorization: {token}",
        "Content-Type: application/json",
        "Content-Length: 100",
        "Expect: 100-continue",
    )
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        yield
    finally:
        writer.close()
        await writer.wait_closed()


# ---- logins


async def test_passwords_are_not_guessed_for_long(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    good = scripted_credentials(imap_server, smtp_server)
    async with limited(tmp_path, certificates, SESSION_RATE_LIMIT="4/hour") as nobody:
        guesses = [
            await nobody.post("/api/sessions", json=good | {"password": f"guess{number}"})
            for number in range(4)
        ]
        right = await nobody.post("/api/sessions", json=good)
        by_key = await nobody.post("/api/sessions", json=good, headers={"X-API-Key": API_KEY})

    assert [response.status_code for response in guesses] == [401, 401, 429, 429]
    assert guesses[1].headers["ratelimit"].startswith('"logins";r=0;t=')
    assert_rate_limited(right, retry_after=range(890, 901))
    assert_rate_limited(by_key, retry_after=range(890, 901))
    assert imap_server.connections == 2


async def test_a_password_is_not_guessed_by_way_of_new_credentials_either(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async with (
        limited(tmp_path, certificates, SESSION_RATE_LIMIT="3/hour") as nobody,
        scripted_mailbox(str(nobody.base_url), imap_server, smtp_server) as mailbox,
    ):
        path = f"/api/sessions/{mailbox.session_id}"
        guesses = [
            await mailbox.client.put(f"{path}/credentials", json={"password": "guess"})
            for _ in range(2)
        ]
        health = await mailbox.get(f"{path}/health")

    assert [response.status_code for response in guesses] == [401, 429]
    assert_rate_limited(health, retry_after=range(1190, 1201))


# ---- who a client is


@pytest.fixture
def behind_a_proxy(tmp_path: Path, certificates: Certificates) -> Iterator[ServiceProcess]:
    """The service, which believes its machine's own proxy, as it does unless told otherwise."""
    environ = environment(tmp_path, certificates.ca_file, SESSION_RATE_LIMIT="2/hour")
    with ServiceProcess(tmp_path, environ) as service:
        yield service


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that NGINX's workers, who are nobody, may enter."""
    with TemporaryDirectory(prefix="cbemail-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def log_in_from(address: str, url: str, number: int, **headers: str) -> int:
    """The status of a login from ``address``, at a server that is not there."""
    nowhere = {"host": "127.0.0.1", "port": free_port(), "username": f"user{number}"}
    body = {"email": "x@example.org", "password": "x", "imap": nowhere, "smtp": nowhere}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as client:
        return client.post(f"{url}/api/sessions", json=body, headers=headers).status_code


def test_a_client_that_calls_itself_another_is_counted_as_who_it_is(
    behind_a_proxy: ServiceProcess,
) -> None:
    statuses = [
        log_in_from("127.0.0.2", behind_a_proxy.url, n, **{"X-Forwarded-For": f"192.0.2.{n}"})
        for n in range(3)
    ]

    assert statuses == [503, 429, 429]


def test_a_trusted_service_is_not_counted_by_its_address(behind_a_proxy: ServiceProcess) -> None:
    by_address = [log_in_from("127.0.0.2", behind_a_proxy.url, number) for number in range(2)]

    by_key = [
        log_in_from("127.0.0.2", behind_a_proxy.url, number, **{"X-API-Key": API_KEY})
        for number in range(2, 7)
    ]

    assert by_address == [503, 429]
    assert by_key == [503] * 5


def test_a_proxy_tells_clients_apart_and_no_client_deceives_it(
    behind_a_proxy: ServiceProcess, open_directory: Path
) -> None:
    with Nginx.running(open_directory, behind_a_proxy.url) as nginx:
        one = [
            log_in_from("127.0.0.2", nginx.url, n, **{"X-Forwarded-For": f"192.0.2.{n}"})
            for n in range(3)
        ]
        other = log_in_from("127.0.0.3", nginx.url, 4)

    assert one == [503, 429, 429]
    assert other == 503


# ---- connections


def test_the_service_has_room_for_more_connections_than_is_usual(
    tmp_path: Path, certificates: Certificates
) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
    try:
        with ServiceProcess(tmp_path, environment(tmp_path, certificates.ca_file)) as service:
            its_own, _ = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))

    assert its_own == (FILES if most == resource.RLIM_INFINITY else min(FILES, most))


# ---- odd requests


async def test_ten_thousand_ranges_are_one_answer(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    """RFC 9110 section 14.2: a server may ignore Range, and this one does."""
    async with (
        limited(tmp_path, certificates) as nobody,
        scripted_mailbox(str(nobody.base_url), imap_server, smtp_server) as mailbox,
    ):
        path = "/api/mailbox/messages/7/raw"
        whole = await mailbox.get(path)
        ranges = {"Range": "bytes=" + ",".join(["0-"] * 10_000)}
        ranged = await mailbox.client.get(path, headers=ranges)

    assert (ranged.status_code, ranged.content) == (200, whole.content)


async def test_a_form_of_ten_thousand_parts_is_refused_at_the_first_too_many(
    tmp_path: Path, certificates: Certificates, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    parts = [("batch", (None, "{}"))] * 10_000
    async with (
        limited(tmp_path, certificates) as nobody,
        scripted_mailbox(str(nobody.base_url), imap_server, smtp_server) as mailbox,
    ):
        response = await mailbox.client.post("/api/send/batch", files=parts)

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/batch"
