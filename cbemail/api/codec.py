"""Requests into structs, structs into responses; cursors and entity tags."""

import asyncio
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from cbemail.errors import (
    InvalidRequest,
    MalformedJson,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

Octets = bytes | bytearray | msgspec.Raw
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Decoder(Protocol[T_co]):
    """`msgspec.json.Decoder`, as far as it is used here."""

    def decode(self, data: Octets, /) -> T_co: ...


_encode = msgspec.json.Encoder().encode


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``content``, a struct, as JSON."""
    return Response(_encode(content), status, headers, "application/json")


class _Json(Response):
    """A good answer of JSON, made in half the time: its headers are ours, and few."""

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            *(
                (name.lower().encode("ascii"), value.encode("ascii"))
                for name, value in headers.items()
            ),
        ]


def no_content() -> Response:
    return Response(status_code=204)


# ---- headers


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first header of this name, in lower case. For those that every request is asked for, of which most have
    none: Starlette's mapping raises and catches a KeyError for each."""
    for given, value in scope["headers"]:
        if given == name:
            return str(value, "latin-1")
    return None


# ---- bodies

# How long a body may keep us waiting: so many seconds, and one more for so many octets that have come. Any line is
# quicker; those who mean to hold many connections open are not.
BODY_SECONDS = 20.0
BODY_OCTETS_A_SECOND = 2048


def announced_length(request: Request[Any]) -> int:
    """The octets of the body, as far as its Content-Length says; else 0."""
    announced = request.headers.get("content-length", "0")
    return int(announced) if announced.isdecimal() and len(announced) < 20 else 0


async def read_chunks(
    request: Request[Any], limit: int, *, patience: float = BODY_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The body as it comes. It is given up once it is larger than ``limit`` octets, whatever Content-Length says.

    Raises:
        PayloadTooLarge, RequestTimeout: it is too large, or comes too slowly.
    """
    if announced_length(request) > limit:
        raise _too_large(limit)
    request.scope["body_awaited"] = True
    begun = asyncio.get_running_loop().time()
    size = 0
    async with aclosing(request.stream()) as stream:
        while chunk := await _next(stream, begun + patience + size / BODY_OCTETS_A_SECOND):
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            yield chunk
    request.scope["body_awaited"] = False


async def _next(stream: AsyncGenerator[bytes, None], deadline: float) -> bytes:
    """The next of the stream's chunks, of which the last is empty. One that is there already is never too late."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(stream)
    except TimeoutError as exc:
        raise RequestTimeout("The body of the request came too slowly.") from exc


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body may have at most {limit} octets.")


def media_type(request: Request[Any]) -> str:
    """The body's media type, without parameters, in lower case; empty where none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request[Any]) -> None:
    given = media_type(request)
    if given != "application/json" and not (
        given.startswith("application/") and given.endswith("+json")
    ):
        raise UnsupportedMediaType("This call takes a body of Content-Type application/json.")


def decode_json(data: Octets, decoder: Decoder[T]) -> T:
    """``data`` as the struct ``decoder`` knows.

    Raises:
        MalformedJson: it is no JSON in UTF-8, or nested beyond reason.
        InvalidRequest: it is, but not what the call takes; the pointer says where.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedJson("The body is not valid JSON in UTF-8.") from exc


_AT = re.compile(r"^(?P<what>.*?) - at `(?:key in )?\$(?P<path>.*)`$", re.DOTALL)
_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")


def invalid(message: str) -> InvalidRequest:
    """msgspec's message as ours, its path as a JSON pointer.

    >>> invalid("Expected `str`, got `int` - at `$.to[1]`").errors
    [FieldError(pointer='#/to/1', detail='Expected str, got int.')]
    """
    match = _AT.match(message)
    what, path = (match["what"], match["path"]) if match else (message, "")
    steps = [step["name"] or step["index"].replace("...", "*") for step in _STEP.finditer(path)]
    field = _FIELD.search(what)
    if field is not None:
        steps.append(field["name"])
    pointer = "#" + "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
    return InvalidRequest.at(pointer, what.replace("`", "").rstrip(".") + ".")


# ---- queries


def decode_query(params: QueryParams, kind: type[T]) -> T:
    """Query parameters as a struct. Unknown ones and repeated ones are refused: a typo is never silently ignored."""
    values = dict(params)
    if len(values) != len(params.multi_items()):
        raise InvalidRequest("A query parameter is given more than once.")
    try:
        query = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise invalid(str(exc)) from exc
    _refuse_null(values, query)
    return query


def _refuse_null(values: dict[str, str], query: Any) -> None:  # noqa: ANN401 - any struct
    """A filter of which `null` is given would count for nothing: msgspec takes the word, in any case, for None."""
    if "null" not in map(str.lower, values.values()):
        return
    for field in msgspec.structs.fields(query):
        if field.encode_name in values and getattr(query, field.name) is None:
            detail = "The word null is no value here: leave the parameter out."
            raise InvalidRequest.at(f"#/{field.encode_name}", detail)


# ---- cursors and entity tags


def encode_cursor(position: object) -> str:
    """A place in a listing as a client carries it. Opaque, not secret: it says nothing its bearer may not know."""
    return urlsafe_b64encode(msgspec.json.encode(position)).rstrip(b"=").decode()


def decode_cursor(cursor: str, kind: type[T]) -> T:
    """What `encode_cursor` was given; anything else is an InvalidRequest."""
    try:
        data = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as exc:  # msgspec's and base64's errors are ValueErrors
        raise InvalidRequest.at("#/cursor", "This is no cursor of this listing.") from exc


def tagged_response(request: Request[Any], content: object) -> Response:
    """``content`` with its entity tag; 304 without a body where the client already has it (RFC 9110 13.1.2)."""
    body = _encode(content)
    return unless_known(request, body, entity_tag(body))


def entity_tag(body: bytes) -> str:
    """The entity tag of an answer: of the same octets, always the same."""
    return f'"{blake2b(body, digest_size=16).hexdigest()}"'


def unless_known(
    request: Request[Any], body: bytes, tag: str, more: Mapping[str, str] | None = None
) -> Response:
    """``body``, which is JSON, under its entity ``tag``; 304 where the client has it already."""
    headers = {"ETag": tag, **(more or {})}
    known = header_of(request.scope, b"if-none-match")
    if known is not None and (known.strip() == "*" or tag in re.findall(r'"[^"]*"', known)):
        return Response(status_code=304, headers=headers)
    return _Json(body, headers)
