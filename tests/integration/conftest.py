"""The service as users have it: over HTTP, with a store of its own, before real mail servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cbemail.api.connections import Connection
from cbemail.app import create_app
from cbemail.outbox.dispatch import Policy
from cbemail.settings import Settings
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix
from tests.integration.servers import free_port

SECRET_KEY = "only-for-tests-0123456789abcdefghijklmnop"
API_KEY = "a-key-of-a-trusted-service"


@dataclass(frozen=True)
class Mailbox:
    """A session of a fresh user, and a client that speaks for it."""

    user: str
    session_id: str
    refresh_token: str
    client: httpx.AsyncClient

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.client.get(path, params=params)

    async def post(self, path: str, body: object = None, **params: Any) -> httpx.Response:
        return await self.client.post(path, json=body, params=params)

    async def delete(self, path: str, **params: Any) -> httpx.Response:
        return await self.client.delete(path, params=params)


def environment(tmp_path: Path, ca_file: Path, **changes: str) -> dict[str, str]:
    """A configuration under which the test servers may be used, and as often as one likes."""
    return {
        "SECRET_KEY": SECRET_KEY,
        "API_KEYS": API_KEY,
        "DB_PATH": str(tmp_path / "db" / "cbemail.duckdb"),
        "ALLOW_MAIL_NETWORKS": "127.0.0.0/8",
        "MAIL_CA_FILE": str(ca_file),
        "SESSION_RATE_LIMIT": "1000000/second",
        "REQUEST_RATE_LIMIT": "1000000/second",
    } | changes


@asynccontextmanager
async def serving(environ: dict[str, str], policy: Policy | None = None) -> AsyncIterator[str]:
    """Run the service on a free port of this process; give its base URL. ``policy`` shortens its times."""
    settings = Settings.from_environ(environ)
    port = free_port()
    service = create_app(settings, policy)
    config = uvicorn.Config(
        service,
        host="127.0.0.1",
        port=port,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # type: ignore[method-assign]  # they are pytest's here
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.wait({running}, timeout=0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        service.begin_drain()
        server.should_exit = True
        await running


def _no_signals() -> Any:
    return _Nothing()


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    """What the service is configured with; a test module may override it."""
    return environment(tmp_path, dovecot.ca_file)


@pytest.fixture
async def base_url(environ: dict[str, str]) -> AsyncIterator[str]:
    async with serving(environ) as url:
        yield url


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that is nobody yet."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client:
        yield client


def credentials(
    user: str, dovecot: Dovecot, smtp_port: int, security: str = "tls"
) -> dict[str, Any]:
    """The body of `POST /api/sessions` for a test user."""
    return {
        "email": user,
        "password": dovecot.password,
        "imap": {"host": "localhost", "port": dovecot.imaps_port, "security": "tls"},
        "smtp": {"host": "localhost", "port": smtp_port, "security": security},
    }


@asynccontextmanager
async def logged_in(base_url: str, body: dict[str, Any]) -> AsyncIterator[Mailbox]:
    async with httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client:
        response = await client.post("/api/sessions", json=body)
        assert response.status_code == 201, response.text
        created = response.json()
        client.headers["Authorization"] = f"Bearer {created['token']}"
        yield Mailbox(body["email"], created["session_id"], created["refresh_token"], client)


@pytest.fixture
async def mailbox(base_url: str, dovecot: Dovecot, postfix: Postfix) -> AsyncIterator[Mailbox]:
    """A session of a fresh user at Dovecot and Postfix."""
    body = credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port)
    async with logged_in(base_url, body) as mailbox:
        yield mailbox


@pytest.fixture
async def scripted(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session of a fresh user at Dovecot, whose SMTP server is the scripted one."""
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with logged_in(base_url, body) as mailbox:
        yield mailbox


Seed = Callable[..., int]


def letter(subject: str, text: str = "Hello.", **fields: str) -> bytes:
    """A plain message. Field names are written with underscores."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    head = ["From: Ann <ann@example.org>", "To: joe@example.org", f"Subject: {subject}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n" + text + "\r\n").encode()
