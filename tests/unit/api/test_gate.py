"""The gate: what opens it, what ends a pass, and how many PINs can be tried."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cbemail.api.gate import PASS_LIFETIME, Gate
from cbemail.api.gate_page import local_path
from cbemail.errors import PinRequired, RateLimited
from cbemail.sessions.keys import KeyRing

PIN = "493817"
KEY, OTHER_KEY = "k" * 31 + "1", "k" * 31 + "2"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Time:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, span: timedelta) -> None:
        self.now += span


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def gate(time: Time) -> Gate:
    return Gate(PIN, KeyRing([KEY]), time)


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except (PinRequired, RateLimited) as error:
        return error.code
    return "open"


def tries(gate: Gate, number: int, client: str = "192.0.2.1", pin: str = "0000") -> list[str]:
    return [outcome(lambda: gate.try_pin(pin, client)) for _ in range(number)]


# ---- passes


def test_a_pass_is_good_until_it_expires(gate: Gate, time: Time) -> None:
    given = gate.new_pass()

    time.pass_by(PASS_LIFETIME - timedelta(seconds=1))
    assert gate.accepts(given)

    time.pass_by(timedelta(seconds=1))
    assert not gate.accepts(given)


@pytest.mark.parametrize(
    "later",
    [Gate("493818", KeyRing([KEY]), lambda: START), Gate(PIN, KeyRing([OTHER_KEY]), lambda: START)],
    ids=["another PIN", "another key"],
)
def test_a_pass_ends_with_the_pin_and_with_the_key(gate: Gate, later: Gate) -> None:
    assert not later.accepts(gate.new_pass())


def test_a_pass_lives_on_while_its_key_is_listed(gate: Gate, time: Time) -> None:
    rotated = Gate(PIN, KeyRing([OTHER_KEY, KEY]), time)

    assert rotated.accepts(gate.new_pass())
    assert not gate.accepts(rotated.new_pass())


def test_a_pass_cannot_be_altered(gate: Gate) -> None:
    good = gate.new_pass()
    expiry, mac = good.split(".")
    longer = f"{int(expiry) + 86400}.{mac}"
    forged = [
        "", ".", expiry, mac, longer, f"{expiry}.{'0' * 64}", f"{expiry}.{mac[:-1]}", f"0{good}",
        f"+{good}", f" {good}", f"{good}\n", f"{good}.{mac}", f"{expiry}.{mac.upper()}", "9" * 5000, f"{expiry}.é",
    ]  # fmt: skip

    assert [each for each in forged if gate.accepts(each)] == []


# ---- tries


def test_the_pin_opens(gate: Gate) -> None:
    assert tries(gate, 1, pin=PIN) == ["open"]


@pytest.mark.parametrize("pin", ["", "493816", "4938", "4938170", " 493817", "٤٩٣٨١٧", "\ud800"])
def test_nothing_else_does(gate: Gate, pin: str) -> None:
    assert tries(gate, 1, pin=pin) == ["pin-required"]


def test_after_five_wrong_ones_an_address_is_locked_out_whatever_it_says(gate: Gate) -> None:
    assert tries(gate, 6) == ["pin-required"] * 5 + ["rate-limited"]

    with pytest.raises(RateLimited) as wrong:
        gate.try_pin("0000", "192.0.2.1")
    with pytest.raises(RateLimited) as right:
        gate.try_pin(PIN, "192.0.2.1")

    assert (right.value.detail, right.value.retry_after) == (wrong.value.detail, 900)
    assert wrong.value.retry_after == 900


def test_the_lock_out_ends_and_is_not_made_longer_by_trying(gate: Gate, time: Time) -> None:
    tries(gate, 5)
    time.pass_by(timedelta(minutes=14))
    assert tries(gate, 3) == ["rate-limited"] * 3

    time.pass_by(timedelta(minutes=1))

    assert tries(gate, 1, pin=PIN) == ["open"]


def test_in_no_quarter_of_an_hour_has_an_address_more_than_five_tries(
    gate: Gate, time: Time
) -> None:
    times = []
    for _ in range(90):
        if tries(gate, 1) == ["pin-required"]:
            times.append(time.now)
        time.pass_by(timedelta(minutes=1))

    assert len(times) == 30
    for moment in times:
        window = [each for each in times if moment <= each < moment + timedelta(minutes=15)]
        assert len(window) <= 5


def test_another_address_is_not_locked_out(gate: Gate) -> None:
    tries(gate, 6)

    assert tries(gate, 1, "192.0.2.2", pin=PIN) == ["open"]


def test_a_right_pin_is_no_try(gate: Gate) -> None:
    assert tries(gate, 20, pin=PIN) == ["open"] * 20


def test_ten_thousand_addresses_together_have_fifty_tries_an_hour(gate: Gate, time: Time) -> None:
    looked_at = 0
    for hour in range(10):
        for number in range(1000):
            looked_at += tries(gate, 1, f"{hour}.{number}") == ["pin-required"]
        time.pass_by(timedelta(hours=1))

    assert looked_at == 500, (
        "a PIN of six digits would be found within a year, more likely than not"
    )


def test_a_pass_is_good_while_tries_are_used_up(gate: Gate) -> None:
    given = gate.new_pass()
    for number in range(60):
        tries(gate, 1, str(number))

    assert tries(gate, 1, "another", pin=PIN) == ["rate-limited"]
    assert gate.accepts(given)


# ---- where it goes on to


@pytest.mark.parametrize("goal", ["/", "/docs", "/docs#send_batch", "/problems/%C3%A4?x=1&y=/a//b"])
def test_the_gate_goes_on_to_paths_of_this_service(goal: str) -> None:
    assert local_path(goal) == goal


@pytest.mark.parametrize(
    "goal",
    [
        "", "docs", "//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example",
        "/\t/evil.example", "/\n/evil.example", "\t//evil.example", "/docs\\..\\x", "https://evil.example",
        "https:evil.example", "javascript:alert(1)", "/docs\r\nSet-Cookie: a=b", "/ä", "/" + "a" * 2000,
    ],
)  # fmt: skip
def test_the_gate_goes_on_to_nothing_else(goal: str) -> None:
    assert local_path(goal) == "/"
