"""The PIN gate, over HTTP: what passes it, and that no spelling of a path goes around it."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from cbemail.api.gate import Gate
from cbemail.clock import now
from cbemail.sessions.keys import KeyRing
from tests.integration.conftest import API_KEY, SECRET_KEY, serving

PIN = "493817"
COOKIE = "__Host-cbemail-gate"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
BEHIND_IT = re.compile(rb"first five calls|Who you are|What to do|ses_|malformed-json|invalid-req")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "SECRET_KEY": SECRET_KEY,
        "API_KEYS": API_KEY,
        "DB_PATH": str(tmp_path / "cbemail.duckdb"),
        "GATE_PIN": PIN,
    }


def wearing(cookie: str) -> dict[str, str]:
    return {"Cookie": f"{COOKIE}={cookie}"}


def from_address(number: int) -> dict[str, str]:
    """As the test's own machine, which is a trusted proxy, says who asks."""
    return {"X-Forwarded-For": f"198.51.100.{number}"}


async def open_gate(client: httpx.AsyncClient, pin: str = PIN, number: int = 1) -> httpx.Response:
    return await client.post("/gate", json={"pin": pin}, headers=from_address(number))


def assert_closed(response: httpx.Response) -> None:
    assert response.status_code == 403, response.text
    assert response.json()["code"] == "pin-required"
    assert not BEHIND_IT.search(response.content)


# ---- closed


async def test_no_page_is_shown_without_the_pin(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/problems/not-found", "/problems/nothing"):
        assert_closed(await client.get(path))
        assert_closed(await client.get(path, headers={"Authorization": "Bearer x"}))
        assert_closed(await client.get(path, headers={"X-API-Key": "another"}))


async def test_nobody_logs_in_without_the_pin(client: httpx.AsyncClient) -> None:
    for body in (b'{"email": "joe@gmail.com", "password": "x"}', b"{}", b"", b"\xff"):
        json = {"Content-Type": "application/json"}

        assert_closed(await client.post("/api/sessions", content=body, headers=json))


async def test_what_tells_nothing_of_the_service_stays_open(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/gate"):
        assert (await client.get(path)).status_code == 200, path


TRICKS = (
    "//", "//docs", "/./docs", "/x/../docs", "/docs/", "/docs/.", "/docs;x", "/docs;x=1/", "/%64ocs", "/docs%2f",
    "/docs%00", "/docs%20", "/DOCS", "/docs?x=1", "/docs?next=/docs", "/gate/../docs", "/gate/check/../../docs",
    "/healthz/../docs", "/assets/../docs", "/assets/%2e%2e/docs", "/gate%2f..%2fdocs", "\\docs", "/\\docs",
    "//api/sessions", "/api/../api/sessions", "/%61pi/sessions", "/api;x/sessions", "/api/sessions;x",
    "/api%2fsessions", "/problems/../docs", "/problems/%2e", "/problems//", "*", "", "docs",
    "http://{host}/docs", "http://evil.example/docs", "http://{host}//docs", "HTTP://{host}/api/sessions",
)  # fmt: skip


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "PROPFIND"])
async def test_no_spelling_of_a_path_goes_around_the_gate(
    base_url: str, method: str, version: str
) -> None:
    host = urlsplit(base_url).netloc
    for target in TRICKS:
        line = f"{method} {target.format(host=host)} HTTP/{version}"

        status, answer = await exchange(host, line)

        assert status in {400, 401, 403, 404, 405}, line
        assert not BEHIND_IT.search(answer), line


async def exchange(host: str, line: str) -> tuple[int, bytes]:
    """Send a request line as it is; the status, and all that comes back."""
    reader, writer = await asyncio.open_connection(*host.split(":"))
    rest = (
        f"Host: {host}\r\nX-Original-URI: /healthz\r\nX-Rewrite-URL: /healthz\r\n"
        "X-HTTP-Method-Override: GET\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    writer.write(f"{line}\r\n{rest}".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1]), answer


# ---- open


async def test_the_pin_as_json_gives_a_cookie_that_opens(client: httpx.AsyncClient) -> None:
    response = await open_gate(client)

    assert response.status_code == 204
    cookie = response.headers["set-cookie"]
    value = re.fullmatch(
        rf"{COOKIE}=([^;]+); HttpOnly; Max-Age=604800; Path=/; SameSite=lax; Secure", cookie
    )
    assert value
    for path in ("/", "/docs", "/problems/not-found"):
        assert (await client.get(path, headers=wearing(value[1]))).status_code == 200


async def test_the_pin_as_a_form_goes_on_to_the_page(client: httpx.AsyncClient) -> None:
    response = await client.post("/gate", params={"next": "/docs"}, data={"pin": PIN})

    assert (response.status_code, response.headers["location"]) == (303, "/docs")
    assert response.headers["set-cookie"].startswith(COOKIE)


async def test_it_goes_on_to_no_other_site(client: httpx.AsyncClient) -> None:
    for goal in ("//evil.example", "/\\evil.example", "https://evil.example"):
        sent = await client.post("/gate", params={"next": goal}, data={"pin": PIN})
        page = await client.get("/gate", params={"next": goal})

        assert sent.headers["location"] == "/"
        assert "evil" not in page.text


async def test_a_program_brings_the_pin_or_a_key(client: httpx.AsyncClient) -> None:
    for headers in ({"X-Gate-PIN": PIN}, {"X-API-Key": API_KEY}):
        page = await client.get("/docs", headers=headers)
        login = await client.post("/api/sessions", json={}, headers=headers)

        assert page.status_code == 200
        assert login.status_code == 422, "it was let through, and looked at"


async def test_a_pin_in_the_address_is_none(client: httpx.AsyncClient) -> None:
    assert_closed(await client.get("/docs", params={"pin": PIN, "X-Gate-PIN": PIN}))


async def test_another_cookie_does_not_open(client: httpx.AsyncClient) -> None:
    older = Gate("493816", KeyRing([SECRET_KEY]), now).new_pass()
    forged = Gate(PIN, KeyRing(["x" * 40]), now).new_pass()
    expired = Gate(PIN, KeyRing([SECRET_KEY]), lambda: now() - timedelta(days=8)).new_pass()
    good = Gate(PIN, KeyRing([SECRET_KEY]), now).new_pass()

    for cookie in (older, forged, expired, good[:-1], good + "0", PIN, "", '"', "%00"):
        assert_closed(await client.get("/docs", headers=wearing(cookie)))
    assert (await client.get("/docs", headers=wearing(good))).status_code == 200


async def test_without_a_pin_there_is_no_gate(environ: dict[str, str]) -> None:
    del environ["GATE_PIN"]
    async with serving(environ) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answers = [await client.get(path) for path in ("/", "/docs", "/gate/check")]
        given = await open_gate(client, "any")

    assert [answer.status_code for answer in answers] == [200, 200, 204]
    assert given.status_code == 204
    assert "set-cookie" not in given.headers


# ---- guessing


async def test_the_sixth_wrong_pin_has_to_wait_and_so_has_the_right_one(
    client: httpx.AsyncClient,
) -> None:
    wrong = [(await open_gate(client, f"{n:04}")).status_code for n in range(5)]
    locked, right = await open_gate(client, "0005"), await open_gate(client)

    assert wrong == [403] * 5
    assert locked.status_code == right.status_code == 429
    assert locked.json()["detail"] == right.json()["detail"]
    assert 880 <= int(right.headers["retry-after"]) <= 900
    assert "set-cookie" not in right.headers
    assert (await open_gate(client, number=2)).status_code == 204


async def test_two_hundred_tries_at_once_are_five(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(open_gate(client, f"{n:04}") for n in range(200)))

    assert [answer.status_code for answer in answers].count(403) == 5


async def test_wherever_a_pin_is_taken_it_is_counted(client: httpx.AsyncClient) -> None:
    wrong = from_address(1) | {"X-Gate-PIN": "0000"}
    await client.get("/", headers=wrong)
    await client.post("/api/sessions", headers=wrong)
    await client.head("/docs", headers=wrong)
    await client.post("/gate", data={"pin": "0000"}, headers=from_address(1))
    await client.post("/gate", data={"pin": "0000"}, headers=from_address(1) | BROWSER)

    assert (await open_gate(client)).status_code == 429


async def test_the_check_of_a_proxy_takes_no_pin_and_counts_nothing(
    client: httpx.AsyncClient,
) -> None:
    headers = from_address(1) | {"X-Gate-PIN": PIN, "X-Original-URI": "/healthz"} | BROWSER
    refused = [await client.get("/gate/check", headers=headers) for _ in range(20)]

    assert {each.status_code for each in refused} == {401}
    given = (await open_gate(client)).headers["set-cookie"].split(";")[0]
    assert (await client.get("/gate/check", headers={"Cookie": given})).status_code == 204
    assert (await client.get("/gate/check", headers={"X-API-Key": API_KEY})).status_code == 204


async def test_what_is_no_try_is_refused_as_what_it_is(client: httpx.AsyncClient) -> None:
    json, form = "application/json", "application/x-www-form-urlencoded"
    for body, kind, status in (
        (b'{"pin": 493817}', json, 422),
        (b'{"pin": "493817", "more": 1}', json, 422),
        (b"pin=493817&pin=493817", form, 422),
        (b"pin=1&x=2", form, 422),
        (b"pin=", form, 422),
        (b"", form, 422),
        (b"pin=\xff", form, 422),
        (b"pin=" + b"1" * 5000, form, 413),
        (PIN.encode(), "text/plain", 415),
    ):
        response = await client.post("/gate", content=body, headers={"Content-Type": kind})

        assert response.status_code == status, body
        assert "set-cookie" not in response.headers


# ---- for browsers


async def test_a_browser_gets_the_form_in_place_of_the_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/problems/not-found", headers=BROWSER)

    assert response.status_code == 403
    assert response.headers["content-type"].startswith("text/html")
    assert 'action="/gate?next=%2Fproblems%2Fnot-found"' in response.text
    assert "script" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not BEHIND_IT.search(response.content)


async def test_a_browser_that_is_locked_out_gets_the_form_and_is_told(
    client: httpx.AsyncClient,
) -> None:
    headers = from_address(1) | BROWSER
    for _ in range(5):
        await client.post("/gate", data={"pin": "0000"}, headers=headers)

    response = await client.post("/gate", data={"pin": PIN}, headers=headers)

    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert 'role="alert"' in response.text


async def test_a_host_that_is_none_does_no_harm(client: httpx.AsyncClient) -> None:
    for host in ("[::1", "a b", "x/../gate", "<script>", '"', "$(id)", ""):
        closed = await client.get("/docs", headers=BROWSER | {"Host": host})
        console = await client.get("/", headers={"X-Gate-PIN": PIN, "Host": host})

        assert (closed.status_code, console.status_code) == (403, 200)
        assert "export CBEMAIL=http://localhost:32212\n" in console.text


async def test_over_plain_http_it_says_that_the_pin_is_not_remembered(
    client: httpx.AsyncClient,
) -> None:
    plain = await client.get("/gate", headers={"Host": "mail.example.org"})
    sealed = await client.get(
        "/gate", headers={"Host": "mail.example.org", "X-Forwarded-Proto": "https"}
    )

    assert "over HTTPS only" in plain.text
    assert "over HTTPS only" not in sealed.text
