"""What the operator chooses, read once at start from the environment into one immutable object.

Each variable is declared once, as a field of `Settings`: its default as one would write it, how it is read and what
it takes, and one sentence of what it means. `.env.example` is compared with these declarations by a test.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from dotenv import dotenv_values

IPNetwork = IPv4Network | IPv6Network


class Rate(NamedTuple):
    """So many times in so many seconds."""

    times: int
    seconds: int


class SettingsError(Exception):
    """A variable that cannot be used. The message is one line: its name, and what it takes."""


# ---- how a value is read; each parser says what it takes in the ValueError it raises

Parse = Callable[[str], Any]


def _text(value: str) -> str:
    return value


def _integer(low: int, high: int) -> Parse:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return parse


def _boolean(value: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in known:
        raise ValueError("true or false")
    return known[value.lower()]


def _choice(*choices: str) -> Parse:
    def parse(value: str) -> str:
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError("one of " + ", ".join(choices))

    return parse


def _several(parse: Parse) -> Parse:
    """Comma-separated; an empty value is an empty tuple."""

    def parse_all(value: str) -> tuple[Any, ...]:
        return tuple(parse(item.strip()) for item in value.split(",") if item.strip())

    return parse_all


def _network(value: str) -> IPNetwork:
    try:
        return ip_network(value)
    except ValueError as exc:
        raise ValueError("addresses or networks such as 10.0.0.0/8, comma-separated") from exc


def _proxies(value: str) -> IPNetwork:
    network = _network(value)
    if network.prefixlen == 0:
        raise ValueError("addresses or networks of proxies, not all there are")
    return network


_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


def _rate(value: str) -> Rate:
    match = re.fullmatch(r"([1-9][0-9]{0,6})/(second|minute|hour|day)", value, re.ASCII)
    if match is None:
        raise ValueError("a number and a time, such as 10/minute (second, minute, hour or day)")
    return Rate(int(match[1]), _SECONDS[match[2]])


def _api_key(value: str) -> str:
    if not re.fullmatch(r"[!-~]+", value):  # it has to travel in a header field (RFC 9110 5.5)
        raise ValueError("keys of printable ASCII without spaces, comma-separated")
    return value


def _pin(value: str) -> str:
    if value and not re.fullmatch(r"[0-9]{4,12}", value, re.ASCII):
        raise ValueError("4 to 12 digits")
    return value


_PLACEHOLDER = re.compile(r"change.?me|replace.?me|your.?secret", re.IGNORECASE)


def _secret_key(value: str) -> str:
    if len(value) < 32:
        raise ValueError("keys of 32 characters at least; `cbemail keys new` prints one")
    if _PLACEHOLDER.search(value) or len(set(value)) < 8:
        raise ValueError("random keys, not one that can be guessed; `cbemail keys new` prints one")
    return value


def _database(value: str) -> str | None:
    if value.lower() == "none":
        return None
    if not re.fullmatch(r"https://[!-~]+", value):
        raise ValueError("the https URL before the domain's name, or none")
    return value.rstrip("/") + "/"


def _path(value: str) -> Path:
    return Path(value)


def _ca_file(value: str) -> Path | None:
    if not value:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except OSError as exc:  # ssl.SSLError is one
        raise ValueError("a readable file of CA certificates (PEM)") from exc
    return Path(value)


# ---- the variables


class Variable(NamedTuple):
    """What is declared of a variable: its default as one would write it, how it is read, and what it means."""

    default: str
    parse: Parse
    doc: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Every variable is the field of its name in lower case. Built by `from_environ`, in tests too."""

    host: Annotated[
        str,
        Variable(
            "0.0.0.0",  # noqa: S104 - in a container nothing else can be reached
            _text,
            "The address to listen on.",
        ),
    ]
    port: Annotated[int, Variable("32212", _integer(1, 65535), "The port to listen on.")]
    db_path: Annotated[
        Path,
        Variable(
            "db/cbemail.duckdb",
            _path,
            "The embedded store. Its folder is made, mode 0700; its files are 0600.",
        ),
    ]
    secret_key: Annotated[
        tuple[str, ...],
        Variable(
            "",
            _several(_secret_key),
            "Required, 32 characters at least. Several, comma-separated: the first encrypts and signs, the others are "
            "still accepted (rotation). `cbemail keys init` writes one here.",
        ),
    ] = field(repr=False)
    access_token_expire_minutes: Annotated[
        int, Variable("30", _integer(1, 10080), "How long an access token is good.")
    ]
    api_keys: Annotated[
        tuple[str, ...],
        Variable("", _several(_api_key), "Keys of trusted services, comma-separated."),
    ] = field(repr=False)
    require_api_key: Annotated[
        bool, Variable("false", _boolean, "Whether making a session takes an API key.")
    ]
    gate_pin: Annotated[
        str,
        Variable(
            "",
            _pin,
            "4 to 12 digits, better 6 or more: the pages and logging in are behind a gate that asks for this PIN.",
        ),
    ] = field(repr=False)
    log_level: Annotated[
        str,
        Variable(
            "INFO",
            _choice("DEBUG", "INFO", "WARNING", "ERROR"),
            "The least severe records to log: DEBUG, INFO, WARNING or ERROR.",
        ),
    ]
    log_format: Annotated[
        str, Variable("text", _choice("text", "json"), "text or json, one line a record.")
    ]
    allow_mail_networks: Annotated[
        tuple[IPNetwork, ...],
        Variable(
            "",
            _several(_network),
            "Private or loopback networks (CIDR, comma-separated) whose mail servers sessions may name; all other "
            "non-public addresses are refused.",
        ),
    ]
    allow_mail_ports: Annotated[
        tuple[int, ...],
        Variable(
            "25,143,465,587,993,2525",
            _several(_integer(1, 65535)),
            "Ports of public mail servers that sessions may name; inside ALLOW_MAIL_NETWORKS any port will do.",
        ),
    ]
    allow_plaintext_login: Annotated[
        bool,
        Variable(
            "false",
            _boolean,
            "Whether a session may name a public mail server with `security: none`, so that its password crosses the "
            "network readably.",
        ),
    ]
    mail_ca_file: Annotated[
        Path | None, Variable("", _ca_file, "More CA certificates (PEM) to trust for mail servers.")
    ]
    imap_connections_per_session: Annotated[
        int, Variable("3", _integer(1, 50), "Warm IMAP connections at most, a session.")
    ]
    imap_idle_seconds: Annotated[
        int,
        Variable(
            "60",
            _integer(0, 1500),  # RFC 9051 5.4: a server may log out after 30 minutes
            "How long an unused IMAP connection stays warm; 0 means one connection a request.",
        ),
    ]
    imap_connections_total: Annotated[
        int,
        Variable(
            "2000",
            _integer(1, 100_000),
            "IMAP connections at most, over all; the least recently used idle one is closed for a new one.",
        ),
    ]
    smtp_connections_per_host: Annotated[
        int, Variable("20", _integer(1, 1000), "SMTP connections at most, a mail server.")
    ]
    smtp_messages_per_connection: Annotated[
        int,
        Variable(
            "100",
            _integer(1, 10_000),
            "Messages sent over one SMTP connection before it is replaced.",
        ),
    ]
    max_message_mb: Annotated[
        int, Variable("25", _integer(1, 150), "The largest message to accept for sending, in MB.")
    ]
    max_batch_mb: Annotated[
        int,
        Variable(
            "512",
            _integer(1, 4096),
            "The largest batch to accept, with its file of recipients, in MB; in JSON 128 at most.",
        ),
    ]
    cache_max_mb: Annotated[
        int,
        Variable(
            "1024",
            _integer(0, 1_000_000),
            "What is kept of mail on disk at most, encrypted, to save asking for it again, in MB; 0 keeps it in memory "
            "only.",
        ),
    ]
    cache_ttl_hours: Annotated[
        int,
        Variable(
            "168", _integer(1, 8760), "What is kept of mail on disk goes when unused for this."
        ),
    ]
    discovery: Annotated[
        bool,
        Variable(
            "true",
            _boolean,
            "Whether the mail servers of unknown domains are looked for: in ISPDB_URL, at the domain itself, and in DNS.",
        ),
    ]
    ispdb_url: Annotated[
        str | None,
        Variable(
            "https://autoconfig.thunderbird.net/v1.1/",
            _database,
            "The database to look for mail servers in, which learns the domain; `none` asks none.",
        ),
    ]
    session_ttl_days: Annotated[
        int, Variable("30", _integer(1, 3650), "An unused session ends after this.")
    ]
    session_rate_limit: Annotated[
        Rate,
        Variable(
            "10/minute",
            _rate,
            "Logins of a client address, and to a mailbox; one that fails counts twice. Ten times as many may fail at "
            "one mail server.",
        ),
    ]
    request_rate_limit: Annotated[Rate, Variable("1200/minute", _rate, "Requests of a session.")]
    trusted_proxies: Annotated[
        tuple[IPNetwork, ...],
        Variable(
            "127.0.0.1",
            _several(_proxies),
            "Proxies (addresses or CIDR, comma-separated) whose X-Forwarded-* is believed.",
        ),
    ]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read every variable. One that is empty counts as one that is not set.

        Raises:
            SettingsError: a value does not parse, or SECRET_KEY is missing.
        """
        secret = {item.name.upper() for item in fields(cls) if not item.repr}
        values: dict[str, Any] = {}
        for name, variable in cls.variables().items():
            value = environ.get(name, "").strip() or variable.default
            try:
                values[name.lower()] = variable.parse(value)
            except ValueError as exc:
                given = "" if name in secret else f", not {value!r}"
                raise SettingsError(f"{name} takes {exc}{given}") from exc
        settings = cls(**values)
        if not settings.secret_key:
            raise SettingsError("SECRET_KEY is not set: `cbemail keys init` writes one into .env")
        if settings.require_api_key and not settings.api_keys:
            raise SettingsError("REQUIRE_API_KEY is true, so API_KEYS must hold a key")
        return settings

    @classmethod
    def variables(cls) -> dict[str, Variable]:
        """Every variable there is, by name, in the order of declaration."""
        declared = get_type_hints(cls, include_extras=True)
        return {name.upper(): hint.__metadata__[0] for name, hint in declared.items()}


def load_environ(directory: Path) -> dict[str, str]:
    """The environment, over what ``directory/.env`` says.

    Raises:
        SettingsError: there is a .env, and it cannot be read.
    """
    file = directory / ".env"
    try:
        # No interpolation: a `${…}` within a generated key is part of the key.
        written = dotenv_values(file, interpolate=False)
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{file} cannot be read, or is not UTF-8") from exc
    return {name: value for name, value in written.items() if value is not None} | dict(os.environ)
