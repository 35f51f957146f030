"""What a mail server takes over TLS with AUTH from the leanest client there is: commands pipelined, nothing recorded."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time

from tests.integration.postfix import Postfix


def submission_rate(
    postfix: Postfix, user: str, recipient: str, *, connections: int, messages: int, octets: int
) -> float:
    """Messages a second over so many connections, opened and logged in before the clock starts."""
    return asyncio.run(_submit(postfix, user, recipient, connections, messages, octets))


async def _submit(
    postfix: Postfix, user: str, recipient: str, connections: int, messages: int, octets: int
) -> float:
    opened = [await _open(postfix, user) for _ in range(connections)]
    envelope = (f"MAIL FROM:<{user}> SIZE={octets}\r\nRCPT TO:<{recipient}>\r\nDATA\r\n").encode()
    body = b"Subject: raw\r\n\r\n" + b"Here they are.\r\n" * (octets // 16) + b".\r\n"
    start = time.perf_counter()
    await asyncio.gather(
        *(
            _send(reader, writer, envelope, body, messages // connections)
            for reader, writer in opened
        )
    )
    rate = messages / (time.perf_counter() - start)
    for _, writer in opened:
        writer.close()
    return rate


async def _open(postfix: Postfix, user: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tls = ssl.create_default_context(cafile=postfix.ca_file)
    reader, writer = await asyncio.open_connection("localhost", postfix.smtps_port, ssl=tls)
    await _reply(reader)
    login = base64.b64encode(f"\0{user}\0{postfix.password}".encode())
    for command in (b"EHLO bench", b"AUTH PLAIN " + login):
        writer.write(command + b"\r\n")
        await _reply(reader)
    return reader, writer


async def _send(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    envelope: bytes,
    body: bytes,
    messages: int,
) -> None:
    for _ in range(messages):
        writer.write(envelope)
        for _ in range(3):
            await _reply(reader)
        writer.write(body)
        await _reply(reader)


async def _reply(reader: asyncio.StreamReader) -> None:
    line = await reader.readline()
    while line[3:4] == b"-":
        line = await reader.readline()
    assert line[:1] in b"23", line
