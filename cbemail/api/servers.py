"""The mail servers of a session: what a caller says of them, what is known of them, and how they are shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

from msgspec import Meta, Struct
from starlette.requests import Request

from cbemail.api.credentials import printable
from cbemail.api.state import Services
from cbemail.errors import CredentialsRejected, InvalidRequest
from cbemail.hosts import MailServer, Password, Security
from cbemail.mime.address import parse_address
from cbemail.sessions.login import Login
from cbemail.sessions.provider import Setup
from cbemail.sessions.providers import find_provider_by_host

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
    """A mail server, any subset of it: what is left out comes from the provider, is looked up, or is usual."""

    host: str | None = None
    port: Port | None = None
    security: Security | None = None
    username: str | None = None
    password: str | None = None


class ServerView(Struct, frozen=True):
    host: str
    port: int
    security: Security
    username: str


def view_of_server(server: MailServer) -> ServerView:
    return ServerView(server.host, server.port, server.security, server.username)


# ---- what is known


def bare_address(text: str) -> str:
    """The address of a mailbox, as a caller writes it to `email`."""
    try:
        address = parse_address(text)
    except ValueError as exc:
        raise InvalidRequest.at("#/email", str(exc)) from exc
    if address.name is not None:
        raise InvalidRequest.at(
            "#/email", "Give the bare address; the display name goes into name."
        )
    return address.address


async def find_setup(request: Request[Any], services: Services, email: str) -> Setup | None:
    """How a mailbox is reached, as far as anybody knows. Without an API key there are so many look-ups.

    Raises:
        RateLimited, Overloaded: there may be another later.
    """

    def admit() -> None:
        if not services.api_keys.accepts(request.headers.get("x-api-key", "")):
            services.limits.admit_look_up(request.scope)

    return await services.discovery.find(email, admit=admit)


def refuse_unknown(pointer: str, email: str) -> NoReturn:
    """Nobody knows the servers: they have to be named."""
    domain = email.rpartition("@")[2]
    raise InvalidRequest.at(
        pointer, f"The mail servers of {domain} are not known here: name imap.host and smtp.host."
    )


@contextmanager
def advising(login: Login, setup: Setup | None) -> Iterator[None]:
    """Tell, of a password that is refused in the block, what the provider wants in its place."""
    try:
        yield
    except CredentialsRejected as refused:
        notes = _notes(login, setup) if isinstance(login.imap_secret, Password) else ()
        raise CredentialsRejected(" ".join((refused.detail, *notes))) from refused


def _notes(login: Login, setup: Setup | None) -> tuple[str, ...]:
    provider = find_provider_by_host(login.imap.host)
    if provider is not None:
        return provider.notes
    return setup.notes if setup is not None and setup.imap.host == login.imap.host else ()


# ---- what is said


def complete_server(
    protocol: str, given: ServerInput, known: MailServer | None, email: str, username: str | None
) -> MailServer:
    """The server that is meant: as ``given``, and otherwise as it is known, or usual."""
    host = given.host or (known.host if known is not None else None)
    if host is None:
        refuse_unknown(f"#/{protocol}/host", email)
    if given.host is not None and known is not None and given.host != known.host:
        known = None  # another server: nothing of the provider's holds for it
    name = given.username or username or (known.username if known is not None else email)
    port, security = _port_and_security(given, known, protocol)
    return MailServer(host, port, security, printable(name, f"#/{protocol}/username"))


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
