"""What is done with the messages of a selected mailbox: options in, data out (RFC 9051 sections 6.3 and 6.4)."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct, structs

from cbemail.errors import FolderNotFound, InvalidRequest, UpstreamError
from cbemail.imap.connection import Completion, ImapConnection
from cbemail.imap.parser import (
    appenduid,
    copyuid,
    esearch_data,
    fetch_data,
    permanent_flags,
    search_uids,
)
from cbemail.imap.protocol import (
    DELETED,
    Appended,
    FetchData,
    Flag,
    FolderPath,
    Relocated,
    ResponseCode,
    SelectData,
    StatusResponse,
    Uid,
    UidSet,
    UidValidity,
    Untagged,
)
from cbemail.imap.search import SearchProgram
from cbemail.imap.wire import Argument, Command, Literal, flag_list, internal_date, mailbox

_EXPUNGE = Command("EXPUNGE")

SEARCHES = 3  # of a mailbox that changes while it is searched; then the last answer is as good as any

# Rows asked for in one FETCH: enough to make the round trip cheap, few enough to bound what an answer can hold.
FETCH_ROWS = 500


async def select(connection: ImapConnection, folder: FolderPath) -> SelectData:
    """Select ``folder`` for reading and writing (RFC 9051 6.3.2).

    Raises:
        FolderNotFound: there is none, or it holds no messages (``\\Noselect``).
    """
    connection.selected = None
    (completion,) = await connection.run(Command("SELECT", (mailbox(folder),)))
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
        (completion,) = await connection.run(command)
        if completion.status.code is not None and completion.status.code.name == "BADCHARSET":
            raise InvalidRequest("This mail server can search for ASCII text only.")
        completion.require_ok()
        if searches == SEARCHES or not _tells_news(completion, known):
            return _found(completion)


def _tells_news(completion: Completion, known: int | None) -> bool:
    """Whether the mailbox was seen to change while it was searched."""
    changed = {"EXPUNGE", "VANISHED", "FETCH"}
    return any(
        response.name in changed or (response.name == "EXISTS" and response.number != known)
        for response in completion.responses
        if isinstance(response, Untagged)
    )


def _found(completion: Completion) -> Found:
    for response in completion.untagged("ESEARCH"):
        return Found(tuple(sorted(esearch_data(response).all)))
    uids = [uid for response in completion.untagged("SEARCH") for uid in search_uids(response)]
    return Found(tuple(UidSet(uids).ranges()) if uids else ())


async def fetch(
    connection: ImapConnection, uids: Iterable[Uid], items: bytes
) -> dict[Uid, FetchData]:
    """UID FETCH of ``items`` (without UID, which is always asked for). What is gone is simply not in the answer."""
    rows: dict[Uid, FetchData] = {}
    wanted = sorted(uids)
    for start in range(0, len(wanted), FETCH_ROWS):
        chunk = UidSet(wanted[start : start + FETCH_ROWS])
        completion = await connection.run_one(fetch_command(chunk, items))
        _collect(completion, chunk, rows)
    return rows


def fetch_command(uids: UidSet, items: bytes) -> Command:
    return Command("UID FETCH", (str(uids).encode(), b"(UID " + items + b")"))


def _collect(completion: Completion, wanted: UidSet, rows: dict[Uid, FetchData]) -> None:
    """Add what a completion tells of ``wanted``. A server may spread one message over several FETCH responses, and
    put flag changes of others in between (RFC 9051 7.5.2)."""
    for response in completion.untagged("FETCH"):
        row = fetch_data(response)
        if row.uid is None or row.uid not in wanted:
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
    """Add and remove flags, and give the flags as the server now has them. Messages that are gone are not in it."""
    changes = ((b"+FLAGS", add), (b"-FLAGS", remove))
    commands = [
        Command("UID STORE", (str(uids).encode(), verb, flag_list(flags)))
        for verb, flags in changes
        if flags
    ]
    rows: dict[Uid, FetchData] = {}
    for completion in await connection.run(*commands):
        _collect(completion.require_ok(), uids, rows)
    return {uid: row.flags for uid, row in rows.items() if row.flags is not None}


async def copy(connection: ImapConnection, uids: UidSet, destination: FolderPath) -> Relocated:
    """UID COPY. A destination that does not exist is a FolderNotFound, never created (RFC 9051 6.4.7)."""
    command = Command("UID COPY", (str(uids).encode(), mailbox(destination)))
    return _relocated(await connection.run_one(command), connection)


async def existing(connection: ImapConnection, uids: UidSet) -> list[Uid]:
    """Those of ``uids`` that are in the mailbox."""
    completion = await connection.run_one(Command("UID SEARCH", (b"UID", str(uids).encode())))
    return [Uid(uid) for r in completion.untagged("SEARCH") for uid in search_uids(r)]


async def move(connection: ImapConnection, uids: UidSet, destination: FolderPath) -> Relocated:
    """UID MOVE (RFC 6851), or where it is missing the COPY, STORE, EXPUNGE it stands for, of these messages only."""
    if "MOVE" in connection.capabilities:
        command = Command("UID MOVE", (str(uids).encode(), mailbox(destination)))
        return _relocated(await connection.run_one(command), connection)
    relocated = await copy(connection, uids, destination)
    if not relocated.known:
        await expunge(connection, uids)
    elif (
        relocated.uids
    ):  # only what was copied: a message that came back in between stays where it is
        await expunge(connection, UidSet(relocated.uids))
    return relocated


def _relocated(completion: Completion, connection: ImapConnection) -> Relocated:
    """What COPYUID tells. MOVE may give it several times, untagged (RFC 6851 4.3). Where the server has UIDPLUS and
    gives none, nothing was there to be copied."""
    merged = Relocated(known="UIDPLUS" in connection.capabilities)
    for response in (*completion.responses, completion.status):
        code = response.code if isinstance(response, StatusResponse) else None
        if code is not None and code.name == "COPYUID":
            told = copyuid(code)
            known = merged.known and told.known
            merged = Relocated(known, told.uid_validity, merged.uids | told.uids)
    return merged


async def expunge(connection: ImapConnection, uids: UidSet) -> list[Uid]:
    """Remove ``uids`` for good, and no other message, though it be flagged ``\\Deleted``; say which were there.

    Without UID EXPUNGE (RFC 4315) a plain EXPUNGE would take every deleted message: the mark is taken from the others
    for that moment. Should we die then, they are kept rather than lost.
    """
    wanted = str(uids).encode()
    mark = Command("UID STORE", (wanted, b"+FLAGS", flag_list([DELETED])))
    if "UIDPLUS" in connection.capabilities:
        marked, expunged = await connection.run(mark, Command("UID EXPUNGE", (wanted,)))
    else:
        others = [uid for uid in await _deleted(connection) if uid not in uids]
        if others:
            await _set_deleted(connection, b"-FLAGS.SILENT", others)
        marked, expunged = await connection.run(mark, _EXPUNGE)
        if others:
            await _set_deleted(connection, b"+FLAGS.SILENT", others)
    rows: dict[Uid, FetchData] = {}
    _collect(marked.require_ok(), uids, rows)
    expunged.require_ok()
    return sorted(rows)


async def _deleted(connection: ImapConnection) -> list[int]:
    completion = await connection.run_one(Command("UID SEARCH", (b"DELETED",)))
    return [uid for response in completion.untagged("SEARCH") for uid in search_uids(response)]


async def _set_deleted(connection: ImapConnection, verb: bytes, uids: Iterable[int]) -> None:
    arguments = (str(UidSet(uids)).encode(), verb, flag_list([DELETED]))
    await connection.run_one(Command("UID STORE", arguments))


async def append(
    connection: ImapConnection,
    folder: FolderPath,
    content: bytes,
    *,
    flags: Sequence[Flag] = (),
    received_at: datetime | None = None,
) -> Appended:
    """APPEND one message (RFC 9051 6.3.12), CRLF line ends; says where it is if the server has UIDPLUS."""
    arguments: list[Argument] = [mailbox(folder)]
    if flags:
        arguments.append(flag_list(flags))
    if received_at is not None:
        arguments.append(internal_date(received_at))
    completion = await connection.run_one(Command("APPEND", (*arguments, Literal(content))))
    told = completion.code("APPENDUID")
    return appenduid(ResponseCode("APPENDUID", told)) if told is not None else Appended()
