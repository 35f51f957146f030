"""A mail transaction that is broken off: by the server, by the network, by us. Before the dot, or after it."""

import asyncio

import pytest

from cbemail.smtp.envelope import Envelope
from cbemail.smtp.outcome import Accepted, Interruption, NotSent, Refused, Uncertain
from cbemail.smtp.replies import Phase, Verdict
from cbemail.smtp.timeouts import Timeouts
from tests.fakes.fault_proxy import CUT as CUT_OFF
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.listener import Listener
from tests.fakes.script import CUT, NORMAL, STALL, Trickle
from tests.fakes.script import Reply as Scripted
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.smtp.conftest import IMPATIENT, Open, until

MESSAGE = b"Subject: hello\r\n\r\n.hello\r\n"
ENVELOPE = Envelope("joe@example.org", ("ann@example.net", "bob@example.net"), MESSAGE)
HUGE = Envelope("joe@example.org", ("ann@example.net",), (b"x" * 998 + b"\r\n") * 25_000)


# ---- no reply came

SILENCES = [
    (CUT, Interruption.LOST),
    (STALL, Interruption.TIMEOUT),
    (b"%d what?\r\n" % 999, Interruption.GARBLED),
    (b"334 go on\r\n", Interruption.GARBLED),
    (b"250-more\r\n" * 5_000, Interruption.GARBLED),
    ((b"250 o", CUT), Interruption.LOST),
    ((Trickle(b"250-slowly"), STALL), Interruption.TIMEOUT),
]
IDS = ["cut", "stall", "bad-code", "no-answer", "endless", "cut-inside", "drip"]


@pytest.mark.parametrize(
    ("verb", "phase", "timeouts"),
    [
        ("MAIL", Phase.MAIL, Timeouts(command=IMPATIENT)),
        ("RCPT", Phase.RCPT, Timeouts(command=IMPATIENT)),
        ("DATA", Phase.DATA, Timeouts(data=IMPATIENT)),
    ],
)
@pytest.mark.parametrize(("said", "reason"), SILENCES, ids=IDS)
async def test_before_the_final_dot_silence_means_not_sent(
    server: ScriptedSmtp,
    open_to: Open,
    verb: str,
    phase: Phase,
    timeouts: Timeouts,
    said: Scripted,
    reason: Interruption,
) -> None:
    connection = await open_to(server, timeouts=timeouts)
    server.on(verb, said)

    outcome = await connection.submit(ENVELOPE)

    assert outcome == NotSent(reason, phase)
    assert not connection.is_usable()
    assert server.messages == []


@pytest.mark.parametrize(("said", "reason"), SILENCES, ids=IDS)
async def test_after_the_final_dot_silence_means_uncertain(
    server: ScriptedSmtp, open_to: Open, said: Scripted, reason: Interruption
) -> None:
    connection = await open_to(server, timeouts=Timeouts(final=IMPATIENT))
    server.on("RCPT TO:<bob@", b"550 5.1.1 who?\r\n")
    server.on(".", said)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Uncertain)
    assert outcome.reason is reason
    assert outcome.recipients == ("ann@example.net",)
    assert [each.address for each in outcome.refused] == ["bob@example.net"]
    assert not connection.is_usable()


async def test_a_broken_connection_sends_nothing_more(server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(server)
    server.on(".", CUT)
    await connection.submit(ENVELOPE)

    outcome = await connection.submit(ENVELOPE)

    assert outcome == NotSent(Interruption.LOST, Phase.MAIL)
    assert len(server.messages) == 1


async def test_one_reply_too_many_never_answers_the_next_command(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)
    server.on("MAIL", b"250 2.1.0 ok\r\n250 2.1.0 ok\r\n")

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, NotSent)
    assert outcome.reason is Interruption.GARBLED
    assert server.messages == []


@pytest.mark.parametrize("more", [b"421 4.7.0 enough for today\r\n", b"421 4.7", b"\r\n"])
async def test_words_behind_the_final_reply_cost_the_connection_only(
    server: ScriptedSmtp, open_to: Open, more: bytes
) -> None:
    connection = await open_to(server)
    server.on(".", b"250 2.0.0 queued\r\n" + more)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Accepted)
    assert not connection.is_usable()


async def test_words_behind_the_go_ahead_keep_the_message_here(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)
    server.on("DATA", (b"354 go on\r\n550 5.3.0 or rather not\r\n", CUT))

    outcome = await connection.submit(ENVELOPE)

    assert outcome == NotSent(Interruption.GARBLED, Phase.BODY)


async def test_a_server_that_hangs_up_between_messages_is_noticed(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)

    server.hang_up()
    await until(lambda: not connection.is_usable())

    assert not await connection.check()


async def test_a_check_asks_the_server(server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(server)
    server.on("RSET", NORMAL, b"500 5.5.1 what?\r\n")

    assert await connection.check()
    assert not await connection.check()
    assert not connection.is_usable()


# ---- cancelled


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_a_cancellation_before_the_final_dot_takes_the_message_back(
    server: ScriptedSmtp, open_to: Open, verb: str
) -> None:
    connection = await open_to(server)
    server.on(verb, STALL)
    submission = asyncio.create_task(connection.submit(ENVELOPE))
    await server.heard(verb)

    submission.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submission

    assert connection.phase is not Phase.FINAL
    assert not connection.is_usable()
    assert server.messages == []
    await until(lambda: not server.open_connections)  # the hanging up is what takes it back


async def test_a_cancellation_after_the_final_dot_is_known_to_be_uncertain(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)
    server.on(".", STALL)
    submission = asyncio.create_task(connection.submit(ENVELOPE))
    await server.heard(".")

    submission.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submission

    assert connection.phase is Phase.FINAL
    assert not connection.is_usable()


async def test_a_cancellation_while_clearing_up_says_nothing_of_the_message_before(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)
    server.on("DATA", b"451 4.3.0 later\r\n")
    server.on("RSET", STALL)
    await connection.submit(ENVELOPE)
    submission = asyncio.create_task(connection.submit(ENVELOPE))
    await server.heard("RSET")

    submission.cancel()
    await asyncio.wait([submission])

    assert connection.phase is Phase.MAIL
    assert not connection.is_usable()


# ---- large bodies


async def test_a_large_message_arrives_whole(server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(server)

    outcome = await connection.submit(HUGE)

    assert isinstance(outcome, Accepted)
    assert server.messages[0].content == HUGE.content


async def test_a_connection_lost_halfway_through_a_body_means_not_sent(
    server: ScriptedSmtp, open_to: Open
) -> None:
    async with FaultProxy(server.host, server.port) as proxy:
        connection = await open_to(proxy)
        proxy.up.fail(CUT_OFF, after=10_000)

        outcome = await connection.submit(HUGE)

    assert outcome == NotSent(Interruption.LOST, Phase.BODY)
    assert server.messages == []


class Sated(Listener):
    """Takes the beginning of a message, says ``remark`` in the middle of it, and reads no further."""

    def __init__(self, remark: bytes) -> None:
        super().__init__()
        self.sated = False
        self._remark = remark

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sated\r\n")
        for answer in (b"250 sated", b"250 ok", b"250 ok", b"354 go on"):
            await reader.readline()
            writer.write(answer + b"\r\n")
        await reader.readexactly(100_000)
        self.sated = True
        writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a Transport
        writer.write(self._remark)
        await asyncio.get_running_loop().create_future()


async def test_a_server_that_takes_no_more_of_a_body_means_not_sent(open_to: Open) -> None:
    async with Sated(remark=b"") as server:
        connection = await open_to(server, timeouts=Timeouts(progress=IMPATIENT))

        outcome = await connection.submit(HUGE)

    assert outcome == NotSent(Interruption.TIMEOUT, Phase.BODY)


@pytest.mark.parametrize("more", [b"", b"421 4.3.2 and goodbye\r\n"])
async def test_a_refusal_in_the_middle_of_a_body_stops_it(open_to: Open, more: bytes) -> None:
    async with Sated(b"552 5.3.4 that is enough\r\n" + more) as server:
        connection = await open_to(server)

        outcome = await connection.submit(HUGE)

    assert isinstance(outcome, Refused)
    assert (outcome.phase, outcome.verdict) == (Phase.BODY, Verdict.MESSAGE_TOO_BIG)
    assert not connection.is_usable()


async def test_praise_in_the_middle_of_a_body_is_no_acceptance(open_to: Open) -> None:
    async with Sated(b"250 2.0.0 lovely\r\n") as server:
        connection = await open_to(server)

        outcome = await connection.submit(HUGE)

    assert outcome == NotSent(Interruption.GARBLED, Phase.BODY)


async def test_a_cancellation_in_the_middle_of_a_body_takes_the_message_back(
    open_to: Open,
) -> None:
    async with Sated(remark=b"") as server:
        connection = await open_to(server)
        submission = asyncio.create_task(connection.submit(HUGE))
        await until(lambda: server.sated)

        submission.cancel()
        await asyncio.wait([submission])

        assert not connection.is_usable()
        assert connection.phase is Phase.BODY


# ---- one alarm for many waits


async def test_a_long_wait_that_is_over_does_not_lengthen_the_next(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server, timeouts=Timeouts(reset=60, command=IMPATIENT))
    assert await connection.check()
    server.on("MAIL", STALL)

    async with asyncio.timeout(10):
        outcome = await connection.submit(ENVELOPE)

    assert outcome == NotSent(Interruption.TIMEOUT, Phase.MAIL)


async def test_a_short_wait_that_is_over_does_not_shorten_the_next(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server, timeouts=Timeouts(reset=IMPATIENT, command=60))
    assert await connection.check()
    late = asyncio.Event()

    async def answer(_: bytes) -> Scripted:
        asyncio.get_running_loop().call_later(2 * IMPATIENT, late.set)
        await late.wait()
        return NORMAL

    server.on("MAIL", answer)

    assert isinstance(await connection.submit(ENVELOPE), Accepted)


async def test_a_connection_at_rest_outlives_the_deadline_of_its_last_wait(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server, timeouts=Timeouts(reset=IMPATIENT))
    assert await connection.check()
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * IMPATIENT, later.set)

    await later.wait()

    assert isinstance(await connection.submit(ENVELOPE), Accepted)
