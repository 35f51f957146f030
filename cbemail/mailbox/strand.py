"""What a search has found in one folder, as a strand of the account's list: in the order of arrival, newest first."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from cbemail.imap.protocol import FolderPath, Uid, UidValidity


class AccountPosition(Struct, frozen=True):
    """Where a message stands in the account's list: by its arrival, in seconds since 1970, by its folder, and by its
    UID. No two messages stand in the same place, so a page can begin behind any of them.

    ``received_at`` is None where the account is listed as one folder, in which the UID alone says where.
    """

    received_at: int | None
    folder: FolderPath
    uid_validity: UidValidity
    uid: Annotated[Uid, Meta(ge=1, le=2**32 - 1)]

    @property
    def rank(self) -> tuple[int, FolderPath, int]:
        """What the list is sorted by."""
        return -(self.received_at or 0), self.folder, -self.uid


class Strand:
    """The UIDs of a folder, the last arrival first, in a dozen octets each at most; of the first of them it is known
    when they arrived.

    A server that sorts makes it needless to know all the dates: only those are asked for that a page comes to.
    """

    __slots__ = ("_dates", "_uids", "folder", "uid_validity")

    def __init__(
        self,
        folder: FolderPath,
        uid_validity: UidValidity,
        uids: Iterable[Uid],
        seconds: Mapping[Uid, int] | None = None,
    ) -> None:
        """``seconds`` says when each arrived, and so their order; without it ``uids`` are in that order already."""
        self.folder = folder
        self.uid_validity = uid_validity
        if seconds is not None:
            uids = sorted(uids, key=lambda uid: (-seconds.get(uid, 0), -uid))
        self._uids = array("I", uids)
        self._dates = array("q")
        if seconds is not None:
            self.date(self._uids[:], seconds)

    def __len__(self) -> int:
        return len(self._uids)

    @property
    def octets(self) -> int:
        return 500 + 4 * len(self._uids) + 8 * len(self._dates)

    def undated(self, count: int, after: AccountPosition | None) -> list[Uid]:
        """The messages whose arrival has to be known before ``count`` can be given behind ``after``: none, or at least
        as many as are known by now, so that a list read to its end is asked for in a few steps."""
        known = len(self._dates)
        if known == len(self._uids) or known - self._start(after) >= count:
            return []
        return [Uid(uid) for uid in self._uids[known : known + max(count, known)]]

    def date(self, uids: Iterable[int], seconds: Mapping[Uid, int]) -> None:
        """Learn when ``uids`` arrived: the first of those of whom it is not known. One that is gone by now keeps its
        place; and so does one that a server has sorted wrongly, or a page could not begin behind it."""
        for at, uid in enumerate(uids, len(self._dates)):
            if at >= len(self._uids) or self._uids[at] != uid:
                return  # another request was quicker
            date = seconds.get(Uid(uid))
            if at:
                before, above = self._dates[at - 1], self._uids[at - 1]
                last = before if uid < above else before - 1
                date = last if date is None else min(last, date)
            self._dates.append(date or 0)

    def end_here(self) -> None:
        """Forget those of whom it is not known when they arrived."""
        del self._uids[len(self._dates) :]

    def behind(self, after: AccountPosition | None) -> Iterator[AccountPosition]:
        """The messages behind ``after``, in order, as far as it is known when they arrived."""
        return map(self._position, range(self._start(after), len(self._dates)))

    def _start(self, after: AccountPosition | None) -> int:
        if after is None:
            return 0
        indices = range(len(self._dates))
        return bisect_right(indices, after.rank, key=lambda at: self._position(at).rank)

    def _position(self, at: int) -> AccountPosition:
        return AccountPosition(self._dates[at], self.folder, self.uid_validity, Uid(self._uids[at]))
