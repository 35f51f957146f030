"""One connection to an IMAP server: commands out, their responses in, and never a doubt which answers which.

aioimaplib gives the protocol class its life cycle and its tags; its receive path is replaced (it is recursive, rewrites
message data and lets a lost connection go unnoticed). No other module knows aioimaplib.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

from aioimaplib import aioimaplib

from cbemail.errors import CbemailError, UpstreamError
from cbemail.imap.flight import Completion, Flight
from cbemail.imap.framing import Framer
from cbemail.imap.parser import expunged, parse_response
from cbemail.imap.protocol import (
    Continuation,
    FolderPath,
    ImapSyntaxError,
    Response,
    SelectData,
    StatusResponse,
    Untagged,
)
from cbemail.imap.refusals import farewell, lost, misunderstanding, silence
from cbemail.imap.streaming import LiteralStream
from cbemail.imap.wire import Command, encode
from cbemail.sockets import VANISHED_SECONDS, notice_vanished_after
from cbemail.timing import spent_on

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMAND_SECONDS = 30.0  # for one answer; nothing we ask takes a healthy server longer
SECONDS_PER_OCTET = 1 / 65_536  # and on top of it: a link of 64 KB/s is slow, below that it is dead
STREAM_GAP_SECONDS = 30.0  # without one octet of a streamed literal, while we are ready to read

# Where nothing was said for a while, the server may be gone without a word, or a firewall between us have forgotten the
# connection. Such a server does not even acknowledge, and is noticed this soon: there is time to ask on a new connection.
REST_SECONDS = 5.0
UNACKNOWLEDGED_SECONDS = 5.0
_NOT_THERE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}

# What one flight of commands, or the time between two, may make the server say. A page of 200 summaries with 64 KB of
# header each stays below; a server that sends a million untagged OKs does not.
MAX_FLIGHT_RESPONSES = 100_000
MAX_FLIGHT_OCTETS = 48 * 1024 * 1024  # without those of a streamed literal, which are not held


class ImapConnection(aioimaplib.IMAP4ClientProtocol):  # type: ignore[misc]  # aioimaplib is untyped for its users
    """An asyncio protocol that speaks IMAP as a client: one borrower at a time, one flight of commands at a time.

    A connection is *broken* from the first thing that leaves a command unanswered: a timeout, a cancellation, a
    protocol error, BYE, EOF. It is then closed at once, and whoever waits on it is told at once. A broken connection is
    never used again: the answer still on its way would be taken for the answer to the next command.
    """

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport  # None before there is one

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.capabilities: frozenset[str] = frozenset()
        self.enabled: frozenset[str] = frozenset()  # of them, by ENABLE (RFC 5161)
        self.account = (
            ""  # whose mailbox it is: what must not be done to one twice at once goes by this
        )
        self.selected: SelectData | None = None
        self.to_select: FolderPath | None = None  # in the flight of the next read: see `messages`
        self.to_unselect = False  # ``selected`` is not set, and yet a mailbox may be
        self.spellings: dict[FolderPath, bytes] = {}  # where not modified UTF-7, see `naming`
        self.has_changed = False  # a mailbox, perhaps: see `ImapPool`
        self.broken = False
        self.vanished = False  # broken, since the server could not be reached any more
        self.greeting: asyncio.Future[StatusResponse] = self.loop.create_future()
        self._framer = Framer()
        self._flight: Flight | None = None
        self._rests_since = self.loop.time()
        self._stream: LiteralStream | None = None
        # While the server may say "+": True once it did, False once it answered or failed instead.
        self._invitation: asyncio.Future[bool] | None = None
        self._octets = 0  # since the last flight began
        self._said = 0  # responses, since then
        self._said_since_answer = 0  # responses, since the last tagged one
        self._failure: CbemailError | None = None
        self._unwritten: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def usable(self) -> bool:
        """Alive, and between commands: the next one will get its own answer."""
        return not self.broken and self._flight is None

    @property
    def is_quiet(self) -> bool:
        """Nothing has been said behind the last answer, not even in part."""
        return not self._said_since_answer and self._framer.empty

    # ---- asking

    async def run(self, *commands: Command) -> list[Completion]:
        """Send ``commands`` in one flight (RFC 9051 5.5) and give their completions, in order.

        Only commands that may not affect each other's meaning belong in one flight. A NO is a completion like any
        other; a BAD is a defect of ours, and breaks the connection.

        Raises:
            UpstreamTimeout: no answer in the time that the size of what is sent allows.
            UpstreamUnavailable: the connection was lost, or the server said BYE.
            UpstreamError: the server said something that is not IMAP, or BAD.
        """
        seconds = COMMAND_SECONDS + sum(c.octets for c in commands) * SECONDS_PER_OCTET
        with spent_on("imap"), self._flying(len(commands)) as flight, self.deadline(seconds):
            for command in commands:
                await self._send(flight, command)
            await self._flush()
            return await flight.done

    async def run_one(self, command: Command) -> Completion:
        """`run` of a single command, whose refusal is raised."""
        (completion,) = await self.run(command)
        return completion.require_ok()

    async def run_dialogue(self, command: Command, answers: Iterable[bytes]) -> Completion:
        """Run AUTHENTICATE (RFC 9051 6.2.2): each challenge gets the next of ``answers``; then there must be none."""
        with spent_on("imap"), self._flying(1) as flight, self.deadline(COMMAND_SECONDS):
            self._invitation = self.loop.create_future()
            await self._send(flight, command)
            await self._flush()
            for answer in answers:
                if not await self._invitation or flight.answered:
                    break
                self._invitation = self.loop.create_future()
                self.transport.write(answer + b"\r\n")
            else:
                self._invitation = None
            (completion,) = await flight.done
            return completion

    @asynccontextmanager
    async def streaming(self, command: Command) -> AsyncIterator[LiteralStream]:
        """Send a FETCH and read its one literal as it arrives, at the reader's pace, in bounded memory.

        Leaving the block before the command is over breaks the connection.
        """
        with self._flying(1) as flight:
            stream = self._stream = self._framer.sink = LiteralStream(self, flight.done)
            try:
                with self.deadline(COMMAND_SECONDS):
                    await self._send(flight, command)
                    await self._flush()
                yield stream
            finally:
                stream.close()
                self._stream = self._framer.sink = None
                self._octets -= stream.received

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Break the connection when the block takes longer: whoever waits on it then learns that it was too slow."""
        timer = self.loop.call_later(max(0.0, seconds), lambda: self._fail(silence()))
        try:
            yield
        finally:
            timer.cancel()

    def stream_deadline(self, received: int, waited: float) -> AbstractContextManager[None]:
        """`deadline` for more of a stream of which that many octets have come, after that many seconds of waiting. These
        count as a whole: a server that sends a little now and then would otherwise hold the connection for ever."""
        budget = COMMAND_SECONDS + received * SECONDS_PER_OCTET - waited
        return self.deadline(min(STREAM_GAP_SECONDS, budget))

    @contextmanager
    def _flying(self, commands: int) -> Iterator[Flight]:
        """One flight. However the block is left, what is unanswered then breaks the connection."""
        if self._flight is not None:
            raise RuntimeError("an IMAP connection carries one flight of commands at a time")
        if self.broken:
            raise self._failure or lost()
        flight = Flight(self.loop.create_future(), unsent=commands)
        self._flight = flight
        self._octets = self._said = 0
        has_rested = self.loop.time() - self._rests_since > REST_SECONDS
        if has_rested:
            self._notice_vanished_after(UNACKNOWLEDGED_SECONDS)
        try:
            yield flight
        finally:
            if not flight.answered:
                self.abort()
            elif has_rested and not self.broken:
                self._notice_vanished_after(VANISHED_SECONDS)
            self._rests_since = self.loop.time()
            self._flight = self._invitation = None
            self._unwritten.clear()

    def _notice_vanished_after(self, seconds: float) -> None:
        connected = self.transport.get_extra_info("socket")
        if connected is not None:  # TLS lets go of a lost one a moment before it tells us
            notice_vanished_after(connected, seconds)

    async def _send(self, flight: Flight, command: Command) -> None:
        """Put a command with those that are written together: one write is one packet, and one wake-up of the server."""
        tag: str = self.new_tag()
        pieces = encode(
            tag.encode(),
            command,
            literal_plus="LITERAL+" in self.capabilities,
            literal_minus="LITERAL-" in self.capabilities,
        )
        if self.broken:
            return  # by an earlier command of the flight, which knows why
        flight.sent[tag] = command
        self.has_changed |= command.may_change
        flight.unsent -= 1
        for piece in pieces[:-1]:  # each ends in a synchronising literal's marker (RFC 9051 4.3)
            self._invitation = self.loop.create_future()
            self._unwritten.append(piece)
            await self._flush()
            if not await self._invitation or tag in flight.completions:
                return  # refused: its completion says so
        self._unwritten.append(pieces[-1])

    async def _flush(self) -> None:
        if self._unwritten and not self.broken:
            octets = self._unwritten[0] if len(self._unwritten) == 1 else b"".join(self._unwritten)
            self._unwritten.clear()
            self.transport.write(octets)
        await self._writable.wait()

    # ---- the end

    def abort(self) -> None:
        """Close at once, with no farewell: a command may be unanswered."""
        self._fail(lost())

    def close(self) -> None:
        """Say LOGOUT and close, without waiting for the answer; where a command is unanswered, abort."""
        if self._flight is not None:
            self.abort()
        elif not self.broken:
            self.broken = True
            self.transport.write(self.new_tag().encode() + b" LOGOUT\r\n")
            self.transport.close()

    def _fail_protocol(self, what: str) -> None:
        self._fail(UpstreamError(f"The mail server {what}.", protocol="imap"))

    def _fail(self, error: CbemailError) -> None:
        """Break the connection; only the first reason counts, the others follow from it."""
        self.broken = True
        self._failure = self._failure or error
        if self.transport is not None:
            self.transport.abort()
        if not self.greeting.done():
            self.greeting.set_exception(self._failure)
            self.greeting.exception()  # it may be that nobody waits for it
        flight = self._flight
        if flight is not None and not flight.done.done():
            flight.done.set_exception(self._failure)
            flight.done.exception()  # the stream's reader may already have left
        self._invite(invited=False)
        self._writable.set()

    # ---- what asyncio tells

    def data_received(self, data: bytes) -> None:
        if self.broken:
            return  # what a closed connection still had in its buffers
        self._octets += len(data)
        try:
            for frame in self._framer.feed(data):
                self._dispatch(parse_response(frame))
                if self.broken:
                    return
        except ImapSyntaxError as error:
            log.warning("IMAP syntax error: %s", error)
            self._fail_protocol("sent something that is not IMAP")
        streamed = self._stream.received if self._stream is not None else 0
        if self._octets - streamed > MAX_FLIGHT_OCTETS:
            self._fail_protocol("sent more than one command can be worth")

    def connection_lost(self, exc: Exception | None) -> None:
        self.vanished = isinstance(exc, OSError) and exc.errno in _NOT_THERE
        self._fail(lost())

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # ---- what the server says

    def _dispatch(self, response: Response) -> None:
        self._said += 1
        self._said_since_answer += 1
        if self._said > MAX_FLIGHT_RESPONSES:
            self._fail_protocol("sent more responses than one command can have")
        elif isinstance(response, Continuation):
            self._note_continuation()
        elif isinstance(response, StatusResponse) and response.tag is not None:
            self._note_completion(response)
        elif isinstance(response, StatusResponse) and not self.greeting.done():
            self.greeting.set_result(response)
        elif isinstance(response, StatusResponse) and response.status == "BYE":
            self._fail(farewell(response))
        else:
            self._note_untagged(response)

    def _note_continuation(self) -> None:
        if self._invitation is None or self._invitation.done():
            self._fail_protocol("asked for something that was never announced")
        else:
            self._invite(invited=True)

    def _invite(self, *, invited: bool) -> None:
        if self._invitation is not None and not self._invitation.done():
            self._invitation.set_result(invited)

    def _note_untagged(self, response: Response) -> None:
        """Between commands nobody asked, and what matters of it is noted in ``selected``."""
        if self._flight is not None:
            self._flight.responses.append(response)
        if not isinstance(response, Untagged):
            return
        gone = expunged(response)
        if self.selected is None:
            return
        before = self.selected.exists
        if response.name == "EXISTS" and response.number is not None:
            self.selected.exists = response.number
        else:
            self.selected.exists = max(0, before - gone)
        self.selected.news += self.selected.exists != before

    def _note_completion(self, response: StatusResponse) -> None:
        flight, tag = self._flight, response.tag or ""
        if flight is None or tag not in flight.sent or tag in flight.completions:
            self._fail_protocol("answered a command that was not sent")
            return
        command = flight.sent[tag]
        if response.status == "BAD" and not flight.refused:
            self._fail(misunderstanding(command.name, response))
            return
        heard, place = len(flight.responses), len(flight.completions)
        flight.completions[tag] = Completion(command, response, flight.responses, heard, place)
        self._said_since_answer = 0
        if tag == next(reversed(flight.sent)):  # the only one that may be waiting for a "+"
            self._invite(invited=False)
        if flight.answered and not flight.done.done():  # done: cancelled in this very moment
            flight.done.set_result([flight.completions[tag] for tag in flight.sent])
