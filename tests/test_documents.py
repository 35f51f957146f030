"""What is written for users says what the service does: README, CHANGELOG and `.env.example`, held to the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from cbemail.api.openapi import build_openapi
from cbemail.api.routes import OPERATIONS
from cbemail.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def between(name: str) -> str:
    """The part of the README between the comments of that name."""
    part = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert part, name
    return part[1]


def table(*rows: tuple[str, ...]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "".join("| " + " | ".join(cell or " " for cell in line) + " |\n" for line in lines)


def test_the_readme_lists_every_call_with_its_summary() -> None:
    paths = build_openapi(OPERATIONS, "0")["paths"]
    rows = [
        (f"`{method.upper()} {path}`", described["summary"])
        for path, methods in paths.items()
        for method, described in methods.items()
    ]

    assert between("calls") == table(("call", "what it does"), *rows)


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    rows = [
        (f"`{name}`", f"`{variable.default}`" if variable.default else "", variable.doc)
        for name, variable in Settings.variables().items()
    ]

    assert between("settings") == table(("variable", "default", "meaning"), *rows)


def test_the_example_configuration_has_the_variables_of_the_readme() -> None:
    example = re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE)

    listed = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`| ) \|", between("settings"), re.MULTILINE)

    assert listed == example


def test_the_readme_says_what_each_library_is_for() -> None:
    required = [re.split(r"[^\w-]", line)[0] for line in PROJECT["dependencies"]]

    named = re.findall(r"^- \[([\w-]+)\]\(https://\S+\): .+\.$", between("libraries"), re.MULTILINE)

    assert sorted(named, key=str.lower) == sorted(required, key=str.lower)


def test_the_changelog_ends_with_the_version_there_is() -> None:
    versions = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d{2}-\d{2}$", CHANGELOG, re.MULTILINE)

    assert versions[0] == PROJECT["version"]


def test_links_within_the_documents_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README + CHANGELOG)

    assert [link for link in links if not (ROOT / link).exists()] == []
