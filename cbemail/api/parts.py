"""`…/{uid}/raw` and `…/{uid}/attachments/{id}`: octets that stream from the mail server to the client."""

import asyncio
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

from msgspec import Struct
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cbemail.api.operation import Call
from cbemail.mailbox.parts import PartStream

READER_SECONDS = (
    60.0  # for a client to take what was sent; a slow one takes some of it in that time
)


class PartInFolder(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the message is: a full path, or a special use such as ``\\Sent``."""

    folder: str = "INBOX"


class Streamed(Response):
    """A part, as it arrives. It holds a connection to the mail server until the last octet is out, or the client
    gone; what is wrong with the request shows before the first octet, and is an ordinary problem then."""

    def __init__(self, opening: AbstractAsyncContextManager[PartStream]) -> None:
        super().__init__()
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        async with self._opening as part:
            message = {"type": "http.response.start", "status": 200, "headers": []}
            _describe(MutableHeaders(scope=message), part)
            await send(message)
            if scope["method"] != "HEAD":
                async for chunk in part.chunks:
                    # A client that takes nothing would hold the session's connection for ever.
                    async with asyncio.timeout(READER_SECONDS):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _describe(headers: MutableHeaders, part: PartStream) -> None:
    headers["Content-Type"] = part.content_type
    headers["Content-Disposition"] = content_disposition(part.filename)
    headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    if part.size is not None:
        headers["Content-Length"] = str(part.size)


def content_disposition(filename: str) -> str:
    """RFC 6266: the name in UTF-8, and for old clients as much of it as ASCII can say. Always an attachment: what a
    stranger sent is not shown as ours.

    >>> content_disposition("Büro.pdf")
    'attachment; filename="B_ro.pdf"; filename*=UTF-8\\'\\'B%C3%BCro.pdf'
    """
    plain = "".join(
        c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename
    )
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


async def get_raw(call: Call[PartInFolder, None]) -> Response:
    """The message byte for byte."""
    parts = call.services.mailbox.parts
    return Streamed(parts.raw(call.session.id, call.query.folder, call.uid))


async def get_attachment(call: Call[PartInFolder, None]) -> Response:
    """One part, decoded."""
    parts = call.services.mailbox.parts
    part_id = call.path("id")
    return Streamed(parts.attachment(call.session.id, call.query.folder, call.uid, part_id))
