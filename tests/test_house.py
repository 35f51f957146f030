"""The rules of the house that a machine can keep: part 1, 2 and 4 of the style, as tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = sorted((ROOT / "cbemail").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

LONGEST_FILE = 450
EVASIVE_NAMES = {"utils", "helpers", "common", "base", "manager", "misc", "types"}
MAY_SLEEP = {ROOT / "tests/fakes/fault_proxy.py"}  # delaying octets is what it is for


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text().count("\n")

    assert lines <= LONGEST_FILE, f"{lines} lines: give one of its nouns or verbs a file of its own"


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_a_module_is_named_for_what_it_holds(path: Path) -> None:
    names = {path.stem, *path.relative_to(ROOT).parts[:-1]}

    assert not names & EVASIVE_NAMES


@pytest.mark.parametrize(
    "path", [path for path in (*PRODUCT, *TESTS) if path.name == "__init__.py"], ids=named
)
def test_a_package_file_is_empty(path: Path) -> None:
    assert path.read_text() == ""


@pytest.mark.parametrize("path", [path for path in TESTS if path not in MAY_SLEEP], ids=named)
def test_no_test_sleeps(path: Path) -> None:
    """It waits for what it means, with a deadline: a sleep is too long on one machine, too short on the other."""
    calls = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    names = [getattr(call, "attr", getattr(call, "id", None)) for call in calls]

    assert "sleep" not in names


@pytest.mark.parametrize("path", TESTS, ids=named)
def test_no_test_mocks(path: Path) -> None:
    """A mock agrees with whoever wrote it. The fakes here speak the protocol, on a socket."""
    imports = [
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]

    assert not [name for name in imports if name and name.split(".")[:2] == ["unittest", "mock"]]
