"""The page at which people pass the gate, and the check that a reverse proxy makes for it."""

import re
from urllib.parse import parse_qs, quote, urlencode

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cbemail.api import auth
from cbemail.api.codec import decode_json, media_type, no_content, require_json
from cbemail.api.elements import Markup, element
from cbemail.api.gate import PASS_LIFETIME
from cbemail.api.limits import counted_as
from cbemail.api.operation import Call, Raw
from cbemail.api.page import address_of, page
from cbemail.api.state import Services, State
from cbemail.errors import InvalidRequest, Unauthenticated

MAX_GATE_BODY = 4096
FORM = "application/x-www-form-urlencoded"

# A path of this service. `//host` and `/\host` would be other services; browsers drop control characters.
_LOCAL_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]{0,1000}", re.ASCII)


class GateQuery(Struct, frozen=True, forbid_unknown_fields=True):
    next: str = "/"


class GateKey(Struct, frozen=True, forbid_unknown_fields=True):
    pin: str


_key = msgspec.json.Decoder(GateKey)


async def get_gate(call: Call[GateQuery, None]) -> Response:
    """The page that asks for the gate's PIN."""
    if not auth.has_passed_gate(call.request, call.services):
        return gate_page(call.request)
    return page(
        "The gate is open",
        element("h1", "The gate is open"),
        element("p", element("a", "Go on", href=local_path(call.query.next), class_="button")),
    )


async def open_gate(call: Call[GateQuery, Raw]) -> Response:
    """Give the PIN, as a form or as JSON, for a cookie that passes the gate for seven days."""
    request, services = call.request, call.services
    is_form = media_type(request) == FORM
    key = _read_form(call.body.data) if is_form else _read_json(request, call.body.data)
    if services.gate.is_set:
        services.gate.try_pin(key.pin, counted_as(request.scope))
    response = RedirectResponse(local_path(call.query.next), 303) if is_form else no_content()
    if services.gate.is_set:
        _set_cookie(response, services)
    return response


async def check_gate(call: Call[object, None]) -> Response:
    """For a reverse proxy (`auth_request`): 204 where the request brings the gate's cookie or an API key, else 401.

    It takes no PIN: nothing is counted here, so a PIN could be guessed here.
    """
    if not auth.has_passed_gate(call.request, call.services):
        raise Unauthenticated("The gate is closed: this needs its cookie, or an API key.")
    return no_content()


def _read_json(request: Request[State], data: bytes) -> GateKey:
    require_json(request)
    return decode_json(data, _key)


def _read_form(data: bytes) -> GateKey:
    try:
        fields = parse_qs(data.decode("ascii"), strict_parsing=True, max_num_fields=1)
        return msgspec.convert({name: value for name, [value] in fields.items()}, GateKey)
    except ValueError as exc:  # no form, no ASCII, another field or more than one
        raise InvalidRequest("The form has one field: pin.") from exc


def _set_cookie(response: Response, services: Services) -> None:
    response.set_cookie(
        auth.GATE_COOKIE,
        services.gate.new_pass(),
        max_age=int(PASS_LIFETIME.total_seconds()),
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",  # a link from elsewhere may lead in; a form elsewhere may not
    )


def local_path(goal: str) -> str:
    """``goal`` if it is a path of this service, or else its first page: the gate leads to no other site.

    >>> local_path("/docs#send"), local_path("//evil.example"), local_path("https://evil.example")
    ('/docs#send', '/', '/')
    """
    return goal if _LOCAL_PATH.fullmatch(goal) else "/"


# ---- the page


def gate_page(request: Request[State], status: int = 200, complaint: str | None = None) -> Response:
    """The form. It goes on to the page that was asked for, also after wrong tries."""
    path: str = request.scope["path"]
    goal = request.query_params.get("next", "/") if path == "/gate" else quote(path)
    return page(
        "PIN",
        element("h1", "This service asks for a PIN"),
        element(
            "form",
            element("p", complaint, role="alert", class_="complaint", id="complaint")
            if complaint
            else None,
            element("label", "PIN", for_="pin"),
            element(
                "input",
                id="pin",
                name="pin",
                type="password",
                inputmode="numeric",
                pattern="[0-9]{4,12}",
                maxlength=12,
                title="4 to 12 digits",
                autocomplete="current-password",
                aria_describedby="complaint" if complaint else None,
                aria_invalid="true" if complaint else None,
                required=True,
                autofocus=True,
            ),
            element("button", "Open"),
            method="post",
            action="/gate?" + urlencode({"next": local_path(goal)}),
            class_="gate",
        ),
        _about_the_cookie(request),
        status=status,
    )


def _about_the_cookie(request: Request[State]) -> Markup | None:
    """Without TLS a browser throws the cookie away, and the page would come back without a word."""
    address = address_of(request)
    local = address.name in {"localhost", "127.0.0.1", "::1"} or address.name.endswith(".localhost")
    if local or address.url.startswith("https:"):
        return None
    return element("p", "Your browser will remember the PIN over HTTPS only.", class_="note")
