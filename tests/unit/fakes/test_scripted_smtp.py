"""The scripted SMTP server, spoken to in raw octets: what other tests stand on."""

from __future__ import annotations

import asyncio
import base64
import smtplib
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.certificates import Certificates
from tests.fakes.script import CUT, NORMAL, STALL, START_TLS, Split, Trickle
from tests.fakes.scripted_smtp import Captured, ScriptedSmtp


class Line(NamedTuple):
    """A raw client connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, octets: bytes) -> bytes:
        """Say ``octets``, and give the reply to them (the last line of it)."""
        self.writer.write(octets)
        return await self.hear()

    async def hear(self) -> bytes:
        while (line := await self.reader.readuntil(b"\r\n"))[3:4] == b"-":
            pass
        return line


@pytest.fixture
async def line(smtp_server: ScriptedSmtp) -> AsyncIterator[Line]:
    connection = Line(*await asyncio.open_connection(smtp_server.host, smtp_server.port))
    assert (await connection.hear()).startswith(b"220 ")
    yield connection
    connection.writer.close()


ENVELOPE = b"MAIL FROM:<a@example.test> SIZE=9\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"


async def submit(line: Line, content: bytes) -> bytes:
    assert (await line.ask(ENVELOPE)).startswith(b"250")
    assert (await line.hear()).startswith(b"250")
    assert (await line.hear()).startswith(b"354")
    return await line.ask(content)


async def test_a_message_is_captured_without_the_dots_of_the_way(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    reply = await submit(line, b"Subject: x\r\n\r\n..dot\r\n.\r\n")

    assert reply.startswith(b"250")
    assert smtp_server.messages == [
        Captured("a@example.test", ["b@example.test"], b"Subject: x\r\n\r\n.dot\r\n", "SIZE=9")
    ]


async def test_an_empty_message_ends_at_its_first_line(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    assert (await submit(line, b".\r\n")).startswith(b"250")
    assert smtp_server.messages[0].content == b""


SMUGGLED = b"one\n.\nMAIL FROM:<evil@example.test>\r\n.\r\n"


async def test_a_strict_server_ends_a_message_at_cr_lf_only(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    await submit(line, SMUGGLED)

    assert smtp_server.messages[0].content == b"one\n.\nMAIL FROM:<evil@example.test>\r\n"


async def test_a_lax_server_can_be_smuggled_a_second_command() -> None:
    async with ScriptedSmtp(strict=False) as server:
        line = Line(*await asyncio.open_connection(server.host, server.port))
        await line.hear()
        await submit(line, SMUGGLED)
        await line.hear()
        line.writer.close()

        assert server.messages[0].content == b"one\n"
        assert server.count("MAIL FROM:<evil") == 1


async def test_several_replies_are_used_one_after_another_and_the_last_stays(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    smtp_server.on("NOOP", b"450 first\r\n", b"451 second\r\n", NORMAL)

    replies = [await line.ask(b"NOOP\r\n") for _ in range(4)]

    assert [reply[:3] for reply in replies] == [b"450", b"451", b"250", b"250"]


async def test_a_refused_recipient_gets_no_mail(smtp_server: ScriptedSmtp, line: Line) -> None:
    smtp_server.on("RCPT TO:<bob@", b"550 5.1.1 who?\r\n")

    await line.ask(b"MAIL FROM:<a@example.test>\r\n")
    refusal = await line.ask(b"RCPT TO:<bob@example.test>\r\n")
    await line.ask(b"RCPT TO:<eve@example.test>\r\n")
    await line.ask(b"DATA\r\n")
    await line.ask(b"x\r\n.\r\n")

    assert refusal == b"550 5.1.1 who?\r\n"
    assert smtp_server.messages[0].recipients == ["eve@example.test"]


async def test_a_scripted_acceptance_counts_like_the_servers_own(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    smtp_server.on("RCPT", b"251 will forward\r\n")
    smtp_server.on("DATA", b"354 do tell\r\n")

    await line.ask(b"MAIL FROM:<>\r\n")
    await line.ask(b"RCPT TO:<b@example.test>\r\n")
    line.writer.write(b"DATA\r\n")
    assert await line.reader.readline() == b"354 do tell\r\n"
    await line.ask(b"x\r\n.\r\n")

    assert [message.sender for message in smtp_server.messages] == [""]


async def test_a_message_is_captured_before_the_connection_is_cut_at_its_dot(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    smtp_server.on(".", (b"25", CUT))

    with pytest.raises(asyncio.IncompleteReadError) as cut:
        await submit(line, b"x\r\n.\r\n")

    assert cut.value.partial == b"25"
    assert len(smtp_server.messages) == 1


async def test_a_stall_says_nothing_but_keeps_the_connection(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    smtp_server.on("DATA", STALL)

    line.writer.write(ENVELOPE + b"NOOP\r\n")
    await smtp_server.heard("DATA")
    replies = [await line.hear(), await line.hear()]
    answer = asyncio.ensure_future(line.hear())
    done, _ = await asyncio.wait([answer], timeout=0.05)

    assert [reply[:3] for reply in replies] == [b"250", b"250"]
    assert not done
    assert smtp_server.open_connections == 1
    answer.cancel()


@pytest.mark.parametrize("reply", [Trickle(b"250 in bits\r\n"), Split(b"250 in bits\r\n", 5)])
async def test_octets_said_apart_arrive_apart(
    smtp_server: ScriptedSmtp, line: Line, reply: Trickle | Split
) -> None:
    smtp_server.on("NOOP", reply)

    line.writer.write(b"NOOP\r\n")
    segments: list[bytes] = []
    while not b"".join(segments).endswith(b"\n"):
        segments.append(await line.reader.read(100))

    assert b"".join(segments) == b"250 in bits\r\n"
    assert len(segments) == (2 if isinstance(reply, Split) else 13)


async def test_a_callable_can_hold_the_reply_until_the_test_lets_go(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    gate = asyncio.Event()

    async def when_open(command: bytes) -> bytes:
        await gate.wait()
        return b"250 " + command + b" at last\r\n"

    smtp_server.on("NOOP", when_open)

    line.writer.write(b"NOOP\r\n")
    await smtp_server.heard("NOOP")
    gate.set()

    assert await line.hear() == b"250 NOOP at last\r\n"


async def test_octets_can_be_injected_before_the_tls_handshake(
    smtp_server: ScriptedSmtp, line: Line
) -> None:
    smtp_server.on("STARTTLS", (b"220 go\r\n250 injected\r\n", START_TLS))

    await line.ask(b"STARTTLS\r\n")

    assert await line.hear() == b"250 injected\r\n"


async def test_hanging_up_ends_every_connection(smtp_server: ScriptedSmtp, line: Line) -> None:
    smtp_server.hang_up()

    assert await line.reader.read() == b""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"AUTH PLAIN " + base64.b64encode(b"\0joe\0secret"), b"235"),
        (b"AUTH PLAIN " + base64.b64encode(b"\0joe\0wrong"), b"535"),
        (b"AUTH PLAIN ???", b"501"),
        (b"AUTH GSSAPI", b"504"),
        (b"AUTH XOAUTH2 " + base64.b64encode(b"user=joe\x01auth=Bearer token\x01\x01"), b"235"),
    ],
)
async def test_only_the_right_credentials_are_accepted(
    line: Line, command: bytes, expected: bytes
) -> None:
    assert (await line.ask(command + b"\r\n"))[:3] == expected


async def test_a_refused_token_is_explained_in_a_challenge_first(line: Line) -> None:
    wrong = base64.b64encode(b"user=joe\x01auth=Bearer stale\x01\x01")

    challenge = await line.ask(b"AUTH XOAUTH2 " + wrong + b"\r\n")
    verdict = await line.ask(b"\r\n")

    assert base64.b64decode(challenge[4:]) == b'{"status":"401"}'
    assert verdict.startswith(b"535")


async def test_an_everyday_client_can_log_in_over_starttls_and_send(
    smtp_server: ScriptedSmtp, certificates: Certificates
) -> None:
    def send() -> None:
        with smtplib.SMTP(smtp_server.host, smtp_server.port, timeout=10) as smtp:
            smtp.starttls(context=certificates.client_context())
            smtp.user, smtp.password = "joe", "secret"
            smtp.ehlo()
            smtp.auth("LOGIN", smtp.auth_login)
            smtp.sendmail("joe@example.test", ["eve@example.test"], b"Subject: x\r\n\r\nhi\r\n")

    await asyncio.to_thread(send)

    [message] = smtp_server.messages
    assert (message.user, message.content) == ("joe", b"Subject: x\r\n\r\nhi\r\n")
