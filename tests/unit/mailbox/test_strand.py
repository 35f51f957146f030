from __future__ import annotations

from cbemail.imap.protocol import FolderPath, Uid, UidValidity
from cbemail.mailbox.strand import AccountPosition, Strand

INBOX, VALIDITY = FolderPath("INBOX"), UidValidity(7)
SECONDS = {
    Uid(uid): 100 - uid for uid in range(1, 10)
}  # the higher the UID, the earlier it arrived
UIDS = [Uid(uid) for uid in range(1, 10)]  # so this is newest first


def sorted_by_server() -> Strand:
    return Strand(INBOX, VALIDITY, UIDS)


def uids(strand: Strand, after: AccountPosition | None = None) -> list[int]:
    return [position.uid for position in strand.behind(after)]


def test_what_has_dates_is_put_in_order_by_them_and_by_uid() -> None:
    strand = Strand(INBOX, VALIDITY, map(Uid, (4, 1, 3, 2)), {Uid(1): 9, Uid(2): 5, Uid(3): 5})

    assert uids(strand) == [1, 3, 2, 4]  # the last is gone by now: nobody knows when it arrived
    assert strand.undated(100, None) == []


def test_of_what_the_server_sorted_only_as_many_are_dated_as_are_shown() -> None:
    strand = sorted_by_server()
    asked = []

    for shown in (1, 2, 4):
        asked.append(strand.undated(shown, None))
        strand.date(asked[-1], SECONDS)

    assert asked == [[1], [2, 3], [4, 5, 6, 7]]
    assert uids(strand) == [1, 2, 3, 4, 5, 6, 7]
    assert len(strand) == 9


def test_a_page_begins_behind_the_last_one() -> None:
    strand = sorted_by_server()
    strand.date(UIDS, SECONDS)

    places = list(strand.behind(None))

    assert [uids(strand, place) for place in places] == [
        list(range(u + 1, 10)) for u in range(1, 10)
    ]


def test_a_page_begins_behind_a_message_of_another_folder() -> None:
    strand = sorted_by_server()
    strand.date(UIDS, SECONDS)

    before = AccountPosition(97, FolderPath("Archive"), UidValidity(1), Uid(1))
    behind = AccountPosition(97, FolderPath("Sent"), UidValidity(1), Uid(1))

    assert uids(strand, before) == [3, 4, 5, 6, 7, 8, 9]
    assert uids(strand, behind) == [4, 5, 6, 7, 8, 9]


def test_more_are_dated_until_there_are_enough_behind_the_last_page() -> None:
    strand = sorted_by_server()
    strand.date(UIDS[:4], SECONDS)
    after = AccountPosition(96, INBOX, VALIDITY, Uid(4))

    assert strand.undated(2, after) == [5, 6, 7, 8]
    assert strand.undated(2, AccountPosition(98, INBOX, VALIDITY, Uid(2))) == []


def test_dates_are_learnt_once_though_two_requests_asked() -> None:
    strand = sorted_by_server()

    strand.date(UIDS[:3], SECONDS)
    strand.date(UIDS[:3], SECONDS)

    assert uids(strand) == [1, 2, 3]


def test_what_the_server_sorted_wrongly_keeps_its_place_and_is_shown_once() -> None:
    strand = sorted_by_server()
    strand.date(UIDS, {Uid(uid): uid * 10 for uid in UIDS})

    places = list(strand.behind(None))

    assert [place.uid for place in places[:1]] == [1]
    seen = [places[0].uid]
    while rest := list(strand.behind(places[len(seen) - 1])):
        seen.append(rest[0].uid)
    assert sorted(seen) == UIDS


def test_a_folder_that_fails_ends_where_its_dates_end() -> None:
    strand = sorted_by_server()
    strand.date(UIDS[:2], SECONDS)

    strand.end_here()

    assert (len(strand), uids(strand), strand.undated(100, None)) == (2, [1, 2], [])
