"""The framer and the parser on whatever a server may send: total, and blind to how the network cuts it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.imap import parser
from cbemail.imap.bodystructure import MAX_PARTS, read_body_structure
from cbemail.imap.framing import MAX_LINE, Frame, Framer
from cbemail.imap.protocol import (
    Continuation,
    ImapSyntaxError,
    ResponseCode,
    StatusResponse,
    Untagged,
    Value,
)
from tests.property.imap_transcripts import TRANSCRIPTS

# Octets that mean something to IMAP, and some that do not.
_MORSELS = [
    *(bytes([octet]) for octet in b' ()"\\[]{}<>*+~\r\n\0\xff019a'),
    *(b"\r\n", b"* ", b"A1 ", b"* OK ", b"* 1 FETCH (", b"UID 7", b"BODY[", b"BODYSTRUCTURE "),
    *(b"{3}\r\n", b"{0}\r\n", b"~{1}\r\n", b"{-1}\r\n", b"{99999999999999999999}\r\n", b"NIL"),
    *(
        b"* LIST ",
        b"* STATUS ",
        b"* SEARCH ",
        b"* ESEARCH ",
        b"* VANISHED (EARLIER) ",
        b"[COPYUID 1 1:3 ",
        b"FLAGS ",
    ),
    *(b"INTERNALDATE ", b'"text" "plain" ', b'"message" "rfc822" ', b" 1-Feb-2026 10:00:00 +0000"),
]
octets = st.lists(st.sampled_from(_MORSELS) | st.binary(max_size=4), max_size=60).map(b"".join)
transcripts = st.sampled_from(sorted(TRANSCRIPTS.values()))

# A transcript with some of its octets replaced: nearly IMAP, where parsers go wrong.
damaged = st.builds(
    lambda stream, at, junk: stream[: at % len(stream)] + junk + stream[at % len(stream) + 1 :],
    transcripts,
    st.integers(0, 1 << 20),
    octets,
)

_Reader = Callable[[Untagged], object]
_READERS: list[_Reader] = [
    parser.list_data,
    parser.status_data,
    parser.search_uids,
    parser.esearch_data,
    parser.vanished_data,
    parser.capabilities,
]
_CODE_READERS: list[Callable[[ResponseCode], object]] = [
    parser.copyuid,
    parser.appenduid,
    parser.capabilities,
    parser.permanent_flags,
]


def frames_of(*pieces: bytes) -> list[Frame] | None:
    """The frames in a stream that arrives in pieces; None where it breaks a rule."""
    framer = Framer()
    try:
        return [frame for piece in pieces for frame in framer.feed(piece)]
    except ImapSyntaxError:
        return None


def read_all(frame: Frame) -> None:
    """Read a frame in every way there is; only `ImapSyntaxError` may come of it."""
    try:
        response = parser.parse_response(frame)
    except ImapSyntaxError:
        return
    if isinstance(response, StatusResponse) and response.code is not None:
        for read_code in _CODE_READERS:
            read_code(response.code)
    if not isinstance(response, Untagged):
        return
    parser.fetch_data(response)
    for read in _READERS:
        try:
            read(response)
        except ImapSyntaxError:
            continue


@given(octets | damaged)
def test_whatever_arrives_is_read_or_is_a_syntax_error(stream: bytes):
    for frame in frames_of(stream) or []:
        read_all(frame)


@given(st.lists(octets, max_size=5))
def test_whatever_the_framer_gives_is_read_or_is_a_syntax_error(frame: list[bytes]):
    read_all(frame)


@given(octets | transcripts | damaged, st.data())
def test_splitting_a_stream_anywhere_changes_nothing(stream: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]

    pieces = [stream[start:end] for start, end in pairwise(edges)]

    assert frames_of(*pieces) == frames_of(stream)


@given(octets | damaged)
def test_a_stream_may_arrive_one_octet_at_a_time(stream: bytes):
    assert frames_of(*(stream[at : at + 1] for at in range(len(stream)))) == frames_of(stream)


@pytest.mark.parametrize("server", sorted(set(TRANSCRIPTS) - {"hostile"}))
def test_what_real_servers_say_is_understood(server: str):
    stream = TRANSCRIPTS[server]

    frames = frames_of(*(stream[at : at + 1] for at in range(len(stream))))

    assert frames is not None
    responses = [parser.parse_response(frame) for frame in frames]
    for response in responses:
        assert isinstance(response, StatusResponse | Untagged | Continuation)
        if isinstance(response, Untagged) and response.name == "FETCH":
            assert parser.fetch_data(response).defect is None
    assert isinstance(responses[-1], StatusResponse)


def test_what_a_hostile_server_says_is_refused_one_response_at_a_time():
    frames = frames_of(TRANSCRIPTS["hostile"])

    assert frames is not None
    assert len(frames) == 6
    for frame in frames:
        read_all(frame)


structures: st.SearchStrategy[Value] = st.recursive(
    st.none()
    | st.sampled_from([b"text", b"multipart", b"message", b"rfc822", b"attachment", b"1"])
    | st.binary(max_size=3),
    lambda values: st.lists(values, max_size=11),
    max_leaves=60,
)


@given(structures)
def test_any_value_is_a_part_tree_or_a_syntax_error(value: Value):
    try:
        root = read_body_structure(value)
    except ImapSyntaxError:
        return

    parts = list(root.walk())
    numbered = [part.id for part in parts if part.id]
    assert len(parts) <= MAX_PARTS + 1
    assert len(set(numbered)) == len(numbered)
    assert all(part.is_multipart for part in parts if not part.id)


# ---- volumes; each of these took minutes or the stack of some client


@pytest.mark.parametrize(
    "line",
    [
        b'* X "' + b'\\"' * (MAX_LINE // 2 - 10),
        b"* X " + b"BODY[ " * (MAX_LINE // 6 - 10),
        b"* X " + b'"' * (MAX_LINE - 11),
        b"* X " + b"() " * (MAX_LINE // 3 - 10),
        b"* X " + b"(" * (MAX_LINE - 10),
        b"* 1 FETCH (" + b"UID " * (MAX_LINE // 4 - 10),
        b"* OK [" + b'"\\' * (MAX_LINE // 2 - 10),
        b"* OK [X " + b'"a' * (MAX_LINE // 2 - 10),
        b'* LIST () "/" ' + b"&AAAA" * (MAX_LINE // 5 - 10),
        b"* ESEARCH ALL " + b"1:4294967295," * (MAX_LINE // 13 - 10) + b"1",
        b"* X " + b"a{" * (MAX_LINE // 2 - 10) + b"}",
    ],
    ids=lambda line: line[:16].decode("ascii"),
)
def test_a_line_of_the_greatest_length_is_read_in_one_pass(line: bytes):
    (frame,) = Framer().feed(line + b"\r\n")

    read_all(frame)


def test_a_hundred_thousand_responses_may_come_in_one_chunk():
    frames = Framer().feed(b"* 1 FETCH (UID 7 FLAGS (\\Seen))\r\n" * 100_000)

    assert len(frames) == 100_000


def test_a_great_literal_may_come_in_small_pieces():
    framer = Framer()
    piece = b"0123456789abcdef" * 64
    framer.feed(b"* 1 FETCH (BODY[] {%d}\r\n" % (len(piece) * 10_000))

    frames = [frame for _ in range(10_000) for frame in framer.feed(piece)] + framer.feed(b")\r\n")

    assert [len(part) for part in frames[0]] == [18, 10_240_000, 1]
