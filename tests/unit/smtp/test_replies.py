"""What replies are, and what they mean."""

import pytest

from cbemail.smtp.replies import (
    MAX_REPLY,
    Phase,
    Reply,
    ReplyParser,
    ReplySyntaxError,
    Verdict,
    classify,
    explain,
)

# ---- parsing


def feed_all(parser: ReplyParser, pieces: list[bytes]) -> list[Reply]:
    return [reply for piece in pieces for reply in parser.feed(piece)]


def test_a_reply_of_several_lines_is_one_reply() -> None:
    said = b"550-5.1.1 No such user\r\n550-5.1.1 at this address\r\n550 5.1.1 abc123\r\n"

    [reply] = ReplyParser().feed(said)

    assert reply == Reply(550, "5.1.1", "5.1.1 No such user\n5.1.1 at this address\n5.1.1 abc123")


def test_pipelined_replies_in_one_segment_come_apart() -> None:
    replies = list(ReplyParser().feed(b"250 2.1.0 Ok\r\n550 5.1.1 no\r\n354 go\r\n"))

    assert [(reply.code, reply.enhanced) for reply in replies] == [
        (250, "2.1.0"),
        (550, "5.1.1"),
        (354, None),
    ]


@pytest.mark.parametrize("line", [b"250\r\n", b"250 \r\n", b"250 ok\n", b"250 \xff\xfe\r\n"])
def test_what_sloppy_servers_say_is_understood(line: bytes) -> None:
    [reply] = ReplyParser().feed(line)

    assert reply.code == 250


@pytest.mark.parametrize(
    "line",
    [b"999 no", b"2x0 ok", b"-25 ok", b"099 ok", b"150 ok", b"25 ok", b"2500 ok", b"", b"250_ok"],
)
def test_what_is_no_reply_is_an_error(line: bytes) -> None:
    with pytest.raises(ReplySyntaxError):
        list(ReplyParser().feed(line + b"\r\n"))


@pytest.mark.parametrize("piece", [b"250-more\r\n", b"250-\r\n", b"2" * 1000])
def test_a_reply_without_an_end_is_an_error_soon(piece: bytes) -> None:
    pieces = [piece] * (2 * MAX_REPLY // len(piece))
    parser = ReplyParser()

    with pytest.raises(ReplySyntaxError):
        feed_all(parser, pieces)


def test_a_very_long_line_in_one_piece_is_an_error() -> None:
    with pytest.raises(ReplySyntaxError):
        list(ReplyParser().feed(b"250 " + b"x" * MAX_REPLY + b"\r\n"))


def test_replies_before_a_syntax_error_still_count() -> None:
    replies = ReplyParser().feed(b"250 2.0.0 queued\r\nHTTP/1.1 400\r\n")

    assert next(replies).code == 250
    with pytest.raises(ReplySyntaxError):
        next(replies)


@pytest.mark.parametrize("text", ["5.1", "5.1.", "51.1.1 x", "5.1.1.1 x", "x 5.1.1", "3.1.1 x"])
def test_what_only_looks_like_an_enhanced_code_is_none(text: str) -> None:
    assert Reply.of(550, text).enhanced is None


# ---- meaning

CLASSIFIED = [
    (Phase.FINAL, 250, "2.0.0", Verdict.ACCEPTED),
    (Phase.RCPT, 251, None, Verdict.ACCEPTED),
    # try later
    (Phase.RCPT, 450, "4.7.1", Verdict.DEFERRED),
    (Phase.RCPT, 451, None, Verdict.DEFERRED),
    (Phase.MAIL, 452, "4.3.1", Verdict.DEFERRED),
    (Phase.FINAL, 421, "4.3.2", Verdict.DEFERRED),
    (Phase.MAIL, 454, "4.7.0", Verdict.DEFERRED),
    (Phase.MAIL, 503, "5.5.1", Verdict.DEFERRED),
    # and slower
    (Phase.MAIL, 432, "4.3.2", Verdict.THROTTLED),
    (Phase.MAIL, 421, "4.7.28", Verdict.THROTTLED),
    (Phase.RCPT, 450, "4.2.1", Verdict.THROTTLED),
    # in another transaction
    (Phase.RCPT, 452, "4.5.3", Verdict.TOO_MANY_RECIPIENTS),
    (Phase.RCPT, 552, "5.5.3", Verdict.TOO_MANY_RECIPIENTS),
    # never, for this recipient
    (Phase.RCPT, 550, "5.1.1", Verdict.FAILED),
    (Phase.RCPT, 551, None, Verdict.FAILED),
    (Phase.RCPT, 553, "5.1.3", Verdict.FAILED),
    (Phase.RCPT, 552, "5.2.2", Verdict.FAILED),
    (Phase.RCPT, 552, None, Verdict.FAILED),
    (Phase.RCPT, 554, "5.7.1", Verdict.FAILED),
    (Phase.MAIL, 571, None, Verdict.FAILED),
    # because of the message
    (Phase.FINAL, 554, "5.7.1", Verdict.CONTENT_REFUSED),
    (Phase.FINAL, 550, "5.7.1", Verdict.CONTENT_REFUSED),
    (Phase.MAIL, 552, "5.3.4", Verdict.MESSAGE_TOO_BIG),
    (Phase.FINAL, 523, "5.3.4", Verdict.MESSAGE_TOO_BIG),
    (Phase.FINAL, 552, None, Verdict.MESSAGE_TOO_BIG),
    # because of the account
    (Phase.RCPT, 550, "5.4.5", Verdict.ACCOUNT),
    (Phase.FINAL, 554, "5.2.0", Verdict.ACCOUNT),
    (Phase.FINAL, 552, "5.2.2", Verdict.ACCOUNT),
    (Phase.FINAL, 550, "5.7.60", Verdict.ACCOUNT),
    # because of the login
    (Phase.MAIL, 535, "5.7.8", Verdict.CREDENTIALS),
    (Phase.MAIL, 530, None, Verdict.CREDENTIALS),
    (Phase.RCPT, 534, "5.7.9", Verdict.CREDENTIALS),
    (Phase.MAIL, 538, None, Verdict.CREDENTIALS),
    (Phase.MAIL, 550, "5.7.139", Verdict.CREDENTIALS),
]


@pytest.mark.parametrize(("phase", "code", "enhanced", "verdict"), CLASSIFIED)
def test_a_reply_means_one_thing_in_its_phase(
    phase: Phase, code: int, enhanced: str | None, verdict: Verdict
) -> None:
    assert classify(Reply(code, enhanced), phase) is verdict


def test_the_reply_code_decides_against_a_contradicting_enhanced_code() -> None:
    assert classify(Reply(450, "5.1.1"), Phase.RCPT) is Verdict.DEFERRED
    assert classify(Reply(550, "4.2.2"), Phase.RCPT) is Verdict.FAILED


# ---- what is told

CANARY = "bad password hunter2 for http://evil.example"


@pytest.mark.parametrize(("phase", "code", "enhanced", "verdict"), CLASSIFIED)
def test_an_explanation_is_one_sentence_of_ours(
    phase: Phase, code: int, enhanced: str | None, verdict: Verdict
) -> None:
    sentence = explain(Reply(code, enhanced, f"{enhanced} {CANARY}"), phase)

    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert sentence == explain(Reply(code, enhanced), phase), "the server's text made a difference"


def test_the_enhanced_code_makes_an_explanation_exact() -> None:
    assert explain(Reply(550, "5.2.2"), Phase.RCPT) == "The mailbox is full."
    assert explain(Reply(452, "4.2.2"), Phase.RCPT) == "The mailbox is full."


def test_a_congested_server_is_not_told_as_a_limit_of_the_account() -> None:
    """RFC 3463 section 3.5: X.4.5 is congestion; only Gmail means the day's messages by 550 5.4.5."""
    assert explain(Reply(451, "4.4.5"), Phase.RCPT) == "The server cannot take it just now."
    assert explain(Reply(550, "5.4.5"), Phase.RCPT) == "The sending account has reached its limit."


def test_a_refused_login_is_never_explained_as_policy() -> None:
    assert explain(Reply(535, "5.7.1"), Phase.MAIL) == "The login was not accepted."
