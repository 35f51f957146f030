"""HTML as mail has it: read as a stream of tags and text, and rewritten so that any HTML parser takes linear time.

HTML parsers are quadratic, or worse, in open elements: 300 KB of `<div>` keep a sanitiser busy for 20 seconds, and a
few hundred `<font>` left open are made again in every paragraph that follows. `balance` therefore rewrites a document
before a parser sees it: every element closed where it ends, elements only where they belong, none deeper than
`limits.HTML_DEPTH`, and nothing that switches a parser to other rules (comments, scripts, SVG, MathML).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import NamedTuple

from cbemail.mime import limits


class Tag(NamedTuple):
    """A start or end tag: the name in lower case, the attributes as written."""

    name: str
    attributes: str
    closes: bool


# ---- reading


_SPACE = r"\t\n\f\r "
# WHATWG HTML 13.2.5.32 to 13.2.5.40. Possessive throughout: no `<` is read twice.
ATTRIBUTE = (
    rf"(?P<attribute>[^{_SPACE}/>][^{_SPACE}/>=]*+)"
    rf"(?:[{_SPACE}]*+=[{_SPACE}]*+(?P<value>\"[^\"]*+\"?+|'[^']*+'?+|[^{_SPACE}\"'>][^{_SPACE}>]*+)?+)?+"
)
_ATTRIBUTE = re.compile(ATTRIBUTE)
_UNNAMED_ATTRIBUTE = re.sub(r"\?P<\w+>", "?:", ATTRIBUTE)
_TAG = re.compile(
    rf"<(?P<slash>/?)(?P<name>[A-Za-z][^{_SPACE}/>]*+)"
    rf"(?P<attributes>(?:[{_SPACE}/]++|{_UNNAMED_ATTRIBUTE})*+)(?P<end>>?)"
    r"|<!--(?:>|->|.*?(?:--!?>|\Z))"
    r"|<[!?/][^>]*+>?",
    re.DOTALL,
)
# Elements whose content is no text to read. The raw ones are text to a parser, up to their end tag or the end.
_RAW = frozenset(("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"))
_OPAQUE = _RAW | {"svg", "math", "template", "select"}
_END_OF = {
    name: re.compile(rf"</{name}(?=[{_SPACE}/>]|\Z)", re.IGNORECASE) for name in sorted(_OPAQUE)
}


def read_markup(html: str) -> Iterator[Tag | str]:
    """The tags and the text (still with character references) of ``html``, without what is neither."""
    at = 0
    unclosed: set[str] = set()  # names whose end tag does not come any more
    while match := _TAG.search(html, at):
        if match.start() > at:
            yield html[at : match.start()]
        at = match.end()
        if not match["end"]:  # a comment, or a tag the end of the document cuts off
            continue
        tag = Tag(match["name"].lower(), match["attributes"], bool(match["slash"]))
        yield tag
        if tag.name in _OPAQUE and not tag.closes and tag.name not in unclosed:
            end = _END_OF[tag.name].search(html, at)
            if end is not None:
                at = end.start()
            elif tag.name in _RAW:
                return
            else:
                unclosed.add(tag.name)
    if at < len(html):
        yield html[at:]


def read_attributes(attributes: str) -> dict[str, str]:
    """Attribute values by lower-case name, still with character references; the first of a name counts."""
    values: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(attributes):
        value = match["value"] or ""
        if value[:1] in ('"', "'"):
            value = value[1:].removesuffix(value[0])
        values.setdefault(match["attribute"].lower(), value)
    return values


# ---- writing


VOID = frozenset(("br", "hr", "img", "wbr", "col"))
_SECTIONS = ("thead", "tbody", "tfoot")
_CELLS = ("td", "th", "caption")
_TABLE_PARTS = frozenset((*_SECTIONS, *_CELLS, "tr", "colgroup", "col"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BLOCK_NAMES = """
    address article aside blockquote center dd dir div dl dt figcaption figure footer header hr li main nav ol p pre
    section table ul"""
_INLINE_NAMES = """
    a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd mark q s samp small span strike strong sub sup tt
    u var"""
BLOCKS = _HEADINGS.union(_BLOCK_NAMES.split())
_INLINE = frozenset(_INLINE_NAMES.split())
TAGS = VOID | _TABLE_PARTS | BLOCKS | _INLINE
# Where only parts of a table may stand; a parser moves everything else in front of the table.
_ONLY_TABLE_PARTS = frozenset(("table", "tr", "colgroup", *_SECTIONS))
# What an end tag, or an implied end, does not reach across (WHATWG HTML 13.2.4.2, "in scope").
_BARRIERS = frozenset(("table", *_CELLS))


class _Implied(NamedTuple):
    """A start tag ends the open elements ``ended``, if they are inside the nearest of ``inside``."""

    ended: tuple[str, ...]
    inside: tuple[str, ...]


_IMPLIED_ENDS = {
    "a": _Implied(("a",), ()),
    "li": _Implied(("li",), ("ul", "ol")),
    "dt": _Implied(("dt", "dd"), ("dl",)),
    "dd": _Implied(("dt", "dd"), ("dl",)),
    "td": _Implied((*_CELLS, "colgroup"), ()),
    "th": _Implied((*_CELLS, "colgroup"), ()),
    "col": _Implied((*_CELLS, *_SECTIONS), ()),
    "tr": _Implied((*_CELLS, "colgroup", "tr"), ()),
} | dict.fromkeys(
    (*_SECTIONS, "caption", "colgroup"), _Implied((*_CELLS, *_SECTIONS, "colgroup", "tr"), ())
)
_NEWLINES_OF_PRE = re.compile(r"(?:\r?\n|&#0*(?:10|13);?|&#[xX]0*[aAdD];?|&NewLine;)++")
_REFERENCE = re.compile("[&\xa0]")
_MANY_ATTRIBUTES = 1000  # characters; a tag of fewer is not worth counting in


def balance(html: str) -> str:
    """``html`` with the same text, well-formed in the strict sense described at the top of this module."""
    writer = _Writer()
    for token in read_markup(html):
        if isinstance(token, str):
            writer.text(token)
        elif token.name in TAGS:
            if token.closes:
                writer.close(token.name)
            else:
                writer.open(token)
    return writer.finish()


class _Writer:
    """Writes elements as a stack; ``_where`` has the stack positions of each name, so that no step searches it."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._stack: list[str] = []
        self._where: defaultdict[str, list[int]] = defaultdict(list)
        self._barriers = [-1]
        self._after_pre = False

    def text(self, text: str) -> None:
        if self._after_pre:  # a parser drops a line end here, so one would be lost each time
            newlines = _NEWLINES_OF_PRE.match(text)
            text = text[newlines.end() :] if newlines else text
            self._after_pre = not text
        self._out.append(_bounded_text(text.replace("<", "&lt;")))  # a bare `<` could begin a tag

    def open(self, tag: Tag) -> None:
        name = tag.name
        if name in _TABLE_PARTS:
            if not self._make_room_in_table(name):
                return
        elif self._stack and self._stack[-1] in _ONLY_TABLE_PARTS:
            return
        else:
            self._make_room(name)
        if name in VOID:
            self._out.append(f"<{name}{_bounded(tag.attributes)}>")
        elif len(self._stack) < limits.HTML_DEPTH:
            self._push(name, _bounded(tag.attributes))

    def close(self, name: str) -> None:
        """End the nearest ``name``, and what is open inside it. An end tag of nothing that is open is nothing."""
        if name == "table":
            floor = -1
        elif name in _TABLE_PARTS:
            floor = self._last("table")
        else:
            floor = self._barriers[-1]
        if self._last(name) > floor:
            self._pop_to(self._last(name))

    def finish(self) -> str:
        self._pop_to(0)
        return "".join(self._out)

    def _make_room(self, name: str) -> None:
        if name in BLOCKS:
            self._end(("p",), self._barriers[-1])
        if name in _HEADINGS and self._stack and self._stack[-1] in _HEADINGS:
            self._pop_to(len(self._stack) - 1)
        implied = _IMPLIED_ENDS.get(name)
        if implied is not None:
            inside = max(map(self._last, implied.inside), default=-1)
            self._end(implied.ended, max(inside, self._barriers[-1]))

    def _make_room_in_table(self, name: str) -> bool:
        """End what a part of the table ends, and begin what it implies; False where there is no table."""
        table = self._last("table")
        if table < 0:
            return False
        self._end(_IMPLIED_ENDS[name].ended, table)
        if name in ("tr", "td", "th") and self._stack[-1] == "table":
            self._push("tbody")
        if name in ("td", "th") and self._stack[-1] in _SECTIONS:
            self._push("tr")
        if name == "col" and self._stack[-1] == "table":
            self._push("colgroup")
        return True

    def _end(self, names: Iterable[str], floor: int) -> None:
        ended = [last for last in map(self._last, names) if last > floor]
        if ended:
            self._pop_to(min(ended))

    def _last(self, name: str) -> int:
        where = self._where.get(name)
        return where[-1] if where else -1

    def _push(self, name: str, attributes: str = "") -> None:
        self._where[name].append(len(self._stack))
        if name in _BARRIERS:
            self._barriers.append(len(self._stack))
        self._stack.append(name)
        self._out.append(f"<{name}{attributes}>")
        self._after_pre = name == "pre"

    def _pop_to(self, depth: int) -> None:
        while len(self._stack) > depth:
            name = self._stack.pop()
            self._where[name].pop()
            if name in _BARRIERS:
                self._barriers.pop()
            self._out.append(f"</{name}>")
        self._after_pre = False


def _bounded(attributes: str) -> str:
    """``attributes``, unless they are more than any mail has."""
    if len(attributes) > limits.HTML_ATTRIBUTES_SIZE:
        return ""
    if len(attributes) > _MANY_ATTRIBUTES:
        count = sum(1 for _ in _ATTRIBUTE.finditer(attributes))
        return attributes if count <= limits.HTML_ATTRIBUTES else ""
    return attributes


def _bounded_text(text: str) -> str:
    """``text``, cut by invisible elements into nodes of a bearable number of references."""
    if text.count("&") + text.count("\xa0") <= limits.HTML_REFERENCES:
        return text
    references = islice(
        _REFERENCE.finditer(text), limits.HTML_REFERENCES, None, limits.HTML_REFERENCES
    )
    cuts = [0, *(reference.start() for reference in references), len(text)]
    return "<wbr>".join(text[begin:end] for begin, end in pairwise(cuts))
