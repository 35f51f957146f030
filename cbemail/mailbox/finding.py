"""From a filter to UIDs: the server's SEARCH, and for what SEARCH cannot say, the structure of what it found."""

from datetime import date

from cbemail.errors import InvalidRequest
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import Found, fetch, search
from cbemail.imap.protocol import FetchData, UidSet
from cbemail.imap.search import SearchFilter, compile_search
from cbemail.mailbox.structure import lay_out

# Messages whose structure one request may look at. A server answers some 20,000 a second; past that, narrow first.
MAX_STRUCTURES = 20_000


async def find(imap: ImapConnection, criteria: SearchFilter, *, today: date) -> Found:
    """The UIDs in the selected folder that satisfy ``criteria``.

    IMAP has no search key for attachments, and the header does not tell them: where they are asked for, the structure
    of every message that satisfies the rest is looked at, so that the count is true.

    Raises:
        InvalidRequest: a value cannot be searched for, or too many messages would have to be looked at.
    """
    program = compile_search(criteria, today=today)
    found = await search(imap, program)
    if program.has_attachments is None or not found.count:
        return found
    if found.count > MAX_STRUCTURES:
        raise InvalidRequest.at(
            "#/has_attachments",
            f"The filter has_attachments looks at every message that fits the other filters, and these are {found.count}: narrow"
            f" them to {MAX_STRUCTURES} (by since, before, from, …).",
        )
    rows = await fetch(imap, found, b"BODYSTRUCTURE")
    fitting = [uid for uid, row in rows.items() if has_attachments(row) is program.has_attachments]
    return Found(tuple(UidSet(fitting).ranges()) if fitting else ())


def has_attachments(row: FetchData) -> bool:
    """Whether a message has an attachment that is not shown within its text."""
    if row.body_structure is None:
        return False
    layout = lay_out(row.body_structure)
    return any(part.id not in layout.inline for part in layout.attachments)
