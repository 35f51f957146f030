"""Answers that are made while they are sent, however long they get."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

from anyio import CancelScope
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

READER_SECONDS = (
    60.0  # for a client to take what was sent; a slow one takes some of it in that time
)


class Streamed(Response):
    """Pieces, sent as they come.

    The first is waited for before anything is sent: what is wrong with the request shows by then, and is an ordinary
    problem. ``pieces`` is closed in the end, whether they were all taken or the client has gone.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        try:
            piece = await anext(self._pieces, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await _send(send, piece)
                async for piece in self._pieces:
                    await _send(send, piece)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            with CancelScope(shield=True):
                await self._pieces.aclose()


async def _send(send: Send, piece: bytes) -> None:
    """A client that takes nothing would hold what the pieces are made from for ever."""
    async with asyncio.timeout(READER_SECONDS):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
