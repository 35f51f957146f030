"""What the rows of a batch are made from. Both parts are kept as MessagePack, sealed (`outbox/sealing`)."""

from typing import Any

import msgspec
from msgspec import Struct

from cbemail.mime.address import Address
from cbemail.mime.draft import Attachment
from cbemail.outbox.sent import Original


class Recipient(Struct, frozen=True, array_like=True):
    """What is known of one row: its one envelope recipient, and for a mail merge the header and the values that make
    its message. Of a rejected row ``address`` is what the client wrote, cut to a readable length."""

    address: str
    key: str | None = None
    to: list[Address] = []
    cc: list[Address] = []
    variables: dict[str, Any] = {}


class StoredMessage(Struct, frozen=True, tag="stored"):
    """A message composed when it was accepted. ``sender`` is the envelope's; ``smtputf8``: the header needs it."""

    content: bytes
    sender: str
    smtputf8: bool = False
    original: Original | None = (
        None  # the message it answers or forwards, to be flagged when it is sent
    )


class MessageTemplate(Struct, frozen=True, tag="template"):
    """A message whose subject, text, html, header values and attachment names may hold template expressions."""

    sender: Address
    reply_to: list[Address] = []
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = []
    headers: dict[str, str] = {}


Content = StoredMessage | MessageTemplate

encode_content = msgspec.msgpack.Encoder().encode
decode_content = msgspec.msgpack.Decoder(Content).decode
encode_recipient = msgspec.msgpack.Encoder().encode
decode_recipient = msgspec.msgpack.Decoder(Recipient).decode


def place_of_row(row: int) -> str:
    """Where a row's recipient is sealed for (`BatchKey.seal`)."""
    return f"row/{row}"


def place_of_content(number: int, piece: int) -> str:
    return f"content/{number}/{piece}"
