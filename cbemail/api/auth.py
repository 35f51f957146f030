"""Who is calling: a session's own client by Bearer token, or a trusted service by API key."""

from ipaddress import ip_address
from typing import Any

from starlette.requests import Request

from cbemail.api.codec import header_of
from cbemail.api.limits import counted_as
from cbemail.api.state import Services
from cbemail.errors import PinRequired, SessionNotFound, SessionRequired, Unauthenticated
from cbemail.ids import SessionId
from cbemail.store.records import SessionRecord
from cbemail.timing import spent_on

GATE_COOKIE = "__Host-cbemail-gate"  # a name that browsers take over TLS and for this host only
GATE_HEADER = "X-Gate-PIN"

_API_KEY = b"x-api-key"
_CREDENTIALS = (b"authorization", _API_KEY)


class Caller:
    """The caller of one request, proven. ``session_id`` is None for an API key, which reaches every session."""

    __slots__ = ("session_id",)

    def __init__(self, session_id: SessionId | None) -> None:
        self.session_id = session_id


def identify(request: Request[Any], services: Services) -> Caller:
    """Check the request's credential.

    Raises:
        Unauthenticated, TokenExpired: there is none, it is not good, its session has ended, or there are two.
    """
    with spent_on("auth"):
        given = [header for header in request.scope["headers"] if header[0] in _CREDENTIALS]
        if len(given) > 1:
            raise Unauthenticated("Give one credential: a Bearer token or an API key.")
        if not given:
            raise Unauthenticated("This call needs a Bearer token or an API key.")
        name, credential = given[0][0], given[0][1].decode("latin-1")
        if name == _API_KEY:
            if not services.api_keys.accepts(credential):
                raise Unauthenticated("The API key is not valid.")
            return Caller(None)
        scheme, _, token = credential.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("The Authorization header must hold a Bearer token.")
        session_id = services.tokens.verify(token.strip()).session_id
        if not services.sessions.exists(session_id):  # its end revokes every token at once
            raise Unauthenticated("The token is not valid: its session has ended.")
        return Caller(session_id)


def session_for_mailbox(request: Request[Any], services: Services) -> SessionRecord:
    """The session a mailbox or send call is for: the token's own, or the one X-Session-ID names for an API key."""
    caller = identify(request, services)
    named = header_of(request.scope, b"x-session-id")
    if caller.session_id is None:
        if not named:
            raise SessionRequired("With an API key, name the session in the X-Session-ID header.")
        session_id = SessionId(named)
    else:
        session_id = caller.session_id
        if named and named != session_id:
            raise SessionNotFound("There is no such session.")
    return services.sessions.use(session_id)


def session_in_path(request: Request[Any], services: Services) -> SessionRecord:
    """The session the path names. A token reaches its own; another's is not there, as far as it can tell."""
    caller = identify(request, services)
    session_id = SessionId(request.path_params["id"])
    if caller.session_id is not None and caller.session_id != session_id:
        raise SessionNotFound("There is no such session.")
    session = services.sessions.require(session_id)
    if (
        caller.session_id is not None
    ):  # a service that looks after sessions does not keep them alive by it
        services.sessions.touch(session_id)
    return session


def require_service(request: Request[Any], services: Services) -> None:
    """An API key, and nothing less."""
    if identify(request, services).session_id is not None:
        raise Unauthenticated("This call needs an API key.")


def require_operator(request: Request[Any], services: Services) -> None:
    """An API key, also as a Bearer token, since monitoring rarely sends other headers; where the service has none, a
    caller on this machine, as far as a trusted proxy tells."""
    if services.api_keys.is_set:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not services.api_keys.accepts(key.strip()):
            require_service(request, services)
    elif not _is_loopback(client_address(request)):
        raise Unauthenticated(
            "Without API_KEYS this call is for the service's own machine; with them, it needs one."
        )


def _is_loopback(address: str) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback  # as `::ffff:127.0.0.1`, too


# ---- the gate


def has_passed_gate(request: Request[Any], services: Services) -> bool:
    """Whether the gate is open to the request: there is none, or it brings the gate's cookie or an API key."""
    gate = services.gate
    return (
        not gate.is_set
        or gate.accepts(request.cookies.get(GATE_COOKIE, ""))
        or services.api_keys.accepts(request.headers.get("x-api-key", ""))
    )


def pass_gate(request: Request[Any], services: Services) -> None:
    """Return if the gate is open to the request, or opens to the PIN that it brings.

    Raises:
        PinRequired: it brings none, or another.
        RateLimited: its address, or all together, had too many tries.
    """
    if has_passed_gate(request, services):
        return
    pin = request.headers.get(GATE_HEADER)
    if pin is None:
        raise PinRequired("This needs the PIN of the gate, or an API key.")
    services.gate.try_pin(pin, counted_as(request.scope))


def client_address(request: Request[Any]) -> str:
    """Who asks, or who asked the proxy that is trusted to tell; empty over a Unix socket."""
    return request.client.host if request.client is not None else ""
