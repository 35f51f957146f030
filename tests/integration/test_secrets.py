"""Secrets go where they are for and nowhere else: not into the log, an answer, the document or the store's files."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cbemail.api.routes import OPERATIONS
from cbemail.logs import logging_to
from tests.certificates import Certificates
from tests.fakes.imap_folders import CannedFolder
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.token_endpoint import TokenEndpoint
from tests.integration.conftest import API_KEY, SECRET_KEY, environment, letter, serving
from tests.integration.scripted import scripted_credentials

PASSWORD = "hunter2-Canary"
ACCESS_TOKEN = "ya29.canary-0123456789"
PIN = "740281953366"
REFRESH_TOKEN = "1//canary-refresh-0123456789"
CLIENT_SECRET = "GOCSPX-canary-0123456789"
ECHO = f"535 5.7.8 {PASSWORD} and {ACCESS_TOKEN}".encode()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
async def client(tmp_path: Path, certificates: Certificates) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(environment(tmp_path, certificates.ca_file, GATE_PIN=PIN)) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        client.headers["X-Gate-PIN"] = PIN
        yield client


@contextmanager
def everything_logged(style: str) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with logging_to(stream, level="DEBUG", style=style):
        yield stream


def spellings(secret: str) -> list[bytes]:
    """As text, as UTF-16, and in base64 at each of the three offsets, without the characters its neighbours share."""
    octets = secret.encode()
    encoded = [base64.b64encode(b"x" * n + octets)[4 if n else 0 : -4] for n in range(3)]
    return [octets, secret.encode("utf-16-le"), *encoded]


def found(secrets: list[str], octets: bytes) -> list[str]:
    return [secret for secret in secrets for spelt in spellings(secret) if spelt in octets]


def talkative(imap: ScriptedImap, smtp: ScriptedSmtp) -> None:
    """Make both servers refuse everything, repeating what they were told."""
    for command in ("LOGIN", "AUTHENTICATE"):
        imap.on(command, b"{tag} NO " + ECHO + b"\r\n")
    smtp.on("AUTH", ECHO + b"\r\n")
    smtp.on("response", ECHO + b"\r\n")


@pytest.mark.parametrize("style", ["text", "json"])
async def test_a_refused_secret_is_in_no_log_and_no_answer(
    client: httpx.AsyncClient, imap_server: ScriptedImap, smtp_server: ScriptedSmtp, style: str
) -> None:
    talkative(imap_server, smtp_server)
    servers = scripted_credentials(imap_server, smtp_server)
    own = {**servers["imap"], "password": PASSWORD}
    oauth2 = {key: value for key, value in servers.items() if key != "password"}
    bodies: list[object] = [
        servers | {"password": PASSWORD},
        oauth2 | {"oauth2": {"access_token": ACCESS_TOKEN}},
        oauth2 | {"oauth2": {"refresh_token": REFRESH_TOKEN, "client_secret": CLIENT_SECRET}},
        oauth2 | {"oauth2": {"refresh_token": [REFRESH_TOKEN], "client_secret": CLIENT_SECRET}},
        servers | {"password": PASSWORD, "imap": own, "smtp": own},
        servers | {"password": PASSWORD + "\n"},
        servers | {"password": {"value": PASSWORD}},
        servers | {"password": PASSWORD, "passwrod": PASSWORD},
        [PASSWORD],
    ]

    with everything_logged(style) as log:
        answers = [await client.post("/api/sessions", json=body) for body in bodies]
        answers.append(await client.post("/api/sessions", content=f'{{"password": "{PASSWORD}"'))

    assert {answer.status_code for answer in answers} <= {400, 401, 415, 422, 502}
    secrets = [PASSWORD, ACCESS_TOKEN, REFRESH_TOKEN, CLIENT_SECRET, PIN]
    assert found(secrets, b"".join(answer.content for answer in answers)) == []
    assert "/api/sessions" in log.getvalue()
    assert found(secrets, log.getvalue().encode()) == []


async def test_no_call_tells_a_secret_that_the_service_has(
    client: httpx.AsyncClient, imap_server: ScriptedImap, smtp_server: ScriptedSmtp, database: Path
) -> None:
    own = {"password": PASSWORD}
    imap_server.on("AUTHENTICATE", b"{tag} OK welcome\r\n")
    smtp_server.on("AUTH", b"235 2.7.0 welcome\r\n")
    body = scripted_credentials(imap_server, smtp_server) | own

    with everything_logged("json") as log:
        created = (await client.post("/api/sessions", json=body)).json()
        talkative(imap_server, smtp_server)
        answers = [answer async for answer in every_call(client, created, own)]
        running = octets_in(database)

    token, refresh_token = created["token"], created["refresh_token"]
    secrets = [PASSWORD, API_KEY, SECRET_KEY, PIN, token, refresh_token]
    assert len(answers) == 2 * len(OPERATIONS)
    assert any(b"cbemail_requests_total" in answer.content for answer in answers)
    assert not [answer for answer in answers if found(secrets, answer.content)]
    assert found(secrets, log.getvalue().encode()) == []
    assert found(secrets, running) == []
    assert created["session_id"].encode() in running, "or nothing was looked at"


async def test_a_refresh_token_and_its_client_are_told_to_the_token_endpoint_only(
    client: httpx.AsyncClient, imap_server: ScriptedImap, smtp_server: ScriptedSmtp, database: Path
) -> None:
    async with TokenEndpoint() as endpoint:
        endpoint.refresh_token = REFRESH_TOKEN
        endpoint.lives = [1]  # each is about to expire from the beginning
        endpoint.good_at(imap_server, smtp_server)
        body = scripted_credentials(imap_server, smtp_server)
        del body["password"]
        body["oauth2"] = endpoint.oauth2(client_secret=CLIENT_SECRET)
        echo = {"error": "server_error", "error_description": f"{REFRESH_TOKEN} {CLIENT_SECRET}"}

        with everything_logged("json") as log:
            endpoint.on(500, echo)
            answers = [await client.post("/api/sessions", json=body)]
            endpoint.on(400, echo | {"error": "invalid_client"})
            answers.append(await client.post("/api/sessions", json=body))
            created = (await client.post("/api/sessions", json=body)).json()
            answers += [answer async for answer in every_call(client, created, body)]
            running = octets_in(database)

    secrets = [REFRESH_TOKEN, CLIENT_SECRET, *(f"access-{n}" for n in range(1, 4))]
    assert len(endpoint.forms) > 3, "or nothing was renewed"
    assert [answer.status_code for answer in answers[:2]] == [503, 401]
    assert not [answer for answer in answers if found(secrets, answer.content)]
    assert found(secrets, log.getvalue().encode()) == []
    assert found(secrets, running) == []
    assert created["session_id"].encode() in running, "or nothing was looked at"


async def test_mail_that_is_kept_on_disk_can_be_read_in_no_file(
    client: httpx.AsyncClient, imap_server: ScriptedImap, smtp_server: ScriptedSmtp, database: Path
) -> None:
    words = ["Canary-subject", "canary-sender", "Canary-body", "Canary-folder"]
    message = letter(words[0], f"{words[2]}.", Reply_To=f"{words[1]}@example.org")
    imap_server.folders[words[3]] = CannedFolder()
    for folder in ("INBOX", words[3]):
        imap_server.folders[folder].add(message)
    servers = scripted_credentials(imap_server, smtp_server)
    created = (await client.post("/api/sessions", json=servers)).json()
    client.headers["Authorization"] = f"Bearer {created['token']}"

    with everything_logged("json") as log:
        for folder in ("INBOX", words[3]):
            page = await client.get("/api/mailbox/messages?snippet=true", params={"folder": folder})
            read = await client.get("/api/mailbox/messages/1", params={"folder": folder})
            assert {200} == {page.status_code, read.status_code}
        running = await octets_once_kept(database, created["session_id"])

    assert found(words, running) == []
    assert found(words, inflated(running)) == []
    assert found(words[:3], log.getvalue().encode()) == []


async def octets_once_kept(directory: Path, session_id: str) -> bytes:
    """What is in the files as soon as the cache is among them."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(60):
        while session_id.encode() not in cached_in(directory):
            await asyncio.wait({never}, timeout=0.05)
    return octets_in(directory)


def inflated(octets: bytes) -> bytes:
    """Whatever in ``octets`` can be read once it is decompressed."""
    readable = []
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", octets):
        with suppress(zlib.error):
            readable.append(zlib.decompressobj().decompress(octets[start.start() :]))
    return b"".join(readable)


def cached_in(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.glob("*.cache*"))


@pytest.mark.parametrize("style", ["text", "json"])
async def test_whatever_a_client_or_a_server_says_a_log_line_is_one_line(
    client: httpx.AsyncClient, imap_server: ScriptedImap, smtp_server: ScriptedSmtp, style: str
) -> None:
    forged = '{"time":"now","level":"error","logger":"cbemail","message":"forged"}'
    imap_server.on("LOGIN", b"{tag} NO \x1b[31m" + forged.encode() + b"\r\n")
    body = scripted_credentials(imap_server, smtp_server) | {"email": f"joe@example.org\n{forged}"}
    headers = {"User-Agent": f"x\t{forged}", "X-Request-ID": f"x {forged}"}

    with everything_logged(style) as log:
        await client.post("/api/sessions", json=body, headers=headers)
        await client.post("/api/sessions", json=body | {"email": "joe@example.org"})
        await client.get("/%0A" + forged, headers=headers)

    lines = log.getvalue().splitlines()
    assert len(lines) >= 3
    assert not [line for line in lines if "\x1b" in line or line.startswith(forged)]
    if style == "json":
        assert "forged" not in {json.loads(line)["message"] for line in lines}


async def every_call(
    client: httpx.AsyncClient, created: dict[str, str], body: dict[str, Any]
) -> AsyncIterator[httpx.Response]:
    """Each operation as itself and with a body that is not its own; the session is deleted last."""
    last = {"delete_session": 1}
    for operation in sorted(OPERATIONS, key=lambda each: last.get(each.name, 0)):
        path = operation.path.replace("{path:path}", "INBOX").replace("{uid}", "1")
        path = path.replace("/sessions/{id}", f"/sessions/{created['session_id']}")
        for content in (body, {"refresh_token": created["refresh_token"] + "x", "to": PASSWORD}):
            yield await client.request(
                operation.method,
                path.replace("{id}", "1"),
                json=content,
                headers={"X-API-Key": API_KEY, "X-Session-ID": created["session_id"]},
            )


def octets_in(directory: Path) -> bytes:
    files = [file for file in directory.rglob("*") if file.is_file()]
    assert {file.stat().st_mode & 0o077 for file in (directory, *files)} == {0}
    return b"".join(file.read_bytes() for file in files)
