"""Figures on standard output: one JSON object a line, with the limit it is read against. Nothing here fails a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from statistics import median


def show(
    figure: str,
    value: float,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **beside: object,
) -> None:
    """Print one figure; ``beside`` is what was measured in the same run and helps to read it."""
    line: dict[str, object] = {"figure": figure, "value": round(value, 3), "unit": unit}
    if at_least is not None:
        line |= {"at_least": at_least, "met": value >= at_least}
    if at_most is not None:
        line |= {"at_most": at_most, "met": value <= at_most}
    line["beside"] = beside
    sys.stdout.write("\n" + json.dumps(line) + "\n")
    sys.stdout.flush()


def middle(values: Iterable[float]) -> float:
    """The median, in three digits: what a round that was disturbed does not move."""
    return float(f"{median(values):.3g}")
