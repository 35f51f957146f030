"""Commands as octets: the one place where a value of ours, or of a client's, becomes IMAP (RFC 9051 section 4).

Text from outside is always quoted or a literal, never bare, so no value can turn into syntax or into a second
command, whatever it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from typing import TypeAlias

from msgspec import Struct

from cbemail.errors import InvalidRequest
from cbemail.imap import utf7
from cbemail.imap.protocol import FolderPath

MAX_QUOTED = 1_000  # octets: servers cap a command line at 8,192 (RFC 7162 section 4), a literal is not part of it
MAX_MAILBOX = 1_000  # characters: servers stop at some hundreds; this is where we need not even ask
MAX_FLAG = 200  # characters, of one keyword
LITERAL_MINUS_LIMIT = 4_096  # octets, RFC 7888 section 5

_PRINTABLE = re.compile(r"[ -~]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FLAG = re.compile(
    r"""\\?[^\x00-\x20\x7f-\U0010ffff(){%*"\\\]]+"""
)  # RFC 9051: flag-keyword, flag-extension
_NAME = re.compile(r"[A-Z][A-Z0-9-]*(?: [A-Z]+)?")
_RAW = re.compile(rb'(?:[ !#-~]|"(?:[ !#-\[\]-~]|\\["\\])*+")++')
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# Commands that leave every mailbox as it was. Any other may change one.
_READING = {
    *("CAPABILITY", "NOOP", "ID", "ENABLE", "STARTTLS", "LOGIN", "AUTHENTICATE", "LOGOUT", "IDLE"),
    *("NAMESPACE", "LIST", "LSUB", "STATUS", "SELECT", "EXAMINE", "UNSELECT"),
    *("UID SEARCH", "UID FETCH", "UID SORT", "UID THREAD", "GETQUOTAROOT"),
}


class Literal(Struct, frozen=True):
    """Octets announced by their number. What they are is nobody's business, a log's least of all."""

    data: bytes

    def __repr__(self) -> str:
        return f"Literal({len(self.data)} octets)"


class Group(Struct, frozen=True):
    """Arguments in parentheses."""

    items: tuple[Argument, ...]


# ``bytes`` are syntax of our own, or quoted by this module: `encode` sends them as they stand.
Argument: TypeAlias = bytes | Literal | Group


class Command(Struct, frozen=True):
    """One command without its tag. ``name`` is one or two words in capitals: ``LOGIN``, ``UID FETCH``.

    >>> Command("LOGIN", (astring("ann"), astring("hunter2")))
    Command(LOGIN …)
    """

    name: str
    arguments: tuple[Argument, ...] = ()

    @property
    def octets(self) -> int:
        """About how much there is to send, for a deadline."""
        return sum(_size(argument) for argument in self.arguments)

    @property
    def may_change(self) -> bool:
        """Whether a mailbox may be another after it."""
        return self.name not in _READING

    def for_log(self) -> str:
        """The command in one short line: no literal's octets, and nothing at all of a login."""
        if self.name in {"LOGIN", "AUTHENTICATE"}:
            return f"{self.name} …"
        line = " ".join([self.name, *(_shown(argument) for argument in self.arguments)])
        return line if len(line) <= 200 else line[:199] + "…"

    def __repr__(self) -> str:
        return f"Command({self.for_log()})"


def astring(text: str) -> Argument:
    """``text`` as a quoted string, or as a UTF-8 literal where a quoted string cannot hold it.

    Raises:
        InvalidRequest: ``text`` holds a NUL or half of a surrogate pair; IMAP can carry neither.
    """
    if "\0" in text:
        raise InvalidRequest("A NUL character cannot be sent to a mail server.")
    if len(text) < MAX_QUOTED and _PRINTABLE.fullmatch(text):
        return _quoted(text.encode("ascii"))
    try:
        return Literal(text.encode())
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            "Half of a surrogate pair is no character and cannot be sent."
        ) from exc


def mailbox(
    path: FolderPath, spelling: bytes | None = None, *, pointer: str = "#/folder"
) -> Argument:
    """``path`` as a mailbox name; ``spelling`` is that of ``ListData``, for a server with its own ideas.

    ``*`` and ``%`` are ordinary characters here, but wildcards to LIST.

    Raises:
        InvalidRequest: no mailbox can have that name.
    """
    if not path:
        raise InvalidRequest.at(pointer, "A folder name cannot be empty.")
    if len(path) > MAX_MAILBOX:
        raise InvalidRequest.at(
            pointer, f"A folder name can have at most {MAX_MAILBOX} characters."
        )
    if _CONTROL.search(path):
        raise InvalidRequest.at(
            pointer, "A folder name cannot hold line ends or other control characters."
        )
    try:
        octets = utf7.encode(path) if spelling is None else spelling
    except UnicodeEncodeError as exc:
        raise InvalidRequest.at(
            pointer, "A folder name cannot hold half of a surrogate pair."
        ) from exc
    if len(octets) < MAX_QUOTED and _PRINTABLE.fullmatch(octets.decode("latin-1")):
        return _quoted(octets)
    return Literal(octets)


def flag_list(flags: Iterable[str], *, pointer: str = "#/flags") -> bytes:
    """``flags`` in parentheses, for STORE and APPEND.

    Raises:
        InvalidRequest: one of them is no flag, or one that only the server may set.
    """
    flags = tuple(flags)
    for flag in flags:
        if flag.lower() == "\\recent":
            raise InvalidRequest.at(pointer, "The flag \\Recent is set by the mail server alone.")
        if len(flag) > MAX_FLAG or not _FLAG.fullmatch(flag):
            raise InvalidRequest.at(
                pointer,
                "A flag is one word of printable ASCII without spaces, quotes, parentheses, "
                'braces, "]", "%" or "*", such as "$Forwarded"; only system flags such as "\\Seen" '
                "begin with a backslash.",
            )
    return f"({' '.join(flags)})".encode("ascii")


def search_date(day: date) -> bytes:
    """``day`` for SEARCH, in English whatever the locale.

    >>> search_date(date(2026, 2, 1))
    b'1-Feb-2026'
    """
    return f"{day.day}-{_MONTHS[day.month - 1]}-{day.year:04}".encode("ascii")


def internal_date(moment: datetime) -> bytes:
    """``moment``, which must be aware, as the quoted date-time of APPEND.

    >>> from datetime import UTC
    >>> internal_date(datetime(2026, 2, 1, 9, 30, tzinfo=UTC))
    b'" 1-Feb-2026 09:30:00 +0000"'
    """
    if moment.tzinfo is None:
        raise ValueError("an internal date needs a time zone")
    day = f"{moment.day:2}-{_MONTHS[moment.month - 1]}-{moment.year:04}"
    return f'"{day} {moment:%H:%M:%S} {moment.strftime("%z")[:5]}"'.encode("ascii")


def encode(tag: bytes, command: Command, *, literal_plus: bool, literal_minus: bool) -> list[bytes]:
    """The octets of ``command``, in the pieces they may be sent in.

    Between one piece and the next stands a synchronising literal: the server must have said ``+`` first. With
    LITERAL+, or LITERAL- and a small literal (RFC 7888), there is nothing to wait for.

    Raises:
        ValueError: an argument of bytes is not what `bytes` are for; a bug of ours, caught before it is sent.
    """
    if not _NAME.fullmatch(command.name):
        raise ValueError(f"no command: {command.name!r}")
    pieces: list[bytes] = []
    piece = bytearray(tag + b" " + command.name.encode("ascii"))
    for argument in command.arguments:
        piece += b" "
        for atom in _atoms(argument):
            if isinstance(atom, bytes):
                piece += atom
                continue
            size = len(atom.data)
            at_once = literal_plus or (literal_minus and size <= LITERAL_MINUS_LIMIT)
            piece += b"{%d%s}\r\n" % (size, b"+" if at_once else b"")
            if not at_once:
                pieces.append(bytes(piece))
                piece.clear()
            piece += atom.data
    pieces.append(bytes(piece + b"\r\n"))
    return pieces


def _atoms(argument: Argument) -> Iterator[bytes | Literal]:
    if isinstance(argument, Literal):
        yield argument
    elif isinstance(argument, Group):
        yield b"("
        for index, item in enumerate(argument.items):
            if index:
                yield b" "
            yield from _atoms(item)
        yield b")"
    else:
        # A trailing "}" would be taken for the announcement of a literal, which would be the next command.
        if argument.endswith(b"}") or not _RAW.fullmatch(argument):
            raise ValueError("an argument of bytes must be printable, quoted where it need be")
        yield argument


def _quoted(octets: bytes) -> bytes:
    return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _shown(argument: Argument) -> str:
    if isinstance(argument, Literal):
        return f"{{{len(argument.data)}}}"
    if isinstance(argument, Group):
        return f"({' '.join(_shown(item) for item in argument.items)})"
    return argument.decode("ascii", "replace")


def _size(argument: Argument) -> int:
    if isinstance(argument, bytes):
        return len(argument)
    if isinstance(argument, Literal):
        return len(argument.data)
    return len("()") + max(0, len(argument.items) - 1) + sum(map(_size, argument.items))
