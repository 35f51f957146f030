"""A real Cyrus for the whole test run: another mind than Dovecot's, where every folder is below ``INBOX.``.

Debian's package cannot be installed beside Dovecot's, so `make servers` unpacks it into a directory of its own.
"""

from __future__ import annotations

import imaplib
import itertools
import os
import pwd
import shutil
import signal
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.certificates import Certificates
from tests.integration.servers import ServerProcess, free_port, start_server, unavailable

_TIMEOUT = 30  # seconds a test waits for Cyrus before it fails

_ROOT = Path("/opt/cyrus")
_PROGRAMS = _ROOT / "usr/lib/cyrus/bin"

# Every user finds the folders when logging in for the first time.
_SERVER = """
configdirectory: {directory}/state
partition-default: {directory}/mail
defaultpartition: default
servername: localhost
cyrus_user: {user}
skiplist_unsafe: yes

sasl_mech_list: PLAIN LOGIN
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: {directory}/passwords
allowplaintext: yes
failedloginpause: 0
virtdomains: userid
defaultdomain: localhost
tls_server_cert: {directory}/chain.pem
tls_server_key: {directory}/key.pem

altnamespace: no
unixhierarchysep: no
autocreate_quota: 0
autocreate_inbox_folders: Sent|Drafts|Trash|Junk|Archive
autocreate_subscribe_folders: Sent|Drafts|Trash|Junk|Archive
xlist-sent: Sent
xlist-drafts: Drafts
xlist-trash: Trash
xlist-junk: Junk
xlist-archive: Archive
"""

# The event is the first thing that is done when all is ready.
_SERVICES = """
START {{
  recover cmd="{programs}/ctl_cyrusdb -C {directory}/imapd.conf -r"
}}
SERVICES {{
  imap cmd="{programs}/imapd -C {directory}/imapd.conf" listen="127.0.0.1:{imap_port}" prefork=1
  imaps cmd="{programs}/imapd -s -C {directory}/imapd.conf" listen="127.0.0.1:{imaps_port}" prefork=1
}}
EVENTS {{
  ready cmd="/bin/echo Cyrus is ready" period=100000
}}
"""


class Cyrus:
    """A running Cyrus IMAP 3. Every address is a user, with the password ``secret``."""

    host = "127.0.0.1"
    password = "secret"

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self._directory = directory
        self._users = itertools.count(1)
        self._owner = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        for name in ("state", "state/socket", "mail"):
            (directory / name).mkdir()
            self._hand_over(directory / name)
        for file in (certificates.chain_file, certificates.key_file):
            self._hand_over(Path(shutil.copy(file, directory)))
        self.imap_port = self.imaps_port = 0  # until it is started

    @classmethod
    @contextmanager
    def running(cls, directory: Path, certificates: Certificates) -> Iterator[Self]:
        """Start one in ``directory``, which users other than root's must be able to enter."""
        if not _PROGRAMS.is_dir():
            unavailable("Cyrus is not there: `make servers` gets what these tests run")
        cyrus = cls(directory, certificates)
        with _checking_passwords(directory / "passwords", cls.password), cyrus._started():
            yield cyrus

    @contextmanager
    def _started(self) -> Iterator[ServerProcess]:
        process = start_server(
            self._configure,
            ready=b"Cyrus is ready",
            stop=signal.SIGKILL,  # a process that is busy would not hear a gentler one
            environ=_environ(),
        )
        try:
            yield process
        finally:
            process.stop()

    def _configure(self) -> list[str | Path]:
        self.imap_port, self.imaps_port = free_port(), free_port()
        services, server = self._directory / "cyrus.conf", self._directory / "imapd.conf"
        server.write_text(_SERVER.format(directory=self._directory, user=self._owner))
        services.write_text(
            _SERVICES.format(
                directory=self._directory,
                programs=_PROGRAMS,
                imap_port=self.imap_port,
                imaps_port=self.imaps_port,
            )
        )
        self._hand_over(services)
        self._hand_over(server)
        pid_file = self._directory / "master.pid"
        return [_PROGRAMS / "master", "-D", "-C", server, "-M", services, "-p", pid_file]

    def _hand_over(self, path: Path) -> None:
        """Give a file to the user that Cyrus runs as."""
        shutil.chown(path, self._owner)

    @contextmanager
    def imap(self, user: str) -> Iterator[imaplib.IMAP4]:
        """Another client than the service."""
        with imaplib.IMAP4(self.host, self.imap_port, timeout=_TIMEOUT) as client:
            client.login(user, self.password)
            yield client

    def fresh_user(self) -> str:
        """An address nobody has used in this run."""
        return f"u{next(self._users)}@example.test"


def _environ() -> dict[str, str]:
    """Where the libraries are that were unpacked with it."""
    libraries = [*_ROOT.glob("usr/lib/*-linux-gnu"), *_ROOT.glob("lib/*-linux-gnu")]
    return {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": ":".join(map(str, libraries))}


@contextmanager
def _checking_passwords(socket: Path, password: str) -> Iterator[None]:
    """Stand in for saslauthd: user, password, service and realm, each behind its length, are answered in the same way."""

    class Check(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            _, given, _, _ = (self._read() for _ in range(4))
            verdict = b"OK" if given == password.encode() else b"NO"
            self.wfile.write(len(verdict).to_bytes(2, "big") + verdict)

        def _read(self) -> bytes:
            return self.rfile.read(int.from_bytes(self.rfile.read(2), "big"))

    with socketserver.ThreadingUnixStreamServer(str(socket), Check) as server:
        socket.chmod(0o666)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join()
