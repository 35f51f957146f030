"""The sockets that lead to mail servers, and what their kernel is told of them (tcp(7))."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiohappyeyeballs import AddrInfoType

VANISHED_SECONDS = 120.0  # without a sign of life from a peer: then it is taken to be gone
ACKNOWLEDGE_SECONDS = 0.005  # between two times that the kernel is told to acknowledge at once


def new_socket(answer: AddrInfoType) -> socket.socket:
    """A socket that sends small commands at once, and notices that its peer has vanished also while nothing is said."""
    family, kind, protocol, _, _ = answer
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    notice_vanished_after(sock, VANISHED_SECONDS)
    return sock


def notice_vanished_after(sock: socket.socket, seconds: float) -> None:
    """Have the kernel end a connection when the peer's has not acknowledged for so long what was sent.

    However long a server takes over its answer, its kernel acknowledges the question at once: this tells one that is
    gone, or behind a firewall that has forgotten the connection, from one that is slow.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def acknowledge_at_once(sock: socket.socket) -> None:
    """Have what is heard next acknowledged at once, until something is sent.

    After a TLS handshake a server speaks twice with nothing of ours in between, session tickets and then its greeting.
    Where it leaves Nagle's algorithm on, as Postfix does, the second waits for our acknowledgement of the first, which
    the kernel would put off for 40 ms.
    """
    with suppress(OSError):  # it was closed meanwhile
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@contextmanager
def acknowledging_at_once(sock: socket.socket) -> Iterator[None]:
    """`acknowledge_at_once` again and again while the block runs, where nobody tells when the handshake is over."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def acknowledge() -> None:
        nonlocal timer
        acknowledge_at_once(sock)
        timer = loop.call_later(ACKNOWLEDGE_SECONDS, acknowledge)

    acknowledge()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
