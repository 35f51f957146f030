"""Named queries, and the text no database can keep."""

import pytest

from cbemail.errors import InvalidRequest
from cbemail.store.database import SQL, load_queries, refuse_unstorable


def test_a_query_is_what_stands_below_its_heading() -> None:
    queries = load_queries("-- a --\nselect 1\n-- why\n  from b\n\n-- c_d --\ndelete from e\n")

    assert queries == {"a": "select 1\n-- why\n  from b", "c_d": "delete from e"}


def test_two_queries_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two queries are named a"):
        load_queries("-- a --\nselect 1\n-- a --\nselect 2\n")


def test_every_query_is_one_statement() -> None:
    queries = load_queries((SQL / "queries.sql").read_text(encoding="utf-8"))

    assert queries
    assert [name for name, sql in queries.items() if ";" in sql] == []


@pytest.mark.parametrize("value", ["a\0", "\ud800", ["fine", "not\0fine"]])
def test_text_that_cannot_be_stored_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest):
        refuse_unstorable(value)


@pytest.mark.parametrize("value", ["", "ü😀\x7f\n", b"\0", None, 7, ["a", None]])
def test_everything_else_may_be_stored(value: object) -> None:
    refuse_unstorable(value)
