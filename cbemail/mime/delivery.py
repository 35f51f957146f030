"""Delivery status notifications (RFC 3464): which recipient's mail did not arrive, and why. Total and bounded."""

import re

from msgspec import Struct

from cbemail.mime import limits
from cbemail.mime.headers import HeaderField, read_header_block, read_message_ids
from cbemail.mime.words import decode_text

_BLANK_LINE = re.compile(rb"\n[ \t]*\r?\n")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")  # RFC 3463 2
_UNICODE = re.compile(
    r"\\x\{(10[0-9A-F]{4}|[0-9A-F]{1,5})\}"
)  # RFC 6533 3: what an ASCII field cannot hold


class DeliveryStatus(Struct, frozen=True):
    """What became of a message for one recipient. ``address`` is the one it was sent to, as far as the report says.

    ``action`` is ``failed``, ``delayed``, ``delivered``, ``relayed`` or ``expanded``; ``status`` the enhanced code, such
    as ``5.1.1``; ``diagnostic`` what the other server said, in its words.
    """

    address: str
    action: str | None
    status: str | None
    diagnostic: str | None


class DeliveryReport(Struct, frozen=True):
    """A report, which may be about many recipients; ``message_id`` is that of the message, if the report has it."""

    recipients: list[DeliveryStatus]
    message_id: str | None


def read_delivery_report(data: bytes) -> DeliveryReport:
    """The content of a message/delivery-status part: fields of the message, then groups of fields, one a recipient."""
    groups = _BLANK_LINE.split(data.strip()[: limits.HEADER_BLOCK], limits.REPORTED)[
        : limits.REPORTED
    ]
    message_id: str | None = None
    recipients: list[DeliveryStatus] = []
    for group in groups:
        fields = _by_name(read_header_block(group))
        recipient = _read_recipient(fields)
        if recipient is not None:
            recipients.append(recipient)
        elif message_id is None:  # no standard field; Gmail's, and others'
            named = fields.get("original-message-id") or fields.get("x-original-message-id", b"")
            message_id = next(iter(read_message_ids(named)), None)
    return DeliveryReport(recipients, message_id)


def _by_name(fields: list[HeaderField]) -> dict[str, bytes]:
    """The first of each name, in lower case."""
    return {field.name.lower(): field.value for field in reversed(fields)}


def _read_recipient(fields: dict[str, bytes]) -> DeliveryStatus | None:
    """What the sender called the recipient counts, before what a forwarding made of it (RFC 3464 2.3.1)."""
    address = _typed(fields.get("original-recipient")) or _typed(fields.get("final-recipient"))
    if not address:
        return None
    status = _STATUS.search(decode_text(fields.get("status", b"")))
    return DeliveryStatus(
        address=_UNICODE.sub(_character, address).strip("<>"),
        action=decode_text(fields.get("action", b"")).partition("(")[0].strip().lower() or None,
        status=status[0] if status else None,
        diagnostic=_typed(fields.get("diagnostic-code")),
    )


def _typed(value: bytes | None) -> str | None:
    """The value behind its type: ``rfc822; ann@example.org``, ``smtp; 550 5.1.1 Unknown user``."""
    if value is None:
        return None
    text = decode_text(value)
    kind, separator, rest = text.partition(";")
    return (rest if separator and " " not in kind.strip() else text).strip() or None


def _character(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return "\ufffd" if 0xD800 <= number < 0xE000 or not number else chr(number)
