"""No login leads the service to a host inside: counted in SYNs, in a network where every address would take one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import API_KEY, SECRET_KEY
from tests.integration.private_network import Answers, Outcome, log_in_from_inside

PUBLIC, PUBLIC_6 = "9.9.9.9", "2620:fe::fe"
REFUSED = (403, "host-not-allowed")

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


def login(imap: str = PUBLIC, smtp: str = PUBLIC) -> dict[str, Any]:
    return {
        "email": "joe@example.org",
        "password": "secret",
        "imap": {"host": imap, "port": 993, "security": "tls"},
        "smtp": {"host": smtp, "port": 465, "security": "tls"},
    }


def outcomes(logins: list[dict[str, Any]]) -> list[Outcome]:
    environ = {
        "SECRET_KEY": SECRET_KEY,
        "API_KEYS": API_KEY,
        "SESSION_RATE_LIMIT": "1000000/second",
    }
    return log_in_from_inside(environ, NAMES | REBINDING, logins)


@pytest.mark.parametrize("server", ["imap", "smtp"])
def test_no_host_inside_is_contacted_however_it_is_named(server: str) -> None:
    hosts = [*(host for spelt in INSIDE.values() for host in spelt), "localhost", *NAMES]

    answers = outcomes([login(**{server: host}) for host in hosts])

    told = {host: (each.status, each.code) for host, each in zip(hosts, answers, strict=True)}
    contacted = {host: each.contacted for host, each in zip(hosts, answers, strict=True)}
    assert contacted == dict.fromkeys(hosts, ())
    assert told == dict.fromkeys(hosts, REFUSED)


def test_a_name_that_changes_its_mind_leads_to_the_address_that_was_judged() -> None:
    answers = outcomes([login(imap=name) for name in REBINDING for _ in range(TIMES)])

    assert {to for each in answers for to in each.contacted} == {PUBLIC}
    assert {each.code for each in answers} == {"host-not-allowed", "upstream-unavailable"}


def test_a_public_host_is_contacted() -> None:
    """Or the tests above would see no SYN whatever the service did."""
    [by_ipv4, by_ipv6] = outcomes([login(), login(PUBLIC_6, PUBLIC_6)])

    assert by_ipv4.contacted == (PUBLIC,)
    assert by_ipv6.contacted == (PUBLIC_6,)
    assert by_ipv4.code == by_ipv6.code == "upstream-unavailable"
