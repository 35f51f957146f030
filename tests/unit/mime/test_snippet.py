"""The first words of a message."""

# ruff: noqa: RUF001 - letters of other alphabets look like ours

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.mime.snippet import SNIPPET, make_snippet, shorten


@pytest.mark.parametrize(
    ("text", "snippet"),
    [
        ("Dear Joe,\n\n  this\tis it.\n", "Dear Joe, this is it."),
        ("Yes.\n\n-- \nJoe\nExample Ltd.", "Yes."),
        ("-- \nJoe", ""),
        ("> No?\n\nYes.", "Yes."),
        ("Read more (https://example.org/t?a=b&c=d) now", "Read more now"),
        ("Read (https://example.org/cut-off", "Read"),
        ("Title\n==========\nText", "Title Text"),
        ("Sale!\u200c \u200c\xa0\u200c \u034f \u034f Today only", "Sale! Today only"),
        ("\ufeff\u200bHello", "Hello"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("", ""),
    ],
)
def test_a_snippet_is_what_a_reader_would_read_first(text: str, snippet: str):
    assert make_snippet(text) == snippet


@given(st.text())
def test_a_snippet_is_one_short_line(text: str):
    snippet = shorten(text)

    assert len(snippet) <= SNIPPET
    assert snippet == " ".join(snippet.split())
