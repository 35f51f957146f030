"""What a machine answers in a person's place, and what it does not."""

import pytest

from cbemail.mime.headers import read_summary_headers


@pytest.mark.parametrize(
    "header",
    [
        b"Auto-Submitted: auto-replied",
        b"Auto-Submitted: Auto-Replied (vacation)",
        b'Auto-Submitted: auto-replied; owner-email="joe@example.org"',
        b"Auto-Submitted: auto-generated\nSubject: Automatic reply: Lunch",
        b"Auto-Submitted: auto-generated\nSubject: Automatische Antwort: Mittagessen",
        b"Auto-Submitted: auto-generated\nSubject: =?utf-8?q?R=C3=A9ponse_automatique_?= : Midi",
        b"Precedence: auto_reply",
        b"Precedence: bulk\nAuto-Submitted: auto-replied\nX-Autoreply: yes",
    ],
)
def test_an_automatic_reply_is_known_by_its_header(header: bytes):
    assert read_summary_headers(header).is_automatic_reply


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Auto-Submitted: no",
        b"Auto-Submitted: auto-generated",
        b"Auto-Submitted: auto-generated\nSubject: Re: Automatic reply: it works",
        b"Auto-Submitted: auto-notified",
        b"Subject: Automatic reply: Lunch",
        b"X-Auto-Response-Suppress: All",
        b"Precedence: bulk",
        b"Precedence: list",
        b"Auto-Submitted: ;(",
    ],
)
def test_what_answers_nobody_is_no_automatic_reply(header: bytes):
    assert not read_summary_headers(header).is_automatic_reply
