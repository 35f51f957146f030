"""A message as a client writes it: what sending and keeping a draft have in common, and the way to a composed one."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from cbemail.api.inputs import (
    Addresses,
    AttachmentInput,
    OneAddress,
    SendAt,
    addresses_of,
    attachments_of,
    sender_of,
    text_of,
)
from cbemail.api.links import content_id_url
from cbemail.api.operation import Call
from cbemail.api.state import Services
from cbemail.errors import PayloadTooLarge
from cbemail.imap.protocol import ANSWERED, Flag, Uid
from cbemail.mailbox.reading import Message
from cbemail.mime.address import Address, envelope_address, needs_smtputf8
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
from cbemail.outbox.content import StoredMessage
from cbemail.outbox.sent import Original
from cbemail.sessions.providers import find_provider_by_host
from cbemail.store.records import SessionRecord
from cbemail.turns import off_the_loop

FORWARDED = Flag("$Forwarded")  # RFC 9051 section 2.3.2


class ReplyInput(Struct, frozen=True, forbid_unknown_fields=True):
    """The message this one answers or forwards. Recipients and subject are made from it where they are not given."""

    uid: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    mode: ReplyMode
    folder: str = "INBOX"
    quote: bool = True


class OutgoingMessage(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A message to send or to keep. ``body`` is plain text, and ``text`` the same; addresses are ``a@b.c``,
    ``Name <a@b.c>`` or objects, one or a list. A copy goes into Sent unless ``save_to_sent`` is false."""

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
    save_to_sent: bool | None = None
    send_at: SendAt | None = None
    message_id: str | None = None


class Prepared(Struct, frozen=True):
    """A message ready to go: composed, with its envelope recipients, each of them once, and what it answers."""

    draft: Draft
    to: list[Address]
    cc: list[Address]
    bcc: list[Address]
    composed: Composed
    original: Original | None

    @property
    def sender(self) -> Address:
        return self.draft.sender

    @property
    def recipients(self) -> list[Address]:
        return [*self.to, *self.cc, *self.bcc]

    @property
    def stored(self) -> StoredMessage:
        """As the outbox keeps it, to be sent later."""
        return StoredMessage(
            content=self.composed.content,
            sender=envelope_address(self.sender.address),
            smtputf8=self.composed.needs_smtputf8 or needs_smtputf8(self.sender.address),
            original=self.original,
        )


def max_send_body(services: Services) -> int:
    """Octets of JSON that a message of the largest size can need: base64 adds a third, escapes and addresses some."""
    return services.settings.max_message_mb * 1024 * 1024 * 3 // 2 + 1024 * 1024


async def prepare(
    call: Call[Any, OutgoingMessage],
    *,
    keep_bcc: bool = False,
    date: datetime | None = None,
) -> Prepared:
    """Validate and compose the message of a call. ``date`` is the one it bears, where that is not now.

    Raises:
        InvalidRequest: a value is wrong; the pointer says which.
        MessageNotFound, FolderNotFound: the original of a reply is not there.
        PayloadTooLarge: it is larger than MAX_MESSAGE_MB.
    """
    body, session = call.body, call.session
    sender = sender_of(body.from_, session)
    to, cc, bcc = (addresses_of(getattr(body, name), name) for name in ("to", "cc", "bcc"))
    draft = Draft(
        sender=sender,
        to=to,
        cc=cc,
        bcc=bcc,
        reply_to=addresses_of(body.reply_to, "reply_to"),
        subject=body.subject or "",
        text=text_of(body.body, body.text),
        html=body.html,
        attachments=await attachments_of(body.attachments),
        headers=body.headers,
        in_reply_to=None,
        references=[],
        message_id=body.message_id or new_message_id(sender.address.rpartition("@")[2]),
        date=date or call.services.clock(),
    )
    original: Original | None = None
    if body.reply is not None:
        draft, original = await _answer(call, body.reply, draft)
    composed = await _compose(draft, keep_bcc=keep_bcc)
    require_size(call.services, composed.content)
    to, cc, bcc = _distinct(draft.to, draft.cc, draft.bcc)
    return Prepared(draft, to, cc, bcc, composed, original)


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


def files_own_sent(session: SessionRecord) -> bool:
    """Whether the session's provider puts what is sent over SMTP into Sent itself."""
    provider = find_provider_by_host(session.smtp.host)
    return provider is not None and provider.files_own_sent


def _distinct(*lists: Sequence[Address]) -> list[list[Address]]:
    """Each mailbox where it first stands: one copy is enough for who is in both To and Cc."""
    seen: set[str] = set()
    distinct: list[list[Address]] = []
    for addresses in lists:
        kept: list[Address] = []
        for address in addresses:
            if address.address.casefold() not in seen:
                seen.add(address.address.casefold())
                kept.append(address)
        distinct.append(kept)
    return distinct


# ---- replies


async def _answer(
    call: Call[Any, OutgoingMessage], reply: ReplyInput, draft: Draft
) -> tuple[Draft, Original]:
    """``draft`` as the reply or forward it is: what the caller gave stays, the rest comes from the original."""
    session, reader = call.session, call.services.mailbox.reader
    message = await reader.message(
        session.id, reply.folder, Uid(reply.uid), part_url=content_id_url
    )
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


# Of what a summary is made from, all but what it shows as its kind.
_SHOWN_HEADERS = [
    name for name in SummaryHeaders.__struct_fields__ if name in Message.__struct_fields__
]


def _headers_of(message: Message) -> SummaryHeaders:
    shown = {name: getattr(message, name) for name in _SHOWN_HEADERS}
    return SummaryHeaders(**shown)


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
        async with call.services.mailbox.parts.attachment(
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
