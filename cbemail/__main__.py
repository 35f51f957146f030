"""The command `cbemail`: serve the API, try it, check how it is set up, make keys."""

import argparse
import asyncio
import os
import re
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cbemail.api.connections import Connection
from cbemail.app import ANSWER_SECONDS, create_app
from cbemail.check import Grade, check
from cbemail.logs import logging_to
from cbemail.rotation import rotate
from cbemail.settings import Settings, SettingsError, load_environ
from cbemail.store.database import StoreUnusable
from cbemail.store.sealed import SealedKind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 2 where the configuration is wrong, 1 where anything else is."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("run")
    try:
        return int(command(Path.cwd(), **options))
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
    demo = commands.add_parser(
        "demo", help="try it: the service, a mail host and a mailbox, on this machine only"
    )
    demo.add_argument("--port", type=_port, default=32212, help="32212 where nothing is said")
    kept = "leave the mailbox and the store in DIR, and go on from there"
    demo.add_argument("--keep", type=Path, metavar="DIR", help=kept)
    demo.set_defaults(run=_demo)
    commands.add_parser(
        "check", help="say what is wrong or risky in how it is set up; status 1: risky, 2: wrong"
    ).set_defaults(run=_check)
    keys = commands.add_parser("keys", help="make and change SECRET_KEY").add_subparsers(
        required=True, metavar="what"
    )
    keys.add_parser("new", help="print a new key").set_defaults(run=_print_key)
    keys.add_parser("init", help="write a key into .env, where there is none").set_defaults(
        run=_write_key
    )
    keys.add_parser(
        "rotate", help="seal all that is stored with the first key; the service must be stopped"
    ).set_defaults(run=_rotate_keys)
    return parser


def _complain(problem: Exception, *, status: int) -> int:
    sys.stderr.write(f"cbemail: {problem}\n")
    return status


# ---- serve

FILES = 65_536  # open at once: connections of clients, and to mail servers


def _serve(directory: Path) -> int:
    return _run_service(Settings.from_environ(load_environ(directory)))


def _run_service(settings: Settings, listener: socket.socket | None = None) -> int:
    """Serve until told to stop, on ``listener`` where that is open already, and give the exit status."""
    os.umask(0o077)  # whatever is written is for this user only
    # uvloop resolves names on libuv's threads, of which half may do so at once. With the usual four, two names
    # whose servers do not answer would keep every other mail host from being found.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "64")
    _allow_many_files()
    for shutdown in (signal.SIGTERM, signal.SIGINT):
        # Having shut down, uvicorn raises the signal again, to die of it: our exit status is 0, the logs written.
        signal.signal(shutdown, lambda *_: None)
    service = create_app(settings)
    app = _KeepStoreUnusable(service)
    with logging_to(sys.stdout, level=settings.log_level, style=settings.log_format):
        server = _Server(_uvicorn_config(app, settings), service.begin_drain)
        with suppress(SystemExit):  # uvicorn's, of a start that failed; the status is ours to give
            server.run([listener] if listener is not None else None)
    if app.store_unusable is not None:
        raise app.store_unusable
    return 0 if server.started else 1


def _allow_many_files() -> None:
    """Each connection is one. The usual soft limit of 1024 is for programs that use `select`."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with suppress(ValueError, OSError):  # macOS takes less than what it calls its limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Connection,
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


# ---- demo


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def _demo(_: Path, *, port: int, keep: Path | None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the service takes over
    with suppress(KeyboardInterrupt):
        # Imported only now, by name: what it needs is an extra, and nobody else should wait for it.
        try:
            demo = import_module("cbemail.demo.command")
        except ModuleNotFoundError as exc:
            if (exc.name or "").startswith("cbemail"):
                raise
            sys.stderr.write(_MISSING_EXTRA.format(module=exc.name))
            return 1
        return int(demo.run(_run_service, port=port, keep=keep))
    return 0


_MISSING_EXTRA = (
    "cbemail: the demo needs {module}, which comes with its extra: pip install 'cbemail[demo]', or make install in a "
    "checkout\n"
)


# ---- check


def _check(directory: Path) -> int:
    worst = Grade.OK
    for finding in check(directory):
        sys.stdout.write(f"{finding}\n")
        worst = max(worst, finding.grade)
    return worst


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


def _rotate_keys(directory: Path) -> int:
    """Say what was done, and what still needs the old keys. Status 1 where a value opens with none of the keys."""
    settings = Settings.from_environ(load_environ(directory))
    done = rotate(settings.db_path, settings.secret_key)
    for kind, rotation in done.items():
        sys.stdout.write(
            f"{_SEALED[kind]}: {rotation.renewed} sealed anew, {rotation.current} were already\n"
        )
    lost = sum(rotation.lost for rotation in done.values())
    if lost:
        sys.stdout.write(
            f"{lost} values open with none of the keys: is one missing in SECRET_KEY?\n"
        )
        return 1
    sys.stdout.write(
        "Nothing in the store needs an older key. Access tokens signed with one are good until they expire "
        f"({settings.access_token_expire_minutes} minutes); backups made before this can be read with it only.\n"
    )
    return 0


_SEALED = {
    SealedKind.CREDENTIALS: "credentials of sessions",
    SealedKind.BATCH_KEYS: "keys of batches",
    SealedKind.ANSWERS: "answers to idempotency keys",
    SealedKind.RESULTS: "results of messages sent",
    SealedKind.FOLDER_STATES: "states of folders",
    SealedKind.CACHE_KEYS: "keys of the message cache",
}


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
