"""`/api/mailbox/messages`: listing, reading and changing single messages."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.responses import Response

from cbemail.api.codec import decode_cursor, encode_cursor, json_response
from cbemail.api.links import part_url
from cbemail.api.operation import Call
from cbemail.api.rows import Row
from cbemail.errors import InvalidRequest
from cbemail.imap.protocol import FolderPath, UidValidity
from cbemail.imap.search import SearchFilter
from cbemail.mailbox.actions import flag_change
from cbemail.mailbox.everywhere import EVERYWHERE, Skipped
from cbemail.mailbox.finding import Position
from cbemail.mailbox.strand import AccountPosition

Limit = Annotated[int, Meta(ge=1, le=200)]


class InFolder(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the message is: a full path, or a special use such as ``\\Sent``."""

    folder: str = "INBOX"


class ListMessages(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The folder, the page, and filters, all of which a message must fit. ``since`` and ``before`` are dates of arrival
    (a time of day is left aside), ``larger`` and ``smaller`` octets, ``header`` is ``Name: text``; ``q`` is a small
    language: ``from:ann subject:"q3 report" is:unread has:attachment newer:7d larger:1M -label``."""

    folder: str = "INBOX"
    limit: Limit = 50
    cursor: str | None = None
    read: bool | None = None
    flagged: bool | None = None
    answered: bool | None = None
    from_: str | None = None
    to: str | None = None
    cc: str | None = None
    subject: str | None = None
    text: str | None = None
    body: str | None = None
    since: str | None = None
    before: str | None = None
    larger: int | None = None
    smaller: int | None = None
    has_attachments: bool | None = None
    header: str | None = None
    q: str | None = None
    snippet: bool = False

    def criteria(self) -> SearchFilter:
        """The filters, as the search takes them."""
        return SearchFilter(
            read=self.read,
            flagged=self.flagged,
            answered=self.answered,
            from_=self.from_,
            to=self.to,
            cc=self.cc,
            subject=self.subject,
            text=self.text,
            body=self.body,
            since=_day(self.since, "since"),
            before=_day(self.before, "before"),
            larger=self.larger,
            smaller=self.smaller,
            has_attachments=self.has_attachments,
            header=_header(self.header),
            q=self.q,
        )


def _day(value: str | None, name: str) -> date | None:
    """A date. Of a time, the day (UTC) that leaves out nothing that was meant: IMAP searches by the day (RFC 9051
    section 6.4.4)."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC)
        within_day = name == "before" and moment.time() != time.min
        return moment.date() + timedelta(days=within_day)
    except (ValueError, OverflowError) as exc:
        raise InvalidRequest.at(f"#/{name}", "Write a date as 2026-01-31.") from exc


def _header(value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    name, _, text = value.partition(":")
    return name.strip(), text.strip()


class MessagePage(Struct, frozen=True):
    """One page, newest first. ``total`` counts all messages that fit the filters.

    With ``folder=*`` that is the ``folder`` of the page as well, each row names its own, and ``uid_validity`` is null;
    ``skipped`` are folders that the mail server could not search, whose messages are missing from the list.
    """

    folder: FolderPath
    uid_validity: UidValidity | None
    total: int
    messages: list[Row]
    next_cursor: str | None
    skipped: list[Skipped]


class GetMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """``html=raw`` gives the HTML as it was sent, which is not safe to show. ``reply_only`` is for the text of replies;
    what is not certain to be quoted stays in it."""

    folder: str = "INBOX"
    mark_read: bool = False
    reply_only: bool = False
    html: Literal["safe", "raw"] = "safe"


class DeleteMessage(Struct, frozen=True, forbid_unknown_fields=True):
    folder: str = "INBOX"
    permanent: bool = False


class Destination(Struct, frozen=True, forbid_unknown_fields=True):
    """The folder to move or copy to; it must exist."""

    destination: str


class Mark(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; ``add_flags`` and ``remove_flags`` take any IMAP flag or keyword."""

    read: bool | None = None
    flagged: bool | None = None
    answered: bool | None = None
    add_flags: list[str] = []
    remove_flags: list[str] = []


async def list_messages(call: Call[ListMessages, None]) -> Response:
    """A page of a folder, newest first; or, with ``folder=*``, of every folder but trash and junk. Pages stay stable
    while mail arrives."""
    query = call.query
    if query.folder == EVERYWHERE:
        return await _list_account(call)
    page = await call.services.mailbox.listing.page(
        call.session.id,
        query.folder,
        query.criteria(),
        limit=query.limit,
        after=decode_cursor(query.cursor, Position) if query.cursor is not None else None,
        snippets=query.snippet,
    )
    cursor = encode_cursor(page.end) if page.end is not None else None
    answer = MessagePage(page.folder, page.uid_validity, page.total, page.messages, cursor, [])
    return json_response(answer)


async def _list_account(call: Call[ListMessages, None]) -> Response:
    query = call.query
    page = await call.services.mailbox.account.page(
        call.session.id,
        query.criteria(),
        limit=query.limit,
        after=decode_cursor(query.cursor, AccountPosition) if query.cursor is not None else None,
        snippets=query.snippet,
    )
    cursor = encode_cursor(page.end) if page.end is not None else None
    folder = FolderPath(EVERYWHERE)
    return json_response(MessagePage(folder, None, page.total, page.messages, cursor, page.skipped))


async def get_message(call: Call[GetMessage, None]) -> Response:
    """One message: its summary, decoded text, HTML made safe to show, and header."""
    message = await call.services.mailbox.reader.message(
        call.session.id,
        call.query.folder,
        call.uid,
        mark_read=call.query.mark_read,
        raw_html=call.query.html == "raw",
        reply_only=call.query.reply_only,
        part_url=part_url,
    )
    return json_response(message)


async def delete_message(call: Call[DeleteMessage, None]) -> Response:
    """Move to the trash; or remove for good, where it is there already, there is none, or ``permanent=true``."""
    deleted = await call.services.mailbox.actions.delete(
        call.session.id,
        call.query.folder,
        call.uid,
        permanent=call.query.permanent,
    )
    return json_response(deleted)


async def move_message(call: Call[InFolder, Destination]) -> Response:
    """Move a message and say where it is now."""
    place = await call.services.mailbox.actions.move(
        call.session.id, call.query.folder, call.uid, call.body.destination
    )
    return json_response(place)


async def copy_message(call: Call[InFolder, Destination]) -> Response:
    """Copy a message and say where the copy is."""
    place = await call.services.mailbox.actions.copy(
        call.session.id, call.query.folder, call.uid, call.body.destination
    )
    return json_response(place)


async def mark_message(call: Call[InFolder, Mark]) -> Response:
    """Change a message's flags, and give them as the server now has them."""
    body = call.body
    change = flag_change(
        read=body.read,
        flagged=body.flagged,
        answered=body.answered,
        add_flags=body.add_flags,
        remove_flags=body.remove_flags,
    )
    marked = await call.services.mailbox.actions.mark(
        call.session.id, call.query.folder, call.uid, change
    )
    return json_response(marked)
