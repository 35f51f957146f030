"""OAuth2 from the client's side: before a real Dovecot and Postfix that ask whose a token is, and a token endpoint."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import Certificates
from tests.fakes.script import NORMAL, Reply
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.fakes.token_endpoint import TokenEndpoint
from tests.integration.conftest import Mailbox, credentials, environment, letter, logged_in
from tests.integration.dovecot import Dovecot, OAuth2
from tests.integration.postfix import Postfix
from tests.integration.scripted import scripted_credentials


@pytest.fixture
async def endpoint() -> AsyncIterator[TokenEndpoint]:
    async with TokenEndpoint(rotates=True) as endpoint:
        yield endpoint


@pytest.fixture
def directory() -> Iterator[Path]:
    """For two servers whose users have to enter it."""
    os.umask(0o022)  # the service, should it run already, has made it private
    directory = Path(tempfile.mkdtemp(prefix="cbemail-"))
    directory.chmod(0o755)
    for name in ("dovecot", "postfix"):
        (directory / name).mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(params=["xoauth2", "oauthbearer"])
def token_dovecot(
    request: pytest.FixtureRequest,
    endpoint: TokenEndpoint,
    directory: Path,
    certificates: Certificates,
) -> Iterator[Dovecot]:
    """A Dovecot that asks the endpoint about access tokens, and takes them by one mechanism."""
    oauth2 = OAuth2(request.param, endpoint.tokeninfo_url)
    with Dovecot.running(directory / "dovecot", certificates, oauth2=oauth2) as dovecot:
        endpoint.owner = dovecot.fresh_user()
        endpoint.good_at(endpoint)
        yield dovecot


@pytest.fixture
def token_postfix(
    directory: Path, certificates: Certificates, token_dovecot: Dovecot
) -> Iterator[Postfix]:
    with Postfix.running(directory / "postfix", certificates, token_dovecot) as postfix:
        yield postfix


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file)


def body_for(
    endpoint: TokenEndpoint, dovecot: Dovecot, postfix: Postfix, **changes: Any
) -> dict[str, Any]:
    body = credentials(endpoint.owner, dovecot, postfix.smtps_port)
    del body["password"]
    return body | {"oauth2": endpoint.oauth2(**changes)}


def scripted_body(
    endpoint: TokenEndpoint, imap: ScriptedImap, smtp: ScriptedSmtp, **changes: Any
) -> dict[str, Any]:
    endpoint.good_at(imap, smtp)
    body = scripted_credentials(imap, smtp)
    del body["password"]
    return body | {"oauth2": endpoint.oauth2(**changes)}


# ---- real servers


async def test_a_mailbox_is_read_and_sent_from_by_access_token(
    base_url: str, endpoint: TokenEndpoint, token_dovecot: Dovecot, token_postfix: Postfix
) -> None:
    token_dovecot.append(endpoint.owner, letter("seven"))
    to = token_dovecot.fresh_user()

    async with logged_in(base_url, body_for(endpoint, token_dovecot, token_postfix)) as mailbox:
        session = await mailbox.get(f"/api/sessions/{mailbox.session_id}")
        page = await mailbox.get("/api/mailbox/messages")
        sent = await mailbox.post("/api/send", {"to": to, "subject": "Hi", "body": "Hello."})

    assert session.json()["auth"] == "oauth2"
    assert [each["subject"] for each in page.json()["messages"]] == ["seven"]
    assert sent.status_code == 200, sent.text
    assert len(token_postfix.wait_for(to)) == 1
    assert len(endpoint.forms) == 1


async def test_a_token_that_the_servers_refuse_is_answered_and_renewed(
    base_url: str, endpoint: TokenEndpoint, token_dovecot: Dovecot, token_postfix: Postfix
) -> None:
    """Each challenge of theirs wants the mechanism's own last words; without them both say nothing more."""
    body = body_for(endpoint, token_dovecot, token_postfix, access_token="expired")

    async with logged_in(base_url, body) as mailbox:
        page = await mailbox.get("/api/mailbox/messages")

    assert page.status_code == 200
    assert len(endpoint.forms) == 1


async def test_a_token_that_is_not_taken_is_a_401(
    client: httpx.AsyncClient,
    endpoint: TokenEndpoint,
    token_dovecot: Dovecot,
    token_postfix: Postfix,
) -> None:
    body = body_for(endpoint, token_dovecot, token_postfix) | {"oauth2": {"access_token": "no"}}

    response = await client.post("/api/sessions", json=body)

    assert response.status_code == 401
    assert response.json()["code"] == "credentials-rejected"


async def test_a_token_that_is_refused_while_the_mailbox_is_in_use_is_renewed(
    base_url: str, endpoint: TokenEndpoint, token_dovecot: Dovecot, token_postfix: Postfix
) -> None:
    async with logged_in(base_url, body_for(endpoint, token_dovecot, token_postfix)) as mailbox:
        body = {"oauth2": {"access_token": "given", **endpoint.oauth2()}}
        endpoint.tokens.add("given")
        path = f"/api/sessions/{mailbox.session_id}/credentials"
        replaced = await mailbox.client.put(path, json=body)
        endpoint.revoke_access()

        page = await mailbox.get("/api/mailbox/messages")

    assert replaced.status_code == 200, replaced.text
    assert page.status_code == 200, page.text
    assert len(endpoint.forms) == 2


# ---- refreshes


async def test_fifty_requests_at_the_moment_of_expiry_cause_one_refresh_and_no_failure(
    base_url: str, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    endpoint.lives = [1, 3600]  # the first is about to expire from the beginning
    body = scripted_body(endpoint, imap_server, smtp_server)

    async with logged_in(base_url, body) as mailbox:
        path = f"/api/sessions/{mailbox.session_id}/health"
        answers = await asyncio.gather(*(mailbox.get(path) for _ in range(50)))

    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "ok")}
    assert [form["refresh_token"] for form in endpoint.forms] == ["refresh-0", "refresh-1"]


async def test_a_refused_refresh_token_makes_the_session_stale_until_it_has_new_tokens(
    base_url: str, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    endpoint.lives = [1, 3600]
    body = scripted_body(endpoint, imap_server, smtp_server)

    async with logged_in(base_url, body) as mailbox:
        path = f"/api/sessions/{mailbox.session_id}"
        batch = await mailbox.post("/api/send", _later())
        imap_server.hang_up()
        endpoint.on(400, {"error": "invalid_grant"})
        refused = await mailbox.get("/api/mailbox/messages")
        stale = await mailbox.get(path)
        new = await mailbox.client.put(f"{path}/credentials", json={"oauth2": endpoint.oauth2()})
        page = await mailbox.get("/api/mailbox/messages")
        kept = await mailbox.get(batch.headers["location"])

    assert refused.json()["code"] == "credentials-stale"
    assert "refresh token" in refused.json()["detail"]
    assert stale.json()["state"] == "credentials_stale"
    assert (new.status_code, new.json()["state"]) == (200, "active")
    assert page.status_code == kept.status_code == 200


def _later() -> dict[str, Any]:
    at = datetime.now(UTC) + timedelta(hours=1)
    return {"to": "ann@example.org", "subject": "Hi", "body": "Hello.", "send_at": at.isoformat()}


async def test_a_message_goes_by_another_login_when_that_of_the_connection_has_expired(
    base_url: str, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async with logged_in(base_url, scripted_body(endpoint, imap_server, smtp_server)) as mailbox:
        smtp_server.on("MAIL", b"535 5.7.3 Authentication unsuccessful\r\n", NORMAL)

        sent = await mailbox.post(
            "/api/send", {"to": "ann@example.org", "subject": "Hi", "body": "Hello."}
        )

    assert sent.status_code == 200, sent.text
    assert smtp_server.count("AUTH") == 2
    assert len(smtp_server.messages) == 1


async def test_of_several_connections_whose_login_has_expired_a_message_meets_one(
    base_url: str, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    async def side_by_side(_: bytes) -> Reply:
        await smtp_server.heard("MAIL", 2)
        return NORMAL

    message = {"to": "ann@example.org", "subject": "Hi", "body": "Hello."}
    refusal = b"535 5.7.3 Authentication unsuccessful\r\n"
    smtp_server.on("MAIL", side_by_side, side_by_side, refusal, NORMAL)
    async with logged_in(base_url, scripted_body(endpoint, imap_server, smtp_server)) as mailbox:
        await asyncio.gather(*(mailbox.post("/api/send", message) for _ in range(2)))

        sent = await mailbox.post("/api/send", message)

    assert sent.status_code == 200, sent.text
    assert smtp_server.count("AUTH") == 3


async def test_an_endpoint_in_trouble_is_a_503_that_says_when_to_come_back(
    base_url: str, endpoint: TokenEndpoint, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    body = scripted_body(endpoint, imap_server, smtp_server)
    endpoint.on(500, {"error": "server_error"})

    async with httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client:
        response = await client.post("/api/sessions", json=body)

    assert response.status_code == 503
    assert response.json()["code"] == "upstream-unavailable"
    assert int(response.headers["retry-after"]) > 0


# ---- what is asked for


@pytest.mark.parametrize(
    ("oauth2", "pointer"),
    [
        ({}, "#/oauth2"),
        ({"provider": "google"}, "#/oauth2"),
        ({"refresh_token": "r"}, "#/oauth2/client_id"),
        ({"refresh_token": "r", "client_id": "c"}, "#/oauth2/token_url"),
        ({"refresh_token": "r", "client_id": "c", "provider": "gmail"}, "#/oauth2/provider"),
        (
            {
                "refresh_token": "r",
                "client_id": "c",
                "provider": "google",
                "token_url": "https://x",
            },
            "#/oauth2/token_url",
        ),
        ({"access_token": "a", "client_id": "c"}, "#/oauth2/refresh_token"),
        ({"access_token": "a\x01b"}, "#/oauth2/access_token"),
    ],
)
async def test_what_is_missing_is_named(
    client: httpx.AsyncClient, oauth2: dict[str, str], pointer: str
) -> None:
    server = {"host": "mail.example.org"}
    body = {"email": "joe@example.org", "imap": server, "smtp": server, "oauth2": oauth2}

    response = await client.post("/api/sessions", json=body)

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


async def test_a_mailbox_is_not_opened_by_password_and_token_at_once(
    mailbox: Mailbox, endpoint: TokenEndpoint
) -> None:
    body = {"password": "secret", "oauth2": endpoint.oauth2()}

    path = f"/api/sessions/{mailbox.session_id}/credentials"
    response = await mailbox.client.put(path, json=body)

    assert response.status_code == 422
