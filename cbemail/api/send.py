"""`/api/send`: one message, sent while the caller waits or when its time comes; and `POST /api/mailbox/messages`,
which keeps one."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from hashlib import sha256

import msgspec
from msgspec import Struct
from starlette.responses import Response

from cbemail.api.codec import announced_length, decode_json, json_response, media_type
from cbemail.api.idempotency import key_of, replayed, stored
from cbemail.api.inputs import due_at
from cbemail.api.links import message_url, send_url
from cbemail.api.operation import Call, Raw
from cbemail.api.outgoing import OutgoingMessage, Prepared, files_own_sent, prepare, require_size
from cbemail.api.preferences import preferences
from cbemail.errors import BatchStateConflict, InvalidRequest, UnsupportedMediaType
from cbemail.ids import OutboxId
from cbemail.imap.protocol import DRAFT, Flag
from cbemail.mime.address import envelope_address, needs_smtputf8
from cbemail.outbox.accept import NewBatch
from cbemail.outbox.batch import BatchView
from cbemail.outbox.idempotency import IdempotencyKey
from cbemail.outbox.outbox import Submission
from cbemail.outbox.recipients import Entry, Unfit
from cbemail.outbox.send_result import SendResult
from cbemail.smtp.envelope import Envelope
from cbemail.store.batch_records import BatchKind, BatchOptions
from cbemail.store.records import SendState, StoredResponse
from cbemail.turns import off_the_loop

_encode = msgspec.json.Encoder(order="sorted").encode


async def send_message(call: Call[object, OutgoingMessage]) -> Response:
    """Send a message and say, recipient by recipient, what the mail server made of it.

    With ``Prefer: respond-async``, or a ``send_at`` to come, the answer is 202 as soon as the message is on disk: it
    is sent as a batch of one is, tried again where the mail server defers it, and `GET /api/send/{id}` tells of it.
    """
    outbox = call.services.outbox
    key = await _idempotency_key(call)
    if key is not None:
        replay = await outbox.replay(call.session.id, key)
        if replay is not None:
            return replayed(replay)
    send_at = due_at(call.body.send_at, call.services.clock())
    prepared = await prepare(call, date=send_at)
    if not prepared.recipients:
        raise InvalidRequest.at("#/to", "Name at least one recipient in to, cc or bcc.")
    wants_copy = call.body.save_to_sent is not False and not files_own_sent(call.session)
    respond_async = preferences(call.request).respond_async
    if respond_async or send_at is not None:
        response = await _queue(call, prepared, key, send_at, wants_copy=wants_copy)
        if respond_async:
            response.headers["Preference-Applied"] = "respond-async"
        return response
    submission = Submission(
        session_id=call.session.id,
        envelope=Envelope(
            sender=envelope_address(prepared.sender.address),
            recipients=tuple(envelope_address(r.address) for r in prepared.recipients),
            content=prepared.composed.content,
            smtputf8=prepared.composed.needs_smtputf8
            or any(needs_smtputf8(a.address) for a in (prepared.sender, *prepared.recipients)),
        ),
        message_id=prepared.composed.message_id,
        save_to_sent=wants_copy,
        original=prepared.original,
    )
    result = await outbox.send(submission, key)
    return replayed(result) if isinstance(result, StoredResponse) else stored(render(result))


async def _queue(
    call: Call[object, OutgoingMessage],
    prepared: Prepared,
    key: IdempotencyKey | None,
    send_at: datetime | None,
    *,
    wants_copy: bool,
) -> Response:
    """Put the message on disk, as a batch of its own, to be sent by the courier."""
    message_id = prepared.composed.message_id
    entry = Entry(
        position=0,
        to=prepared.to,
        cc=prepared.cc,
        bcc=prepared.bcc,
        message=prepared.stored,
        message_id=message_id,
    )

    async def entries() -> AsyncIterator[Sequence[Entry | Unfit]]:
        yield [entry]

    def render_queued(batch: BatchView) -> StoredResponse:
        return render(SendResult(OutboxId(batch.id), SendState.QUEUED, message_id))

    batch = NewBatch(
        session_id=call.session.id,
        kind=BatchKind.SEND,
        name=None,
        options=BatchOptions(save_to_sent=wants_copy),
        send_at=send_at,
        template=None,
        entries=entries,
        reject_invalid=False,
        dedupe=False,
    )
    accepted = await call.services.acceptance.accept(batch, key, render_queued)
    if isinstance(accepted, StoredResponse):
        return replayed(accepted)
    return stored(render_queued(accepted))


async def get_send(call: Call[object, None]) -> Response:
    """What became of a message this session sent, or is to send."""
    services, send_id = call.services, call.path("id")
    queued = await services.batches.find_send(call.session.id, send_id)
    if queued is not None:
        return json_response(queued)
    return json_response(await services.outbox.find(call.session.id, OutboxId(send_id)))


async def cancel_send(call: Call[object, None]) -> Response:
    """Cancel a message that is still queued."""
    services, send_id = call.services, call.path("id")
    cancelled = await services.steering.cancel_send(call.session.id, send_id)
    if cancelled is not None:
        return json_response(cancelled)
    known = await services.outbox.find(call.session.id, OutboxId(send_id))
    raise BatchStateConflict(
        f"Only what is queued can be cancelled; this message is {known.state}."
    )


def render(result: SendResult) -> StoredResponse:
    """The response to a send that ended so: 202 where it is not known whether the message was delivered."""
    return StoredResponse(
        status=200 if result.state is SendState.SENT else 202,
        headers={"Location": send_url(result.id)},
        body=msgspec.json.encode(result),
    )


async def _idempotency_key(call: Call[object, OutgoingMessage]) -> IdempotencyKey | None:
    """The request's key. What it stands for is compared by meaning: order and spacing of the JSON do not matter, nor
    what the client would prefer."""
    key = key_of(call.request)
    if key is None:
        return None
    octets = announced_length(call.request)
    fingerprint = await off_the_loop(octets, lambda: sha256(_encode(call.body)).digest())
    return IdempotencyKey("POST /api/send", key, fingerprint)


# ---- keeping a message


class AppendMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """The folder to keep it in, and its flags, comma-separated (``\\Seen,\\Draft``)."""

    folder: str = "INBOX"
    flags: str | None = None


_outgoing = msgspec.json.Decoder(OutgoingMessage)


async def append_message(call: Call[AppendMessage, Raw]) -> Response:
    """Store a message as it is (``message/rfc822``), or compose one from JSON as for sending: a draft."""
    flags = [Flag(flag.strip()) for flag in (call.query.flags or "").split(",") if flag.strip()]
    given = media_type(call.request)
    if given == "message/rfc822":
        content = _crlf(call.body.data)
        require_size(call.services, content)
    elif given == "application/json":
        message = decode_json(call.body.data, _outgoing)
        if message.send_at is not None:
            raise InvalidRequest.at(
                "#/send_at", "What is kept here is not sent: it has no send_at."
            )
        draft = Call(call.request, call.services, call.session, None, message)
        content = (await prepare(draft, keep_bcc=True)).composed.content
        flags = flags if call.query.flags is not None else [DRAFT]
    else:
        raise UnsupportedMediaType("This call takes message/rfc822 or application/json.")
    place = await call.services.mailbox.actions.append(
        call.session.id, call.query.folder, content, flags=flags
    )
    location = message_url(place.folder, place.uid) if place.uid is not None else None
    return json_response(place, 201, {"Location": location} if location else None)


def _crlf(content: bytes) -> bytes:
    """IMAP keeps messages with CRLF line ends, and no NUL (RFC 9051 section 4.3)."""
    if not content.strip():
        raise InvalidRequest("The message is empty.")
    if b"\0" in content:
        raise InvalidRequest("A message must not hold NUL octets.")
    if content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r"):
        return content
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
