"""One connection to an IMAP server: commands out, their responses in, and never a doubt which answers which.

aioimaplib gives the protocol class its life cycle and its tags; its receive path is replaced (it is recursive, rewrites
message data and lets a lost connection go unnoticed). No other module knows aioimaplib.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn

from aioimaplib import aioimaplib
from msgspec import Struct, field

from cbemail.errors import (
    CbemailError,
    FolderExists,
    FolderNotFound,
    FolderProtected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.imap.framing import Framer
from cbemail.imap.parser import capabilities, parse_response
from cbemail.imap.protocol import (
    Continuation,
    ImapSyntaxError,
    Response,
    ResponseCode,
    SelectData,
    StatusResponse,
    Untagged,
)
from cbemail.imap.wire import Command, encode
from cbemail.timing import spent_on

log = logging.getLogger(__name__)

COMMAND_SECONDS = (
    30.0  # for the answer to one command; nothing we ask takes a healthy server longer
)
SECONDS_PER_OCTET = 1 / 65_536  # and on top of it: a link of 64 KB/s is slow, below that it is dead
STREAM_GAP_SECONDS = 30.0  # without one octet of a streamed literal, while we are ready to read

# What one flight of commands may make the server say. A page of 200 summaries with 64 KB of header each stays below;
# a server that sends a million untagged OKs does not.
MAX_FLIGHT_RESPONSES = 100_000
MAX_FLIGHT_OCTETS = 48 * 1024 * 1024

# Octets of a streamed literal that may wait for a slow reader before the socket is no longer read.
STREAM_HIGH_WATER = 256 * 1024
STREAM_LOW_WATER = 64 * 1024


class Completion(Struct, frozen=True):
    """How one command ended, and what the server said untagged during its flight, in order.

    Of several commands in one flight a server may answer the later one first (Dovecot does), so nothing but its name
    says to which of them an untagged response belongs: each completion has them all.
    """

    command: Command
    status: StatusResponse
    responses: list[Response]

    @property
    def ok(self) -> bool:
        return self.status.status == "OK"

    def untagged(self, name: str) -> list[Untagged]:
        return [r for r in self.responses if isinstance(r, Untagged) and r.name == name]

    def code(self, name: str) -> bytes | None:
        """The arguments of response code ``name``, tagged or not (a COPYUID for MOVE comes untagged, RFC 6851)."""
        for response in (self.status, *self.responses):
            code = response.code if isinstance(response, StatusResponse) else None
            if code is not None and code.name == name:
                return code.arguments
        return None

    def require_ok(self) -> Completion:
        """This completion if the server said OK, its error otherwise."""
        if not self.ok:
            raise_refusal(self)
        return self


def raise_refusal(completion: Completion) -> NoReturn:
    """Translate a NO into the service's words, by its response code (RFC 5530), or by its text where it has none."""
    status, name = completion.status, completion.command.name
    code = status.code.name if status.code is not None else ""
    log.info("IMAP %s refused: %s [%s] %s", name, status.status, code, status.text)
    text = status.text.casefold()
    missing = (
        ("exist" in text and "not" in text) or "n't exist" in text or "unknown mailbox" in text
    )
    if code in {"NONEXISTENT", "TRYCREATE"} or (not code and missing):
        raise FolderNotFound("The folder does not exist on the mail server.")
    if code == "ALREADYEXISTS" or (not code and name in {"CREATE", "RENAME"} and "exist" in text):
        raise FolderExists("A folder of that name already exists.")
    if code in {"NOPERM", "CANNOT"} and name in {"CREATE", "RENAME", "DELETE"}:
        raise FolderProtected("The mail server does not allow this to be done to that folder.")
    detail = {
        "OVERQUOTA": "The mailbox is full: the mail server refused to store more in it.",
        "NOPERM": "The mail server does not permit this operation.",
        "LIMIT": "The mail server refused the operation because of a limit of its own.",
    }.get(code, f"The mail server refused the {name} command.")
    unavailable = code in {"UNAVAILABLE", "INUSE", "SERVERBUG", "CORRUPTION"}
    error = UpstreamUnavailable if unavailable else UpstreamError
    raise error(detail, protocol="imap", command=name, response_code=code)


class _Flight(Struct):
    """Commands that have been sent and not yet all answered. Answers come in the order of the commands."""

    done: asyncio.Future[list[Completion]]
    pending: deque[tuple[bytes, Command]] = field(default_factory=deque)
    responses: list[Response] = []
    completions: list[Completion] = []
    unsent: int = 0
    octets: int = 0
    count: int = 0


class LiteralStream:
    """The one literal of a FETCH, piece by piece: holds a little, and stops the socket when the reader is slower.

    ``size`` is the literal's length in octets, or None where the server sent the value in another way, too small to
    stream; it then stands in ``completion``, which is there at the end.
    """

    def __init__(self, connection: ImapConnection, done: asyncio.Future[list[Completion]]) -> None:
        self.size: int | None = None
        self._connection = connection
        self._done = done
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._changed = asyncio.Event()
        self._received = 0
        self._waited = 0.0
        done.add_done_callback(lambda _: self._changed.set())

    def begin(self, size: int) -> None:
        self.size = size
        self._changed.set()

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._held += len(chunk)
        self._received += len(chunk)
        if self._held >= STREAM_HIGH_WATER and not self._paused:
            self._paused = True
            self._connection.transport.pause_reading()
        self._changed.set()

    async def started(self) -> None:
        """Wait until ``size`` is known, or the command is over without a literal."""
        while self.size is None and not self._done.done():
            await self._wait()

    async def completion(self) -> Completion:
        """How the command ended; raises its refusal."""
        while not self._done.done():
            await self._wait()
        return self._done.result()[0].require_ok()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._done.done() or self._chunks:
            if self._chunks:
                yield self._take()
            else:
                await self._wait()
        await self.completion()

    def _take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            self._connection.transport.resume_reading()
        return data

    async def _wait(self) -> None:
        """Wait for more. The time counts against the server as a whole, not only octet by octet: one that sends a
        little now and then would otherwise hold the connection for ever."""
        self._changed.clear()
        budget = COMMAND_SECONDS + self._received * SECONDS_PER_OCTET - self._waited
        start = self._connection.loop.time()
        with spent_on("imap"), self._connection.deadline(min(STREAM_GAP_SECONDS, budget)):
            await self._changed.wait()
        self._waited += self._connection.loop.time() - start


class ImapConnection(aioimaplib.IMAP4ClientProtocol):  # type: ignore[misc]  # aioimaplib is untyped for its users
    """An asyncio protocol that speaks IMAP as a client: one borrower at a time, one flight of commands at a time.

    A connection is *broken* from the first thing that leaves a command unanswered: a timeout, a cancellation, a
    protocol error, BYE, EOF. It is then closed at once, and whoever waits on it is told at once. A broken connection is
    never used again: the answer still on its way would be taken for the answer to the next command.
    """

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.capabilities: frozenset[str] = frozenset()
        self.selected: SelectData | None = None
        self.broken = False
        self.commands_sent = 0
        self.greeting: asyncio.Future[StatusResponse] = self.loop.create_future()
        self._framer = Framer()
        self._flight: _Flight | None = None
        self._go_ahead: asyncio.Future[Continuation] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: CbemailError | None = None

    # ---- asking

    async def run(self, *commands: Command, seconds: float | None = None) -> list[Completion]:
        """Send ``commands`` in one flight (RFC 9051 5.5) and give their completions, in order.

        Only commands that may not affect each other's meaning belong in one flight. A NO is a completion like any
        other; a BAD is a defect of ours, and breaks the connection.

        Raises:
            UpstreamTimeout: no answer within ``seconds`` (by default by the size of what is sent).
            UpstreamUnavailable: the connection was lost, or the server said BYE.
            UpstreamError: the server said something that is not IMAP, or BAD.
        """
        with spent_on("imap"):
            flight = self._open_flight(len(commands))
            budget = (
                seconds or COMMAND_SECONDS + sum(c.octets for c in commands) * SECONDS_PER_OCTET
            )
            try:
                with self.deadline(budget):
                    for command in commands:
                        await self._send(flight, command)
                    return await flight.done
            except BaseException:
                self.abort()
                raise
            finally:
                self._flight = None

    async def run_one(self, command: Command, *, seconds: float | None = None) -> Completion:
        """`run` of a single command, whose refusal is raised."""
        (completion,) = await self.run(command, seconds=seconds)
        return completion.require_ok()

    @asynccontextmanager
    async def streaming(self, command: Command) -> AsyncIterator[LiteralStream]:
        """Send a FETCH and read its one literal as it arrives, at the reader's pace, in bounded memory.

        Leaving the block before the command is over breaks the connection.
        """
        flight = self._open_flight(1)
        stream = LiteralStream(self, flight.done)
        self._framer.sink = stream
        try:
            await self._send(flight, command)
            yield stream
        finally:
            self._framer.sink = None
            if not flight.done.done():
                self.abort()
            self._flight = None

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Break the connection when the block takes longer: whoever waits on it then learns that it was too slow."""
        timer = self.loop.call_later(max(0.0, seconds), self._time_out)
        try:
            yield
        finally:
            timer.cancel()

    def _open_flight(self, commands: int) -> _Flight:
        if self._flight is not None:
            raise RuntimeError("an IMAP connection carries one flight of commands at a time")
        if self._failure is not None:
            raise self._failure
        flight = _Flight(self.loop.create_future(), unsent=commands)
        self._flight = flight
        return flight

    async def _send(self, flight: _Flight, command: Command) -> None:
        tag = self.new_tag().encode()
        self.commands_sent += 1
        chunks = encode(
            tag,
            command,
            literal_plus="LITERAL+" in self.capabilities,
            literal_minus="LITERAL-" in self.capabilities,
        )
        flight.pending.append((tag, command))
        flight.unsent -= 1
        for chunk in chunks[:-1]:  # each ends in a synchronising literal's marker (RFC 9051 4.3)
            self._go_ahead = self.loop.create_future()
            self.transport.write(chunk)
            await asyncio.wait({self._go_ahead, flight.done}, return_when=asyncio.FIRST_COMPLETED)
            if not any(pending == tag for pending, _ in flight.pending):
                return  # refused instead of invited: its completion says so
            if not self._go_ahead.done():
                return  # the flight failed, or is over
        self.transport.write(chunks[-1])
        await self._writable.wait()

    async def continue_with(self, command: Command, answer: Callable[[bytes], bytes]) -> Completion:
        """Run a command that holds a dialogue (AUTHENTICATE): ``answer`` turns each challenge into our next line."""
        with spent_on("imap"):
            flight = self._open_flight(1)
            try:
                with self.deadline(COMMAND_SECONDS):
                    self._go_ahead = self.loop.create_future()
                    await self._send(flight, command)
                    while not flight.done.done():
                        await asyncio.wait(
                            {self._go_ahead, flight.done}, return_when=asyncio.FIRST_COMPLETED
                        )
                        if not flight.done.done():
                            challenge = self._go_ahead.result().text
                            self._go_ahead = self.loop.create_future()
                            self.transport.write(answer(challenge) + b"\r\n")
                    return flight.done.result()[0]
            except BaseException:
                self.abort()
                raise
            finally:
                self._flight = None

    # ---- the end

    def abort(self) -> None:
        """Close at once, with no farewell: a command may be unanswered."""
        self._fail(
            UpstreamUnavailable("The connection to the mail server was closed.", protocol="imap")
        )

    def close(self) -> None:
        """Say LOGOUT and close, without waiting for the answer. For a connection between commands."""
        if not self.broken:
            self.transport.write(self.new_tag().encode() + b" LOGOUT\r\n")
            self.broken = True
            self.transport.close()

    def _time_out(self) -> None:
        self._fail(
            UpstreamTimeout(
                "The mail server did not answer in time.", protocol="imap", retry_after=10
            )
        )

    def _fail(self, error: CbemailError) -> None:
        self.broken = True
        self._failure = self._failure or error
        if self.transport is not None:
            self.transport.abort()
        if not self.greeting.done():
            self.greeting.set_exception(error)
            self.greeting.exception()  # it may be that nobody waits for it
        flight = self._flight
        if flight is not None and not flight.done.done():
            flight.done.set_exception(error)
            flight.done.exception()  # the stream's reader may already have left
        self._writable.set()

    # ---- what asyncio tells

    def data_received(self, data: bytes) -> None:
        flight = self._flight
        if flight is not None and self._framer.sink is None:
            flight.octets += len(data)
            if flight.octets > MAX_FLIGHT_OCTETS:
                self._fail_protocol("sent more than one command can be worth")
                return
        try:
            for frame in self._framer.feed(data):
                self._dispatch(parse_response(frame))
                if self.broken:
                    return
        except ImapSyntaxError as error:
            log.warning("IMAP syntax error: %s", error)
            self._fail_protocol("sent something that is not IMAP")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it ended, it is gone
        self._fail(
            UpstreamUnavailable(
                "The mail server closed the connection.", protocol="imap", retry_after=2
            )
        )

    def eof_received(self) -> bool:
        return False  # close our side too

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # ---- what the server says

    def forget_buffered(self) -> None:
        """Throw away what came in the clear behind the answer to STARTTLS: it may be anybody's (RFC 9051 6.2.1)."""
        self._framer = Framer()

    def _fail_protocol(self, what: str) -> None:
        self._fail(UpstreamError(f"The mail server {what}.", protocol="imap"))

    def _dispatch(self, response: Response) -> None:
        if isinstance(response, Continuation):
            self._note_continuation(response)
        elif isinstance(response, StatusResponse) and response.tag is not None:
            self._note_completion(response)
        elif isinstance(response, StatusResponse) and not self.greeting.done():
            self.greeting.set_result(response)
        elif isinstance(response, StatusResponse) and response.status == "BYE":
            log.info("IMAP BYE: %s", response.text)
            self._fail(said_bye(response))
        else:
            self._note_untagged(response)

    def _note_continuation(self, response: Continuation) -> None:
        if self._go_ahead is None or self._go_ahead.done():
            self._fail_protocol("asked for something that was never announced")
        else:
            self._go_ahead.set_result(response)

    def _note_untagged(self, response: Response) -> None:
        if isinstance(response, Untagged):
            self._update_selected(response)
        flight = self._flight
        if flight is None:
            return  # between commands: nobody asked, and what matters of it is noted above
        flight.count += 1
        if flight.count > MAX_FLIGHT_RESPONSES:
            self._fail_protocol("sent more responses than one command can have")
            return
        flight.responses.append(response)

    def _update_selected(self, response: Untagged) -> None:
        if self.selected is None or response.number is None:
            return
        if response.name == "EXISTS":
            self.selected.exists = response.number
        elif response.name == "EXPUNGE":
            self.selected.exists = max(0, self.selected.exists - 1)

    def _note_completion(self, response: StatusResponse) -> None:
        flight = self._flight
        if flight is None or not flight.pending or response.tag is None:
            self._fail_protocol("answered a command that was not sent")
            return
        tag, command = flight.pending[0]
        if response.tag.encode() != tag:
            self._fail_protocol("answered a command that was not sent")
            return
        if response.status == "BAD":
            log.error("IMAP server called %s bad: %s", command.name, response.text)
            self._fail(
                UpstreamError(
                    f"The mail server did not understand the {command.name} command.",
                    protocol="imap",
                    command=command.name,
                    response_code="BAD",
                )
            )
            return
        flight.pending.popleft()
        flight.completions.append(Completion(command, response, flight.responses))
        if not flight.pending and not flight.unsent:
            flight.done.set_result(flight.completions)

    def refresh_capabilities(self, responses: Iterable[Response]) -> bool:
        """Take the capabilities that ``responses`` tell, if they do. They are never merged with older ones: what a
        server offers before login or TLS says nothing about after (RFC 9051 6.2.1, 7.2.2)."""
        for response in responses:
            told = response.code if isinstance(response, StatusResponse) else response
            if isinstance(told, ResponseCode | Untagged) and told.name == "CAPABILITY":
                self.capabilities = capabilities(told)
                return True
        return False


class ServerLimit(UpstreamUnavailable):
    """The server has as many connections of this account as it allows: fewer must do."""


def said_bye(response: StatusResponse) -> UpstreamUnavailable:
    """BYE as an error: a limit of the server's where it says so, otherwise simply gone."""
    if speaks_of_a_limit(response):
        return ServerLimit(
            "The mail server allows no more connections for this mailbox.",
            protocol="imap",
            retry_after=5,
        )
    return UpstreamUnavailable(
        "The mail server ended the connection.", protocol="imap", retry_after=2
    )


def speaks_of_a_limit(response: StatusResponse) -> bool:
    """Whether a NO or BYE means "too many connections": by its code (RFC 9051 7.1), or as Gmail, Dovecot and
    Exchange put it."""
    if response.code is not None and response.code.name == "LIMIT":
        return True
    text = response.text.casefold()
    return "connections" in text and ("too many" in text or "maximum" in text or "exceeded" in text)
