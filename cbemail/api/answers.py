"""Answers to reads of a mailbox: shared by all who ask the same at once, and kept for those content with an older one."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from time import monotonic
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from cbemail.api.codec import entity_tag, header_of, unless_known
from cbemail.ids import SessionId
from cbemail.memory import SessionMemory
from cbemail.timing import spent_on

KEPT_OCTETS = 16 * 1024 * 1024  # of all sessions
LARGEST_KEPT = 256 * 1024  # one mail with a long text is not worth the pages of fifty mailboxes
_ANSWER_OCTETS = 500  # of an answer's objects, beside its body

Read = Callable[[], Awaitable[Response]]
Question = tuple[str, bytes]  # path and query, as they were written

_MAX_AGE = re.compile(r"(?<![\w-])max-age=(?P<seconds>[0-9]{1,10})(?![0-9])", re.IGNORECASE)
_NO_CACHE = re.compile(r"(?<![\w-])no-cache(?![\w-])", re.IGNORECASE)


class _Kept(Struct, frozen=True):
    """A good answer, and when it was asked for: what it says is at least as new."""

    body: bytes
    tag: str
    asked_at: float


class _UnderWay(Struct, eq=False):
    """A read, and how many wait for what it brings."""

    task: asyncio.Task[_Kept]
    waiting: int = 0


class Answers:
    """What reads of mailboxes have brought.

    The same question, asked while another asks it, is answered by the same read. A read that is under way when the
    session changes its mailbox may have looked before: whoever asks afterwards has it read anew, and nothing from
    before is kept. So a client that marks a message and then lists sees its mark, however old an answer it allows.
    """

    def __init__(
        self, *, octets: int = KEPT_OCTETS, clock: Callable[[], float] = monotonic
    ) -> None:
        self._clock = clock
        self._kept: SessionMemory[Question, _Kept] = SessionMemory(octets)
        self._under_way: dict[SessionId, dict[Question, _UnderWay]] = {}

    def kept(self, request: Request[Any], session_id: SessionId) -> Response | None:
        """An answer to the request from memory, if there is one no older than it allows (RFC 9111 section 5.2.1.1)."""
        allowed = _allowed_age(request)
        if not allowed:
            return None
        kept = self._kept.get(session_id, _question(request))
        age = self._clock() - kept.asked_at if kept is not None else allowed
        if kept is None or age >= allowed:
            return None
        return unless_known(request, kept.body, kept.tag, {"Age": str(int(age))})

    async def shared(self, request: Request[Any], session_id: SessionId, read: Read) -> Response:
        """The answer that ``read`` gives, or that of the same question under way.

        Whoever leaves leaves it to the others; with the last of them the read is given up.
        """
        question = _question(request)
        one = self._under_way.get(session_id, {}).get(question)
        phase = nullcontext() if one is None else spent_on("wait")
        if one is None:
            one = self._begin(session_id, question, read)
        one.waiting += 1
        try:
            with phase:
                kept = await asyncio.shield(one.task)
        finally:
            one.waiting -= 1
            if not one.waiting:
                one.task.cancel()  # of one that is done, nothing
                self._take_out(session_id, question, one)
        return unless_known(request, kept.body, kept.tag)

    def forget(self, session_id: SessionId) -> None:
        """The session's mailbox has changed, or the session is gone: what was read until now is history."""
        self._kept.forget(session_id)
        self._under_way.pop(session_id, None)

    def _begin(self, session_id: SessionId, question: Question, read: Read) -> _UnderWay:
        one = _UnderWay(asyncio.create_task(self._read(read)))
        self._under_way.setdefault(session_id, {})[question] = one

        def end(task: asyncio.Task[_Kept]) -> None:  # before those who wait for it go on
            is_good = not task.cancelled() and task.exception() is None
            if self._take_out(session_id, question, one) and is_good:
                self._keep(session_id, question, task.result())

        one.task.add_done_callback(end)
        return one

    async def _read(self, read: Read) -> _Kept:
        asked_at = self._clock()
        body = bytes((await read()).body)
        return _Kept(body, entity_tag(body), asked_at)

    def _take_out(self, session_id: SessionId, question: Question, one: _UnderWay) -> bool:
        """Let nobody join a read any more; False if it is history already."""
        under_way = self._under_way.get(session_id, {})
        if under_way.get(question) is not one:
            return False
        del under_way[question]
        if not under_way:
            del self._under_way[session_id]
        return True

    def _keep(self, session_id: SessionId, question: Question, answer: _Kept) -> None:
        if len(answer.body) <= LARGEST_KEPT:
            octets = _ANSWER_OCTETS + len(answer.body)
            self._kept.put(session_id, question, answer, octets)


def _question(request: Request[Any]) -> Question:
    return request.scope["path"], request.scope["query_string"]


def _allowed_age(request: Request[Any]) -> int:
    """The ``max-age`` of the request in seconds; 0 where it says nothing of the kind, or ``no-cache`` beside it."""
    said = header_of(request.scope, b"cache-control")
    if said is None or _NO_CACHE.search(said):
        return 0
    found = _MAX_AGE.search(said)
    return int(found["seconds"]) if found is not None else 0
