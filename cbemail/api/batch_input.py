"""A batch as a client writes it: messages, or a template and its recipients, and what is asked for all of them."""

from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from cbemail.api.codec import decode_json
from cbemail.api.inputs import (
    Addresses,
    AttachmentInput,
    OneAddress,
    SendAt,
    addresses_of,
    attachments_of,
    sender_of,
    text_of,
    within,
)
from cbemail.api.outgoing import OutgoingMessage, files_own_sent
from cbemail.errors import InvalidRequest, PayloadTooLarge
from cbemail.mime.words import is_one_line
from cbemail.outbox.content import MessageTemplate
from cbemail.store.batch_records import MAX_RECIPIENTS, BatchOptions, OnUncertain
from cbemail.store.records import SessionRecord


class OnInvalid(StrEnum):
    SKIP = "skip"
    REJECT = "reject"


class TemplateInput(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A message without recipients. Subject, body, html, values of headers and names of attachments may hold
    ``{{ variables }}``."""

    from_: OneAddress | None = None
    reply_to: Addresses = []
    subject: str | None = None
    body: str | None = None
    text: str | None = None
    html: str | None = None
    attachments: list[AttachmentInput] = []
    headers: dict[str, str] = {}


class RecipientInput(Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a mail merge. ``key`` is your own name for it, which the report repeats."""

    to: Addresses
    cc: Addresses = []
    bcc: Addresses = []
    variables: dict[str, Any] = {}
    key: str | int | None = None


class BatchInput(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every form of a batch may say. ``on_invalid``: whether a recipient that cannot be sent to is left out, or
    refuses all. ``dedupe``: an address that comes twice is left out the second time. ``on_uncertain``: whether a
    message that may have been delivered is held, or sent again."""

    name: Annotated[str, Meta(max_length=200)] | None = None
    send_at: SendAt | None = None
    rate_per_minute: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    on_invalid: OnInvalid = OnInvalid.SKIP
    dedupe: bool = True
    on_uncertain: OnUncertain = OnUncertain.HOLD
    dry_run: bool = False
    save_to_sent: bool = False


class MessagesBatch(BatchInput, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Messages, each as for `POST /api/send`, without a ``send_at`` and a ``save_to_sent`` of its own."""

    messages: Annotated[list[OutgoingMessage], Meta(min_length=1, max_length=MAX_RECIPIENTS)]


class MergeBatch(BatchInput, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A template, and the recipients whose variables it is filled with."""

    template: TemplateInput
    recipients: Annotated[list[RecipientInput], Meta(min_length=1, max_length=MAX_RECIPIENTS)]


class FileBatch(BatchInput, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A template, for the recipients of a file."""

    template: TemplateInput


class BatchForm(Struct, frozen=True):
    """``recipients`` is a file: CSV with a header row, NDJSON or Parquet. Its column `to` or `email` is the address,
    `cc`, `bcc` and `key` are what they are in JSON, and every other column is a variable. The parts may come in either
    order."""

    batch: FileBatch
    recipients: Annotated[str, Meta(extra_json_schema={"format": "binary"})]


class Written(BatchInput, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Any form of a batch, as it is decoded: lists item by item, and later, so that no large one holds up the rest."""

    template: TemplateInput | None = None
    messages: list[Raw] | None = None
    recipients: list[Raw] | None = None


_written = msgspec.json.Decoder(Written)
_canonical = msgspec.json.Encoder(order="sorted").encode

_NOT_IN_A_TEMPLATE = {
    "to": "A template has no recipients: they stand in recipients, each with its variables.",
    "cc": "A template has no recipients: who gets a copy stands with each recipient.",
    "bcc": "A template has no recipients: who gets a copy stands with each recipient.",
    "message_id": "A template has no message_id: each message made from it gets one of its own.",
    "reply": "A template answers no message: what does is no mail merge.",
    "send_at": "The field send_at stands beside template, since it is for all messages.",
    "save_to_sent": "The field save_to_sent stands beside template, since it is for all messages.",
}


def decode_batch(data: bytes | bytearray) -> Written:
    """Raises MalformedJson, InvalidRequest."""
    try:
        return decode_json(data, _written)
    except InvalidRequest as exc:
        for error in exc.errors:
            parent, _, field = error.pointer.rpartition("/")
            if parent == "#/template" and field in _NOT_IN_A_TEMPLATE:
                raise InvalidRequest.at(error.pointer, _NOT_IN_A_TEMPLATE[field]) from exc
        raise


def require_messages_or_recipients(batch: Written) -> None:
    """One form or the other, and somebody to send to."""
    merge = batch.template is not None or batch.recipients is not None
    if merge == (batch.messages is not None):
        raise InvalidRequest("A batch has messages, or a template and recipients: one of the two.")
    if merge and (batch.template is None or batch.recipients is None):
        missing = "template" if batch.template is None else "recipients"
        raise InvalidRequest.at(f"#/{missing}", f"A mail merge needs {missing}.")
    name = "messages" if batch.recipients is None else "recipients"
    count = len(batch.messages or batch.recipients or [])
    if not 0 < count <= MAX_RECIPIENTS:
        raise InvalidRequest.at(f"#/{name}", f"A batch takes 1 to {MAX_RECIPIENTS:,} {name}.")


def require_template_only(batch: Written) -> None:
    """What the part `batch` of a form holds."""
    for name in ("messages", "recipients"):
        if getattr(batch, name) is not None:
            raise InvalidRequest.at(
                f"#/{name}", "With a file of recipients the batch has a template only."
            )
    if batch.template is None:
        raise InvalidRequest.at("#/template", "A mail merge needs template.")


def canonical(batch: Written) -> bytes:
    """What the batch asks for, the same however it is written; but for its lists."""
    return _canonical(msgspec.structs.replace(batch, messages=None, recipients=None))


def digest_of_lists(batch: Written) -> bytes:
    """The SHA-256 of the batch's lists, the same however their items are written."""
    digest = sha256()
    for item in (*(batch.messages or ()), *(batch.recipients or ())):
        digest.update(_canonical_item(item) + b"\n")
    return digest.digest()


def _canonical_item(item: Raw) -> bytes:
    try:
        return _canonical(msgspec.json.decode(item))
    except (ValueError, RecursionError):  # what is no value is compared as it stands
        return bytes(item)


# ---- into what the outbox takes


def name_of(batch: Written) -> str | None:
    if batch.name is not None and not is_one_line(batch.name):
        raise InvalidRequest.at("#/name", "A name must not hold line breaks or control characters.")
    return batch.name


def options_of(batch: Written, session: SessionRecord) -> BatchOptions:
    return BatchOptions(
        rate_per_minute=batch.rate_per_minute,
        max_attempts=batch.max_attempts,
        on_uncertain=batch.on_uncertain,
        save_to_sent=batch.save_to_sent and not files_own_sent(session),
    )


async def template_of(
    batch: Written, session: SessionRecord, *, most: int
) -> MessageTemplate | None:
    """The template, its files decoded. What its expressions may be is for the outbox to say.

    Raises:
        PayloadTooLarge: already as it is, it makes messages of more than ``most`` megabytes.
    """
    template = batch.template
    if template is None:
        return None
    with within("#/template"):
        made = MessageTemplate(
            sender=sender_of(template.from_, session),
            reply_to=addresses_of(template.reply_to, "reply_to"),
            subject=template.subject or "",
            text=text_of(template.body, template.text),
            html=template.html,
            attachments=await attachments_of(template.attachments),
            headers=template.headers,
        )
    octets = sum(len(file.content) for file in made.attachments) * 4 // 3
    octets += len(made.text or "") + len(made.html or "")
    if octets > most * 1024 * 1024:
        raise PayloadTooLarge(
            f"A message may have at most {most} MB, and this template makes more."
        )
    return made
