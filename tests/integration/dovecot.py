"""A real Dovecot for the whole test run: any user, one password, a new mailbox for the asking.

user = dovecot.fresh_user()
[uid] = dovecot.append(user, b"Subject: hi\\r\\n\\r\\nhello\\r\\n", flags=["\\\\Seen"])
with dovecot.imap(user) as imap: ...          # imaplib, logged in: to look at what really happened
"""

from __future__ import annotations

import base64
import grp
import imaplib
import itertools
import os
import pwd
import re
import select
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from tests.certificates import Certificates
from tests.integration.servers import free_port, program, start_server

WEAK_CAPABILITIES = "IMAP4rev1"  # no MOVE, UIDPLUS, ESEARCH, LITERAL+, SPECIAL-USE, CONDSTORE, …

_RECORDED_AT = re.compile(rb"^\d+\.\d{6} ", re.MULTILINE)  # what Dovecot puts before each line

_TIMEOUT = 30  # seconds a test waits for Dovecot before it fails

_CONFIGURATION = """
base_dir = {directory}/run
state_dir = {directory}/run
log_path = /dev/stderr
protocols = imap
listen = 127.0.0.1
default_internal_user = {internal_user}
default_login_user = {login_user}
default_internal_group = {group}
first_valid_uid = 1
first_valid_gid = 1

ssl = yes
ssl_cert = <{certificates.chain_file}
ssl_key = <{certificates.key_file}

auth_mechanisms = plain login {bearer_mechanism}
{oauth2}
passdb {{
  driver = static
  args = password={password}
}}
# Whoever the first did not let in is refused here. Dovecot holds back every other refusal for half a second.
passdb {{
  driver = static
  args = nopassword=y nodelay=y
  result_success = return-fail
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/mail/%u
}}

mail_location = sdbox:~/sdbox
mail_fsync = never
mail_max_userip_connections = {connections_per_user}
rawlog_dir = {directory}/rawlog/%u
{imap_capability}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Sent {{
    auto = subscribe
    special_use = \\Sent
  }}
  mailbox Drafts {{
    auto = subscribe
    special_use = \\Drafts
  }}
  mailbox Trash {{
    auto = subscribe
    special_use = \\Trash
  }}
  mailbox Junk {{
    auto = subscribe
    special_use = \\Junk
  }}
  mailbox Archive {{
    auto = subscribe
    special_use = \\Archive
  }}
}}

service imap-login {{
  {chroot}
  # One process for all logins, kept: a login then costs a few milliseconds.
  service_count = 0
  process_min_avail = 1
  client_limit = 4096
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = {imaps_port}
    ssl = yes
  }}
}}
service imap {{
  process_min_avail = 2
  process_limit = 4096
}}
service auth {{
  unix_listener {directory}/auth {{
    mode = 0666
  }}
}}
service anvil {{
  {chroot}
  # Without this socket a wrong password does not slow down the logins after it.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  {chroot}
}}
"""

# For the mechanisms of access tokens only. What stands at the URL is asked with each token.
_OAUTH2 = """
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {directory}/oauth2.conf
  result_failure = return-fail
}}
"""
_OAUTH2_ARGUMENTS = """
tokeninfo_url = {tokeninfo_url}
username_attribute = email
"""


@dataclass(frozen=True)
class OAuth2:
    """Logins by access token: one mechanism, and the URL that tells whose a token is, to which the token is appended."""

    mechanism: str
    tokeninfo_url: str


class Dovecot:
    """A running Dovecot 2.3. Every address is a user, with the password ``secret``."""

    host = "127.0.0.1"
    password = "secret"

    def __init__(
        self,
        directory: Path,
        certificates: Certificates,
        *,
        imap_capability: str | None = None,
        connections_per_user: int = 1000,
        oauth2: OAuth2 | None = None,
    ) -> None:
        self.ca_file = certificates.ca_file
        self.auth_socket = directory / "auth"  # where Postfix asks
        self._directory = directory
        self._certificates = certificates
        self._imap_capability = imap_capability
        self._connections_per_user = connections_per_user
        self._oauth2 = oauth2
        self._configuration = directory / "dovecot.conf"
        self._doveadm = program("doveadm")
        self._users = itertools.count(1)
        self._mail_owner = _mail_owner()
        for name in ("mail", "rawlog"):
            (directory / name).mkdir()
            os.chown(directory / name, self._mail_owner.pw_uid, self._mail_owner.pw_gid)
        self.imap_port = self.imaps_port = 0  # until it is started

    def _configure(self) -> list[str | Path]:
        self.imap_port, self.imaps_port = free_port(), free_port()
        offered = self._imap_capability
        if self._oauth2 is not None:
            arguments = _OAUTH2_ARGUMENTS.format(tokeninfo_url=self._oauth2.tokeninfo_url)
            (self._directory / "oauth2.conf").write_text(arguments)
        self._configuration.write_text(
            _CONFIGURATION.format(
                directory=self._directory,
                certificates=self._certificates,
                password=self.password,
                uid=self._mail_owner.pw_uid,
                gid=self._mail_owner.pw_gid,
                imap_port=self.imap_port,
                imaps_port=self.imaps_port,
                imap_capability=f"imap_capability = {offered}" if offered else "",
                connections_per_user=self._connections_per_user,
                oauth2=_OAUTH2.format(directory=self._directory) if self._oauth2 else "",
                bearer_mechanism=self._oauth2.mechanism if self._oauth2 else "",
                **_process_owners(),
            )
        )
        return [program("dovecot"), "-F", "-c", self._configuration]

    @classmethod
    @contextmanager
    def running(
        cls,
        directory: Path,
        certificates: Certificates,
        *,
        imap_capability: str | None = None,
        connections_per_user: int = 1000,
        oauth2: OAuth2 | None = None,
    ) -> Iterator[Self]:
        """Start one in ``directory``, which users other than root's must be able to enter.

        ``imap_capability`` replaces what it offers. Commands that are not offered still work, so a test that
        must see them unused looks at the `record`.
        """
        dovecot = cls(
            directory,
            certificates,
            imap_capability=imap_capability,
            connections_per_user=connections_per_user,
            oauth2=oauth2,
        )
        process = start_server(dovecot._configure, ready=b"starting up for imap")
        try:
            yield dovecot
        finally:
            process.stop()

    @property
    def pid(self) -> int:
        """Of the process that starts all the others."""
        return int((self._directory / "run" / "master.pid").read_text())

    def fresh_user(self) -> str:
        """An address nobody has used in this run."""
        return f"u{next(self._users)}@example.test"

    @contextmanager
    def imap(self, user: str) -> Iterator[imaplib.IMAP4]:
        with imaplib.IMAP4(self.host, self.imap_port, timeout=_TIMEOUT) as client:
            client.login(user, self.password)
            yield client

    # ---- mail

    def append(
        self,
        user: str,
        *messages: bytes,
        folder: str = "INBOX",
        flags: Iterable[str] = (),
        date: datetime | None = None,
    ) -> list[int]:
        """Store messages, and give their UIDs. Thousands take a second: it is one APPEND.

        Dovecot keeps every octet, but for a bare line feed, which it makes CR LF.
        """
        options = f"({' '.join(flags)})" + (f" {imaplib.Time2Internaldate(date)}" if date else "")
        pieces = [
            b" %b {%d+}\r\n%b" % (options.encode(), len(message), message) for message in messages
        ]
        name = _wire_name(folder).encode()
        said = self._converse(user, b'APPEND "%b"%b' % (name, b"".join(pieces)))
        appended = re.search(rb"\[APPENDUID \d+ (\d+)(?::(\d+))?\]", said)
        if appended is None:
            raise RuntimeError(f"not appended: {said!r}")
        return list(range(int(appended[1]), int(appended[2] or appended[1]) + 1))

    def _converse(self, user: str, command: bytes) -> bytes:
        """One command in a connection of its own. Gives its tagged response."""
        with socket.create_connection((self.host, self.imap_port), _TIMEOUT) as connection:
            replies = connection.makefile("rb")
            connection.sendall(f'a LOGIN "{user}" "{self.password}"\r\n'.encode())
            _tagged(replies, b"a")  # the login process would not take what follows in one piece
            connection.sendall(b"b " + command + b"\r\n")
            return _tagged(replies, b"b")

    # ---- behind the clients' backs

    def doveadm(self, *arguments: str) -> str:
        """Run `doveadm`; a failure is a RuntimeError with what it said."""
        done = subprocess.run(
            [self._doveadm, "-c", self._configuration, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"doveadm {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def create_folder(self, user: str, folder: str) -> None:
        self.doveadm("mailbox", "create", "-u", user, folder)

    def rename_folder(self, user: str, folder: str, new: str) -> None:
        self.doveadm("mailbox", "rename", "-u", user, folder, new)

    def delete_folder(self, user: str, folder: str) -> None:
        self.doveadm("mailbox", "delete", "-u", user, folder)

    def recreate_folder(self, user: str, folder: str) -> None:
        """Delete and create it: the same name, another UIDVALIDITY."""
        self.delete_folder(user, folder)
        self.create_folder(user, folder)

    def expunge(self, user: str, folder: str, uids: Iterable[int]) -> None:
        wanted = ",".join(map(str, uids))
        self.doveadm("expunge", "-u", user, "mailbox", folder, "uid", wanted)

    def kick(self, user: str) -> None:
        """Break the user's connections, as an administrator, or a crash, does.

        They are broken when this is over: Dovecot merely tells its processes to end, and a busy machine lets one answer a
        command or two before.
        """
        listed = self.doveadm("-f", "tab", "who", "-1", user).splitlines()[1:]
        processes = [_opened(int(line.split("\t")[2])) for line in listed]
        self.doveadm("kick", user)
        for process in processes:
            if process is not None:
                _await_end(process)

    def record(self, user: str) -> None:
        """From the next login on, keep every octet the user's clients send after it."""
        directory = self._directory / "rawlog" / user
        directory.mkdir()
        os.chown(directory, self._mail_owner.pw_uid, self._mail_owner.pw_gid)

    def recorded(self, user: str) -> dict[str, bytes]:
        """What each connection of a user has said, in the order in which they last spoke."""
        logs = sorted((self._directory / "rawlog" / user).glob("*.in"), key=os.path.getmtime)
        return {log.name: log.read_bytes() for log in logs}

    def told(self, user: str) -> int:
        """How many octets a user's clients were sent, on connections that are recorded."""
        logs = (self._directory / "rawlog" / user).glob("*.out")
        return sum(len(_RECORDED_AT.sub(b"", log.read_bytes())) for log in logs)


def _opened(pid: int) -> int | None:
    """A descriptor of the process; None where there is none any more."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _await_end(process: int) -> None:
    try:
        ended, _, _ = select.select([process], [], [], _TIMEOUT)
    finally:
        os.close(process)
    if not ended:
        raise RuntimeError("Dovecot did not end a connection that it was told to")


def _tagged(replies: Iterable[bytes], tag: bytes) -> bytes:
    for line in replies:
        if line.startswith(tag + b" "):
            return line
    raise RuntimeError("Dovecot hung up")


def _mail_owner() -> pwd.struct_passwd:
    """Dovecot reads no mail as root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def _process_owners() -> dict[str, str]:
    """Root gives its servers the users the package made for them; anybody else has but one user, and no chroot."""
    if os.geteuid() == 0:
        owners = {"internal_user": "dovecot", "login_user": "dovenull", "group": "dovecot"}
        return owners | {"chroot": ""}
    me, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    return {"internal_user": me, "login_user": me, "group": group, "chroot": "chroot ="}


def _wire_name(folder: str) -> str:
    """Modified UTF-7 (RFC 3501 section 5.1.3), by hand: the product's own is what is being tested."""

    def encode(run: re.Match[str]) -> str:
        octets = run[0].encode("utf-16-be")
        return "&" + base64.b64encode(octets).decode().rstrip("=").replace("/", ",") + "-"

    return re.sub("[^ -~]+", encode, folder.replace("&", "&-"))
