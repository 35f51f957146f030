"""Requests over HTTP to whatever a caller or a stranger names: nothing of an answer is read, or kept, that is not due."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from cbemail.errors import HostNotAllowed, UpstreamError
from cbemail.hosts import MailHosts
from cbemail.web import Web
from tests.fakes.recording_http import Recorded, RecordingHttp

PATIENCE = 10.0  # seconds until a request fails that would otherwise wait for ever


class Site(RecordingHttp):
    """Says ``answers`` one after the other, then "ok"."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__()
        self._answers = list(answers)

    async def answer(self, request: Recorded) -> bytes:
        return self._answers.pop(0) if self._answers else await super().answer(request)


def redirect(to: str, *fields: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 302 Found", f"Location: {to}", *fields, "", "")).encode()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    web = Web(MailHosts(allow_networks=[ip_network("127.0.0.0/8")], allow_ports=[993]))
    yield web
    await web.close()


async def test_a_redirect_is_followed_without_what_comes_with_it(web: Web) -> None:
    """A gigabyte of it, say, or a kilobyte that unpacks to one."""
    async with Site(redirect("/there", "Content-Length: 1000000000")) as site:
        answer = await web.get(site.url, seconds=PATIENCE, limit=100)

    assert (answer.status, answer.body) == (200, b"ok")


async def test_no_more_than_three_redirects_are_followed(web: Web) -> None:
    async with Site(*[redirect("/there", "Content-Length: 0")] * 4) as site:
        answer = await web.get(site.url, seconds=PATIENCE, limit=100)

    assert answer.status == 302
    assert len(site.requests) == 4


async def test_a_cookie_of_one_mailbox_is_not_sent_for_another(web: Web) -> None:
    cookie = b"HTTP/1.1 200 OK\r\nSet-Cookie: who=joe\r\nContent-Length: 0\r\n\r\n"
    async with Site(cookie) as site:
        for refresh_token in ("joe", "ann"):
            form = {"refresh_token": refresh_token}
            await web.post(site.url, form, seconds=PATIENCE, limit=100)

    assert len(site.requests) == 2
    assert "cookie" not in site.requests[1].fields


@pytest.mark.parametrize("url", ["https://xn--a.org/", "https://xn--ls8h.org/", "https://[::1"])
async def test_what_names_no_host_is_no_url(web: Web, url: str) -> None:
    with pytest.raises(HostNotAllowed):
        await web.vet(url)
    with pytest.raises(HostNotAllowed):
        await web.get(url, seconds=PATIENCE, limit=100)


async def test_a_redirect_to_what_names_no_host_is_no_answer(web: Web) -> None:
    async with Site(redirect("https://xn--a.org/", "Content-Length: 0")) as site:
        with pytest.raises(UpstreamError):
            await web.get(site.url, seconds=PATIENCE, limit=100)
