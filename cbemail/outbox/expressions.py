"""A template's text and the expressions in it, told apart; and what can be wrong with the values they stand for."""

from collections.abc import Iterator
from typing import NamedTuple

LONGEST_EXPRESSION = 500  # characters; a condition of a dozen terms has 200
MOST_EXPRESSIONS = 2_000  # of one template
HALF_CHARACTER = "A variable holds half a surrogate pair, which is no character."
_QUOTED = 60  # characters of an expression that an error shows


class TemplateError(Exception):
    """These variables do not make a text of this template. ``detail`` is a sentence for the caller."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class MissingVariable(TemplateError):
    def __init__(self, *names: str) -> None:
        verb = "is" if len(names) == 1 else "are"
        super().__init__(f"The variable{'s' * (len(names) > 1)} {', '.join(names)} {verb} missing.")
        self.name = names[0]


class InvalidVariable(TemplateError):
    """A value that cannot stand where the template puts it."""


class TooMuch(TemplateError):
    """The text is too long, or takes too much work to make."""


class Piece(NamedTuple):
    """Some text, and the expression behind it: ``opening`` is ``{{``, ``{%``, or nothing at the end.

    ``inner`` is what stands between the braces; a ``-`` at its ends is Liquid's sign to strip the text there.
    """

    text: str
    opening: str = ""
    inner: str = ""
    line: int = 0

    def refusal(self) -> str:
        """A sentence that points at the expression."""
        shown = " ".join(self.inner.split())
        shown = shown if len(shown) <= _QUOTED else f"{shown[:_QUOTED]}…"
        closing = {"{{": "}}", "{%": "%}"}[self.opening]
        return f"The template expression {self.opening} {shown} {closing} in line {self.line} is not valid."


def split_template(source: str) -> Iterator[Piece]:
    """The pieces of ``source`` in order, in linear time. Raises ValueError with a sentence."""
    at, line, count = 0, 1, 0
    while (start := _next_opening(source, at)) >= 0:
        opening = source[start : start + 2]
        closing = "}}" if opening == "{{" else "%}"
        end = source.find(closing, start + 2, start + 4 + LONGEST_EXPRESSION)
        line += source.count("\n", at, start)
        if end < 0:
            raise ValueError(
                f"The template expression that begins with {opening} in line {line} does not end "
                f"with {closing} within {LONGEST_EXPRESSION} characters."
            )
        count += 1
        if count > MOST_EXPRESSIONS:
            raise ValueError(f"A template has at most {MOST_EXPRESSIONS} expressions.")
        yield Piece(source[at:start], opening, source[start + 2 : end], line)
        line += source.count("\n", start, end)
        at = end + 2
    yield Piece(source[at:])


def _next_opening(source: str, at: int) -> int:
    start = source.find("{", at)
    while start >= 0 and source[start + 1 : start + 2] not in ("{", "%"):
        start = source.find("{", start + 1)
    return start


def text_of(value: object) -> str:
    """A variable's value as text. Raises InvalidVariable for what has no plain one."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise InvalidVariable(
        "A list or an object is not text: the template needs a loop, or the name of a member."
    )
