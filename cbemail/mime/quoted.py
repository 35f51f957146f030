"""What a reply says itself, and what it only quotes: the history that mail clients put below, or answers stand in.

There is no standard for it. What is taken out is what the common clients write, in the common languages; where that is
not certain the words stay: history shown twice does less harm than an answer that is lost.
"""

import re
from collections.abc import Callable, Sequence

from cbemail.mime.phrases import COLONS, LANGUAGES, any_of

_LONGEST = 500  # characters of a line, or a few, that a client puts around what it quotes
_ATTRIBUTION_LINES = 4  # that "On …, Ann wrote:" is folded into, at most
_BLOCK_LINES = 10  # from "From:" to "Subject:" below it, with a long "To:" folded between

_OPENER = re.compile(any_of(w for each in LANGUAGES for w in each.opener) + r"\b", re.IGNORECASE)
_WROTE = re.compile(any_of(w for each in LANGUAGES for w in each.wrote) + r"(?!\w)", re.IGNORECASE)
_ADDRESS = re.compile(r"[^\s<>@]@[^\s<>@]")
_SENTENCE_ENDS = ".!?"
_DIGIT = re.compile(r"[0-9]")
_BEGINS_WITH_YEAR = re.compile(r"[0-9]{4}\D")

_ORIGINAL = re.compile(
    rf"[*\s]*[-_]{{2,}}\s*{any_of(w for each in LANGUAGES for w in each.original)}\s*[-_]{{2,}}[*\s]*",
    re.IGNORECASE,
)
_FORWARDED = re.compile(
    rf"\s*(?:[-=*]{{2,}}\s*{any_of(w for each in LANGUAGES for w in each.forwarded)}\s*[-=*]{{2,}}"
    r"|begin forwarded message:)\s*",
    re.IGNORECASE,
)
_RULE = re.compile(r"\s*[-_=─]{5,}\s*")


def _field(names: str) -> re.Pattern[str]:
    return re.compile(rf"\s*\*?{names}\s?\*?\s?[{COLONS}]", re.IGNORECASE)


_FROM = _field(any_of(name for each in LANGUAGES for name in each.from_))
_BELOW_FROM = (
    _field(any_of(name for each in LANGUAGES for name in each.sent)),
    _field(any_of(name for each in LANGUAGES for name in each.to)),
    _field(any_of(name for each in LANGUAGES for name in each.subject)),
)


def without_history(text: str) -> str:
    """``text`` as far as its author wrote it for this message: without quotations, and without the history below.

    Answers between quotations stay. What was forwarded stays: it is what the message is there for. Text that is
    nothing but history is given as it is.
    """
    lines = text.split("\n")
    forwarded = _find_forwarded(lines)
    own = lines[:forwarded]
    own = _without_quotations(own[: _find_history(own)])
    kept = "\n".join([*own, *lines[forwarded:]]).strip("\n")
    return kept if kept.strip() else text


def _find_forwarded(lines: Sequence[str]) -> int:
    """Where a forwarded message begins, or the end."""
    for index, line in enumerate(lines):
        if len(line) <= _LONGEST and _FORWARDED.fullmatch(line):
            return index
    return len(lines)


def _find_history(lines: Sequence[str]) -> int:
    """Where history begins that goes on to the end, not marked line by line; or the end."""
    for index, line in enumerate(lines):
        if len(line) > _LONGEST:
            continue
        if _ORIGINAL.fullmatch(line) or _begins_header(lines, index):
            return _with_rule_above(lines, index)
        length = _OPENER.match(line) and _attribution(lines, index, _is_certainly_attribution)
        if length and not _quotes_next(lines, index + length):
            return index
    return len(lines)


def _begins_header(lines: Sequence[str], index: int) -> bool:
    """Whether "From:" stands here, and at least two of "Sent:", "To:" and "Subject:" in the lines right below."""
    if not _FROM.match(lines[index]):
        return False
    found: set[int] = set()
    for line in lines[index + 1 : index + _BLOCK_LINES]:
        if not line.strip():
            break
        found.update(number for number, field in enumerate(_BELOW_FROM) if field.match(line))
    return len(found) >= 2


def _with_rule_above(lines: Sequence[str], index: int) -> int:
    """The line that a client draws above what begins at ``index`` is of it."""
    above = _last_written(lines[:index])
    return above if above >= 0 and _RULE.fullmatch(lines[above]) else index


def _last_written(lines: Sequence[str]) -> int:
    """The last line that is not blank, or -1."""
    index = len(lines) - 1
    while index >= 0 and not lines[index].strip():
        index -= 1
    return index


def _quotes_next(lines: Sequence[str], start: int) -> bool:
    written = (lines[index] for index in range(start, len(lines)) if lines[index].strip())
    return _is_quoted(next(written, ""))


# ---- attributions: who wrote what follows, and when


def _attribution(lines: Sequence[str], start: int, is_one: Callable[[str], bool]) -> int:
    """How many lines from ``start`` say who wrote what follows; none if they do not."""
    text = ""
    for count, line in enumerate(lines[start : start + _ATTRIBUTION_LINES], 1):
        text = f"{text} {line.strip()}".lstrip()
        if not line.strip() or len(text) > _LONGEST or text[-1] in _SENTENCE_ENDS:
            break
        if text[-1] in COLONS and is_one(text):
            return count
    return 0


def _is_attribution(text: str) -> bool:
    """Whether ``text``, which stands above a quotation and ends in a colon, says who wrote it. "Ann wrote:" alone could
    be the author's own words, and may stay."""
    address = _ADDRESS.search(text)
    if not _WROTE.search(text):  # Japanese ends in the address: 2026年1月5日 Ann <ann@example.org>:
        return bool(address and _BEGINS_WITH_YEAR.match(text) and _ends_in_address(text))
    return bool(address or (_OPENER.match(text) and _DIGIT.search(text)) or _DIGIT.match(text))


def _is_certainly_attribution(text: str) -> bool:
    """The same where no quotation follows: all has to be there, with nothing behind it."""
    wrote = _WROTE.search(text)
    if not (wrote and _OPENER.match(text) and _DIGIT.search(text) and _ADDRESS.search(text)):
        return False
    return _ends_in_address(text) or not text[wrote.end() :].strip(f" {COLONS}")


def _ends_in_address(text: str) -> bool:
    return text.rstrip(f" {COLONS}").endswith(">")


# ---- lines that begin with ">"


def _is_quoted(line: str) -> bool:
    """Begins with ``>``, but for what mail programs make of a line that began with "From " (RFC 4155)."""
    return line.startswith(">") and not line.startswith(">From ")


def _without_quotations(lines: Sequence[str]) -> list[str]:
    """The lines that are not quoted, and do not say who wrote what is."""
    kept: list[str] = []
    quoting = False
    for line in lines:
        if _is_quoted(line):
            if not quoting:
                _drop_attribution(kept)
            quoting = True
            continue
        if quoting and not line.strip() and (not kept or not kept[-1].strip()):
            continue  # one blank line is enough where a quotation stood
        kept.append(line)
        quoting = False
    return kept


def _drop_attribution(kept: list[str]) -> None:
    """Take away the attribution that ``kept`` ends in, if it does: its last lines as far as they belong together."""
    last = _last_written(kept)
    begins: int | None = None
    for start in range(last, max(-1, last - _ATTRIBUTION_LINES), -1):
        is_whole = _OPENER.match(kept[start]) is not None
        if (begins is None or is_whole) and (
            start + _attribution(kept, start, _is_attribution) == last + 1
        ):
            begins = start
    if begins is not None:
        del kept[begins:]
