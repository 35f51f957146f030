"""`/api/sessions`: logging in, tokens, credentials, health, and the end of it."""

import re
from datetime import datetime
from typing import Annotated, NoReturn

from msgspec import Meta, Struct
from starlette.responses import Response

from cbemail.api import auth
from cbemail.api.codec import decode_cursor, encode_cursor, json_response, no_content
from cbemail.api.operation import Call
from cbemail.errors import InvalidRequest, Unauthenticated
from cbemail.hosts import AccessToken, MailServer, Password, Secret, Security
from cbemail.ids import SessionId
from cbemail.mime.address import check_display_name, parse_address
from cbemail.sessions.login import Login, ServerHealth
from cbemail.sessions.providers import Provider, find_provider
from cbemail.sessions.tokens import IssuedToken
from cbemail.store.records import SessionRecord, SessionState

Port = Annotated[int, Meta(ge=1, le=65535)]

# RFC 8314 section 3: which port speaks what, for those who name one of the two only.
_SECURITY_OF_PORT = {
    143: Security.STARTTLS,
    993: Security.TLS,
    465: Security.TLS,
    25: Security.STARTTLS,
    587: Security.STARTTLS,
    2525: Security.STARTTLS,
}
_IMAP_PORTS = {Security.TLS: 993, Security.STARTTLS: 143, Security.NONE: 143}
_SMTP_PORTS = {Security.TLS: 465, Security.STARTTLS: 587, Security.NONE: 587}


class ServerInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A mail server, any subset of it: what is left out comes from the provider, or is usual."""

    host: str | None = None
    port: Port | None = None
    security: Security | None = None
    username: str | None = None
    password: str | None = None


class OAuth2Input(Struct, frozen=True, forbid_unknown_fields=True):
    """An OAuth2 access token, used as it is until it expires."""

    access_token: Annotated[str, Meta(min_length=1)]


class NewSession(Struct, frozen=True, forbid_unknown_fields=True):
    """A mailbox: its address, and a password or OAuth2. ``username`` is the login name where that is not the address;
    ``name`` the display name for From. The servers are needed where the address's provider is not a known one."""

    email: str
    password: str | None = None
    username: str | None = None
    name: str | None = None
    imap: ServerInput = ServerInput()
    smtp: ServerInput = ServerInput()
    oauth2: OAuth2Input | None = None


class ServerView(Struct, frozen=True):
    host: str
    port: int
    security: Security
    username: str


class SessionView(Struct, frozen=True):
    """A session, without its secrets."""

    id: SessionId
    email: str
    name: str | None
    provider: str | None
    auth: str
    imap: ServerView
    smtp: ServerView
    state: SessionState
    created_at: datetime
    last_used_at: datetime


class CreatedSession(Struct, frozen=True):
    """``expires_in`` in seconds. The refresh token is good once, for the next token."""

    session_id: SessionId
    token: str
    token_type: str
    expires_in: int
    expires_at: datetime
    refresh_token: str
    session: SessionView


class TokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Empty where the caller is authenticated."""

    refresh_token: str | None = None


class TokenView(Struct, frozen=True):
    """``refresh_token`` where one was used up for this: it takes its place."""

    token: str
    token_type: str
    expires_in: int
    expires_at: datetime
    refresh_token: str | None


class NewCredentials(Struct, frozen=True, forbid_unknown_fields=True):
    """A new password, or a new OAuth2 token, of the same mailbox."""

    password: str | None = None
    oauth2: OAuth2Input | None = None


class ListSessions(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: str | None = None


class SessionPage(Struct, frozen=True):
    sessions: list[SessionView]
    next_cursor: str | None


class Health(Struct, frozen=True):
    """``down`` where neither server can be logged in to, ``degraded`` where one cannot."""

    status: str
    imap: ServerHealth
    smtp: ServerHealth
    checked_at: datetime


class DiscoverQuery(Struct, frozen=True, forbid_unknown_fields=True):
    email: str


class Discovered(Struct, frozen=True):
    """What `POST /api/sessions` would use. ``notes`` say what the provider wants of its users first."""

    provider: str | None
    imap: ServerView
    smtp: ServerView
    source: str
    notes: list[str]


# ---- handlers


async def create_session(call: Call[object, NewSession]) -> Response:
    """Log in to a mailbox's IMAP and SMTP servers, and give a token for it."""
    services, body = call.services, call.body
    if services.settings.require_api_key:
        auth.require_service(call.request, services)
    email = _email(body.email)
    name = _display_name(body.name)
    login = _login(email, body)
    by_service = services.api_keys.accepts(call.request.headers.get("x-api-key", ""))
    stranger = None if by_service else call.request.scope
    attempt = services.limits.begin_login(login.imap, login.smtp, stranger=stranger)
    created = await services.sessions.create(email, name, login)
    attempt.succeed()
    session_id = created.record.id
    services.imap.adopt(session_id, created.imap)
    await services.smtp.adopt(session_id, created.smtp)
    call.request.scope["session_id"] = session_id
    issued = services.tokens.issue(session_id)
    answer = CreatedSession(
        session_id=session_id,
        token=issued.token,
        token_type="bearer",  # noqa: S106 - RFC 6750's name for it
        expires_in=issued.expires_in,
        expires_at=issued.expires_at,
        refresh_token=created.refresh_token,
        session=view_of(created.record),
    )
    return json_response(answer, 201, {"Location": f"/api/sessions/{session_id}"})


async def list_sessions(call: Call[ListSessions, None]) -> Response:
    """Every session of the service."""
    limit, cursor = call.query.limit, call.query.cursor
    after = SessionId(decode_cursor(cursor, str)) if cursor is not None else None
    records = call.services.sessions.page(after=after, limit=limit + 1)
    shown = records[:limit]
    following = encode_cursor(shown[-1].id) if len(records) > limit else None
    return json_response(SessionPage([view_of(record) for record in shown], following))


async def get_session(call: Call[object, None]) -> Response:
    """The session, without its secrets."""
    return json_response(view_of(call.session))


async def issue_token(call: Call[object, TokenRequest]) -> Response:
    """A new token: for a refresh token, which is then used up, or for a token that is still good, or an API key."""
    services, session_id = call.services, SessionId(call.path("id"))
    if call.body.refresh_token is None:
        record = auth.session_in_path(call.request, services)
        return json_response(_token_view(services.tokens.issue(record.id), None))
    if not services.sessions.exists(session_id):
        raise Unauthenticated("The refresh token is not valid.")
    refresh_token = await services.sessions.refresh(session_id, call.body.refresh_token)
    call.request.scope["session_id"] = session_id
    return json_response(_token_view(services.tokens.issue(session_id), refresh_token))


async def replace_credentials(call: Call[object, NewCredentials]) -> Response:
    """Give the session a new password or token, which is proven first; nothing else of it changes."""
    session = call.session
    secret = _secret(call.body.password, call.body.oauth2)
    login = Login(session.imap, secret, session.smtp, secret)
    attempt = call.services.limits.begin_login(session.imap, session.smtp)
    record = await call.services.sessions.replace_credentials(session.id, login)
    attempt.succeed()
    call.services.imap.close_session(session.id)
    call.services.smtp.close_session(session.id)
    return json_response(view_of(record))


async def delete_session(call: Call[object, None]) -> Response:
    """End the session: its tokens, credentials and everything kept for it are gone at once."""
    await call.services.sessions.end(call.session.id)
    return no_content()


async def check_session(call: Call[object, None]) -> Response:
    """Log in to both servers now, and say how they answer."""
    session = call.session
    attempt = call.services.limits.begin_login(session.imap, session.smtp)
    health = await call.services.sessions.check(session.id)
    working = health.imap.ok + health.smtp.ok
    if working == 2:
        attempt.succeed()
    status = ("down", "degraded", "ok")[working]
    return json_response(Health(status, health.imap, health.smtp, call.services.clock()))


async def discover(call: Call[DiscoverQuery, None]) -> Response:
    """The servers of an address, where its provider is a known one."""
    email = _email(call.query.email)
    provider = find_provider(email)
    if provider is None:
        _unknown_servers("#/email", email)
    answer = Discovered(
        provider.name,
        _server_view(provider.imap.server_for(email)),
        _server_view(provider.smtp.server_for(email)),
        "builtin",
        list(provider.notes),
    )
    return json_response(answer)


# ---- from the body to a login


def _email(text: str) -> str:
    try:
        address = parse_address(text)
    except ValueError as exc:
        raise InvalidRequest.at("#/email", str(exc)) from exc
    if address.name is not None:
        raise InvalidRequest.at(
            "#/email", "Give the bare address; the display name goes into name."
        )
    return address.address


def _display_name(name: str | None) -> str | None:
    if not name:
        return None
    try:
        return check_display_name(name)
    except ValueError as exc:
        raise InvalidRequest.at("#/name", str(exc)) from exc


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _printable(value: str, pointer: str) -> str:
    """A control character in a credential has no use but to end a command early."""
    if not value or _CONTROL.search(value):
        raise InvalidRequest.at(pointer, "This must not be empty, nor hold control characters.")
    return value


def _login(email: str, body: NewSession) -> Login:
    provider = find_provider(email)
    if body.oauth2 is not None and (body.password or body.imap.password or body.smtp.password):
        raise InvalidRequest.at("#/oauth2", "Give a password or oauth2, not both.")
    imap_secret = _server_secret(body, body.imap, "imap")
    smtp_secret = _server_secret(body, body.smtp, "smtp")
    imap = _server(email, body, body.imap, provider, "imap")
    smtp = _server(email, body, body.smtp, provider, "smtp")
    return Login(imap, imap_secret, smtp, smtp_secret)


def _server_secret(body: NewSession, server: ServerInput, protocol: str) -> Secret:
    if server.password is not None:
        return Password(_printable(server.password, f"#/{protocol}/password"))
    return _secret(body.password, body.oauth2)


def _secret(password: str | None, oauth2: OAuth2Input | None) -> Secret:
    if (password is None) == (oauth2 is None):
        raise InvalidRequest.at("#/password", "Give a password, or oauth2 in its place.")
    if oauth2 is not None:
        return AccessToken(_printable(oauth2.access_token, "#/oauth2/access_token"))
    return Password(_printable(password or "", "#/password"))


def _server(
    email: str, body: NewSession, given: ServerInput, provider: Provider | None, protocol: str
) -> MailServer:
    known: MailServer | None = None
    if provider is not None:
        known = (provider.imap if protocol == "imap" else provider.smtp).server_for(email)
    host = given.host or (known.host if known is not None else None)
    if host is None:
        _unknown_servers(f"#/{protocol}/host", email)
    if given.host is not None and known is not None and given.host != known.host:
        known = None  # another server: nothing of the provider's holds for it
    username = given.username or body.username or (known.username if known else email)
    port, security = _port_and_security(given, known, protocol)
    return MailServer(host, port, security, _printable(username, f"#/{protocol}/username"))


def _port_and_security(
    given: ServerInput, known: MailServer | None, protocol: str
) -> tuple[int, Security]:
    ports = _IMAP_PORTS if protocol == "imap" else _SMTP_PORTS
    if given.port is not None:
        usual = _SECURITY_OF_PORT.get(given.port, Security.TLS)
        return given.port, given.security or usual
    if given.security is not None:
        return ports[given.security], given.security
    if known is not None:
        return known.port, known.security
    return ports[Security.TLS], Security.TLS


def _unknown_servers(pointer: str, email: str) -> NoReturn:
    domain = email.rpartition("@")[2]
    raise InvalidRequest.at(
        pointer, f"The mail servers of {domain} are not known here: name imap.host and smtp.host."
    )


# ---- views


def view_of(record: SessionRecord) -> SessionView:
    return SessionView(
        id=record.id,
        email=record.email,
        name=record.name,
        provider=record.provider,
        auth=record.auth,
        imap=_server_view(record.imap),
        smtp=_server_view(record.smtp),
        state=record.state,
        created_at=record.created_at,
        last_used_at=record.last_used_at,
    )


def _server_view(server: MailServer) -> ServerView:
    return ServerView(server.host, server.port, server.security, server.username)


def _token_view(issued: IssuedToken, refresh_token: str | None) -> TokenView:
    return TokenView(issued.token, "bearer", issued.expires_in, issued.expires_at, refresh_token)
