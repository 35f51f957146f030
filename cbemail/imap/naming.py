"""Commands that name a mailbox, at servers that have their own ideas of how it is spelled."""

from collections.abc import Callable, Iterable

from cbemail.imap import utf7
from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.parser import list_data
from cbemail.imap.protocol import FolderPath, ListData
from cbemail.imap.wire import Argument, Command, mailbox

_LIST_ALL = Command("LIST", (b'""', b'"*"'))


async def run_naming(
    connection: ImapConnection,
    path: FolderPath,
    command: Callable[[Argument], Command],
    *,
    pointer: str = "#/folder",
) -> Completion:
    """Run the ``command`` made for ``path``. It may be refused: the completion says so.

    Some servers list names that are no modified UTF-7 (RFC 3501 5.1.3), and know a folder by that spelling only. Where
    a name that has more than one is refused, the server is asked how it spells its folders, once a connection, and the
    command is run again. So nobody pays for it at servers that spell as they should.
    """
    known = connection.spellings
    (completion,) = await connection.run(command(mailbox(path, known.get(path), pointer=pointer)))
    if completion.ok or not may_be_spelled_otherwise(connection, path):
        return completion
    listed = await connection.run_one(_LIST_ALL)
    learn_spellings(connection, listed.read("LIST", list_data))
    if path in known:
        (completion,) = await connection.run(command(mailbox(path, known[path])))
    return completion


def learn_spellings(connection: ImapConnection, folders: Iterable[ListData]) -> None:
    """Take the odd spellings from a listing that was made anyway."""
    connection.spellings |= {f.path: f.spelling for f in folders if f.spelling is not None}


def may_be_spelled_otherwise(connection: ImapConnection, path: FolderPath) -> bool:
    """Whether the server, were it a sloppy one, could know ``path`` in another spelling than it was tried in: it has
    something to be encoded."""
    return path not in connection.spellings and utf7.encode(path) != path.encode()
