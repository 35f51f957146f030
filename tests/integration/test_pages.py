"""The pages, as people have them: in a real browser, with and without scripts, on a phone, by keyboard."""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from cbemail.api.problem_pages import EXPLANATIONS
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.browser import Browser
from tests.integration.conftest import credentials, environment, letter, serving
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix
from tests.integration.test_readme import answers, run

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
PIN = "493817"
PHONE, DESK = (390, 844), (1280, 900)

# Text that stands out too little from what is behind it (WCAG 2.2, 1.4.3), as a list of what it says.
PALE = """
const light = (colour) => {
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255);
  const [r, g, b] = parts.map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
};
const speaks = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
return [...document.querySelectorAll("body *")].filter((element) => {
  if (!speaks(element) || !element.checkVisibility()) return false;
  const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
}).map((element) => element.textContent);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.running(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def environ(tmp_path: Path, certificates: Certificates) -> dict[str, str]:
    return environment(tmp_path, certificates.ca_file, GATE_PIN=PIN)


def without_gate(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"GATE_PIN": ""}


@pytest.fixture
async def open_url(environ: dict[str, str]) -> AsyncIterator[str]:
    """A service without a gate."""
    async with serving(without_gate(environ)) as url:
        yield url


async def browse(steps: Callable[[], None]) -> None:
    """Let a person do something, while the service runs in this loop."""
    await asyncio.to_thread(steps)


# ---- the gate


def pass_gate(browser: Browser, url: str) -> None:
    """Ask for a page, take two tries, and get it."""
    browser.resize(*PHONE)
    browser.driver.get(url + "/problems/overloaded")
    assert browser.driver.switch_to.active_element.get_attribute("name") == "pin"
    browser.one("#pin").send_keys("4938" + Keys.ENTER)
    complaint = browser.one("[role=alert]")
    assert complaint.text == "That is not the PIN."
    assert browser.one("#pin").get_attribute("aria-describedby") == complaint.get_attribute("id")
    assert browser.one("#pin").accessible_name == "PIN"

    browser.one("#pin").send_keys(PIN)
    browser.one("form button").click()

    browser.until(lambda: browser.path == "/problems/overloaded")
    assert browser.one("h1").text == "Overloaded"
    [cookie] = browser.driver.get_cookies()
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Lax")


async def test_the_gate_is_passed_on_a_phone(browser: Browser, base_url: str) -> None:
    await browse(lambda: pass_gate(browser, base_url))


async def test_the_gate_is_passed_without_scripts(base_url: str, tmp_path: Path) -> None:
    with Browser.running(tmp_path / "profile", scripts=False) as browser:
        await browse(lambda: pass_gate(browser, base_url))


# ---- every page


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_can_be_read(
    browser: Browser, open_url: str, size: tuple[int, int], scheme: str
) -> None:
    def read() -> None:
        browser.resize(*size)
        browser.prefer(scheme)
        browser.complaints()  # of tests before
        for path in ("/", "/docs", "/docs#send_batch", "/problems/rate-limited", "/gate"):
            browser.driver.get(open_url + path)
            browser.one("h1")

            assert browser.run("return document.querySelectorAll('h1, main').length") == 2
            assert browser.run("return document.documentElement.lang") == "en"
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), path
            assert browser.run(PALE) == [], path
            assert browser.complaints() == [], path

    await browse(read)


async def test_the_keyboard_gets_past_the_head_of_a_page(browser: Browser, open_url: str) -> None:
    def walk() -> None:
        browser.driver.get(open_url + "/docs")
        browser.one("h1")
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)

        skip = browser.driver.switch_to.active_element
        assert skip.text == "Skip to the content"
        skip.send_keys(Keys.ENTER)
        browser.until(lambda: browser.path == "/docs#content")

        summary = browser.one("#list_folders > summary")
        summary.send_keys(Keys.ENTER)
        assert browser.one("#list_folders[open] .try button").accessible_name == "Send"

    await browse(walk)


# ---- the documentation


async def test_a_call_is_tried_from_the_documentation(
    browser: Browser, open_url: str, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    login = json.dumps(
        {
            "email": "joe@example.org",
            "password": "secret",
            "imap": {"host": "localhost", "port": imap_server.port, "security": "starttls"},
            "smtp": {"host": "localhost", "port": smtp_server.port, "security": "starttls"},
        }
    )

    def send(name: str) -> str:
        form = browser.one(f"#{name} .try")
        form.find_element(By.CSS_SELECTOR, "button").click()
        status = browser.one(f"#{name} .answer strong").text
        browser.until(lambda: browser.one(f"#{name} .answer > pre").text)
        return status

    def shown(name: str) -> str:
        return browser.one(f"#{name} .answer > pre").text

    def log_in_and_look() -> None:
        browser.resize(*DESK)
        browser.driver.get(open_url + "/docs#create_session")
        body = browser.one("#create_session textarea")
        assert json.loads(body.get_attribute("value") or "")["email"] == "joe@example.org"
        browser.run("arguments[0].value = arguments[1]", body, login)
        assert send("create_session").startswith("201"), shown("create_session")
        browser.until(lambda: browser.run("return sessionStorage.getItem('token')"))
        created = json.loads(shown("create_session"))

        browser.driver.get(open_url + "/docs#get_session")
        browser.driver.refresh()  # what is kept, is kept in the tab
        browser.one("#get_session-path-id").send_keys(created["session_id"])
        assert send("get_session").startswith("200")
        assert json.loads(shown("get_session"))["email"] == "joe@example.org"

        browser.driver.get(open_url + "/docs#list_messages")
        browser.one("#list_messages-query-limit").send_keys("201")
        assert send("list_messages").startswith("422")
        assert "#/limit" in shown("list_messages")

        browser.one(".credentials button").click()
        assert send("list_messages").startswith("401")
        kept = "return [sessionStorage.length, localStorage.length, document.cookie]"
        assert browser.run(kept) == [0, 0, ""]

    await browse(log_in_and_look)


async def test_the_documentation_lets_nothing_run_but_its_own_script(
    browser: Browser, open_url: str
) -> None:
    def intrude() -> None:
        browser.driver.get(open_url + "/docs")
        browser.one("h1")
        browser.run("""
            const script = document.createElement("script");
            script.textContent = "document.title = 'run'";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='document.title = `run`'>");
        """)
        browser.until(lambda: sum("Content Security Policy" in each for each in refused()) >= 1)

        assert browser.driver.title == "Documentation · cbemail"

    said: list[str] = []

    def refused() -> list[str]:
        said.extend(browser.complaints())
        return said

    await browse(intrude)
    async with httpx.AsyncClient(base_url=open_url, trust_env=False) as client:
        policy = (await client.get("/docs")).headers["content-security-policy"]
    assert policy.startswith(
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
    )
    assert "unsafe" not in policy


# ---- what programs get


@pytest.fixture
async def open_client(open_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=open_url, trust_env=False) as client:
        yield client


async def test_what_a_page_needs_is_kept_for_ever_and_comes_from_here(
    open_client: httpx.AsyncClient,
) -> None:
    for path in ("/", "/docs", "/gate", "/problems/overloaded"):
        page = (await open_client.get(path)).text
        needed = re.findall(r'<(?:link|script)[^>]* (?:href|src)="([^"]+)"', page)

        assert needed
        for url in needed:
            asset = await open_client.get(url)
            assert asset.status_code == 200
            assert url.startswith("/assets/")
            assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_a_file_that_is_none_of_the_pages_is_not_found(
    open_client: httpx.AsyncClient,
) -> None:
    for name in ("pages.css", "docs.js", "..%2fgate.py", "%2e%2e", "%00"):
        assert (await open_client.get(f"/assets/{name}")).status_code == 404, name


async def test_a_problem_is_explained_to_people_and_to_programs(
    open_client: httpx.AsyncClient,
) -> None:
    for code, explanation in EXPLANATIONS.items():
        page = await open_client.get(f"/problems/{code}", headers={"Accept": "text/html"})
        document = await open_client.get(
            f"/problems/{code}", headers={"Accept": "application/json"}
        )

        assert page.headers["content-type"].startswith("text/html")
        assert explanation.code in page.text
        assert html.escape(explanation.remedy.split("`")[0]) in page.text
        assert document.json()["remedy"] == explanation.remedy
        assert document.json()["status"] == explanation.status


async def test_a_page_that_is_not_there_is_a_page_for_people_and_a_problem_for_programs(
    open_client: httpx.AsyncClient,
) -> None:
    page = await open_client.get("/problems/<b>", headers={"Accept": "text/html,*/*;q=0.8"})
    problem = await open_client.get("/problems/<b>", headers={"Accept": "*/*"})

    assert (page.status_code, problem.status_code) == (404, 404)
    assert "<h1>Not found</h1>" in page.text
    assert problem.headers["content-type"] == "application/problem+json"


# ---- the first calls


def steps_on(page: str) -> tuple[str, str]:
    """The lines that say what to use, and the five calls."""
    setting, steps = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, re.DOTALL)
    return html.unescape(setting), html.unescape(steps)


async def test_the_first_calls_are_those_of_the_readme(open_client: httpx.AsyncClient) -> None:
    setting, steps = steps_on((await open_client.get("/")).text)

    assert f"```bash\n{steps}```" in README
    where, _, mailbox = setting.partition("\n")
    assert where == f"export CBEMAIL={str(open_client.base_url).rstrip('/')}"
    assert f"export CBEMAIL=http://localhost:32212\n{mailbox}```" in README


async def test_behind_the_gate_the_first_calls_bring_the_pin_and_work(
    tmp_path: Path, dovecot: Dovecot, postfix: Postfix
) -> None:
    environ = environment(tmp_path, dovecot.ca_file, GATE_PIN=PIN)
    user, pin = dovecot.fresh_user(), {"X-Gate-PIN": PIN}
    async with serving(environ) as url, httpx.AsyncClient(trust_env=False) as client:
        setting, steps = steps_on((await client.get(url + "/", headers=pin)).text)
        await store_letter(client, url, credentials(user, dovecot, postfix.smtps_port))
        variables = {
            "CBEMAIL": url,
            "EMAIL": user,
            "PASSWORD": dovecot.password,
            "GATE_PIN": PIN,
            "IMAP_HOST": "localhost",
            "IMAP_PORT": str(dovecot.imaps_port),
            "SMTP_HOST": "localhost",
            "SMTP_PORT": str(postfix.smtps_port),
        }

        printed = await run(steps, variables)

    assert set(re.findall(r"([A-Z_]+)=", setting)) == variables.keys()
    sent, *_ = answers(printed)
    assert (steps.count("\n"), sent["state"]) == (5, "sent")


async def store_letter(client: httpx.AsyncClient, url: str, login: dict[str, Any]) -> None:
    """A message to be found, before the one that is sent has arrived."""
    created = await client.post(url + "/api/sessions", json=login, headers={"X-Gate-PIN": PIN})
    headers = {
        "Authorization": f"Bearer {created.json()['token']}",
        "Content-Type": "message/rfc822",
    }
    messages = url + "/api/mailbox/messages"
    stored = await client.post(messages, content=letter("An old letter"), headers=headers)
    assert stored.status_code == 201
