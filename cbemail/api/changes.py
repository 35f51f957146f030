"""`/api/mailbox/changes`: what has happened in a folder since a client last asked."""

from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from cbemail.api.codec import json_response
from cbemail.api.operation import Call
from cbemail.api.rows import Row
from cbemail.imap.protocol import Uid
from cbemail.mailbox.changes import FlagChange

Limit = Annotated[int, Meta(ge=1, le=500)]


class FollowFolder(Struct, frozen=True, forbid_unknown_fields=True):
    """The folder, the ``state`` of the last answer, how many new messages to be told of at once, and whether with their
    first words."""

    folder: str = "INBOX"
    since: str | None = None
    limit: Limit = 200
    snippet: bool = False


class FolderChanges(Struct, frozen=True):
    """What happened since ``since``, and the ``state`` to ask with the next time.

    ``new`` has the messages that came, lowest UID first; with ``more``, there are others: ask again at once. ``flags``
    has all flags, as they are now, of known messages whose flags were changed. ``removed`` were deleted or moved away;
    it may name some that were never told. With ``reset`` nothing that was known of the folder counts any more, and
    ``new`` begins with its first message.
    """

    state: str
    new: list[Row]
    flags: list[FlagChange]
    removed: list[Uid]
    reset: bool
    more: bool


async def follow_folder(call: Call[FollowFolder, None]) -> Response:
    """What has happened in a folder since the `state` of an earlier answer; without one, the state now.

    Keep a copy of a folder in step: ask for the state, list the folder, and from then on ask with the state of the last
    answer. Nothing is missed, and nothing told twice. A state whose memory has gone, or whose folder was recreated, is
    no error: `reset` says so, and the folder is told from its first message on.
    """
    query = call.query
    changes = await call.services.mailbox.changes.since(
        call.session.id, query.folder, query.since, limit=query.limit, snippets=query.snippet
    )
    return json_response(
        FolderChanges(
            changes.state, changes.new, changes.flags, changes.removed, changes.reset, changes.more
        )
    )
