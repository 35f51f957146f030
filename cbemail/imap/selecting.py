"""Selecting a mailbox (RFC 9051 section 6.3.2): by itself, or in the flight of what is to be read of it."""

from msgspec import structs

from cbemail.errors import FolderNotFound, UpstreamError
from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.naming import may_be_spelled_otherwise, run_naming
from cbemail.imap.parser import expunged, permanent_flags
from cbemail.imap.protocol import (
    FolderPath,
    Response,
    ResponseCode,
    SelectData,
    StatusResponse,
    UidValidity,
    Untagged,
)
from cbemail.imap.wire import Command, mailbox

_UNSELECT = Command("UNSELECT")


async def select(connection: ImapConnection, folder: FolderPath) -> SelectData:
    """Select ``folder`` for reading and writing (RFC 9051 6.3.2).

    Raises:
        FolderNotFound: there is none, or it holds no messages (``\\Noselect``).
    """
    selected, _ = await select_with(connection, folder, *_parameters(connection))
    return selected


def _parameters(connection: ImapConnection) -> tuple[bytes, ...]:
    """What a SELECT is to say of its client: some servers tell mod-sequences only to one that knows them (RFC 7162 section
    3.1.8)."""
    return (b"(CONDSTORE)",) if "CONDSTORE" in connection.capabilities else ()


async def select_with(
    connection: ImapConnection, folder: FolderPath, *parameters: bytes
) -> tuple[SelectData, Completion]:
    """As `select`, with parameters such as ``(CONDSTORE)`` (RFC 4466 section 2.1); and what was said of it."""
    connection.selected = connection.to_select = None
    connection.to_unselect = False
    completion = await run_naming(
        connection, folder, lambda name: Command("SELECT", (name, *parameters))
    )
    completion = _of_new_mailbox(completion)
    connection.selected = _selected(folder, completion)
    return connection.selected, completion


def _of_new_mailbox(completion: Completion) -> Completion:
    """A SELECT without what was still said of the mailbox before, which ends in CLOSED (RFC 7162 section 3.2.11)."""
    start = 0
    for index, response in enumerate(completion.responses):
        code = response.code if isinstance(response, StatusResponse) else None
        if code is not None and code.name == "CLOSED":
            start = index + 1
    responses = completion.responses[start:]
    return structs.replace(completion, responses=responses, heard=completion.heard - start)


def _selected(folder: FolderPath, completion: Completion) -> SelectData:
    """What a SELECT tells, alone or with the commands that were sent in its flight; its refusal is raised."""
    if not completion.ok:
        if completion.status.code is None or completion.status.code.name in {"CANNOT", "NOPERM"}:
            raise FolderNotFound(f"The folder {folder} does not exist, or holds no messages.")
        completion.require_ok()
    told = _codes(completion)
    validity = told.get("UIDVALIDITY")
    if validity is None or not validity.isdigit():
        raise UpstreamError(
            "The mail server gives no UIDVALIDITY, without which messages cannot be named.",
            protocol="imap",
            command="SELECT",
        )
    return SelectData(
        path=folder,
        uid_validity=UidValidity(int(validity)),
        exists=_existing(completion),
        uid_next=_number(told.get("UIDNEXT")),
        highest_modseq=_number(told.get("HIGHESTMODSEQ")) or None,
        permanent_flags=_permanent_flags(told.get("PERMANENTFLAGS")),
        read_only="READ-ONLY" in told,
    )


def _codes(completion: Completion) -> dict[str, bytes]:
    """The response codes of a SELECT with their arguments, the last of each: one before may be of the mailbox before."""
    statuses = [*completion.responses[: completion.heard], completion.status]
    codes = [each.code for each in statuses if isinstance(each, StatusResponse)]
    return {code.name: code.arguments for code in codes if code is not None}


def _existing(completion: Completion) -> int:
    """How many messages there are when all has been said: the commands behind a SELECT may tell of more, or fewer."""
    exists = 0
    for response in completion.responses:
        if isinstance(response, Untagged) and response.name == "EXISTS":
            exists = response.number or 0
        elif isinstance(response, Untagged):
            exists = max(0, exists - expunged(response))
    return exists


def _number(told: bytes | None) -> int | None:
    return int(told) if told is not None and told.isdigit() and len(told) < 20 else None


def _permanent_flags(told: bytes | None) -> frozenset[str] | None:
    return permanent_flags(ResponseCode("PERMANENTFLAGS", told)) if told is not None else None


def select_later(connection: ImapConnection, folder: FolderPath) -> None:
    """Have the next read select ``folder``. Until then none counts as selected, lest what is known of one be taken for
    what is known of the other."""
    connection.to_unselect |= connection.selected is not None
    connection.selected, connection.to_select = None, folder


async def unselect(connection: ImapConnection) -> None:
    """Leave the mailbox that is selected (RFC 3691: the server must have UNSELECT). CLOSE would expunge."""
    connection.selected, connection.to_unselect = None, False
    await connection.run_one(_UNSELECT)


async def run_selected(connection: ImapConnection, *commands: Command) -> list[Completion]:
    """Run ``commands``, which change nothing, with the SELECT that is due ahead of them in the same flight, where one is.

    A SELECT that is refused takes the others with it, whatever is said to them: no mailbox is selected then (RFC 9051
    section 6.3.2), but a server may go on with the one before. They are sent again where `select` finds another
    spelling; and where one of them was answered ahead of the SELECT, which it should have followed (section 5.5).
    """
    folder, connection.to_select = connection.to_select, None
    if folder is None:
        return await connection.run(*commands)
    connection.to_unselect = False
    name = mailbox(folder, connection.spellings.get(folder))
    selection = Command("SELECT", (name, *_parameters(connection)))
    chosen, *completions = await connection.run(selection, *commands)
    if not chosen.ok and may_be_spelled_otherwise(connection, folder):
        await select(connection, folder)
        return await connection.run(*commands)
    connection.selected = _selected(folder, _of_new_mailbox(chosen))
    if chosen.place > 0:
        return await connection.run(*commands)
    responses = _said_since(chosen)
    return [structs.replace(completion, responses=responses) for completion in completions]


def _said_since(chosen: Completion) -> list[Response]:
    """What was said since a SELECT was answered, behind how many messages there were: what came before may be of the
    mailbox before, where a server does not say when that was closed."""
    exists = [each for each in chosen.responses[: chosen.heard] if _is_exists(each)]
    return [*exists[-1:], *chosen.responses[chosen.heard :]]


def _is_exists(response: Response) -> bool:
    return isinstance(response, Untagged) and response.name == "EXISTS"
