"""What a client would rather have: `Prefer` (RFC 7240), and `Accept` (RFC 9110 section 12.5.1).

Both are wishes. One that cannot be read, or cannot be met, is passed over and never an error.
"""

import re
from collections.abc import Sequence
from math import isfinite
from typing import Any

from msgspec import Struct
from starlette.requests import Request

LONGEST_WAIT = 60  # seconds; proxies give up on an answer soon after

_ITEM = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+"|")++')
_RANGE = re.compile(r"(?P<type>[\w!#$%&'*+.^`|~-]+)/(?P<subtype>[\w!#$%&'*+.^`|~-]+)", re.ASCII)


class Preferences(Struct, frozen=True):
    """``wait`` is in seconds, and never more than is allowed; None where none is asked for."""

    respond_async: bool = False
    wait: int | None = None


def preferences(request: Request[Any]) -> Preferences:
    """The preferences of a request that this service knows. Of one that is given twice, the first counts."""
    found: dict[str, str] = {}
    for item in _ITEM.findall(", ".join(request.headers.getlist("prefer"))):
        name, _, value = item.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return Preferences("respond-async" in found, _seconds(found.get("wait", "")))


def _seconds(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    return LONGEST_WAIT if len(text) > 4 else min(int(text), LONGEST_WAIT)


def preferred(request: Request[Any], offered: Sequence[str]) -> str:
    """The media type of ``offered`` that the request's `Accept` likes best; the first where it does not say.

    Of those it likes equally the earlier is taken. It is the first, too, where `Accept` takes none of them: an answer
    the client may not understand tells it more than a 406 would.
    """
    ranges = [_media_range(item) for item in ",".join(request.headers.getlist("accept")).split(",")]
    return max(offered, key=lambda media_type: _quality(media_type, ranges))


def _media_range(item: str) -> tuple[str, float]:
    name, *parameters = [part.strip().lower() for part in item.split(";")]
    match = _RANGE.fullmatch(name)
    if match is None:
        return "", 0.0
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            quality = _weight(parameter[2:])
    return name, quality


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return min(max(weight, 0.0), 1.0) if isfinite(weight) else 0.0


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """What the most specific of the ranges that match says."""
    for name in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        given = [quality for each, quality in ranges if each == name]
        if given:
            return max(given)
    return 0.0
