"""What kind of message a message is: a letter, or one of those that mail systems and calendars write."""

from typing import Literal

from cbemail.imap.protocol import Part
from cbemail.mailbox.structure import Layout
from cbemail.mime.headers import SummaryHeaders

Kind = Literal["message", "bounce", "receipt", "invitation", "auto_reply"]

_REPORTS: dict[str, Kind] = {
    "delivery-status": "bounce",  # RFC 3464
    "global-delivery-status": "bounce",  # RFC 6533
    "disposition-notification": "receipt",  # RFC 8098
    "global-disposition-notification": "receipt",
}


def kind_of(root: Part | None, layout: Layout, headers: SummaryHeaders) -> Kind:
    """The kind of a message. A bounce that says it was sent automatically is a bounce; what is none of the kinds, such
    as the answer to an invitation, is a message."""
    report = _report_kind(root) if root is not None and root.children else None
    if report is not None:
        return report
    if headers.failed_recipients:
        return "bounce"
    if layout.attachments and any(map(_invites, layout.attachments)):
        return "invitation"
    return "auto_reply" if headers.is_automatic_reply else "message"


def _report_kind(root: Part) -> Kind | None:
    """Told by the part for machines, wherever it stands at the top: not everybody calls the whole a report. Where it is
    missing, by what the report says it is of (RFC 6522)."""
    for part in root.children:
        if part.type == "message" and part.subtype in _REPORTS:
            return _REPORTS[part.subtype]
    if root.subtype != "report":
        return None
    return _REPORTS.get(root.parameters.get("report-type", b"").decode("ascii", "replace").lower())


def _invites(part: Part) -> bool:
    """An iTIP request (RFC 6047 section 2.4). A calendar file without a method is just a file."""
    return (
        part.type == "text"
        and part.subtype == "calendar"
        and part.parameters.get("method", b"").upper() == b"REQUEST"
    )
