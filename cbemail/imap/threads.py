"""The conversation of a message as the server knows it: Gmail's own, or THREAD (RFC 5256)."""

import re

from cbemail.errors import MessageNotFound
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import SEARCHES, fetch, run_reading, search, tells_news
from cbemail.imap.protocol import Uid, UidSet
from cbemail.imap.search import SearchProgram
from cbemail.imap.wire import Command

# Messages of a mailbox that a server is asked to thread, as it names each of them in one line: half a megabyte.
MAX_THREADED = 50_000

_THREAD = Command("UID THREAD", (b"REFERENCES UTF-8 ALL",))
_PARENTHESIS = re.compile(rb"[()]")
_NUMBER = re.compile(rb"(?<![0-9])[0-9]{1,10}(?![0-9])")


async def find_thread(connection: ImapConnection, uid: Uid) -> list[Uid] | None:
    """The messages of the selected mailbox that are of one conversation with ``uid``, which is among them.

    None where the server cannot tell, or where its answer would be too long.

    Raises:
        MessageNotFound: there is no message ``uid``, or the server has not heard of it yet.
    """
    found: list[Uid] | None = None
    if "X-GM-EXT-1" in connection.capabilities:
        found = await _of_gmail(connection, uid)
    if found is None and "THREAD=REFERENCES" in connection.capabilities:
        selected = connection.selected
        if selected is not None and selected.exists <= MAX_THREADED:
            found = await _of_server(connection, uid)
    if found is not None and uid not in found:
        raise MessageNotFound(f"There is no message {uid} in this folder.")
    return found


async def _of_gmail(connection: ImapConnection, uid: Uid) -> list[Uid] | None:
    row = (await fetch(connection, [uid], b"X-GM-THRID")).get(uid)
    if row is None:
        return []
    if row.thread_id is None:
        return None
    return list(await search(connection, SearchProgram((b"X-GM-THRID", b"%d" % row.thread_id))))


async def _of_server(connection: ImapConnection, uid: Uid) -> list[Uid]:
    """Like a search, it is asked for again where the server told of news behind it (`messages.search`)."""
    asked = 0
    while True:
        asked += 1
        known = connection.selected.exists if connection.selected is not None else None
        (completion,) = await run_reading(connection, _THREAD)
        if asked == SEARCHES or not tells_news(completion.require_ok(), known):
            break
    threads = b"".join(told.values[0] for told in completion.require_ok().untagged("THREAD"))
    return thread_members(threads, uid)


def thread_members(answer: bytes, uid: Uid) -> list[Uid]:
    """The UIDs of that thread which holds ``uid``, in a THREAD response's text; none if no thread does.

    >>> thread_members(b" (2)(3 6 (4 23)(44 7 96))", Uid(23))
    [3, 4, 6, 7, 23, 44, 96]
    """
    named = re.search(rb"(?<![0-9])%d(?![0-9])" % uid, answer)
    if named is None:
        return []
    depth = start = 0
    for parenthesis in _PARENTHESIS.finditer(answer):
        if parenthesis[0] == b"(":
            start = parenthesis.start() if not depth else start
            depth += 1
        else:
            depth = max(0, depth - 1)
            if not depth and parenthesis.start() > named.start():
                break
    else:
        return []
    numbers = map(int, _NUMBER.findall(answer, start, parenthesis.start()))
    return list(UidSet(number for number in numbers if 0 < number < 2**32))
