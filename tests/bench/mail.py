"""Mail as a mailbox of every day has it: most of it text, some with HTML and a file."""

from __future__ import annotations

from collections.abc import Iterator

_TEXT = "Shall we meet on Tuesday? The figures are nearly done, and the rest can wait.\r\n" * 12
_HEADER = """\
Received: from mx{n}.example.org (mx{n}.example.org [192.0.2.7])\r
\tby mail.example.test with ESMTPS id {n:08x};\r
\tSat, 17 Jan 2026 10:{minute:02d}:00 +0100\r
DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=s1; h=from:to:subject:date;\r
\tbh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b={n:064x}\r
Date: Sat, 17 Jan 2026 10:{minute:02d}:00 +0100\r
From: =?utf-8?q?J=C3=BCrgen_Ann?= <ann{n}@example.org>\r
To: Joe <joe@example.test>, "Team, all" <team@example.test>\r
Cc: eve@example.net\r
Subject: =?utf-8?b?WsO8cmljaA==?= figures of week {n}\r
Message-ID: <week-{n}.{n:08x}@example.org>\r
In-Reply-To: <week-{n}.0@example.test>\r
References: <week-1.0@example.test> <week-{n}.0@example.test>\r
MIME-Version: 1.0\r
"""
_PLAIN = "Content-Type: text/plain; charset=utf-8\r\n\r\n" + _TEXT
_MIXED = (
    'Content-Type: multipart/mixed; boundary="m"\r\n\r\n'
    '--m\r\nContent-Type: multipart/alternative; boundary="a"\r\n\r\n'
    f"--a\r\n{_PLAIN}\r\n"
    f"--a\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>{_TEXT}</p>\r\n--a--\r\n"
    '--m\r\nContent-Type: application/pdf; name="week.pdf"\r\n'
    'Content-Disposition: attachment; filename="week.pdf"\r\n'
    "Content-Transfer-Encoding: base64\r\n\r\n"
    + "JVBERi0xLjQKJcOkw7zDtsOfCjIgMCBvYmoK\r\n" * 40
    + "--m--\r\n"
)


def text_message(number: int) -> bytes:
    return (_HEADER.format(n=number, minute=number % 60) + _PLAIN).encode()


def everyday_mail(count: int) -> Iterator[bytes]:
    """Every fourth message has two alternatives and an attachment."""
    for number in range(count):
        if number % 4:
            yield text_message(number)
        else:
            yield (_HEADER.format(n=number, minute=number % 60) + _MIXED).encode()


def attachment_message(octets: int) -> bytes:
    """A message whose second part is a file of about so many octets, once encoded."""
    line = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0\r\n"
    return (
        b'Subject: large\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="m"\r\n\r\n'
        b"--m\r\nContent-Type: text/plain\r\n\r\nSee below.\r\n"
        b"--m\r\nContent-Type: application/zip\r\nContent-Disposition: attachment; filename=large.zip\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n"
        + line * (octets // len(line))
        + b"\r\n--m--\r\n"
    )
