"""`/api/mailbox/folders`: the folders of the session's mailbox."""

from urllib.parse import quote

from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from cbemail.api.codec import json_response, no_content
from cbemail.api.operation import Call
from cbemail.errors import InvalidRequest
from cbemail.mailbox.folders import Folder


class ListFolders(Struct, frozen=True, forbid_unknown_fields=True):
    """``counts=false`` leaves out the numbers, which some servers are slow to give."""

    counts: bool = True


class Folders(Struct, frozen=True):
    folders: list[Folder]


class NewFolder(Struct, frozen=True, forbid_unknown_fields=True):
    """``name`` is the full path; ``/`` separates levels on every server, and a prefix that all folders have there may be left out."""

    name: str


class FolderChange(Struct, frozen=True, forbid_unknown_fields=True):
    """A new full path, a new subscription, or both."""

    name: str | UnsetType = UNSET
    subscribed: bool | UnsetType = UNSET


async def list_folders(call: Call[ListFolders, None]) -> Response:
    """Every folder, with its role and counts."""
    folders = await call.services.mailbox.folders.list_all(
        call.session.id, counts=call.query.counts
    )
    return json_response(Folders(folders))


async def create_folder(call: Call[object, NewFolder]) -> Response:
    """Make a folder, and subscribe to it."""
    folder = await call.services.mailbox.folders.create(call.session.id, call.body.name)
    return json_response(folder, 201, {"Location": f"/api/mailbox/folders/{quote(folder.path)}"})


async def change_folder(call: Call[object, FolderChange]) -> Response:
    """Rename a folder, which moves it where the new path has another parent; or change its subscription."""
    name: str = call.path("path")
    change = call.body
    if change.name is UNSET and change.subscribed is UNSET:
        raise InvalidRequest("Name a change: name or subscribed.")
    folders = call.services.mailbox.folders
    folder: Folder | None = None
    if change.name is not UNSET:
        folder = await folders.rename(call.session.id, name, change.name)
        name = folder.path
    if change.subscribed is not UNSET:
        folder = await folders.subscribe(call.session.id, name, subscribed=change.subscribed)
    return json_response(folder)


async def delete_folder(call: Call[object, None]) -> Response:
    """Delete a folder and the messages in it."""
    await call.services.mailbox.folders.delete(call.session.id, call.path("path"))
    return no_content()
