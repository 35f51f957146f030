"""A message as a client writes it: what sending and keeping a draft have in common, and the way to a composed one."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Collection, Sequence
from functools import partial
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from cbemail.api.links import content_id_url
from cbemail.api.operation import Call
from cbemail.api.state import Services
from cbemail.errors import InvalidRequest, PayloadTooLarge
from cbemail.imap.protocol import ANSWERED, Flag, Uid
from cbemail.mailbox.view import Message
from cbemail.mime.address import Address, check_address, parse_address
from cbemail.mime.compose import Composed, compose, new_message_id
from cbemail.mime.draft import Attachment, Draft
from cbemail.mime.headers import SummaryHeaders
from cbemail.mime.html import text_to_html
from cbemail.mime.reply import (
    ReplyMode,
    forward_html,
    forward_text,
    quote_html,
    quote_text,
    reply_recipients,
    reply_subject,
    threading_of,
)
from cbemail.outbox.sent import Original
from cbemail.store.records import SessionRecord
from cbemail.turns import off_the_loop

MAX_RECIPIENTS = (
    1000  # of one message; more are a batch, where each has a copy, and a state, of its own
)
FORWARDED = Flag("$Forwarded")  # RFC 9051 section 2.3.2


class AddressInput(Struct, frozen=True, forbid_unknown_fields=True):
    """An address in its parts."""

    address: str
    name: str | None = None


OneAddress = str | AddressInput
Addresses = str | AddressInput | list[str | AddressInput] | None


class AttachmentInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A file: ``content`` in base64. With a ``content_id`` it is shown where the HTML says ``cid:`` and that id."""

    filename: str
    content: str
    content_type: str = ""
    content_id: str | None = None


class ReplyInput(Struct, frozen=True, forbid_unknown_fields=True):
    """The message this one answers or forwards. Recipients and subject are made from it where they are not given."""

    uid: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    mode: ReplyMode
    folder: str = "INBOX"
    quote: bool = True


class OutgoingMessage(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A message to send or to keep. ``body`` is plain text, and ``text`` the same; addresses are ``a@b.c``,
    ``Name <a@b.c>`` or objects, one or a list."""

    to: Addresses = []
    cc: Addresses = []
    bcc: Addresses = []
    from_: OneAddress | None = None
    reply_to: Addresses = []
    subject: str | None = None
    body: str | None = None
    text: str | None = None
    html: str | None = None
    attachments: list[AttachmentInput] = []
    headers: dict[str, str] = {}
    reply: ReplyInput | None = None
    save_to_sent: bool = True
    message_id: str | None = None


class Prepared(Struct, frozen=True):
    """A message ready to go: composed, with its envelope recipients, and what it answers."""

    sender: Address
    recipients: list[Address]
    composed: Composed
    original: Original | None


def max_send_body(services: Services) -> int:
    """Octets of JSON that a message of the largest size can need: base64 adds a third, escapes and addresses some."""
    return services.settings.max_message_mb * 1024 * 1024 * 3 // 2 + 1024 * 1024


async def prepare(call: Call[Any, OutgoingMessage], *, keep_bcc: bool = False) -> Prepared:
    """Validate and compose the message of a call.

    Raises:
        InvalidRequest: a value is wrong; the pointer says which.
        MessageNotFound, FolderNotFound: the original of a reply is not there.
        PayloadTooLarge: it is larger than MAX_MESSAGE_MB.
    """
    body, session = call.body, call.session
    sender = _sender(body, session)
    to, cc, bcc = (_addresses(getattr(body, name), name) for name in ("to", "cc", "bcc"))
    draft = Draft(
        sender=sender,
        to=to,
        cc=cc,
        bcc=bcc,
        reply_to=_addresses(body.reply_to, "reply_to"),
        subject=body.subject or "",
        text=_text(body),
        html=body.html,
        attachments=await _attachments(body.attachments),
        headers=body.headers,
        in_reply_to=None,
        references=[],
        message_id=body.message_id or new_message_id(sender.address.rpartition("@")[2]),
        date=call.services.clock(),
    )
    original: Original | None = None
    if body.reply is not None:
        draft, original = await _answer(call, body.reply, draft)
    composed = await _compose(draft, keep_bcc=keep_bcc)
    require_size(call.services, composed.content)
    return Prepared(sender, _distinct([*draft.to, *draft.cc, *draft.bcc]), composed, original)


def require_size(services: Services, content: bytes) -> None:
    """A message of at most MAX_MESSAGE_MB; PayloadTooLarge otherwise."""
    limit = services.settings.max_message_mb * 1024 * 1024
    if len(content) > limit:
        raise PayloadTooLarge(f"The message is {len(content)} octets, and may have {limit}.")


async def _compose(draft: Draft, *, keep_bcc: bool) -> Composed:
    size = (
        sum(len(a.content) for a in draft.attachments)
        + len(draft.html or "")
        + len(draft.text or "")
    )
    return await off_the_loop(size, lambda: compose(draft, keep_bcc=keep_bcc))


# ---- values


def _sender(body: OutgoingMessage, session: SessionRecord) -> Address:
    """The session's own address. Another would be a forgery, or at best refused by the server."""
    if body.from_ is None:
        return Address(session.name, session.email)
    sender = _address(body.from_, "#/from")
    if sender.address.casefold() != session.email.casefold():
        raise InvalidRequest.at("#/from", f"This session sends as {session.email} only.")
    return Address(sender.name or session.name, session.email)


def _address(value: OneAddress, pointer: str) -> Address:
    try:
        if isinstance(value, str):
            return parse_address(value)
        return check_address(Address(value.name, value.address))
    except ValueError as exc:
        raise InvalidRequest.at(pointer, str(exc)) from exc


def _addresses(value: Addresses, name: str) -> list[Address]:
    if value is None:
        return []
    if not isinstance(value, list):
        return [_address(value, f"#/{name}")]
    if len(value) > MAX_RECIPIENTS:
        raise InvalidRequest.at(
            f"#/{name}", f"One message takes at most {MAX_RECIPIENTS} recipients."
        )
    return [_address(one, f"#/{name}/{index}") for index, one in enumerate(value)]


def _text(body: OutgoingMessage) -> str | None:
    if body.body is not None and body.text is not None:
        raise InvalidRequest.at(
            "#/text", "The field text is another name for body: give one of them."
        )
    return body.body if body.body is not None else body.text


async def _attachments(given: Sequence[AttachmentInput]) -> list[Attachment]:
    attachments = []
    for index, item in enumerate(given):
        try:
            content = await off_the_loop(len(item.content), partial(_decoded, item.content))
        except (Base64Error, ValueError) as exc:
            raise InvalidRequest.at(
                f"#/attachments/{index}/content", "This is not valid base64."
            ) from exc
        attachments.append(Attachment(item.filename, content, item.content_type, item.content_id))
    return attachments


def _decoded(content: str) -> bytes:
    return b64decode("".join(content.split()), validate=True)


def _distinct(addresses: Sequence[Address]) -> list[Address]:
    """Each mailbox once, in order: one copy is enough for who stands in both To and Cc."""
    return list({address.address.casefold(): address for address in reversed(addresses)}.values())[
        ::-1
    ]


# ---- replies


async def _answer(
    call: Call[Any, OutgoingMessage], reply: ReplyInput, draft: Draft
) -> tuple[Draft, Original]:
    """``draft`` as the reply or forward it is: what the caller gave stays, the rest comes from the original."""
    session, view = call.session, call.services.view
    message = await view.message(session.id, reply.folder, Uid(reply.uid), part_url=content_id_url)
    headers = _headers_of(message)
    forward = reply.mode == "forward"
    in_reply_to, references = threading_of(headers)
    changes: dict[str, Any] = {"in_reply_to": in_reply_to, "references": references}
    if not forward and not (draft.to or draft.cc):
        changes["to"], changes["cc"] = reply_recipients(headers, [session.email], reply.mode)
    if call.body.subject is None:
        changes["subject"] = reply_subject(message.subject, reply.mode)
    if reply.quote:
        changes |= _quoted(draft, message, headers, forward=forward)
    shown = {info.id for info in message.attachments if info.inline and info.content_id}
    carried = {info.id for info in message.attachments} if forward else set()
    if changes.get("html") is not None:
        carried |= shown  # what the quoted HTML shows must travel with it
    files = await _carried_files(call, message, carried)
    changes["attachments"] = [*draft.attachments, *files]
    flag = FORWARDED if forward else ANSWERED
    original = Original(message.folder, message.uid, message.uid_validity, flag)
    return structs.replace(draft, **changes), original


def _headers_of(message: Message) -> SummaryHeaders:
    names = SummaryHeaders.__struct_fields__
    return SummaryHeaders(**{name: getattr(message, name) for name in names})


def _quoted(
    draft: Draft, message: Message, headers: SummaryHeaders, *, forward: bool
) -> dict[str, str | None]:
    """The caller's bodies with the original below. HTML only where the caller wrote HTML, or wrote nothing."""
    quote_as_text, quote_as_html = (
        (forward_text, forward_html) if forward else (quote_text, quote_html)
    )
    original_html = message.html if message.html is not None else text_to_html(message.text or "")
    text = html = None
    if draft.text is not None or draft.html is None:
        text = f"{draft.text or ''}\n\n{quote_as_text(message.text or '', headers)}"
    if draft.html is not None:
        html = f"{draft.html}<br>\n{quote_as_html(original_html, headers)}"
    return {"text": text, "html": html}


async def _carried_files(
    call: Call[Any, OutgoingMessage], message: Message, part_ids: Collection[str]
) -> list[Attachment]:
    """Attachments of the original, read once more from the server."""
    files = []
    room = call.services.settings.max_message_mb * 1024 * 1024
    for info in message.attachments:
        if info.id not in part_ids:
            continue
        chunks: list[bytes] = []
        async with call.services.view.attachment(
            call.session.id, message.folder, message.uid, info.id
        ) as part:
            async for chunk in part.chunks:
                room -= len(chunk)
                if room < 0:
                    raise PayloadTooLarge("The original's attachments are too large to send on.")
                chunks.append(chunk)
        files.append(
            Attachment(part.filename, b"".join(chunks), part.content_type, info.content_id)
        )
    return files
