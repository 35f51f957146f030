"""A network of its own for the service: whatever address it connects to is on this machine, and is told on it.

Run inside a network and a mount namespace, this is a program. There every IPv4 and IPv6 address is local, a name server
answers what it was told to, and each SYN is seen; nothing can leave. It reads what to do as JSON, and writes what came
of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import cycle
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import httpx
import msgspec

from tests.integration.servers import program, unavailable
from tests.integration.service import ServiceProcess

# The records of a name, each time it is asked for; then from the beginning. An address, or a type and its value as in
# "SRV 0 0 993 mail.acme.org.". Or, for all of them: that the name server fails, or that no answer comes.
Answers = list[list[str]]
FAILURE, SILENCE = ["SERVFAIL"], ["SILENCE"]

_ROOT = Path(__file__).parents[2]
_NAME_SERVER = "127.0.0.53"
_SECONDS = 60
_ETH_P_ALL = 3
_IP_PROTOCOL_TCP = 6
_SYN, _ACK = 0x02, 0x10


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
        [*namespaces(), sys.executable, "-m", __name__],
        cwd=_ROOT,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=list[Outcome])


def namespaces() -> list[str]:
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
    turns: dict[tuple[str, str], Iterator[list[str]]] = {}
    while True:
        query, client = server.recvfrom(512)
        response = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
        [question] = response.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        if name not in names:
            response.set_rcode(dns.rcode.NXDOMAIN)
        turn = next(turns.setdefault((name, kind), cycle(names.get(name, [[]]))))
        if turn == SILENCE:
            continue
        records = [value for known, value in map(_record, turn) if known == kind]
        if turn == FAILURE:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif records:
            response.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *records))
        server.sendto(response.to_wire(), client)


def _record(text: str) -> tuple[str, str]:
    """Its type and its value."""
    if " " in text:
        kind, _, value = text.partition(" ")
        return kind, value
    return ("AAAA" if ":" in text else "A"), text


if __name__ == "__main__":
    main()
