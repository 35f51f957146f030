"""Mail hosts: what a session says of its servers, which of them may be contacted, and the way to them."""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from copy import copy
from enum import StrEnum
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from pathlib import Path

import idna
from aiohappyeyeballs import AddrInfoType, start_connection
from msgspec import Struct

from cbemail.errors import HostNotAllowed, UpstreamTimeout, UpstreamUnavailable
from cbemail.sockets import new_socket


class Security(StrEnum):
    """How the connection to a mail server is secured: TLS from the first octet, STARTTLS, or not at all."""

    TLS = "tls"
    STARTTLS = "starttls"
    NONE = "none"


class MailServer(Struct, frozen=True):
    """One mail server of a session. ``username`` is the login name there."""

    host: str
    port: int
    security: Security
    username: str


class Password(Struct, frozen=True):
    """For LOGIN and AUTHENTICATE PLAIN. Its repr does not show it, so no log line or traceback can."""

    value: str

    def __repr__(self) -> str:
        return "Password(…)"


class AccessToken(Struct, frozen=True):
    """An OAuth2 access token, for XOAUTH2."""

    value: str

    def __repr__(self) -> str:
        return "AccessToken(…)"


Secret = Password | AccessToken


# ---- which addresses


IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# Addresses that `ipaddress` calls global and that still lead somewhere a mail server is not. The list is written
# out rather than left to the standard library, whose opinion changes between patch releases.
_NEVER_MAIL_V4 = [
    IPv4Network(text)
    for text in (
        "100.64.0.0/10",  # carrier-grade NAT, and Alibaba's metadata service (RFC 6598)
        "168.63.129.16/32",  # Azure's wire server, in public space
        "192.0.0.0/24",  # IETF assignments (RFC 6890), Oracle's metadata service
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
    )
]
_NEVER_MAIL_V6 = [
    IPv6Network(text)
    for text in (
        "2001::/23",  # IETF assignments, among them Teredo (RFC 4380): an IPv4 address in disguise
        "2002::/16",  # 6to4 (RFC 7526), likewise
        "3fff::/20",  # documentation (RFC 9637)
    )
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291 2.4: all that IANA gives out
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: how an IPv6-only network names IPv4 hosts


def is_public(address: IPAddress) -> bool:
    """Whether the address belongs to the public Internet, whatever address may be wrapped in it.

    >>> is_public(ip_address("9.9.9.9")), is_public(ip_address("64:ff9b::909:909"))
    (True, True)
    >>> is_public(ip_address("169.254.169.254")), is_public(ip_address("64:ff9b::7f00:1"))
    (False, False)
    """
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(address.packed[-4:]))
        never: Sequence[IPNetwork] = _NEVER_MAIL_V6
        if address not in _GLOBAL_UNICAST:
            return False
    else:
        never = _NEVER_MAIL_V4
    if address.is_multicast or not address.is_global:
        return False
    return not any(address in network for network in never)


# ---- which names


_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")  # RFC 1123 2.1, and the `_` of container names
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NOT_A_NAME = "The mail host is not the name of a host."


def normalise_host(host: str) -> str:
    """Spell a host one way: lower-case A-labels without the final dot, or an address in its canonical form.

    Every way of writing an IPv4 address that a resolver might understand (``127.1``, ``0x7f.1``, fullwidth
    digits) becomes that address here, so that it is judged as one and never depends on the C library's taste.

    >>> normalise_host("IMAP.Example.ORG."), normalise_host("bücher.example"), normalise_host("127.1")
    ('imap.example.org', 'xn--bcher-kva.example', '127.0.0.1')

    Raises:
        HostNotAllowed: it is neither a name (RFC 1123 2.1, RFC 5890) nor an address.
    """
    if len(host) > 1024:  # before any work is done on it; a name has 253 octets at most
        raise HostNotAllowed(_NOT_A_NAME)
    name = host.lower()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if ":" in name:
        return str(_ipv6(name))
    if not name.isascii():
        name = _a_labels(name)
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostNotAllowed(_NOT_A_NAME)
    return str(_ipv4(name)) if _NUMBER.fullmatch(labels[-1]) else name


def _a_labels(name: str) -> str:
    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError as exc:
        raise HostNotAllowed(_NOT_A_NAME) from exc


def _ipv4(text: str) -> IPv4Address:
    """No top-level domain is a number, so what ends in one is an address or nothing (WHATWG URL 3.5)."""
    try:
        return IPv4Address(socket.inet_aton(text))
    except OSError as exc:
        raise HostNotAllowed(_NOT_A_NAME) from exc


def _ipv6(text: str) -> IPAddress:
    try:
        address = IPv6Address(text)
    except AddressValueError as exc:
        raise HostNotAllowed(_NOT_A_NAME) from exc
    if address.scope_id is not None:  # link-local, on an interface of ours
        raise HostNotAllowed(_NOT_A_NAME)
    return address.ipv4_mapped or address


# ---- the way there


_HTTPS = 443
RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 10.0
_HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305 section 8
_RETRY_AFTER = 30  # seconds; a host that is down is seldom back sooner

Resolve = Callable[[str, int], Awaitable[Sequence[AddrInfoType]]]


async def resolve(name: str, port: int) -> Sequence[AddrInfoType]:
    """Ask the system's resolver, off the event loop."""
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def _in_turn(resolve: Resolve, at_once: int) -> Resolve:
    turns = asyncio.Semaphore(at_once)

    async def resolve_in_turn(name: str, port: int) -> Sequence[AddrInfoType]:
        await turns.acquire()
        question = asyncio.ensure_future(resolve(name, port))
        question.add_done_callback(lambda _: turns.release())
        try:
            # The thread that asks cannot be stopped: a question goes on, and counts, when nobody waits for it.
            return await asyncio.shield(question)
        except asyncio.CancelledError:
            question.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise

    return resolve_in_turn


class MailHosts:
    """The only way out to mail servers: every host a caller names is judged here, and connected to here.

    A caller chooses the host, so without this the service would be a proxy into the network it runs in. What is
    judged is each address the name has *now*, and the connection is made to those very addresses: a name that
    resolves differently a moment later gains nothing (DNS rebinding).
    """

    def __init__(
        self,
        *,
        allow_networks: Sequence[IPNetwork] = (),
        allow_ports: Collection[int],
        allow_plaintext_login: bool = False,
        ca_file: Path | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._allow_networks = tuple(allow_networks)
        self._allow_ports = frozenset(allow_ports)
        self._allow_plaintext_login = allow_plaintext_login
        self._resolve = resolve
        # One for all connections: building a context reads the whole CA bundle, 57 ms of blocked loop each time.
        self.tls = _tls_context(ca_file)

    def resolving(self, *, at_once: int) -> "MailHosts":
        """The same judge, who resolves so many names at once and no more: for names that strangers think of.

        The system's resolver has few threads, and a name whose servers never answer keeps one for ten seconds. With
        those that it leaves alone the hosts of everybody else are found.
        """
        other = copy(self)
        other._resolve = _in_turn(self._resolve, at_once)  # noqa: SLF001 - one of ours
        return other

    async def vet(self, host: str, port: int, security: Security) -> str:
        """Judge a host before it is stored, and give the one spelling of it to store.

        Raises:
            HostNotAllowed: the host, the port or the lack of TLS is refused.
            UpstreamUnavailable: the name has no address.
            UpstreamTimeout: the name could not be resolved in time.
        """
        name = normalise_host(host)
        await self._admit(name, port, security)
        return name

    async def open_socket(self, host: str, port: int, security: Security) -> socket.socket:
        """Connect to a mail host, over whichever of its addresses answers first (RFC 8305).

        TLS is the caller's to start, with ``tls`` and the host's name as `normalise_host` spells it.

        Raises:
            HostNotAllowed: the host, the port or the lack of TLS is refused. Nothing was sent.
            UpstreamUnavailable: the name has no address, or none of its addresses takes the connection.
            UpstreamTimeout: resolving or connecting took too long.
        """
        name = normalise_host(host)
        addresses = await self._admit(name, port, security)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await start_connection(
                    addresses,
                    happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS,
                    socket_factory=new_socket,
                )
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{name} could not be connected to in time.") from exc
        except (
            OSError
        ) as exc:  # refused, unreachable, reset: all one answer, or it would be a port scanner
            raise UpstreamUnavailable(
                f"{name} could not be connected to.", retry_after=_RETRY_AFTER
            ) from exc

    async def admit_web(self, host: str, port: int, *, secure: bool) -> tuple[str, list[str]]:
        """The host's one spelling, and the addresses at which it may be asked over HTTP.

        Raises:
            HostNotAllowed: the host is refused, or, where no operator vouches for it, anything but HTTPS on port 443.
            UpstreamUnavailable, UpstreamTimeout: the name has no address, or could not be resolved in time.
        """
        name = normalise_host(host)
        answers = await self._addresses(name, port)
        for answer in answers:
            address = _address_of(answer)
            if self._vouched_for(address):
                continue
            self._require_public(name, address)
            if not secure or port != _HTTPS:
                raise HostNotAllowed(f"{name} is asked over HTTPS on port {_HTTPS}, or not at all.")
        return name, list(dict.fromkeys(str(answer[4][0]) for answer in answers))

    async def _admit(self, name: str, port: int, security: Security) -> list[AddrInfoType]:
        """The addresses of ``name``, every one of them judged: one bad answer among good ones refuses the lot."""
        answers = await self._addresses(name, port)
        for answer in answers:
            self._judge(name, _address_of(answer), port, security)
        return answers

    def _judge(self, name: str, address: IPAddress, port: int, security: Security) -> None:
        if self._vouched_for(address):
            return  # any port will do, and TLS is the caller's choice
        self._require_public(name, address)
        if port not in self._allow_ports:
            raise HostNotAllowed(
                f"Port {port} is none of the mail ports this service may connect to."
            )
        if security is Security.NONE and not self._allow_plaintext_login:
            raise HostNotAllowed(
                f"Without TLS the password would cross the Internet readably: use tls or starttls for {name}."
            )

    def _vouched_for(self, address: IPAddress) -> bool:
        """By the operator, in ALLOW_MAIL_NETWORKS."""
        return any(address in network for network in self._allow_networks)

    def _require_public(self, name: str, address: IPAddress) -> None:
        if not is_public(address):
            raise HostNotAllowed(
                f"{name} is not on the public Internet, nor in ALLOW_MAIL_NETWORKS of this service."
            )

    async def _addresses(self, name: str, port: int) -> list[AddrInfoType]:
        literal = _literal(name, port)
        if literal is not None:
            return [literal]
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                answers = await self._resolve(name, port)
        except TimeoutError as exc:
            raise UpstreamTimeout(f"{name} could not be resolved in time.") from exc
        except OSError as exc:  # socket.gaierror: no such name, or no name server that answers
            raise UpstreamUnavailable(
                f"{name} could not be resolved.", retry_after=_RETRY_AFTER
            ) from exc
        if not answers:
            raise UpstreamUnavailable(f"{name} has no address.", retry_after=_RETRY_AFTER)
        return list(answers)


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.hostname_checks_common_name = False  # RFC 9525 section 2: only the SAN names a server
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def _literal(name: str, port: int) -> AddrInfoType | None:
    """The answer for a name that is an address already; it needs no resolver."""
    try:
        address = ip_address(name)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (name, port)
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (name, port, 0, 0)


def _address_of(answer: AddrInfoType) -> IPAddress:
    address = ip_address(answer[4][0])
    return getattr(address, "ipv4_mapped", None) or address
