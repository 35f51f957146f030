"""From an address alone to its mail servers: real DNS records, a real Dovecot and a real Postfix behind them.

The domain is in `.internal`, which no public name server knows: on no machine does a test reach the Internet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.asyncresolver
import httpx
import pytest
import respx

from cbemail.hosts import Security
from cbemail.sessions.dns_records import DnsRecords
from cbemail.sessions.provider import Endpoint, Setup, Source
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import API_KEY, environment, serving
from tests.integration.dnsmasq import Dnsmasq
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix
from tests.unit.sessions.mail_world import MailWorld

DOMAIN = "acme.internal"
EMAIL = f"joe@{DOMAIN}"

Records = Callable[..., Dnsmasq]


def mx(host: str, preference: int = 10) -> str:
    return f"mx-host={DOMAIN},{host},{preference}"


def srv(service: str, host: str, port: int, priority: int = 0) -> str:
    return f"srv-host={service}._tcp.{DOMAIN},{host},{port},{priority},0"


def not_offered(service: str) -> str:
    """A target of ``.`` (RFC 2782)."""
    return f"srv-host={service}._tcp.{DOMAIN}"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    """Serve these records of the domain, to a service that starts after this, too."""
    with ExitStack() as stack:

        def serve(*lines: str) -> Dnsmasq:
            running = stack.enter_context(Dnsmasq.running(tmp_path, DOMAIN, *lines))
            monkeypatch.setattr(dns.asyncresolver, "default_resolver", running.resolver())
            return running

        yield serve


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, ISPDB_URL="none")


@pytest.fixture
async def world(certificates: Certificates) -> AsyncIterator[MailWorld]:
    world = MailWorld(certificates, local=True)
    yield world
    await world.web.close()


async def find(world: MailWorld, records: Dnsmasq) -> Setup | None:
    return await world.discovery(records.resolver()).find(EMAIL, admit=world.admit)


async def get(environ: dict[str, str], email: str = EMAIL, **headers: str) -> httpx.Response:
    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        return await client.get("/api/discover", params={"email": email}, headers=headers)


# ---- over HTTP


async def test_an_address_and_a_password_are_enough_to_log_in(
    environ: dict[str, str], records: Records, dovecot: Dovecot, postfix: Postfix
) -> None:
    records(
        srv("_imaps", "localhost", dovecot.imaps_port),
        srv("_submissions", "localhost", postfix.smtps_port),
    )

    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        found = await client.get("/api/discover", params={"email": EMAIL})
        body = {"email": EMAIL, "password": dovecot.password}
        created = await client.post("/api/sessions", json=body)

    imap = {"host": "localhost", "port": dovecot.imaps_port, "security": "tls", "username": EMAIL}
    assert found.json() == {
        "provider": None,
        "imap": imap,
        "smtp": imap | {"port": postfix.smtps_port},
        "source": "srv",
        "notes": [],
    }
    assert created.status_code == 201, created.text
    assert created.json()["session"]["imap"] == imap


async def test_what_a_caller_says_goes_before_what_is_found(
    environ: dict[str, str], records: Records, dovecot: Dovecot, postfix: Postfix
) -> None:
    records(
        srv("_imaps", "localhost", 1),
        srv("_submissions", "localhost", postfix.smtps_port),
        srv("_imap", "localhost", dovecot.imap_port),
    )
    user = dovecot.fresh_user()
    named = {"host": "127.0.0.1", "port": dovecot.imaps_port}

    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        body = {"email": EMAIL, "username": user, "password": dovecot.password, "imap": named}
        created = await client.post("/api/sessions", json=body)

    assert created.status_code == 201, created.text
    session = created.json()["session"]
    assert (session["imap"]["host"], session["imap"]["username"]) == ("127.0.0.1", user)
    assert (session["smtp"]["host"], session["smtp"]["username"]) == ("localhost", user)


async def test_a_domain_at_a_known_provider_is_known_by_its_exchanger(
    environ: dict[str, str], records: Records
) -> None:
    records(mx(f"mx.{DOMAIN}", 20), mx("acme-internal.mail.protection.outlook.com"))

    answer = (await get(environ)).json()

    assert (answer["source"], answer["provider"]) == ("mx", "Microsoft 365")
    assert answer["smtp"]["host"] == "smtp.office365.com"
    assert "OAuth2 access tokens only" in answer["notes"][0]


async def test_servers_that_nobody_knows_have_to_be_named(
    environ: dict[str, str], records: Records
) -> None:
    records(mx(f"mx.{DOMAIN}"))

    response = await get(environ)

    assert response.status_code == 422
    assert response.json()["errors"] == [
        {
            "pointer": "#/email",
            "detail": f"The mail servers of {DOMAIN} are not known here: name imap.host and smtp.host.",
        }
    ]


async def test_discovery_can_be_switched_off(environ: dict[str, str], records: Records) -> None:
    records(mx("aspmx.l.google.com"))
    off = environ | {"DISCOVERY": "false"}

    unknown, known = await get(off), await get(off, "joe@gmail.com")

    assert unknown.status_code == 422
    assert known.json()["source"] == "builtin"


async def test_a_stranger_has_so_many_look_ups_and_an_api_key_is_not_counted(
    environ: dict[str, str], records: Records
) -> None:
    records()
    environ = environ | {"SESSION_RATE_LIMIT": "2/day"}
    key = {"X-API-Key": API_KEY}

    async with (
        serving(environ) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):

        async def status(domain: str, headers: dict[str, str] | None = None) -> int:
            query = {"email": f"joe@{domain}"}
            return (await client.get("/api/discover", params=query, headers=headers)).status_code

        by_heart = [await status("gmail.com") for _ in range(5)]
        looked_up = [await status(f"d{number}.internal") for number in range(3)]
        remembered = await status("d0.internal")
        with_key = await status("d2.internal", key)
        refused = await client.post(
            "/api/sessions", json={"email": "joe@d4.internal", "password": "x"}
        )

    assert by_heart == [200] * 5
    assert looked_up == [422, 422, 429]
    assert remembered == 422
    assert with_key == 422
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0


async def test_who_may_not_log_in_may_not_have_others_asked(environ: dict[str, str]) -> None:
    closed = environ | {"REQUIRE_API_KEY": "true"}
    gated = environ | {"GATE_PIN": "135790"}

    without_key, with_key = await get(closed), await get(closed, **{"X-API-Key": API_KEY})
    without_pin, with_pin = await get(gated), await get(gated, **{"X-Gate-PIN": "135790"})

    assert (without_key.status_code, with_key.status_code) == (401, 422)
    assert (without_pin.json()["code"], with_pin.status_code) == ("pin-required", 422)


async def test_a_refused_password_is_told_with_what_was_found_out_of_the_provider(
    environ: dict[str, str], records: Records, dovecot: Dovecot, postfix: Postfix
) -> None:
    records()
    servers = (
        f"<incomingServer type='imap'><hostname>localhost</hostname><port>{dovecot.imaps_port}</port>"
        "<socketType>SSL</socketType></incomingServer>"
        f"<outgoingServer type='smtp'><hostname>localhost</hostname><port>{postfix.smtps_port}</port>"
        "<socketType>SSL</socketType></outgoingServer><enable visiturl='https://acme.internal/imap'/>"
    )
    document = f"<clientConfig><emailProvider>{servers}</emailProvider></clientConfig>"

    with respx.mock as web:
        web.get(f"https://127.0.0.1/ispdb/{DOMAIN}").respond(text=document)
        web.route(scheme="http").pass_through()
        async with (
            serving(environ | {"ISPDB_URL": "https://localhost/ispdb"}) as url,
            httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
        ):
            body = {"email": EMAIL, "password": "wrong"}
            response = await client.post("/api/sessions", json=body)

    assert response.status_code == 401
    assert response.json()["detail"].endswith(
        "Access for mail programs may have to be switched on first (https://acme.internal/imap)."
    )


# ---- records


async def test_what_is_decidedly_not_offered_is_nowhere(records: Records) -> None:
    served = DnsRecords(records(not_offered("_imap"), f"mx-host={DOMAIN},.,0").resolver())

    assert await served.service("_imap", DOMAIN) is None
    assert await served.exchanger(DOMAIN) is None


async def test_tls_from_the_first_octet_goes_before_starttls(
    world: MailWorld, records: Records
) -> None:
    world.names.lead("mail.acme.internal", "127.0.0.1")
    served = records(
        srv("_imap", "mail.acme.internal", 143),
        srv("_imaps", "mail.acme.internal", 993, priority=10),
        not_offered("_submissions"),
        srv("_submission", "mail.acme.internal", 587),
    )

    setup = await find(world, served)

    assert setup is not None
    assert setup == Setup(
        imap=Endpoint("mail.acme.internal", 993, Security.TLS),
        smtp=Endpoint("mail.acme.internal", 587, Security.STARTTLS),
        source=Source.SRV,
        ttl=Dnsmasq.ttl,
    )


async def test_the_lowest_priority_goes_first(world: MailWorld, records: Records) -> None:
    for name in ("a", "b"):
        world.names.lead(f"{name}.acme.internal", "127.0.0.1")
    served = records(
        srv("_imaps", "a.acme.internal", 993, priority=20),
        srv("_imaps", "b.acme.internal", 993, priority=10),
        srv("_submissions", "a.acme.internal", 465, priority=1),
        srv("_submissions", "b.acme.internal", 465, priority=2),
    )

    setup = await find(world, served)

    assert setup is not None
    assert (setup.imap.host, setup.smtp.host) == ("b.acme.internal", "a.acme.internal")


@pytest.mark.parametrize(
    "lines",
    [
        [srv("_imaps", "mail.acme.internal", 993)],
        [srv("_imaps", "mail.acme.internal", 993), not_offered("_submissions")],
        [
            srv("_imaps", "nowhere.acme.internal", 993),
            srv("_submissions", "mail.acme.internal", 465),
        ],
        [
            srv("_imaps", "inside.acme.internal", 993),
            srv("_submissions", "mail.acme.internal", 465),
        ],
        [srv("_imaps", "10.0.0.1", 993), srv("_submissions", "mail.acme.internal", 465)],
        [f"mx-host={DOMAIN}"],
        [mx("mx.hoster.net")],
    ],
    ids=["half", "not offered", "no address", "inside", "address", "no exchanger", "unknown"],
)
async def test_records_that_lead_to_no_two_servers_are_no_answer(
    world: MailWorld, records: Records, lines: list[str]
) -> None:
    world.names.lead("mail.acme.internal", "127.0.0.1")
    world.names.lead("inside.acme.internal", "10.0.0.1")
    world.names.lead("10.0.0.1", "10.0.0.1")

    assert await find(world, records(*lines)) is None


async def test_a_record_is_believed_until_it_expires(world: MailWorld, records: Records) -> None:
    served = records(mx("aspmx.l.google.com"))
    discovery = world.discovery(served.resolver())

    for world.now in (0.0, Dnsmasq.ttl - 1.0, float(Dnsmasq.ttl)):
        await discovery.find(EMAIL, admit=world.admit)

    assert world.admitted == 2


# ---- a target elsewhere


async def test_a_target_outside_the_domain_has_to_prove_its_name(
    world: MailWorld, records: Records, certificates: Certificates
) -> None:
    """The record may be forged; the certificate, `localhost`'s, cannot."""
    context = certificates.server_context()
    async with ScriptedImap(tls=context) as imap, ScriptedSmtp(tls=context) as smtp:
        for name in ("localhost", "mail.hoster.net"):
            world.names.lead_port(name, 143, imap.port)
            world.names.lead_port(name, 587, smtp.port)
        submission = srv("_submission", "localhost", 587)
        honest = records(srv("_imap", "localhost", 143), submission)
        forged = records(srv("_imap", "mail.hoster.net", 143), submission)

        setup = await find(world, honest)
        nothing = await find(world, forged)

    assert setup is not None
    assert (setup.imap.host, setup.imap.security) == ("localhost", Security.STARTTLS)
    assert nothing is None
    assert imap.count("LOGIN") == imap.count("AUTHENTICATE") == smtp.count("AUTH") == 0


async def test_a_domain_that_only_ends_alike_is_another(world: MailWorld, records: Records) -> None:
    world.names.lead_port(f"evil{DOMAIN}", 993, 1)
    world.names.lead_port(f"evil{DOMAIN}", 465, 1)
    served = records(srv("_imaps", f"evil{DOMAIN}", 993), srv("_submissions", f"evil{DOMAIN}", 465))

    assert await find(world, served) is None
