"""A mail transaction to its end: what arrives, who is refused, and what a refusal leaves behind."""

import asyncio

import pytest

from cbemail.smtp.envelope import Envelope
from cbemail.smtp.outcome import Accepted, NotSent, Refused, RefusedRecipient
from cbemail.smtp.replies import Phase, Reply, Verdict
from cbemail.smtp.timeouts import Timeouts
from tests.fakes.script import CUT, NORMAL, STALL, Trickle
from tests.fakes.script import Reply as Scripted
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.unit.smtp.conftest import IMPATIENT, ONE_AT_A_TIME, Open, until

MESSAGE = b"Subject: hello\r\n\r\n.hello\r\n"
ENVELOPE = Envelope("joe@example.org", ("ann@example.net", "bob@example.net"), MESSAGE)


# ---- all is well


async def test_a_message_arrives_as_it_is_for_all_its_recipients(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)

    outcome = await connection.submit(ENVELOPE)

    assert outcome == Accepted(ENVELOPE.recipients, (), Reply(250, "2.0.0", "2.0.0 Ok: queued"))
    [message] = server.messages
    assert message.sender == "joe@example.org"
    assert tuple(message.recipients) == ENVELOPE.recipients
    assert message.content == MESSAGE
    assert message.parameters == f"SIZE={len(MESSAGE)}"


async def test_a_connection_carries_many_messages(server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(server)

    outcomes = [await connection.submit(ENVELOPE) for _ in range(3)]

    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert connection.is_usable()
    assert connection.sent == len(server.messages) == 3
    assert server.connections == 1


async def test_the_envelope_of_a_pipelining_server_is_one_write(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(smtp_server)
    smtp_server.on("MAIL", STALL)  # from here the server only collects octets

    submission = asyncio.create_task(connection.submit(ENVELOPE))
    await smtp_server.heard("MAIL")
    await until(lambda: smtp_server.received.endswith(b"DATA\r\n"))
    submission.cancel()

    assert smtp_server.received.count(b"RCPT TO:") == 2


async def test_a_server_without_pipelining_is_never_talked_ahead_of(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.extensions = ONE_AT_A_TIME
    connection = await open_to(smtp_server, timeouts=Timeouts(command=IMPATIENT))
    smtp_server.on("RCPT", STALL)

    await connection.submit(ENVELOPE)

    assert smtp_server.received.endswith(b"RCPT TO:<ann@example.net>\r\n")


async def test_replies_that_drip_in_are_put_together(server: ScriptedSmtp, open_to: Open) -> None:
    server.on("MAIL", Trickle(b"250-2.1.0 well\r\n250 2.1.0 fine\r\n"))
    server.on(".", Trickle(b"250 2.0.0 queued\r\n"))
    connection = await open_to(server)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Accepted)


# ---- some recipients only


async def test_one_refused_recipient_does_not_keep_the_message_from_the_others(
    server: ScriptedSmtp, open_to: Open
) -> None:
    server.on("RCPT TO:<bob@", b"450 4.2.1 slowly\r\n")
    connection = await open_to(server)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Accepted)
    assert outcome.recipients == ("ann@example.net",)
    [refused] = outcome.refused
    assert refused == RefusedRecipient(
        "bob@example.net",
        Reply(450, "4.2.1", "4.2.1 slowly"),
        Verdict.THROTTLED,
        "The mailbox is not accepting messages.",
    )
    assert server.messages[0].recipients == ["ann@example.net"]


async def test_each_refused_recipient_keeps_its_own_reply(
    server: ScriptedSmtp, open_to: Open
) -> None:
    server.on("RCPT TO:<ann@", b"550 5.1.1 who?\r\n")
    server.on("RCPT TO:<bob@", b"450 4.2.0 later\r\n")
    connection = await open_to(server)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Refused)
    assert [each.verdict for each in outcome.recipients] == [Verdict.FAILED, Verdict.DEFERRED]
    assert outcome.verdict is Verdict.DEFERRED, "worth another try for the sake of one"
    assert server.messages == []


async def test_a_data_refusal_leaves_a_recipient_the_reply_it_had(
    server: ScriptedSmtp, open_to: Open
) -> None:
    server.on("RCPT TO:<ann@", b"550 5.1.1 who?\r\n")
    server.on("DATA", b"451 4.3.0 disk\r\n")
    connection = await open_to(server)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Refused)
    assert {each.address: each.reply.code for each in outcome.recipients} == {
        "ann@example.net": 550,
        "bob@example.net": 451,
    }


# ---- a reply came: nobody gets it, and the connection goes on

PHASES = [
    ("MAIL", Phase.MAIL),
    ("RCPT", Phase.RCPT),
    ("DATA", Phase.DATA),
    (".", Phase.FINAL),
]


@pytest.mark.parametrize(("verb", "phase"), PHASES)
@pytest.mark.parametrize(
    ("said", "verdict"),
    [(b"451 4.3.0 later\r\n", Verdict.DEFERRED), (b"550 5.0.0 never\r\n", Verdict.FAILED)],
)
async def test_a_refusal_is_told_and_the_next_message_goes_through(
    server: ScriptedSmtp, open_to: Open, verb: str, phase: Phase, said: bytes, verdict: Verdict
) -> None:
    connection = await open_to(server)
    server.on(verb, said, said if verb == "RCPT" else NORMAL, NORMAL)

    refused = await connection.submit(ENVELOPE)
    delivered_so_far = len(server.messages)
    accepted = await connection.submit(ENVELOPE)

    assert isinstance(refused, Refused)
    assert (refused.phase, refused.verdict) == (phase, verdict)
    assert [each.verdict for each in refused.recipients] == [verdict, verdict]
    assert isinstance(accepted, Accepted)
    assert len(server.messages) == delivered_so_far + 1
    assert server.connections == 1


@pytest.mark.parametrize(("verb", "phase"), PHASES)
@pytest.mark.parametrize("said", [(b"421 4.3.2 closing\r\n", CUT), b"503 5.5.1 what?\r\n"])
async def test_last_words_end_the_connection_but_are_a_reply(
    server: ScriptedSmtp, open_to: Open, verb: str, phase: Phase, said: Scripted
) -> None:
    connection = await open_to(server)
    server.on(verb, said)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Refused)
    assert (outcome.phase, outcome.verdict) == (phase, Verdict.DEFERRED)
    assert {each.address for each in outcome.recipients} == set(ENVELOPE.recipients)
    assert not connection.is_usable()


async def test_a_message_that_was_announced_to_nobody_is_ended_empty(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    """RFC 2920 section 3.1: DATA was sent ahead, and the server wants its message although nobody gets it."""
    smtp_server.on("RCPT", b"550 5.1.1 who?\r\n", b"550 5.1.1 who?\r\n", NORMAL)
    smtp_server.on("DATA", b"354 go on\r\n")
    smtp_server.on(".", b"554 5.5.1 no recipients\r\n", NORMAL)
    connection = await open_to(smtp_server)

    refused = await connection.submit(ENVELOPE)
    accepted = await connection.submit(ENVELOPE)

    assert isinstance(refused, Refused)
    assert refused.phase is Phase.RCPT
    assert isinstance(accepted, Accepted)
    assert [message.content for message in smtp_server.messages] == [b"", MESSAGE]


# ---- refused by ourselves


async def test_a_message_over_the_servers_limit_is_not_sent_to_it(
    server: ScriptedSmtp, open_to: Open
) -> None:
    server.extensions = (*server.extensions, f"SIZE {len(MESSAGE) - 1}")
    connection = await open_to(server)

    outcome = await connection.submit(ENVELOPE)

    assert isinstance(outcome, Refused)
    assert outcome.verdict is Verdict.MESSAGE_TOO_BIG
    assert [each.verdict for each in outcome.recipients] == [Verdict.MESSAGE_TOO_BIG] * 2
    assert server.count("MAIL") == 0
    assert connection.is_usable()


async def test_an_address_beyond_ascii_is_refused_where_the_server_cannot_take_it(
    server: ScriptedSmtp, open_to: Open
) -> None:
    server.extensions = tuple(each for each in server.extensions if each != "SMTPUTF8")
    connection = await open_to(server)

    outcome = await connection.submit(Envelope("a@b.co", ("jörg@d.co",), MESSAGE, smtputf8=True))

    assert isinstance(outcome, Refused)
    assert (outcome.reply.code, outcome.reply.enhanced) == (553, "5.6.7")
    assert server.count("MAIL") == 0


async def test_an_address_beyond_ascii_goes_where_the_server_can_take_it(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)

    await connection.submit(Envelope("a@b.co", ("jörg@d.co",), MESSAGE, smtputf8=True))

    assert server.messages[0].recipients == ["jörg@d.co"]
    assert server.messages[0].parameters.endswith(" SMTPUTF8")


@pytest.mark.parametrize("recipients", [(), ("ann@example.net", "x@y> NOTIFY=NEVER")])
async def test_a_wrong_envelope_is_our_mistake_and_costs_nothing(
    server: ScriptedSmtp, open_to: Open, recipients: tuple[str, ...]
) -> None:
    connection = await open_to(server)

    with pytest.raises(ValueError, match=r"address|recipient"):
        await connection.submit(Envelope("joe@example.org", recipients, MESSAGE))

    assert server.count("MAIL") == 0
    assert connection.is_usable()


# ---- one behind the other


SECOND = Envelope("joe@example.org", ("cid@example.net",), b"Subject: second\r\n\r\nhello\r\n")
BEGUN = (
    b"\r\n.\r\nMAIL FROM:<joe@example.org> SIZE=%d\r\nRCPT TO:<cid@example.net>\r\nDATA\r\n"
    % len(SECOND.content)
)


@pytest.mark.parametrize(
    "content", [MESSAGE, (b"x" * 998 + b"\r\n") * 200], ids=["small", "in pieces"]
)
async def test_the_next_message_begins_with_the_end_of_the_one_before(
    smtp_server: ScriptedSmtp, open_to: Open, content: bytes
) -> None:
    connection = await open_to(smtp_server)
    smtp_server.on(".", STALL)  # from here the server only collects octets
    first = Envelope("joe@example.org", ("ann@example.net",), content)

    submission = asyncio.create_task(connection.submit(first, SECOND))
    await smtp_server.heard(".")
    await until(lambda: smtp_server.received.endswith(b"DATA\r\n"))
    submission.cancel()

    assert smtp_server.received.endswith(BEGUN)


async def test_messages_behind_each_other_arrive_each_as_it_is(
    server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(server)

    outcomes = [
        await connection.submit(ENVELOPE, SECOND),
        await connection.submit(SECOND, ENVELOPE),
        await connection.submit(ENVELOPE),
    ]

    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert [each.content for each in server.messages] == [MESSAGE, SECOND.content, MESSAGE]
    assert connection.is_usable()


async def test_a_server_without_pipelining_is_told_of_the_next_message_when_its_turn_comes(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.extensions = ONE_AT_A_TIME
    connection = await open_to(smtp_server)

    await connection.submit(ENVELOPE, SECOND)

    assert smtp_server.count("MAIL") == 1
    assert not connection.has_begun(SECOND)
    assert connection.is_usable()


async def test_what_becomes_of_a_message_is_not_what_becomes_of_the_one_behind_it(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.on(".", b"554 5.7.1 spam\r\n", NORMAL)
    connection = await open_to(smtp_server)

    first = await connection.submit(ENVELOPE, SECOND)
    second = await connection.submit(SECOND)

    assert isinstance(first, Refused)
    assert first.phase is Phase.FINAL
    assert isinstance(second, Accepted)


async def test_a_message_that_has_begun_and_is_refused_leaves_the_way_free_for_the_next(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.on("RCPT TO:<cid@", b"550 5.1.1 who?\r\n")
    connection = await open_to(smtp_server)

    await connection.submit(ENVELOPE, SECOND)
    refused = await connection.submit(SECOND, ENVELOPE)
    third = await connection.submit(ENVELOPE)

    assert isinstance(refused, Refused)
    assert refused.phase is Phase.RCPT
    assert isinstance(third, Accepted)


@pytest.mark.parametrize("last_words", [b"421 4.3.2 closing\r\n", CUT])
async def test_the_end_of_a_connection_takes_nothing_of_a_message_that_had_only_begun(
    smtp_server: ScriptedSmtp, open_to: Open, last_words: Scripted
) -> None:
    smtp_server.on(".", last_words)
    connection = await open_to(smtp_server)

    await connection.submit(ENVELOPE, SECOND)
    outcome = await connection.submit(SECOND)

    assert isinstance(outcome, NotSent)
    assert not connection.goes_on()
    assert [message.content for message in smtp_server.messages] == [MESSAGE]


async def test_a_message_that_has_begun_and_is_given_up_was_not_sent(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(smtp_server)

    await connection.submit(ENVELOPE, SECOND)
    goes_on, is_usable = connection.goes_on(), connection.is_usable()
    await connection.close()
    await until(lambda: not smtp_server.open_connections)

    assert (goes_on, is_usable) == (True, False)
    assert [message.content for message in smtp_server.messages] == [MESSAGE]


async def test_after_a_message_has_begun_no_other_can_go(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    connection = await open_to(smtp_server)
    await connection.submit(ENVELOPE, SECOND)

    with pytest.raises(ValueError, match="another message has begun"):
        await connection.submit(ENVELOPE)

    assert not connection.goes_on()


@pytest.mark.parametrize(
    "wrong",
    [
        Envelope("joe@example.org", ("a b@example.net",), MESSAGE),
        Envelope("joe@example.org", (), MESSAGE),
        Envelope("joe@example.org", ("ann@example.net",), b"x" * (27 << 20)),
    ],
    ids=["address", "nobody", "too large"],
)
async def test_a_message_that_cannot_be_sent_does_not_begin(
    smtp_server: ScriptedSmtp, open_to: Open, wrong: Envelope
) -> None:
    connection = await open_to(smtp_server)

    outcome = await connection.submit(ENVELOPE, wrong)

    assert isinstance(outcome, Accepted)
    assert smtp_server.count("MAIL") == 1
    assert connection.is_usable()
