"""What the demo prints."""

from __future__ import annotations

import asyncio
from io import StringIO

import pytest

from cbemail.demo.guide import introduce, render
from cbemail.demo.mailhost import Account
from tests.fakes.listener import Listener

ACCOUNT = Account("robin@demo.example", "a password")
KNOWN = {
    f"<{name}>": f"the {name}"
    for name in ("url", "address", "password", "imap", "smtp", "session", "hours", "token")
}
MAIL = {"<newest>": "7", "<other>": "6"}


class Answering(Listener):
    """A service that gives every request the same answer, or hangs up where that is empty."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._answer)
        await writer.drain()


def test_every_value_takes_its_place() -> None:
    page = render(KNOWN | MAIL)

    assert "<" not in page
    assert "export CBEMAIL=the url TOKEN=the token\n" in page
    assert '"$CBEMAIL/api/mailbox/messages/7"\n' in page
    assert '-X DELETE "$CBEMAIL/api/mailbox/messages/6"\n' in page


def test_without_mail_there_is_nothing_to_read_or_delete_and_all_else_stays() -> None:
    page = render(KNOWN)

    dropped = [
        each for each in render(KNOWN | MAIL).split("\n\n") if each not in page.split("\n\n")
    ]
    assert [each.split(":")[0].strip() for each in dropped] == [
        "Read the newest",
        "Delete a message, to the trash",
    ]
    assert "<" not in page
    assert page.endswith("Ctrl-C ends the demo.\n")


async def test_a_login_that_is_refused_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    body = b'{"code": "upstream-unavailable"}'
    refusal = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    out = StringIO()

    async with Answering(refusal) as service:
        await asyncio.to_thread(introduce, out, service.port, ACCOUNT, 143, 587)

    assert out.getvalue() == ""
    assert capsys.readouterr().err == (
        "cbemail: the demo cannot log in to its own mailbox: POST /api/sessions was answered with 502 "
        "(upstream-unavailable)\n"
    )


async def test_a_service_that_ends_before_it_answers_is_introduced_to_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = StringIO()

    async with Answering(b"") as service:
        await asyncio.to_thread(introduce, out, service.port, ACCOUNT, 143, 587)

    assert (out.getvalue(), capsys.readouterr().err) == ("", "")
