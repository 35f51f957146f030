"""Values of a message: times to send at, and where it is said that a value is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from cbemail.api.inputs import SendAt, due_at, within
from cbemail.errors import FieldError, InvalidRequest

NOW = datetime(2026, 3, 1, 12, 0, 0, 500, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    ["2026-03-01T12:00:00Z", "2026-03-01T13:00:00+01:00", "0001-01-01T00:00:00+14:00"],
)
def test_a_time_that_has_passed_means_now(written: str) -> None:
    assert due_at(msgspec.convert(written, SendAt), NOW) is None


def test_nothing_is_sent_before_its_time_which_is_told_in_utc_and_to_the_second() -> None:
    send_at = datetime(2026, 3, 2, 9, 30, 0, 1, tzinfo=timezone(timedelta(hours=2)))

    assert due_at(send_at, NOW) == datetime(2026, 3, 2, 7, 30, 1, tzinfo=UTC)


@pytest.mark.parametrize("written", ["2027-03-04T00:00:00Z", "9999-12-31T23:59:59.999999-14:00"])
def test_a_message_is_scheduled_for_a_year_ahead_at_most(written: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        due_at(msgspec.convert(written, SendAt), NOW)

    assert wrong.value.errors[0].pointer == "#/send_at"


@pytest.mark.parametrize("written", ["2026-03-02T12:00:00", "2026-03-02", "tomorrow", 1772452800])
def test_a_time_without_its_offset_is_none(written: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(written, SendAt)


def test_what_is_wrong_with_a_part_is_pointed_at_from_the_whole() -> None:
    with pytest.raises(InvalidRequest) as wrong, within("#/messages/3"):
        raise InvalidRequest.at("#/to/0", "No.")

    assert wrong.value.errors == [FieldError("#/messages/3/to/0", "No.")]


def test_what_is_wrong_with_all_of_a_part_is_pointed_at_too() -> None:
    with pytest.raises(InvalidRequest) as wrong, within("#/messages/3"):
        raise InvalidRequest("No.")

    assert wrong.value.errors == [FieldError("#/messages/3", "No.")]
