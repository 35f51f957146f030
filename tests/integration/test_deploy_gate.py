"""The PIN gate with the NGINX of `deploy/nginx` before it: one has to know the PIN, however the path is spelt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from cbemail.api.auth import GATE_COOKIE
from cbemail.api.gate import Gate
from cbemail.clock import now
from cbemail.sessions.keys import KeyRing
from tests.certificates import Certificates
from tests.integration.browser import Browser
from tests.integration.conftest import API_KEY, SECRET_KEY, environment
from tests.integration.front import Front, spoken

PIN = "314159"


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file, GATE_PIN=PIN)


@pytest.fixture
def front(base_url: str, certificates: Certificates) -> Iterator[Front]:
    with Front.running(certificates, base_url) as front:
        yield front


@pytest.fixture
async def client(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with front.client() as client:
        yield client


_GUARDED = ["/", "/docs", "/openapi.json", "/problems/not-found", "/readyz", "/nothing"]


async def test_the_gate_is_closed_to_all_but_its_page_and_the_sign_of_life(
    client: httpx.AsyncClient,
) -> None:
    closed = {path: (await client.get(path)).status_code for path in _GUARDED}
    opened = {path: (await client.get(path)).status_code for path in ("/gate", "/healthz")}
    check = await client.get("/gate/check")

    assert set(closed.values()) == {403}
    assert set(opened.values()) == {200}
    assert check.status_code == 404, "it is for NGINX alone"


async def test_the_pin_opens_the_gate(client: httpx.AsyncClient) -> None:
    entered = await client.post("/gate?next=/docs", data={"pin": PIN})
    page = await client.get("/docs")

    assert (entered.status_code, entered.headers.get("location")) == (303, "/docs"), entered.text
    assert page.status_code == 200


async def test_who_asks_for_a_page_is_led_to_the_gate_and_back(client: httpx.AsyncClient) -> None:
    browser = {"Accept": "text/html"}

    led = await client.get("/problems/not-found", headers=browser)
    with_query = await client.get("/docs?a=1&b=//evil.example", headers=browser)

    assert (led.status_code, led.headers["location"]) == (303, "/gate?next=/problems/not-found")
    assert with_query.headers["location"] == "/gate?next=/"


async def test_an_api_key_passes_the_gate(client: httpx.AsyncClient) -> None:
    pages = [await client.get(path, headers={"X-API-Key": API_KEY}) for path in ("/docs", "/")]

    assert [page.status_code for page in pages] == [200, 200]


async def test_logging_in_takes_the_pin_which_nginx_leaves_to_the_service(
    client: httpx.AsyncClient,
) -> None:
    without = await client.post("/api/sessions", json={})
    with_pin = await client.post("/api/sessions", json={}, headers={"X-Gate-PIN": PIN})

    assert (without.status_code, without.json()["code"]) == (403, "pin-required")
    assert with_pin.status_code == 422


_SPELLINGS = [
    "GET //{page} HTTP/1.1",
    "GET /./{page} HTTP/1.1",
    "GET /api/../{page} HTTP/1.1",
    "GET /gate/../{page} HTTP/1.1",
    "GET /gate/check/../../{page} HTTP/1.1",
    "GET /healthz/..%2f{page} HTTP/1.1",
    "GET /assets/../{page} HTTP/1.1",
    "GET /assets/%2e%2e/{page} HTTP/1.1",
    "GET /{coded} HTTP/1.1",
    "GET /{page};x HTTP/1.1",
    "GET /{page}/ HTTP/1.1",
    "GET /{page}%00/gate HTTP/1.1",
    "GET /{page}#/gate HTTP/1.1",
    "GET /gate\\..\\{page} HTTP/1.1",
    "GET https://localhost/{page} HTTP/1.1",
    "GET /{page} HTTP/1.0",
    "HEAD /{page} HTTP/1.1",
    "OPTIONS /{page} HTTP/1.1",
    "TRACE /{page} HTTP/1.1",
    "get /{page} HTTP/1.1",
    "GET /{page} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade",
    "GET /{page} HTTP/1.1\r\nX-Original-URI: /gate\r\nX-Rewrite-URL: /gate",
    "GET /{page} HTTP/1.1\r\nX-Gate-PIN: 000000",
    "POST /api/../api/sessions HTTP/1.1\r\nContent-Length: 0",
    "POST //api/sessions HTTP/1.1\r\nContent-Length: 0",
]


@pytest.mark.parametrize("page", ["docs", "openapi.json"])  # the second is for NGINX alone to guard
async def test_no_spelling_of_a_path_leads_around_the_gate(front: Front, page: str) -> None:
    coded = f"%{ord(page[0]):x}{page[1:]}"

    answered = {
        spelling: await _status(front, spelling.format(page=page, coded=coded))
        for spelling in _SPELLINGS
    }

    refused = {400, 403, 404, 405}
    assert {spelling for spelling, status in answered.items() if status not in refused} == set()


async def _status(front: Front, start: str) -> int:
    async with spoken(front, f"{start}\r\nHost: localhost\r\n\r\n".encode()) as reader:
        return int((await reader.readline()).split()[1])


_OURS, _ANOTHER = KeyRing([SECRET_KEY]), KeyRing(["another-" + SECRET_KEY])
_NO_PASSES = {
    "empty": "",
    "forged": f"4102444800.{'0' * 64}",
    "of another PIN": Gate("271828", _OURS, now).new_pass(),
    "of another key": Gate(PIN, _ANOTHER, now).new_pass(),
}


@pytest.mark.parametrize("cookie", _NO_PASSES.values(), ids=_NO_PASSES)
async def test_a_cookie_that_is_no_pass_does_not_open_the_gate(
    client: httpx.AsyncClient, cookie: str
) -> None:
    answer = await client.get("/docs", headers={"Cookie": f"{GATE_COOKIE}={cookie}"})

    assert answer.status_code == 403


async def test_a_pass_opens_the_gate(client: httpx.AsyncClient) -> None:
    cookie = Gate(PIN, _OURS, now).new_pass()

    answer = await client.get("/docs", headers={"Cookie": f"{GATE_COOKIE}={cookie}"})

    assert answer.status_code == 200


# ---- with a real browser


def pass_in_chromium(url: str, profile: Path) -> list[dict[str, Any]]:
    """From a guarded page over the form to that page; what cookies that leaves."""
    with Browser.running(profile) as browser:
        browser.driver.get(url + "/docs")
        led_to = browser.path
        browser.one("#pin").send_keys(PIN + Keys.ENTER)
        browser.until(lambda: browser.path == "/docs")

        assert led_to == "/gate?next=/docs"
        assert browser.one("h1").text
        cookies: list[dict[str, Any]] = browser.driver.get_cookies()
        return cookies


async def test_chromium_passes_the_gate_over_tls_and_comes_where_it_wanted_to(
    front: Front, tmp_path: Path
) -> None:
    [cookie] = await asyncio.to_thread(pass_in_chromium, front.url, tmp_path / "profile")

    assert cookie["name"] == GATE_COOKIE
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")
