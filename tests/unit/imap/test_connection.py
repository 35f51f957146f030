"""One connection: what is asked and answered, and how little a server can do to it but be hung up on."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys

import pytest

from cbemail.errors import FolderNotFound, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from cbemail.imap import connection as module
from cbemail.imap import streaming
from cbemail.imap.connection import ImapConnection
from cbemail.imap.messages import append, fetch_command
from cbemail.imap.protocol import INBOX, FolderPath, StatusResponse, UidSet, Untagged
from cbemail.imap.selecting import select
from cbemail.imap.streaming import LiteralStream
from cbemail.imap.wire import Command, Literal, mailbox
from cbemail.sockets import VANISHED_SECONDS
from tests.fakes.listener import Listener
from tests.fakes.script import CUT, NORMAL, STALL, Reply, Split, Trickle
from tests.fakes.scripted_imap import WEAK_CAPABILITIES, ScriptedImap
from tests.unit.imap.conftest import IMPATIENT, PATIENCE, Open, settle, until

NOOP, CHECK = Command("NOOP"), Command("CHECK")
OK = b"{tag} OK done\r\n"


def tag_of(server: ScriptedImap, command: bytes) -> bytes:
    """The tag under which the server last heard ``command``."""
    tags: list[bytes] = re.findall(rb"(\S+) %b\r\n" % command, bytes(server.received))
    return tags[-1]


def acknowledgement_is_due(connection: ImapConnection) -> float:
    """The seconds after which the kernel ends the connection for want of one."""
    connected = connection.transport.get_extra_info("socket")
    milliseconds: int = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return milliseconds / 1000


def create(name: str) -> Command:
    return Command("CREATE", (mailbox(FolderPath(name)),))


@pytest.fixture
def impatient(imap: ImapConnection, monkeypatch: pytest.MonkeyPatch) -> ImapConnection:
    """A connection whose every deadline is short. The login had the usual ones."""
    monkeypatch.setattr(module, "COMMAND_SECONDS", IMPATIENT)
    monkeypatch.setattr(module, "STREAM_GAP_SECONDS", IMPATIENT)
    monkeypatch.setattr(module, "SECONDS_PER_OCTET", 0.0)
    return imap


# ---- asked and answered


async def test_a_command_gets_all_that_was_said_during_it_in_order(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on(
        "NOOP",
        b"* VANISHED 7:9\r\n* 4 EXISTS\r\n* STATUS INBOX (UNSEEN 1)\r\n"
        b"* OK [COPYUID 1 2 3] moved\r\n* 1 EXPUNGE\r\n{tag} OK [READ-ONLY] done\r\n",
    )

    completion = await imap.run_one(NOOP)

    said = [r.name if isinstance(r, Untagged) else "OK" for r in completion.responses]
    assert said == ["VANISHED", "EXISTS", "STATUS", "OK", "EXPUNGE"]
    assert completion.code("COPYUID") == b"1 2 3"
    assert completion.code("READ-ONLY") == b""


async def test_commands_of_one_flight_may_be_answered_in_any_order(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("NOOP", b"* 1 EXISTS\r\n")
    imap_server.on(
        "CHECK",
        lambda _: b"{tag} NO not now\r\n%b OK fine\r\n" % tag_of(imap_server, b"NOOP"),
    )

    noop, check = await imap.run(NOOP, CHECK)

    assert (noop.command, noop.ok) == (NOOP, True)
    assert (check.command, check.ok) == (CHECK, False)
    assert noop.responses == check.responses != []


async def test_a_refusal_is_raised_unless_it_is_one_of_a_flight(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("NOOP", b"{tag} NO [NONEXISTENT] hunter2\r\n")

    (completion,) = await imap.run(NOOP)
    with pytest.raises(FolderNotFound) as caught:
        await imap.run_one(NOOP)

    assert not completion.ok
    assert "hunter2" not in caught.value.detail
    assert not imap.broken


async def test_only_one_flight_at_a_time_is_carried(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    """Answers to two callers could not be told apart; the pool gives each a connection of its own."""
    go = asyncio.Event()

    async def held(_: bytes) -> bytes:
        await go.wait()
        return OK

    imap_server.on("NOOP", held)
    first = asyncio.create_task(imap.run_one(NOOP))
    await imap_server.heard("NOOP")

    with pytest.raises(RuntimeError, match="one flight"):
        await imap.run_one(CHECK)
    go.set()

    assert (await first).ok
    assert imap_server.count("CHECK") == 0


async def test_what_is_selected_is_kept_true_between_commands(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    selected = await select(imap, INBOX)

    imap_server.push(b"* 9 EXISTS\r\n* 2 EXPUNGE\r\n")
    await until(lambda: selected.exists == 8)

    assert imap.selected is selected


async def test_what_has_vanished_just_now_counts_and_what_vanished_earlier_does_not(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    selected = await select(imap, INBOX)

    imap_server.push(b"* 9 EXISTS\r\n* VANISHED (EARLIER) 1:100\r\n* VANISHED 3,5:6\r\n")
    await until(lambda: selected.exists == 6)

    assert imap.usable


async def test_a_vanished_that_cannot_be_read_breaks_the_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    await select(imap, INBOX)

    imap_server.push(b"* VANISHED everything\r\n")
    await until(lambda: imap.broken)

    with pytest.raises(UpstreamError):
        await imap.run_one(NOOP)


@pytest.mark.parametrize("piece", [Trickle, lambda octets: Split(octets, len(octets) // 2)])
async def test_an_answer_may_come_in_any_pieces(
    imap_server: ScriptedImap, imap: ImapConnection, piece
) -> None:
    imap_server.on("NOOP", (piece(b"* LIST () {1}\r\n/ {7}\r\nIN\r\nBOX\r\n"), NORMAL))

    completion = await imap.run_one(NOOP)

    assert completion.untagged("LIST")[0].values == [[], b"/", b"IN\r\nBOX"]


# ---- what aioimaplib's own receive path gets wrong


async def test_thousands_of_lines_in_one_segment_are_read(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    """It recurses line by line: some 990 of them end in a RecursionError, and the caller waits for ever."""
    imap_server.on("NOOP", b"* 1 FETCH (FLAGS (\\Seen))\r\n" * 5_000 + OK)

    completion = await imap.run_one(NOOP)

    assert len(completion.untagged("FETCH")) == 5_000


@pytest.mark.parametrize("subject", [b"SALE * 50% * off", b"hi :(", b"odd ) {5} (("])
async def test_text_is_left_as_it_was_sent(
    imap_server: ScriptedImap, imap: ImapConnection, subject: bytes
) -> None:
    """It deletes ``* `` from whole lines, and counts parentheses to find the end of a FETCH."""
    imap_server.on("NOOP", b'* 1 FETCH (X "' + subject + b'")\r\n* 2 EXPUNGE\r\n' + OK)

    completion = await imap.run_one(NOOP)

    assert completion.untagged("FETCH")[0].values == [[b"X", subject]]
    assert completion.untagged("EXPUNGE")[0].number == 2


@pytest.mark.parametrize(
    "name", ["{9}", "{9+}", "a {9}", 'a" "b', "a\\", "INBOX (X)", "*", "Entwürfe & Co", "会议"]
)
async def test_no_name_can_become_syntax_or_eat_the_next_command(
    imap_server: ScriptedImap, imap: ImapConnection, name: str
) -> None:
    await imap.run_one(create(name))
    await imap.run_one(NOOP)

    assert [command.split()[0] for command in imap_server.commands[-2:]] == [b"CREATE", b"NOOP"]
    assert len(imap_server.folders) == 5


async def test_a_refused_append_is_forgotten(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    content = b"x" * 10_000
    before = sys.getrefcount(content)
    imap_server.on("APPEND", b"{tag} NO [OVERQUOTA] full\r\n")

    (refused,) = await imap.run(Command("APPEND", (mailbox(INBOX), Literal(content))))

    assert not refused.ok
    del refused
    await settle()  # the event loop itself holds the last result for one turn
    assert sys.getrefcount(content) == before


async def test_no_log_tells_a_password_or_what_a_message_says(
    imap_server: ScriptedImap, open_to: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    imap_server.folders["INBOX"].add(b"Subject: private\r\n\r\nconfidential\r\n")
    imap_server.on("LOGIN", NORMAL, b'{tag} BAD what is LOGIN "joe" "secret"?\r\n')
    imap_server.capabilities = list(WEAK_CAPABILITIES)

    imap = await open_to(imap_server)
    await select(imap, INBOX)
    await imap.run_one(fetch_command(UidSet([1]), b"BODY.PEEK[]"))
    with pytest.raises(UpstreamError):
        await open_to(imap_server)

    assert caplog.text
    assert not re.search("secret|private|confidential|c2VjcmV0", caplog.text)


# ---- literals that wait for an invitation


@pytest.fixture
async def weak(imap_server: ScriptedImap, open_to: Open) -> ImapConnection:
    """A connection to a server without LITERAL+."""
    imap_server.capabilities = list(WEAK_CAPABILITIES)
    return await open_to(imap_server)


async def test_a_synchronising_literal_is_sent_when_it_is_asked_for(
    imap_server: ScriptedImap, weak: ImapConnection
) -> None:
    await append(weak, INBOX, b"Subject: hi\r\n\r\nA1 LOGOUT\r\n")

    (message,) = imap_server.folders["INBOX"].messages
    assert message.raw == b"Subject: hi\r\n\r\nA1 LOGOUT\r\n"


@pytest.mark.parametrize(
    "refusal", [b"{tag} NO too large\r\n", b"+ go on\r\n{tag} NO too large\r\n"]
)
async def test_a_refused_literal_is_not_sent(
    imap_server: ScriptedImap, weak: ImapConnection, refusal: bytes
) -> None:
    imap_server.on("literal", refusal)

    with pytest.raises(UpstreamError, match="refused the APPEND"):
        await append(weak, INBOX, b"never sent")
    await weak.run_one(NOOP)

    assert b"never sent" not in imap_server.received


async def test_a_refused_literal_does_not_hold_up_the_rest_of_its_flight(
    imap_server: ScriptedImap, weak: ImapConnection
) -> None:
    imap_server.on("literal", b"{tag} NO too large\r\n")

    refused, noop = await weak.run(Command("CREATE", (Literal(b"x"),)), NOOP)

    assert (refused.ok, noop.ok) == (False, True)


async def test_small_literals_need_no_invitation_where_the_server_says_so(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap.capabilities = frozenset({"LITERAL-"})

    await append(imap, INBOX, b"x" * 4_096)
    await append(imap, INBOX, b"x" * 4_097)

    assert b"{4096+}\r\n" in imap_server.received
    assert b"{4097}\r\n" in imap_server.received


# ---- interrupted: broken at once


async def test_a_cancelled_command_breaks_the_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("NOOP", STALL)
    task = asyncio.create_task(imap.run_one(NOOP))
    await imap_server.heard("NOOP")

    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert imap.broken
    await until(lambda: imap_server.open_connections == 0)
    with pytest.raises(UpstreamUnavailable):
        await imap.run_one(CHECK)


async def test_an_answer_in_the_moment_of_the_cancellation_is_nobodys(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("NOOP", STALL)
    task = asyncio.create_task(imap.run_one(NOOP))
    await imap_server.heard("NOOP")

    task.cancel()
    imap.data_received(tag_of(imap_server, b"NOOP") + b" OK done\r\n")
    await asyncio.wait({task})

    assert task.cancelled()


async def test_a_silent_server_is_given_up(
    imap_server: ScriptedImap, impatient: ImapConnection
) -> None:
    imap_server.on("NOOP", STALL)

    with pytest.raises(UpstreamTimeout):
        await impatient.run_one(NOOP)

    assert impatient.broken


@pytest.mark.parametrize(("rest", "patience"), [(-1.0, 5.0), (60.0, 120.0)])
async def test_after_a_rest_and_only_then_the_first_command_is_to_be_acknowledged_soon(
    imap_server: ScriptedImap,
    imap: ImapConnection,
    monkeypatch: pytest.MonkeyPatch,
    rest: float,
    patience: float,
) -> None:
    monkeypatch.setattr(module, "REST_SECONDS", rest)
    go_on = asyncio.Event()

    async def in_the_end(_: bytes) -> Reply:
        await go_on.wait()
        return NORMAL

    imap_server.on("NOOP", in_the_end)
    command = asyncio.create_task(imap.run_one(NOOP))
    await imap_server.heard("NOOP")

    during = acknowledgement_is_due(imap)
    go_on.set()
    await command

    assert during == patience
    assert acknowledgement_is_due(imap) == VANISHED_SECONDS, "later commands may change something"


async def test_a_server_that_always_says_a_little_is_given_up_all_the_same(
    imap_server: ScriptedImap, impatient: ImapConnection
) -> None:
    imap_server.on("NOOP", Trickle(b"* OK patience\r\n" * 100_000))

    with pytest.raises(UpstreamTimeout):
        await impatient.run_one(NOOP)


async def test_an_invitation_that_never_comes_is_given_up(
    imap_server: ScriptedImap, weak: ImapConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMAND_SECONDS", IMPATIENT)
    imap_server.on("literal", STALL)

    with pytest.raises(UpstreamTimeout):
        await append(weak, INBOX, b"content")


class Deaf(Listener):
    """Greets, and never reads a single octet."""

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* PREAUTH [CAPABILITY IMAP4rev1 LITERAL+] hello\r\n")
        await asyncio.Event().wait()


async def test_a_server_that_does_not_read_is_given_up(
    open_to: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Deaf() as deaf:
        imap = await open_to(deaf)
        monkeypatch.setattr(module, "COMMAND_SECONDS", IMPATIENT)
        monkeypatch.setattr(module, "SECONDS_PER_OCTET", 0.0)

        with pytest.raises(UpstreamTimeout):
            await append(imap, INBOX, b"x" * (32 << 20))


async def test_nor_does_a_stream_wait_for_a_server_that_does_not_read(
    open_to: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Deaf() as deaf, asyncio.timeout(PATIENCE):
        imap = await open_to(deaf)
        monkeypatch.setattr(module, "COMMAND_SECONDS", IMPATIENT)

        async with imap.streaming(Command("FETCH", (Literal(b"x" * (32 << 20)),))) as stream:
            with pytest.raises(UpstreamTimeout):
                await stream.completion()


@pytest.mark.parametrize(
    "ending",
    [
        (b"* BYE shutting down\r\n", STALL),
        (b"* 1 FETCH (BODY[] {3}\r\nabc)\r\n* BYE shutting down\r\n", STALL),
        (b"* 1 FETCH (BODY[] {100}\r\nabc", CUT),
        (b"{tag} O", CUT),
        CUT,
    ],
)
async def test_the_end_is_told_at_once_and_not_when_time_is_up(
    imap_server: ScriptedImap, imap: ImapConnection, ending
) -> None:
    imap_server.on("NOOP", ending)

    with pytest.raises(UpstreamUnavailable):
        await imap.run_one(NOOP)

    assert imap.broken


async def test_a_bye_between_commands_breaks_the_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.push(b"* BYE idle for too long\r\n")

    await until(lambda: imap.broken)


async def test_what_is_left_of_a_flight_is_not_sent_after_the_end(
    imap_server: ScriptedImap, weak: ImapConnection, caplog: pytest.LogCaptureFixture
) -> None:
    imap_server.on("literal", b"* BYE no more\r\n")

    with pytest.raises(UpstreamUnavailable):
        await weak.run(Command("CREATE", (Literal(b"x"),)), *[NOOP] * 20)

    assert imap_server.count("NOOP") == 0
    assert "socket.send() raised" not in caplog.text


async def test_closing_between_commands_says_goodbye(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap.close()

    await imap_server.heard("LOGOUT")
    with pytest.raises(UpstreamUnavailable):
        await imap.run_one(NOOP)


async def test_closing_during_a_command_fails_the_command(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("NOOP", STALL)
    task = asyncio.create_task(imap.run_one(NOOP))
    await imap_server.heard("NOOP")

    imap.close()

    with pytest.raises(UpstreamUnavailable):
        await task
    await until(lambda: imap_server.open_connections == 0)
    assert b"LOGOUT" not in imap_server.received


# ---- hostile: dropped


HOSTILE = {
    "literal of 4 GB": b"* 1 FETCH (BODY[] {4294967295}\r\n",
    "literal of no number's size": b"* 1 FETCH (BODY[] {99999999999999999999}\r\n",
    "literal of -1": b"* 1 FETCH (BODY[] {-1}\r\n",
    "endless line": b"* OK " + b"x" * (2 << 20),
    "a hundred thousand OKs": b"* OK still there\r\n" * 100_001,
    "wrong tag": b"A1 OK done\r\n",
    "tagged BYE": b"{tag} BYE\r\n",
    "invitation to nothing": b"+ tell me more\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "binary": bytes(range(256)) + b"\r\n",
    "BAD": b"{tag} BAD what?\r\n",
}


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_octets_end_the_connection_with_an_error(
    imap_server: ScriptedImap, imap: ImapConnection, octets: bytes
) -> None:
    imap_server.on("NOOP", (octets, STALL))

    with pytest.raises(UpstreamError) as caught:
        await imap.run_one(NOOP)

    assert type(caught.value) is UpstreamError
    assert imap.broken


async def test_a_flight_of_many_great_literals_ends_at_its_bound(
    imap_server: ScriptedImap, imap: ImapConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FLIGHT_OCTETS", 1 << 20)
    row = b"* 1 FETCH (BODY[] {100000}\r\n" + b"x" * 100_000 + b")\r\n"
    imap_server.on("NOOP", (*[row] * 100, STALL))

    with pytest.raises(UpstreamError, match="more than one command"):
        await imap.run_one(NOOP)


async def test_a_second_answer_to_one_command_breaks_the_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("NOOP", OK + OK)

    completion = await imap.run_one(NOOP)

    assert completion.ok
    assert imap.broken


async def test_a_late_second_answer_is_not_taken_for_the_next_commands(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    await imap.run_one(NOOP)
    stolen = tag_of(imap_server, b"NOOP")
    imap_server.on("CHECK", stolen + b" OK done\r\n")

    with pytest.raises(UpstreamError, match="was not sent"):
        await imap.run_one(CHECK)


async def test_an_answer_to_nothing_breaks_an_idle_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.push(b"A1 OK done\r\n")

    await until(lambda: imap.broken)


async def test_what_comes_after_a_status_code_is_text(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    """A referral is where an attacker would like us to go (RFC 2221): it is kept, and nobody acts on it."""
    imap_server.on("NOOP", b"* OK [REFERRAL imaps://evil.test/] [ALERT] go there\r\n" + OK)

    (said,) = (await imap.run_one(NOOP)).responses

    assert isinstance(said, StatusResponse)
    assert said.code is not None
    assert said.code.name == "REFERRAL"
    assert imap_server.connections == 1


# ---- a literal as it streams by

FETCH = fetch_command(UidSet([1]), b"BODY.PEEK[]")


async def read_into(received: list[bytes], stream: LiteralStream) -> None:
    iterator = aiter(stream)
    while chunk := await anext(iterator, b""):
        received.append(chunk)


def streamed(content: bytes) -> bytes:
    return b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%b)\r\n" % (len(content), content) + OK


async def test_a_great_literal_streams_and_the_connection_goes_on(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    content = bytes(range(256)) * 20_000
    imap_server.on("UID FETCH", streamed(content))

    async with imap.streaming(FETCH) as stream:
        await stream.started()
        received = b"".join([chunk async for chunk in stream])

    assert stream.size == len(content)
    assert received == content
    assert (await imap.run_one(NOOP)).ok


async def test_a_small_value_stands_in_the_completion(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("UID FETCH", streamed(b"small"))

    async with imap.streaming(FETCH) as stream:
        await stream.started()
        completion = await stream.completion()

    assert stream.size is None
    assert completion.untagged("FETCH")[0].values == [[b"UID", b"1", b"BODY[]", b"small"]]


async def test_a_slow_reader_stops_the_socket(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    content = b"x" * (8 << 20)
    imap_server.on("UID FETCH", streamed(content))

    async with imap.streaming(FETCH) as stream:
        await until(lambda: not imap.transport.is_reading())
        await settle()
        held = stream.received
        received = [len(chunk) async for chunk in stream]

    assert held <= 2 * streaming.STREAM_HIGH_WATER
    assert sum(received) == len(content)
    assert max(received) <= 2 * streaming.STREAM_HIGH_WATER


async def test_streamed_octets_count_against_no_bound(
    imap_server: ScriptedImap, imap: ImapConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not held; nor do they count afterwards, when the server speaks unasked."""
    monkeypatch.setattr(module, "MAX_FLIGHT_OCTETS", 100_000)
    imap_server.on("UID FETCH", streamed(b"x" * 1_000_000))
    selected = await select(imap, INBOX)

    async with imap.streaming(FETCH) as stream:
        size = sum([len(chunk) async for chunk in stream])
    imap_server.push(b"* 9 EXISTS\r\n")
    await until(lambda: imap.broken or selected.exists == 9)

    assert size == 1_000_000
    assert not imap.broken


async def test_what_is_said_beside_a_streamed_literal_is_bounded(
    imap_server: ScriptedImap, imap: ImapConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FLIGHT_OCTETS", 100_000)
    row = b"* 1 FETCH (BODY[1] {10000}\r\n" + b"x" * 10_000 + b")\r\n"
    imap_server.on("UID FETCH", (*[row] * 20, STALL))

    async with imap.streaming(FETCH) as stream:
        with pytest.raises(UpstreamError, match="more than one command"):
            await stream.completion()


async def test_a_second_great_literal_is_not_taken_for_more_of_the_first(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    content = b"x" * 20_000
    imap_server.on("UID FETCH", (streamed(content).removesuffix(OK) * 2, STALL))

    async with imap.streaming(FETCH) as stream:
        with pytest.raises(UpstreamError, match="not IMAP"):
            await read_into([], stream)

    assert stream.received == len(content)


async def test_leaving_a_stream_early_breaks_the_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("UID FETCH", streamed(b"x" * (8 << 20)))

    async with imap.streaming(FETCH) as stream:
        await stream.started()

    assert imap.broken
    await until(lambda: imap_server.open_connections == 0)


async def test_leaving_unread_what_has_all_arrived_leaves_the_connection_readable(
    imap_server: ScriptedImap, imap: ImapConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STREAM_HIGH_WATER", 20_000)
    imap_server.on("UID FETCH", streamed(b"x" * 20_000))

    async with imap.streaming(FETCH) as stream:
        await until(lambda: stream.received == 20_000)
        await settle()

    assert not imap.broken
    assert (await imap.run_one(NOOP)).ok


async def test_a_bye_within_a_stream_is_told_behind_what_had_arrived(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    content = b"x" * 20_000
    whole = streamed(content).removesuffix(OK)
    imap_server.on("UID FETCH", (whole, b"* BYE shutting down\r\n", STALL))
    received: list[bytes] = []

    async with imap.streaming(FETCH) as stream:
        with pytest.raises(UpstreamUnavailable):
            await read_into(received, stream)

    assert b"".join(received) == content


async def test_a_stream_that_is_cut_off_fails_its_reader(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("UID FETCH", (streamed(b"x" * 20_000)[:19_000], CUT))

    async with imap.streaming(FETCH) as stream:
        with pytest.raises(UpstreamUnavailable):
            await read_into([], stream)


async def test_a_stream_that_stops_is_given_up(
    imap_server: ScriptedImap, impatient: ImapConnection
) -> None:
    imap_server.on("UID FETCH", (b"* 1 FETCH (UID 1 BODY[] {2000000}\r\n", STALL))

    async with impatient.streaming(FETCH) as stream:
        with pytest.raises(UpstreamTimeout):
            await read_into([], stream)


async def test_a_stream_of_an_octet_now_and_then_is_given_up(
    imap_server: ScriptedImap, impatient: ImapConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the next octet is never long in coming."""
    monkeypatch.setattr(module, "STREAM_GAP_SECONDS", 30.0)
    drip = Trickle(b"x" * 50_000)
    imap_server.on("UID FETCH", (b"* 1 FETCH (UID 1 BODY[] {2000000}\r\n", drip, CUT))

    async with impatient.streaming(FETCH) as stream:
        with pytest.raises(UpstreamTimeout):
            await read_into([], stream)


async def test_a_refused_fetch_is_told_to_the_streams_reader(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("UID FETCH", b"{tag} NO [SERVERBUG] oh\r\n")

    async with imap.streaming(FETCH) as stream:
        await stream.started()
        with pytest.raises(UpstreamUnavailable):
            await stream.completion()

    assert not imap.broken


async def test_a_reader_that_is_cancelled_breaks_the_connection(
    imap_server: ScriptedImap, imap: ImapConnection
) -> None:
    imap_server.on("UID FETCH", STALL)

    async def read() -> None:
        async with imap.streaming(FETCH) as stream:
            await stream.started()

    task = asyncio.create_task(read())
    await imap_server.heard("UID FETCH")
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert imap.broken


async def test_a_login_is_shown_in_no_repr(imap_server: ScriptedImap, imap: ImapConnection) -> None:
    command = Command("LOGIN", (b'"joe"', b'"secret"'))

    completion = (await imap.run(command))[0]

    assert completion.command == command
    assert "secret" not in repr(completion)
