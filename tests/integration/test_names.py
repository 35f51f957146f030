"""Mail hosts whose names lead nowhere, as the system's resolver tells it: refused, or in trouble, or silent."""

from __future__ import annotations

from tests.integration.private_network import FAILURE, SILENCE, Answers
from tests.integration.test_ssrf import login, outcomes

NAMES: dict[str, Answers] = {
    "without-address.example": [[]],
    "in-trouble.example": [FAILURE],
    "silent.example": [SILENCE],
}


def test_a_login_at_a_name_that_leads_nowhere_is_told_why_and_contacts_nobody() -> None:
    names = ["unknown.example", *NAMES]

    answers = outcomes([login(imap=name) for name in names], NAMES)

    told = {name: (each.status, each.code) for name, each in zip(names, answers, strict=True)}
    assert told == {
        "unknown.example": (503, "upstream-unavailable"),
        "without-address.example": (503, "upstream-unavailable"),
        "in-trouble.example": (503, "upstream-unavailable"),
        "silent.example": (504, "upstream-timeout"),
    }
    assert {each.contacted for each in answers} == {()}
