"""The form to try a call from its page: its parameters and body as fields. `pages/docs.js` sends it. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from cbemail.api.docs_schemas import Schema, literal, schema_name
from cbemail.api.elements import Markup, element

# One field at the head of the page gives these to every call, and the gate's cookie does.
_GIVEN_ELSEWHERE = {"X-Session-ID", "X-Gate-PIN"}


def try_form(method: str, path: str, operation: Schema, schemas: dict[str, Schema]) -> Markup:
    """Hidden until the script shows it: without the script it could send nothing."""
    name = operation["operationId"]
    ways = [scheme for way in operation["security"] for scheme in way]
    return element(
        "form",
        element("h4", "Try it"),
        _parameters(name, operation),
        _bodies(name, operation, schemas),
        _media_types("Accept", f"{name}-accept", "accept", _answer_types(operation)),
        element("button", "Send"),
        element("button", "Stop", type="button", class_="stop", hidden=True),
        element("div", class_="answer", role="status", hidden=True),
        class_="try",
        hidden=True,
        aria_label=f"Try {method} {path}",
        data_method=method,
        data_path=path,
        data_security=" ".join(ways),
    )


# ---- parameters


def _parameters(name: str, operation: Schema) -> Iterator[Markup]:
    for parameter in operation.get("parameters", []):
        if parameter["name"] not in _GIVEN_ELSEWHERE:
            yield _field(f"{name}-{parameter['in']}-{parameter['name']}", parameter)


def _field(field_id: str, parameter: Schema) -> Markup:
    return element(
        "p",
        element("label", element("code", parameter["name"]), for_=field_id),
        _input(field_id, parameter),
        class_="field",
    )


def _input(field_id: str, parameter: Schema) -> Markup:
    schema = parameter["schema"]
    attributes: dict[str, Any] = {
        "id": field_id,
        "name": parameter["name"],
        "data_in": parameter["in"],
        "required": parameter["required"],
    }
    choices = ["true", "false"] if schema.get("type") == "boolean" else schema.get("enum")
    if choices is not None:
        return element("select", _options(choices, blank=not parameter["required"]), **attributes)
    default = schema.get("default")
    return element(
        "input",
        type="number" if schema.get("type") == "integer" else "text",
        placeholder=parameter.get("example") or (literal(default) if default else None),
        autocomplete="off",
        **attributes,
    )


def _options(choices: list[Any], *, blank: bool) -> Iterator[Markup]:
    if blank:
        yield element("option", value="")
    for choice in choices:
        yield element("option", str(choice))


# ---- bodies


def _bodies(name: str, operation: Schema, schemas: dict[str, Schema]) -> Iterator[Markup]:
    """A field set for each media type; the script sends the one that is chosen."""
    content = operation.get("requestBody", {}).get("content", {})
    chosen = _media_types("Content-Type", f"{name}-media", "media", list(content))
    if chosen is not None:
        yield chosen
    example = content.get("application/json", {}).get("example", {})
    for number, (media_type, described) in enumerate(content.items()):
        fields = [
            element("p", element("label", label, for_=f"{name}-{number}-{part}"), control)
            for part, label, control in _body_fields(
                f"{name}-{number}", media_type, described, example, schemas
            )
        ]
        yield element(
            "fieldset",
            element("legend", "Body: ", element("code", media_type)),
            fields,
            data_media=media_type,
            hidden=number > 0,
        )


def _body_fields(
    prefix: str, media_type: str, described: Schema, example: Schema, schemas: dict[str, Schema]
) -> Iterator[tuple[str, str, Markup]]:
    """Each field's part of its id, its label, and what is filled in."""
    if media_type != "multipart/form-data":
        shown = example if media_type == "application/json" else None
        label = "JSON" if shown is not None else "Text"
        yield "body", label, _text_area(f"{prefix}-body", "body", shown)
        return
    for part, schema in schemas[schema_name(described["schema"])]["properties"].items():
        if schema.get("format") == "binary":
            file = element("input", type="file", id=f"{prefix}-{part}", name=part)
            yield part, part, file
        else:
            known = schemas[schema_name(schema)]["properties"]
            shown = {key: value for key, value in example.items() if key in known}
            yield part, part, _text_area(f"{prefix}-{part}", part, shown)


def _text_area(area_id: str, name: str, example: object) -> Markup:
    shown = "" if example is None else pretty(example)
    rows = max(4, min(shown.count("\n") + 2, 24))
    return element(
        "textarea", shown, id=area_id, name=name, rows=rows, spellcheck="false", autocomplete="off"
    )


def pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _media_types(label: str, field_id: str, purpose: str, choices: list[str]) -> Markup | None:
    if len(choices) < 2:
        return None
    return element(
        "p",
        element("label", element("code", label), for_=field_id),
        element("select", _options(choices, blank=False), id=field_id, data_choice=purpose),
        class_="field",
    )


def _answer_types(operation: Schema) -> list[str]:
    responses = operation["responses"].items()
    good = [answer.get("content", {}) for status, answer in responses if status.startswith("2")]
    return list(dict.fromkeys(media_type for content in good for media_type in content))
