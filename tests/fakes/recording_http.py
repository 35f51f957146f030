"""An HTTP/1.1 server that writes down what reaches it: what a service behind a proxy gets to see."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.fakes.listener import Gone, Listener

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Recorded:
    """One request. Names of fields are in lower case, each with all its values."""

    line: str
    fields: dict[str, list[str]] = field(default_factory=dict)
    body: bytes = b""


class RecordingHttp(Listener):
    """Answers every request alike. Those for `…/cut` it reads, and then hangs up, as a service that is killed does."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Recorded] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def lines(self) -> list[str]:
        """The request lines, but for the questions to the gate."""
        lines = [request.line for request in self.requests]
        return [line for line in lines if " /gate/check " not in line]

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _read(reader)
            self.requests.append(request)
            if "/cut " in request.line:
                raise Gone
            writer.write(await self.answer(request))
            await writer.drain()

    async def answer(self, request: Recorded) -> bytes:
        """The whole response; for a subclass to say."""
        return _OK


async def _read(reader: asyncio.StreamReader) -> Recorded:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.rstrip("\r\n").split("\r\n")
    fields: dict[str, list[str]] = {}
    for each in rest:
        name, _, value = each.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip())
    if "transfer-encoding" in fields:
        return Recorded(line, fields, await _chunks(reader))
    return Recorded(
        line, fields, await reader.readexactly(int(fields.get("content-length", ["0"])[0]))
    )


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body
