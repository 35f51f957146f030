"""`/openapi.json` (OpenAPI 3.1), made from the table of operations and their structs: it cannot drift from them."""

import re
from collections.abc import Iterable, Sequence
from inspect import getdoc
from typing import Any

import msgspec
from starlette.responses import Response

from cbemail import errors
from cbemail.api.codec import json_response
from cbemail.api.operation import Access, Answer, Call, Operation, Raw
from cbemail.api.problems import ProblemDocument, problem_of
from cbemail.errors import CbemailError

Json = dict[str, Any]
Refs = dict[Any, Json]  # a struct -> where its schema stands
AnyOperation = Operation[Any, Any]

_TEMPLATE = "#/components/schemas/{name}"

# What any call can end in, by what it needs: the credential, the body, the mail server.
_ALWAYS: tuple[type[CbemailError], ...] = (errors.InvalidRequest,)
_BODY = (errors.MalformedJson, errors.PayloadTooLarge, errors.UnsupportedMediaType)
_CREDENTIAL = (errors.Unauthenticated, errors.TokenExpired)
_MAIL = (
    errors.UpstreamError,
    errors.UpstreamUnavailable,
    errors.UpstreamTimeout,
    errors.CredentialsStale,
    errors.Overloaded,
)


async def get_openapi(call: Call[object, None]) -> Response:
    """The API, as OpenAPI 3.1."""
    return json_response(call.request.app.state.openapi)


def build_openapi(operations: Sequence[AnyOperation], version: str) -> Json:
    """The document for ``operations``."""
    kinds = _kinds(operations)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_TEMPLATE)
    refs = dict(zip(kinds, schemas, strict=True))
    paths: Json = {}
    for operation in operations:
        path = re.sub(r":\w+}", "}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(
            operation, refs, components
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cbemail",
            "version": version,
            "summary": "Any mailbox as a REST API, over its own IMAP and SMTP servers.",
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _kinds(operations: Iterable[AnyOperation]) -> list[Any]:
    """Every struct the document refers to, each once."""
    kinds: dict[Any, None] = {ProblemDocument: None}
    for operation in operations:
        kinds[operation.query] = None
        if operation.body not in {None, Raw}:
            kinds[operation.body] = None
        for answer in operation.answers.values():
            kinds |= dict.fromkeys(answer.refers_to)
            if answer.content is not None:
                kinds[answer.content] = None
    return list(kinds)


def _operation(operation: AnyOperation, refs: Refs, components: Json) -> Json:
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": (getdoc(operation.endpoint) or "").split("\n\n")[0].replace("\n", " "),
        "parameters": [
            *_path_parameters(operation),
            *_query_parameters(operation, refs, components),
        ],
        "responses": _responses(operation, refs),
    }
    if operation.access is not Access.OPEN:
        described["security"] = [{"apiKey": []}]
        if operation.access is not Access.SERVICE:
            described["security"].insert(0, {"bearer": []})
    if operation.access is Access.MAILBOX:
        described["parameters"].append(_SESSION_HEADER)
    if operation.name == "send_message":
        described["parameters"].append(_KEY_HEADER)
    if operation.body is not None:
        described["requestBody"] = _body(operation, refs)
    return described


_SESSION_HEADER: Json = {
    "name": "X-Session-ID",
    "in": "header",
    "description": "Which session the call is for; required with an API key.",
    "schema": {"type": "string"},
}
_KEY_HEADER: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body within 24 hours answer the first response again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def _path_parameters(operation: AnyOperation) -> list[Json]:
    found = re.findall(r"{(\w+)(?::(\w+))?}", operation.path)
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 1} if kind == "int" else {"type": "string"},
        }
        for name, kind in found
    ]


def _query_parameters(operation: AnyOperation, refs: Refs, components: Json) -> list[Json]:
    """One parameter a field of the query struct."""
    name = refs[operation.query]["$ref"].rpartition("/")[2]
    schema = components[name]
    required = schema.get("required", [])
    return [
        {
            "name": field,
            "in": "query",
            "required": field in required,
            "schema": _without_null(value),
        }
        for field, value in schema["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """A query parameter is there or not; it is never null."""
    if "anyOf" not in schema:
        return schema
    some = [option for option in schema["anyOf"] if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    return rest | (some[0] if len(some) == 1 else {"anyOf": some})


def _body(operation: AnyOperation, refs: Refs) -> Json:
    if operation.body is Raw:
        return {"required": True, "content": {"message/rfc822": {}, "application/json": {}}}
    return {
        "required": not operation.body_optional,
        "content": {"application/json": {"schema": refs[operation.body]}},
    }


def _responses(operation: AnyOperation, refs: Refs) -> Json:
    responses = {
        str(status): _response(answer, refs) for status, answer in operation.answers.items()
    }
    by_status: dict[int, list[type[CbemailError]]] = {}
    for kind in dict.fromkeys(possible_errors(operation)):
        by_status.setdefault(problem_of(kind).status, []).append(kind)
    for status, kinds in sorted(by_status.items()):
        codes = ", ".join(f"`{kind.code}`" for kind in kinds)
        if str(status) not in responses:
            responses[str(status)] = {
                "description": codes,
                "content": {"application/problem+json": {"schema": refs[ProblemDocument]}},
            }
    return responses


def possible_errors(operation: AnyOperation) -> list[type[CbemailError]]:
    """Every kind of error the operation can end in."""
    kinds = [*_ALWAYS, *operation.errors]
    if operation.body is not None:
        kinds += _BODY
    if operation.access is not Access.OPEN:
        kinds += _CREDENTIAL
    if operation.access is Access.MAILBOX:
        kinds += [errors.SessionRequired, errors.SessionNotFound, *_MAIL]
    if operation.access is Access.SESSION:
        kinds += [errors.SessionNotFound, *_MAIL]
    if operation.name == "create_session":
        kinds += _MAIL
    return kinds


def _response(answer: Answer, refs: Refs) -> Json:
    described: Json = {"description": answer.description}
    if answer.content is not None:
        described["content"] = {answer.media_type: {"schema": refs[answer.content]}}
    elif answer.media_type != "application/json":
        described["content"] = {answer.media_type: {}}
    return described
