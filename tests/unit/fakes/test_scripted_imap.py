"""The scripted IMAP server, spoken to in raw octets and by the standard library's client."""

from __future__ import annotations

import asyncio
import base64
import imaplib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.certificates import Certificates
from tests.fakes.script import CUT, NORMAL, STALL, START_TLS, Trickle
from tests.fakes.scripted_imap import WEAK_CAPABILITIES, ScriptedImap

MESSAGE = b"Subject: caf\xc3\xa9\r\nFrom: a@example.test\r\n and more\r\nTo: b\r\n\r\nhello\r\n"


class Client:
    """Commands by number, replies as lists of lines, the tagged one last."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, command: bytes, tag: bytes = b"t") -> list[bytes]:
        self.writer.write(tag + b" " + command + b"\r\n")
        lines: list[bytes] = []
        while not lines or not lines[-1].startswith(tag + b" "):
            lines.append((await self.reader.readuntil(b"\r\n"))[:-2])
        return lines


@asynccontextmanager
async def connected(server: ScriptedImap, *commands: bytes) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection(server.host, server.port))
    await client.reader.readuntil(b"\r\n")
    for command in commands:
        assert b"t OK" in (await client.ask(command))[-1]
    yield client
    client.writer.close()


LOGIN = b'LOGIN joe "secret"'


@pytest.fixture
async def client(imap_server: ScriptedImap) -> AsyncIterator[Client]:
    async with connected(imap_server, LOGIN, b"SELECT INBOX") as client:
        yield client


async def test_a_message_can_be_fetched_whole_and_in_parts(
    imap_server: ScriptedImap, client: Client
) -> None:
    imap_server.folders["INBOX"].add(MESSAGE, ["\\Seen"], uid=7)

    async def fetch(items: bytes) -> bytes:
        return b"\r\n".join((await client.ask(b"UID FETCH 7 " + items))[:-1])

    assert await fetch(b"BODY.PEEK[]") == (
        b"* 1 FETCH (UID 7 BODY[] {%d}\r\n%b)\r\n* 1 EXISTS" % (len(MESSAGE), MESSAGE)
    )
    assert await fetch(b"(FLAGS RFC822.SIZE)") == (
        b"* 1 FETCH (UID 7 FLAGS (\\Seen) RFC822.SIZE %d)" % len(MESSAGE)
    )
    wanted = b"From: a@example.test\r\n and more\r\n\r\n"
    assert await fetch(b"(BODY.PEEK[HEADER.FIELDS (FROM DATE)])") == (
        b"* 1 FETCH (UID 7 BODY[HEADER.FIELDS (FROM DATE)] {%d}\r\n%b)" % (len(wanted), wanted)
    )
    assert await fetch(b"BODY.PEEK[TEXT]<2.3>") == b"* 1 FETCH (UID 7 BODY[TEXT]<2> {3}\r\nllo)"


MULTIPART = (
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nhello\r\n\r\n"
    b"--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n"
    b'Content-Disposition: attachment; filename="a \\"b\\".png"\r\n\r\nAAAA\r\n--b--\r\n'
)


async def test_parts_have_the_structure_and_the_sections_of_the_message(
    imap_server: ScriptedImap, client: Client
) -> None:
    imap_server.folders["INBOX"].add(MULTIPART)

    [structure, *_] = await client.ask(b"UID FETCH 1 (BODYSTRUCTURE)")
    section = await client.ask(b"UID FETCH 1 (BODY.PEEK[2] BODY.PEEK[2.MIME])")

    assert structure == (
        b'* 1 FETCH (UID 1 BODYSTRUCTURE (("text" "plain" ("charset" "utf-8") NIL NIL "7bit" 7 1 NIL NIL NIL NIL)'
        b'("image" "png" NIL NIL NIL "base64" 4 NIL ("attachment" ("filename" "a \\"b\\".png")) NIL NIL)'
        b' "mixed" ("boundary" "b") NIL NIL NIL))'
    )
    assert section[0] == b"* 1 FETCH (UID 1 BODY[2] {4}"
    assert section[1].startswith(b"AAAA BODY[2.MIME] {")


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (b"ALL", b"* SEARCH 1 2 3"),
        (b"UNSEEN NOT DELETED", b"* SEARCH 3"),
        (b"UID 2:*", b"* SEARCH 2 3"),
        (b'HEADER Subject "CAF"', b"* SEARCH 1 2 3"),
        (b"RETURN (COUNT MAX) SEEN", b"* ESEARCH UID COUNT 1 MAX 1"),
        (b"RETURN (ALL COUNT) FLAGGED", b"* ESEARCH UID COUNT 0"),
    ],
)
async def test_searches_find_by_flags_uids_and_header(
    imap_server: ScriptedImap, client: Client, criteria: bytes, expected: bytes
) -> None:
    inbox = imap_server.folders["INBOX"]
    inbox.add(MESSAGE, ["\\Seen"])
    inbox.add(MESSAGE, ["\\Deleted"])
    inbox.add(MESSAGE)

    lines = await client.ask(b"UID SEARCH " + criteria)

    assert lines[0] == expected


async def test_what_it_does_not_understand_is_bad_and_harmless(client: Client) -> None:
    for command in (b"UID SEARCH FUZZY x", b"FETCH", b"UID", b"LIST", b"SELECT (", b"X", b""):
        assert (await client.ask(command))[-1].startswith(b"t BAD")
    assert (await client.ask(b"NOOP"))[-1].startswith(b"t OK")


async def test_flags_are_stored_copied_and_expunged(
    imap_server: ScriptedImap, client: Client
) -> None:
    for _ in range(3):
        imap_server.folders["INBOX"].add(MESSAGE)
    await client.ask(b"NOOP")

    stored = await client.ask(b"UID STORE 1,3 +FLAGS (\\Deleted)")
    copied = await client.ask(b"UID COPY 1:2 Trash")
    expunged = await client.ask(b"UID EXPUNGE 1:3")

    assert stored[:2] == [
        b"* 1 FETCH (UID 1 FLAGS (\\Deleted))",
        b"* 3 FETCH (UID 3 FLAGS (\\Deleted))",
    ]
    assert copied == [b"t OK [COPYUID 1 1,2 1,2] done"]
    assert expunged[:2] == [b"* 3 EXPUNGE", b"* 1 EXPUNGE"]
    assert [message.uid for message in imap_server.folders["INBOX"].messages] == [2]


async def test_a_move_says_where_before_what_is_gone(
    imap_server: ScriptedImap, client: Client
) -> None:
    imap_server.folders["INBOX"].add(MESSAGE)
    await client.ask(b"NOOP")

    assert await client.ask(b"UID MOVE 1 Trash") == [
        b"* OK [COPYUID 1 1 1] done",
        b"* 1 EXPUNGE",
        b"t OK done",
    ]
    assert (await client.ask(b"UID MOVE 1 Gone"))[-1].startswith(b"t NO [TRYCREATE]")


async def test_an_appended_literal_is_kept_and_remembered(
    imap_server: ScriptedImap, client: Client
) -> None:
    client.writer.write(b"a APPEND Sent (\\Seen) {5}\r\n")
    invitation = await client.reader.readuntil(b"\r\n")
    client.writer.write(b"a\r\nb{\r\n")
    reply = await client.reader.readuntil(b"\r\n")

    [message] = imap_server.folders["Sent"].messages
    assert invitation.startswith(b"+ ")
    assert reply == b"a OK [APPENDUID 1 1] appended\r\n"
    assert (message.raw, message.flags) == (b"a\r\nb{", {"\\Seen"})
    assert imap_server.commands[-1] == b"APPEND Sent (\\Seen) {5}\r\na\r\nb{"


async def test_folders_are_made_renamed_listed_and_deleted(client: Client) -> None:
    for command in (b"CREATE a", b'CREATE "a/b c"', b"RENAME a z", b"DELETE Drafts"):
        assert (await client.ask(command))[-1].startswith(b"t OK")

    lines = await client.ask(b'LIST "" * RETURN (SPECIAL-USE STATUS (MESSAGES))')

    assert lines[:-1] == [
        b'* LIST (\\HasNoChildren) "/" "INBOX"',
        b'* STATUS "INBOX" (MESSAGES 0)',
        b'* LIST (\\Sent \\HasNoChildren) "/" "Sent"',
        b'* STATUS "Sent" (MESSAGES 0)',
        b'* LIST (\\Trash \\HasNoChildren) "/" "Trash"',
        b'* STATUS "Trash" (MESSAGES 0)',
        b'* LIST (\\HasChildren) "/" "z"',
        b'* STATUS "z" (MESSAGES 0)',
        b'* LIST (\\HasNoChildren) "/" "z/b c"',
        b'* STATUS "z/b c" (MESSAGES 0)',
    ]
    assert (await client.ask(b"CREATE inbox"))[-1].startswith(b"t NO [ALREADYEXISTS]")


async def test_without_its_capability_a_command_is_not_understood() -> None:
    async with ScriptedImap(WEAK_CAPABILITIES) as server:
        server.folders["INBOX"].add(MESSAGE)
        async with connected(server, LOGIN, b"SELECT INBOX") as client:
            for command in (
                b"UID MOVE 1 Sent",
                b"UID SEARCH RETURN (ALL) ALL",
                b"APPEND Sent {1+}",
            ):
                assert (await client.ask(command))[-1].startswith(b"t BAD")
            listed = await client.ask(b'LIST "" %')
            copied = await client.ask(b"UID COPY 1 Sent")

    assert listed[1] == b'* LIST () "/" "Sent"'
    assert copied == [b"t OK done"]


async def test_another_clients_changes_are_told(imap_server: ScriptedImap, client: Client) -> None:
    async with connected(imap_server, LOGIN) as other:
        await other.ask(b"APPEND INBOX {5+}\r\nhello")

    assert await client.ask(b"NOOP") == [b"* 1 EXISTS", b"t OK done"]


async def test_a_client_that_idles_is_pushed_to_until_it_is_done(
    imap_server: ScriptedImap, client: Client
) -> None:
    client.writer.write(b"i IDLE\r\n")
    await imap_server.heard("IDLE")
    imap_server.push(b"* 4 EXISTS\r\n")
    client.writer.write(b"DONE\r\n")

    said = await client.reader.readuntil(b"i OK")

    assert said == b"+ idling\r\n* 4 EXISTS\r\ni OK"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"LOGIN joe wrong", b"t NO [AUTHENTICATIONFAILED]"),
        (b"LOGIN joe", b"t BAD"),
        (b"LOGIN {3+}\r\njoe {6+}\r\nsecret", b"t OK [CAPABILITY "),
        (b"AUTHENTICATE PLAIN " + base64.b64encode(b"\0joe\0secret"), b"t OK [CAPABILITY "),
        (b"AUTHENTICATE PLAIN ?", b"t BAD"),
        (b"AUTHENTICATE GSSAPI", b"t BAD"),
        (b"SELECT INBOX", b"t BAD"),
    ],
)
async def test_nothing_happens_before_the_right_login(
    imap_server: ScriptedImap, command: bytes, expected: bytes
) -> None:
    async with connected(imap_server) as client:
        assert (await client.ask(command))[-1].startswith(expected)


async def test_a_refused_token_is_explained_in_a_challenge_first(imap_server: ScriptedImap) -> None:
    stale = base64.b64encode(b"user=joe\x01auth=Bearer stale\x01\x01")

    async with connected(imap_server) as client:
        client.writer.write(b"x AUTHENTICATE XOAUTH2 " + stale + b"\r\n")
        challenge = await client.reader.readuntil(b"\r\n")
        client.writer.write(b"\r\n")
        verdict = await client.reader.readuntil(b"\r\n")

    assert base64.b64decode(challenge[2:]) == b'{"status":"401"}'
    assert verdict.startswith(b"x NO [AUTHENTICATIONFAILED]")


async def test_scripted_octets_can_name_the_tag_and_go_before_the_normal_reply(
    imap_server: ScriptedImap, client: Client
) -> None:
    imap_server.on("SELECT", b"{tag} NO [NONEXISTENT] gone\r\n")
    imap_server.on("NOOP", (b"* 3 EXISTS\r\n", NORMAL))

    assert await client.ask(b"SELECT INBOX", tag=b"q7") == [b"q7 NO [NONEXISTENT] gone"]
    assert await client.ask(b"NOOP") == [b"* 3 EXISTS", b"t OK done"]


async def test_a_prefix_stands_for_whole_numbers(imap_server: ScriptedImap, client: Client) -> None:
    imap_server.on("UID FETCH 7", b"{tag} NO seven\r\n")

    assert await client.ask(b"UID FETCH 70 FLAGS") == [b"t OK done"]
    assert await client.ask(b"uid fetch 7 FLAGS") == [b"t NO seven"]


async def test_a_greeting_can_be_a_goodbye(imap_server: ScriptedImap) -> None:
    imap_server.on("connect", (b"* BYE too many\r\n", CUT))

    reader, writer = await asyncio.open_connection(imap_server.host, imap_server.port)

    assert await reader.read() == b"* BYE too many\r\n"
    writer.close()


async def test_a_stalled_command_is_heard_but_not_answered(
    imap_server: ScriptedImap, client: Client
) -> None:
    imap_server.on("UID FETCH 7", STALL)

    answer = asyncio.create_task(client.ask(b"UID FETCH 7 FLAGS"))
    await imap_server.heard("UID FETCH 7")
    done, _ = await asyncio.wait([answer], timeout=0.05)

    assert not done
    answer.cancel()


async def test_a_trickled_reply_keeps_its_tag(imap_server: ScriptedImap, client: Client) -> None:
    imap_server.on("NOOP", Trickle(b"{tag} OK slowly\r\n"))

    assert await client.ask(b"NOOP", tag=b"abc") == [b"abc OK slowly"]


async def test_octets_can_be_injected_before_the_tls_handshake(imap_server: ScriptedImap) -> None:
    imap_server.on("STARTTLS", (b"{tag} OK begin\r\n* CAPABILITY AUTH=EVIL\r\n", START_TLS))

    async with connected(imap_server, b"STARTTLS") as client:
        assert await client.reader.readuntil(b"\r\n") == b"* CAPABILITY AUTH=EVIL\r\n"


async def test_a_defect_of_a_script_fails_the_test_that_used_it() -> None:
    def broken(command: bytes) -> bytes:
        raise ZeroDivisionError

    async def use() -> None:
        async with ScriptedImap() as server, connected(server) as client:
            server.on("NOOP", broken)
            client.writer.write(b"t NOOP\r\n")
            await client.reader.read()

    with pytest.raises(ZeroDivisionError):
        await use()


async def test_an_everyday_client_can_use_it_over_starttls(
    imap_server: ScriptedImap, certificates: Certificates
) -> None:
    imap_server.folders["INBOX"].add(MESSAGE)

    def read() -> list[object]:
        with imaplib.IMAP4(imap_server.host, imap_server.port, timeout=10) as client:
            client.starttls(certificates.client_context())
            client.login("joe", "secret")
            client.select("INBOX")
            return list(client.uid("FETCH", "1", "(BODY.PEEK[])")[1])

    data = await asyncio.to_thread(read)

    assert isinstance(data[0], tuple)
    assert data[0][1] == MESSAGE
