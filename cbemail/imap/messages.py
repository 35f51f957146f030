"""What is done with the messages of a selected mailbox: options in, data out (RFC 9051 sections 6.3 and 6.4)."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from msgspec import Struct, structs

from cbemail.errors import FolderNotFound, UpstreamUnavailable
from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.naming import run_naming
from cbemail.imap.parser import (
    appenduid,
    esearch_data,
    fetch_data,
    search_uids,
)
from cbemail.imap.protocol import (
    Appended,
    FetchData,
    Flag,
    FolderPath,
    ResponseCode,
    StatusResponse,
    Uid,
    UidSet,
    Untagged,
)
from cbemail.imap.refusals import refusal
from cbemail.imap.search import SearchProgram, in_other_charset
from cbemail.imap.selecting import run_selected
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


class Aside:
    """The flags of messages, asked for in the flight of a search that will tell whether they are wanted: a guess, which
    costs no round trip where it is wrong, and saves one where it is right.

    With ``modseq``, of the same selection of the mailbox, only those are told that have changed since (RFC 7162 section
    3.1.4.1); it then is as of what was told.
    """

    def __init__(self, uids: Sequence[Uid], modseq: int | None = None) -> None:
        self.rows: dict[Uid, FetchData] = {}
        self.modseq = modseq
        self.news: int | None = (
            None  # those there had been when the search had no more (`SelectData`)
        )
        self._uids = uids

    @property
    def commands(self) -> list[Command]:
        if not self._uids:
            return []
        return [fetch_command(UidSet(self._uids), b"FLAGS", since=self.modseq)]

    async def read(self, completion: Completion) -> int:
        """Take the rows from what was said in the flight; give how many FETCH responses are no news."""
        rows: dict[Uid, FetchData] = {}
        await _collect(completion, self._uids, rows)
        self.rows |= rows
        if self.modseq is None:
            return len(rows)
        self.modseq = max([self.modseq, *(row.modseq or 0 for row in rows.values())])
        return 0


async def search(
    connection: ImapConnection, program: SearchProgram, aside: Aside | None = None
) -> Found:
    """UID SEARCH, with what has happened in the mailbox until now taken into account.

    A server may look for news only after it has searched, and then tell of them in the same breath: a message that was
    just appended over another connection would be missing. So it is asked again where it told of any.

    Args:
        aside: what to fetch in the same flight. It goes ahead of the search, which so knows of all that it told.

    Raises:
        InvalidRequest: the server cannot search for such characters, in no charset that it knows.
    """
    returning = (b"RETURN (ALL)",) if "ESEARCH" in connection.capabilities else ()
    charset = (b"CHARSET " + program.charset.encode(),) if program.charset else ()
    command = Command("UID SEARCH", (*returning, *charset, *program.arguments))
    searches = 0
    while True:
        searches += 1
        known = connection.selected.exists if connection.selected is not None else None
        ahead = aside.commands if aside is not None else []
        *fetched, completion = await run_reading(connection, *ahead, command)
        if completion.status.code is not None and completion.status.code.name == "BADCHARSET":
            other = in_other_charset(program, completion.status.code.arguments)
            return await search(connection, other, aside)
        completion.require_ok()
        explained = 0
        if aside is not None and fetched:
            explained = await aside.read(fetched[0].require_ok())
        settled = not tells_news(completion, known, explained)
        if settled and aside is not None and connection.selected is not None:
            aside.news = connection.selected.news
        if settled or searches == SEARCHES:
            return _found(completion)


async def is_unchanged(connection: ImapConnection, aside: Aside) -> bool:
    """Whether nothing has changed in the selected mailbox: no flag of the messages of ``aside``, which has a mod-sequence,
    and not which messages there are."""
    known = connection.selected.exists if connection.selected is not None else None
    (completion,) = await run_reading(connection, *aside.commands)
    await aside.read(completion.require_ok())
    return not tells_news(completion, known)


async def run_reading(connection: ImapConnection, *commands: Command) -> list[Completion]:
    """Run commands that read, and in the same flight a NOOP: the server's chance to tell what has changed.

    Where the mailbox was deleted under the connection, and made anew, Dovecot goes on with the old one, and finds the
    new messages by the old UIDs. It cannot tell of changes then, and says so: an untagged NO is a warning (RFC 9051
    section 7.1.2). Cyrus refuses to fetch from a mailbox that exists no more.

    Raises:
        UpstreamUnavailable: so it was. The mailbox is no longer taken to be selected.
    """
    *completions, noop = await run_selected(connection, *commands, _NOOP)
    if _cannot_tell(noop) or any(map(_folder_is_gone, completions)):
        connection.selected = None
        raise UpstreamUnavailable(
            "The mail server has lost the folder.", protocol="imap", retry_after=2
        )
    return completions


def _cannot_tell(noop: Completion) -> bool:
    for response in noop.responses:
        if isinstance(response, StatusResponse) and response.status == "NO":
            log.info("IMAP warning: %s", response.text)
            if "internal error" in response.text.casefold():
                return True
    return False


def _folder_is_gone(completion: Completion) -> bool:
    if completion.ok:
        return False
    return isinstance(refusal(completion.command.name, completion.status), FolderNotFound)


def tells_news(completion: Completion, known: int | None, explained: int = 0) -> bool:
    """Whether the mailbox was seen to change while it was searched: from ``known`` messages, those it had when it was
    selected where that is None, and with more FETCH responses than were asked for."""
    fetches = 0
    for response in completion.responses:
        if not isinstance(response, Untagged):
            continue
        if response.name in {"EXPUNGE", "VANISHED"}:
            return True
        if response.name == "EXISTS":
            if known is not None and response.number != known:
                return True
            known = response.number
        fetches += response.name == "FETCH"
    return fetches > explained


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
        (completion,) = await _run_fetches(connection, fetch_command(chunk, items))
        await _collect(completion.require_ok(), chunk, rows)
    return rows


async def fetch_each(
    connection: ImapConnection, wanted: Mapping[bytes, Sequence[Uid]]
) -> dict[Uid, FetchData]:
    """As `fetch`, with items of their own for some of the messages, and all in one flight; at least one message."""
    commands = [fetch_command(UidSet(uids), items) for items, uids in wanted.items() if uids]
    completions = await _run_fetches(connection, *commands)
    for completion in completions:
        completion.require_ok()
    rows: dict[Uid, FetchData] = {}
    # Each completion has what all were told.
    await _collect(completions[-1], [uid for uids in wanted.values() for uid in uids], rows)
    return rows


async def _run_fetches(connection: ImapConnection, *commands: Command) -> list[Completion]:
    """Run them, once more where messages were told to be gone: what was said of those counts for nothing."""
    completions = await run_reading(connection, *commands)
    if any(_expunge_issued(completion) for completion in completions):
        completions = await run_reading(connection, *commands)
    return completions


def _expunge_issued(completion: Completion) -> bool:
    """Whether a message may have been asked for that is gone, though this connection had not been told. What is said of it
    is made up (Dovecot gives its header as NIL; RFC 5530), or what it was (Cyrus). By the end of the flight it has been
    told."""
    issued = completion.status.code is not None and completion.status.code.name == "EXPUNGEISSUED"
    return issued or bool(completion.untagged("EXPUNGE") or completion.untagged("VANISHED"))


def fetch_command(uids: UidSet, items: bytes, *, since: int | None = None) -> Command:
    """UID FETCH; ``since`` a mod-sequence, of what has changed only."""
    modifiers = () if since is None else (b"(CHANGEDSINCE %d)" % since,)
    return Command("UID FETCH", (str(uids).encode(), b"(UID " + items + b")", *modifiers))


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
    for chunk in chunks(untold):
        for uid, row in (await fetch_each(connection, {b"FLAGS": list(chunk)})).items():
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
    """UID sets whose spelling stays short enough for one command line: as few as will do."""
    sets: list[UidSet] = []
    held: list[int] = []
    octets = 0
    wanted = list(uids)
    for first, last in UidSet(wanted).ranges() if wanted else ():
        size = len(f"{first}:{last}," if last > first else f"{first},")
        if octets + size > SET_OCTETS:
            sets.append(UidSet(held))
            held, octets = [], 0
        held += range(first, last + 1)
        octets += size
    return [*sets, UidSet(held)] if held else []


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
