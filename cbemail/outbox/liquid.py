"""Templates with conditions and loops, rendered by python-liquid in a room without doors.

Liquid has no Python in it and opens no file here, but its work is not bounded by its own limits: they do not see loops
that follow one another, nor a range that is reversed, searched or joined before anybody counts it. So tags and filters
are those of a list, a range stands in a `for` alone, and loops and filters are charged for what they are about to do.
"""

import html
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, TextIO

import msgspec
from liquid import BoundTemplate, Environment, RenderContext, Undefined
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags.for_tag import ForNode, ForTag
from liquid.exceptions import LiquidError, OutputStreamLimitError, ResourceLimitError
from liquid.filter import with_context
from liquid.output import LimitedStringIO
from liquid.utils import ReadOnlyChainMap

from cbemail.outbox.expressions import (
    HALF_CHARACTER,
    InvalidVariable,
    MissingVariable,
    Piece,
    TemplateError,
    TooMuch,
    text_of,
)

WORK = 20_000  # nodes rendered for one text, about a microsecond each
_FREE = 4096  # octets of variables; every time as much again makes a node dearer by as much
_LOCALS = 32 * 1024  # octets of what `assign` keeps
_LONGEST_RESULT = 256 * 1024  # characters; of `replace` and `join`, which multiply texts
_LARGEST_NUMBER = 10**15  # what JSON's readers agree on, about

_TAG_NAMES = """
    if elsif else endif unless endunless case when endcase for endfor break continue assign comment endcomment #"""
_TAGS = frozenset(_TAG_NAMES.split())
_TAG = re.compile(r"\w+|#")
_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_FILTERS = """
    abs append at_least at_most capitalize ceil default divided_by downcase first floor last lstrip minus modulo
    plus prepend remove round rstrip size split squish strip strip_newlines times truncate truncatewords upcase
    url_encode"""
_OF_LISTS = frozenset(("default", "first", "join", "last", "size"))

# What filters and comparisons raise for values they were not made for.
_FAILURES = (
    LiquidError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

_encode = msgspec.msgpack.Encoder().encode


class Liquid:
    """A template, compiled.

    Args:
        escaped: every value is escaped for HTML as it is written, whatever it went through.
        longest: octets the text may have.

    Raises:
        ValueError: it is no Liquid, or uses what is not offered here; with a sentence.
    """

    def __init__(self, pieces: Sequence[Piece], *, escaped: bool, longest: int) -> None:
        self._longest = longest
        self._weight = sum(2 + len(piece.inner) // 8 for piece in pieces)
        self._expressions = [_checked(piece) for piece in pieces if piece.opening]
        self._starts: list[int] = []  # where each expression begins in what Liquid reads
        source = "".join(self._rewritten(pieces))
        environment = _ESCAPING if escaped else _PLAIN
        try:
            self._template = environment.from_string(source)
        except (LiquidError, RecursionError) as exc:
            raise ValueError(self._refusal(exc)) from exc
        used = self._template.analyze(include_partials=False).filters
        for name in used.keys() - environment.filters.keys():
            at = used[name][0].index
            raise ValueError(f"{self._at(at).refusal()} There is no filter {name}.")

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises TemplateError."""
        try:
            dearer = 1 + len(_encode(variables)) // _FREE
            context = _Context(self._template, variables, self._weight * dearer)
            context.charge(self._weight * dearer)
            buffer = LimitedStringIO(self._longest)
            self._template.render_with_context(context, buffer)
        except TemplateError:
            raise
        except OutputStreamLimitError as exc:
            raise TooMuch("The text is too long with these variables.") from exc
        except ResourceLimitError as exc:
            raise _too_much_work() from exc
        except UnicodeEncodeError as exc:
            raise InvalidVariable(HALF_CHARACTER) from exc
        except _FAILURES as exc:
            detail = "The template's conditions and filters cannot take these variables."
            raise InvalidVariable(detail) from exc
        return buffer.getvalue()

    def _rewritten(self, pieces: Sequence[Piece]) -> Sequence[str]:
        """The source with single spaces inside the braces: Liquid's lexer is quadratic in them."""
        texts: list[str] = []
        length = 0
        for text, opening, inner, _ in pieces:
            texts.append(text)
            length += len(text)
            if opening:
                before, after = "-" * inner.startswith("-"), "-" * inner.endswith("-")
                closing = "}}" if opening == "{{" else "%}"
                self._starts.append(length)
                texts.append(f"{opening}{before} {_bare(inner)} {after}{closing}")
                length += len(texts[-1])
        return texts

    def _at(self, index: int) -> Piece:
        return self._expressions[max(bisect_right(self._starts, index) - 1, 0)]

    def _refusal(self, error: Exception) -> str:
        token = error.token if isinstance(error, LiquidError) else None
        if token is None or token.start_index < 0:
            return (
                "The template is not valid: a tag is not closed, or too many are inside each other."
            )
        return self._at(token.start_index).refusal()


def _bare(inner: str) -> str:
    return inner.removeprefix("-").removesuffix("-").strip()


def _checked(piece: Piece) -> Piece:
    inner = _bare(piece.inner)
    tag = ""
    if piece.opening == "{%":
        match = _TAG.match(inner)
        tag = match[0] if match else ""
        if tag not in _TAGS:
            raise ValueError(f"{piece.refusal()} The tags are if, unless, case, for and assign.")
    if not inner or (tag != "for" and "(" in _STRING.sub("", inner)):
        raise ValueError(piece.refusal())
    return piece


def _too_much_work() -> TooMuch:
    return TooMuch("The template takes too much work with these variables: its loops are too long.")


# ---- what a template sees


class _Unknown(Undefined):
    """A variable nobody gave: false in a condition, replaced by `default`, anywhere else missing."""

    __slots__ = ()

    def _missing(self, *_: object) -> NoReturn:
        path = (self.hint or "").removesuffix(" is undefined")
        raise MissingVariable(path if path.startswith(f"{self.name}.") else self.name)

    __str__ = __iter__ = __len__ = __int__ = __contains__ = __getitem__ = __reversed__ = _missing


class _Context(RenderContext):
    """The recipient's variables and nothing else, no clock either; and what may still be done for them."""

    __slots__ = ("_left", "_step")

    def __init__(self, template: BoundTemplate, variables: Mapping[str, Any], step: int) -> None:
        super().__init__(template, globals=variables)
        self.scope = ReadOnlyChainMap(self.locals, self.globals)
        self._left = WORK
        self._step = step

    def charge(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise _too_much_work()

    def charge_loop(self, rounds: int) -> None:
        """No round renders more than the whole template; the rounds of loops inside are charged there."""
        self.charge(rounds * self._step)

    def assign(self, key: str, val: object) -> None:
        self.charge(len(self.locals))  # as many are measured, each time
        super().assign(key, val)


class _ForNode(ForNode):
    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        items = self.expression.iterable.evaluate(context)
        if isinstance(context, _Context):
            context.charge_loop(_rounds(items))
        return super().render_to_output(context, buffer)


def _rounds(items: object) -> int:
    if isinstance(items, range):
        return max(items.stop - items.start, 0)  # len() has an upper bound
    return 1 if isinstance(items, str) or not isinstance(items, Sized) else len(items)


class _ForTag(ForTag):
    node_class = _ForNode


class _PlainNode(OutputNode):
    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        return buffer.write(text_of(_known(self.expression.evaluate(context))))


class _EscapingNode(OutputNode):
    __slots__ = ()

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        return buffer.write(html.escape(text_of(_known(self.expression.evaluate(context)))))


def _known(value: object) -> object:
    return str(value) if isinstance(value, Undefined) else value


class _PlainOutput(Output):
    node_class = _PlainNode


class _EscapingOutput(Output):
    node_class = _EscapingNode


# ---- filters


def _date(value: object, form: object) -> str:
    """An ISO 8601 date or time in another form: `{{ due | date: "%d.%m.%Y" }}`."""
    text = text_of(_known(value))
    return datetime.fromisoformat(text).strftime(text_of(form)) if text else ""


def _replace(value: object, old: object, new: object = "") -> str:
    text, what, by = text_of(value), text_of(old), text_of(new)
    _require_short(len(text) + text.count(what) * len(by))
    return text.replace(what, by)


def _join(value: object, separator: object = " ") -> str:
    texts = list(map(text_of, value)) if isinstance(value, list) else [text_of(_known(value))]
    between = text_of(separator)
    _require_short(sum(map(len, texts)) + len(texts) * len(between))
    return between.join(texts)


def _escape(value: object) -> str:
    return html.escape(text_of(value))


def _require_short(length: int) -> None:
    if length > _LONGEST_RESULT:
        raise TooMuch("The template's filters make too long a text with these variables.")


def _bounded(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """A filter that takes and gives text and numbers of sane size, and is charged for it."""

    def bounded(value: object, *args: object, context: _Context, **options: object) -> object:
        if name not in _OF_LISTS:
            value = _plain(value)
        if name != "default":
            args = tuple(map(_plain, args))
        context.charge(1 + _work_on(value))
        result = function(value, *args, **options)
        if isinstance(result, int | float) and abs(result) > _LARGEST_NUMBER:
            raise InvalidVariable("A number is too large for the template's filters.")
        return result

    return with_context(bounded)


def _plain(value: object) -> object:
    """Text and numbers as they are, and what cannot be written refused: Liquid would show it as Python does."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return text_of(_known(value))


def _work_on(value: object) -> int:
    if isinstance(value, list):
        return len(value) // 5
    return len(value) // 100 if isinstance(value, str) else 0


class _Environment(Environment):
    block_nesting_limit = 20
    context_depth_limit = 30
    loop_iteration_limit = WORK
    local_namespace_limit = _LOCALS
    output_stream_limit = None  # ours comes with the buffer

    def __init__(self, *, escaping: bool) -> None:
        super().__init__(undefined=_Unknown)
        tags = {"content", "output", "illegal", *_TAGS}
        self.tags = {name: tag for name, tag in self.tags.items() if name in tags}
        self.add_tag(_ForTag)
        self.add_tag(_EscapingOutput if escaping else _PlainOutput)
        functions: dict[str, Callable[..., object]] = {
            name: self.filters[name] for name in _FILTERS.split()
        }
        for name, function in functions.items():
            if getattr(function, "with_environment", False):
                functions[name] = partial(function, environment=self)
        functions |= {
            "date": _date,
            "join": _join,
            "replace": _replace,
            "escape": text_of if escaping else _escape,  # in HTML everything is, when it is written
        }
        self.filters = {name: _bounded(name, each) for name, each in functions.items()}


_PLAIN = _Environment(escaping=False)
_ESCAPING = _Environment(escaping=True)
