"""The folders of an account: what there is, and making, renaming and removing them."""

from functools import partial

from msgspec import Struct, structs

from cbemail.errors import FolderExists, FolderNotFound, FolderProtected, InvalidRequest
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import SPECIAL_USE, FolderDirectory
from cbemail.imap.folders import (
    Listing,
    ask_status,
    assign_roles,
    create_folder,
    delete_folder,
    leaf_name,
    list_folders,
    rename_folder,
    selectable,
    subscribe_folder,
)
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import INBOX, FolderPath, ListData, StatusData
from cbemail.imap.repeating import awake, repeatable


class Folder(Struct, frozen=True):
    """One folder. The counts are None where the folder holds no messages, or where they were not asked for."""

    path: FolderPath
    name: str
    delimiter: str | None
    role: str | None
    selectable: bool
    subscribed: bool
    has_children: bool
    messages: int | None
    unread: int | None
    uid_next: int | None
    uid_validity: int | None


class MailboxFolders:
    """Every call answers from the server; only roles are remembered, by the directory."""

    def __init__(self, pool: ImapPool, directory: FolderDirectory) -> None:
        self._pool = pool
        self._directory = directory

    async def list_all(self, session_id: SessionId, *, counts: bool = True) -> list[Folder]:
        """Every folder: INBOX first, then those with a role, then the rest by path."""
        listing = await repeatable(
            self._pool, session_id, None, partial(list_folders, counts=counts)
        )
        self._directory.learn(session_id, listing)
        return _folders(listing)

    async def get(self, session_id: SessionId, path: FolderPath) -> Folder:
        """One folder as `list_all` gives it, for the price of one STATUS."""

        async def read(imap: ImapConnection) -> Listing:
            listing = await list_folders(imap, counts=False)
            one = [f for f in listing.folders if f.path == path and selectable(f)]
            return structs.replace(listing, status=await ask_status(imap, one))

        listing = await repeatable(self._pool, session_id, None, read)
        self._directory.learn(session_id, listing)
        for folder in _folders(listing):
            if folder.path == path:
                return folder
        raise FolderNotFound(f"There is no folder {path}.")

    async def create(self, session_id: SessionId, name: str) -> Folder:
        """Make a folder. Levels are separated as the server does, or by ``/``, whatever the server's delimiter is.

        A server that has all folders of an account below a prefix (``INBOX.``) gets it below that.
        """
        path = await self._own_path(session_id, name)
        if (
            path.upper() == INBOX
        ):  # RFC 9051 section 6.3.4, which Dovecot forgets as long as it is empty
            raise FolderExists("INBOX always exists.")
        async with awake(self._pool, session_id) as imap:
            await create_folder(imap, path)
        self._directory.changed(session_id)
        return await self.get(session_id, path)

    async def rename(self, session_id: SessionId, folder_name: str, new_name: str) -> Folder:
        """Rename, which moves it where the new name has another parent. INBOX stays what it is."""
        path = await self._directory.resolve(session_id, folder_name)
        to = await self._own_path(session_id, new_name)
        if (
            path == INBOX
        ):  # RFC 9051 6.3.6: it would empty INBOX into a new folder, which nobody expects
            raise FolderProtected("INBOX cannot be renamed.")
        delimiter = await self._directory.delimiter(session_id)
        if delimiter is not None and to.startswith(path + delimiter):
            raise InvalidRequest.at("#/name", f"The folder {path} cannot be moved into itself.")
        if path != to:
            self._pool.deselect(session_id, path)
            async with awake(self._pool, session_id) as imap:
                await rename_folder(imap, path, to)
            self._directory.changed(session_id)
        return await self.get(session_id, to)

    async def subscribe(
        self, session_id: SessionId, folder_name: str, *, subscribed: bool
    ) -> Folder:
        """Show the folder in clients that list subscribed ones, or no longer."""
        path = await self._directory.resolve(session_id, folder_name)
        await self.get(
            session_id, path
        )  # SUBSCRIBE of a name that does not exist is allowed, and of no use
        async with awake(self._pool, session_id) as imap:
            await subscribe_folder(imap, path, subscribed=subscribed)
        return await self.get(session_id, path)

    async def delete(self, session_id: SessionId, folder_name: str) -> None:
        """Delete a folder and the messages in it. INBOX stays."""
        path = await self._directory.resolve(session_id, folder_name)
        if path == INBOX:
            raise FolderProtected("INBOX cannot be deleted.")
        self._pool.deselect(session_id, path)
        async with awake(self._pool, session_id) as imap:
            await delete_folder(imap, path)
        self._directory.changed(session_id)

    async def _own_path(self, session_id: SessionId, name: str) -> FolderPath:
        """A name the client gives, as a path of this server."""
        delimiter = await self._directory.delimiter(session_id)
        if delimiter is not None and delimiter != "/":
            name = name.replace("/", delimiter)
        levels = name.split(delimiter) if delimiter else [name]
        if not all(level.strip() for level in levels):
            raise InvalidRequest.at(
                "#/name", "Every level of a folder's name needs at least one character."
            )
        if name.lower() in SPECIAL_USE:
            raise InvalidRequest.at(
                "#/name", f"The name {name} stands for the folder of that special use."
            )
        if levels[0].upper() == INBOX:  # in whatever case: so the server will show it
            levels[0] = INBOX
        namespaces = await self._directory.namespaces(session_id)
        return namespaces.place(FolderPath((delimiter or "").join(levels)))


def _folders(listing: Listing) -> list[Folder]:
    roles = assign_roles(listing.folders)
    folders = [
        _folder(data, roles.get(data.path), listing, listing.status.get(data.path))
        for data in listing.folders
        if "\\nonexistent" not in data.attributes or "\\haschildren" in data.attributes
    ]
    return sorted(folders, key=lambda f: (f.role != "inbox", f.role is None, f.path.casefold()))


def _folder(
    data: ListData, role: str | None, listing: Listing, status: StatusData | None
) -> Folder:
    return Folder(
        path=INBOX if role == "inbox" else data.path,
        name=leaf_name(data),
        delimiter=data.delimiter,
        role=role,
        selectable=selectable(data),
        subscribed=data.path in listing.subscribed,
        has_children=_has_children(data, listing),
        messages=status.messages if status else None,
        unread=status.unseen if status else None,
        uid_next=status.uid_next if status else None,
        uid_validity=status.uid_validity if status else None,
    )


def _has_children(data: ListData, listing: Listing) -> bool:
    """As the server says (RFC 3348); from the listing where it does not."""
    if "\\haschildren" in data.attributes:
        return True
    if "\\hasnochildren" in data.attributes or data.delimiter is None:
        return False
    prefix = data.path + data.delimiter
    return any(other.path.startswith(prefix) for other in listing.folders)
