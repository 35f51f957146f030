"""`/api/sessions` before a real Dovecot and a real Postfix."""

from __future__ import annotations

import httpx
import pytest

from cbemail.sessions import providers
from tests.integration.conftest import API_KEY, Mailbox, credentials
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix


async def test_a_login_at_both_servers_makes_a_session_that_tells_no_secret(
    client: httpx.AsyncClient, dovecot: Dovecot, postfix: Postfix
) -> None:
    user = dovecot.fresh_user()

    response = await client.post(
        "/api/sessions", json=credentials(user, dovecot, postfix.smtps_port)
    )

    created = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/api/sessions/{created['session_id']}"
    assert created["token_type"] == "bearer"
    assert created["session"]["email"] == user
    assert created["session"]["state"] == "active"
    assert dovecot.password not in response.text


async def test_a_wrong_password_is_a_401_that_names_the_server(
    client: httpx.AsyncClient, dovecot: Dovecot, postfix: Postfix
) -> None:
    body = credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port) | {"password": "wrong"}

    response = await client.post("/api/sessions", json=body)

    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "credentials-rejected"
    assert "IMAP" in response.json()["detail"]


async def test_a_password_that_only_smtp_refuses_is_told_as_smtp(
    client: httpx.AsyncClient, dovecot: Dovecot, postfix: Postfix
) -> None:
    body = credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port)
    body["smtp"]["password"] = "wrong"

    response = await client.post("/api/sessions", json=body)

    assert response.status_code == 401
    assert "SMTP" in response.json()["detail"]


async def test_an_unknown_domain_must_name_its_servers(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/api/sessions", json={"email": "joe@example.test", "password": "secret"}
    )

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/imap/host"


async def test_a_token_reaches_its_own_session_only(
    mailbox: Mailbox, client: httpx.AsyncClient, dovecot: Dovecot, postfix: Postfix
) -> None:
    other = await client.post(
        "/api/sessions", json=credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port)
    )

    own = await mailbox.get(f"/api/sessions/{mailbox.session_id}")
    others = await mailbox.get(f"/api/sessions/{other.json()['session_id']}")
    nobodys = await mailbox.get("/api/sessions/ses_0")

    assert own.status_code == 200
    assert others.status_code == nobodys.status_code == 404
    assert others.json()["detail"] == nobodys.json()["detail"]


async def test_an_api_key_reaches_every_session_that_it_names(
    mailbox: Mailbox, client: httpx.AsyncClient
) -> None:
    key = {"X-API-Key": API_KEY}

    unnamed = await client.get("/api/mailbox/messages", headers=key)
    named = await client.get(
        "/api/mailbox/messages", headers=key | {"X-Session-ID": mailbox.session_id}
    )
    every = await client.get("/api/sessions", headers=key)

    assert unnamed.status_code == 400
    assert unnamed.json()["code"] == "session-required"
    assert named.status_code == 200
    assert [s["id"] for s in every.json()["sessions"]] == [mailbox.session_id]


async def test_a_deleted_session_is_gone_at_once(mailbox: Mailbox) -> None:
    response = await mailbox.delete(f"/api/sessions/{mailbox.session_id}")

    assert response.status_code == 204
    assert (await mailbox.get("/api/mailbox/messages")).status_code == 401
    refreshed = await mailbox.client.post(
        f"/api/sessions/{mailbox.session_id}/token",
        json={"refresh_token": mailbox.refresh_token},
    )
    assert refreshed.status_code == 401


async def test_a_refresh_token_is_good_once_and_its_reuse_ends_the_session(
    mailbox: Mailbox, client: httpx.AsyncClient
) -> None:
    path = f"/api/sessions/{mailbox.session_id}/token"

    first = await client.post(path, json={"refresh_token": mailbox.refresh_token})
    second = await client.post(path, json={"refresh_token": mailbox.refresh_token})

    assert first.status_code == 200
    assert first.json()["refresh_token"] != mailbox.refresh_token
    assert second.status_code == 401
    assert (await mailbox.get(f"/api/sessions/{mailbox.session_id}")).status_code == 401


async def test_a_valid_token_gives_a_new_one(mailbox: Mailbox) -> None:
    response = await mailbox.client.post(f"/api/sessions/{mailbox.session_id}/token")

    assert response.status_code == 200
    assert response.json()["refresh_token"] is None
    mailbox.client.headers["Authorization"] = f"Bearer {response.json()['token']}"
    assert (await mailbox.get(f"/api/sessions/{mailbox.session_id}")).status_code == 200


async def test_health_really_logs_in_to_both_servers(mailbox: Mailbox) -> None:
    response = await mailbox.get(f"/api/sessions/{mailbox.session_id}/health")

    health = response.json()
    assert response.status_code == 200
    assert health["status"] == "ok"
    assert health["imap"]["ok"]
    assert health["smtp"]["ok"]


async def test_new_credentials_are_proven_before_they_are_kept(
    mailbox: Mailbox, dovecot: Dovecot
) -> None:
    path = f"/api/sessions/{mailbox.session_id}/credentials"

    wrong = await mailbox.client.put(path, json={"password": "wrong"})
    right = await mailbox.client.put(path, json={"password": dovecot.password})

    assert wrong.status_code == 401
    assert right.status_code == 200
    assert right.json()["state"] == "active"
    assert (await mailbox.get("/api/mailbox/messages")).status_code == 200


async def test_a_new_password_that_is_refused_is_told_with_what_the_provider_wants(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = providers.find_provider("joe@icloud.com")
    monkeypatch.setitem(providers._BY_HOST, "localhost", known)

    path = f"/api/sessions/{mailbox.session_id}/credentials"
    response = await mailbox.client.put(path, json={"password": "wrong"})

    assert response.status_code == 401
    assert "iCloud needs an app password" in response.json()["detail"]
