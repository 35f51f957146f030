"""The OpenAPI document: complete, consistent in itself, and fit to be read by people and generators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from cbemail.api.examples import EXAMPLES
from cbemail.api.openapi import build_openapi, options, possible_errors
from cbemail.api.operation import Access, Operation
from cbemail.api.parameters import DESCRIPTIONS
from cbemail.api.problems import problem_of
from cbemail.api.routes import OPERATIONS

DOCUMENT = build_openapi(OPERATIONS, "1.2.3")
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def described(operation: Operation) -> dict[str, Any]:
    path = operation.path.replace(":path", "")
    found: dict[str, Any] = DOCUMENT["paths"][path][operation.method.lower()]
    return found


def nodes(node: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of the document, and where it stands."""
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from nodes(value, *path, key)
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, *path, str(index))


# ---- the document and the table


def test_every_operation_is_described_and_no_other() -> None:
    in_table = {(o.path.replace(":path", ""), o.method.lower()) for o in OPERATIONS}

    in_document = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item}

    assert in_document == in_table
    assert {method for _, method in in_document} <= METHODS


def test_operations_have_names_of_their_own() -> None:
    names = [operation.name for operation in OPERATIONS]

    assert len(names) == len(set(names))
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_says_what_it_does_and_who_may_call_it(operation: Operation) -> None:
    found = described(operation)

    assert re.fullmatch(r"[A-Z].*\.", found["summary"])
    assert found["tags"] == [operation.tag]
    ways = [set(way) for way in found["security"]]
    takes = {operation.access, operation.optional_access}
    may_do_without = {Access.OPEN, Access.OPERATOR}
    assert (bool(ways) and set() not in ways) == (operation.access not in may_do_without)
    assert ({"bearer"} in ways) == bool(takes & {Access.MAILBOX, Access.SESSION})
    assert ({"apiKey"} in ways) == bool(takes & (set(Access) - {Access.OPEN}))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_lists_its_answers_and_every_error_by_code(operation: Operation) -> None:
    responses = described(operation)["responses"]

    for status in operation.answers:
        assert str(status) in responses
    for kind in possible_errors(operation):
        status = problem_of(kind).status
        if status not in operation.answers:
            assert f"`{kind.code}`" in responses[str(status)]["description"]
    assert responses["default"] == {"$ref": "#/components/responses/Problem"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_parameters_of_an_operation_are_those_of_its_path_and_query(
    operation: Operation,
) -> None:
    parameters = described(operation).get("parameters", [])
    found = {(parameter["in"], parameter["name"]) for parameter in parameters}

    in_path = {("path", name) for name in re.findall(r"{(\w+)", operation.path)}
    in_query = {("query", field.encode_name) for field in msgspec.structs.fields(operation.query)}

    assert {each for each in found if each[0] != "header"} == in_path | in_query
    assert len(found) == len(parameters)
    for parameter in parameters:
        assert re.fullmatch(r".+[.)`]", parameter["description"])
        assert parameter["schema"]


def test_no_parameter_is_explained_that_there_is_not() -> None:
    used = {
        parameter["name"]
        for operation in OPERATIONS
        for parameter in described(operation).get("parameters", [])
    }

    assert {key.rpartition("/")[2] for key in DESCRIPTIONS} <= used


# ---- the document by itself


def test_every_reference_leads_to_a_component_and_every_component_is_used() -> None:
    references = {
        node["$ref"] for _, node in nodes(DOCUMENT) if isinstance(node, dict) and "$ref" in node
    }

    components = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "headers", "responses")
        for name in DOCUMENT["components"][kind]
    }

    assert references == components


def test_schemas_have_names_that_a_generator_can_use() -> None:
    names = list(DOCUMENT["components"]["schemas"])

    assert [name for name in names if not re.fullmatch(r"[A-Z][A-Za-z0-9]+", name)] == []


def test_tags_and_schemes_are_those_that_are_declared() -> None:
    declared = {tag["name"] for tag in DOCUMENT["tags"]}
    schemes = set(DOCUMENT["components"]["securitySchemes"])

    assert {operation.tag for operation in OPERATIONS} == declared
    used = {name for o in OPERATIONS for way in described(o)["security"] for name in way}
    assert used == schemes


def test_descriptions_are_markdown_in_paragraphs() -> None:
    descriptions = [
        node for path, node in nodes(DOCUMENT) if path and path[-1] in {"description", "summary"}
    ]

    assert [text for text in descriptions if isinstance(text, str) and "``" in text] == []
    assert DOCUMENT["info"]["version"] == "1.2.3"


# ---- examples


def test_every_operation_that_takes_json_shows_an_example() -> None:
    takes_json = {
        operation.name for operation in OPERATIONS if "application/json" in operation.media
    }

    assert EXAMPLES.keys() == takes_json


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.media], ids=lambda o: o.name)
def test_an_example_is_what_the_operation_takes(operation: Operation) -> None:
    forms = options(operation.media["application/json"])

    assert sum(is_one(EXAMPLES[operation.name], form) for form in forms) == 1


def is_one(example: Any, form: Any) -> bool:
    with suppress(msgspec.ValidationError):
        msgspec.convert(example, form, strict=True)
        return True
    return False


def test_examples_hold_no_secret_and_nobodys_address() -> None:
    for path, value in nodes(EXAMPLES):
        if path and path[-1] in {"password", "refresh_token", "access_token"}:
            assert value.startswith("your ")
        if isinstance(value, str) and "@" in value:
            assert re.fullmatch(r".*@example\.org>?", value)
