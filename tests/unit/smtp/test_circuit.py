"""When a host is left alone, and for how long."""

import pytest

from cbemail.errors import (
    CbemailError,
    CredentialsRejected,
    CredentialsStale,
    HostNotAllowed,
    SessionNotFound,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.smtp.circuit import DEFAULT_CIRCUIT, Circuit, CircuitPolicy, was_reached

NOW = 1000.0
POLICY = CircuitPolicy(failures=3, shortest=30, longest=100)


def opened() -> Circuit:
    circuit = Circuit(POLICY)
    for _ in range(POLICY.failures):
        circuit.failed(NOW, probe=circuit.let_through())
    return circuit


def test_the_fifth_failure_in_a_row_opens_it_for_half_a_minute() -> None:
    circuit = Circuit(DEFAULT_CIRCUIT)
    waits = []

    for _ in range(5):
        circuit.failed(NOW, probe=circuit.let_through())
        waits.append(circuit.retry_in(NOW))

    assert waits == [None, None, None, None, 30.0]


def test_a_success_breaks_the_row() -> None:
    circuit = Circuit(POLICY)

    for failed in (True, True, False, True, True):
        if failed:
            circuit.failed(NOW, probe=False)
        else:
            circuit.succeeded()

    assert not circuit.is_open


def test_when_its_time_is_over_one_probe_is_let_through() -> None:
    circuit = opened()

    assert circuit.retry_in(NOW + 29) == 1
    assert circuit.retry_in(NOW + 30) is None
    assert circuit.let_through()
    assert circuit.retry_in(NOW + 30) is not None
    assert circuit.retry_in(NOW + 3000) is not None, "the probe is still under way"


def test_each_probe_that_fails_doubles_the_time_up_to_the_longest() -> None:
    circuit, now, waits = opened(), NOW, []

    for _ in range(3):
        now += circuit.retry_in(now) or 0
        circuit.failed(now, probe=circuit.let_through())
        waits.append(circuit.retry_in(now))

    assert waits == [60, 100, 100]


def test_a_probe_that_succeeds_closes_it_and_the_next_time_begins_small() -> None:
    circuit = opened()
    circuit.let_through()

    circuit.succeeded()

    assert circuit.retry_in(NOW) is None
    for _ in range(3):
        circuit.failed(NOW, probe=circuit.let_through())
    assert circuit.retry_in(NOW) == 30


def test_a_probe_that_is_withdrawn_leaves_its_place_to_the_next() -> None:
    circuit = opened()
    probe = circuit.let_through()

    circuit.withdrawn(probe=probe)

    assert circuit.retry_in(NOW + 30) is None


def test_those_let_through_before_it_opened_prolong_nothing() -> None:
    circuit = opened()

    for _ in range(20):
        circuit.failed(NOW + 10, probe=False)

    assert circuit.retry_in(NOW + 10) == 20


def test_one_let_through_before_it_opened_does_not_withdraw_the_probe() -> None:
    circuit = opened()
    circuit.let_through()

    circuit.withdrawn(probe=False)
    circuit.failed(NOW + 30, probe=False)

    assert circuit.retry_in(NOW + 30) is not None


def test_it_can_be_forgotten_when_nothing_it_knows_matters_any_more() -> None:
    closed, failed_once, open_one = Circuit(POLICY), Circuit(POLICY), opened()
    failed_once.failed(NOW, probe=False)

    assert closed.is_forgettable(NOW)
    assert not failed_once.is_forgettable(NOW + 100)
    assert failed_once.is_forgettable(NOW + 101)
    assert not open_one.is_forgettable(NOW + 130)
    assert open_one.is_forgettable(NOW + 131)


@pytest.mark.parametrize(
    ("error", "reached"),
    [
        (UpstreamUnavailable("No."), False),
        (UpstreamTimeout("No.", command="connect"), False),
        (UpstreamError("No.", command="STARTTLS"), False),
        (UpstreamUnavailable("No.", command="AUTH"), True),
        (CredentialsRejected("No."), True),
        (CredentialsStale("No."), None),
        (HostNotAllowed("No."), None),
        (SessionNotFound("No."), None),
    ],
)
def test_only_what_goes_wrong_before_the_login_is_held_against_the_host(
    error: CbemailError, *, reached: bool | None
) -> None:
    assert was_reached(error) is reached
