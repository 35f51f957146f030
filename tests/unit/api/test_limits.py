"""What is counted against a limit, for whom, and when it may come again. Time stands still unless a test moves it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from cbemail.api.limits import (
    FAILED_LOGINS_OF_A_HOST,
    WAITING_OF_A_SESSION,
    Limits,
    LoginAttempt,
    Quota,
    counted_as,
)
from cbemail.errors import HostNotAllowed, Overloaded, RateLimited
from cbemail.hosts import MailServer, Security
from cbemail.ids import SessionId
from cbemail.settings import Rate

ANN, BOB = SessionId("ses_ann"), SessionId("ses_bob")


class Clock:
    """Monotonic nanoseconds, told by the test in seconds."""

    def __init__(self) -> None:
        self._now = 7_000_000_000

    def __call__(self) -> int:
        return self._now

    def forward(self, seconds: float) -> None:
        self._now += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---- one quota


def test_all_of_a_quota_may_be_used_at_once_and_nothing_more(clock: Clock) -> None:
    quota = Quota("requests", Rate(10, 60), clock=clock)

    waits = [quota.take("ann") for _ in range(12)]

    assert waits == [0] * 10 + [6, 6]


def test_what_was_used_comes_back_evenly(clock: Clock) -> None:
    quota = Quota("requests", Rate(10, 60), clock=clock)
    for _ in range(10):
        quota.take("ann")

    clock.forward(5.9)
    early = quota.take("ann")
    clock.forward(0.1)
    in_time = quota.take("ann")

    assert (early, in_time) == (1, 0)


def test_whoever_waits_as_long_as_told_is_let_in(clock: Clock) -> None:
    quota = Quota("requests", Rate(7, 60), clock=clock)
    while not (wait := quota.take("ann", 2)):
        pass

    clock.forward(wait)

    assert quota.take("ann", 2) == 0


def test_a_refusal_costs_nothing(clock: Clock) -> None:
    quota = Quota("requests", Rate(1, 60), clock=clock)
    quota.take("ann")

    waits = [quota.take("ann") for _ in range(100)]

    assert set(waits) == {60}


def test_nobody_uses_up_what_is_anothers(clock: Clock) -> None:
    quota = Quota("requests", Rate(1, 60), clock=clock)
    quota.take("ann")

    assert quota.take("bob") == 0


def test_what_is_given_back_may_be_used_again(clock: Clock) -> None:
    quota = Quota("requests", Rate(2, 60), clock=clock)
    quota.take("ann", 2)

    quota.give_back("ann")

    assert [quota.take("ann"), quota.take("ann")] == [0, 30]


def test_however_many_keys_come_only_those_used_last_are_remembered(clock: Clock) -> None:
    quota = Quota("requests", Rate(1, 60), clock=clock, keys=100)
    for stranger in range(10_000):
        quota.take(stranger)

    assert [stranger for stranger in range(9_900, 10_000) if not quota.take(stranger)] == []
    assert quota.take(9_899) == 0


def test_whoever_goes_on_asking_is_not_forgotten_for_strangers(clock: Clock) -> None:
    quota = Quota("requests", Rate(200, 3600), clock=clock, keys=10)
    for stranger in range(200):
        quota.take("ann")
        quota.take(stranger)

    assert quota.take("ann") == 18


def test_nothing_is_saved_up_beyond_the_quota(clock: Clock) -> None:
    quota = Quota("requests", Rate(2, 60), clock=clock)
    quota.take("ann")
    clock.forward(100_000)

    assert [quota.take("ann") for _ in range(3)] == [0, 0, 30]


@given(
    st.integers(1, 50),
    st.sampled_from([1, 60, 3600]),
    st.lists(st.floats(0, 100), max_size=100),
)
def test_in_no_stretch_of_time_is_more_let_in_than_two_quotas(
    times: int, seconds: int, pauses: list[float]
) -> None:
    """What was saved up, and what came back meanwhile."""
    clock = Clock()
    quota = Quota("requests", Rate(times, seconds), clock=clock)
    let_in: list[int] = []

    for pause in pauses:
        clock.forward(pause)
        if not quota.take("ann"):
            let_in.append(clock())

    for moment in let_in:
        within = [other for other in let_in if moment <= other <= moment + seconds * 10**9]
        assert len(within) <= 2 * times


def test_the_header_fields_say_what_is_left_and_when_it_is_whole_again(clock: Clock) -> None:
    quota = Quota("requests", Rate(10, 60), clock=clock)
    for _ in range(3):
        quota.take("ann")
    clock.forward(0.5)

    assert dict(quota.fields("ann")) == {
        b"ratelimit-policy": b'"requests";q=10;w=60',
        b"ratelimit": b'"requests";r=7;t=18',
    }
    assert dict(quota.fields("bob"))[b"ratelimit"] == b'"requests";r=10;t=0'


def test_of_a_quota_that_is_overdrawn_nothing_is_left(clock: Clock) -> None:
    quota = Quota("logins", Rate(1, 60), clock=clock)
    quota.take("ann", 2)

    assert dict(quota.fields("ann"))[b"ratelimit"] == b'"logins";r=0;t=120'


# ---- requests of a session


@pytest.fixture
def limits(clock: Clock) -> Limits:
    return Limits(logins=Rate(10, 60), requests=Rate(1200, 60), clock=clock)


def test_a_session_that_sends_too_many_requests_is_told_when_to_come_back(limits: Limits) -> None:
    for _ in range(1200):
        limits.admit(ANN, {})
        limits.leave(ANN)

    with pytest.raises(RateLimited) as refusal:
        limits.admit(ANN, {})

    assert refusal.value.retry_after == 1
    limits.admit(BOB, {})


def test_a_session_has_only_so_many_requests_under_way(limits: Limits) -> None:
    for _ in range(WAITING_OF_A_SESSION):
        limits.admit(ANN, {})

    with pytest.raises(Overloaded) as refusal:
        limits.admit(ANN, {})
    limits.admit(BOB, {})
    limits.leave(ANN)

    assert refusal.value.retry_after == 1
    limits.admit(ANN, {})


def test_nothing_is_kept_of_a_session_that_asks_no_more(limits: Limits) -> None:
    limits.admit(ANN, {})
    limits.leave(ANN)

    assert limits._waiting == {}


# ---- look-ups


def test_one_address_has_so_many_domains_looked_up(limits: Limits, clock: Clock) -> None:
    for _ in range(10):
        limits.admit_look_up(client("192.0.2.1"))

    with pytest.raises(RateLimited) as refusal:
        limits.admit_look_up(client("192.0.2.1"))

    limits.admit_look_up(client("192.0.2.2"))
    log_in(limits, address="192.0.2.1")
    assert refusal.value.retry_after is not None
    clock.forward(refusal.value.retry_after)
    limits.admit_look_up(client("192.0.2.1"))


# ---- logins


def server(host: str = "imap.example.org", username: str = "ann") -> MailServer:
    return MailServer(host, 993, Security.TLS, username)


def client(address: str) -> Scope:
    return {"client": (address, 40_000)}


def log_in(
    limits: Limits, *servers: MailServer, address: str | None = None, good: bool = False
) -> LoginAttempt:
    attempt = limits.begin_login(
        *(servers or (server(),)), stranger=client(address) if address else None
    )
    if good:
        attempt.succeed()
    return attempt


def logins_until_refused(limits: Limits, *logins: tuple[MailServer, str | None]) -> int:
    """How many of these logins, all of which fail, are let through."""
    for number, (at, address) in enumerate(logins):
        try:
            log_in(limits, at, address=address)
        except RateLimited:
            return number
    return len(logins)


def test_one_address_makes_so_many_good_logins(limits: Limits) -> None:
    for number in range(10):
        log_in(limits, server(username=f"u{number}"), address="192.0.2.1", good=True)

    with pytest.raises(RateLimited):
        log_in(limits, server(username="u11"), address="192.0.2.1")

    log_in(limits, server(username="u11"), address="192.0.2.2")


def test_one_address_tries_half_as_many_bad_ones(limits: Limits) -> None:
    many = [(server(username=f"u{number}"), "192.0.2.1") for number in range(1000)]

    assert logins_until_refused(limits, *many) == 5


def test_many_addresses_try_one_mailbox_no_oftener_than_one(limits: Limits) -> None:
    many = [(server(), f"192.0.2.{number}") for number in range(250)]

    assert logins_until_refused(limits, *many) == 5


def test_a_mail_server_sees_a_bounded_number_of_failures_whoever_they_come_from(
    limits: Limits,
) -> None:
    many = [(server(username=f"u{n}"), f"192.0.{n // 250}.{n % 250}") for n in range(1000)]

    assert logins_until_refused(limits, *many) == 10 * FAILED_LOGINS_OF_A_HOST


def test_a_mail_server_is_open_to_any_number_of_good_logins(limits: Limits) -> None:
    for number in range(1000):
        log_in(limits, server(username=f"u{number}"), good=True)


def test_tries_made_at_once_count_before_they_have_failed(limits: Limits) -> None:
    attempts = [log_in(limits, address="192.0.2.1") for _ in range(5)]

    with pytest.raises(RateLimited):
        log_in(limits, address="192.0.2.1")

    attempts[0].succeed()
    log_in(limits, address="192.0.2.1")


@pytest.mark.parametrize(
    "other",
    [
        server("IMAP.Example.ORG."),
        server("\uff49map.example.org"),
        server(username="ANN"),
    ],
)
def test_another_spelling_is_the_same_mailbox(limits: Limits, other: MailServer) -> None:
    for _ in range(5):
        log_in(limits)

    with pytest.raises(RateLimited):
        log_in(limits, other)


def test_a_mailbox_behind_a_helpful_other_server_is_the_same_mailbox(limits: Limits) -> None:
    """Passwords cannot be tried at one SMTP server by way of an IMAP server that takes them all."""
    smtp = server("smtp.example.org")
    for number in range(5):
        log_in(limits, server(f"imap{number}.example.net", "x"), smtp)

    with pytest.raises(RateLimited):
        log_in(limits, server("imap9.example.net", "x"), smtp)


def test_a_trusted_service_is_not_counted_by_its_address(limits: Limits) -> None:
    """Nor do the failures of one of its users keep out the others."""
    bad = [(server(username="bad"), None)] * 1000

    assert logins_until_refused(limits, *bad) == 5
    log_in(limits, server(username="good"), good=True)


def test_a_login_that_is_refused_costs_nothing(limits: Limits, clock: Clock) -> None:
    """Else a mailbox under attack would close the doors of whoever asks after it, one after the other."""
    for _ in range(5):
        log_in(limits)
    for _ in range(100):
        with pytest.raises(RateLimited):
            log_in(limits, address="192.0.2.1")

    log_in(limits, server(username="bob"), address="192.0.2.1")


def test_after_a_refusal_the_wait_is_the_longest_of_all(clock: Clock) -> None:
    limits = Limits(logins=Rate(2, 3600), requests=Rate(1, 1), clock=clock)
    log_in(limits, address="192.0.2.1", good=True)
    log_in(limits, server(username="cat"), address="192.0.2.1")  # of its address one too many
    log_in(limits, server(username="bob"))

    with pytest.raises(RateLimited) as refusal:
        log_in(limits, server(username="bob"), address="192.0.2.1")

    assert refusal.value.retry_after == 3600
    clock.forward(3600)
    log_in(limits, server(username="bob"), address="192.0.2.1")


@pytest.mark.parametrize(("good", "wait"), [(True, 60), (False, 120)])
def test_even_the_smallest_limit_lets_one_in_and_a_bad_one_costs_double(
    clock: Clock, *, good: bool, wait: int
) -> None:
    limits = Limits(logins=Rate(1, 60), requests=Rate(1, 1), clock=clock)
    log_in(limits, address="192.0.2.1", good=good)

    with pytest.raises(RateLimited) as refusal:
        log_in(limits, server(username="bob"), address="192.0.2.1")

    assert refusal.value.retry_after == wait


def test_a_host_that_is_none_is_told_before_anything_is_counted(limits: Limits) -> None:
    for _ in range(20):
        with pytest.raises(HostNotAllowed):
            log_in(limits, server("not a host"), address="192.0.2.1")

    log_in(limits, address="192.0.2.1")


# ---- who a client is


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:7::1", "2001:db8:0:7:ffff:ffff:ffff:ffff"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", "unknown"),
        ("unknown", "_hidden"),
    ],
)
def test_addresses_of_one_client_are_counted_together(one: str, other: str) -> None:
    assert counted_as(client(one)) == counted_as(client(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:7::1", "2001:db8:0:8::1"),
        ("192.0.2.1", "192.0.2.2"),
        ("192.0.2.1", "unknown"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
    ],
)
def test_addresses_of_two_clients_are_counted_apart(one: str, other: str) -> None:
    assert counted_as(client(one)) != counted_as(client(other))


def test_a_client_over_a_unix_socket_is_counted_too() -> None:
    assert counted_as({"client": None}) == counted_as(client("unknown"))
