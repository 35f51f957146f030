"""Finding out whether a mail server is where one is supposed: it must prove its name by TLS, and greet."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum

from cbemail.errors import CbemailError
from cbemail.hosts import MailHosts, Security
from cbemail.sessions.provider import Endpoint

_LONGEST_LINE = 8192  # octets


class Protocol(StrEnum):
    IMAP = "imap"
    SMTP = "smtp"


async def is_there(protocol: Protocol, endpoint: Endpoint, hosts: MailHosts) -> bool:
    """Whether a server of ``protocol`` greets there, behind TLS with a certificate for that very name.

    Nothing is told but EHLO and STARTTLS, and those only where TLS begins in the middle. There is no time limit here
    beyond that of connecting: a caller has one.
    """
    try:
        sock = await hosts.open_socket(endpoint.host, endpoint.port, endpoint.security)
    except CbemailError:
        return False
    implicit = endpoint.security is Security.TLS
    writer = None
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock,
            ssl=hosts.tls if implicit else None,
            server_hostname=endpoint.host if implicit else None,
            limit=_LONGEST_LINE,
        )
        greeted = await _GREETINGS[protocol](reader)
        if implicit or not greeted:
            return greeted
        if not await _STARTTLS[protocol](reader, writer):
            return False
        await writer.start_tls(hosts.tls, server_hostname=endpoint.host)
    except (OSError, EOFError, ValueError):  # TLS among them, and a line too long
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
    return True


async def _imap_greets(reader: asyncio.StreamReader) -> bool:
    return (await reader.readline()).upper().startswith(b"* OK")


async def _smtp_greets(reader: asyncio.StreamReader) -> bool:
    return (await _reply(reader)).startswith(b"220")


async def _imap_starttls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """RFC 9051 section 6.2.1. Whatever it says besides is not looked at."""
    writer.write(b"1 STARTTLS\r\n")
    while (line := await reader.readline()).startswith(b"* "):
        pass
    return line.upper().startswith(b"1 OK")


async def _smtp_starttls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """RFC 3207 section 4."""
    writer.write(b"EHLO [127.0.0.1]\r\n")
    if not (await _reply(reader)).startswith(b"250"):
        return False
    writer.write(b"STARTTLS\r\n")
    return (await _reply(reader)).startswith(b"220")


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """The last line of one (RFC 5321 section 4.2.1)."""
    while (line := await reader.readline())[3:4] == b"-":
        pass
    return line


_GREETINGS: dict[Protocol, Callable[[asyncio.StreamReader], Awaitable[bool]]] = {
    Protocol.IMAP: _imap_greets,
    Protocol.SMTP: _smtp_greets,
}
_STARTTLS: dict[
    Protocol, Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
] = {
    Protocol.IMAP: _imap_starttls,
    Protocol.SMTP: _smtp_starttls,
}
