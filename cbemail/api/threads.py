"""`/api/mailbox/messages/{uid}/thread`: the conversation a message is of."""

from msgspec import Struct
from starlette.responses import Response

from cbemail.api.codec import json_response
from cbemail.api.operation import Call
from cbemail.api.rows import Row
from cbemail.imap.protocol import FolderPath, UidValidity


class GetThread(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the message is, and whether the answer has snippets."""

    folder: str = "INBOX"
    snippet: bool = False


class MessageThread(Struct, frozen=True):
    """The messages of the conversation that are in the folder, the oldest first, by the date they were sent.

    ``truncated`` tells that there are more than 500: these are the latest, and the one that was asked about.
    """

    folder: FolderPath
    uid_validity: UidValidity
    messages: list[Row]
    truncated: bool


async def get_thread(call: Call[GetThread, None]) -> Response:
    """The conversation a message is of, within its folder, oldest first: by who answers whom, and by subject."""
    thread = await call.services.mailbox.threads.thread(
        call.session.id, call.query.folder, call.uid, snippets=call.query.snippet
    )
    answer = MessageThread(thread.folder, thread.uid_validity, thread.messages, thread.truncated)
    return json_response(answer)
