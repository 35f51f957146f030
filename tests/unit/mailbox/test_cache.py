"""What is remembered of rows that were listed before, for how long, and whose they are."""

from msgspec import structs

from cbemail.ids import SessionId
from cbemail.imap.protocol import INBOX, SEEN, FolderPath, Uid, UidValidity
from cbemail.mailbox.cache import Shelf, SummaryCache
from cbemail.mailbox.summary import AttachmentInfo, Summary, with_flags
from cbemail.mime.address import Address

JOE, ANN = SessionId("ses_joe"), SessionId("ses_ann")
SHELF = Shelf(JOE, INBOX, UidValidity(1))


def row(uid: int) -> Summary:
    return Summary(
        uid=Uid(uid),
        folder=INBOX,
        kind="message",
        message_id=None,
        in_reply_to=None,
        subject=f"message {uid}",
        from_=None,
        to=[],
        cc=[],
        bcc=[],
        reply_to=[],
        date=None,
        received_at=None,
        size=1,
        read=False,
        flagged=False,
        answered=False,
        draft=False,
        flags=[],
        has_attachments=False,
        attachments=[],
    )


async def found(cache: SummaryCache, *uids: int, shelf: Shelf = SHELF) -> list[int]:
    """Those of ``uids`` whose rows are known."""
    return [uid for uid in uids if await cache.find(shelf, [Uid(uid)])]


async def test_a_row_is_found_where_it_was_put_and_nowhere_else() -> None:
    cache = SummaryCache()

    cache.put(SHELF, row(7))

    assert await cache.find(SHELF, [Uid(7), Uid(8)]) == {7: row(7)}
    others = [
        Shelf(ANN, INBOX, UidValidity(1)),
        Shelf(JOE, FolderPath("Sent"), UidValidity(1)),
        Shelf(JOE, INBOX, UidValidity(2)),
    ]
    assert [await found(cache, 7, shelf=shelf) for shelf in others] == [[], [], []]


async def test_the_row_used_longest_ago_gives_way() -> None:
    cache = SummaryCache(octets=3 * 2_500)
    for uid in (1, 2, 3):
        cache.put(SHELF, row(uid))
    await found(cache, 1)

    cache.put(SHELF, row(4))

    assert await found(cache, 1, 2, 3, 4) == [1, 3, 4]


async def test_a_row_larger_than_all_there_is_room_for_is_not_kept() -> None:
    cache = SummaryCache(octets=1_000)

    cache.put(SHELF, row(1))

    assert await found(cache, 1) == []


async def test_a_row_takes_the_room_of_all_that_its_sender_put_into_it() -> None:
    cache = SummaryCache(octets=60_000)
    attachment = AttachmentInfo("2", "a.pdf", "application/pdf", 1, inline=False, content_id=None)
    recipient = Address(None, "ann@example.org")
    cache.put(SHELF, row(1))

    cache.put(SHELF, structs.replace(row(2), attachments=[attachment] * 1_000))
    cache.put(SHELF, structs.replace(row(3), to=[recipient] * 2_000, cc=[recipient] * 2_000))

    assert await found(cache, 1, 2, 3) == [1]


async def test_a_session_that_ended_leaves_nothing_and_others_everything() -> None:
    cache = SummaryCache()
    other = Shelf(ANN, INBOX, UidValidity(1))
    cache.put(SHELF, row(1))
    cache.put(other, row(1))

    cache.forget(JOE)
    cache.forget(SessionId("ses_nobody"))

    assert await found(cache, 1) == []
    assert await found(cache, 1, shelf=other) == [1]


def test_flags_are_taken_anew_and_the_rest_stays() -> None:
    now = with_flags(row(1), (SEEN,))

    assert (now.read, now.flags, now.subject) == (True, [SEEN], "message 1")
