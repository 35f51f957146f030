"""The command `cbemail`: serve the API, make keys."""

import argparse
import asyncio
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cbemail.app import ANSWER_SECONDS, create_app
from cbemail.logs import logging_to
from cbemail.settings import Settings, SettingsError, load_environ
from cbemail.store.database import StoreUnusable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 2 where the configuration is wrong, 1 where anything else is."""
    command = _parser().parse_args(arguments).run
    try:
        return int(command(Path.cwd()))
    except SettingsError as exc:
        return _complain(exc, status=2)
    except StoreUnusable as exc:
        return _complain(exc, status=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cbemail", description="Any mailbox as a REST API.")
    commands = parser.add_subparsers(required=True, metavar="command")
    serve = commands.add_parser(
        "serve", help="serve the API, configured by the environment and .env"
    )
    serve.set_defaults(run=_serve)
    keys = commands.add_parser("keys", help="make values for SECRET_KEY").add_subparsers(
        required=True, metavar="what"
    )
    keys.add_parser("new", help="print a new key").set_defaults(run=_print_key)
    keys.add_parser("init", help="write a key into .env, where there is none").set_defaults(
        run=_write_key
    )
    return parser


def _complain(problem: Exception, *, status: int) -> int:
    sys.stderr.write(f"cbemail: {problem}\n")
    return status


# ---- serve


def _serve(directory: Path) -> int:
    settings = Settings.from_environ(load_environ(directory))
    os.umask(0o077)  # whatever is written is for this user only
    # uvloop resolves names on libuv's threads, of which half may do so at once. With the usual four, two names
    # whose servers do not answer would keep every other mail host from being found.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "64")
    for shutdown in (signal.SIGTERM, signal.SIGINT):
        # Having shut down, uvicorn raises the signal again, to die of it: our exit status is 0, the logs written.
        signal.signal(shutdown, lambda *_: None)
    service = create_app(settings)
    app = _KeepStoreUnusable(service)
    with logging_to(sys.stdout, level=settings.log_level, style=settings.log_format):
        server = _Server(_uvicorn_config(app, settings), service.begin_drain)
        with suppress(SystemExit):  # uvicorn's, of a start that failed; the status is ours to give
            server.run()
    if app.store_unusable is not None:
        raise app.store_unusable
    return 0 if server.started else 1


def _uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,  # its records come to our handler
        access_log=False,  # ours says more (`logs.log_request`)
        server_header=False,
        forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
        timeout_keep_alive=75,  # longer than a proxy's 60 s, or it would send into a connection just closed
        timeout_graceful_shutdown=ANSWER_SECONDS,
    )


class _Server(uvicorn.Server):
    """uvicorn, which tells the service at once that it is to stop, rather than when the last request has ended."""

    def __init__(self, config: uvicorn.Config, begin_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._begin_drain = begin_drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # no loop runs yet, so there is nothing to stop
            asyncio.get_running_loop().call_soon_threadsafe(self._begin_drain)
        super().handle_exit(sig, frame)


class _KeepStoreUnusable:
    """The application, keeping the one failure that is the operator's to mend, at the start or at the end.

    It deserves a line that says what to do. Left to uvicorn it would be a traceback, as any other failure is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.store_unusable: StoreUnusable | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        phase = "startup"

        async def send_success(message: Message) -> None:
            nonlocal phase
            if message["type"] == "lifespan.startup.complete":
                phase = "shutdown"
            if not message["type"].endswith(".failed"):  # its cause is raised next
                await send(message)

        try:
            await self._app(scope, receive, send_success)
        except StoreUnusable as exc:
            self.store_unusable = exc
            await send({"type": f"lifespan.{phase}.failed", "message": ""})


# ---- keys


def _new_key() -> str:
    return secrets.token_urlsafe(48)


def _print_key(_: Path) -> int:
    sys.stdout.write(_new_key() + "\n")
    return 0


_EMPTY_KEY = re.compile(r"\s*(export\s+)?SECRET_KEY\s*=\s*")


def _write_key(directory: Path) -> int:
    """Put a SECRET_KEY into .env unless there is one, here or in the environment. What else .env says stays."""
    if load_environ(directory).get("SECRET_KEY"):
        return 0
    file = directory / ".env"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    kept = [line for line in lines if not _EMPTY_KEY.fullmatch(line)]
    try:
        _replace_private(file, "\n".join([*kept, f"SECRET_KEY={_new_key()}", ""]))
    except OSError as exc:
        raise SettingsError(f"{file} cannot be written: {exc.strerror}") from exc
    sys.stdout.write(f"a new SECRET_KEY is in {file}\n")
    return 0


def _replace_private(file: Path, text: str) -> None:
    """Write the file whole or not at all, readable by its owner only from the first octet on."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
            written.write(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
