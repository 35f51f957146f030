"""What clients were told of folders, for servers that do not remember it themselves."""

from datetime import datetime

from msgspec import Struct, convert, structs

from cbemail.errors import SessionNotFound
from cbemail.ids import SessionId
from cbemail.store.database import Database

STATES_OF_A_FOLDER = (
    32  # for each session: some sixteen clients that follow it, each with the last two
)


class FolderStateRecord(Struct, frozen=True):
    """What a client knows of a folder. States that followed one from the other are of one ``line``, in its ``step``s."""

    id: str
    session_id: SessionId
    folder: bytes  # a digest of its path
    line: str
    step: int
    sealed: bytes
    used_at: datetime


class FolderStates:
    """Folder states, over any `Database`. They end with their session."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, session_id: SessionId, state_id: str) -> FolderStateRecord | None:
        """The state, if it is this session's and still kept."""
        rows = await self._database.fetch("find_folder_state", id=state_id, session_id=session_id)
        return convert(rows[0], FolderStateRecord) if rows else None

    async def keep(self, state: FolderStateRecord) -> None:
        """Keep a state that followed from another, which stays: the client may not have got the answer, and ask again.

        Those before that one are forgotten, since a client that shows a state has no use for an older one; and of more
        than `STATES_OF_A_FOLDER` those that were used longest ago.

        Raises:
            SessionNotFound: the session has ended.
        """
        of_session = {"session_id": state.session_id}
        of_folder = of_session | {"folder": state.folder}
        kept, *_ = await self._database.execute_all(
            [
                ("keep_folder_state", structs.asdict(state)),
                (
                    "forget_earlier_folder_states",
                    of_session | {"line": state.line, "step": state.step - 1},
                ),
                ("forget_surplus_folder_states", of_folder | {"kept": STATES_OF_A_FOLDER}),
            ]
        )
        if not kept:
            raise SessionNotFound("There is no such session.")

    async def touch(self, state: FolderStateRecord, now: datetime) -> None:
        """Remember that the state is in use."""
        await self._database.execute("touch_folder_state", id=state.id, used_at=now)

    async def purge(self, before: datetime) -> None:
        """Forget the states that nobody has used since."""
        await self._database.execute("purge_folder_states", before=before)
