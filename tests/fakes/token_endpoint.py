"""An OAuth2 token endpoint over plain HTTP: gives access tokens for the one refresh token that is good.

async with TokenEndpoint() as endpoint:
    endpoint.good_at(imap_server, smtp_server)
    endpoint.on(503, {})                        # the next answer; then as ever
    endpoint.gate.clear()                       # nothing is answered until it is set
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qsl

from tests.fakes.recording_http import Recorded, RecordingHttp

TOKENINFO_PATH = "/tokeninfo?access_token="

_PATIENCE = 10  # seconds until `asked` gives a test up that would otherwise hang


class TakesTokens(Protocol):
    tokens: set[str]


class TokenEndpoint(RecordingHttp):
    """Numbers the access tokens it gives, ``access-1`` first. With ``rotates`` a refresh token is good once."""

    def __init__(self, *, rotates: bool = False) -> None:
        super().__init__()
        self.refresh_token = "refresh-0"
        self.owner = "joe@example.org"
        self.tokens: set[str] = set()  # that are good, for a mail server that asks here
        self.rotates = rotates
        self.lives = [3600]  # `expires_in` of the tokens to come; the last for ever
        self.forms: list[dict[str, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._asked_more = asyncio.Event()
        self._scripted: list[tuple[int, object]] = []
        self._servers: list[TakesTokens] = []
        self._given = 0

    @property
    def token_url(self) -> str:
        return f"{self.url}/token"

    @property
    def tokeninfo_url(self) -> str:
        return self.url + TOKENINFO_PATH

    def good_at(self, *servers: TakesTokens) -> None:
        """Have these servers accept the tokens from now on; no others."""
        self._servers = list(servers)
        for server in servers:
            server.tokens = set()

    def revoke_access(self) -> None:
        """The access tokens given so far are good no longer."""
        for server in self._servers:
            server.tokens.clear()

    def on(self, status: int, body: object) -> None:
        self._scripted.append((status, body))

    def oauth2(self, **changes: Any) -> dict[str, Any]:
        """`oauth2` of `POST /api/sessions`."""
        return {
            "refresh_token": self.refresh_token,
            "client_id": "the-client",
            "token_url": self.token_url,
        } | changes

    async def answer(self, request: Recorded) -> bytes:
        if request.line.startswith("GET "):
            return self._introspect(request.line.split(" ")[1])
        form = dict(parse_qsl(request.body.decode(), strict_parsing=True))
        self._remember(form)
        await self.gate.wait()
        if self._scripted:
            return _response(*self._scripted.pop(0))
        if form["refresh_token"] != self.refresh_token:
            return _response(400, {"error": "invalid_grant"})
        return _response(200, self._give())

    async def asked(self, times: int) -> None:
        """Wait until so many requests for a token have arrived."""
        async with asyncio.timeout(_PATIENCE):
            while len(self.forms) < times:
                await self._asked_more.wait()

    def _remember(self, form: dict[str, str]) -> None:
        self.forms.append(form)
        self._asked_more.set()
        self._asked_more = asyncio.Event()

    def _introspect(self, path: str) -> bytes:
        """What a mail server wants to know of a token: whose it is."""
        if path.removeprefix(TOKENINFO_PATH) in self.tokens:
            return _response(200, {"email": self.owner})
        return _response(400, {"error": "invalid_token"})

    def _give(self) -> dict[str, object]:
        self._given += 1
        token = f"access-{self._given}"
        for server in self._servers:
            server.tokens.add(token)
        given = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self.lives.pop(0) if len(self.lives) > 1 else self.lives[0],
        }
        if self.rotates:
            self.refresh_token = f"refresh-{self._given}"
            given["refresh_token"] = self.refresh_token
        return given


def _response(status: int, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
