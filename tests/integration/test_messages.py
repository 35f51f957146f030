"""Listing and reading: `GET /api/mailbox/messages`, at a server that can do everything and at one that cannot."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from cbemail.mailbox.reading import ALL_BODIES_OCTETS
from tests.fakes.script import CUT, NORMAL
from tests.fakes.scripted_imap import CAPABILITIES, WEAK_CAPABILITIES, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, letter
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import (
    FOLDERS,
    MESSAGES,
    PLAINTEXT,
    Box,
    good,
    open_box,
    open_scripted,
    problem,
    verbs,
)


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture(params=["dovecot", "weak_dovecot"])
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


def mime(*parts: bytes, kind: str = "mixed", head: str = "Subject: parts") -> bytes:
    """A multipart message. Each part brings its own header."""
    lines = [head.encode(), f'Content-Type: multipart/{kind}; boundary="=_b"'.encode(), b""]
    for part in parts:
        lines += [b"--=_b", part]
    return b"\r\n".join([*lines, b"--=_b--", b""])


def leaf(content_type: str, content: bytes, *fields: str) -> bytes:
    """One part in base64."""
    head = [f"Content-Type: {content_type}", "Content-Transfer-Encoding: base64", *fields, ""]
    return (
        "\r\n".join(head).encode() + b"\r\n" + base64.encodebytes(content).replace(b"\n", b"\r\n")
    )


# ---- pages


async def test_a_listing_is_newest_first_and_counts_all(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 6)))

    page = await box.page(limit=3)

    assert [row["subject"] for row in page["messages"]] == ["m5", "m4", "m3"]
    assert [row["uid"] for row in page["messages"]] == [5, 4, 3]
    assert (page["folder"], page["total"]) == ("INBOX", 5)


async def test_pages_follow_each_other_until_there_is_no_cursor(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 8)))
    seen: list[list[int]] = []
    cursor: dict[str, str] = {}

    while True:
        page = await box.page(limit=3, **cursor)
        seen.append([row["uid"] for row in page["messages"]])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}

    assert seen == [[7, 6, 5], [4, 3, 2], [1]]


async def test_a_page_that_ends_with_the_folder_has_no_cursor(box: Box) -> None:
    box.append(letter("one"), letter("two"))

    assert (await box.page(limit=2))["next_cursor"] is None
    assert (await box.page(folder="Sent")) == {
        "folder": "Sent",
        "uid_validity": (await box.folders())["Sent"]["uid_validity"],
        "total": 0,
        "messages": [],
        "next_cursor": None,
        "skipped": [],
    }


async def test_pages_stay_stable_while_mail_comes_and_goes(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 7)))
    first = await box.page(limit=2)

    box.append(letter("new"))
    box.server.expunge(box.user, "INBOX", [5, 3])
    second = await box.page(limit=2, cursor=first["next_cursor"])
    third = await box.page(limit=2, cursor=second["next_cursor"])

    assert [row["uid"] for row in second["messages"]] == [4, 2]
    assert [row["uid"] for row in third["messages"]] == [1]
    assert third["next_cursor"] is None


async def test_mail_that_has_just_arrived_is_in_the_next_listing(box: Box) -> None:
    """Over a connection of its own each time, while ours is warm and has the folder selected."""
    for number in range(1, 6):
        (uid,) = box.append(letter(f"m{number}"))

        assert (await box.uids())[0] == uid


async def test_mail_that_another_client_removed_is_not_in_the_next_listing(box: Box) -> None:
    box.append(letter("one"), letter("two"), letter("three"))
    assert await box.uids() == [3, 2, 1]

    box.server.expunge(box.user, "INBOX", [2])

    page = await box.page()
    assert [row["uid"] for row in page["messages"]] == [3, 1]
    assert page["total"] == 2


async def test_flags_that_another_client_changed_are_in_the_next_listing(box: Box) -> None:
    box.append(letter("one"))
    assert not (await box.page())["messages"][0]["read"]

    with box.server.imap(box.user) as other:
        other.select()
        other.store("1", "+FLAGS", "(\\Seen)")

    assert (await box.page())["messages"][0]["read"]
    assert await box.uids(read="false") == []


async def test_two_hundred_messages_fit_on_one_page(box: Box) -> None:
    box.append(*(letter(f"m{number}") for number in range(1, 206)))

    page = await box.page(limit=200)

    assert [row["uid"] for row in page["messages"]] == list(range(205, 5, -1))


# ---- rows


async def test_a_row_says_what_the_message_is(box: Box) -> None:
    message = mime(
        leaf("text/plain", b"hello"),
        leaf(
            "application/pdf; name=x.pdf",
            b"%PDF" * 1000,
            'Content-Disposition: attachment; filename*=UTF-8\'\'B%C3%BCro.pdf',
        ),
        head="\r\n".join([
            "From: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>",
            'To: "Last, First" <a@example.org>, b@example.org',
            "Cc: c@example.org",
            "Reply-To: r@example.org",
            "Subject: =?utf-8?b?w5xiZXI=?= all",
            "Date: Sat, 3 Jan 2026 10:00:00 +0200",
            "Message-ID: <m1@example.org>",
            "In-Reply-To: <m0@example.org>",
        ]),
    )  # fmt: skip
    box.server.append(
        box.user, message, flags=["\\Flagged", "$Work"], date=datetime(2026, 1, 4, tzinfo=UTC)
    )

    (row,) = (await box.page())["messages"]

    assert row == {
        "uid": 1,
        "folder": "INBOX",
        "kind": "message",
        "message_id": "<m1@example.org>",
        "in_reply_to": "<m0@example.org>",
        "subject": "Über all",
        "from": {"name": "Jörg", "address": "joerg@example.org"},
        "to": [
            {"name": "Last, First", "address": "a@example.org"},
            {"name": None, "address": "b@example.org"},
        ],
        "cc": [{"name": None, "address": "c@example.org"}],
        "bcc": [],
        "reply_to": [{"name": None, "address": "r@example.org"}],
        "date": "2026-01-03T08:00:00Z",
        "received_at": "2026-01-04T00:00:00Z",
        "size": len(message),
        "read": False,
        "flagged": True,
        "answered": False,
        "draft": False,
        "flags": ["\\Flagged", "$Work"],
        "has_attachments": True,
        "attachments": [row["attachments"][0]],
    }
    attachment = row["attachments"][0]
    assert attachment["size"] == pytest.approx(4000, abs=3)
    assert (attachment["id"], attachment["filename"]) == ("2", "Büro.pdf")
    assert (attachment["content_type"], attachment["inline"]) == ("application/pdf", False)


async def test_a_message_that_cannot_be_understood_is_one_row_of_a_good_page(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    inbox = imap_server.folders["INBOX"]
    inbox.add(letter("one"))
    inbox.add(letter("two"), BODYSTRUCTURE=b'("TEXT" "PLAIN"')
    inbox.add(letter("three"), BODYSTRUCTURE=b"NIL")
    inbox.add(letter("four"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        rows = good(await mailbox.get(MESSAGES))["messages"]
        read = [await mailbox.get(f"{MESSAGES}/{uid}") for uid in (2, 3)]

    assert [row.get("subject") for row in rows] == ["four", None, None, "one"]
    assert [sorted(row) for row in rows[1:3]] == [["error", "folder", "uid"]] * 2
    assert [row["uid"] for row in rows[1:3]] == [3, 2]
    assert all(response.status_code < 500 for response in read)


# ---- filters

LETTERS = {
    "plain": letter("plain", "some words here"),
    "invoice": letter("invoice", "please pay", Cc="boss@example.org"),
    "umlaut": letter("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "nothing"),
    "long": letter("long", "x" * 5000),
    "list": letter("list", "weekly", List_Id="<news.example.org>"),
    "quoted": letter('say "hi" to \\me', "brackets ) DELETED"),
    "file": mime(
        leaf("text/plain", b"see file"),
        leaf("application/pdf", b"pdf", "Content-Disposition: attachment; filename=a.pdf"),
        head="From: Bob <bob@example.net>\r\nTo: team@example.org\r\nSubject: file",
    ),
}  # UIDs count from 1, in this order
FLAGGED, READ, ANSWERED = "invoice", "long", "list"


async def fill(box: Box) -> list[str]:
    flags = {FLAGGED: ["\\Flagged"], READ: ["\\Seen"], ANSWERED: ["\\Answered"]}
    for number, (name, message) in enumerate(LETTERS.items()):
        date = datetime(2026, 1, 1 + number, 12, tzinfo=UTC)
        box.server.append(box.user, message, flags=flags.get(name, ()), date=date)
    return list(LETTERS)


async def found(box: Box, names: list[str], **filters: str) -> set[str]:
    page = await box.page(**filters)
    uids = [row["uid"] for row in page["messages"]]
    assert page["total"] == len(uids)
    return {names[uid - 1] for uid in uids}


async def test_each_filter_finds_what_fits_it(box: Box) -> None:
    names = await fill(box)
    every = set(names)

    assert await found(box, names, read="true") == {"long"}
    assert await found(box, names, read="false") == every - {"long"}
    assert await found(box, names, flagged="true") == {"invoice"}
    assert await found(box, names, answered="true") == {"list"}
    assert await found(box, names, **{"from": "bob"}) == {"file"}
    assert await found(box, names, to="team@") == {"file"}
    assert await found(box, names, cc="boss") == {"invoice"}
    assert await found(box, names, subject="invoice") == {"invoice"}
    assert await found(box, names, subject="Grüße") == {"umlaut"}
    assert await found(box, names, subject='"hi" to \\me') == {"quoted"}
    assert await found(box, names, body="please") == {"invoice"}
    assert await found(box, names, text="news.example") == {"list"}
    assert await found(box, names, larger="4000") == {"long"}
    assert await found(box, names, smaller="4000") == every - {"long"}
    assert await found(box, names, since="2026-01-06") == {"quoted", "file"}
    assert await found(box, names, since="2026-01-06T00:00:00Z") == {"quoted", "file"}
    assert await found(box, names, before="2026-01-02") == {"plain"}
    assert await found(box, names, has_attachments="true") == {"file"}
    assert await found(box, names, has_attachments="false") == every - {"file"}
    assert await found(box, names, header="List-Id: news") == {"list"}
    assert await found(box, names, header="List-Id:") == {"list"}


async def test_filters_are_joined_and_a_query_says_it_all_in_one_line(box: Box) -> None:
    names = await fill(box)

    assert await found(box, names, flagged="true", subject="invoice") == {"invoice"}
    assert await found(box, names, flagged="true", subject="plain") == set()
    assert await found(box, names, q="is:flagged") == {"invoice"}
    assert await found(box, names, q='from:bob has:attachment "see file"') == {"file"}
    assert await found(box, names, q="subject:grüße") == {"umlaut"}
    assert await found(box, names, q="larger:4k") == {"long"}
    assert await found(box, names, q="since:2026-01-02 before:2026-01-03") == {"invoice"}
    assert await found(box, names, q="-subject:plain before:2026-01-03") == {"invoice"}
    assert await found(box, names, q="words -has:attachment") == {"plain"}


async def test_a_filtered_listing_has_pages_too(box: Box) -> None:
    for number in range(1, 7):
        box.append(letter(f"m{number}"), flags=["\\Flagged"] if number % 2 else ())

    first = await box.page(flagged="true", limit=2)
    second = await box.page(flagged="true", limit=2, cursor=first["next_cursor"])

    assert [row["uid"] for row in first["messages"]] == [5, 3]
    assert [row["uid"] for row in second["messages"]] == [1]
    assert (first["total"], second["next_cursor"]) == (3, None)


INJECTED = (
    *('x" DELETED', "x)\r\nA1 EXPUNGE", "x\r\nA1 EXPUNGE\r\n", "ALL OR", "a{5}", "a{5+}", "{0}"),
    *(
        "\\",
        '"',
        "(",
        ")",
        "*",
        "%",
        "NIL",
        "é",
        "\U0001f389",
        "x" * 1000,
        "x" * 1001,
        "\0",
        "\x7f",
    ),
)


async def test_no_text_to_search_for_is_more_than_text(box: Box) -> None:
    """T-19: one SEARCH a call, or a 422 and none; and nothing is deleted."""
    box.append(letter("one"), flags=["\\Deleted"])
    await box.uids()
    for text in INJECTED:
        for name in ("subject", "from", "text", "body", "to", "cc"):
            box.said()

            response = await box.get(MESSAGES, **{name: text})

            said = verbs(box.said())
            assert said in ([b"UID SEARCH"], [b"UID SEARCH", b"UID FETCH"], []), (name, text)
            refused = (422, "invalid-request", [f"#/{name}"])
            assert bool(said) or problem(response) == refused, (name, text)
            assert response.is_success == bool(said), (name, text)
    for name in ("X", "X\r\nA1 EXPUNGE", 'X" DELETED', "X Y", "", "é", "{5}"):
        for value in INJECTED:
            box.said()
            await box.get(MESSAGES, header=f"{name}: {value}")
            assert set(verbs(box.said())) <= {b"UID SEARCH", b"UID FETCH"}, (name, value)
    for query in (*INJECTED, *(f'subject:"{text}' for text in INJECTED), "x " * 51):
        box.said()
        response = await box.get(MESSAGES, q=query)
        assert set(verbs(box.said())) <= {b"UID SEARCH", b"UID FETCH"}, query
        assert response.status_code in {200, 422}, query
    assert box.subjects() == ["one"]


async def test_a_query_that_is_not_in_the_contract_is_refused_unheard(box: Box) -> None:
    box.append(letter("one"))
    first = await box.page()
    box.said()
    bad: dict[str, dict[str, Any]] = {
        "#/limit": {"limit": 0},
        "#/limit ": {"limit": 201},
        "#/limit  ": {"limit": -1},
        "#/limit   ": {"limit": "many"},
        "#/limit    ": {"limit": "9" * 5000},
        "#/cursor": {"cursor": "x"},
        "#/cursor ": {"cursor": "é"},
        "#/cursor  ": {"cursor": ""},
        "#/cursor   ": {"cursor": "eyJ1aWQiOjF9"},
        "#/read": {"read": "perhaps"},
        "#/since": {"since": "yesterday"},
        "#/since ": {"since": "2026-02-30"},
        "#/before": {"before": ""},
        "#/larger": {"larger": -1},
        "#/smaller": {"smaller": 2**32},
        "#/larger ": {"larger": "big"},
        "#/header": {"header": ": x"},
        "#/q": {"q": "nonsense:x"},
        "#/q ": {"q": 'from:"open'},
        "#/subject": {"subject": ""},
        "#/folder": {"folder": ""},
        "#/folder ": {"folder": "a\r\nb"},
        "#/colour": {"colour": "red"},
        "#/uid_below": {"uid_below": "7"},
    }

    for pointer, query in bad.items():
        assert problem(await box.get(MESSAGES, **query)) == (
            *(422, "invalid-request"),
            [pointer.rstrip()],
        ), query

    assert verbs(box.said()) == []
    assert await box.page() == first


async def test_a_search_the_server_cannot_do_is_the_requests_fault(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.on("UID SEARCH", b"{tag} NO [BADCHARSET (US-ASCII)] no\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.get(MESSAGES, subject="Grüße")

    assert problem(response)[:2] == (422, "invalid-request")


# ---- folders named in a query (T-18)


async def test_a_folder_in_a_query_is_one_name_in_one_command(box: Box) -> None:
    await box.folders()
    for name in (
        *('INBOX" (X', '"', "\\", "a{5}", "a{5+}", "{0}", "INBOX (CONDSTORE)", " INBOX", "INBOX "),
        *("%", "**", "inbox/../Sent", "会议", "&", "x" * 1000),
    ):
        box.said()

        response = await box.get(MESSAGES, folder=name)

        assert problem(response)[:2] == (404, "folder-not-found"), name
        said = [verb for verb in verbs(box.said()) if verb != b"UID SEARCH"]  # sent ahead
        assert set(said) <= {b"SELECT", b"LIST"}, name
        assert said.count(b"SELECT") <= 2, name


# ---- entity tags


async def test_a_listing_that_has_not_changed_is_not_sent_again(box: Box) -> None:
    box.append(letter("one"))
    first = await box.get(MESSAGES)
    tag = {"If-None-Match": first.headers["etag"]}
    client = box.mailbox.client

    same = await client.get(MESSAGES, headers=tag)
    weak = await client.get(MESSAGES, headers={"If-None-Match": f'"x", W/{tag["If-None-Match"]}'})
    good(await box.post(f"{MESSAGES}/1/mark", {"read": True}))
    changed = await client.get(MESSAGES, headers=tag)

    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == first.headers["etag"]
    assert weak.status_code == 304
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]


async def test_answers_are_private_and_say_where_the_time_went(box: Box) -> None:
    box.append(letter("one"))

    for path in (MESSAGES, f"{MESSAGES}/1", f"{MESSAGES}/1/raw", FOLDERS, f"{MESSAGES}/9"):
        headers = (await box.get(path)).headers
        assert headers["cache-control"] == "private, no-store", path
        assert headers["vary"] == "Authorization, X-API-Key, X-Session-ID"
        assert "imap;dur=" in headers["server-timing"]
        assert "auth;dur=" in headers["server-timing"]


# ---- one message


async def test_a_plain_message_is_read_in_full_and_stays_unread(box: Box) -> None:
    box.append(
        letter("hi", "Hello,\r\n\r\nwörld.", References="<a@x> <b@x>", X_Thing="=?utf-8?q?=C3=A9?=")
    )

    message = good(await box.get(f"{MESSAGES}/1"))

    assert message["text"].rstrip() == "Hello,\n\nwörld."
    assert message["html"] is None
    assert message["references"] == ["<a@x>", "<b@x>"]
    assert {"name": "X-Thing", "value": "é"} in message["headers"]
    assert message["headers"][0] == {"name": "From", "value": "Ann <ann@example.org>"}
    row = (await box.page())["messages"][0]
    assert {name: message[name] for name in row} == row
    assert not row["read"]
    assert box.flags(1) == set()


async def test_a_message_is_marked_read_when_asked_for(box: Box) -> None:
    box.append(letter("hi"))

    first = good(await box.get(f"{MESSAGES}/1", mark_read="true"))
    again = good(await box.get(f"{MESSAGES}/1", mark_read="true"))

    assert first["read"]
    assert again["flags"] == ["\\Seen"]
    assert box.flags(1) == {"\\Seen"}


@pytest.mark.parametrize(
    ("charset", "encoding", "body"),
    [
        ("iso-8859-1", "8bit", "Grüße".encode("latin-1")),
        ("windows-1252", "quoted-printable", b"Gr=FC=DFe"),
        ("utf-8", "base64", base64.b64encode("Grüße".encode())),
        ("no-such-charset", "8bit", "Grüße".encode()),
    ],
)
async def test_text_is_decoded_whatever_its_charset(
    base_url: str,
    smtp_server: ScriptedSmtp,
    dovecot: Dovecot,
    charset: str,
    encoding: str,
    body: bytes,
) -> None:
    head = (
        f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n"
    )
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(head.encode() + b"\r\n" + body + b"\r\n")

        assert good(await box.get(f"{MESSAGES}/1"))["text"].strip() == "Grüße"


NEWSLETTER = mime(
    leaf("text/plain; charset=utf-8", b"the text"),
    mime(
        leaf(
            "text/html; charset=utf-8",
            b'<p onclick="x()">the <b>html</b><script>x()</script>'
            b'<img src="cid:logo@x"><img src="https://spy.example/p.gif"></p>',
        ),
        leaf("image/png", b"\x89PNG", "Content-ID: <logo@x>", "Content-Disposition: inline"),
        kind="related",
        head="X-Inner: 1",
    ).replace(b"=_b", b"=_c"),
    kind="alternative",
)


async def test_html_is_safe_to_show_and_its_pictures_are_where_it_points(box: Box) -> None:
    box.append(NEWSLETTER)

    message = good(await box.get(f"{MESSAGES}/1"))

    assert message["text"].strip() == "the text"
    assert "<b>html</b>" in message["html"]
    assert not [bad for bad in ("script", "onclick", "spy.example") if bad in message["html"]]
    (picture,) = message["attachments"]
    assert (picture["content_id"], picture["inline"]) == ("logo@x", True)
    assert not message["has_attachments"]
    url = f"{MESSAGES}/1/attachments/{picture['id']}?folder=INBOX"
    assert f'src="{url}"' in message["html"]
    assert (await box.mailbox.client.get(url)).content == b"\x89PNG"


async def test_html_can_be_had_as_it_was_sent(box: Box) -> None:
    box.append(NEWSLETTER)

    message = good(await box.get(f"{MESSAGES}/1", html="raw"))

    assert "<script>x()</script>" in message["html"]
    assert 'src="cid:logo@x"' in message["html"]


async def test_many_text_parts_are_read_in_two_flights(box: Box) -> None:
    parts = [leaf("text/plain", f"part {number}".encode()) for number in range(40)]
    box.append(mime(*parts))
    await box.uids()
    box.said()

    message = good(await box.get(f"{MESSAGES}/1"))

    assert [line for line in message["text"].splitlines() if line] == [
        f"part {number}" for number in range(32)
    ]
    assert [attachment["id"] for attachment in message["attachments"]] == [
        str(number) for number in range(33, 41)
    ]
    assert verbs(box.said()) == [b"UID FETCH", b"UID FETCH"]


async def test_a_great_text_is_cut_and_nothing_fails(box: Box) -> None:
    parts = [
        leaf("text/plain", b"x" * 3_000_000),
        *[leaf("text/plain", b"y" * 1_500_000)] * 5,
    ]
    box.append(mime(*parts))

    message = good(await box.get(f"{MESSAGES}/1"))

    assert 0 < len(message["text"]) < ALL_BODIES_OCTETS


# ---- octets


async def test_a_message_can_be_had_byte_for_byte(box: Box) -> None:
    content = b"Subject: raw\r\nX-Bin: \xff\xfe\r\n\r\n.dot\r\n\xe4\xf6 8-bit\r\n" + b"z" * 300_000
    box.append(content)

    response = await box.get(f"{MESSAGES}/1/raw")

    assert response.content == content
    assert response.headers["content-type"] == "message/rfc822"
    assert response.headers["content-length"] == str(len(content))
    assert response.headers["content-disposition"].startswith("attachment;")
    assert box.flags(1) == set()


async def test_an_attachment_is_decoded_and_never_shown_as_ours(box: Box) -> None:
    """T-40: whatever it says it is, a browser saves it."""
    content = bytes(range(256)) * 2000
    parts = [
        leaf("text/plain", b"text"),
        leaf("image/png; name=p.png", content),
        leaf("text/html", b"<script>alert(1)</script>", "Content-Disposition: inline"),
        leaf("image/svg+xml", b"<svg onload='x()'/>", "Content-Disposition: inline"),
        leaf("application/octet-stream", b"", "Content-Disposition: attachment"),
    ]
    box.append(mime(*parts))

    responses = [await box.get(f"{MESSAGES}/1/attachments/{number}") for number in (2, 3, 4, 5)]

    assert responses[0].content == content
    assert responses[3].content == b""
    for response, kind in zip(
        responses,
        ("image/png", "text/html", "image/svg+xml", "application/octet-stream"),
        strict=True,
    ):
        assert response.headers["content-type"].partition(";")[0] == kind
        assert response.headers["content-disposition"].startswith("attachment; filename=")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_an_attached_message_and_what_is_in_it_can_be_had(box: Box) -> None:
    inner = mime(leaf("text/plain", b"in"), leaf("application/pdf", b"deep")).replace(b"_b", b"_c")
    box.append(mime(leaf("text/plain", b"out"), b"Content-Type: message/rfc822\r\n\r\n" + inner))

    message = good(await box.get(f"{MESSAGES}/1"))

    assert message["text"].strip() == "out"
    assert [attachment["content_type"] for attachment in message["attachments"]] == [
        "message/rfc822"
    ]
    whole = await box.get(f"{MESSAGES}/1/attachments/2")
    assert whole.content.strip() == inner.strip()
    assert (await box.get(f"{MESSAGES}/1/attachments/2.2")).content == b"deep"


async def test_a_part_that_is_not_there_is_a_404(box: Box) -> None:
    box.append(mime(leaf("text/plain", b"text")))
    await box.uids()

    for part in (
        "2",
        "0",
        "1.1",
        "1.MIME",
        "HEADER",
        "TEXT",
        "1]<0.1> BODY[",
        "x" * 300,
        "1%0D%0A",
    ):
        response = await box.get(f"{MESSAGES}/1/attachments/{part}")
        assert problem(response)[0] == 404, part
    missing = await box.get(f"{MESSAGES}/9/attachments/1")
    assert problem(missing)[:2] == (404, "message-not-found")


FILENAMES = (
    b'filename="a\\"; Set-Cookie: x=1"',
    b'filename="a\r\n Set-Cookie: x=1"',
    b"filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x=1",
    b'filename="=?utf-8?q?a=0D=0ASet-Cookie:x=1?="',
    b'filename="../../etc/passwd"',
    b'filename="C:\\\\x\\\\y.txt"',
    b'filename="CON"',
    b"filename*=UTF-8''photo%E2%80%AEgpj.exe",
    b'filename="' + b"x" * 10_000 + b'.pdf"',
    "filename=🎉;%.txt".encode(),
    b"; ".join(b"filename*%d*=%%41" % number for number in range(500)),
)


async def test_no_file_name_is_more_than_a_name(box: Box) -> None:
    """T-33: the header is one line, and the name one that every system can store."""
    for filename in FILENAMES:
        part = b"Content-Type: application/x-thing\r\nContent-Disposition: attachment; " + filename
        (uid,) = box.append(mime(leaf("text/plain", b"text"), part + b"\r\n\r\nx"))

        response = await box.get(f"{MESSAGES}/{uid}/attachments/2")

        assert response.status_code == 200, filename
        assert response.content.strip() == b"x"
        assert "set-cookie" not in response.headers
        disposition = response.headers["content-disposition"]
        assert disposition.isascii()
        assert not set("/\\\r\n") & set(disposition), disposition
        assert len(disposition) < 1500
        assert "%E2%80%AE" not in disposition
    for row in (await box.page())["messages"]:
        assert "/" not in (row["attachments"][0]["filename"] or "")


# ---- what is not there


async def test_what_is_not_there_is_a_404(box: Box) -> None:
    box.append(letter("one"))
    await box.uids()

    for uid in ("2", "0", "4294967295", "4294967296", "9" * 5000, "00"):
        for rest in ("", "/raw", "/attachments/1"):
            response = await box.get(f"{MESSAGES}/{uid}{rest}")
            assert problem(response)[:2] == (404, "message-not-found"), (uid[:20], rest)
    for uid in ("abc", "-1", "1.5", "1x", "*", "1:5", "%31%0D%0A"):
        assert problem(await box.get(f"{MESSAGES}/{uid}"))[0] == 404, uid
    for folder in ("No such", "\\Flagged"):
        response = await box.get(f"{MESSAGES}/1", folder=folder)
        assert problem(response)[:2] == (404, "folder-not-found")


async def test_reading_refuses_what_is_not_in_the_contract(box: Box) -> None:
    box.append(letter("one"))

    for query in ({"mark_read": "x"}, {"html": "nice"}, {"markread": "true"}, {"folder": "a\0"}):
        response = await box.get(f"{MESSAGES}/1", **query)
        assert problem(response)[:2] == (422, "invalid-request"), query

    assert box.flags(1) == set()


async def test_a_message_another_client_removed_is_a_404(box: Box) -> None:
    """F-19, with a warm connection that has not been told."""
    box.append(letter("one"), mime(leaf("text/plain", b"two")))
    await box.uids()

    box.server.expunge(box.user, "INBOX", [1, 2])

    for path in ("1", "1/raw", "2/attachments/1", "2"):
        response = await box.get(f"{MESSAGES}/{path}")
        assert problem(response)[:2] == (404, "message-not-found"), path
    assert await box.uids() == []


async def test_a_message_removed_between_search_and_fetch_is_left_out(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    inbox = imap_server.folders["INBOX"]
    for number in (1, 2, 3):
        inbox.add(letter(f"m{number}"))

    def expunge(_: bytes) -> Any:
        del inbox.messages[1:2]
        return NORMAL

    imap_server.on("UID FETCH", expunge, NORMAL)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        rows = good(await mailbox.get(MESSAGES))["messages"]

    assert [row["uid"] for row in rows] == [3, 1]


# ---- folders that were made anew (T-41, F-18)


@pytest.fixture(params=["warm", "cold"])
def made_anew(box: Box, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Deletes `Box`, makes it again and fills it with as many other messages.

    A warm connection still has the old folder selected. Dovecot then finds the new messages by the old UIDs, and
    may lose them altogether: so what is in there afterwards is looked at through a cold one only.
    """

    def make_anew() -> None:
        if request.param == "cold":
            box.server.kick(box.user)
        box.server.recreate_folder(box.user, "Box")
        box.append(letter("new 1"), letter("new 2"), folder="Box")

    box.server.create_folder(box.user, "Box")
    box.append(letter("old 1"), letter("old 2"), folder="Box")
    return make_anew


async def test_a_cursor_of_a_folder_that_was_made_anew_is_gone(
    box: Box, made_anew: Callable[[], None]
) -> None:
    first = await box.page(folder="Box", limit=1)

    made_anew()

    next_page = await box.get(MESSAGES, folder="Box", limit=1, cursor=first["next_cursor"])
    assert problem(next_page)[:2] == (410, "cursor-expired")


@pytest.mark.parametrize("rest", ["", "/raw", "/attachments/1"])
async def test_a_uid_of_a_folder_that_was_made_anew_reads_no_other_message(
    box: Box, made_anew: Callable[[], None], rest: str
) -> None:
    await box.uids(folder="Box")

    made_anew()

    stale = await box.get(f"{MESSAGES}/1{rest}", folder="Box")
    assert problem(stale)[:2] == (404, "message-not-found")


async def test_a_folder_that_was_made_anew_can_be_used_once_it_is_listed_again(box: Box) -> None:
    box.server.create_folder(box.user, "Box")
    box.append(letter("old"), folder="Box")
    before = await box.page(folder="Box")
    box.server.kick(box.user)
    box.server.recreate_folder(box.user, "Box")
    box.append(letter("new"), folder="Box")

    after = await box.page(folder="Box")

    assert [row["subject"] for row in after["messages"]] == ["new"]
    assert after["uid_validity"] != before["uid_validity"]
    assert good(await box.get(f"{MESSAGES}/1", folder="Box"))["subject"] == "new"


# ---- servers that go away (F-15, F-16)


async def test_a_connection_the_server_ended_at_rest_costs_the_client_nothing(box: Box) -> None:
    box.append(letter("one"))

    messages = [f"{MESSAGES}{path}" for path in ("", "/1", "/1/raw", "/1/attachments/1")]
    for path in (*messages, FOLDERS):
        before = await box.get(path)
        box.server.kick(box.user)
        after = await box.get(path)

        assert before.status_code == after.status_code == 200, path
        assert after.content == before.content


@pytest.mark.parametrize("death", [CUT, b"* BYE restarting\r\n", (b"* 1 FETCH (UID 1 BO", CUT)])
async def test_a_read_on_a_connection_that_dies_is_tried_once_more(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp, death: Any
) -> None:
    imap_server.folders["INBOX"].add(letter("one"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        for path, command in (
            (FOLDERS, "LIST"),
            (MESSAGES, "UID SEARCH"),
            (MESSAGES, "UID FETCH"),
            (f"{MESSAGES}/1", "UID FETCH"),
            (f"{MESSAGES}/1/raw", "UID FETCH"),
            (f"{MESSAGES}/1/attachments/1", "UID FETCH"),
        ):
            imap_server.on(command, death, NORMAL)
            before = imap_server.connections

            response = await mailbox.get(path)

            assert response.status_code == 200, response.text
            assert imap_server.connections == before + 1, (path, command)


async def test_a_read_that_dies_twice_is_a_503_and_not_tried_a_third_time(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.on("UID FETCH", CUT)
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        for path in ("", "/1", "/1/raw"):
            imap_server.commands.clear()

            response = await mailbox.get(MESSAGES + path)

            assert problem(response)[:2] == (503, "upstream-unavailable")
            assert response.headers["retry-after"].isdigit()
            assert imap_server.count("UID FETCH") == 2, path


async def test_a_message_cut_off_in_the_middle_is_not_taken_for_whole(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.folders["INBOX"].add(letter("one"))
    half = b"* 1 FETCH (UID 1 BODY[] {1000000}\r\n" + b"x" * 500_000
    imap_server.on("UID FETCH 1 (UID BODY.PEEK[])", (half, CUT))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        with pytest.raises(httpx.RemoteProtocolError):
            await mailbox.get(f"{MESSAGES}/1/raw")

        good(await mailbox.get(FOLDERS))


# ---- servers that can do less (F-20)


@pytest.mark.parametrize("capabilities", [CAPABILITIES, WEAK_CAPABILITIES], ids=["strong", "weak"])
async def test_what_a_server_lacks_is_not_asked_of_it(
    imap_server: ScriptedImap,
    base_url: str,
    smtp_server: ScriptedSmtp,
    capabilities: tuple[str, ...],
) -> None:
    """The scripted server answers BAD to what it does not offer, literals that do not wait among it."""
    imap_server.capabilities = list(capabilities)
    for number in range(1, 4):
        imap_server.folders["INBOX"].add(letter(f"m{number}", X_Tag="größe"))
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        page = good(await mailbox.get(MESSAGES, limit=2))
        rest = good(await mailbox.get(MESSAGES, limit=2, cursor=page["next_cursor"]))
        by_literal = good(await mailbox.get(MESSAGES, header="Subject: é"))
        message = good(await mailbox.get(f"{MESSAGES}/2", mark_read="true"))
        raw = await mailbox.get(f"{MESSAGES}/2/raw")

    assert [row["uid"] for row in page["messages"]] == [3, 2]
    assert [row["uid"] for row in rest["messages"]] == [1]
    assert by_literal["total"] == 0
    assert message["read"]
    assert raw.content == letter("m2", X_Tag="größe")
    assert imap_server.connections == 1, "a command broke the connection"


# ---- servers that cannot be understood


@pytest.mark.parametrize(
    "answer",
    [
        b"* SEARCH x y\r\n",
        b"* SEARCH 0 4294967296 7\r\n",
        b'* ESEARCH (TAG "{tag}") UID ALL 1:x,,5\r\n',
    ],
)
async def test_a_search_answered_with_nonsense_is_the_servers_fault(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp, answer: bytes
) -> None:
    imap_server.on("UID SEARCH", answer + b"{tag} OK\r\n")
    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        listed = await mailbox.get(MESSAGES)

    assert problem(listed)[:2] == (502, "upstream-error")


async def test_a_body_that_is_cut_says_so(box: Box) -> None:
    whole, cut = box.append(letter("whole"), letter("cut", "0123456789abcdef\r\n" * 100_000))

    shown = [good(await box.get(f"{MESSAGES}/{uid}")) for uid in (whole, cut)]

    assert [message["truncated"] for message in shown] == [False, True]
    assert 0 < len(shown[1]["text"]) < 1_800_000


async def test_a_row_listed_before_is_fetched_for_its_flags_alone_and_tells_them_as_they_are(
    box: Box,
) -> None:
    box.append(letter("old"), letter("older"))
    await box.page()
    box.said()
    box.append(letter("new"))
    box.server.doveadm("flags", "add", "-u", box.user, "\\Flagged", "mailbox", "INBOX", "uid", "1")

    page = await box.page()

    rows = {row["subject"]: row["flagged"] for row in page["messages"]}
    assert rows == {"new": False, "older": False, "old": True}
    fetched = [command for command in box.said() if b"FETCH" in command]
    assert all(command.startswith(b"UID FETCH 1:2 (UID FLAGS)") for command in fetched[:-1])
    assert fetched[-1].startswith(b"UID FETCH 3 (UID FLAGS INTERNALDATE")
