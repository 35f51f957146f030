"""Which steps of the schema there are, and which ones a database lacks."""

import pytest

from cbemail.store.database import StoreUnusable
from cbemail.store.migrations import Migration, load_migrations, pending

STEPS = [Migration(number, f"step_{number}", "select 1") for number in (1, 2, 3)]


def test_steps_are_numbered_from_one_without_a_gap() -> None:
    steps = load_migrations("duckdb")

    assert steps
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))


@pytest.mark.parametrize(("version", "numbers"), [(0, [1, 2, 3]), (2, [3]), (3, [])])
def test_a_database_lacks_the_steps_after_its_own(version: int, numbers: list[int]) -> None:
    assert [step.number for step in pending(STEPS, version)] == numbers


def test_a_database_from_the_future_is_refused() -> None:
    with pytest.raises(StoreUnusable, match="its schema is 4, this version knows 3"):
        pending(STEPS, 4)
