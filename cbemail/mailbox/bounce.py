"""What a bounce is about: for whom the mail did not arrive, why, and which message it was."""

from collections.abc import Mapping

from msgspec import Struct

from cbemail.imap.protocol import Part
from cbemail.mime.delivery import DeliveryReport, DeliveryStatus, read_delivery_report
from cbemail.mime.headers import SummaryHeaders, read_summary_headers
from cbemail.mime.parse import decode_transfer

REPORT_OCTETS = 65_536  # of the report, and of the returned header, that are read

_STATUS = frozenset(("message/delivery-status", "message/global-delivery-status"))
_RETURNED_HEADER = frozenset(("text/rfc822-headers", "message/global-headers"))
_RETURNED = frozenset(("message/rfc822", "message/global"))


class Bounce(Struct, frozen=True):
    """``recipients`` as the message had them; ``message_id`` is that of the message that was sent, if the bounce tells
    it."""

    recipients: list[DeliveryStatus]
    message_id: str | None


def bounce_sections(root: Part | None) -> list[str]:
    """The sections to fetch of a message, so that `read_bounce` can tell what it is about; none if it is no bounce."""
    parts = _parts(root)
    if not any(_media_type(part) in _STATUS for part in parts):
        return []
    return [_section(part) for part in parts]


def read_bounce(
    root: Part | None, sections: Mapping[str, bytes], headers: SummaryHeaders
) -> Bounce:
    """What the bounce under ``headers`` says; where it has no report for machines, what its header does."""
    report = DeliveryReport([], None)
    returned = SummaryHeaders()
    for part in _parts(root):
        data = sections.get(_section(part), b"")
        if _media_type(part) in _STATUS:
            report = read_delivery_report(decode_transfer(data, part.encoding))
        elif _media_type(part) in _RETURNED:
            returned = read_summary_headers(data)
        else:
            returned = read_summary_headers(decode_transfer(data, part.encoding))
    named = [
        DeliveryStatus(recipient.address, "failed", None, None)
        for recipient in headers.failed_recipients
    ]
    answered = headers.in_reply_to or next(reversed(headers.references), None)
    return Bounce(
        recipients=report.recipients or named,
        message_id=returned.message_id or report.message_id or answered,
    )


def _parts(root: Part | None) -> list[Part]:
    """The report and what was returned: one of each, as the sender could put in a thousand."""
    found: dict[bool, Part] = {}
    for part in root.children if root is not None else ():
        media_type = _media_type(part)
        if media_type in _STATUS or media_type in _RETURNED_HEADER | _RETURNED:
            found.setdefault(media_type in _STATUS, part)
    return list(found.values())


def _section(part: Part) -> str:
    return f"{part.id}.HEADER" if _media_type(part) in _RETURNED else part.id


def _media_type(part: Part) -> str:
    return f"{part.type}/{part.subtype}"
