"""The reply parser is total, and how the octets were cut up makes no difference."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

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

lines = st.builds(
    b"%d%b%b\r\n".__mod__,
    st.tuples(
        st.integers(200, 599),
        st.sampled_from([b" ", b"-"]),
        st.sampled_from([b"", b"ok", b"5.1.1 no", b"4.2.2", b"\xff\xfe", b"5.1"]),
    ),
)
streams = st.lists(lines | st.binary(max_size=12), max_size=12).map(b"".join)


def parse(pieces: list[bytes]) -> tuple[list[Reply], bool]:
    """The replies, and whether the stream was found wrong after them."""
    parser = ReplyParser()
    replies: list[Reply] = []
    try:
        for piece in pieces:
            replies.extend(parser.feed(piece))  # a list keeps what came before an error
    except ReplySyntaxError:
        return replies, True
    return replies, False


@given(streams, st.data())
def test_cutting_the_stream_anywhere_changes_nothing(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]

    assert parse(pieces) == parse([stream])


@given(st.lists(st.binary(max_size=4096), max_size=40))
def test_no_octets_make_the_parser_keep_more_than_a_reply(pieces: list[bytes]) -> None:
    parser = ReplyParser()
    try:
        for piece in pieces:
            list(parser.feed(piece))
            assert len(parser._buffer) + parser._size <= MAX_REPLY
    except ReplySyntaxError:
        pass


@given(st.integers(200, 599), st.text(max_size=30), st.sampled_from(Phase))
def test_every_reply_has_a_verdict_and_an_explanation(code: int, text: str, phase: Phase) -> None:
    reply = Reply.of(code, text)

    assert (classify(reply, phase) is Verdict.ACCEPTED) == reply.positive
    assert explain(reply, phase).endswith(".")
