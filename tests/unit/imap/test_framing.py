from __future__ import annotations

import pytest

from cbemail.imap.framing import (
    MAX_LINE,
    MAX_LITERAL,
    MAX_LITERALS,
    MAX_RESPONSE,
    MAX_SEARCH_LINE,
    MAX_STREAMED,
    SINK_THRESHOLD,
    Framer,
)
from cbemail.imap.protocol import ImapSyntaxError


class Sink:
    """Remembers what it was handed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.chunks: list[bytes] = []

    def begin(self, size: int) -> None:
        self.sizes.append(size)

    def feed(self, chunk: bytes) -> None:
        self.chunks.append(chunk)


def test_a_line_is_a_response_once_it_has_ended():
    framer = Framer()

    assert framer.feed(b"* 3 EXISTS\r") == []
    assert framer.feed(b"\n* 1 REC") == [[b"* 3 EXISTS"]]
    assert framer.feed(b"ENT\r\n") == [[b"* 1 RECENT"]]


def test_a_literal_may_hold_anything_and_the_line_goes_on_behind_it():
    stream = b'* LIST () "/" {8}\r\na\r\n)\0{3}\r\n* 1 FETCH (A {0}\r\n B ~{2}\r\n\r\n)\r\n'

    assert Framer().feed(stream) == [
        [b'* LIST () "/" ', b"a\r\n)\0{3}", b""],
        [b"* 1 FETCH (A ", b"", b" B ", b"\r\n", b")"],
    ]


def test_a_literal_that_needs_no_answer_is_a_literal_too():
    assert Framer().feed(b"* X {1+}\r\na\r\n") == [[b"* X ", b"a", b""]]


@pytest.mark.parametrize(
    "line", [b"* OK done {5}", b"A1 NO quota {5}", b"* BYE {1}", b"+ go {7}", b"* ok {5}", b"+{1}"]
)
def test_a_size_at_the_end_of_human_text_announces_nothing(line: bytes):
    assert Framer().feed(line + b"\r\n* 1 EXISTS\r\n") == [[line], [b"* 1 EXISTS"]]


@pytest.mark.parametrize("line", [b"* X {abc}", b"* X }", b"* X {}", b"* X {1 }", b"* X {5} "])
def test_braces_without_a_number_announce_nothing(line: bytes):
    assert Framer().feed(line + b"\r\n") == [[line]]


def test_a_bare_line_feed_ends_a_line_and_empty_lines_are_no_responses():
    assert Framer().feed(b"\r\n* 1 EXISTS\n\n\r\n* X {1}\na\n") == [
        [b"* 1 EXISTS"],
        [b"* X ", b"a", b""],
    ]


def test_the_framer_is_empty_only_between_responses():
    framer = Framer()
    assert framer.empty

    for piece in (b"* X {2}\r\n", b"a", b"b", b")"):
        framer.feed(piece)
        assert not framer.empty

    framer.feed(b"\r\n")
    assert framer.empty


@pytest.mark.parametrize(
    "size", [b"-1", b"%d" % (MAX_LITERAL + 1), b"4294967295", b"9" * 20, b"9" * 10_000, b"-0000001"]
)
def test_a_literal_of_an_impossible_size_is_an_error_before_any_of_it_arrives(size: bytes):
    with pytest.raises(ImapSyntaxError):
        Framer().feed(b"* 1 FETCH (BODY[] {" + size + b"}\r\n")


def test_a_line_without_an_end_is_an_error_once_it_is_too_long():
    framer = Framer()
    framer.feed(b"* X " + b"a" * (MAX_LINE - 4))

    with pytest.raises(ImapSyntaxError):
        framer.feed(b"a")


def test_a_line_that_is_too_long_is_an_error_even_when_it_ends():
    with pytest.raises(ImapSyntaxError):
        Framer().feed(b"* X " + b"a" * MAX_LINE + b"\r\n")


def test_a_search_may_name_half_a_million_messages():
    uids = b" 1234567" * 500_000

    assert Framer().feed(b"* SEARCH" + uids + b"\r\n") == [[b"* SEARCH" + uids]]
    assert Framer().feed(b"* vanished" + uids + b"\r\n") == [[b"* vanished" + uids]]
    with pytest.raises(ImapSyntaxError):
        Framer().feed(b"* SEARCH " + b"1" * MAX_SEARCH_LINE)


def test_a_response_of_too_many_literals_is_an_error():
    framer = Framer()
    framer.feed(b"* X" + b" {1}\r\na" * MAX_LITERALS)

    with pytest.raises(ImapSyntaxError):
        framer.feed(b" {1}\r\n")


def test_many_literals_that_are_too_large_together_are_an_error():
    framer = Framer()
    framer.feed(b"* X {%d}\r\n" % (MAX_LITERAL // 2))
    framer.feed(b"a" * (MAX_LITERAL // 2))

    with pytest.raises(ImapSyntaxError):
        framer.feed(b" {%d}\r\n" % MAX_LITERAL)


def test_many_long_lines_around_empty_literals_are_an_error():
    framer = Framer()
    line = b"a" * (MAX_LINE // 2) + b"{0}\r\n"
    for _ in range(MAX_RESPONSE // len(line)):
        framer.feed(line)

    with pytest.raises(ImapSyntaxError):
        framer.feed(line)


# ---- streaming


def test_a_great_literal_of_a_fetch_goes_to_the_sink_as_it_arrives():
    framer, sink = Framer(), Sink()
    framer.sink = sink
    body = bytes(range(256)) * 1_000

    framer.feed(b"* 1 FETCH (UID 7 BODY[2] {%d}\r\nfirst" % (len(body) + 5))
    assert sink.chunks == [b"first"]
    frames = framer.feed(body[:100_000]) + framer.feed(
        body[100_000:] + b" X {1}\r\na)\r\nA1 OK\r\n"
    )

    assert sink.sizes == [len(body) + 5]
    assert b"".join(sink.chunks) == b"first" + body
    assert frames == [[b"* 1 FETCH (UID 7 BODY[2] ", b"", b" X ", b"a", b")"], [b"A1 OK"]]


def test_the_sink_gets_neither_small_literals_nor_those_of_other_responses():
    framer, sink = Framer(), Sink()
    framer.sink = sink
    small, great = b"s" * SINK_THRESHOLD, b"g" * (SINK_THRESHOLD + 1)

    frames = framer.feed(b"* 1 FETCH (X {%d}\r\n%b)\r\n" % (len(small), small))
    frames += framer.feed(b"* LIST {%d}\r\n%b\r\n" % (len(great), great))

    assert [frame[1] for frame in frames] == [small, great]
    assert sink.sizes == []


def test_a_streamed_literal_may_be_larger_than_memory_but_not_boundless():
    framer, sink = Framer(), Sink()
    framer.sink = sink

    framer.feed(b"* 1 FETCH (BODY[] {%d}\r\n" % MAX_STREAMED)

    assert sink.sizes == [MAX_STREAMED]
    greedy = Framer()
    greedy.sink = sink
    with pytest.raises(ImapSyntaxError):
        greedy.feed(b"* 1 FETCH (BODY[] {%d}\r\n" % (MAX_STREAMED + 1))
