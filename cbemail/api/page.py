"""What every page for people has: its frame, its stylesheet, and headers that let nothing else in."""

import mimetypes
import re
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cbemail.api.elements import Content, Markup, element
from cbemail.api.operation import Call
from cbemail.api.preferences import preferred
from cbemail.errors import RouteNotFound

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; {scripts}"
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_WITH_SCRIPTS = "script-src 'self'; connect-src 'self'; "

# ---- assets


class _Asset(NamedTuple):
    media_type: str
    data: bytes


def _load() -> tuple[dict[str, str], dict[str, _Asset]]:
    """The files of the pages by public name, which has their hash in it: so that they can be cached for ever."""
    names, assets = {}, {}
    for file in files("cbemail.api").joinpath("pages").iterdir():
        stem, _, suffix = file.name.rpartition(".")
        media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        data = file.read_bytes()
        names[file.name] = f"{stem}.{sha256(data).hexdigest()[:12]}.{suffix}"
        assets[names[file.name]] = _Asset(media_type, data)
    return names, assets


_NAMES, _ASSETS = _load()


def asset_url(file: str) -> str:
    """Where a browser finds one of the files in `pages/`."""
    return f"/assets/{_NAMES[file]}"


async def get_asset(call: Call[object, None]) -> Response:
    """A stylesheet or script of the pages."""
    asset = _ASSETS.get(call.path("name"))
    if asset is None:
        raise RouteNotFound("There is no such file.")
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(asset.data, media_type=asset.media_type, headers=headers)


# ---- pages


def page(
    title: str,
    *content: Content,
    status: int = 200,
    header: Content = None,
    script: str | None = None,
) -> HTMLResponse:
    """A page of its own title. ``content`` is in its main part; ``script`` is a file of `pages/`."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title if title == "cbemail" else f"{title} · cbemail"),
        element("link", rel="icon", href=asset_url("icon.svg")),
        element("link", rel="stylesheet", href=asset_url("pages.css")),
        element("script", src=asset_url(script), defer=True) if script else None,
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", element("a", "cbemail", href="/", class_="home"), header),
        element("main", *content, id="content"),
    )
    policy = _POLICY.format(scripts=_WITH_SCRIPTS if script else "")
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(document(head, body), status, headers)


def document(head: Markup, body: Markup) -> str:
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


# A Host header may be anybody's text; this much of it may stand in a page, and in a line for a shell.
_HOST = re.compile(r"(?P<name>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class Address(NamedTuple):
    """How a client reaches the service: `https://mail.example.org:8443` is its url, the name without port its name."""

    url: str
    name: str


def address_of(request: Request[Any]) -> Address:
    """The service's own address, as the request has it, or else its usual one."""
    host = request.headers.get("host", "")
    match = _HOST.fullmatch(host)
    if match is None:
        return Address("http://localhost:32212", "localhost")
    return Address(f"{request.scope['scheme']}://{host}", match["name"].strip("[]"))


def prefers_page(request: Request[Any]) -> bool:
    """Whether a browser asks. A program that takes anything gets no page it did not ask for."""
    return preferred(request, ("application/problem+json", "text/html")) == "text/html"


def navigation() -> Markup:
    """The links to the other pages."""
    links = (("Documentation", "/docs"), ("OpenAPI", "/openapi.json"))
    return element(
        "nav", (element("a", name, href=href) for name, href in links), aria_label="Pages"
    )
