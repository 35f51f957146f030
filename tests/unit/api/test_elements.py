"""HTML as values: whatever the text is, it stays text."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from cbemail.api.elements import element
from cbemail.api.markdown import blocks, inline

# What no HTML document can hold, not even escaped: the parser would have something else for it.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"))


class Read(HTMLParser):
    """What a browser makes of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(TEXT, TEXT)
def test_text_and_attributes_come_out_as_they_went_in(content: str, title: str) -> None:
    read = Read(element("p", content, title=title))

    assert read.tags == [("p", [("title", title)])]
    assert read.text == content


@given(TEXT)
def test_no_description_becomes_markup(description: str) -> None:
    tags = {tag for tag, _ in Read(blocks(description) + inline(description)).tags}

    assert tags <= {"p", "ul", "li", "code"}


def test_elements_within_elements_are_not_escaped_again() -> None:
    made = element("p", ["a < b", None, element("b", "c"), [element("br")]], hidden=False)

    assert made == "<p>a &lt; b<b>c</b><br></p>"


def test_paragraphs_and_lists_are_told_apart() -> None:
    made = blocks("One `a`.\n\nTwo:\n- b\n- c")

    assert made == "<p>One <code>a</code>.</p><p>Two:</p><ul><li>b</li><li>c</li></ul>"
