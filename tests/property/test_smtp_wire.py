"""No argument can add a line to an SMTP conversation, and no content can end its message early."""

import asyncio

from hypothesis import example, given
from hypothesis import strategies as st

from cbemail.smtp.channel import SmtpChannel
from cbemail.smtp.connection import SubmissionConnection
from cbemail.smtp.envelope import (
    Envelope,
    Extensions,
    mail_command,
    normalise,
    rcpt_command,
    stuff_dots,
)
from cbemail.smtp.outcome import Accepted
from cbemail.smtp.timeouts import DEFAULT_TIMEOUTS
from tests.fakes.scripted_smtp import ScriptedSmtp

ALL = Extensions(pipelining=True, eight_bit=True, smtputf8=True, size_offered=True)

# Text of which every second character is one that means something to SMTP.
treacherous = st.text(
    st.sampled_from('\r\n\0\t .,;:<>@"\\()[]{}%+=\x85\u2028') | st.characters(), max_size=40
)
addresses = treacherous | st.builds("{}@{}".format, treacherous, treacherous) | st.emails()

smuggled = st.lists(
    st.sampled_from(
        b". \r \n \r\n \r\n.\r\n \n.\n \r.\r \0 \xff a MAIL\tFROM:<a@b>\r\n DATA\r\n".split(b" ")
    ),
    max_size=30,
).map(b"".join)
contents = smuggled | st.binary(max_size=200)


@given(address=addresses, smtputf8=st.booleans())
@example(address="c@d.co> NOTIFY=NEVER", smtputf8=False)
@example(address="jörg@d.co", smtputf8=True)
def test_an_address_is_refused_or_is_exactly_that_recipient(
    *, address: str, smtputf8: bool
) -> None:
    try:
        command = rcpt_command(address, smtputf8=smtputf8)
    except ValueError:
        return

    assert command == b"RCPT TO:<" + address.encode() + b">\r\n"
    assert command.count(b"\n") == command.count(b"\r") == 1
    assert smtputf8 or command.isascii()
    local, at, domain = address.rpartition("@")
    assert at
    assert domain.isascii()
    assert local.startswith('"') or not set(local) & set(' \t,;:<>@"\\()[]\0')
    assert not set(domain) & set(' \t,;<>@"\\(){}')


@given(sender=addresses, smtputf8=st.booleans(), content=contents)
def test_a_sender_is_refused_or_is_one_line(*, sender: str, smtputf8: bool, content: bytes) -> None:
    try:
        command = mail_command(Envelope(sender, (), content, smtputf8), len(content), ALL)
    except ValueError:
        return

    assert command.startswith(b"MAIL FROM:<" + sender.encode() + b">")
    assert command.count(b"\n") == command.count(b"\r") == 1


@given(contents)
def test_normalised_content_has_no_line_end_but_crlf(content: bytes) -> None:
    lines = normalise(content).split(b"\r\n")

    assert lines.pop() == b""
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert normalise(normalise(content)) == normalise(content)
    assert b"".join(lines) == content.translate(None, b"\r\n")


@given(contents)
def test_a_receiver_undoes_the_stuffing_and_meets_no_dot_alone(content: bytes) -> None:
    lines = [line + b"\r\n" for line in stuff_dots(normalise(content)).split(b"\r\n")[:-1]]

    assert b".\r\n" not in lines
    assert b"".join(line.removeprefix(b".") for line in lines) == normalise(content)


@given(
    batch=st.lists(contents, min_size=1, max_size=5),
    strict=st.booleans(),
    pipelining=st.booleans(),
)
def test_each_content_is_exactly_one_message_to_strict_and_lax_servers(
    *, batch: list[bytes], strict: bool, pipelining: bool
) -> None:
    async def conversation() -> list[bytes]:
        async with ScriptedSmtp(strict=strict) as server:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(asyncio.Protocol, server.host, server.port)
            channel = SmtpChannel(transport)
            # Of the greeting nobody reads a word here: EHLO has been said, so to speak.
            channel.send(b"", replies=1)
            await channel.reply(10)
            extensions = Extensions(pipelining=pipelining)
            connection = SubmissionConnection(channel, extensions, DEFAULT_TIMEOUTS)
            for content in batch:
                outcome = await connection.submit(
                    Envelope("joe@example.org", ("ann@example.net",), content)
                )
                assert isinstance(outcome, Accepted)
            await connection.close()
            return [message.content for message in server.messages]

    assert asyncio.run(conversation()) == [normalise(content) for content in batch]
