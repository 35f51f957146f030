"""A real Postfix for the whole test run: submission with Dovecot's users, every message captured.

with smtplib.SMTP(postfix.host, postfix.submission_port) as smtp: ...
[message] = postfix.wait_for("bob@example.test")      # envelope sender, recipients, content
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.certificates import Certificates
from tests.fakes.scripted_smtp import Captured
from tests.integration.capture import Capture
from tests.integration.dovecot import Dovecot
from tests.integration.servers import free_port, program, start_server, unavailable

_MAIN = """
compatibility_level = 3.6
config_directory = {directory}/conf
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = /dev/stdout
myhostname = mail.example.test
mydestination =
mynetworks =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
smtputf8_enable = yes
local_header_rewrite_clients =
message_size_limit = 31457280
default_transport = smtp:[127.0.0.1]:{capture_port}

smtpd_tls_security_level = may
smtpd_tls_chain_files = {directory}/tls.pem
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {auth_socket}
smtpd_sasl_security_options = noanonymous
smtpd_relay_restrictions = permit_sasl_authenticated, reject
# A refused recipient is refused at once, and as often as a test likes.
smtpd_error_sleep_time = 0
smtpd_hard_error_limit = 1000
smtpd_client_connection_count_limit = 0
"""

_MASTER = """
127.0.0.1:{submission_port} inet n - n - - smtpd
127.0.0.1:{smtps_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "trace")


class Postfix:
    """A running Postfix 3.7, an instance apart from the system's. It relays for Dovecot's users, for nobody else.

    AUTH is offered before TLS too, so that each way of securing a session can be tested.
    """

    host = "127.0.0.1"
    password = Dovecot.password

    def __init__(
        self, directory: Path, certificates: Certificates, dovecot: Dovecot, capture: Capture
    ) -> None:
        self.ca_file = certificates.ca_file
        self._command = (program("postfix"), "-c", directory / "conf")
        self._capture = capture
        self._main = _MAIN.format(
            directory=directory, auth_socket=dovecot.auth_socket, capture_port=capture.port
        )
        self._configuration = directory / "conf"
        self.submission_port = self.smtps_port = 0  # until it is started
        _lay_out(directory)
        tls = directory / "tls.pem"
        tls.touch(mode=0o600)
        tls.write_bytes(certificates.key_file.read_bytes() + certificates.chain_file.read_bytes())

    def _configure(self) -> list[str | Path]:
        self.submission_port, self.smtps_port = free_port(), free_port()
        (self._configuration / "main.cf").write_text(self._main)
        (self._configuration / "master.cf").write_text(
            _MASTER.format(submission_port=self.submission_port, smtps_port=self.smtps_port)
        )
        for file in self._configuration.iterdir():
            os.utime(file, (0, 0))  # Postfix waits two seconds for a file it takes for unfinished
        return [*self._command, "start-fg"]

    @classmethod
    @contextmanager
    def running(
        cls, directory: Path, certificates: Certificates, dovecot: Dovecot
    ) -> Iterator[Self]:
        """Start one in ``directory``, which Postfix's own users must be able to enter."""
        program("postfix")
        if os.geteuid() != 0:
            unavailable("Postfix starts only as root, and this is another user")
        with Capture.running() as capture:
            postfix = cls(directory, certificates, dovecot, capture)
            process = start_server(
                postfix._configure,
                ready=b"daemon started",
                stop=[*postfix._command, "stop"],  # a signal would reach a shell script only
            )
            try:
                yield postfix
            finally:
                process.stop()

    def messages(self, recipient: str) -> list[Captured]:
        """What has arrived for ``recipient`` so far. Others use this Postfix too: ask by a fresh address."""
        return self._capture.sent_to(recipient)

    def wait_for(self, recipient: str, count: int = 1, *, within: float = 20.0) -> list[Captured]:
        """Block until ``count`` messages for ``recipient`` have arrived, else raise TimeoutError.

        Nothing else of the calling event loop runs meanwhile; Postfix needs none of it.
        """
        return self._capture.wait_for(recipient, count, within=within)


def _lay_out(directory: Path) -> None:
    """The directories `postfix check` would make, with the owners Postfix insists on."""
    for name in ("conf", "queue", "data", "queue/pid"):
        (directory / name).mkdir()
    shutil.chown(directory / "data", "postfix")
    for name in (*_QUEUES, "private", "saved"):
        (directory / "queue" / name).mkdir(mode=0o700)
        shutil.chown(directory / "queue" / name, "postfix")
    for name, mode in (("maildrop", 0o730), ("public", 0o710)):
        (directory / "queue" / name).mkdir()
        (directory / "queue" / name).chmod(mode)
        shutil.chown(directory / "queue" / name, "postfix", "postdrop")
    (directory / "queue" / "quick-start").touch()  # postfix-script then skips checking all that
