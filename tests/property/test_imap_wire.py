"""What is sent says exactly what was meant, whatever text went into it: one command, with these arguments."""

from __future__ import annotations

from datetime import date

from hypothesis import given, settings
from hypothesis import strategies as st

from cbemail.errors import InvalidRequest
from cbemail.imap import utf7
from cbemail.imap.protocol import FolderPath, UidSet
from cbemail.imap.search import SearchFilter, compile_search
from cbemail.imap.wire import Argument, Command, astring, encode, flag_list, mailbox

TAG = b"A7"
_TOXIC = ['"', "\\", "{5}", "{5+}", "}", "\r\n", "\n", "A1 DELETE INBOX", " ", "(", ")", "*", "%"]
# Any text, with what has broken other clients more often than chance would have it.
texts = st.lists(
    st.sampled_from(_TOXIC) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=6,
).map("".join) | st.text(max_size=40)


def read_command(pieces: list[bytes]) -> list[bytes]:
    """The words and strings of exactly one command, read the way a strict server would.

    Written from RFC 9051 section 9, apart from everything under test: a synchronising literal must end its piece,
    and behind the command there must be nothing.
    """
    stream, edges, edge = b"".join(pieces), set(), 0
    for piece in pieces[:-1]:
        edge += len(piece)
        edges.add(edge)
    arguments, at = [], 0
    while True:
        argument, at = read_string(stream, at, edges)
        arguments.append(argument)
        if stream[at : at + 1] != b" ":
            break
        at += 1
    assert stream[at:] == b"\r\n"
    assert not edges, "a piece ends where no literal begins"
    return arguments


def read_string(stream: bytes, at: int, edges: set[int]) -> tuple[bytes, int]:
    if stream[at : at + 1] == b'"':
        value = b""
        at += 1
        while stream[at : at + 1] != b'"':
            if stream[at : at + 1] == b"\\":
                at += 1
                assert stream[at : at + 1] in {b'"', b"\\"}
            assert 0x20 <= stream[at] <= 0x7E
            value += stream[at : at + 1]
            at += 1
        return value, at + 1
    if stream[at : at + 1] == b"{":
        end = stream.index(b"}\r\n", at)
        digits = stream[at + 1 : end].removesuffix(b"+")
        start = end + 3
        if stream[end - 1 : end] != b"+":
            edges.remove(start)
        return stream[start : start + int(digits)], start + int(digits)
    end = at
    while stream[end] not in b' \r\n"{':
        end += 1
    assert end > at
    return stream[at:end], end


def sent(command: Command, *, plus: bool) -> list[bytes]:
    return read_command(encode(TAG, command, literal_plus=plus, literal_minus=False))


@given(st.text(st.characters(exclude_categories=["Cs"])) | texts)
def test_decoding_an_encoded_name_gives_the_name(text: str):
    try:
        wire = utf7.encode(text)
    except UnicodeEncodeError:
        return

    assert wire.isascii()
    assert utf7.decode(wire) == text


@given(
    st.binary()
    | st.lists(st.sampled_from([b"&", b"-", b"AGE", b"2D0", b"+,", b"\xff"])).map(b"".join)
)
def test_any_octets_are_a_name_that_can_be_shown(raw: bytes):
    utf7.decode(raw).encode()


@settings(max_examples=400)
@given(st.lists(texts, min_size=1, max_size=20), st.booleans())
def test_a_command_has_exactly_the_arguments_it_was_given(values: list[str], plus: bool):  # noqa: FBT001
    arguments: list[Argument] = []
    meant: list[bytes] = []
    for value in values:
        try:
            arguments.append(astring(value))
        except InvalidRequest:
            assert "\0" in value or any(0xD800 <= ord(char) <= 0xDFFF for char in value)
        else:
            meant.append(value.encode())

    assert sent(Command("LOGIN", tuple(arguments)), plus=plus) == [TAG, b"LOGIN", *meant]


@settings(max_examples=400)
@given(st.lists(texts, min_size=1, max_size=20), st.booleans())
def test_a_command_names_exactly_the_folders_it_was_given(names: list[str], plus: bool):  # noqa: FBT001
    for name in names:
        try:
            argument = mailbox(FolderPath(name))
        except InvalidRequest:
            continue
        _, verb, raw = sent(Command("SELECT", (argument,)), plus=plus)
        assert verb == b"SELECT"
        assert utf7.decode(raw) == name


@given(st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
def test_a_servers_own_spelling_is_sent_as_it_was(raw: bytes):
    argument = mailbox(FolderPath("shown"), raw)

    assert sent(Command("SELECT", (argument,)), plus=False)[2] == raw


@given(texts)
def test_a_flag_is_one_atom_or_is_refused(flag: str):
    try:
        spelled = flag_list([flag])
    except InvalidRequest:
        return

    assert spelled == b"(" + flag.encode() + b")"
    assert sent(Command("STORE", (b"1", b"FLAGS", spelled)), plus=False)[2:] == [
        b"1",
        b"FLAGS",
        spelled,
    ]


_TERMS = ["from:", '-subject:"', "to:", '"', "-", "is:unread ", "larger:1M ", "newer:7d ", "x "]
queries = st.lists(st.sampled_from([*_TERMS, *_TOXIC]) | texts, max_size=6).map("".join)


@given(
    st.builds(
        SearchFilter,
        from_=st.none() | texts,
        text=st.none() | texts,
        header=st.none() | st.tuples(texts, texts),
    )
)
def test_a_search_has_the_keys_of_its_filter_and_no_others(wanted: SearchFilter):
    try:
        program = compile_search(wanted, today=date(2026, 3, 15))
    except InvalidRequest:
        return

    meant: list[str] = []
    for key, value in (("FROM", wanted.from_), ("TEXT", wanted.text)):
        meant += [] if value is None else [key, value]
    meant += [] if wanted.header is None else ["HEADER", *wanted.header]
    assert sent(Command("UID SEARCH", program.arguments), plus=True)[3:] == [
        text.encode() for text in meant or ["ALL"]
    ]


@given(queries)
def test_a_query_has_only_keys_of_ours_and_texts_of_its_own(query: str):
    try:
        program = compile_search(SearchFilter(q=query), today=date(2026, 3, 15))
    except InvalidRequest:
        return

    words = sent(Command("UID SEARCH", program.arguments), plus=True)[3:]
    while words:
        key = words.pop(0)
        if key in {b"FROM", b"TO", b"SUBJECT", b"TEXT"}:
            assert words.pop(0).decode() in query
        elif key in {b"LARGER", b"SINCE"}:
            assert words.pop(0) in {b"1048576", b"8-Mar-2026"}
        else:
            assert key in {b"ALL", b"NOT", b"UNSEEN"}


@given(st.sets(st.integers(1, 2**32 - 1), min_size=1))
def test_a_uid_set_spells_exactly_the_uids_it_was_given(uids: set[int]):
    ranges = [item.partition(":") for item in str(UidSet(uids)).split(",")]
    expanded = {uid for a, _, b in ranges for uid in range(int(a), int(b or a) + 1)}

    assert expanded == uids


def test_the_strict_reader_sees_a_second_command_where_there_is_one():
    """The reader these properties rest on must itself be able to fail."""
    for stream in (b"A7 X a\r\nA8 Y\r\n", b'A7 X "a"b\r\n', b"A7 X {3}\r\nab\r\n"):
        try:
            read_command([stream])
        except (AssertionError, KeyError, ValueError, IndexError):
            continue
        raise AssertionError(stream)
    assert read_command([b"A7 X {2}\r\n", b"ab\r\n"]) == [b"A7", b"X", b"ab"]
