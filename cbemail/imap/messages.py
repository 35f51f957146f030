"""What is done with the messages of a selected mailbox: options in, data out (RFC 9051 sections 6.3 and 6.4)."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct, structs

from cbemail.errors import FolderNotFound, InvalidRequest, UpstreamError, UpstreamUnavailable
from cbemail.imap.connection import Completion, ImapConnection
from cbemail.imap.naming import run_naming
from cbemail.imap.parser import (
    appenduid,
    esearch_data,
    fetch_data,
    permanent_flags,
    search_uids,
)
from cbemail.imap.protocol import (
    Appended,
    FetchData,
    Flag,
    FolderPath,
    ResponseCode,
    SelectData,
    StatusResponse,
    Uid,
    UidSet,
    UidValidity,
    Untagged,
)
from cbemail.imap.search import SearchProgram
from cbemail.imap.wire import Argument, Command, Literal, flag_list, internal_date
from cbemail.turns import Turn

log = logging.getLogger(__name__)

_NOOP = Command("NOOP")
SEARCHES = (
    3  # of a mailbox that changes while it is searched; then the last answer is as good as any
)

# Rows asked for in one FETCH: enough to make the round trip cheap, few enough to bound what an answer can hold.
FETCH_ROWS = 500

# Octets of a UID set in one command: Dovecot ends a line at 64 KB, others at 8 KB (RFC 7162 section 4 asks for that).
SET_OCTETS = 7_000


async def select(connection: ImapConnection, folder: FolderPath) -> SelectData:
    """Select ``folder`` for reading and writing (RFC 9051 6.3.2).

    Raises:
        FolderNotFound: there is none, or it holds no messages (``\\Noselect``).
    """
    connection.selected = None
    completion = await run_naming(connection, folder, lambda name: Command("SELECT", (name,)))
    if not completion.ok:
        if completion.status.code is None or completion.status.code.name in {"CANNOT", "NOPERM"}:
            raise FolderNotFound(f"The folder {folder} does not exist, or holds no messages.")
        completion.require_ok()
    validity = completion.code("UIDVALIDITY")
    if validity is None or not validity.isdigit():
        raise UpstreamError(
            "The mail server gives no UIDVALIDITY, without which messages cannot be named.",
            protocol="imap",
            command="SELECT",
        )
    uid_next = completion.code("UIDNEXT")
    exists = [response.number for response in completion.untagged("EXISTS")]
    connection.selected = SelectData(
        path=folder,
        uid_validity=UidValidity(int(validity)),
        exists=(exists[-1] if exists else None) or 0,
        uid_next=int(uid_next) if uid_next is not None and uid_next.isdigit() else None,
        permanent_flags=_permanent_flags(completion),
        read_only=completion.code("READ-ONLY") is not None,
    )
    return connection.selected


def _permanent_flags(completion: Completion) -> frozenset[str] | None:
    told = completion.code("PERMANENTFLAGS")
    return permanent_flags(ResponseCode("PERMANENTFLAGS", told)) if told is not None else None


class Found(Struct, frozen=True):
    """The UIDs a search found, as ascending ranges: twenty thousand of them are mostly one range."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def newest(self, limit: int, *, below: int | None = None) -> list[Uid]:
        """Up to ``limit`` UIDs, the highest first, all of them under ``below``."""
        found: list[Uid] = []
        for first, last in reversed(self.ranges):
            top = last if below is None else min(last, below - 1)
            bottom = max(first, top - (limit - len(found)) + 1)
            found.extend(Uid(uid) for uid in range(top, bottom - 1, -1))
            if len(found) >= limit:
                break
        return found

    def __iter__(self) -> Iterator[Uid]:
        return (Uid(uid) for first, last in self.ranges for uid in range(first, last + 1))


async def search(connection: ImapConnection, program: SearchProgram) -> Found:
    """UID SEARCH, with what has happened in the mailbox until now taken into account.

    A server may look for news only after it has searched, and then tell of them in the same breath: a message that was
    just appended over another connection would be missing. So it is asked again where it told of any.

    Raises:
        InvalidRequest: the server cannot search for text that is not ASCII.
    """
    returning = (b"RETURN (ALL)",) if "ESEARCH" in connection.capabilities else ()
    charset = (b"CHARSET UTF-8",) if program.charset else ()
    command = Command("UID SEARCH", (*returning, *charset, *program.arguments))
    searches = 0
    while True:
        searches += 1
        known = connection.selected.exists if connection.selected is not None else None
        (completion,) = await _read(connection, command)
        if completion.status.code is not None and completion.status.code.name == "BADCHARSET":
            raise InvalidRequest("This mail server can search for ASCII text only.")
        completion.require_ok()
        if searches == SEARCHES or not _tells_news(completion, known):
            return _found(completion)


async def _read(connection: ImapConnection, *commands: Command) -> list[Completion]:
    """Run commands that read, and in the same flight a NOOP: the server's chance to tell what has changed.

    Where the mailbox was deleted under the connection, and made anew, Dovecot goes on with the old one, and finds the
    new messages by the old UIDs. It cannot tell of changes then, and says so: an untagged NO is a warning (RFC 9051
    section 7.1.2).

    Raises:
        UpstreamUnavailable: so it was. The mailbox is no longer taken to be selected.
    """
    *completions, noop = await connection.run(*commands, _NOOP)
    for response in noop.responses:
        if isinstance(response, StatusResponse) and response.status == "NO":
            log.info("IMAP warning: %s", response.text)
            if "internal error" in response.text.casefold():
                connection.selected = None
                raise UpstreamUnavailable(
                    "The mail server has lost the folder.", protocol="imap", retry_after=2
                )
    return completions


def _tells_news(completion: Completion, known: int | None) -> bool:
    """Whether the mailbox was seen to change while it was searched."""
    changed = {"EXPUNGE", "VANISHED", "FETCH"}
    return any(
        response.name in changed or (response.name == "EXISTS" and response.number != known)
        for response in completion.responses
        if isinstance(response, Untagged)
    )


def _found(completion: Completion) -> Found:
    for data in completion.read("ESEARCH", esearch_data):
        return Found(tuple(sorted(data.all)))
    uids = [uid for found in completion.read("SEARCH", search_uids) for uid in found]
    return Found(tuple(UidSet(uids).ranges()) if uids else ())


async def fetch(
    connection: ImapConnection, uids: Iterable[Uid], items: bytes
) -> dict[Uid, FetchData]:
    """UID FETCH of ``items`` (without UID, which is always asked for). What is gone is simply not in the answer."""
    rows: dict[Uid, FetchData] = {}
    wanted = sorted(uids)
    for start in range(0, len(wanted), FETCH_ROWS):
        chunk = UidSet(wanted[start : start + FETCH_ROWS])
        (completion,) = await _read(connection, fetch_command(chunk, items))
        await _collect(completion.require_ok(), chunk, rows)
    return rows


async def fetch_page(
    connection: ImapConnection, known: Sequence[Uid], unknown: Sequence[Uid], items: bytes
) -> dict[Uid, FetchData]:
    """As `fetch`, for a page of messages, at least one, of which some are ``known`` but for their flags; in one
    flight."""
    commands = [
        fetch_command(UidSet(uids), wanted)
        for uids, wanted in ((known, b"FLAGS"), (unknown, items))
        if uids
    ]
    completions = [completion.require_ok() for completion in await _read(connection, *commands)]
    rows: dict[Uid, FetchData] = {}
    await _collect(completions[-1], [*known, *unknown], rows)  # each has what all were told
    return rows


def fetch_command(uids: UidSet, items: bytes) -> Command:
    return Command("UID FETCH", (str(uids).encode(), b"(UID " + items + b")"))


async def _collect(
    completion: Completion, wanted: Iterable[Uid], rows: dict[Uid, FetchData]
) -> None:
    """Add what a completion tells of ``wanted``. A server may spread one message over several FETCH responses, and
    put flag changes of others in between (RFC 9051 7.5.2)."""
    chosen = frozenset(wanted)
    turn = Turn()
    for response in completion.untagged("FETCH"):
        await turn.share()
        row = fetch_data(response)
        if row.uid is None or row.uid not in chosen:
            continue
        known = rows.get(row.uid)
        rows[row.uid] = row if known is None else _merge(known, row)


def _merge(known: FetchData, row: FetchData) -> FetchData:
    news = {name: value for name, value in structs.asdict(row).items() if value is not None}
    news["sections"] = known.sections | row.sections
    return structs.replace(known, **news)


async def store_flags(
    connection: ImapConnection,
    uids: UidSet,
    *,
    add: Sequence[Flag] = (),
    remove: Sequence[Flag] = (),
) -> dict[Uid, tuple[Flag, ...]]:
    """Add and remove flags, and give the flags as the server now has them. Messages that are gone are not in it.

    Some servers, Dovecot among them, say nothing of a message that already had the flags: what they did not tell is
    asked for. A message that only came to light after the STORE has not been changed by it, and counts as gone.
    """
    changes = (
        (b"+FLAGS", add, "#/add_flags"),
        (b"-FLAGS", remove, "#/remove_flags"),
    )
    commands = [
        store_command(uids, verb, flag_list(dict.fromkeys(flags), pointer=pointer))
        for verb, flags, pointer in changes
        if flags
    ]
    rows: dict[Uid, FetchData] = {}
    for completion in await connection.run(*commands):
        await _collect(completion.require_ok(), uids, rows)
    stored = {uid: row.flags for uid, row in rows.items() if row.flags is not None}
    untold = [uid for uid in uids if uid not in stored]
    for uid, row in (await fetch(connection, untold, b"FLAGS") if untold else {}).items():
        if row.flags is not None and _fits(row.flags, add, remove):
            stored[uid] = row.flags
    return stored


def _fits(flags: Iterable[Flag], add: Iterable[Flag], remove: Iterable[Flag]) -> bool:
    known = {flag.lower() for flag in flags}
    return known.issuperset(f.lower() for f in add) and known.isdisjoint(f.lower() for f in remove)


def store_command(uids: UidSet, verb: bytes, flags: bytes) -> Command:
    """UID STORE of ``flags``, a flag list; ``verb`` is ``+FLAGS`` and the like."""
    return Command("UID STORE", (str(uids).encode(), verb, flags))


def chunks(uids: Iterable[Uid]) -> list[UidSet]:
    """UID sets whose spelling stays short enough for one command line."""
    sets: list[UidSet] = []
    ordered = sorted(uids)
    start = 0
    while start < len(ordered):
        end = len(ordered)
        while len(str(UidSet(ordered[start:end]))) > SET_OCTETS:
            end = start + (end - start) // 2
        sets.append(UidSet(ordered[start:end]))
        start = end
    return sets


async def append(
    connection: ImapConnection,
    folder: FolderPath,
    content: bytes,
    *,
    flags: Sequence[Flag] = (),
    received_at: datetime | None = None,
) -> Appended:
    """APPEND one message (RFC 9051 6.3.12), CRLF line ends; says where it is if the server has UIDPLUS."""
    options: list[Argument] = []
    if flags:
        options.append(flag_list(dict.fromkeys(flags)))
    if received_at is not None:
        options.append(internal_date(received_at))
    completion = await run_naming(
        connection, folder, lambda name: Command("APPEND", (name, *options, Literal(content)))
    )
    told = completion.require_ok().code("APPENDUID")
    return appenduid(ResponseCode("APPENDUID", told)) if told is not None else Appended()
