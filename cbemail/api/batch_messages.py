"""The messages of a batch that come one by one: each is composed as for sending, and one that is wrong fails no other."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw

from cbemail.api.codec import decode_json
from cbemail.api.inputs import Addresses, AddressInput, due_at, within
from cbemail.api.operation import Call
from cbemail.api.outgoing import OutgoingMessage, Prepared, prepare
from cbemail.errors import InvalidRequest, NotFound, PayloadTooLarge
from cbemail.mime.html import html_to_text
from cbemail.outbox.merge import RenderedMessage
from cbemail.outbox.recipients import Entries, Entry, Unfit
from cbemail.turns import Turn

_outgoing = msgspec.json.Decoder(OutgoingMessage)
_FOR_ALL = {
    "send_at": "The field send_at stands beside messages, since it is for all of them.",
    "save_to_sent": "The field save_to_sent stands beside messages, since it is for all of them.",
}


async def check_messages(raws: Sequence[Raw]) -> None:
    """Every message has the fields of one. Raises InvalidRequest, MalformedJson."""
    turn = Turn()
    for index, raw in enumerate(raws):
        await turn.share()
        with within(f"#/messages/{index}"):
            message = decode_json(raw, _outgoing)
            for name, reason in _FOR_ALL.items():
                if getattr(message, name) is not None:
                    raise InvalidRequest.at(f"#/{name}", reason)


def message_entries(
    call: Call[Any, Any], raws: Sequence[Raw], send_at: datetime | None, *, previews: int
) -> Entries:
    """The messages that `check_messages` has passed, composed when their turn comes. The first ``previews`` of them can
    be looked at."""
    now = call.services.clock()
    date = due_at(send_at, now) or now

    async def entries() -> AsyncIterator[Sequence[Entry | Unfit]]:
        left = previews
        for index, raw in enumerate(raws):
            entry = await _entry(call, index, decode_json(raw, _outgoing), date, shown=left > 0)
            left -= isinstance(entry, Entry)
            yield [entry]

    return entries


async def _entry(
    call: Call[Any, Any], index: int, message: OutgoingMessage, date: datetime, *, shown: bool
) -> Entry | Unfit:
    """A message composed. What is wrong with it alone is a value; that the mail server cannot be asked for the message
    it answers is everybody's matter, and an error."""
    one = Call(call.request, call.services, call.session, None, message)
    try:
        with within(f"#/messages/{index}"):
            prepared = await prepare(one, date=date)
            if not prepared.recipients:
                raise InvalidRequest.at("#/to", "Name at least one recipient in to, cc or bcc.")
    except InvalidRequest as exc:
        detail = f"{exc.detail} ({exc.errors[0].pointer})"
        return Unfit(index, _written(message), "invalid-message", detail)
    except (PayloadTooLarge, NotFound) as exc:
        return Unfit(index, _written(message), exc.code, exc.detail)
    return Entry(
        position=index,
        to=prepared.to,
        cc=prepared.cc,
        bcc=prepared.bcc,
        message=prepared.stored,
        message_id=prepared.composed.message_id,
        preview=_preview(index, prepared) if shown else None,
    )


def _preview(index: int, prepared: Prepared) -> RenderedMessage:
    draft = prepared.draft
    text = draft.text
    if text is None:
        text = html_to_text(draft.html or "")
    return RenderedMessage(
        index=index,
        to=draft.to,
        cc=draft.cc,
        bcc=draft.bcc,
        subject=draft.subject,
        text=text,
        html=draft.html,
        attachments=[attachment.filename for attachment in draft.attachments],
        size=len(prepared.composed.content),
    )


def _written(message: OutgoingMessage) -> str:
    """What stands for the recipient, for people to find the message by."""
    for given in (message.to, message.cc, message.bcc):
        for one in _listed(given):
            return one.address if isinstance(one, AddressInput) else one
    return ""


def _listed(given: Addresses) -> Sequence[str | AddressInput]:
    if given is None:
        return []
    return given if isinstance(given, list) else [given]
