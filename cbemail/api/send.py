"""`/api/send`: one message, sent while the caller waits; and `POST /api/mailbox/messages`, which keeps one."""

import re
from hashlib import sha256

import msgspec
from msgspec import Struct
from starlette.responses import Response

from cbemail.api.codec import decode_json, json_response, media_type
from cbemail.api.links import message_url
from cbemail.api.operation import Call, Raw
from cbemail.api.outgoing import OutgoingMessage, prepare, require_size
from cbemail.errors import InvalidRequest, UnsupportedMediaType
from cbemail.ids import OutboxId
from cbemail.imap.protocol import DRAFT, Flag
from cbemail.mime.address import envelope_address, needs_smtputf8
from cbemail.outbox.outbox import IdempotencyKey, SendResult, Submission
from cbemail.sessions.providers import find_provider_by_host
from cbemail.smtp.envelope import Envelope
from cbemail.store.records import SendState, SessionRecord, StoredResponse
from cbemail.turns import off_the_loop

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_encode = msgspec.json.Encoder(order="sorted").encode


async def send_message(call: Call[object, OutgoingMessage]) -> Response:
    """Send a message and say, recipient by recipient, what the mail server made of it."""
    outbox = call.services.outbox
    key = await _idempotency_key(call)
    if key is not None:
        replay = await outbox.replay(call.session.id, key)
        if replay is not None:
            return _replayed(replay)
    prepared = await prepare(call)
    if not prepared.recipients:
        raise InvalidRequest.at("#/to", "Name at least one recipient in to, cc or bcc.")
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
        save_to_sent=call.body.save_to_sent and not files_own_sent(call.session),
        original=prepared.original,
    )
    result = await outbox.send(submission, key)
    if isinstance(result, StoredResponse):
        return _replayed(result)
    return response_of(result)


async def get_send(call: Call[object, None]) -> Response:
    """What became of a message this session sent."""
    return json_response(
        await call.services.outbox.find(call.session.id, OutboxId(call.path("id")))
    )


def render(result: SendResult) -> StoredResponse:
    """The response to a send that ended so: 202 where it is not known whether the message was delivered."""
    return StoredResponse(
        status=200 if result.state is SendState.SENT else 202,
        headers={"Location": f"/api/send/{result.id}"},
        body=msgspec.json.encode(result),
    )


def response_of(result: SendResult) -> Response:
    rendered = render(result)
    return Response(rendered.body, rendered.status, rendered.headers, "application/json")


def _replayed(stored: StoredResponse) -> Response:
    headers = stored.headers | {"Idempotency-Replayed": "true"}
    return Response(stored.body, stored.status, headers, "application/json")


async def _idempotency_key(call: Call[object, OutgoingMessage]) -> IdempotencyKey | None:
    """The request's key. What it stands for is compared by meaning: order and spacing of the JSON do not matter."""
    keys = call.request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidRequest(
            "An Idempotency-Key is 1 to 255 printable ASCII characters without spaces."
        )
    octets = int(call.request.headers.get("content-length", "0"))
    fingerprint = await off_the_loop(octets, lambda: sha256(_encode(call.body)).digest())
    return IdempotencyKey("POST /api/send", keys[0], fingerprint)


def files_own_sent(session: SessionRecord) -> bool:
    """Whether the session's provider puts what is sent over SMTP into Sent itself."""
    provider = find_provider_by_host(session.smtp.host)
    return provider is not None and provider.files_own_sent


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
        draft = Call(call.request, call.services, call.session, None, message)
        content = (await prepare(draft, keep_bcc=True)).composed.content
        flags = flags if call.query.flags is not None else [DRAFT]
    else:
        raise UnsupportedMediaType("This call takes message/rfc822 or application/json.")
    place = await call.services.actions.append(
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
