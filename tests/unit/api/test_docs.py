"""The page of the API: every call and every schema is on it, and all of it hangs together."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

import pytest

from cbemail.api.docs import render_docs
from cbemail.api.openapi import build_openapi
from cbemail.api.operation import Operation
from cbemail.api.problem_pages import EXPLANATIONS
from cbemail.api.routes import OPERATIONS

DOCUMENT = build_openapi(OPERATIONS, "1.2.3")
HTML = render_docs(DOCUMENT)
Element = tuple[str, dict[str, str | None]]


class Elements(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[Element] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(HTML).found


def values(name: str, *tags: str) -> list[str]:
    found = [attributes.get(name) for tag, attributes in ELEMENTS if not tags or tag in tags]
    return [value for value in found if value is not None]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_call_has_its_place_and_a_form(operation: Operation) -> None:
    path = operation.path.replace(":path", "")

    [form] = [
        attributes
        for tag, attributes in ELEMENTS
        if tag == "form" and (attributes.get("data-method"), attributes.get("data-path")) == (operation.method, path)
    ]  # fmt: skip

    assert operation.name in values("id", "details")
    assert f"#{operation.name}" in values("href", "a")
    assert form["aria-label"] == f"Try {operation.method} {path}"


def test_every_schema_has_its_place() -> None:
    schemas = {f"schema-{name}" for name in DOCUMENT["components"]["schemas"]}

    assert schemas <= set(values("id", "details"))


def test_no_two_elements_have_the_same_id() -> None:
    assert [name for name, number in Counter(values("id")).items() if number > 1] == []


def test_every_link_within_the_page_leads_somewhere() -> None:
    local = {href[1:] for href in values("href", "a") if href.startswith("#")}

    assert local - set(values("id")) == set()


def test_every_problem_it_names_is_explained() -> None:
    linked = {href for href in values("href", "a") if href.startswith("/problems/")}

    assert linked - {f"/problems/{code}" for code in EXPLANATIONS} == set()
    assert len(linked) > 20


def test_every_field_has_a_label() -> None:
    fields = set(values("id", "input", "select", "textarea"))

    assert fields == set(values("for", "label"))
    assert len(fields) == sum(tag in {"input", "select", "textarea"} for tag, _ in ELEMENTS)


def test_it_needs_no_policy_that_lets_text_run() -> None:
    handlers = [name for _, attributes in ELEMENTS for name in attributes if name.startswith("on")]

    assert handlers == []
    assert values("style") == []
    assert not {"script", "style"} & {tag for tag, _ in ELEMENTS}
