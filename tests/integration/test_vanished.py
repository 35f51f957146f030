"""Connections that are dead, and nobody was told: a firewall has forgotten them, or the server has vanished."""

from __future__ import annotations

from tests.integration.forgetful_network import Outcome, ask_across_it


def test_what_is_asked_on_a_forgotten_connection_is_asked_on_a_new_one_and_on_no_other_old_one() -> (
    None
):
    outcome = ask_across_it("forgotten")

    assert outcome == Outcome(asked=1, connections=3 + 1, kept=1)


def test_a_server_that_takes_longer_than_that_is_waited_for_and_asked_once() -> None:
    outcome = ask_across_it("slow")

    assert outcome == Outcome(asked=2, connections=2 + 1, kept=2)
