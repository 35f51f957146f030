"""What is done with mailboxes as a whole: options in, data out (RFC 9051 section 6.3)."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from cbemail.errors import InvalidRequest
from cbemail.imap.connection import ImapConnection
from cbemail.imap.flight import Completion
from cbemail.imap.naming import learn_spellings, run_naming
from cbemail.imap.parser import list_data, status_data
from cbemail.imap.protocol import INBOX, FolderPath, ListData, StatusData
from cbemail.imap.selecting import select, unselect
from cbemail.imap.wire import Argument, Command, mailbox

_NOOP = Command("NOOP")
_ITEMS = b"(MESSAGES UNSEEN UIDNEXT UIDVALIDITY)"
STATUS_FLIGHT = 50  # STATUS commands on their way at once, where the server has no LIST-STATUS


class Listing(Struct, frozen=True):
    """All mailboxes of an account, and what STATUS tells of those that were asked about and can be selected."""

    folders: tuple[ListData, ...]
    subscribed: frozenset[FolderPath]
    status: dict[FolderPath, StatusData]


async def list_folders(connection: ImapConnection, *, counts: bool) -> Listing:
    """Every mailbox; with ``counts`` the number of messages of each, in one command where LIST-STATUS is offered.

    Of the one that is selected a server may count no more than it has told of: it is given the chance to tell, and asked
    again where it did.
    """
    noop = [_NOOP] if counts else []
    if "LIST-EXTENDED" in connection.capabilities:
        returning = [b"SUBSCRIBED", b"CHILDREN"]
        if "SPECIAL-USE" in connection.capabilities:
            returning.append(b"SPECIAL-USE")
        if counts and "LIST-STATUS" in connection.capabilities:
            returning.append(b"STATUS " + _ITEMS)
        arguments = (b'""', b'"*"', b"RETURN (" + b" ".join(returning) + b")")
        completion, *_ = await connection.run(Command("LIST", arguments), *noop)
        folders = _listed(completion.require_ok(), "LIST")
        subscribed = frozenset(f.path for f in folders if "\\subscribed" in f.attributes)
        status = _status(completion)
        if connection.selected is not None and _tells_news(completion):
            status.pop(connection.selected.path, None)
    else:
        listed, lsub, *_ = await connection.run(
            Command("LIST", (b'""', b'"*"')), Command("LSUB", (b'""', b'"*"')), *noop
        )
        folders = _listed(listed.require_ok(), "LIST")
        subscribed = frozenset(f.path for f in _listed(lsub, "LSUB"))
        status = {}
    learn_spellings(connection, folders)
    if counts:
        missing = [f for f in folders if selectable(f) and f.path not in status]
        status |= await ask_status(connection, missing)
    return Listing(tuple(folders), subscribed, status)


def selectable(folder: ListData) -> bool:
    return not {"\\noselect", "\\nonexistent"} & folder.attributes


def _listed(completion: Completion, name: str) -> list[ListData]:
    """Each path once: some servers list INBOX twice, under two namespaces."""
    by_path = {folder.path: folder for folder in completion.read(name, list_data)}
    return list(by_path.values())


def _tells_news(completion: Completion) -> bool:
    """Whether something was said of the selected mailbox."""
    return any(map(completion.untagged, ("EXISTS", "EXPUNGE", "VANISHED", "FETCH")))


def _status(completion: Completion) -> dict[FolderPath, StatusData]:
    return {told.path: told for told in completion.read("STATUS", status_data)}


async def ask_status(
    connection: ImapConnection, folders: Sequence[ListData]
) -> dict[FolderPath, StatusData]:
    """STATUS of each. One that is refused (deleted meanwhile, no permission) is left out, and fails no other; so is one
    whose name only the server itself can say."""
    status: dict[FolderPath, StatusData] = {}
    commands = [
        Command("STATUS", (name, _ITEMS)) for name in map(_name, folders) if name is not None
    ]
    for start in range(0, len(commands), STATUS_FLIGHT):
        *_, completion = await connection.run(*commands[start : start + STATUS_FLIGHT])
        status |= _status(completion)
    return status


def _name(folder: ListData) -> Argument | None:
    try:
        return mailbox(folder.path, folder.spelling)
    except InvalidRequest:
        return None


async def create_folder(connection: ImapConnection, path: FolderPath) -> None:
    """CREATE and SUBSCRIBE, so that other clients show it too."""
    name = mailbox(path, pointer="#/name")
    await connection.run_one(Command("CREATE", (name,)))
    await connection.run(Command("SUBSCRIBE", (name,)))


async def rename_folder(connection: ImapConnection, path: FolderPath, to: FolderPath) -> None:
    """RENAME, and the subscriptions with it: RFC 9051 6.3.6 leaves them at the old names."""
    new = mailbox(to, pointer="#/name")
    await _leave(connection, path)
    subscribed = await _subscriptions(connection)
    completion = await run_naming(connection, path, lambda name: Command("RENAME", (name, new)))
    completion.require_ok()
    for folder in subscribed:
        old, moved = _name(folder), FolderPath(to + folder.path.removeprefix(path))
        if old is not None and _is_within(folder, path):
            await connection.run(
                Command("UNSUBSCRIBE", (old,)), Command("SUBSCRIBE", (mailbox(moved),))
            )


def _is_within(folder: ListData, path: FolderPath) -> bool:
    """Whether a folder is the one at ``path``, or below it."""
    return folder.path == path or (
        folder.delimiter is not None and folder.path.startswith(path + folder.delimiter)
    )


async def _subscriptions(connection: ImapConnection) -> list[ListData]:
    if "LIST-EXTENDED" in connection.capabilities:
        command = Command("LIST", (b"(SUBSCRIBED)", b'""', b'"*"'))
        return _listed(await connection.run_one(command), "LIST")
    return _listed(await connection.run_one(Command("LSUB", (b'""', b'"*"'))), "LSUB")


async def delete_folder(connection: ImapConnection, path: FolderPath) -> None:
    """DELETE and UNSUBSCRIBE."""
    await _leave(connection, path)
    completion = await run_naming(connection, path, lambda name: Command("DELETE", (name,)))
    completion.require_ok()
    await run_naming(connection, path, lambda name: Command("UNSUBSCRIBE", (name,)))


async def subscribe_folder(
    connection: ImapConnection, path: FolderPath, *, subscribed: bool
) -> None:
    verb = "SUBSCRIBE" if subscribed else "UNSUBSCRIBE"
    completion = await run_naming(connection, path, lambda name: Command(verb, (name,)))
    completion.require_ok()


async def _leave(connection: ImapConnection, path: FolderPath) -> None:
    """A mailbox that is selected cannot safely be deleted or renamed."""
    is_selected = connection.selected is not None and connection.selected.path == path
    if not is_selected and not connection.to_unselect:
        return
    if "UNSELECT" in connection.capabilities:
        await unselect(connection)
    else:
        await select(connection, INBOX)


# ---- roles

Role = str  # inbox, sent, drafts, trash, junk, archive, all, flagged

# RFC 6154 special-use attributes; Gmail's older spellings among them.
_ATTRIBUTES = {
    "\\sent": "sent",
    "\\drafts": "drafts",
    "\\trash": "trash",
    "\\junk": "junk",
    "\\spam": "junk",
    "\\archive": "archive",
    "\\all": "all",
    "\\allmail": "all",
    "\\flagged": "flagged",
    "\\starred": "flagged",
}

# Names in use where a server has no SPECIAL-USE, the usual first: mail clients made these folders in their language.
_NAMES: dict[Role, tuple[str, ...]] = {
    "sent": (
        "sent", "sent items", "sent messages", "sent mail", "gesendet", "gesendete objekte", "gesendete elemente",
        "envoyés", "éléments envoyés", "messages envoyés", "enviados", "elementos enviados", "itens enviados",
        "inviati", "posta inviata", "verzonden", "verzonden items", "wysłane", "elementy wysłane", "отправленные",
        "odeslané", "skickat", "sendt", "lähetetyt", "已发送", "送信済み",
    ),
    "drafts": (
        "drafts", "draft", "entwürfe", "brouillons", "borradores", "rascunhos", "bozze", "concepten", "szkice",
        "kopie robocze", "черновики", "koncepty", "utkast", "kladder", "luonnokset", "草稿箱", "下書き",
    ),
    "trash": (
        "trash", "deleted items", "deleted messages", "deleted", "bin", "papierkorb", "gelöschte elemente",
        "gelöschte objekte", "corbeille", "éléments supprimés", "papelera", "elementos eliminados", "lixeira",
        "itens excluídos", "cestino", "posta eliminata", "prullenbak", "verwijderde items", "kosz", "elementy usunięte",
        "корзина", "удаленные", "koš", "papperskorgen", "papirkurv", "roskakori", "已删除", "ゴミ箱",
    ),
    "junk": (
        "junk", "spam", "junk e-mail", "junk email", "bulk mail", "unerwünscht", "spamverdacht", "courrier indésirable",
        "indésirables", "correo no deseado", "lixo eletrônico", "posta indesiderata", "ongewenste e-mail",
        "wiadomości-śmieci", "спам", "nevyžádaná pošta", "skräppost", "roskaposti", "垃圾邮件", "迷惑メール",
    ),
    "archive": (
        "archive", "archives", "archiv", "archivio", "archivo", "arquivo", "archief", "archiwum", "архив", "arkiv",
    ),
}  # fmt: skip


def assign_roles(folders: Iterable[ListData]) -> dict[FolderPath, Role]:
    """Which folder is which: by attribute where the server tells, else by the names mail clients use. A role goes to
    one folder only, and one told by the server is never overruled by a name."""
    listed = [folder for folder in folders if selectable(folder)]
    roles: dict[FolderPath, Role] = {f.path: "inbox" for f in listed if f.path.upper() == INBOX}
    taken = {"inbox"}
    for folder in listed:
        role = next((r for a, r in _ATTRIBUTES.items() if a in folder.attributes), None)
        if role is not None and role not in taken and folder.path not in roles:
            roles[folder.path] = role
            taken.add(role)
    by_name: dict[str, FolderPath] = {}
    for folder in sorted(listed, key=lambda f: len(f.path), reverse=True):  # the shortest path wins
        by_name[leaf_name(folder).casefold()] = folder.path
    for role, names in _NAMES.items():
        if role not in taken:
            path = next(
                (by_name[n] for n in names if by_name.get(n, INBOX) not in roles and n in by_name),
                None,
            )
            if path is not None:
                roles[path] = role
    return roles


# Not part of an account's mail, with all that is below them; and folders that show what stands in others (RFC 6154).
_LEFT_OUT = {"trash", "junk"}
_VIEWS = {"\\all", "\\allmail", "\\flagged", "\\starred", "\\important"}


def folder_of_all(listing: Listing) -> FolderPath | None:
    """The folder that shows the messages of all others, where there is one."""
    roles = assign_roles(listing.folders)
    return next((path for path, role in roles.items() if role == "all"), None)


def folders_of_account(listing: Listing) -> list[FolderPath]:
    """The folders that hold the account's messages, but for the trash and the junk folder: INBOX first, then those with a
    role. Empty ones are left out."""
    roles = assign_roles(listing.folders)
    out = [f for f in listing.folders if roles.get(f.path) in _LEFT_OUT]
    kept = [
        folder.path
        for folder in listing.folders
        if selectable(folder)
        and not _VIEWS & folder.attributes
        and not any(_is_within(folder, other.path) for other in out)
        and (folder.path not in listing.status or listing.status[folder.path].messages != 0)
    ]
    return sorted(kept, key=lambda path: (roles.get(path) != "inbox", path not in roles, path))


def leaf_name(folder: ListData) -> str:
    """The last level of the folder's path."""
    return folder.path.rsplit(folder.delimiter, 1)[-1] if folder.delimiter else folder.path
