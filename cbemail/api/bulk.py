"""`POST /api/mailbox/messages/bulk`: one change to many messages, in one IMAP command per kind of change."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from cbemail.api.codec import json_response
from cbemail.api.operation import Call
from cbemail.errors import InvalidRequest
from cbemail.imap.protocol import Uid
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.actions import MAX_BULK, BulkAnswer, Chosen, flag_change

UidNumber = Annotated[int, Meta(ge=1, le=2**32 - 1)]


class Action(StrEnum):
    MARK = "mark"
    MOVE = "move"
    COPY = "copy"
    DELETE = "delete"


class Bulk(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change, by ``uids`` or by ``filter``, and the fields of the action as in the call for one message."""

    action: Action
    folder: str = "INBOX"
    uids: Annotated[list[UidNumber], Meta(min_length=1, max_length=MAX_BULK)] | None = None
    filter: SearchFilter | None = None
    destination: str | None = None
    permanent: bool = False
    read: bool | None = None
    flagged: bool | None = None
    answered: bool | None = None
    add_flags: list[str] = []
    remove_flags: list[str] = []


_FIELDS = {
    Action.MARK: {"read", "flagged", "answered", "add_flags", "remove_flags"},
    Action.MOVE: {"destination"},
    Action.COPY: {"destination"},
    Action.DELETE: {"permanent"},
}
_UNASKED = Bulk(Action.MARK)  # every field as it is when not given


async def change_messages(call: Call[object, Bulk]) -> Response:
    """Mark, move, copy or delete up to 10,000 messages. Those that are not there are told, and fail no other."""
    chosen = _chosen(call.body)
    _refuse_other_fields(call.body)
    return json_response(await _change(call, call.body, chosen))


async def _change(call: Call[object, Bulk], body: Bulk, chosen: Chosen) -> BulkAnswer:
    actions, session_id = call.services.mailbox.actions, call.session.id
    match body.action:
        case Action.MARK:
            change = flag_change(
                read=body.read,
                flagged=body.flagged,
                answered=body.answered,
                add_flags=body.add_flags,
                remove_flags=body.remove_flags,
            )
            return await actions.bulk_mark(session_id, body.folder, chosen, change)
        case Action.MOVE | Action.COPY:
            if body.destination is None:
                raise InvalidRequest.at(
                    "#/destination", f"The action {body.action} needs a destination."
                )
            return await actions.bulk_relocate(
                session_id,
                body.folder,
                chosen,
                body.destination,
                keep=body.action is Action.COPY,
            )
        case Action.DELETE:
            return await actions.bulk_delete(
                session_id, body.folder, chosen, permanent=body.permanent
            )


def _chosen(body: Bulk) -> Chosen:
    if (body.uids is None) == (body.filter is None):
        raise InvalidRequest("Say which messages: by uids or by filter, one of them.")
    if body.filter is not None:
        return body.filter
    return [Uid(uid) for uid in body.uids or ()]


def _refuse_other_fields(body: Bulk) -> None:
    """A field of another action would be silently ignored, and is most likely a mistake."""
    for action, names in _FIELDS.items():
        for name in sorted(names - _FIELDS[body.action]) if action is not body.action else ():
            if getattr(body, name) != getattr(_UNASKED, name):
                raise InvalidRequest.at(
                    f"#/{name}", f"The field {name} does not belong to the action {body.action}."
                )
