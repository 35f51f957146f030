"""A refresh token exchanged: what is asked of whom, and what each answer of a token endpoint is taken for."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import httpx
import pytest
import respx
from aiohappyeyeballs import AddrInfoType

from cbemail.errors import (
    CredentialsRejected,
    HostNotAllowed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import AccessToken, MailHosts
from cbemail.sessions import oauth2 as module
from cbemail.sessions.oauth2 import (
    Grant,
    exchange,
    find_token_endpoint,
    find_token_endpoint_by_host,
)
from cbemail.sessions.provider_table import PROVIDERS
from cbemail.web import Web

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ADDRESS = "9.9.9.9"
URL = f"https://{ADDRESS}/token"  # where it is sent to: an address that was judged
GRANT = Grant("https://auth.example.org/token", "the-client", "refresh-0")
GIVEN = {"access_token": "access-1", "token_type": "Bearer", "expires_in": 3600}


async def resolve(name: str, port: int) -> list[AddrInfoType]:
    address = "10.0.0.1" if name.startswith("inside.") else ADDRESS
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    web = Web(MailHosts(allow_ports=[993], resolve=resolve))
    yield web
    await web.close()


def now() -> datetime:
    return NOW


# ---- what is asked


@respx.mock
async def test_the_endpoint_is_asked_for_what_the_refresh_token_is_good_for(web: Web) -> None:
    route = respx.post(URL).respond(json=GIVEN)
    grant = Grant(GRANT.token_url, "the-client", "refresh-0", "the-secret", "mail offline_access")

    await exchange(web, grant, now)

    [call] = route.calls
    assert call.request.headers["host"] == "auth.example.org"
    assert parse_qs(call.request.content.decode(), strict_parsing=True) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh-0"],
        "client_id": ["the-client"],
        "client_secret": ["the-secret"],
        "scope": ["mail offline_access"],
    }


@respx.mock
async def test_a_public_client_sends_no_secret_and_no_scope_that_was_not_named(web: Web) -> None:
    route = respx.post(URL).respond(json=GIVEN)

    await exchange(web, GRANT, now)

    form = parse_qs(route.calls[0].request.content.decode())
    assert form.keys() == {"grant_type", "refresh_token", "client_id"}


@respx.mock
async def test_an_endpoint_inside_is_not_contacted(web: Web) -> None:
    with pytest.raises(HostNotAllowed):
        await exchange(web, Grant("https://inside.example.org/token", "c", "r"), now)

    assert not respx.calls


@respx.mock
async def test_a_redirect_takes_the_refresh_token_nowhere(web: Web) -> None:
    respx.post(URL).respond(307, headers={"Location": "https://elsewhere.example.org/"})

    with pytest.raises(UpstreamUnavailable):
        await exchange(web, GRANT, now)

    assert len(respx.calls) == 1


# ---- what is given


@respx.mock
async def test_a_token_comes_with_its_expiry_and_the_refresh_token_stays(web: Web) -> None:
    respx.post(URL).respond(json=GIVEN)

    token, grant = await exchange(web, GRANT, now)

    assert token == AccessToken("access-1")
    assert grant.refresh_token == "refresh-0"
    assert grant.renewed_at == NOW
    assert grant.expires_at == NOW + timedelta(hours=1)


@respx.mock
async def test_a_rotated_refresh_token_takes_the_place_of_the_old_one(web: Web) -> None:
    respx.post(URL).respond(json=GIVEN | {"refresh_token": "refresh-1"})

    _, grant = await exchange(web, GRANT, now)

    assert grant.refresh_token == "refresh-1"


@respx.mock
@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"expires_in": "3600"}, 3600),
        ({"expires_in": 3599.5}, 3599.5),
        ({"expires_in": 3_600_000, "expires_in_sec": 3600}, 3600),
        ({"expires_in": 0}, None),
        ({"expires_in": -5}, None),
        ({"expires_in": 1e300}, None),
        ({"expires_in": None}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": {"seconds": 3600}}, None),
        ({}, None),
    ],
)
async def test_an_expiry_is_believed_where_it_can_be(
    web: Web, told: dict[str, object], seconds: float | None
) -> None:
    respx.post(URL).respond(json={"access_token": "access-1"} | told)

    _, grant = await exchange(web, GRANT, now)

    expected = NOW + timedelta(seconds=seconds) if seconds is not None else None
    assert grant.expires_at == expected


# ---- what is refused


@respx.mock
@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (400, "invalid_grant", "refresh token"),
        (200, "invalid_code", "refresh token"),
        (400, "interaction_required", "refresh token"),
        (401, "invalid_client", "client_secret"),
        (400, "unauthorized_client", "client_secret"),
        (200, "invalid_client_secret", "client_secret"),
        (400, "invalid_scope", "token_url"),
        (400, "unsupported_grant_type", "token_url"),
    ],
)
async def test_a_refusal_for_good_says_what_is_refused(
    web: Web, status: int, error: str, sentence: str
) -> None:
    said = {"error": error, "error_description": "AADSTS70000: refresh-0 has expired"}
    respx.post(URL).respond(status, json=said)

    with pytest.raises(CredentialsRejected, match=sentence) as caught:
        await exchange(web, GRANT, now)

    assert "AADSTS" not in caught.value.detail
    assert "refresh-0" not in caught.value.detail


@respx.mock
@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(429, json={"error": "invalid_grant"}),
        httpx.Response(500, json={"error": "invalid_client"}),
        httpx.Response(503, text="busy"),
        httpx.Response(400, json={"error": "temporarily_unavailable"}),
        httpx.Response(400, json={"error": {"errorId": "INVALID_INPUT"}}),
        httpx.Response(403, text="<html>blocked</html>"),
        httpx.Response(200, text="<html>log in to this hotspot</html>"),
        httpx.Response(200, json={}),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"access_token": ""}),
        httpx.Response(200, json={"access_token": 7}),
        httpx.Response(200, json={"access_token": "a\x01b"}),
        httpx.Response(200, content=b"x" * 100_000),
    ],
)
async def test_whatever_else_is_answered_speaks_against_nobody(
    web: Web, answer: httpx.Response
) -> None:
    respx.post(URL).mock(return_value=answer)

    with pytest.raises(UpstreamUnavailable) as caught:
        await exchange(web, GRANT, now)

    assert caught.value.protocol == "oauth2"
    assert caught.value.retry_after == module.RETRY_SECONDS


@respx.mock
@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("120", 120),
        ("0", 1),
        ("99999", 3600),
        ("9" * 30, 10),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 10),
        ("-5", 10),
    ],
)
async def test_an_endpoint_says_when_to_come_back(web: Web, told: str, seconds: int) -> None:
    respx.post(URL).respond(429, headers={"Retry-After": told})

    with pytest.raises(UpstreamUnavailable) as caught:
        await exchange(web, GRANT, now)

    assert caught.value.retry_after == seconds


@respx.mock
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (httpx.ConnectError("refused"), UpstreamUnavailable),
        (httpx.ReadError("reset"), UpstreamUnavailable),
        (httpx.ReadTimeout("slow"), UpstreamTimeout),
    ],
)
async def test_an_endpoint_that_cannot_be_reached_speaks_against_nobody(
    web: Web, failure: Exception, error: type[Exception]
) -> None:
    respx.post(URL).mock(side_effect=failure)

    with pytest.raises(error) as caught:
        await exchange(web, GRANT, now)

    assert caught.type is error
    assert caught.value.protocol == "oauth2"  # type: ignore[attr-defined]  # of both


# ---- whose endpoint


@pytest.mark.parametrize(
    ("provider", "url"),
    [
        ("google", "https://oauth2.googleapis.com/token"),
        ("yahoo", "https://api.login.yahoo.com/oauth2/get_token"),
        ("microsoft", "https://login.microsoftonline.com/common/oauth2/v2.0/token"),
        (
            "microsoft:a-b.example",
            "https://login.microsoftonline.com/a-b.example/oauth2/v2.0/token",
        ),
        ("zoho", "https://accounts.zoho.com/oauth/v2/token"),
        ("zoho:ca", "https://accounts.zohocloud.ca/oauth/v2/token"),
    ],
)
def test_a_provider_has_its_endpoint(provider: str, url: str):
    endpoint = find_token_endpoint(provider)

    assert endpoint is not None
    assert endpoint.url == url


def test_microsoft_is_asked_for_mail_and_for_another_refresh_token():
    endpoint = find_token_endpoint("microsoft")

    assert endpoint is not None
    assert endpoint.scope is not None
    names = {scope.rpartition("/")[2] for scope in endpoint.scope.split()}
    assert names == {"IMAP.AccessAsUser.All", "SMTP.Send", "offline_access"}


@pytest.mark.parametrize(
    "provider",
    [
        "",
        "gmail",
        "google:x",
        "yahoo:x",
        "zoho:xx",
        "microsoft:..",
        "microsoft:a/b",
        "microsoft:a?",
    ],
)
def test_what_is_no_provider_has_none(provider: str):
    assert find_token_endpoint(provider) is None


def test_every_provider_that_is_named_is_in_the_table():
    assert module._OF_SERVERS.keys() <= {provider.name for provider in PROVIDERS}
    assert all(find_token_endpoint(name) for name in module._OF_SERVERS.values())


@pytest.mark.parametrize("host", ["imap.fastmail.com", "imap.example.org"])
def test_a_server_of_nobody_with_an_endpoint_has_none(host: str):
    assert find_token_endpoint_by_host(host) is None


def test_a_grant_does_not_show_itself():
    grant = Grant("https://a.example/t", "the-client", "refresh-0", "the-secret")

    assert repr([grant]) == "[Grant(…)]"
