"""`/api/sessions`: logging in, tokens, credentials, health, and the end of it."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from cbemail.api import auth
from cbemail.api.codec import decode_cursor, encode_cursor, json_response, no_content
from cbemail.api.credentials import OAuth2Input, grant_of, printable, secret_of
from cbemail.api.operation import Call
from cbemail.api.servers import (
    ServerInput,
    ServerView,
    advising,
    bare_address,
    complete_server,
    find_setup,
    view_of_server,
)
from cbemail.errors import InvalidRequest, Unauthenticated
from cbemail.hosts import Password, Secret
from cbemail.ids import SessionId
from cbemail.mime.address import check_display_name
from cbemail.sessions.discovery import known_by_heart
from cbemail.sessions.login import Login, ServerHealth
from cbemail.sessions.provider import Setup
from cbemail.sessions.tokens import IssuedToken
from cbemail.store.records import SessionRecord, SessionState


class NewSession(Struct, frozen=True, forbid_unknown_fields=True):
    """A mailbox: its address, and a password or OAuth2. ``username`` is the login name where that is not the address;
    ``name`` the display name for From. The servers are needed where
    nobody knows those of the address: `GET /api/discover` tells."""

    email: str
    password: str | None = None
    username: str | None = None
    name: str | None = None
    imap: ServerInput = ServerInput()
    smtp: ServerInput = ServerInput()
    oauth2: OAuth2Input | None = None


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
    """A new password, or new OAuth2 tokens, of the same mailbox."""

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


# ---- handlers


async def create_session(call: Call[object, NewSession]) -> Response:
    """Log in to a mailbox's IMAP and SMTP servers, and give a token for it."""
    services, body = call.services, call.body
    if services.settings.require_api_key:
        auth.require_service(call.request, services)
    email = bare_address(body.email)
    name = _display_name(body.name)
    secrets = _secrets(body)
    if body.imap.host and body.smtp.host:
        setup = known_by_heart(email)
    else:
        setup = await find_setup(call.request, services, email)
    login = _login(email, body, secrets, setup)
    by_service = services.api_keys.accepts(call.request.headers.get("x-api-key", ""))
    stranger = None if by_service else call.request.scope
    attempt = services.limits.begin_login(login.imap, login.smtp, stranger=stranger)
    with advising(login, setup):
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
    """Give the session a new password or new tokens, which are proven first; nothing else of it changes."""
    session, body = call.session, call.body
    secret = secret_of(body.password, body.oauth2)
    grant = grant_of(body.oauth2, session.imap.host)
    login = Login(session.imap, secret, session.smtp, secret, grant)
    attempt = call.services.limits.begin_login(session.imap, session.smtp)
    with advising(login, None):
        record = await call.services.sessions.replace_credentials(session.id, login)
    attempt.succeed()
    return json_response(view_of(record))


async def delete_session(call: Call[object, None]) -> Response:
    """End the session: its tokens, credentials and everything kept for it are gone at once."""
    await call.services.sessions.end(call.session.id)
    return no_content()


async def check_session(call: Call[object, None]) -> Response:
    """Log in to both servers now, and say how they answer."""
    session = call.session
    attempt = call.services.limits.begin_login(session.imap, session.smtp)
    health = await call.services.sessions.credentials.check(session.id)
    working = health.imap.ok + health.smtp.ok
    if working == 2:
        attempt.succeed()
    status = ("down", "degraded", "ok")[working]
    return json_response(Health(status, health.imap, health.smtp, call.services.clock()))


# ---- from the body to a login


def _display_name(name: str | None) -> str | None:
    if not name:
        return None
    try:
        return check_display_name(name)
    except ValueError as exc:
        raise InvalidRequest.at("#/name", str(exc)) from exc


def _secrets(body: NewSession) -> tuple[Secret, Secret]:
    """For IMAP and for SMTP."""
    if body.oauth2 is not None and (body.password or body.imap.password or body.smtp.password):
        raise InvalidRequest.at("#/oauth2", "Give a password or oauth2, not both.")
    return _server_secret(body, body.imap, "imap"), _server_secret(body, body.smtp, "smtp")


def _login(
    email: str, body: NewSession, secrets: tuple[Secret, Secret], setup: Setup | None
) -> Login:
    known_imap = setup.imap.server_for(email) if setup is not None else None
    known_smtp = setup.smtp.server_for(email) if setup is not None else None
    imap = complete_server("imap", body.imap, known_imap, email, body.username)
    smtp = complete_server("smtp", body.smtp, known_smtp, email, body.username)
    imap_secret, smtp_secret = secrets
    return Login(imap, imap_secret, smtp, smtp_secret, grant_of(body.oauth2, imap.host))


def _server_secret(body: NewSession, server: ServerInput, protocol: str) -> Secret:
    if server.password is not None:
        return Password(printable(server.password, f"#/{protocol}/password"))
    return secret_of(body.password, body.oauth2)


# ---- views


def view_of(record: SessionRecord) -> SessionView:
    return SessionView(
        id=record.id,
        email=record.email,
        name=record.name,
        provider=record.provider,
        auth=record.auth,
        imap=view_of_server(record.imap),
        smtp=view_of_server(record.smtp),
        state=record.state,
        created_at=record.created_at,
        last_used_at=record.last_used_at,
    )


def _token_view(issued: IssuedToken, refresh_token: str | None) -> TokenView:
    return TokenView(issued.token, "bearer", issued.expires_in, issued.expires_at, refresh_token)
