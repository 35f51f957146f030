"""`cbemail check`: what would keep the service from starting, and what is risky in how it is set up.

Each check says what it found in one sentence, and what to do. Nothing is changed, and no secret is told.
"""

import errno
import os
import re
import resource
import secrets
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import IntEnum
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import msgspec
from dotenv import dotenv_values
from msgspec import Struct

from cbemail.settings import IPNetwork, Settings, SettingsError, load_environ
from cbemail.store import files
from cbemail.store.database import StoreUnusable
from cbemail.store.inspection import missing_steps

_MB = 1024 * 1024
_LEAST_FREE_MB = 256  # beside the largest batch, which is on disk twice while it is taken in
_API_KEY_CHARACTERS = 24
_KEY_VARIETY = 16  # different characters; a random key of 32 has 25 or so
_PIN_DIGITS = 6
_OTHER_FILES = 200  # that are open beside connections to mail servers
_CLOCK_SECONDS = 120.0
_MAIL_PORTS = {24, 25, 143, 465, 587, 993, 1025, 1143, 2525}
_LINK_LOCAL = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))  # metadata of cloud machines


class Grade(IntEnum):
    """How bad it is; the worst is the command's exit status."""

    OK = 0
    WARNING = 1
    WRONG = 2


class Finding(Struct, frozen=True):
    """One line of the report."""

    grade: Grade
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.grade.name.lower():<8}{self.about}: {self.text}"


Findings = Iterator[tuple[Grade, str]]


def check(directory: Path) -> Iterator[Finding]:
    """Every finding, in the order of the start; where the configuration cannot be read there is nothing after it."""
    try:
        environ = load_environ(directory)
        settings = Settings.from_environ(environ)
    except SettingsError as exc:
        yield Finding(Grade.WRONG, "configuration", f"{exc}.")
        return
    yield from _told("configuration", _check_env_file(directory))
    for about, look in _CHECKS.items():
        yield from _told(about, look(settings))


def _told(about: str, findings: Findings) -> Iterator[Finding]:
    try:
        for grade, text in findings:
            yield Finding(grade, about, text)
    except OSError as exc:
        yield Finding(Grade.WRONG, about, f"{exc.filename or 'It'} cannot be used: {exc.strerror}.")


def _unless(warnings: list[str], text: str) -> Findings:
    """The warnings; where there are none, that all is well."""
    yield from ((Grade.WARNING, warning) for warning in warnings)
    if not warnings:
        yield Grade.OK, text


# ---- what was chosen


def _check_env_file(directory: Path) -> Findings:
    file = directory / ".env"
    if not file.exists():
        yield Grade.OK, "Every variable has a value it may have; there is no .env here."
        return
    warnings = []
    if file.stat().st_mode & 0o077:
        warnings.append(f"{file} can be read by other users, and may hold secrets: chmod 600 it.")
    warnings += _unknown(dotenv_values(file, interpolate=False))
    yield from _unless(warnings, "Every variable has a value it may have.")


def _unknown(written: Mapping[str, str | None]) -> Iterator[str]:
    """Names in .env that mean nothing. One that does not look like a name may be a secret in the wrong line."""
    known = list(Settings.variables())
    for name, value in written.items():
        if name in known:
            continue
        if value is None or not re.fullmatch(r"[A-Z][A-Z0-9_]{1,40}", name):
            yield "A line of .env is no variable with a value: is one broken in two?"
            continue
        similar = get_close_matches(name, known, 1)
        meant = f": is {similar[0]} meant?" if similar else "."
        yield f"{name} in .env is no variable of cbemail{meant}"


def _check_secret_key(settings: Settings) -> Findings:
    keys = settings.secret_key
    warnings = []
    if any(len(set(key)) < _KEY_VARIETY for key in keys):
        warnings.append("A key does not look random: `cbemail keys new` prints one that is.")
    if len(set(keys)) < len(keys):
        warnings.append("A key is listed twice.")
    text = "It looks random."
    if len(keys) > 1:
        text = f"{len(keys)} keys; after `cbemail keys rotate` the first alone is needed."
    yield from _unless(warnings, text)


def _check_access(settings: Settings) -> Findings:
    warnings = []
    if any(len(key) < _API_KEY_CHARACTERS for key in settings.api_keys):
        warnings.append(f"A key in API_KEYS has less than {_API_KEY_CHARACTERS} characters.")
    pin = settings.gate_pin
    if pin and (len(pin) < _PIN_DIGITS or _is_simple(pin)):
        warnings.append(f"GATE_PIN can be guessed: take {_PIN_DIGITS} digits or more, at random.")
    if not pin and not settings.require_api_key and not _is_loopback(settings.host):
        warnings.append(
            "Whoever reaches the port may log in to any mailbox they know the password of: set GATE_PIN, or API_KEYS "
            "and REQUIRE_API_KEY=true; or let only a proxy reach it (HOST=127.0.0.1)."
        )
    yield from _unless(warnings, "It is limited who may log in.")


def _is_simple(pin: str) -> bool:
    """Whether all digits are the same, or each follows the one before it, up or down."""
    steps = {int(after) - int(before) for before, after in pairwise(pin)}
    return len(steps) == 1 and steps <= {-1, 0, 1}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_mail_servers(settings: Settings) -> Findings:
    warnings = []
    if settings.allow_plaintext_login:
        warnings.append(
            "ALLOW_PLAINTEXT_LOGIN lets passwords cross the internet readably: is a server worth it?"
        )
    networks = settings.allow_mail_networks
    if any(network.prefixlen == 0 for network in networks):
        warnings.append("ALLOW_MAIL_NETWORKS lets clients reach every address inside your network.")
    elif any(_overlap(network, local) for network in networks for local in _LINK_LOCAL):
        warnings.append(
            "ALLOW_MAIL_NETWORKS holds link-local addresses, where cloud machines find their keys."
        )
    odd = sorted(set(settings.allow_mail_ports) - _MAIL_PORTS)
    if odd:
        ports = ", ".join(map(str, odd))
        warnings.append(f"ALLOW_MAIL_PORTS holds ports that mail servers rarely have: {ports}.")
    yield from _unless(warnings, "Only public mail servers, and those you allowed, can be named.")


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _check_ca_file(settings: Settings) -> Findings:
    file = settings.mail_ca_file
    if file is None:
        yield Grade.OK, "None is set: the system's certificates are trusted, and no others."
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    certificates = context.get_ca_certs()
    ends = [ssl.cert_time_to_seconds(str(certificate["notAfter"])) for certificate in certificates]
    expired = sum(end < time.time() for end in ends)
    if expired:
        yield Grade.WARNING, f"{expired} of {len(ends)} certificates in {file} have expired."
    else:
        yield Grade.OK, f"{len(ends)} certificates of {file} are trusted, too."


def _check_proxies(settings: Settings) -> Findings:
    wide = [
        str(network)
        for network in settings.trusted_proxies
        if network.is_global and network.num_addresses > 256
    ]
    warnings = [
        f"{network} are many public addresses: each may say who its client is." for network in wide
    ]
    yield from _unless(warnings, "X-Forwarded-For is believed of few.")


# ---- where it runs


def _check_folder(settings: Settings) -> Findings:
    folder = settings.db_path.resolve().parent
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield Grade.WRONG, f"{folder} cannot be made: {above} may not be written by this user."
            return
        yield Grade.OK, f"{folder} is made at the first start."
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Grade.WRONG, f"{folder} may not be read and written by this user."
        return
    warnings = list(_open_to_others(settings.db_path.resolve()))
    free_mb = shutil.disk_usage(folder).free // _MB
    if free_mb < _LEAST_FREE_MB + 2 * settings.max_batch_mb:
        warnings.append(
            f"{free_mb} MB are free beside the store: too few for a batch of MAX_BATCH_MB."
        )
    yield from _unless(warnings, f"{folder} is private, and has {free_mb} MB free.")


def _open_to_others(path: Path) -> Iterator[str]:
    if path.parent.stat().st_mode & 0o077:
        yield f"{path.parent} can be entered by other users: chmod 700 it."
    for file in (path, files.wal_of(path), files.log_of(path)):
        if not file.exists():
            continue
        status = file.stat()
        if status.st_mode & 0o077:
            yield f"{file} can be read by other users: chmod 600 it."
        if status.st_uid != os.geteuid():
            yield f"{file} belongs to another user: run this, and the service, as its owner."


def _check_store(settings: Settings) -> Findings:
    path = settings.db_path
    if not any(file.exists() for file in (path, files.wal_of(path), files.log_of(path))):
        yield Grade.OK, f"{path} is made at the first start."
        return
    owner = files.owner_of(path)
    if owner is not None:
        yield Grade.OK, f"{path} is in use: the service runs as process {owner}."
        return
    try:
        steps = missing_steps(path)
    except StoreUnusable as exc:
        yield Grade.WRONG, str(exc)
        return
    later = f" and is brought up to date at the next start ({steps} steps)" if steps else ""
    yield Grade.OK, f"{path} opens{later}."


def _check_port(settings: Settings) -> Findings:
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            yield Grade.WRONG, f"{host} port {port} cannot be listened on: {exc.strerror}."
        elif _answers(host, port):
            yield Grade.OK, f"{port} is served by cbemail."
        else:
            yield Grade.WRONG, f"{port} is taken by another program: stop it, or set another PORT."
        return
    yield Grade.OK, f"{port} is free."


def _answers(host: str, port: int) -> bool:
    """Whether it is cbemail that listens there: it is alive, and gives our request the id we gave it."""
    ours = f"check-{secrets.token_hex(8)}"
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what it listens on
    connection = HTTPConnection(target, port, timeout=3)
    try:
        connection.request("GET", "/healthz", headers={"X-Request-ID": ours})
        response = connection.getresponse()
        alive = msgspec.json.decode(response.read(1000)) == {"status": "ok"}
    except (OSError, HTTPException, msgspec.DecodeError):
        return False
    finally:
        connection.close()
    return alive and response.getheader("X-Request-ID") == ours


def _check_clock(settings: Settings) -> Findings:
    path = settings.db_path
    known = [Path(__file__), *(file for file in (path, files.wal_of(path)) if file.exists())]
    behind = max(file.stat().st_mtime for file in known) - time.time()
    if behind > _CLOCK_SECONDS:
        yield (
            Grade.WRONG,
            f"The clock is {behind:.0f} s behind the files here: no token or date would be right.",
        )
    else:
        yield Grade.OK, f"It is {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC."


def _check_open_files(settings: Settings) -> Findings:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.imap_connections_total + _OTHER_FILES
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        yield (
            Grade.WARNING,
            f"{allowed} files may be open at once, and IMAP_CONNECTIONS_TOTAL wants {wanted}: `ulimit -n`.",
        )
    else:
        yield Grade.OK, "As many may be open as there may be connections."


_CHECKS: dict[str, Callable[[Settings], Findings]] = {
    "SECRET_KEY": _check_secret_key,
    "access": _check_access,
    "mail servers": _check_mail_servers,
    "MAIL_CA_FILE": _check_ca_file,
    "TRUSTED_PROXIES": _check_proxies,
    "folder": _check_folder,
    "store": _check_store,
    "port": _check_port,
    "clock": _check_clock,
    "open files": _check_open_files,
}
