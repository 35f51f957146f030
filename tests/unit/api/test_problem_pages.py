"""What the codes of problems mean, for people: none is left unexplained."""

from __future__ import annotations

import re

import pytest

from cbemail.api.problem_pages import EXPLANATIONS, Explanation
from cbemail.api.problems import INTERNAL_CODE, PROBLEMS


def test_every_code_there_is_is_explained() -> None:
    assert EXPLANATIONS.keys() == {kind.code for kind in PROBLEMS} | {INTERNAL_CODE}


@pytest.mark.parametrize("explanation", EXPLANATIONS.values(), ids=lambda each: each.code)
def test_what_to_do_is_said_in_sentences(explanation: Explanation) -> None:
    assert re.fullmatch(r"[A-Z].+\.", explanation.remedy)
    assert explanation.remedy != explanation.meaning
    assert explanation.remedy.count("`") % 2 == 0
