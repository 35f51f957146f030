"""Who is asked for the servers of an address, whose word counts, and for how long; over HTTP as it may go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import httpx
import pytest
import respx

from cbemail.errors import Overloaded, RateLimited
from cbemail.sessions.autoconfig import LARGEST
from cbemail.sessions.discovery import AT_ONCE, FAILURE_KEPT, LONGEST, SHORTEST, Discovery
from cbemail.sessions.provider import Setup, Source
from tests.unit.sessions.mail_world import PUBLIC, MailWorld

DOMAIN = "acme.org"
EMAIL = f"joe@{DOMAIN}"
ISPDB_HOST, OWN_HOST = "ispdb.net", f"autoconfig.{DOMAIN}"


def document(host: str = "in.acme.org", imap: int = 993) -> bytes:
    server = (
        "<{0} type='{1}'><hostname>{2}</hostname><port>{3}</port><socketType>SSL</socketType>"
        "<username>%EMAILADDRESS%</username></{0}>"
    )
    servers = server.format("incomingServer", "imap", host, imap) + server.format(
        "outgoingServer", "smtp", host, 465
    )
    return (
        f"<clientConfig><emailProvider id='a'><displayName>Acme</displayName>{servers}"
        "</emailProvider></clientConfig>"
    ).encode()


@pytest.fixture
async def world() -> AsyncIterator[MailWorld]:
    world = MailWorld()
    world.names.lead("in.acme.org")
    yield world
    await world.web.close()


@pytest.fixture
async def web(world: MailWorld) -> AsyncIterator[respx.MockRouter]:
    """What the hosts answer; one that is not told of refuses the connection."""
    with respx.mock(assert_all_called=False) as router:
        for host in (ISPDB_HOST, OWN_HOST, DOMAIN):
            world.names.lead_web(host)
        yield router


Respond = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Serve(Protocol):
    def __call__(self, host: str, respond: Respond | None = None, **answer: Any) -> respx.Route: ...


@pytest.fixture
def serve(web: respx.MockRouter) -> Serve:
    """Let a host answer any request so. The request goes to an address that was vetted, with the name in Host."""

    def serve(host: str, respond: Respond | None = None, **answer: Any) -> respx.Route:
        route = web.route(host=PUBLIC, headers={"host": host})
        if respond is not None:
            return route.mock(side_effect=respond)
        return route.mock(return_value=httpx.Response(**({"status_code": 200} | answer)))

    return serve


async def find(world: MailWorld, discovery: Discovery, email: str = EMAIL) -> Setup | None:
    return await discovery.find(email, admit=world.admit)


async def never(_: httpx.Request) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def silent(web: respx.MockRouter) -> None:
    """Whoever is not told of refuses the connection."""
    web.route().mock(side_effect=httpx.ConnectError)


# ---- whom to ask


async def test_a_known_provider_is_known_by_heart(world: MailWorld) -> None:
    setup = await find(world, world.discovery(), "joe@gmail.com")

    assert setup is not None
    assert (setup.source, setup.provider) == (Source.BUILTIN, "Gmail")
    assert world.admitted == 0
    assert world.names.asked == []


@pytest.mark.parametrize(
    "domain",
    [
        *("mail.example", "sub.test", "x.invalid", "printer.local", "localhost", "x.localhost"),
        *("example.org", "sub.example.com", "intranet", "127.0.0.1", "[::1]", "2130706433"),
        *("a b.org", "..", "", "xn--\N{SNOWMAN}.org", "10.0.0.1.in-addr.arpa", "x.onion"),
    ],
)
async def test_nobody_is_asked_for_a_name_that_leads_nowhere(world: MailWorld, domain: str) -> None:
    assert await find(world, world.discovery(), f"joe@{domain}") is None

    assert world.names.asked == []
    assert world.admitted == 0


async def test_without_sources_nobody_is_asked(world: MailWorld) -> None:
    assert await find(world, Discovery(None)) is None
    assert await find(world, Discovery(None), "joe@gmail.com") is not None
    assert world.names.asked == []


async def test_a_domain_of_any_script_is_asked_for_in_a_labels(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    ispdb = serve(ISPDB_HOST, content=document())
    silent(web)

    setup = await find(world, world.discovery(), "joe@B\xdcCHER.org")

    assert setup is not None
    assert ispdb.calls.last.request.url.path == "/v1.1/xn--bcher-kva.org"


# ---- whose word counts


@pytest.mark.parametrize("host", [ISPDB_HOST, OWN_HOST, DOMAIN])
async def test_a_document_is_found_wherever_it_is(
    world: MailWorld, serve: Serve, web: respx.MockRouter, host: str
) -> None:
    serve(host, content=document())
    silent(web)

    setup = await find(world, world.discovery())

    assert setup is not None
    assert (setup.source, setup.provider) == (Source.AUTOCONFIG, "Acme")
    assert (setup.imap.host, setup.imap.port) == ("in.acme.org", 993)


async def test_the_first_in_the_row_is_right_though_another_is_quicker(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    own_asked = asyncio.Event()
    world.names.lead("slow.acme.org")

    async def after_the_other(_: httpx.Request) -> httpx.Response:
        await own_asked.wait()
        return httpx.Response(200, content=document("slow.acme.org"))

    async def at_once(_: httpx.Request) -> httpx.Response:
        own_asked.set()
        return httpx.Response(200, content=document("in.acme.org"))

    serve(ISPDB_HOST, after_the_other)
    serve(OWN_HOST, at_once)
    silent(web)

    setup = await find(world, world.discovery())

    assert setup is not None
    assert setup.imap.host == "slow.acme.org"


async def test_the_address_is_told_to_nobody(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    routes = [serve(host, status_code=404) for host in (ISPDB_HOST, OWN_HOST, DOMAIN)]
    silent(web)

    await find(world, world.discovery())

    asked = [str(route.calls.last.request.url) for route in routes]
    assert len(asked) == 3
    assert not [url for url in asked if "joe" in url]


async def test_servers_of_a_known_provider_come_with_its_notes(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    world.names.lead("imap.fastmail.com")
    serve(ISPDB_HOST, content=document("imap.fastmail.com"))
    silent(web)

    setup = await find(world, world.discovery())

    assert setup is not None
    assert setup.provider == "Fastmail"
    assert "app password" in setup.notes[0]


# ---- answers that are none


@pytest.mark.parametrize(
    "answer",
    [
        {"status_code": 404, "content": document()},
        {"status_code": 429, "headers": {"Retry-After": "60"}},
        {"status_code": 500, "content": document()},
        {"content": b"<!DOCTYPE html><html><body>Welcome</body></html>"},
        {"content": document()[:-30]},
        {"content": document() + b" " * LARGEST},
        {"content": document("inside.acme.org")},
        {"content": document("nowhere.acme.org")},
        {"content": document("in.acme.org", 22)},
        {"status_code": 302, "headers": {"Location": "https://inside.acme.org/"}},
        {"status_code": 302, "headers": {"Location": "http://in.acme.org/"}},
        {"status_code": 302, "headers": {"Location": "https://169.254.169.254/"}},
        {"status_code": 302, "headers": {"Location": f"https://{OWN_HOST}/again"}},
        {"status_code": 302, "headers": {"Location": "https://[broken"}},
    ],
    ids=[
        *("missing", "too many", "broken", "html", "truncated", "huge", "host inside"),
        *("host nowhere", "port of no mail", "redirect inside", "redirect to plain"),
        *("redirect to metadata", "redirect for ever", "redirect to nothing"),
    ],
)
async def test_a_bad_answer_is_none(
    world: MailWorld, serve: Serve, web: respx.MockRouter, answer: dict[str, Any]
) -> None:
    world.names.lead("inside.acme.org", "10.0.0.1")
    own = serve(OWN_HOST, **answer)
    inside = web.route(host="10.0.0.1")
    metadata = web.route(host="169.254.169.254")
    silent(web)

    assert await find(world, world.discovery()) is None

    assert own.called
    assert not inside.called
    assert not metadata.called


async def test_a_domain_that_leads_inside_is_not_asked(
    world: MailWorld, web: respx.MockRouter
) -> None:
    for name in (OWN_HOST, DOMAIN, f"imap.{DOMAIN}", f"smtp.{DOMAIN}", f"mail.{DOMAIN}"):
        world.names.lead(name, "127.0.0.1")
    everything = web.route(host="127.0.0.1")
    silent(web)

    assert await find(world, world.discovery()) is None

    assert not everything.called


async def test_a_redirect_to_another_public_host_is_followed(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    world.names.lead_web("www.hoster.net")
    serve(OWN_HOST, status_code=301, headers={"Location": "https://www.hoster.net/config.xml"})
    serve("www.hoster.net", content=document())
    silent(web)

    setup = await find(world, world.discovery())

    assert setup is not None
    assert setup.imap.host == "in.acme.org"


async def test_one_that_never_answers_keeps_no_answer_from_the_others(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    serve(ISPDB_HOST, never)
    serve(OWN_HOST, content=document())
    silent(web)

    setup = await find(world, world.discovery(look_up_seconds=0.2))

    assert setup is not None
    assert setup.imap.host == "in.acme.org"


async def test_when_nobody_ever_answers_the_end_is_that_nobody_knows(
    world: MailWorld, web: respx.MockRouter
) -> None:
    web.route().mock(side_effect=never)

    assert await find(world, world.discovery(look_up_seconds=0.05, guess_seconds=0.05)) is None


# ---- what is remembered


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ({}, 3600),
        ({"Cache-Control": "public, max-age=7200"}, 7200),
        ({"Cache-Control": "max-age=1"}, SHORTEST),
        ({"Cache-Control": "max-age=999999999"}, LONGEST),
    ],
)
async def test_an_answer_is_remembered_as_long_as_it_says_within_bounds(
    world: MailWorld,
    serve: Serve,
    web: respx.MockRouter,
    cache_control: dict[str, str],
    seconds: int,
) -> None:
    own = serve(OWN_HOST, content=document(), headers=cache_control)
    silent(web)
    discovery = world.discovery()

    await find(world, discovery)
    world.now = seconds - 1
    await find(world, discovery, f"ann@{DOMAIN}")
    before = own.call_count
    world.now = seconds
    await find(world, discovery)

    assert (before, own.call_count) == (1, 2)
    assert world.admitted == 2


async def test_that_nobody_knows_is_remembered_for_a_minute(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    own = serve(OWN_HOST, status_code=500)
    silent(web)
    discovery = world.discovery()

    await find(world, discovery)
    world.now = FAILURE_KEPT - 1
    await find(world, discovery)
    before = own.call_count
    world.now = FAILURE_KEPT
    await find(world, discovery)

    assert (before, own.call_count) == (1, 2)


async def test_the_domain_unused_longest_is_forgotten_first(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    serve(ISPDB_HOST, content=document())
    silent(web)
    discovery = world.discovery(domains_kept=2)

    for domain in ("one.org", "two.org", "one.org", "three.org", "one.org", "two.org"):
        await find(world, discovery, f"joe@{domain}")

    assert world.admitted == 4, "one, two, three, and two again"


async def test_identical_questions_at_once_are_asked_once_and_hanging_up_spoils_nothing(
    world: MailWorld, serve: Serve, web: respx.MockRouter
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def on_demand(_: httpx.Request) -> httpx.Response:
        asked.set()
        await answer.wait()
        return httpx.Response(200, content=document())

    own = serve(OWN_HOST, on_demand)
    silent(web)
    discovery = world.discovery()

    first = asyncio.create_task(find(world, discovery))
    others = [asyncio.create_task(find(world, discovery, f"u{n}@{DOMAIN}")) for n in range(3)]
    await asked.wait()
    first.cancel()
    answer.set()

    setups = await asyncio.gather(*others)
    assert {setup.imap.host for setup in setups if setup} == {"in.acme.org"}
    assert own.call_count == world.admitted == 1
    assert first.cancelled()


async def test_who_may_not_have_others_asked_is_told_and_nobody_is_asked(
    world: MailWorld, web: respx.MockRouter
) -> None:
    def refuse() -> None:
        raise RateLimited("No.", retry_after=1)

    with pytest.raises(RateLimited):
        await world.discovery().find(EMAIL, admit=refuse)

    assert world.names.asked == []


async def test_too_many_look_ups_at_once_are_refused_and_closing_ends_them(
    world: MailWorld, web: respx.MockRouter
) -> None:
    web.route().mock(side_effect=never)
    discovery = world.discovery()
    waiting = [asyncio.create_task(find(world, discovery, f"joe@d{n}.org")) for n in range(AT_ONCE)]
    await asyncio.wait(waiting, timeout=0)

    with pytest.raises(Overloaded):
        await find(world, discovery, "joe@one-more.org")

    await discovery.close()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in ended} == {asyncio.CancelledError}
