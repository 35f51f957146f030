"""The keys that cached mail is sealed with, one a session, themselves sealed by the vault."""

from cbemail.ids import SessionId
from cbemail.store.database import Database


class CacheKeys:
    """Sealed keys, over any `Database`. They end with their session, in the same write, and cannot come after it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, session_id: SessionId) -> bytes | None:
        """The session's key, if it has one."""
        rows = await self._database.fetch("find_cache_key", session_id=session_id)
        return bytes(rows[0]["sealed"]) if rows else None

    async def keep(self, session_id: SessionId, sealed: bytes) -> bool:
        """Keep a key in the place of any other; says whether there is such a session."""
        kept = await self._database.execute("keep_cache_key", session_id=session_id, sealed=sealed)
        return bool(kept)

    async def sessions(self) -> set[SessionId]:
        """The sessions that have a key."""
        rows = await self._database.fetch("find_sessions_with_cache_key")
        return {SessionId(row["session_id"]) for row in rows}
