"""Text with expressions in it: `{{ name }}`, `{{ name | default: "friend" }}`, and whatever else is Liquid.

A template of names alone is cut up once and joined for each recipient, forty times as fast as Liquid does it; all else
is Liquid's (`outbox/liquid`). Either way values are text: never read for expressions themselves, and escaped in HTML.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, Self

from cbemail.outbox.expressions import (
    InvalidVariable,
    MissingVariable,
    Piece,
    TooMuch,
    split_template,
    text_of,
)
from cbemail.outbox.liquid import Liquid

# Characters that values may add to a text: a recipient has 64 KiB, but a template may repeat them.
LONGEST = 5 << 20

_SIMPLE = re.compile(
    r"""([^\W\d][\w-]*)(?:\s*\|\s*default\s*:\s*(?:"([^"]*)"|'([^']*)'))?""", re.DOTALL
)
_LITERALS = frozenset(("true", "false", "nil", "null", "empty", "blank"))  # Liquid's
_ABSENT = object()

# Around the number of an expression, while its template is converted. Nobody's text has them (Unicode 23.5).
MARK, _END = "\ue000", "\ue001"
_MARKED = re.compile(f"{MARK}([0-9]+){_END}")


class Slot(NamedTuple):
    """A place for a value; ``default`` stands in for one that is not there, null, false or empty."""

    name: str
    default: str | None


class Template:
    """A compiled template.

    >>> Template.compile("Dear {{ name | default: 'friend' }},", html=False).render({"name": "Ann"})
    'Dear Ann,'

    Attributes:
        names: variables that must be given. Of a Liquid template that depends on the others: it has to be rendered.
        slots: where values go; none in a constant and in a Liquid template.
        is_constant: it is its own text, for everybody.
        is_liquid: it has conditions, loops, paths or filters.
    """

    def __init__(
        self,
        texts: Sequence[str],
        slots: Sequence[Slot],
        *,
        html: bool,
        longest: int,
        liquid: Liquid | None = None,
    ) -> None:
        self.slots = tuple(slots)
        self.names = frozenset(slot.name for slot in slots if slot.default is None)
        self.is_liquid = liquid is not None
        self.is_constant = not slots and liquid is None
        self.literal = "".join(texts)
        self._texts = tuple(texts)
        self._html = html
        self._longest = longest
        self._liquid = liquid
        self._pieces = [""] * (2 * len(texts) - 1)  # a text, a value, a text, …
        self._pieces[::2] = texts
        self._places = [(2 * index + 1, *slot) for index, slot in enumerate(slots)]

    @classmethod
    def compile(cls, source: str, *, html: bool, longest: int = LONGEST) -> Self:
        """Raises ValueError with a sentence."""
        pieces = list(split_template(source))
        slots = [_slot(piece) for piece in pieces[:-1]]
        simple = [slot for slot in slots if slot is not None]
        if len(simple) == len(slots):
            return cls([piece.text for piece in pieces], simple, html=html, longest=longest)
        liquid = Liquid(pieces, escaped=html, longest=longest)
        return cls([""], [], html=html, longest=longest, liquid=liquid)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text with these values. Raises TemplateError."""
        if self._liquid is not None:
            return self._liquid.render(variables)
        pieces = self._pieces.copy()
        room = self._longest
        for index, name, default in self._places:
            value = variables.get(name, _ABSENT)
            text = value if type(value) is str else _value(name, value, default)
            if not text and default is not None:
                text = default
            if self._html:
                text = escape(text)
            room -= len(text)
            if room < 0:
                raise TooMuch("The text is too long with these variables.")
            pieces[index] = text
        return "".join(pieces)

    def converted(self, convert: Callable[[str], str]) -> "Template | None":
        """This template with ``convert`` applied to its text, and values put in as plain text.

        ``convert`` sees each expression as a `MARK`, a number (equal ones have the same) and another sign. None
        where that does not work out.
        """
        if self._liquid is not None or MARK in self.literal:
            return None
        numbers = {slot: index for index, slot in enumerate(self.slots)}
        marks = [f"{MARK}{numbers[slot]}{_END}" for slot in self.slots]
        marked = "".join(map("".join, zip(self._texts, [*marks, ""], strict=True)))
        first, *rest = _MARKED.split(convert(marked))
        texts = [first, *rest[1::2]]
        if MARK in "".join(texts):
            return None
        slots = [self.slots[int(number)] for number in rest[::2]]
        return Template(texts, slots, html=False, longest=self._longest)


def _slot(piece: Piece) -> Slot | None:
    inner = piece.inner.strip()
    match = _SIMPLE.fullmatch(inner) if piece.opening == "{{" else None
    if match is None or match[1] in _LITERALS or inner.endswith("-"):
        return None
    return Slot(match[1], match[2] if match[2] is not None else match[3])


def _value(name: str, value: object, default: str | None) -> str:
    """What is no string, as text."""
    if value is _ABSENT:
        if default is None:
            raise MissingVariable(name)
        return default
    if default is not None and (value is False or value == [] or value == {}):
        return default
    try:
        return text_of(value)
    except InvalidVariable as exc:
        raise InvalidVariable(f"The variable {name} cannot be written. {exc.detail}") from exc
