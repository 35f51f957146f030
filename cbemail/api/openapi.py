"""`/openapi.json` (OpenAPI 3.1), made from the table of operations and their structs: it cannot drift from them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from inspect import cleandoc, getdoc
from types import UnionType
from typing import Any, get_args

import msgspec
from starlette.responses import Response

from cbemail import errors
from cbemail.api.codec import json_response
from cbemail.api.examples import EXAMPLES
from cbemail.api.operation import Access, Answer, Call, Operation
from cbemail.api.parameters import (
    AGE_HEADER,
    DESCRIPTIONS,
    FORM_ENCODING,
    GATE_HEADER,
    KEY_HEADER,
    PATH_SCHEMAS,
    RESPONSE_HEADERS,
    SESSION_HEADER,
    TAG_HEADER,
)
from cbemail.api.problems import ProblemDocument, problem_of
from cbemail.errors import CbemailError

Json = dict[str, Any]
Refs = dict[Any, Json]  # a struct -> where its schema stands
AnyOperation = Operation[Any, Any]

ABOUT = """\
Log in once with `POST /api/sessions`; then every call takes the session's token as `Authorization: Bearer …`. A
trusted service sends `X-API-Key` instead, and names the session in `X-Session-ID`.

Every error is an `application/problem+json` (RFC 9457): its `code` is stable, and `type` leads to what it means.
Times are RFC 3339 in UTC. Unknown fields and parameters are refused, so that a typo is never silently ignored."""

TAGS = {
    "Sessions": "A session is one mailbox that has been logged in to. Its credentials are kept sealed.",
    "Folders": "Folders are named by their full path in Unicode, or by special use, such as `\\Sent`.",
    "Messages": "A message is named by its folder and its UID there. Reading changes nothing.",
    "Send": "Mail goes out over the session's own SMTP server, as the session's own address.",
    "Batch send": "Mail merge: accepted once it is on disk, sent from there, and accounted for message by message.",
    "Pages": "For people, and the gate before them: where a PIN is set, it asks for it.",
    "Operations": "For those who run the service, and for programs that learn the API.",
}

# What any call can end in, by what it needs: the credential, the session, the body.
_ALWAYS = (errors.InvalidRequest,)
_CREDENTIAL = (errors.Unauthenticated, errors.TokenExpired)
_GATE = (errors.PinRequired, errors.RateLimited)
_BODY = (
    errors.MalformedJson,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.RequestTimeout,
    errors.UpstreamTimeout,
)

_WITHOUT: Json = {}
_BY_TOKEN: Json = {"bearer": []}
_BY_KEY: Json = {"apiKey": []}
_SECURITY: dict[Access, list[Json]] = {
    Access.OPEN: [],
    Access.MAILBOX: [_BY_TOKEN, _BY_KEY],
    Access.SESSION: [_BY_TOKEN, _BY_KEY],
    Access.SERVICE: [_BY_KEY],
    Access.OPERATOR: [_WITHOUT, _BY_KEY],
}


async def get_openapi(call: Call[object, None]) -> Response:
    """The API, as OpenAPI 3.1."""
    return json_response(call.request.state["openapi"])


def build_openapi(operations: Sequence[AnyOperation], version: str) -> Json:
    """The document for ``operations``."""
    queries = {operation.query for operation in operations}
    kinds = [*dict.fromkeys(_kinds(operations))]
    template = "#/components/schemas/{name}"
    schemas, components = msgspec.json.schema_components([*kinds, *queries], ref_template=template)
    refs = dict(zip([*kinds, *queries], schemas, strict=True))
    # A query's fields become parameters; as a schema it is nothing a client ever meets.
    fields = {query: components.pop(_name(refs[query])) for query in queries}
    paths: Json = {}
    for operation in operations:
        path = re.sub(r":\w+}", "}", operation.path)
        described = _operation(operation, refs, fields[operation.query])
        paths.setdefault(path, {})[operation.method.lower()] = described
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "cbemail",
            "version": version,
            "summary": "Any mailbox as a REST API, over its own IMAP and SMTP servers.",
            "description": ABOUT,
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "servers": [{"url": "/", "description": "The service this document comes from."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Problem": _problem(refs, "Any other problem; `code` says which.")},
            "headers": RESPONSE_HEADERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The token of a session. It reaches this session only.",
                },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "The key of a trusted service. It reaches every session.",
                },
            },
        },
    }
    _write_markdown(document)
    return document


def _kinds(operations: Iterable[AnyOperation]) -> Iterator[Any]:
    """Every type the document refers to."""
    yield ProblemDocument
    for operation in operations:
        for kind in operation.media.values():
            yield from options(kind)
        for answer in operation.answers.values():
            yield from answer.refers_to
            yield from options(answer.content)


def options(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type, a union of types, or None
    """The types that a body may be of."""
    if isinstance(kind, UnionType):
        return get_args(kind)
    return () if kind is None else (kind,)


def _schema(kind: Any, refs: Refs) -> Json:  # noqa: ANN401 - as above
    schemas = [refs[option] for option in options(kind)]
    return schemas[0] if len(schemas) == 1 else {"oneOf": schemas}


def _name(ref: Json) -> str:
    name: str = ref["$ref"].rpartition("/")[2]
    return name


def _write_markdown(node: Any) -> None:  # noqa: ANN401 - any part of the document
    """Docstrings are reStructuredText in lines; descriptions are Markdown in paragraphs."""
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            _write_markdown(child)
    if isinstance(node, dict) and isinstance(node.get("description"), str):
        text = cleandoc(node["description"]).replace("``", "`")
        node["description"] = re.sub(r"(?<!\n)\n(?!\n|- )", " ", text)


# ---- operations


def _operation(operation: AnyOperation, refs: Refs, query: Json) -> Json:
    summary, _, rest = (getdoc(operation.endpoint) or "").partition("\n\n")
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": summary.replace("\n", " ").replace("``", "`"),
        "description": rest,
        "parameters": [
            *_path_parameters(operation),
            *_query_parameters(operation, query),
            *_header_parameters(operation),
        ],
        "responses": _responses(operation, refs),
        "security": _security(operation),
    }
    if operation.media:
        described["requestBody"] = _request_body(operation, refs)
    return {key: value for key, value in described.items() if value or key == "security"}


def _security(operation: AnyOperation) -> list[Json]:
    if operation.optional_access is None:
        return _SECURITY[operation.access]
    return [_WITHOUT, *_SECURITY[operation.optional_access]]


def _path_parameters(operation: AnyOperation) -> list[Json]:
    found = re.findall(r"(\w+)/{(\w+)(?::\w+)?}", operation.path)
    return [
        {
            "name": name,
            "in": "path",
            "description": DESCRIPTIONS.get(f"{before}/{name}") or DESCRIPTIONS[name],
            "required": True,
            "schema": PATH_SCHEMAS.get(name, {"type": "string"}),
        }
        for before, name in found
    ]


def _query_parameters(operation: AnyOperation, query: Json) -> list[Json]:
    """One parameter a field of the query struct."""
    required = query.get("required", [])
    before = operation.path.rpartition("/")[2]
    return [
        {
            "name": name,
            "in": "query",
            "description": DESCRIPTIONS.get(f"{before}/{name}") or DESCRIPTIONS[name],
            "required": name in required,
            "schema": _without_null(schema),
        }
        for name, schema in query["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """A query parameter is there or not; it is never null."""
    if "anyOf" not in schema:
        return schema
    some = [option for option in schema["anyOf"] if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    return rest | (some[0] if len(some) == 1 else {"anyOf": some})


def _header_parameters(operation: AnyOperation) -> Iterator[Json]:
    if operation.gated:
        yield GATE_HEADER
    if operation.access is Access.MAILBOX:
        yield SESSION_HEADER
    yield from map(dict, operation.headers)
    if errors.IdempotencyMismatch in operation.errors:
        yield KEY_HEADER
    if 304 in operation.answers:
        yield TAG_HEADER
    if operation.is_shared:
        yield AGE_HEADER


def _request_body(operation: AnyOperation, refs: Refs) -> Json:
    content: Json = {}
    for media_type, kind in operation.media.items():
        content[media_type] = {"schema": _schema(kind, refs)} if kind is not None else {}
        if media_type == "application/json":
            content[media_type]["example"] = EXAMPLES[operation.name]
        if media_type == "multipart/form-data":
            content[media_type]["encoding"] = FORM_ENCODING
    return {"required": not operation.body_optional, "content": content}


# ---- answers


def _responses(operation: AnyOperation, refs: Refs) -> Json:
    responses: Json = {}
    for status, answer in operation.answers.items():
        responses[str(status)] = _response(operation, status, answer, refs)
    by_status: dict[int, list[type[CbemailError]]] = {}
    for kind in dict.fromkeys(possible_errors(operation)):
        by_status.setdefault(problem_of(kind).status, []).append(kind)
    for status, kinds in sorted(by_status.items()):
        codes = "\n".join(f"- `{kind.code}`: {problem_of(kind).meaning}" for kind in kinds)
        responses.setdefault(str(status), _problem(refs, codes, status))
    return responses | {"default": {"$ref": "#/components/responses/Problem"}}


def possible_errors(operation: AnyOperation) -> list[type[CbemailError]]:
    """Every kind of error the operation can end in."""
    kinds: list[type[CbemailError]] = [*_ALWAYS, *operation.errors]
    if operation.body is not None:
        kinds += _BODY
    if operation.gated:
        kinds += _GATE
    if operation.access is not Access.OPEN:
        kinds += _CREDENTIAL
    if operation.access is Access.MAILBOX:
        kinds += [errors.SessionRequired]
    if operation.access in {Access.MAILBOX, Access.SESSION}:
        kinds += [errors.SessionNotFound, errors.RateLimited]
    return kinds


def _response(operation: AnyOperation, status: int, answer: Answer, refs: Refs) -> Json:
    names = ["X-Request-ID"]
    names += ["Server-Timing"] if operation.access is Access.MAILBOX else []
    limited = operation.access in {Access.MAILBOX, Access.SESSION}
    names += ["RateLimit-Policy", "RateLimit"] if limited else []
    names += ["Location"] if status == 201 or 202 in operation.answers else []
    prefers = any(header["name"] == "Prefer" for header in operation.headers)
    names += ["Preference-Applied"] if prefers else []
    names += ["ETag"] if 304 in operation.answers else []
    names += ["Age"] if operation.is_shared else []
    names += ["Idempotency-Replayed"] if errors.IdempotencyMismatch in operation.errors else []
    described: Json = {"description": answer.description, "headers": _headers(names)}
    if answer.content is not None:
        media_type = answer.media_type or "application/json"
        described["content"] = {media_type: {"schema": _schema(answer.content, refs)}}
    elif answer.media_type is not None:
        described["content"] = {answer.media_type: {}}
    for media_type in answer.also:
        described["content"][media_type] = {}
    return described


def _problem(refs: Refs, description: str, status: int = 0) -> Json:
    names = ["X-Request-ID"]
    names += ["WWW-Authenticate"] if status == 401 else []
    names += ["RateLimit-Policy", "RateLimit"] if status == 429 else []
    names += ["Retry-After"] if status in {408, 429, 503, 504} else []
    return {
        "description": description,
        "headers": _headers(names),
        "content": {"application/problem+json": {"schema": refs[ProblemDocument]}},
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
