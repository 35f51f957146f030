"""A network of its own for the service: whatever address it connects to is on this machine, and is told on it.

Run inside a network and a mount namespace, this is a program. There every IPv4 and IPv6 address is local, a name server
answers what it was told to, and each SYN is seen; nothing can leave. It reads what to do as JSON, and writes what came
of it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.integration.servers import program, unavailable
from tests.integration.service import ServiceProcess

Answers = list[
    list[str]
]  # the addresses of a name, each time it is asked for; then from the beginning

_ROOT = Path(__file__).parents[2]
_NAME_SERVER = "127.0.0.53"
_SECONDS = 60
_ETH_P_ALL = 3
_IP_PROTOCOL_TCP = 6
_SYN, _ACK = 0x02, 0x10
_RECORD_TYPES = {1: IPv4Address, 28: IPv6Address}  # A (RFC 1035), AAAA (RFC 3596)


@dataclass(frozen=True)
class Outcome:
    """The answer to one login, and whom the service has tried to connect to for it."""

    status: int
    code: str
    contacted: tuple[str, ...]


def log_in_from_inside(
    environ: dict[str, str], names: dict[str, Answers], logins: list[dict[str, Any]]
) -> list[Outcome]:
    """What comes of each body of `POST /api/sessions`, when the service is in such a network."""
    asked = {"environ": environ, "names": names, "logins": logins}
    done = subprocess.run(
        [*_namespaces(), sys.executable, "-m", __name__],
        cwd=_ROOT,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=list[Outcome])


def _namespaces() -> list[str]:
    """The command that makes them: for root as it is, for others as root of a user namespace."""
    unshare = [program("unshare"), "--net", "--mount"]
    for command in (unshare, [*unshare, "--map-root-user"]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return unavailable("no network namespace can be made: run as root, or allow user namespaces")


# ---- inside


def main() -> None:
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as directory:
        _own_every_address()
        _serve_names(asked["names"], Path(directory))
        environ = asked["environ"] | {"DB_PATH": f"{directory}/db/cbemail.duckdb"}
        with ServiceProcess(Path(directory), environ) as service:
            outcomes = list(_log_in(service, asked["logins"]))
    json.dump(outcomes, sys.stdout)


def _own_every_address() -> None:
    ip = program("ip")
    for command in (
        "link set lo up",
        "route add local 0.0.0.0/0 dev lo",
        "-6 route add local ::/0 dev lo",
    ):
        subprocess.run([ip, *command.split()], check=True)


def _log_in(service: ServiceProcess, logins: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as wire,
        httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client,
    ):
        client.get("/healthz")  # connects
        wire.settimeout(0)
        list(_packets(wire))
        for login in logins:
            response = client.post("/api/sessions", json=login)
            contacted = sorted({to for packet in _packets(wire) if (to := _addressee(packet))})
            code = response.json().get("code", "")
            yield {"status": response.status_code, "code": code, "contacted": contacted}


def _packets(wire: socket.socket) -> Iterator[bytes]:
    """What was sent since the last time."""
    while True:
        try:
            packet, (_, _, kind, *_) = wire.recvfrom(65_535)
        except BlockingIOError:
            return
        if kind == socket.PACKET_OUTGOING:
            yield packet


def _addressee(packet: bytes) -> str | None:
    """Where a SYN goes; None for any other packet."""
    if packet[0] >> 4 == 4:
        protocol, to, segment = packet[9], packet[16:20], packet[(packet[0] & 0xF) * 4 :]
    else:
        protocol, to, segment = packet[6], packet[24:40], packet[40:]
    if protocol != _IP_PROTOCOL_TCP or segment[13] & (_SYN | _ACK) != _SYN:
        return None
    return str(ip_address(to))


# ---- the name server


def _serve_names(names: dict[str, Answers], directory: Path) -> None:
    """Answer for ``names`` from now on, to whoever asks the system's resolver. No other name is there."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((_NAME_SERVER, 53))
    threading.Thread(target=_answer_all, args=(server, names), daemon=True).start()
    configuration = directory / "resolv.conf"
    configuration.write_text(f"nameserver {_NAME_SERVER}\n")
    mount = [program("mount"), "--bind", str(configuration), os.path.realpath("/etc/resolv.conf")]
    subprocess.run(mount, check=True)


def _answer_all(server: socket.socket, names: dict[str, Answers]) -> None:
    turns: defaultdict[tuple[str, int], Iterator[list[str]]]
    turns = defaultdict(lambda: iter(()))
    turns |= {(name, kind): cycle(names[name]) for name in names for kind in _RECORD_TYPES}
    while True:
        query, client = server.recvfrom(512)
        name, end = _question(query)
        kind = int.from_bytes(query[end : end + 2], "big")
        known = name in names
        addresses = [ip_address(each) for each in next(turns[name, kind], [])]
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(address.packed)) + address.packed
            for address in addresses
            if isinstance(address, _RECORD_TYPES.get(kind, ()))
        ]
        flags = 0x8180 if known else 0x8183  # no error, or no such name
        header = query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        server.sendto(header + query[12 : end + 4] + b"".join(records), client)


def _question(query: bytes) -> tuple[str, int]:
    """The name asked for, and where it ends."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1


if __name__ == "__main__":
    main()
