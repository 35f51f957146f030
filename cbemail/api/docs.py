"""`/docs`: the API for people, made from the OpenAPI document, with a form to try each call."""

import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from cbemail.api.docs_forms import pretty, try_form
from cbemail.api.docs_schemas import Schema, bounds_of, render_schemas, table, type_of
from cbemail.api.elements import Content, Markup, element, text
from cbemail.api.markdown import blocks, inline
from cbemail.api.operation import Call
from cbemail.api.page import navigation, page

Described = tuple[str, str, Schema]  # method, path, operation

_WAYS = {"bearer": "a session's token", "apiKey": "an API key"}
_CREDENTIALS = (
    ("token", "Token", "Authorization: Bearer"),
    ("key", "API key", "X-API-Key, where there is no token"),
    ("session", "Session", "X-Session-ID, with an API key"),
)


async def get_docs(call: Call[object, None]) -> Response:
    """The API for people, with a form to try each call."""
    content = call.request.state["docs"]
    return page("Documentation", content, header=navigation(), script="docs.js")


def render_docs(document: dict[str, Any]) -> Markup:
    """The main part of the page for the OpenAPI ``document``."""
    groups = _groups(document)
    info, schemas = document["info"], document["components"]["schemas"]
    return element(
        "div",
        _contents(groups),
        element(
            "div",
            element("h1", "The API"),
            element("p", info["summary"], f" Version {info['version']}.", class_="note"),
            blocks(info["description"]),
            _credentials(),
            (_group(tag, operations, schemas) for tag, operations in groups),
            element("section", element("h2", "Schemas"), render_schemas(schemas), id="schemas"),
        ),
        class_="docs",
    )


def _groups(document: Schema) -> list[tuple[Schema, list[Described]]]:
    """Each tag with its operations."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return [
        (tag, [each for each in operations if tag["name"] in each[2]["tags"]])
        for tag in document["tags"]
    ]


def _anchor(tag: Schema) -> str:
    return f"group-{tag['name'].lower().replace(' ', '-')}"


def _contents(groups: list[tuple[Schema, list[Described]]]) -> Markup:
    items = [
        element(
            "li",
            element("a", tag["name"], href=f"#{_anchor(tag)}"),
            element("ul", (element("li", _link(each)) for each in operations)),
        )
        for tag, operations in groups
    ]
    schemas = element("li", element("a", "Schemas", href="#schemas"))
    return element("nav", element("ul", items, schemas), class_="contents", aria_label="Contents")


def _link(described: Described) -> Markup:
    method, path, operation = described
    return element("a", _method(method), " ", _path(path), href=f"#{operation['operationId']}")


def _method(method: str) -> Markup:
    return element("span", method, class_=f"method {method.lower()}")


def _path(path: str) -> Markup:
    """A path that may be broken into lines before a slash."""
    pieces = re.split(r"(?=/)", path)
    return element("code", ([element("wbr"), piece] for piece in pieces), class_="path")


def _credentials() -> Markup:
    """Kept by the script in this tab, and sent to this service only."""
    fields = [
        element(
            "p",
            element("label", label, for_=f"credential-{name}"),
            element(
                "input",
                id=f"credential-{name}",
                type="text" if name == "session" else "password",
                autocomplete="off",
                spellcheck="false",
                aria_describedby=f"credential-{name}-use",
                data_credential=name,
            ),
            element("small", use, id=f"credential-{name}-use"),
            class_="field",
        )
        for name, label, use in _CREDENTIALS
    ]
    return element(
        "form",
        element("h2", "Who you are"),
        element(
            "p",
            "For trying calls below. Kept in this tab until you close it; a call that gives a "
            "token fills it in.",
        ),
        fields,
        element("button", "Forget", type="reset"),
        class_="credentials",
        aria_label="Credentials",
        hidden=True,
    )


# ---- operations


def _group(tag: Schema, operations: list[Described], schemas: dict[str, Schema]) -> Markup:
    return element(
        "section",
        element("h2", tag["name"]),
        blocks(tag["description"]),
        (_operation(*described, schemas) for described in operations),
        id=_anchor(tag),
    )


def _operation(method: str, path: str, operation: Schema, schemas: dict[str, Schema]) -> Markup:
    return element(
        "details",
        element(
            "summary",
            element("h3", _method(method), " ", _path(path)),
            element("span", inline(operation["summary"]), class_="what"),
        ),
        blocks(operation.get("description", "")),
        element("p", _who(operation["security"]), class_="note"),
        _parameters(operation.get("parameters", [])),
        _body(operation.get("requestBody")),
        _answers(operation["responses"]),
        try_form(method, path, operation, schemas),
        id=operation["operationId"],
        class_="operation",
    )


def _who(security: list[dict[str, list[str]]]) -> str:
    """
    >>> _who([{"bearer": []}, {"apiKey": []}]), _who([]), _who([{}, {"apiKey": []}])
    ("Needs a session's token or an API key.", 'Open to anybody.', 'Takes an API key.')
    """
    ways = " or ".join(_WAYS[scheme] for way in security for scheme in way)
    if not ways:
        return "Open to anybody."
    return f"{'Takes' if {} in security else 'Needs'} {ways}."


def _parameters(parameters: list[Schema]) -> Markup | None:
    if not parameters:
        return None
    rows: list[tuple[Content, ...]] = [
        (
            element("code", each["name"]),
            each["in"] + (", required" if each["required"] else ""),
            type_of(each["schema"]),
            [inline(each["description"]), " ", bounds_of(each["schema"])],
        )
        for each in parameters
    ]
    return table("Parameters", ("name", "in", "type", "meaning"), rows)


def _body(body: Schema | None) -> Iterator[Markup]:
    if body is None:
        return
    yield element("h4", "Body" if body["required"] else "Body, which may be left out")
    for media_type, content in body["content"].items():
        kind = type_of(content["schema"]) if "schema" in content else None
        yield element("p", element("code", media_type), [": ", kind] if kind else None)
        if "example" in content:
            yield element("pre", element("code", pretty(content["example"])), tabindex=0)


def _answers(responses: dict[str, Schema]) -> Markup:
    rows: list[tuple[Content, ...]] = [
        (status, _when(answer["description"]), _kinds(answer.get("content", {})))
        for status, answer in responses.items()
        if "$ref" not in answer
    ]
    return table("Answers", ("status", "when", "body"), rows)


_PROBLEM = re.compile(r"^- `(?P<code>[a-z-]+)`: (?P<meaning>.*)$", re.MULTILINE)


def _when(description: str) -> Markup:
    """When an answer comes. The code of a problem leads to what to do about it."""
    problems = _PROBLEM.findall(description)
    if not problems:
        return blocks(description)
    return element(
        "ul",
        (
            element(
                "li",
                element("a", element("code", code), href=f"/problems/{code}"),
                ": ",
                inline(meaning),
            )
            for code, meaning in problems
        ),
    )


def _kinds(content: Schema) -> Iterator[Content]:
    for media_type, described in content.items():
        kind = type_of(described["schema"]) if "schema" in described else None
        shown = kind if media_type == "application/json" and kind else element("code", media_type)
        yield element("div", text(shown))
