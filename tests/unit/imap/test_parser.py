from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cbemail.imap.framing import Framer
from cbemail.imap.parser import (
    MAX_RELOCATED,
    appenduid,
    capabilities,
    copyuid,
    esearch_data,
    fetch_data,
    list_data,
    parse_response,
    permanent_flags,
    search_uids,
    status_data,
    vanished_data,
)
from cbemail.imap.protocol import (
    Appended,
    Continuation,
    ESearchData,
    FolderPath,
    ImapSyntaxError,
    ListData,
    Relocated,
    Response,
    ResponseCode,
    StatusData,
    StatusResponse,
    Untagged,
    VanishedData,
)
from cbemail.imap.wire import mailbox


def untagged(stream: bytes) -> Untagged:
    (frame,) = Framer().feed(stream + b"\r\n")
    response = parse_response(frame)
    assert isinstance(response, Untagged)
    return response


# ---- responses


@pytest.mark.parametrize(
    ("line", "response"),
    [
        (b"+ idling", Continuation(b"idling")),
        (b"+", Continuation()),
        (b"+ ", Continuation()),
        (b"+ eyJzdGF0dXMiOiI0MDAifQ==", Continuation(b"eyJzdGF0dXMiOiI0MDAifQ==")),
        (b"A1 OK", StatusResponse("OK", "A1")),
        (b"A1 ok  done", StatusResponse("OK", "A1", None, "done")),
        (b"a.1 NO gr\xc3\xbcn \xff", StatusResponse("NO", "a.1", None, "grün \ufffd")),
        (b"* BYE", StatusResponse("BYE")),
        (b"* PREAUTH hi", StatusResponse("PREAUTH", None, None, "hi")),
        (
            b"* OK [UIDNEXT 4392] x",
            StatusResponse("OK", None, ResponseCode("UIDNEXT", b"4392"), "x"),
        ),
        (b"A1 NO [trycreate]", StatusResponse("NO", "A1", ResponseCode("TRYCREATE"))),
        (
            b"* OK [CAPABILITY IMAP4rev1 MOVE] see [x] y]",
            StatusResponse("OK", None, ResponseCode("CAPABILITY", b"IMAP4rev1 MOVE"), "see [x] y]"),
        ),
        (
            b'A1 NO [BADCHARSET ("x]" "y")] no',
            StatusResponse("NO", "A1", ResponseCode("BADCHARSET", b'("x]" "y")'), "no"),
        ),
        (
            b'* OK [ALERT say "hi] there',
            StatusResponse("OK", None, ResponseCode("ALERT", b'say "hi'), "there"),
        ),
        (b"* OK [unended", StatusResponse("OK", None, None, "[unended")),
        (b"* 23 EXISTS", Untagged("EXISTS", 23)),
        (b"*  23  exists ", Untagged("EXISTS", 23)),
        (b"* FLAGS (\\Seen)", Untagged("FLAGS", None, [[b"\\Seen"]])),
        (b"* SEARCH ", Untagged("SEARCH")),
        (b"* OKAY fine", Untagged("OKAY", None, [b"fine"])),
        (b"* THREAD (2)(3 (4))", Untagged("THREAD", None, [b" (2)(3 (4))"])),  # however deep
    ],
)
def test_each_kind_of_response_is_told_from_the_others(line: bytes, response: Response):
    assert parse_response([line]) == response


@pytest.mark.parametrize(
    "frame",
    [
        [],
        [b""],
        [b"* "],
        [b"*"],
        [b"* 1"],
        [b"* 99999999999 EXISTS"],
        [b"* -1 EXISTS"],
        [b"A1 BYE now"],
        [b"A1 PREAUTH"],
        [b"A1 WHAT"],
        [b"HTTP/1.1 400 Bad Request"],
        [b"SSH-2.0-OpenSSH"],
        [b'* LIST () "/" "open'],
        [b"* X ("],
        [b"* X ", b"literal"],
    ],
)
def test_what_is_no_response_is_a_syntax_error(frame: list[bytes]):
    with pytest.raises(ImapSyntaxError):
        parse_response(frame)


# ---- FETCH


def test_a_fetch_is_read_item_by_item():
    data = fetch_data(
        untagged(
            b'* 3 FETCH (UID 7 FLAGS (\\Seen $x) INTERNALDATE " 1-Feb-2026 10:00:00 +0000" '
            b"RFC822.SIZE 44827 X-GM-LABELS (\\Inbox {3}\r\na b) MODSEQ (12) "
            b"BODY[HEADER.FIELDS (FROM TO)]<0> {9}\r\nTo: a@b\r\n BODY[1.mime] NIL "
            b'body[TEXT]<5> "x" BINARY[1.2] ~{1}\r\n\0 BODY[] "" '
            b'BODYSTRUCTURE ("text" "plain" NIL NIL NIL "7bit" 5 1))'
        )
    )

    assert data.defect is None
    assert data.uid == 7
    assert data.flags == ("\\Seen", "$x")
    assert data.internal_date == datetime(2026, 2, 1, 10, tzinfo=UTC)
    assert data.size == 44827
    assert data.sections == {
        "HEADER.FIELDS": b"To: a@b\r\n",
        "TEXT": b"x",
        "1.2": b"\0",
        "": b"",
    }
    assert data.body_structure is not None
    assert data.body_structure.id == "1"


def test_the_old_names_of_sections_mean_the_same_sections():
    data = fetch_data(untagged(b'* 1 FETCH (RFC822 "a" RFC822.HEADER "b" RFC822.TEXT "c")'))

    assert data.sections == {"": b"a", "HEADER": b"b", "TEXT": b"c"}


def test_unreadable_dates_and_sizes_are_missing_and_no_defect():
    data = fetch_data(untagged(b'* 1 FETCH (UID 7 INTERNALDATE "yesterday" RFC822.SIZE -1)'))

    assert (data.uid, data.internal_date, data.size, data.defect) == (7, None, None, None)


@pytest.mark.parametrize(
    "line",
    [
        b"* 1 FETCH (UID 7 BODYSTRUCTURE (((((",
        b"* 1 FETCH (UID 7 BODYSTRUCTURE " + b"(" * 10_000 + b")" * 10_000 + b")",
        b'* 1 FETCH (UID 7 BODY[TEXT] "open)',
        b"* 1 FETCH (UID 7 FLAGS \\Seen)",
        b"* 1 FETCH (UID 7 FLAGS)",
        b"* 1 FETCH (UID 7 BODYSTRUCTURE NIL)",
        b"* 1 FETCH (UID 7 BODYSTRUCTURE ())",
        b"* 1 FETCH (UID 7 BODY[] (a))",
        b"* 1 FETCH (FLAGS () (stray) UID 7)",
        b"* 1 FETCH (FLAGS UID 7)",
        b"* 1 FETCH (BODYSTRUCTURE x UID 7)",
    ],
)
def test_a_message_that_cannot_be_read_is_a_defect_of_that_message(line: bytes):
    data = fetch_data(untagged(line))

    assert data.defect
    assert data.uid == 7


@pytest.mark.parametrize("line", [b"* 1 FETCH", b"* 1 FETCH NIL x", b"* 1 FETCH (UID 0)"])
def test_a_defect_needs_no_uid(line: bytes):
    data = fetch_data(untagged(line))

    assert data.uid is None
    assert data.defect or line.endswith(b"x")


def test_the_text_of_a_message_cannot_pass_for_its_uid():
    data = fetch_data(untagged(b'* 1 FETCH (BODY[TEXT] " UID 8 " UID 7 X ('))

    assert data.uid is None


def test_an_unsolicited_fetch_of_flags_has_no_uid_and_no_defect():
    data = fetch_data(untagged(b"* 1 FETCH (FLAGS (\\Deleted))"))

    assert (data.uid, data.flags, data.defect) == (None, ("\\Deleted",), None)


# ---- LIST and STATUS


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (
            b'* LIST (\\HasNoChildren \\Drafts) "/" "[Gmail]/Entw&APw-rfe"',
            ListData(
                FolderPath("[Gmail]/Entwürfe"), "/", frozenset({"\\hasnochildren", "\\drafts"})
            ),
        ),
        (b'* LIST () "." inbox', ListData(FolderPath("INBOX"), ".", frozenset())),
        (b"* LSUB NIL NIL NIL", ListData(FolderPath("NIL"), None, frozenset())),
        (b'* LIST () "\\\\" {7}\r\na "b" c', ListData(FolderPath('a "b" c'), "\\", frozenset())),
        (
            b'* LIST () "/" "Tom & Jerry" ("CHILDINFO" ("SUBSCRIBED"))',
            ListData(FolderPath("Tom & Jerry"), "/", frozenset(), b"Tom & Jerry"),
        ),
        (
            '* LIST () "/" "Entwürfe"'.encode(),
            ListData(FolderPath("Entwürfe"), "/", frozenset(), "Entwürfe".encode()),
        ),
    ],
)
def test_a_listed_folder_is_shown_in_unicode(stream: bytes, data: ListData):
    assert list_data(untagged(stream)) == data


@pytest.mark.parametrize(
    "raw",
    [b"Tom & Jerry", "Entwürfe".encode(), b"&", b"&AGE-", b"&2D0-", b"\xff\xfe", b"a{5}", b'"\\'],
)
def test_a_listed_folder_can_be_named_again(raw: bytes):
    data = list_data(Untagged("LIST", None, [[], b"/", raw]))

    argument = mailbox(data.path, data.spelling)

    octets = argument if isinstance(argument, bytes) else getattr(argument, "data", b"")
    assert octets in {raw, b'"' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'}


@pytest.mark.parametrize(
    "stream", [b"* LIST", b"* LIST () NIL", b'* LIST () "/" ""', b"* LIST () NIL ()"]
)
def test_a_list_without_a_name_is_a_syntax_error(stream: bytes):
    with pytest.raises(ImapSyntaxError):
        list_data(untagged(stream))


def test_a_status_tells_what_the_server_gave():
    stream = b'* STATUS "Entw&APw-rfe" (MESSAGES 231 unseen 5 UIDNEXT 44292 X 1 UIDVALIDITY 7)'

    assert status_data(untagged(stream)) == StatusData(FolderPath("Entwürfe"), 231, 5, 44292, 7)
    assert status_data(untagged(b"* STATUS a (UNSEEN -1)")) == StatusData(FolderPath("a"))
    with pytest.raises(ImapSyntaxError):
        status_data(untagged(b"* STATUS a"))


# ---- SEARCH


def test_a_search_gives_its_uids_in_the_servers_order():
    assert search_uids(untagged(b"* SEARCH 7 2 84 (MODSEQ 917)")) == [7, 2, 84]
    assert search_uids(untagged(b"* SEARCH  ")) == []


@pytest.mark.parametrize("stream", [b"* SEARCH 0", b"* SEARCH x", b"* SEARCH 4294967296"])
def test_a_search_that_finds_no_uids_but_something_else_is_a_syntax_error(stream: bytes):
    with pytest.raises(ImapSyntaxError):
        search_uids(untagged(stream))


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (
            b'* ESEARCH (TAG "A285") UID MIN 2 MAX 47 COUNT 12 ALL 2,10:15,47',
            ESearchData("A285", True, 2, 47, 12, ((2, 2), (10, 15), (47, 47))),  # noqa: FBT003
        ),
        (b'* ESEARCH (TAG "A1") UID', ESearchData("A1", uid=True)),
        (b"* ESEARCH count 0", ESearchData(count=0)),
        (b"* ESEARCH () ALL 1:4294967295", ESearchData(all=((1, 4294967295),))),
    ],
)
def test_an_esearch_is_read_without_being_expanded(stream: bytes, data: ESearchData):
    assert esearch_data(untagged(stream)) == data


# ---- VANISHED


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"* VANISHED 7", VanishedData(earlier=False, ranges=((7, 7),))),
        (b"* VANISHED 41,43:45", VanishedData(earlier=False, ranges=((41, 41), (43, 45)))),
        (b"* VANISHED (EARLIER) 9:7", VanishedData(earlier=True, ranges=((7, 9),))),
        (
            b"* VANISHED (EARLIER) 1:4294967295",
            VanishedData(earlier=True, ranges=((1, 2**32 - 1),)),
        ),
    ],
)
def test_a_vanished_is_read_without_being_expanded(stream: bytes, data: VanishedData):
    assert vanished_data(untagged(stream)) == data


@pytest.mark.parametrize(
    "stream", [b"* VANISHED", b"* VANISHED (EARLIER)", b"* VANISHED x", b"* VANISHED 0"]
)
def test_a_vanished_without_uids_is_an_error(stream: bytes):
    with pytest.raises(ImapSyntaxError):
        vanished_data(untagged(stream))


# ---- response codes


def test_copyuid_pairs_sources_with_destinations():
    told = copyuid(ResponseCode("COPYUID", b"38505 304,319:320 3956:3958"))

    assert told == Relocated(38505, {304: 3956, 319: 3957, 320: 3958})  # type: ignore[arg-type,dict-item]


@pytest.mark.parametrize(
    "arguments",
    [
        b"",
        b"38505 304",
        b"38505 304 3956:3957",
        b"x 1 1",
        b"1 1:* 1:*",
        b"1 1:4294967295 1:4294967295",
        b"1 1:%d 1:%d" % (MAX_RELOCATED + 1, MAX_RELOCATED + 1),
        b"1 0 0",
    ],
)
def test_a_copyuid_that_does_not_add_up_tells_nothing(arguments: bytes):
    assert copyuid(ResponseCode("COPYUID", arguments)) is None


def test_appenduid_tells_the_uid_of_one_message():
    told = appenduid(ResponseCode("APPENDUID", b"38505 3955"))

    assert (told.uid, told.uid_validity) == (3955, 38505)
    for arguments in (b"", b"38505", b"38505 3955:3957", b"1 0", b"a b"):
        assert appenduid(ResponseCode("APPENDUID", arguments)) == Appended()


def test_capabilities_are_in_capitals_wherever_they_are_told():
    told = frozenset({"IMAP4REV1", "AUTH=PLAIN", "LITERAL+"})
    status = parse_response([b"A1 OK [CAPABILITY IMAP4rev1 auth=PLAIN literal+] Logged in [x]"])
    assert isinstance(status, StatusResponse)
    assert status.code is not None

    assert capabilities(status.code) == told
    assert capabilities(untagged(b"* CAPABILITY IMAP4rev1 auth=plain LITERAL+ ")) == told


def test_permanent_flags_are_those_that_a_store_keeps():
    assert permanent_flags(ResponseCode("PERMANENTFLAGS", b"(\\Deleted $Label1 \\*)")) == {
        "\\Deleted",
        "$Label1",
        "\\*",
    }
    assert permanent_flags(ResponseCode("PERMANENTFLAGS", b"()")) == frozenset()
