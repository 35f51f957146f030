"""Every message that has troubled a mail parser, stored in Dovecot, is listed and read like any other."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Mailbox
from tests.integration.dovecot import Dovecot

CORPUS = os.environ.get("CBEMAIL_CORPUS")

# Each is a class of message that made a parser run away: in time, in memory, or out of its stack.
HOSTILE = {
    "one header of a megabyte": b"X: " + b"a " * 500_000 + b"\r\n\r\nbody\r\n",
    "100,000 recipients": b"To: " + b"a@example.org, " * 100_000 + b"b@example.org\r\n\r\nbody\r\n",
    "parentheses": b"To: " + b"(" * 50_000 + b"\r\n\r\nbody\r\n",
    "quotes": b"From: " + b'"' * 50_000 + b"\r\n\r\nbody\r\n",
    "encoded words": b"Subject: " + b"=?utf-8?b?w7w=?= " * 50_000 + b"\r\n\r\nbody\r\n",
    "100,000 header fields": b"X-A: b\r\n" * 100_000 + b"\r\nbody\r\n",
    "nested multiparts": b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n)
        for n in range(2_000)
    ),
    "nested messages": b"Content-Type: message/rfc822\r\n\r\n" * 2_000
    + b"Subject: x\r\n\r\nbody\r\n",
    "50,000 parts": b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    + b"--b\r\n\r\nx\r\n" * 50_000
    + b"--b--\r\n",
    "parameter continuations": b"Content-Type: text/plain;"
    + b"".join(b"\r\n name*%d*=a;" % n for n in range(20_000))
    + b"\r\n\r\nbody\r\n",
    "deep HTML": b"Content-Type: text/html\r\n\r\n" + b"<div>" * 60_000 + b"x\r\n",
    "misnested HTML": b"Content-Type: text/html\r\n\r\n" + b"<b><i>" * 100_000 + b"x\r\n",
    "100,000 attributes": b"Content-Type: text/html\r\n\r\n<p "
    + b" ".join(b"a%d=b" % n for n in range(100_000))
    + b">x</p>\r\n",
    "uuencoded bomb": b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 a\r\n"
    + (b"M" + b"`" * 60 + b"\r\n") * 50_000
    + b"end\r\n",
    "unknown charset": b"Content-Type: text/plain; charset=x-nonsense\r\n\r\n\xff\xfe\x00 text\r\n",
    "UTF-7 script": b"Content-Type: text/html; charset=utf-7\r\n\r\n+ADw-script+AD4-alert(1)\r\n",
    "bad base64": b"Content-Transfer-Encoding: base64\r\n\r\nSGVsbG8=====%%%\r\n",
    "surrogates": b"Content-Type: text/plain; charset=utf-8\r\n\r\n\xed\xa0\x80 and \xc0\xaf\r\n",
    "bare carriage returns": b"Subject: a\rb\rc\r\n\r\nline\rline\r\n",
    "no header at all": b"\r\nbody only\r\n",
    "nothing at all": b"\r\n",
}


def corpus() -> list[bytes]:
    """Its messages, but for those no IMAP server takes: empty ones, and those that hold NUL (RFC 9051 section 4.3)."""
    files = [path for path in Path(CORPUS or "").rglob("*") if path.suffix not in {".md", ".py"}]
    contents = [path.read_bytes() for path in sorted(files) if path.is_file()]
    return [content for content in contents if content.strip() and b"\0" not in content]


async def read_all(mailbox: Mailbox, count: int) -> list[dict[str, Any]]:
    """Page through INBOX and read every message; every answer is good, and JSON in UTF-8."""
    uids: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = await mailbox.get("/api/mailbox/messages", limit=100, **cursor)
        assert page.status_code == 200, page.text
        listed = page.json()
        assert [row for row in listed["messages"] if "error" in row] == []
        uids += [row["uid"] for row in listed["messages"]]
        if listed["next_cursor"] is None:
            break
        cursor = {"cursor": listed["next_cursor"]}
    assert len(uids) == count
    messages = []
    for uid in uids:
        response = await mailbox.get(f"/api/mailbox/messages/{uid}")
        assert response.status_code == 200, (uid, response.text)
        response.content.decode("utf-8", "strict")
        messages.append(response.json())
    return messages


@pytest.mark.skipif(CORPUS is None, reason="CBEMAIL_CORPUS names no folder of messages")
async def test_every_message_of_the_corpus_is_listed_and_read(
    mailbox: Mailbox, dovecot: Dovecot
) -> None:
    stored = corpus()
    for content in stored:
        dovecot.append(mailbox.user, content)

    messages = await read_all(mailbox, len(stored))

    assert sum(message["text"] is not None for message in messages) > len(messages) // 2


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_message_is_listed_and_read_while_others_are_served(
    mailbox: Mailbox, dovecot: Dovecot, kind: str
) -> None:
    dovecot.append(mailbox.user, HOSTILE[kind])

    reading = asyncio.create_task(read_all(mailbox, 1))
    alive = 0
    while not reading.done():
        assert (await mailbox.get("/healthz")).status_code == 200
        alive += 1
    [message] = await reading

    assert alive > 0
    assert "<script" not in (message["html"] or "")
