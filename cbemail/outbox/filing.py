"""Copies of sent messages, on their way to the Sent folder behind the sending."""

import asyncio
from collections import defaultdict

from cbemail.ids import SessionId
from cbemail.outbox.live import LiveBatch
from cbemail.outbox.room import Room
from cbemail.outbox.sent import SentFolder
from cbemail.outbox.workshop import Job

AT_ONCE = 2  # copies of one session; who sends for it waits, and nobody else
LARGE = 1 << 20  # octets; what is larger takes room


class Filing:
    """Each message is kept once, however many recipients it had and however often it was tried."""

    def __init__(self, sent: SentFolder, room: Room) -> None:
        self._sent = sent
        self._room = room
        self._turns: defaultdict[SessionId, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(AT_ONCE)
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """What is under way."""
        return self._tasks

    async def file(self, live: LiveBatch, job: Job) -> None:
        """Begin to keep a copy, and to mark the original. Returns when there is a turn for it, not when it is done."""
        position = job.rows[0].position
        wanted = live.record.options.save_to_sent or job.original is not None
        if not wanted or position in live.filed:
            return
        live.filed.add(position)
        turn = self._turns[live.record.session_id]
        await turn.acquire()
        task = asyncio.create_task(self._file(live, job))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._filed(done, turn))

    def forget(self, session_id: SessionId) -> None:
        self._turns.pop(session_id, None)

    def _filed(self, task: asyncio.Task[None], turn: asyncio.Semaphore) -> None:
        self._tasks.discard(task)
        turn.release()

    async def _file(self, live: LiveBatch, job: Job) -> None:
        session_id = live.record.session_id
        if live.record.options.save_to_sent:
            octets = len(job.envelope.content)
            room = octets if octets >= LARGE else 0
            if room:
                await self._room.take(room)
            try:
                await self._sent.save_once(session_id, job.envelope.content, job.rows[0].message_id)
            finally:
                self._room.give(room)
        if job.original is not None:
            await self._sent.mark(session_id, job.original)
