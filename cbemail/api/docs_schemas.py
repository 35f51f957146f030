"""JSON Schema for people: what a value is, in a line, and what an object holds, in a table. Pure."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from cbemail.api.elements import Content, Markup, element, text
from cbemail.api.markdown import blocks, inline

Schema = dict[str, Any]

_BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def type_of(schema: Schema) -> Markup:
    """What a value is, with links to the schemas it names.

    >>> type_of({"anyOf": [{"type": "array", "items": {"$ref": "#/components/schemas/Address"}}, {"type": "null"}]})
    'list of <a href="#schema-Address">Address</a> or null'
    """
    if "$ref" in schema:
        name = schema_name(schema)
        return element("a", name, href=f"#schema-{name}")
    options = schema.get("anyOf") or schema.get("oneOf")
    if options is not None:
        return _joined(" or ", [type_of(option) for option in options])
    if "enum" in schema:
        return _joined(" or ", [element("code", literal(value)) for value in schema["enum"]])
    match schema.get("type"):
        case "array":
            return text(["list of ", type_of(schema.get("items") or {})])
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return text(["object of ", type_of(schema["additionalProperties"])])
        case None:
            return text("anything")
        case kind:
            form = schema.get("format")
            return text(f"{kind} ({form})" if form else str(kind))


def schema_name(reference: Schema) -> str:
    name: str = reference["$ref"].rpartition("/")[2]
    return name


def literal(value: object) -> str:
    return msgspec.json.encode(value).decode()


def bounds_of(schema: Schema) -> str:
    """How large or long it may be, and what it is where it is left out, as a sentence; empty where that is open.

    >>> bounds_of({"type": "integer", "minimum": 1, "maximum": 200, "default": 50})
    'At least 1, at most 200, default 50.'
    """
    options = schema.get("anyOf", [schema])
    found = [
        words.format(option[name])
        for option in options
        for name, words in _BOUNDS.items()
        if name in option
    ]
    if schema.get("default") not in (None, [], {}):
        found.append(f"default {literal(schema['default'])}")
    return _sentence(", ".join(found)) if found else ""


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _joined(separator: str, items: list[Markup]) -> Markup:
    return text(list(chain.from_iterable((separator, item) for item in items))[1:])


def table(caption: str, names: tuple[str, ...], rows: list[tuple[Content, ...]]) -> Markup:
    """A table whose first column heads its rows. It can be scrolled to the side where it does not fit."""
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", (element("th", name, scope="col") for name in names))),
            element("tbody", (_row(row) for row in rows)),
        ),
        class_="wide",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def _row(cells: tuple[Content, ...]) -> Markup:
    first, *rest = cells
    return element("tr", element("th", first, scope="row"), (element("td", each) for each in rest))


def render_schemas(schemas: dict[str, Schema]) -> Iterator[Markup]:
    """Each schema, folded, under the name that `type_of` links to."""
    for name, schema in sorted(schemas.items()):
        yield element(
            "details",
            element("summary", element("code", name)),
            blocks(schema.get("description", "")),
            _fields(schema) if "properties" in schema else element("p", type_of(schema)),
            id=f"schema-{name}",
            class_="schema",
        )


def _fields(schema: Schema) -> Markup:
    required = schema.get("required", [])
    rows: list[tuple[Content, ...]] = [
        (
            element("code", name),
            [type_of(field), ", required" if name in required else None],
            inline(field.get("description") or bounds_of(field)),
        )
        for name, field in schema["properties"].items()
    ]
    return table("Fields", ("field", "type", "more"), rows)
