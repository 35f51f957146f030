"""The conversation of a message: as the server threads its folder, and by the same rules where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from msgspec import Struct

from cbemail.errors import InvalidRequest, MessageNotFound
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.messages import fetch, search
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FetchData, FolderPath, Uid, UidValidity
from cbemail.imap.repeating import repeatable
from cbemail.imap.search import SearchProgram
from cbemail.imap.threads import find_thread
from cbemail.imap.wire import Argument, Literal, astring
from cbemail.mailbox.listing import FolderListing
from cbemail.mailbox.summary import Summary, Unreadable
from cbemail.mime.headers import read_summary_headers
from cbemail.mime.thread import Conversation, ThreadHeaders, conversations
from cbemail.turns import off_the_loop

THREAD_ROWS = 500  # of one answer: the latest, and the message that was asked about

# What finding a conversation without the server's help may cost: searches, the ids in each, and the messages whose
# headers are looked at. Letters that quote their thread's ids are found by the first search, by its root; the others are
# for what only answers an answer, or has another subject.
ROUNDS = 6
IDS_A_SEARCH = 10
CANDIDATES = 1_000
LONGEST_ID = 250  # octets: more is no id that a mail program wrote, and command lines are short
SUBJECT_WORDS = 5  # the longest of a subject, that are searched for

_THREAD_ITEMS = b"INTERNALDATE BODY.PEEK[HEADER.FIELDS (DATE SUBJECT MESSAGE-ID IN-REPLY-TO REFERENCES)]<0.65536>"
_ID_FIELDS = ("Message-ID", "References", "In-Reply-To")
_UNDATED = datetime(1970, 1, 1, tzinfo=UTC)


class Thread(Struct, frozen=True):
    """Rows, the oldest first. ``truncated`` tells that there are more than those."""

    folder: FolderPath
    uid_validity: UidValidity
    messages: list[Summary | Unreadable]
    truncated: bool


class _Members(Struct, frozen=True):
    uid_validity: UidValidity
    uids: Sequence[Uid]


class ThreadReader:
    """Conversations within a folder. Nothing here changes a message."""

    def __init__(self, pool: ImapPool, directory: FolderDirectory, listing: FolderListing) -> None:
        self._pool = pool
        self._directory = directory
        self._listing = listing

    async def thread(
        self, session_id: SessionId, folder_name: str, uid: Uid, *, snippets: bool = False
    ) -> Thread:
        """The messages of the folder that are of one conversation with ``uid``, which is always among them.

        Gmail has conversations of its own. Elsewhere they are those of RFC 5256's REFERENCES: who answers whom, and
        who shares a base subject.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def find(imap: ImapConnection) -> _Members:
            assert imap.selected is not None  # noqa: S101 - leased with a folder
            self._directory.require_shown(session_id, imap)
            members = await find_thread(imap, uid)
            if members is None:
                members = await _search_thread(imap, uid)
            return _Members(imap.selected.uid_validity, members)

        found = await repeatable(self._pool, session_id, folder, find)
        uids = {*sorted(found.uids)[-THREAD_ROWS:], uid}
        rows = await self._listing.rows(
            session_id, folder, found.uid_validity, sorted(uids), snippets=snippets
        )
        if not any(row.uid == uid for row in rows):
            raise MessageNotFound("The message was deleted while its conversation was looked for.")
        rows.sort(key=_moment)
        return Thread(folder, found.uid_validity, rows, len(found.uids) > len(uids))


def _moment(row: Summary | Unreadable) -> tuple[datetime, Uid]:
    """When a message was sent, or else arrived. One that cannot be read has its place by its UID alone."""
    date = (row.date or row.received_at) if isinstance(row, Summary) else None
    return date or _UNDATED, row.uid


# ---- where the server does not thread


async def _search_thread(imap: ImapConnection, uid: Uid) -> list[Uid]:
    """Follow the conversation from ``uid``: whom its messages name, who names them, and who shares their subject."""
    headers: dict[Uid, ThreadHeaders] = {}
    asked: set[str] = set()  # ids and subjects, which no id can be
    found: set[Uid] = {uid}
    rounds = 0
    while True:
        rows = await fetch(imap, found - headers.keys(), _THREAD_ITEMS)
        headers |= {each: _headers(each, row) for each, row in rows.items()}
        if uid not in headers:
            raise MessageNotFound(f"There is no message {uid} in this folder.")
        conversation = await _conversation(headers, uid)
        ids = _open_ids(conversation, headers, asked)[:IDS_A_SEARCH]
        subject = conversation.subject if conversation.subject not in asked else ""
        rounds += 1
        if rounds > ROUNDS or not (ids or subject):
            return [Uid(each) for each in sorted(conversation.uids)]
        asked.update([*ids, subject])
        found = {*await _with_ids(imap, ids), *await _with_subject(imap, subject)}


def _headers(uid: Uid, row: FetchData) -> ThreadHeaders:
    read = read_summary_headers(row.sections.get("HEADER.FIELDS", b""))
    return ThreadHeaders(
        uid=uid,
        message_id=read.message_id,
        references=read.references,
        in_reply_to=read.in_reply_to,
        subject=read.subject or "",
        date=read.date or row.internal_date or _UNDATED,
    )


async def _conversation(headers: dict[Uid, ThreadHeaders], uid: Uid) -> Conversation:
    octets = 1_000 * len(headers)  # a message costs about what so many octets of other work do
    threads = await off_the_loop(octets, partial(conversations, list(headers.values())))
    return next(each for each in threads if uid in each.uids)


def _open_ids(
    conversation: Conversation, headers: dict[Uid, ThreadHeaders], asked: set[str]
) -> list[str]:
    """The ids the conversation names that were not asked about, those first that find most: of the thread's beginning,
    then of messages that are missing, then of the others."""
    known = {each.message_id for each in headers.values()}
    ids: dict[str, tuple[bool, bool]] = {}
    for uid in sorted(conversation.uids):
        chain = [*headers[Uid(uid)].parents(), headers[Uid(uid)].message_id]
        for place, each in enumerate(chain):
            if each is not None and each not in asked and _can_be_searched(each):
                ids.setdefault(each, (place > 0, each in known))
    return sorted(ids, key=ids.__getitem__)


def _can_be_searched(message_id: str) -> bool:
    return message_id.isascii() and len(message_id) <= LONGEST_ID


async def _with_ids(imap: ImapConnection, ids: Sequence[str]) -> list[Uid]:
    """Messages that have one of ``ids``, or name it."""
    if not ids:
        return []
    alternatives = [
        (b"HEADER", name.encode(), astring(each)) for each in ids for name in _ID_FIELDS
    ]
    keys: list[Argument] = []
    for key in alternatives[:-1]:
        keys += (b"OR", *key)
    found = await search(imap, SearchProgram((*keys, *alternatives[-1])))
    return found.newest(CANDIDATES)


async def _with_subject(imap: ImapConnection, subject: str) -> list[Uid]:
    """Messages that have the longest words of ``subject`` in theirs; they are compared with care afterwards."""
    if not subject:
        return []
    words = sorted(dict.fromkeys(subject.split()), key=len, reverse=True)[:SUBJECT_WORDS]
    keys: list[Argument] = []
    for word in words:
        keys += (b"SUBJECT", astring(word[:LONGEST_ID]))
    is_ascii = not any(isinstance(key, Literal) for key in keys)
    try:
        found = await search(imap, SearchProgram(tuple(keys), None if is_ascii else "UTF-8"))
    except InvalidRequest:  # a server that searches for ASCII only: by the ids alone, then
        return []
    return found.newest(CANDIDATES)
