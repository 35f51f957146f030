"""The little Markdown that our descriptions are written in: paragraphs, lists and `code`. Pure."""

import re
from collections.abc import Iterator

from cbemail.api.elements import Markup, element, text

_CODE = re.compile(r"`([^`]+)`")


def inline(line: str) -> Markup:
    """One paragraph's text.

    >>> inline("Take `a < b`.")
    'Take <code>a &lt; b</code>.'
    """
    pieces = _CODE.split(line)  # text and code by turns
    return text(
        element("code", piece) if index % 2 else piece for index, piece in enumerate(pieces)
    )


def blocks(description: str) -> Markup:
    """Paragraphs, and lists of lines that begin with `- `."""
    return text(_block(each) for each in description.split("\n\n") if each)


def _block(block: str) -> Iterator[Markup]:
    """A list may follow its paragraph directly."""
    paragraph, *items = re.split(r"(?:^|\n)- ", block)
    if paragraph:
        yield element("p", inline(paragraph))
    if items:
        yield element("ul", (element("li", inline(item)) for item in items))
