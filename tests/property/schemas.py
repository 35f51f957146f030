"""Values a JSON schema allows, for Hypothesis: as much of the vocabulary as the service's OpenAPI document uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Json = st.SearchStrategy[Any]

anything: Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def values(schema: Schema, components: dict[str, Schema], named: dict[str, Json]) -> Json:
    """What ``schema`` allows; a property of a name in ``named`` is drawn from there instead."""

    def of(schema: Schema) -> Json:
        if "$ref" in schema:
            return of(components[schema["$ref"].rpartition("/")[2]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if options := schema.get("anyOf") or schema.get("oneOf"):
            return st.one_of([of(option) for option in options])
        match schema.get("type"):
            case "object":
                return _objects(schema, of, named)
            case "array":
                return _arrays(schema, of)
            case kind:
                return _scalars(schema, kind)

    return of(schema)


def _objects(schema: Schema, of: Callable[[Schema], Json], named: dict[str, Json]) -> Json:
    if isinstance(schema.get("additionalProperties"), dict):
        return st.dictionaries(st.text(max_size=12), of(schema["additionalProperties"]), max_size=3)
    known = {
        name: named.get(name, of(value)) for name, value in schema.get("properties", {}).items()
    }
    required = {name: known.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(required, optional=known)


def _arrays(schema: Schema, of: Callable[[Schema], Json]) -> Json:
    if "prefixItems" in schema:
        return st.tuples(*map(of, schema["prefixItems"])).map(list)
    return st.lists(of(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)


def _scalars(schema: Schema, kind: str | None) -> Json:
    match kind:
        case "string":
            return st.text(
                min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 40)
            )
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return anything
