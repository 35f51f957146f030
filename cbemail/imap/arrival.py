"""In which order messages arrived: by INTERNALDATE, asked for or sorted by (RFC 9051 2.3.3, RFC 5256)."""

from collections.abc import Iterable

from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import chunks, fetch_command
from cbemail.imap.parser import fetch_data, search_uids
from cbemail.imap.protocol import Uid
from cbemail.imap.search import SearchProgram
from cbemail.imap.wire import Command
from cbemail.turns import Turn

NEVER = 0  # of a message whose date the server does not tell: it comes last


async def arrivals(connection: ImapConnection, uids: Iterable[Uid]) -> dict[Uid, int]:
    """When each message arrived, in seconds since 1970. What is gone is not in the answer."""
    seconds: dict[Uid, int] = {}
    turn = Turn()
    for chunk in chunks(uids):
        completion = await connection.run_one(fetch_command(chunk, b"INTERNALDATE"))
        wanted = frozenset(chunk)
        for response in completion.untagged("FETCH"):
            await turn.share()
            row = fetch_data(response)
            if row.uid is not None and row.uid in wanted:
                date = row.internal_date
                seconds[row.uid] = int(date.timestamp()) if date is not None else NEVER
    return seconds


def sorts(connection: ImapConnection) -> bool:
    """Whether the server can put messages in order itself."""
    return "SORT" in connection.capabilities


async def newest_first(connection: ImapConnection, program: SearchProgram) -> list[Uid]:
    """What ``program`` finds, the last arrival first; of those that arrived in the same second the highest UID."""
    charset = (
        program.charset or "UTF-8"
    )  # RFC 5256 section 3: one must be named, and this one known
    command = Command("UID SORT", (b"(ARRIVAL)", charset.encode(), *program.arguments))
    completion = await connection.run_one(command)
    # REVERSE ARRIVAL would leave those of the same second in ascending order.
    return [uid for told in completion.read("SORT", search_uids) for uid in told][::-1]
