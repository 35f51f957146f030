"""Rows of messages: what never changes of them from the cache, and from the server the rest."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import UNSET

from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import fetch_each
from cbemail.imap.protocol import FetchData, Uid
from cbemail.mailbox.cache import Shelf, SummaryCache
from cbemail.mailbox.snippets import complete, snippet_items
from cbemail.mailbox.summary import SUMMARY_ITEMS, Summary, Unreadable, summarise, with_flags
from cbemail.turns import Turn


class RowReader:
    """Reads rows in two steps: what takes a connection, and what is made of it when that is free for others."""

    def __init__(self, cache: SummaryCache) -> None:
        self._cache = cache

    async def known(
        self, shelf: Shelf, uids: Iterable[Uid], *, snippets: bool
    ) -> dict[Uid, Summary]:
        """Those of the rows that have been read before; ``snippets`` only with theirs."""
        found = await self._cache.find(shelf, uids)
        return {uid: row for uid, row in found.items() if not (snippets and row.snippet is UNSET)}

    async def fetch(
        self,
        imap: ImapConnection,
        uids: Sequence[Uid],
        known: Mapping[Uid, Summary],
        *,
        snippets: bool,
    ) -> dict[Uid, FetchData]:
        """What the server says of the rows: their flags, and all of those that are not ``known``."""
        if not uids:
            return {}
        flags = [uid for uid in uids if uid in known]
        unknown = [uid for uid in uids if uid not in known]
        items = SUMMARY_ITEMS + (snippet_items(imap.capabilities) if snippets else b"")
        asked = await fetch_each(imap, {b"FLAGS": flags, items: unknown})
        return await complete(imap, asked, unknown) if snippets else asked

    async def make(
        self,
        shelf: Shelf,
        rows: Iterable[FetchData],
        known: Mapping[Uid, Summary],
        *,
        snippets: bool,
    ) -> list[Summary | Unreadable]:
        """The rows: of what is known only the flags are new, and what is new is known from now on."""
        made: list[Summary | Unreadable] = []
        turn = Turn()
        for row in rows:
            await turn.share()
            before = known.get(row.uid) if row.uid is not None else None
            if before is not None:
                made.append(with_flags(before, row.flags or (), snippet=snippets))
                continue
            summary = summarise(row, shelf.folder, snippet=snippets)
            if isinstance(summary, Summary):
                self._cache.put(shelf, summary)
            made.append(summary)
        return made
