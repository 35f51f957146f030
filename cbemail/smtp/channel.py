"""The two directions of an SMTP connection: octets out, replies in, and which reply answers what.

SMTP has no tags. A reply belongs to a command only by its place in the row, so one reply too many, or one given up
on, and every later answer is a stranger's. The channel counts what the server owes; when the count can no longer
be kept, by a timeout, a cancellation or a reply to nothing, the channel is broken and its transport gone.
"""

import asyncio
from collections import deque
from contextlib import suppress

from cbemail.smtp.outcome import Interruption
from cbemail.smtp.replies import Reply, ReplyParser, ReplySyntaxError


class ChannelBroken(Exception):
    """No further reply will come, and nothing more can be said."""

    def __init__(self, reason: Interruption) -> None:
        super().__init__(reason)
        self.reason = reason


class SmtpChannel(asyncio.Protocol):
    """Takes over a connected transport, between commands. For one task at a time.

    Several commands may be under way at once (RFC 2920): `send` says how many replies its octets will earn, and
    `reply` gives them one by one, in order.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._parser = ReplyParser()
        self._replies: deque[Reply] = deque()
        self._owed = 0
        self._paused = False
        self._broken: Interruption | None = None
        self._closed = self._loop.create_future()
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0  # of the waiter
        self._alarm: asyncio.TimerHandle | None = None
        # So small that "not paused" means: what was written has left for the kernel.
        transport.set_write_buffer_limits(high=1)
        transport.set_protocol(self)

    # ---- for the connection

    @property
    def usable(self) -> bool:
        """Between commands: every reply was read, and the server has not hung up."""
        return (
            self._broken is None
            and not self._owed
            and not self._replies
            and not self._transport.is_closing()
        )

    @property
    def is_open(self) -> bool:
        """As far as is known the server has not hung up."""
        return self._broken is None and not self._transport.is_closing()

    def send(self, data: bytes | memoryview, *, replies: int = 0) -> None:
        """Write, and expect that many replies more. Either all of it is handed to the transport, or nothing.

        Raises:
            ChannelBroken: nothing was written.
        """
        self._require_open()
        self._owed += replies
        self._transport.write(data)

    @property
    def answered(self) -> bool:
        """A reply lies ready."""
        return bool(self._replies)

    async def reply(self, seconds: float) -> Reply:
        """The next reply; ``seconds`` are for the whole of it, however slowly the server drips.

        Raises:
            ChannelBroken: there will be none.
        """
        if not self._replies:
            deadline = self._loop.time() + seconds
            while not self._replies:
                await self._change(deadline)
        return self._replies.popleft()

    async def flushed(self, seconds: float) -> None:
        """Return once what was written has left, or a reply has come before that.

        Raises:
            ChannelBroken: the server took none of it for ``seconds``, or hung up.
        """
        deadline = self._loop.time() + seconds
        # One turn of the loop at least: it has to see what the server says, or that it left.
        self._loop.call_soon(self._wake)
        await self._change(deadline)
        while self._paused and not self._replies:
            await self._change(deadline)
        if not self._replies:
            self._require_open()

    def abort(self, reason: Interruption = Interruption.ABANDONED) -> None:
        """Break the channel. Replies that had come stay readable; the transport is gone at once."""
        if self._broken is None:
            self._broken = reason
            self._transport.abort()
            if self._alarm is not None:
                self._alarm.cancel()
        self._wake()

    def fail(self, reason: Interruption) -> ChannelBroken:
        """Break the channel, and give the exception to raise for it."""
        self.abort(reason)
        return ChannelBroken(reason)

    async def close(self, seconds: float) -> None:
        """Say QUIT if there is still somebody to say it to, wait that long at most, and go."""
        if self.usable:
            self.send(b"QUIT\r\n", replies=1)
            with suppress(ChannelBroken):
                await self.reply(seconds)
        self.abort()
        await asyncio.wait([self._closed], timeout=seconds)

    # ---- for the transport

    def data_received(self, data: bytes) -> None:
        if self._broken is not None:
            return
        try:
            for reply in self._parser.feed(data):
                self._take(reply)
        except ReplySyntaxError:
            self.abort(Interruption.GARBLED)
        if not self._owed and not self._parser.idle:  # the beginning of one nobody asked for
            self.abort(Interruption.GARBLED)
        self._wake()

    def _take(self, reply: Reply) -> None:
        if self._owed:
            self._owed -= 1
            self._replies.append(reply)
        else:  # a 421 before hanging up, or a reply out of place: it must not answer what is asked next
            self.abort(Interruption.GARBLED)

    def eof_received(self) -> None:
        self.abort(Interruption.LOST)

    def connection_lost(self, _: Exception | None) -> None:
        self.abort(Interruption.LOST)
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    # ---- inside

    def _require_open(self) -> None:
        # A write finds out that the peer is gone before `connection_lost` is called.
        if self._transport.is_closing():
            self.abort(Interruption.LOST)
        if self._broken is not None:
            raise ChannelBroken(self._broken)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _change(self, deadline: float) -> None:
        """Wait until something happened: a reply, room to write, or the end."""
        self._require_open()
        self._waiter = self._loop.create_future()
        self._deadline = deadline
        if self._alarm is None or self._alarm.when() > deadline:
            self._set_alarm()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        """The alarm outlives the wait it was set for: most end at once, and a timer for each would cost a tenth of
        what a message does. It is set anew only for a deadline that comes before it, or when it rings."""
        self._alarm = None
        if self._waiter is None:
            return
        if self._loop.time() >= self._deadline:
            self.abort(Interruption.TIMEOUT)
        else:
            self._set_alarm()
