"""`?snippet=true`: from a server that knows the first words of a message, and from one that does not."""

from __future__ import annotations

import base64
import quopri
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_imap import CAPABILITIES, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment, letter
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import (
    MESSAGES,
    PLAINTEXT,
    Box,
    good,
    open_box,
    open_scripted,
    verbs,
)
from tests.integration.test_messages import leaf, mime


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture
async def weak_box(
    base_url: str, weak_dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(weak_dovecot, base_url, smtp_server) as box:
        yield box


@pytest.fixture(params=["dovecot", "weak_dovecot"])
async def box(
    request: pytest.FixtureRequest, base_url: str, smtp_server: ScriptedSmtp
) -> AsyncIterator[Box]:
    async with open_box(request.getfixturevalue(request.param), base_url, smtp_server) as box:
        yield box


def encoded(encoding: str, text: str, charset: str = "utf-8", kind: str = "plain") -> bytes:
    octets = text.encode(charset)
    body = (
        base64.encodebytes(octets)
        if encoding == "base64"
        else quopri.encodestring(octets)
        if encoding == "quoted-printable"
        else octets
    )
    head = (
        f"Subject: x\nContent-Type: text/{kind}; charset={charset}\n"
        f"Content-Transfer-Encoding: {encoding}\n\n"
    )
    return (head.encode() + body).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


async def snippets(box: Box, **params: Any) -> list[str]:
    """The snippets of a listing, the oldest message's first."""
    page = await box.page(snippet="true", **params)
    return [row["snippet"] for row in page["messages"]][::-1]


async def test_a_snippet_is_there_where_it_is_asked_for(box: Box) -> None:
    box.append(letter("one", "Dear Joe,\r\n\r\nthis is\tit."))

    assert "snippet" not in (await box.page())["messages"][0]
    assert await snippets(box) == ["Dear Joe, this is it."]
    assert "snippet" not in (await box.page())["messages"][0]


async def test_a_snippet_has_two_hundred_characters_at_most(box: Box) -> None:
    box.append(letter("one", "word " * 100))

    (snippet,) = await snippets(box)

    assert snippet == ("word " * 40).strip()


@pytest.mark.parametrize("encoding", ["8bit", "quoted-printable", "base64"])
async def test_a_snippet_is_decoded(box: Box, encoding: str) -> None:
    box.append(encoded(encoding, "Grüße aus Köln, 日本 und Україна. " * 100))

    (snippet,) = await snippets(box)

    assert snippet.startswith("Grüße aus Köln, 日本 und Україна. Grüße")
    assert "\ufffd" not in snippet


async def test_a_snippet_is_of_the_text_wherever_it_stands(box: Box) -> None:
    html = leaf("text/html", b"<p>Hello HTML.</p>")
    text = leaf("text/plain", b"Hello text.")
    both = mime(text, html, kind="alternative", head="Subject: x")
    box.append(
        both,
        mime(both.partition(b"\r\n")[2], leaf("application/pdf", b"%PDF")),
        mime(html, leaf("image/png", b"png"), kind="related"),
        mime(leaf("application/pdf", b"%PDF")),
    )

    assert await snippets(box) == ["Hello text.", "Hello text.", "Hello HTML.", ""]


async def test_quotations_and_signatures_are_no_first_words(weak_box: Box) -> None:
    quoting = "On Mon, 5 Jan 2026, Ann wrote:\r\n> Shall we?\r\n\r\nYes.\r\n\r\n-- \r\nJoe"
    weak_box.append(letter("Re: Lunch", quoting))

    assert await snippets(weak_box) == ["Yes."]


async def test_an_empty_text_beside_html_is_passed_over(weak_box: Box) -> None:
    empty, html = b"Content-Type: text/plain\r\n\r\n\r\n", leaf("text/html", b"<p>Hello HTML.</p>")
    weak_box.append(mime(empty, html, kind="alternative"))

    assert await snippets(weak_box) == ["Hello HTML."]


async def test_the_first_words_of_html_are_found_behind_its_style_sheet(weak_box: Box) -> None:
    style = "<style>" + ".a { color: red }\n" * 400 + "</style>"
    html = (
        f"<html><head>{style}</head><body><p>Hello <a href='https://example.org/t?x'>there</a>.</p>"
    )
    weak_box.append(encoded("8bit", html, kind="html"))

    assert await snippets(weak_box) == ["Hello there."]


async def test_a_character_that_is_cut_spoils_nothing(weak_box: Box) -> None:
    """At every place of a character of three octets, in a text that is ASCII but for it."""
    weak_box.append(*(encoded("8bit", "é " + "x" * n + "€" * 10) for n in range(2040, 2046)))

    for snippet in await snippets(weak_box):
        assert snippet.startswith("é xxx")


async def test_a_snippet_is_asked_for_once(box: Box) -> None:
    box.append(letter("one"), letter("two"))
    await box.page(snippet="true")
    box.said()

    await box.page(snippet="true")
    await box.page()

    assert not any(b"PREVIEW" in said or b"BODY" in said for said in box.said())


async def test_a_server_that_knows_the_first_words_sends_no_text(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(letter("one"))

        assert await snippets(box) == ["Hello."]

        (fetch,) = [said for said in box.said() if said.startswith(b"UID FETCH")]
        assert b" PREVIEW)" in fetch
        assert b"BODY.PEEK[1]" not in fetch


async def test_text_comes_with_the_row_where_it_is_where_it_mostly_is(weak_box: Box) -> None:
    weak_box.append(letter("one"), letter("two"))
    await weak_box.page(folder="Sent")
    weak_box.said()

    assert await snippets(weak_box) == ["Hello.", "Hello."]

    assert verbs(weak_box.said()).count(b"UID FETCH") == 1


async def test_a_preview_that_a_server_fails_to_make_is_made_of_the_text(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "PREVIEW"]
    imap_server.folders["INBOX"].add(letter("one"))
    header = b"Subject: one\r\n\r\n"
    structure = b'"text" "plain" NIL NIL NIL "7bit" 8 1'
    imap_server.on(
        "UID FETCH 1 (UID FLAGS",
        b"* 1 FETCH (UID 1 FLAGS () BODYSTRUCTURE (%b) PREVIEW NIL BODY[HEADER.FIELDS (DATE)]<0> {%d}\r\n%b)\r\n"
        b"{tag} OK\r\n" % (structure, len(header), header),
    )

    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        row = good(await mailbox.get(MESSAGES, snippet="true"))["messages"][0]

    assert row["snippet"] == "Hello."
