"""`Idempotency-Key`: a request repeated with the same key and body is answered as it was, and does nothing twice."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cbemail.errors import InvalidRequest
from cbemail.store.records import StoredResponse

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def key_of(request: Request[Any]) -> str | None:
    """The request's key, if it has one."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidRequest(
            "An Idempotency-Key is 1 to 255 printable ASCII characters without spaces."
        )
    return keys[0]


def stored(response: StoredResponse) -> Response:
    """The response as it is given the first time."""
    return Response(response.body, response.status, response.headers, "application/json")


def replayed(response: StoredResponse) -> Response:
    """The response as it is given from the second time on."""
    headers = response.headers | {"Idempotency-Replayed": "true"}
    return Response(response.body, response.status, headers, "application/json")
