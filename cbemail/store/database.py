"""What the repository asks of a database, whichever engine is behind it.

SQL lives in ``sql/*.sql`` under names and is never assembled: values reach the engine as bound parameters only.
"""

import re
from asyncio import Event, Future
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple, Protocol

from cbemail.errors import InvalidRequest

Row = dict[str, Any]
Statement = tuple[str, Mapping[str, object]]  # the name of a query, and its parameters

SQL: Traversable = resources.files("cbemail.store") / "sql"

_HEADING = re.compile(r"^-- (\w+) --$", re.MULTILINE)

# PostgreSQL's text has no U+0000, and neither engine has UTF-8 for half a surrogate pair.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class StoreUnusable(Exception):
    """The store cannot be opened. The message is one sentence for the operator, and may name the file."""


class StatementFailed(Exception):
    """A query failed for no reason of the caller's or the disk's: our own mistake, to be seen in the log."""

    def __init__(self, query: str, reason: str) -> None:
        super().__init__(f"the query {query} failed: {reason}")
        self.query = query


class Database(Protocol):
    """Named queries over one engine. Times are aware datetimes on this side, whatever the engine keeps.

    Text that no engine could keep (U+0000, lone surrogates) is refused with `InvalidRequest` before any engine
    sees it. A database that is out of disk, of memory or of order raises `Overloaded`.

    Most of what a small write costs is planned anew for each. So the statements of a busy path are written for many
    callers at once (`serves_many`): each gives its values as ever, the engine collects them into lists, and hands
    every caller the rows that have its ``id``.
    """

    @property
    def failed(self) -> Event:
        """Set once the database can no longer be trusted: the process should exit, and be started again."""

    @property
    def log(self) -> "Log":
        """For what cannot wait for a transaction."""

    async def fetch(self, query: str, /, **values: object) -> list[Row]:
        """Read: every row, as it is after the writes that have returned."""

    async def execute(self, query: str, /, **values: object) -> list[Row]:
        """Write: the rows of its ``returning``, once they are on disk.

        What has been asked will be done: a caller that is cancelled while it waits learns nothing, and takes
        nothing back.
        """

    async def execute_all(self, statements: Sequence[Statement], /) -> list[list[Row]]:
        """Write several statements that happen together or not at all, in their order."""

    async def close(self) -> None:
        """Finish what was asked before, and let go of the database. Later calls raise `Overloaded`."""


class Entry(NamedTuple):
    """What was appended to a `Log`. ``sequence`` grows from entry to entry."""

    sequence: int
    payload: bytes


class Log(Protocol):
    """Entries that are on disk sooner than a transaction is, until they are folded into one.

    Which of them are is in the database: ``note_folded``, a statement of that transaction, says up to which sequence.
    """

    @property
    def octets(self) -> int:
        """What the entries there are take on disk."""

    async def entries(self, after: int) -> Sequence[Entry]:
        """Those whose sequence is above ``after``, in their order."""

    def append(self, entry: Entry) -> "Future[None]":
        """Have an entry on disk, behind all others; the future is done when it is. It must not be cancelled.

        It ends in `Overloaded` where there is no room for the entry, which is not there then, or where the log cannot be
        trusted any more, and the database has `failed`. One that is closed raises it at once.
        """

    def clear(self) -> None:
        """Let go of all entries, when all are folded. What is appended from now on stays."""


def load_queries(text: str) -> dict[str, str]:
    """The statements of an SQL file by the ``-- name --`` headings above them.

    >>> load_queries("-- Greetings.\\n\\n-- hello --\\nselect $name\\n")
    {'hello': 'select $name'}
    """
    _, *parts = _HEADING.split(text)
    queries: dict[str, str] = {}
    for name, sql in zip(parts[::2], parts[1::2], strict=True):
        if name in queries:
            raise ValueError(f"two queries are named {name}")
        queries[name] = sql.strip()
    return queries


def serves_many(query: str) -> bool:
    """Whether a statement takes a list for every parameter, by its name. One of the parameters is ``id``.

    >>> serves_many("settle_each_send"), serves_many("find_send")
    (True, False)
    """
    return "each" in query.split("_")


def refuse_unstorable(value: object) -> None:
    """Let through what every engine can keep as it is.

    Raises:
        InvalidRequest: a text, or one in a list, holds U+0000 or a lone surrogate.
    """
    match value:
        case str() if _UNSTORABLE.search(value):
            raise InvalidRequest("A text holds a character that cannot be stored, such as U+0000.")
        case list() | tuple():  # thousands, of a batch: looked at as one text
            refuse_unstorable("".join([item for item in value if isinstance(item, str)]))
            for item in value:
                if isinstance(item, list | tuple):
                    refuse_unstorable(item)
        case _:
            pass
