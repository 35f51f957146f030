"""Wishes of clients: met where they can be read, passed over where not, and never an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from cbemail.api.preferences import LONGEST_WAIT, Preferences, preferences, preferred


def request(name: str, *values: str) -> Request:
    headers = [(name.encode(), value.encode("latin-1", "replace")) for value in values]
    return Request({"type": "http", "method": "GET", "headers": headers})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], Preferences()),
        (["respond-async"], Preferences(respond_async=True)),
        (["Respond-Async, wait=10"], Preferences(respond_async=True, wait=10)),
        (["wait = 10 ; foo=bar"], Preferences(wait=10)),
        (['wait="7"'], Preferences(wait=7)),
        (["handling=lenient", "wait=0"], Preferences(wait=0)),
        (["wait=5, wait=9"], Preferences(wait=5)),
        (['x="a, respond-async", wait=3'], Preferences(wait=3)),
        (["wait=61"], Preferences(wait=LONGEST_WAIT)),
        (["wait=" + "9" * 5000], Preferences(wait=LONGEST_WAIT)),
        (["wait=-1"], Preferences()),
        (["wait=1.5"], Preferences()),
        (["wait=\xb2"], Preferences()),
        (["wait"], Preferences()),
        (["respond-asynchronously"], Preferences()),
        ([',,;="'], Preferences()),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_preferences_are_read_as_rfc_7240_writes_them(
    given: list[str], expected: Preferences
) -> None:
    assert preferences(request("prefer", *given)) == expected


@given(st.lists(st.text(st.characters(max_codepoint=255)) | st.text('wait=0123,;"\\ ')))
def test_no_preference_is_an_error(values: list[str]) -> None:
    wait = preferences(request("prefer", *values)).wait

    assert wait is None or 0 <= wait <= LONGEST_WAIT


OFFERED = ("application/json", "text/csv", "application/x-ndjson")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], "application/json"),
        (["*/*"], "application/json"),
        (["text/csv"], "text/csv"),
        (["Text/CSV;header=present"], "text/csv"),
        (["text/*"], "text/csv"),
        (["text/csv, */*;q=0.1"], "text/csv"),
        (["text/csv;q=0.5, application/x-ndjson"], "application/x-ndjson"),
        (["text/csv;q=0, */*"], "application/json"),
        (["application/json;q=0.2, text/csv; q=0.3"], "text/csv"),
        (["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], "application/json"),
        (["image/png"], "application/json"),
        (["image/png", "text/csv"], "text/csv"),
        (["text/csv;q=x"], "application/json"),
        (["text/csv;q=nan, application/x-ndjson;q=inf"], "application/json"),
        (["csv"], "application/json"),
    ],
    ids=repr,
)
def test_the_media_type_is_the_one_the_client_likes_best(accept: list[str], expected: str) -> None:
    assert preferred(request("accept", *accept), OFFERED) == expected


@given(st.text(st.characters(max_codepoint=255)) | st.text("text/csv*;q=01.,"))
def test_whatever_a_client_accepts_it_gets_an_answer(accept: str) -> None:
    assert preferred(request("accept", accept), OFFERED) in OFFERED
