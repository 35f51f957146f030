"""`cbemail demo`: the mail host in a thread with a loop of its own, the service in this one, and who introduces it."""

import errno
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from anyio.from_thread import BlockingPortal, start_blocking_portal
from msgspec import structs

from cbemail.clock import now
from cbemail.demo.guide import introduce
from cbemail.demo.keeping import Kept, fresh, load, save
from cbemail.demo.mailhost import Mailbox, serving
from cbemail.settings import Settings, SettingsError
from cbemail.store.files import make_folder

_HOST = "127.0.0.1"
_TOKEN_MINUTES = 24 * 60

Serve = Callable[[Settings, socket.socket], int]


def run(serve: Serve, *, port: int, keep: Path | None) -> int:
    """Bring all of it up, on ``port`` or a free one, until ``serve`` returns, and give its status.

    With ``keep``, a folder, the demo goes on from what is there, and leaves there what it has at its end.

    Raises:
        SettingsError: the folder cannot be used, or the port not by this user.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(_folder(keep))
        kept = load(directory) or fresh(now())
        imap = stack.enter_context(_listen(kept.imap_port))
        smtp = stack.enter_context(_listen(kept.smtp_port))
        kept = structs.replace(kept, imap_port=_port(imap), smtp_port=_port(smtp))
        mailbox, portal = stack.enter_context(_mail_host(kept, imap, smtp))
        web = _listen(port)
        if port not in {0, _port(web)}:
            sys.stdout.write(f"Port {port} is taken: this demo has {_port(web)}.\n\n")
        guide = Thread(
            target=introduce,
            args=(sys.stdout, _port(web), kept.account, kept.imap_port, kept.smtp_port),
            daemon=True,
        )
        guide.start()
        with web:
            status = serve(_settings(directory, _port(web), kept), web)
        guide.join()  # its connection, had it still waited, went with the socket
        if keep is not None:
            folders, letters = portal.call(mailbox.folders), portal.call(mailbox.letters)
            save(directory, structs.replace(kept, folders=folders[1:], letters=letters))
        return status


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with TemporaryDirectory(prefix="cbemail-demo-") as temporary:
            yield Path(temporary)
        return
    try:
        make_folder(keep)
    except OSError as exc:
        raise SettingsError(f"{keep} cannot be used: {exc.strerror}") from exc
    yield keep


def _listen(port: int) -> socket.socket:
    """A socket that listens on loopback, at another port where this one is taken."""
    try:
        return socket.create_server((_HOST, port))
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise SettingsError(f"port {port} cannot be listened on: {exc.strerror}") from exc
        return socket.create_server((_HOST, 0))


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


@contextmanager
def _mail_host(
    kept: Kept, imap: socket.socket, smtp: socket.socket
) -> Iterator[tuple[Mailbox, BlockingPortal]]:
    """A thread and a loop of its own: it is there before the service starts, and until that has sent its last mail."""
    with start_blocking_portal(name="cbemail-demo-mail") as portal:
        mailbox = Mailbox(kept.account)
        portal.call(mailbox.fill, kept.folders, kept.letters)
        with portal.wrap_async_context_manager(serving(mailbox, imap, smtp)):
            yield mailbox, portal


def _settings(directory: Path, port: int, kept: Kept) -> Settings:
    """All that has to be said; neither the environment nor `.env` is asked."""
    return Settings.from_environ(
        {
            "HOST": _HOST,
            "PORT": str(port),
            "DB_PATH": str(directory / "db" / "cbemail.duckdb"),
            "SECRET_KEY": kept.secret_key,
            "ALLOW_MAIL_NETWORKS": f"{_HOST}/32",
            "ACCESS_TOKEN_EXPIRE_MINUTES": str(_TOKEN_MINUTES),
            "LOG_LEVEL": "WARNING",
        }
    )
