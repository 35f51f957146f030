"""HTML as values: elements of elements and text, in which all text is escaped. Pure."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias


class Markup(str):
    """HTML that stands as it is. Only `element` and `text` make it; what is not Markup is escaped."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content] | None"  # Markup is a str
Attribute: TypeAlias = str | int | bool | None

_VOID = {"br", "hr", "input", "link", "meta"}  # they have no content, and no end tag


def element(kind: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """One element. An attribute that is None or False is left out; Python's own words take a `_`, as `class_`.

    >>> element("p", "1 < 2 ", element("a", "why?", href="/x?a&b", class_="more", hidden=True))
    '<p>1 &lt; 2 <a href="/x?a&amp;b" class="more" hidden>why?</a></p>'
    """
    start = kind + "".join(_attribute(key, value) for key, value in attributes.items())
    if kind in _VOID:
        return Markup(f"<{start}>")
    return Markup(f"<{start}>{text(content)}</{kind}>")


def text(content: Content) -> Markup:
    """The content without an element around it."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(content))
    return Markup("".join(map(text, content)))


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
