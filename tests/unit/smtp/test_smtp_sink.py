"""Postfix's own smtp-sink as the other side: what it does on purpose, we must understand."""

from pathlib import Path

import pytest

from cbemail.errors import UpstreamUnavailable
from cbemail.smtp.envelope import Envelope
from cbemail.smtp.outcome import Accepted, NotSent, Outcome, Refused, Uncertain
from cbemail.smtp.replies import Phase, Verdict
from tests.fakes.smtp_sink import SmtpSink
from tests.unit.smtp.conftest import Open

pytestmark = pytest.mark.integration

MESSAGE = b"Subject: hello\r\n\r\n.hello\r\n..\r\n"
ENVELOPE = Envelope("joe@example.org", ("ann@example.net", "bob@example.net"), MESSAGE)


async def submit_to(sink: SmtpSink, open_to: Open) -> Outcome:
    connection = await open_to(sink)
    return await connection.submit(ENVELOPE)


@pytest.mark.parametrize("switches", [(), ("-p",), ("-a",), ("-8", "-E", "-N")])
async def test_a_message_arrives_whatever_is_offered(
    tmp_path: Path, open_to: Open, switches: tuple[str, ...]
) -> None:
    with SmtpSink(tmp_path, *switches) as sink:
        outcome = await submit_to(sink, open_to)

    assert isinstance(outcome, Accepted)
    [message] = sink.messages()
    assert message.content == MESSAGE
    assert tuple(message.recipients) == ENVELOPE.recipients


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_hanging_up_before_the_dot_means_not_sent(
    tmp_path: Path, open_to: Open, verb: str
) -> None:
    with SmtpSink(tmp_path, "-q", verb) as sink:
        outcome = await submit_to(sink, open_to)

    assert isinstance(outcome, NotSent)
    assert sink.messages() == []


async def test_hanging_up_after_the_dot_means_uncertain(tmp_path: Path, open_to: Open) -> None:
    """To aiosmtplib this and the one before look the same. Here the message was taken."""
    with SmtpSink(tmp_path, "-q", ".") as sink:
        outcome = await submit_to(sink, open_to)

    assert isinstance(outcome, Uncertain)
    assert outcome.recipients == ENVELOPE.recipients
    assert len(sink.messages()) == 1


@pytest.mark.parametrize(
    ("switch", "verdict"),
    [("-Q", Verdict.DEFERRED), ("-r", Verdict.DEFERRED), ("-f", Verdict.FAILED)],
)
async def test_a_reply_to_the_dot_is_never_uncertain(
    tmp_path: Path, open_to: Open, switch: str, verdict: Verdict
) -> None:
    with SmtpSink(tmp_path, switch, ".") as sink:
        outcome = await submit_to(sink, open_to)

    assert isinstance(outcome, Refused)
    assert (outcome.phase, outcome.verdict) == (Phase.FINAL, verdict)


@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "AUTH"])
async def test_hanging_up_while_opening_is_unavailable(
    tmp_path: Path, open_to: Open, verb: str
) -> None:
    with SmtpSink(tmp_path, "-q", verb) as sink, pytest.raises(UpstreamUnavailable):
        await open_to(sink)
