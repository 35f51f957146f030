"""`GET /api/mailbox/messages/{uid}/thread`: at a server that threads, and at one where the service has to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_imap import CAPABILITIES, WEAK_CAPABILITIES, ScriptedImap
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


def written(subject: str, message_id: str, minute: int, *references: str, **fields: str) -> bytes:
    if references:
        fields["References"] = " ".join(references)
    date = f"Sat, 3 Jan 2026 10:{minute:02d}:00 +0000"
    return letter(subject, Message_ID=message_id, Date=date, **fields)


async def thread(box: Box, uid: int, **params: Any) -> dict[str, Any]:
    return good(await box.get(f"{MESSAGES}/{uid}/thread", **params))


async def uids(box: Box, uid: int) -> list[int]:
    return [row["uid"] for row in (await thread(box, uid))["messages"]]


async def test_a_conversation_is_whole_from_any_of_its_messages(box: Box) -> None:
    box.append(
        written("Lunch", "<a@x>", 1),
        written("Something else", "<z@x>", 2),
        written("Re: Lunch", "<b@x>", 3, "<a@x>"),
        written("Where we meet", "<c@x>", 4, "<a@x>", "<b@x>"),
        written("Re: Lunch", "<d@x>", 5, In_Reply_To="<c@x>"),
    )

    assert [await uids(box, uid) for uid in (1, 3, 4, 5)] == [[1, 3, 4, 5]] * 4
    assert await uids(box, 2) == [2]


async def test_a_conversation_is_told_as_a_list_tells_messages(box: Box) -> None:
    box.append(written("Lunch", "<a@x>", 1), written("Re: Lunch", "<b@x>", 2, "<a@x>"))

    answer = await thread(box, 2, snippet="true")

    listed = await box.page(snippet="true")
    assert answer == {
        "folder": "INBOX",
        "uid_validity": listed["uid_validity"],
        "messages": listed["messages"][::-1],
        "truncated": False,
    }
    assert answer["messages"][0]["snippet"] == "Hello."


async def test_the_order_is_that_of_sending(box: Box) -> None:
    box.append(
        written("Re: Lunch", "<b@x>", 7, "<a@x>"),
        written("Re: Lunch", "<c@x>", 3, "<a@x>"),
        written("Lunch", "<a@x>", 1),
    )

    assert await uids(box, 1) == [3, 2, 1]


async def test_messages_are_of_one_conversation_by_subject_where_nothing_else_tells(
    box: Box,
) -> None:
    box.append(
        written("Bericht über die Lage", "<a@x>", 1),
        written("AW: Bericht über die Lage", "<b@x>", 2),
        written("Re: [team] Bericht   über die Lage (fwd)", "<c@x>", 3),
        written("Re: Lage", "<d@x>", 4),
    )

    assert await uids(box, 3) == [1, 3]
    assert await uids(box, 4) == [4]


async def test_a_subject_that_is_encoded_is_compared_decoded(box: Box) -> None:
    box.append(
        written("=?utf-8?q?Gr=C3=BC=C3=9Fe_aus_K=C3=B6ln?=", "<a@x>", 1),
        written("Re: =?iso-8859-1?q?Gr=FC=DFe_aus_K=F6ln?=", "<b@x>", 2),
    )

    assert await uids(box, 2) == [1, 2]


async def test_messages_that_name_none_are_threads_of_their_own(box: Box) -> None:
    box.append(letter(""), letter("Re:"), b"\r\nno header\r\n")

    assert [await uids(box, uid) for uid in (1, 2, 3)] == [[1], [2], [3]]


async def test_a_missing_message_keeps_its_answers_together(box: Box) -> None:
    box.append(
        written("One", "<b@x>", 1, "<gone@x>"),
        written("Another", "<c@x>", 2, "<gone@x>"),
    )

    assert await uids(box, 1) == [1, 2]


async def test_a_reply_that_has_just_come_is_in_the_conversation(box: Box) -> None:
    box.append(written("Lunch", "<a@x>", 1))
    assert await uids(box, 1) == [1]

    for number in range(2, 5):
        box.append(written("Re: Lunch", f"<r{number}@x>", number, "<a@x>"))

        assert (await uids(box, 1))[-1] == number
        assert (await uids(box, number))[-1] == number


async def test_a_message_that_is_not_there_has_no_conversation(box: Box) -> None:
    box.append(letter("one"))

    response = await box.get(f"{MESSAGES}/9/thread")

    assert problem(response) == (404, "message-not-found", [])
    assert (await box.get(f"{MESSAGES}/1/thread", folder="Nowhere")).status_code == 404


async def test_of_a_long_conversation_the_latest_and_the_one_asked_for_are_told(box: Box) -> None:
    replies = (written("Re: Long", f"<m{n}@x>", n // 10, "<m1@x>") for n in range(2, 521))
    box.append(written("Long", "<m1@x>", 0), *replies)

    answer = await thread(box, 3)

    assert answer["truncated"]
    assert {row["uid"] for row in answer["messages"]} == {3, *range(21, 521)}
    assert answer["messages"][0]["uid"] == 3


async def test_a_server_that_threads_is_asked_once(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    async with open_box(dovecot, base_url, smtp_server) as box:
        box.append(written("Lunch", "<a@x>", 1), written("Re: Lunch", "<b@x>", 2, "<a@x>"))
        await box.page()
        box.said()

        assert await uids(box, 2) == [1, 2]

        assert verbs(box.said()) == [b"UID THREAD", b"UID FETCH"]


SUBJECTS = (
    *("Lunch", "Re: Lunch", "RE: lunch (fwd)", "[team] Re: Lunch", "Fwd: Plan", "plan"),
    *("Re: [x] Fw[2]: Plan", "", "Re:", "[fwd: Lunch]", "[fwd: Re: plan]", "[team]", "[a] [b]"),
    *("Re: Other [x]", "Other", "Re: Re[3]: fw : other", "AW: Lunch", "Lunch   again", "Grüße"),
    *("RE: GRÜßE", "Re: Gru\u0308ße", "[a][b] Re: lunch", "re [x]: lunch", "[fwd: lunch"),
)


def random_letters(dice: random.Random) -> list[bytes]:
    """Messages that quote each other as no sane senders do: loops, doubles, ids of nobody."""
    ids = [f"<i{number}@x>" for number in range(dice.choice([4, 8, 16]))]
    letters = []
    for number in range(dice.choice([3, 6, 12, 24])):
        fields = {}
        if dice.random() < 0.9:
            fields["Date"] = f"Sat, 3 Jan 2026 10:{dice.randrange(60):02d}:00 +0000"
        if dice.random() < 0.9:
            fields["Message_ID"] = dice.choice(ids)
        if dice.random() < 0.6:
            fields["References"] = " ".join(dice.choices(ids, k=dice.randrange(5)))
        if dice.random() < 0.5:
            fields["In_Reply_To"] = dice.choice(ids)
        letters.append(letter(dice.choice(SUBJECTS), f"Number {number}.", **fields))
    return letters


@pytest.mark.parametrize("seed", range(12))
async def test_the_service_threads_as_the_server_does(
    seed: int, base_url: str, dovecot: Dovecot, weak_dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    letters = random_letters(random.Random(seed))
    answers = []

    for server in (dovecot, weak_dovecot):
        async with open_box(server, base_url, smtp_server) as box:
            box.append(*letters)
            answers.append([set(await uids(box, uid)) for uid in range(1, len(letters) + 1)])
            assert any(b"UID THREAD" in said for said in box.said()) == (server is dovecot)

    assert answers[0] == answers[1]


async def test_gmail_is_asked_for_its_own_conversations(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "X-GM-EXT-1", "THREAD=REFERENCES"]
    for number in range(1, 4):
        imap_server.folders["INBOX"].add(letter(f"m{number}"))
    told = b"* 2 FETCH (UID 2 X-GM-THRID 1278455344230334865)\r\n{tag} OK\r\n"
    imap_server.on("UID FETCH 2 (UID X-GM-THRID)", told)
    found = b'* ESEARCH (TAG "{tag}") UID ALL 2:3\r\n{tag} OK\r\n'
    imap_server.on("UID SEARCH RETURN (ALL) X-GM-THRID 1278455344230334865", found)

    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        answer = good(await mailbox.get(f"{MESSAGES}/2/thread"))

    assert [row["subject"] for row in answer["messages"]] == ["m2", "m3"]
    assert not imap_server.count("UID THREAD")


@pytest.mark.parametrize(
    "told", [b"* THREAD (1)(3)", b"* THREAD ((2)", b"* THREAD", b"* THREAD 2 )(", b"* OK fine"]
)
async def test_a_server_that_threads_all_but_the_message_has_not_got_it(
    told: bytes, imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "THREAD=REFERENCES"]
    imap_server.folders["INBOX"].add(letter("one"))
    imap_server.on("UID THREAD", told + b"\r\n{tag} OK\r\n")

    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        response = await mailbox.get(f"{MESSAGES}/2/thread")

    assert problem(response) == (404, "message-not-found", [])


async def test_a_conversation_may_be_as_deep_as_it_likes(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "THREAD=REFERENCES"]
    imap_server.folders["INBOX"].add(letter("one"))
    tree = b"(" * 20_000 + b"1" + b")" * 20_000
    imap_server.on("UID THREAD", b"* THREAD " + tree + b"\r\n{tag} OK\r\n")

    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        answer = good(await mailbox.get(f"{MESSAGES}/1/thread"))

    assert [row["uid"] for row in answer["messages"]] == [1]


async def test_a_server_that_searches_for_ascii_only_finds_conversations_by_their_ids(
    imap_server: ScriptedImap, base_url: str, smtp_server: ScriptedSmtp
) -> None:
    imap_server.capabilities = list(WEAK_CAPABILITIES)
    imap_server.folders["INBOX"].add(written("Grüße", "<a@x>", 1))
    imap_server.folders["INBOX"].add(written("Re: Grüße", "<b@x>", 2, "<a@x>"))
    imap_server.on("UID SEARCH OR HEADER", b"* SEARCH 1 2\r\n{tag} OK\r\n")
    imap_server.on("UID SEARCH CHARSET", b"{tag} NO [BADCHARSET (US-ASCII)] no\r\n")

    async with open_scripted(imap_server, base_url, smtp_server) as mailbox:
        answer = good(await mailbox.get(f"{MESSAGES}/2/thread"))

    assert [row["uid"] for row in answer["messages"]] == [1, 2]
