"""No login leads the service to a host inside: counted in SYNs, in a network where every address would take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.conftest import API_KEY, SECRET_KEY
from tests.integration.private_network import Answers, Outcome, log_in_from_inside

PUBLIC, PUBLIC_6 = "9.9.9.9", "2620:fe::fe"
REFUSED = (403, "host-not-allowed")
UNKNOWN = (422, "invalid-request")

INSIDE = {
    "loopback": ["127.0.0.1", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0", "::1", "[::]"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%lo"],
    "metadata": ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192"],
    "metadata in IPv6": ["fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255"],
    "IPv4 mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "192.88.99.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1"],
    "Teredo": ["2001:0:5ef5:79fb::1"],
    "wide digits": ["\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"],
    "no one host": ["224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1"],
}
NAMES: dict[str, Answers] = {
    "loopback.example": [["127.0.0.1"]],
    "loopback6.example": [["::1"]],
    "metadata.example": [["169.254.169.254"]],
    "mapped.example": [["::ffff:10.0.0.1"]],
    "mixed.example": [[PUBLIC, "10.0.0.1"]],
    "mixed-families.example": [[PUBLIC, "fd00::1"]],
    "mixed-families-4.example": [["127.0.0.1", PUBLIC_6]],
}
REBINDING: dict[str, Answers] = {
    "rebinding.example": [[PUBLIC], ["127.0.0.1"]],
    "rebinding-later.example": [[PUBLIC], [PUBLIC], ["169.254.169.254"]],
}
TIMES = 20

# Where what a domain says of its servers may lead.
INWARD = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "168.63.129.16", "fd00:ec2::254", "::1"]


def services(domain: str, host: str) -> dict[str, Answers]:
    """The SRV records of a domain."""
    ports = {"_imaps": 993, "_imap": 143, "_submissions": 465, "_submission": 587}
    return {f"{name}._tcp.{domain}": [[f"SRV 0 0 {port} {host}."]] for name, port in ports.items()}


def said_of_a_domain(domain: str, address: str) -> dict[str, dict[str, Answers]]:
    """All that leads to its servers, one at a time: MX, SRV, both places of the document that names them, guesses."""
    kinds = ("autoconfig.", "", "imap.", "mail.", "smtp.")
    host, stranger = f"in.{domain}", f"{domain}.inside.net"
    return {
        "MX": {domain: [[f"MX 10 {stranger}."]], stranger: [[address]]},
        "SRV": services(domain, host) | {host: [[address]]},
        "SRV elsewhere": services(domain, stranger) | {stranger: [[address]]},
        **{f"{kind}domain": {f"{kind}{domain}": [[address]]} for kind in kinds},
        "mixed": {f"{kind}{domain}": [[PUBLIC, address]] for kind in kinds},
    }


def login(imap: str = PUBLIC, smtp: str = PUBLIC) -> dict[str, Any]:
    return {
        "email": "joe@example.org",
        "password": "secret",
        "imap": {"host": imap, "port": 993, "security": "tls"},
        "smtp": {"host": smtp, "port": 465, "security": "tls"},
    }


def login_by_token(host: str) -> dict[str, Any]:
    """A login that begins at a token endpoint on this host; the mail servers are public ones."""
    spelt = f"[{host}]" if ":" in host and not host.startswith("[") else host
    oauth2 = {"refresh_token": "r", "client_id": "c", "token_url": f"https://{spelt}/token"}
    body = login() | {"oauth2": oauth2}
    del body["password"]
    return body


def by_address(domain: str) -> dict[str, Any]:
    """The servers are to be found."""
    return {"email": f"joe@{domain}", "password": "secret"}


def outcomes(
    logins: list[dict[str, Any]], names: dict[str, Answers] | None = None
) -> list[Outcome]:
    environ = {
        "SECRET_KEY": SECRET_KEY,
        "API_KEYS": API_KEY,
        "SESSION_RATE_LIMIT": "1000000/second",
    }
    return log_in_from_inside(environ, NAMES | REBINDING if names is None else names, logins)


@pytest.mark.parametrize("server", ["imap", "smtp"])
def test_no_host_inside_is_contacted_however_it_is_named(server: str) -> None:
    hosts = [*(host for spelt in INSIDE.values() for host in spelt), "localhost", *NAMES]

    answers = outcomes([login(**{server: host}) for host in hosts])

    told = {host: (each.status, each.code) for host, each in zip(hosts, answers, strict=True)}
    contacted = {host: each.contacted for host, each in zip(hosts, answers, strict=True)}
    assert contacted == dict.fromkeys(hosts, ())
    assert told == dict.fromkeys(hosts, REFUSED)


def test_no_token_endpoint_inside_is_contacted_however_it_is_named() -> None:
    hosts = [*(host for spelt in INSIDE.values() for host in spelt), "localhost", *NAMES]

    answers = outcomes([login_by_token(host) for host in hosts])

    told = {host: (each.status, each.code) for host, each in zip(hosts, answers, strict=True)}
    contacted = {host: each.contacted for host, each in zip(hosts, answers, strict=True)}
    assert contacted == dict.fromkeys(hosts, ())
    assert told == dict.fromkeys(hosts, REFUSED)


@pytest.mark.parametrize("way", [login, login_by_token])
def test_a_name_that_changes_its_mind_leads_to_the_address_that_was_judged(
    way: Callable[[str], dict[str, Any]],
) -> None:
    answers = outcomes([way(name) for name in REBINDING for _ in range(TIMES)])

    assert {to for each in answers for to in each.contacted} == {PUBLIC}
    assert {each.code for each in answers} == {"host-not-allowed", "upstream-unavailable"}


def test_no_host_inside_is_contacted_whatever_a_domain_says_of_its_servers() -> None:
    names: dict[str, Answers] = {}
    domains: dict[str, str] = {}
    for number, address in enumerate(INWARD):
        for said in said_of_a_domain("", address):
            domain = f"d{len(domains)}-{number}.net"
            domains[domain] = f"{said} {address}"
            names |= said_of_a_domain(domain, address)[said]

    answers = outcomes([by_address(domain) for domain in domains], names)

    told = dict(zip(domains.values(), answers, strict=True))
    assert {said: each.contacted for said, each in told.items()} == dict.fromkeys(told, ())
    assert {(each.status, each.code) for each in told.values()} == {UNKNOWN}


def test_public_servers_that_a_domain_names_are_asked() -> None:
    """Or the test above would see no SYN whatever the service did."""
    names: dict[str, Answers] = {
        "acme.net": [["9.9.9.10"]],
        "autoconfig.acme.net": [["9.9.9.11"]],
        "mail.public.net": [[PUBLIC]],
        "mail.other.net": [["9.9.9.12"]],
    }
    elsewhere, own = (
        services("acme.net", "mail.public.net"),
        services("other.net", "mail.other.net"),
    )

    asked, logged_in = outcomes(
        [by_address("acme.net"), by_address("other.net")], names | elsewhere | own
    )

    assert {"9.9.9.10", "9.9.9.11", PUBLIC} <= set(asked.contacted)
    assert (asked.status, asked.code) == UNKNOWN, "nobody proved to be there"
    assert logged_in.contacted == ("9.9.9.12",)
    assert logged_in.code == "upstream-unavailable"


def test_a_public_host_is_contacted() -> None:
    """Or the tests above would see no SYN whatever the service did."""
    [by_ipv4, by_ipv6, by_token] = outcomes(
        [login(), login(PUBLIC_6, PUBLIC_6), login_by_token(PUBLIC)]
    )

    assert by_ipv4.contacted == by_token.contacted == (PUBLIC,)
    assert by_ipv6.contacted == (PUBLIC_6,)
    assert {by_ipv4.code, by_ipv6.code, by_token.code} == {"upstream-unavailable"}
