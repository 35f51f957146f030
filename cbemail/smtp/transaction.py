"""One mail transaction (RFC 5321 3.3): MAIL, RCPT, DATA, body, final dot, and what became of it.

The phase is the point. Before the final dot a lost connection loses nothing; after it, only a reply can tell.
"""

from contextlib import suppress

from cbemail.smtp.channel import ChannelBroken, SmtpChannel
from cbemail.smtp.envelope import (
    Envelope,
    Extensions,
    mail_command,
    normalise,
    rcpt_command,
    stuff_dots,
)
from cbemail.smtp.outcome import (
    Accepted,
    Interruption,
    NotSent,
    Outcome,
    Refused,
    RefusedRecipient,
    Uncertain,
)
from cbemail.smtp.replies import Phase, Reply, classify, explain
from cbemail.smtp.timeouts import Timeouts

_DATA = b"DATA\r\n"
_FINAL_DOT = b".\r\n"
_GO_AHEAD = 354
_PIECE = (
    64 * 1024
)  # octets of body written at a time; what fits goes out together with its final dot

# The service is closing (RFC 5321 3.8), or the server and we disagree on where we are: nothing more on this channel.
_LAST_WORDS = {421, 503}

_TOO_BIG = Reply(552, "5.3.4")  # RFC 1870 6.1: what the server would say, had we bothered it
_NO_SMTPUTF8 = Reply(553, "5.6.7")  # RFC 6531 3.5


class _ServiceClosing(Exception):
    """421, which may come in place of any reply, and after which the other replies do not come."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code)
        self.reply = reply


class Transaction:
    """Runs once, on a channel between commands, or behind the transaction that has begun it. ``phase`` may be read at
    any time, also after a cancellation."""

    def __init__(
        self, channel: SmtpChannel, extensions: Extensions, timeouts: Timeouts, envelope: Envelope
    ) -> None:
        self._channel = channel
        self._extensions = extensions
        self._timeouts = timeouts
        self.envelope = envelope
        self._content = b""
        self._commands: list[bytes] = []  # MAIL and RCPTs
        self.begun = False  # they have been sent, and DATA with them
        self._accepted: list[str] = []
        self._refused: list[RefusedRecipient] = []
        self.phase = Phase.MAIL

    async def run(self, following: "Transaction | None" = None) -> Outcome:
        """See `SubmissionConnection.submit`. ``following`` is begun with this one's content, where that can be."""
        if not self._commands:
            self._prepare()
        impossible = self._impossible()
        if impossible is not None:
            return self._refuse(impossible)
        try:
            refused = await self._announce()
            return refused or await self._deliver(following)
        except _ServiceClosing as closing:
            return self._refuse(closing.reply)
        except ChannelBroken as broken:
            return self._broken_off(broken.reason)

    # ---- before the first octet

    def _prepare(self) -> None:
        envelope = self.envelope
        if not envelope.recipients:
            raise ValueError("no recipient")
        content = normalise(envelope.content)
        self._commands = [
            mail_command(envelope, len(content), self._extensions),
            *(rcpt_command(each, smtputf8=envelope.smtputf8) for each in envelope.recipients),
        ]
        self._content = content

    def _impossible(self) -> Reply | None:
        limit = self._extensions.max_size
        if limit is not None and len(self._content) > limit:
            return _TOO_BIG
        if self.envelope.smtputf8 and not self._extensions.smtputf8:
            return _NO_SMTPUTF8
        return None

    def begin(self) -> tuple[bytes, int]:
        """What opens this transaction, and how many replies it earns, for whoever sends it along with the content of
        the one before (RFC 2920 section 3.1). Nothing, where it would not be sent by itself either."""
        try:
            self._prepare()
        except ValueError:
            return b"", 0  # said when its turn comes
        if not self._extensions.pipelining or self._impossible() is not None:
            return b"", 0
        self.begun = True
        return b"".join([*self._commands, _DATA]), len(self._commands) + 1

    # ---- the envelope

    async def _announce(self) -> Refused | None:
        """MAIL, RCPT and DATA; in one write where the server can (RFC 2920), in one row of replies either way."""
        mail, *rcpts = self._commands
        if self._extensions.pipelining and not self.begun:
            self._channel.send(b"".join([mail, *rcpts, _DATA]), replies=len(rcpts) + 2)
        reply = await self._ask(Phase.MAIL, mail)
        if reply.negative:
            return await self._refuse_ahead(reply, unread=len(rcpts) + 1)
        for address, rcpt in zip(self.envelope.recipients, rcpts, strict=True):
            reply = await self._ask(Phase.RCPT, rcpt)
            if reply.positive:
                self._accepted.append(address)
            else:
                self._refused.append(self._refusal(address, reply))
        if not self._accepted:
            # One temporary refusal among final ones makes the whole worth another try: the lowest code speaks.
            lowest = min((each.reply for each in self._refused), key=lambda reply: reply.code)
            return await self._refuse_ahead(lowest, unread=1)
        reply = await self._ask(Phase.DATA, _DATA)
        return self._refuse(reply) if reply.negative else None

    async def _ask(self, phase: Phase, command: bytes) -> Reply:
        self.phase = phase
        if not self._extensions.pipelining:
            self._channel.send(command, replies=1)
        in_data = phase is Phase.DATA
        reply = await self._channel.reply(self._patience(phase))
        if reply.code == 421:
            raise _ServiceClosing(reply)
        agreed = reply.code == _GO_AHEAD if in_data else reply.positive
        if not (agreed or reply.negative):
            raise self._channel.fail(Interruption.GARBLED)
        return reply

    def _patience(self, phase: Phase) -> float:
        if phase is Phase.DATA:
            return self._timeouts.data
        is_begun = self.begun and phase is Phase.MAIL
        return self._timeouts.begun if is_begun else self._timeouts.command

    async def _refuse_ahead(self, reply: Reply, *, unread: int) -> Refused:
        """A refusal with DATA perhaps already on its way: its reply is the last of the ``unread`` ones.

        The server may say 354 for all that. Then the message has to be ended, empty: RFC 2920 section 3.1.
        """
        refused = self._refuse(reply)
        if self._extensions.pipelining:
            with suppress(
                ChannelBroken
            ):  # the refusal stands, whatever else befalls the connection
                for _ in range(unread):
                    reply = await self._channel.reply(self._timeouts.data)
                if reply.code == _GO_AHEAD:
                    self._channel.send(_FINAL_DOT, replies=1)
                    await self._channel.reply(self._timeouts.data)
        return refused

    # ---- the content

    async def _deliver(self, following: "Transaction | None") -> Outcome:
        self.phase = Phase.BODY
        content = stuff_dots(self._content)
        ahead, replies = b"", 0
        if len(content) <= _PIECE:
            if following is not None:
                ahead, replies = following.begin()
            self._channel.send(b"".join([content, _FINAL_DOT, ahead]), replies=1 + replies)
        else:
            early = await self._send_pieces(memoryview(content))
            if early is not None:
                return early
            if following is not None:
                ahead, replies = following.begin()
            self._channel.send(_FINAL_DOT + ahead, replies=replies)
        self.phase = Phase.FINAL
        reply = await self._channel.reply(self._timeouts.final)
        if reply.positive:
            return Accepted(tuple(self._accepted), tuple(self._refused), reply)
        if reply.negative:
            return self._refuse(reply)
        raise self._channel.fail(Interruption.GARBLED)

    async def _send_pieces(self, content: memoryview) -> Refused | None:
        """The body, no faster than the server takes it. All of it has left before the final dot is written.

        So when the connection dies half-way, it is known that the dot was never sent.
        """
        for start in range(0, len(content), _PIECE):
            # The final reply is owed from the first piece on: one that comes early is a refusal.
            self._channel.send(content[start : start + _PIECE], replies=0 if start else 1)
            await self._channel.flushed(self._timeouts.progress)
            if self._channel.answered:
                return await self._refused_early()
        return None

    async def _refused_early(self) -> Refused:
        """The server has had enough before the end. There is no way to stop a body but to hang up."""
        reply = await self._channel.reply(self._timeouts.command)
        if not reply.negative:
            raise self._channel.fail(Interruption.GARBLED)
        self._channel.abort()
        return self._refuse(reply)

    # ---- what became of it

    def _refuse(self, reply: Reply) -> Refused:
        """Nobody gets it: who has no refusal of their own yet is given this one."""
        if reply.code in _LAST_WORDS:
            self._channel.abort()
        unanswered = self.envelope.recipients[len(self._accepted) + len(self._refused) :]
        others = [self._refusal(address, reply) for address in (*self._accepted, *unanswered)]
        return Refused((*self._refused, *others), self.phase, reply)

    def _refusal(self, address: str, reply: Reply) -> RefusedRecipient:
        return RefusedRecipient(
            address, reply, classify(reply, self.phase), explain(reply, self.phase)
        )

    def _broken_off(self, reason: Interruption) -> NotSent | Uncertain:
        if self.phase is Phase.FINAL:
            return Uncertain(tuple(self._accepted), tuple(self._refused), reason)
        return NotSent(reason, self.phase)
