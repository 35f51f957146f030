"""The way in: what is believed before whom, and that no password goes where it should not."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from cbemail.errors import (
    CbemailError,
    CredentialsRejected,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.hosts import AccessToken, MailHosts, Password, Security
from cbemail.imap import connection as connection_module
from cbemail.imap import login as module
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import upgrade
from cbemail.imap.protocol import INBOX
from cbemail.imap.refusals import ServerLimit
from cbemail.imap.wire import Command
from tests.certificates import Certificates
from tests.fakes.listener import Listener
from tests.fakes.script import CUT, NORMAL, STALL, START_TLS, Trickle
from tests.fakes.scripted_imap import CAPABILITIES, TOKEN, WEAK_CAPABILITIES, ScriptedImap
from tests.unit.imap.conftest import IMPATIENT, USER, Open, never_saw_a_login, settle, until

NOOP = Command("NOOP")
STARTTLS = {"security": Security.STARTTLS, "host": "localhost"}
TLS = {"security": Security.TLS, "host": "localhost"}


def without(*names: str) -> list[str]:
    return [each for each in CAPABILITIES if each not in names]


# ---- who we are


@pytest.mark.parametrize(
    ("capabilities", "command"),
    [
        (CAPABILITIES, "AUTHENTICATE PLAIN "),
        (without("SASL-IR"), "AUTHENTICATE PLAIN"),
        (without("AUTH=PLAIN"), "LOGIN"),
        (WEAK_CAPABILITIES, "LOGIN"),
    ],
)
async def test_the_login_is_made_in_the_best_way_the_server_offers(
    imap_server: ScriptedImap, open_to: Open, capabilities: list[str], command: str
) -> None:
    imap_server.capabilities = list(capabilities)

    imap = await open_to(imap_server)

    assert (await imap.run_one(NOOP)).ok
    assert imap_server.count(command) == 1


@pytest.mark.parametrize("capabilities", [CAPABILITIES, without("SASL-IR"), WEAK_CAPABILITIES])
@pytest.mark.parametrize("password", ['a"b\\c', "{5}", "pässwörd 密码", "x\r\nA1 DELETE INBOX"])
async def test_any_password_arrives_as_it_is_and_as_nothing_else(
    imap_server: ScriptedImap,
    open_to: Open,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[str],
    password: str,
) -> None:
    monkeypatch.setattr("tests.fakes.scripted_imap.PASSWORD", password)
    imap_server.capabilities = list(capabilities)

    await open_to(imap_server, username='joe "the {3}" smith\\', secret=Password(password))

    assert "INBOX" in imap_server.folders
    assert imap_server.count("DELETE") == 0


@pytest.mark.parametrize("capabilities", [CAPABILITIES, WEAK_CAPABILITIES])
async def test_a_wrong_password_is_rejected(
    imap_server: ScriptedImap, open_to: Open, capabilities: list[str]
) -> None:
    imap_server.capabilities = list(capabilities)

    with pytest.raises(CredentialsRejected):
        await open_to(imap_server, secret=Password("wrong"))

    await until(lambda: imap_server.open_connections == 0)


@pytest.mark.parametrize("capabilities", [CAPABILITIES, without("SASL-IR")])
async def test_a_token_opens_the_mailbox(
    imap_server: ScriptedImap, open_to: Open, capabilities: list[str]
) -> None:
    imap_server.capabilities = list(capabilities)

    imap = await open_to(imap_server, secret=AccessToken(TOKEN))

    assert (await imap.run_one(NOOP)).ok
    message = f"user={USER}\x01auth=Bearer {TOKEN}\x01\x01".encode()
    assert base64.b64encode(message) in imap_server.received


@pytest.mark.parametrize("capabilities", [CAPABILITIES, without("SASL-IR")])
async def test_the_reasons_for_refusing_a_token_are_answered_with_nothing(
    imap_server: ScriptedImap, open_to: Open, capabilities: list[str]
) -> None:
    """Unanswered, the server says no more until a timeout (the rejected XOAUTH2 of Gmail and Microsoft)."""
    imap_server.capabilities = list(capabilities)

    with pytest.raises(CredentialsRejected):
        await open_to(imap_server, secret=AccessToken("expired"))

    assert imap_server.commands[-1] == b""


@pytest.mark.parametrize("also", [(), ("SASL-IR",)])
async def test_a_server_that_takes_tokens_by_the_standard_only_gets_them_so(
    imap_server: ScriptedImap, open_to: Open, also: tuple[str, ...]
) -> None:
    imap_server.capabilities = ["IMAP4rev1", "AUTH=OAUTHBEARER", *also]

    imap = await open_to(imap_server, username="joe=a,b", secret=AccessToken(TOKEN))

    assert (await imap.run_one(NOOP)).ok
    message = f"n,a=joe=3Da=2Cb,\x01host=127.0.0.1\x01port={imap_server.port}\x01auth=Bearer {TOKEN}\x01\x01"
    assert base64.b64encode(message.encode()) in imap_server.received


async def test_where_both_are_offered_a_token_goes_by_xoauth2(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.capabilities = [*CAPABILITIES, "AUTH=OAUTHBEARER"]

    await open_to(imap_server, secret=AccessToken(TOKEN))

    assert imap_server.count("AUTHENTICATE XOAUTH2") == 1


async def test_the_standards_reasons_for_refusing_a_token_are_answered_with_one_octet(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.capabilities = ["IMAP4rev1", "AUTH=OAUTHBEARER"]

    with pytest.raises(CredentialsRejected):
        await open_to(imap_server, secret=AccessToken("expired"))

    assert imap_server.commands[-1] == base64.b64encode(b"\x01")  # RFC 7628 section 3.2.3


async def test_a_token_is_not_shown_to_a_server_that_wants_none(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.capabilities = without("AUTH=XOAUTH2")

    with pytest.raises(UpstreamError, match="OAuth2"):
        await open_to(imap_server, secret=AccessToken(TOKEN))

    assert never_saw_a_login(imap_server)


@pytest.mark.parametrize(
    ("username", "secret"),
    [
        (USER, Password("a\0b")),
        ("joe\0ann", Password("secret")),
        (USER, AccessToken("a\x01b")),
        ("joe\x01auth=Bearer stolen", AccessToken(TOKEN)),
    ],
)
async def test_a_field_of_the_login_cannot_become_two(
    imap_server: ScriptedImap, open_to: Open, username: str, secret: Password | AccessToken
) -> None:
    with pytest.raises(InvalidRequest):
        await open_to(imap_server, username=username, secret=secret)

    assert imap_server.count("AUTHENTICATE") == 0


async def test_where_logins_are_disabled_none_is_tried(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.capabilities = ["IMAP4rev1", "LOGINDISABLED"]

    with pytest.raises(UpstreamError, match="no way to log in"):
        await open_to(imap_server)

    assert never_saw_a_login(imap_server)


class Insatiable(Listener):
    """Answers every answer with another question."""

    def __init__(self, capabilities: bytes) -> None:
        super().__init__()
        self._capabilities = capabilities
        self.answers = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN %b] ready\r\n" % self._capabilities)
        await reader.readline()
        while True:
            writer.write(b"+ \r\n")
            await reader.readuntil(b"\r\n")
            self.answers += 1


@pytest.mark.parametrize(("capabilities", "answers"), [(b"SASL-IR", 1), (b"", 2)])
async def test_a_server_that_asks_for_ever_is_answered_once_or_twice(
    open_to: Open, capabilities: bytes, answers: int
) -> None:
    async with Insatiable(capabilities) as server:
        with pytest.raises(UpstreamError, match="never announced"):
            await open_to(server)

        assert server.answers == answers


async def test_an_answer_behind_its_question_is_the_end_of_the_dialogue(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    """The password must not go out as a command of its own."""
    imap_server.capabilities = without("SASL-IR")
    imap_server.on("AUTHENTICATE", (b"+ \r\n{tag} NO changed my mind\r\n", STALL))

    with pytest.raises(CredentialsRejected):
        await open_to(imap_server)

    assert never_saw_a_login(imap_server)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"NO [AUTHENTICATIONFAILED] nope", CredentialsRejected),
        (b"NO [EXPIRED] nope", CredentialsRejected),
        (b"NO nope", CredentialsRejected),
        (b"NO [UNAVAILABLE] database gone", UpstreamUnavailable),
        (b"NO [CONTACTADMIN] oh", UpstreamUnavailable),
        (b"NO [PRIVACYREQUIRED] psst", UpstreamError),
        (b"NO [LIMIT] enough", ServerLimit),
        (b"NO [ALERT] Too many simultaneous connections. (Failure)", ServerLimit),
        (b"BAD User is authenticated but not connected.", UpstreamError),
    ],
)
async def test_a_refused_login_is_the_callers_fault_only_if_the_server_has_no_other_reason(
    imap_server: ScriptedImap, open_to: Open, answer: bytes, error: type[CbemailError]
) -> None:
    imap_server.on("AUTHENTICATE", b"{tag} " + answer + b"\r\n")

    with pytest.raises(error) as caught:
        await open_to(imap_server)

    assert type(caught.value) is error


# ---- what the server can do


async def test_capabilities_after_the_login_replace_those_before_to_the_last_of_them(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("connect", b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR XOLD] ready\r\n")
    imap_server.on("AUTHENTICATE", b"{tag} OK [CAPABILITY IMAP4rev1 uidplus MOVE] Logged in\r\n")

    imap = await open_to(imap_server)

    assert imap.capabilities == {"IMAP4REV1", "UIDPLUS", "MOVE"}


@pytest.mark.parametrize("untagged", [b"", b"* CAPABILITY IMAP4rev1 MOVE\r\n"])
async def test_capabilities_are_asked_for_where_the_login_does_not_tell_them(
    imap_server: ScriptedImap, open_to: Open, untagged: bytes
) -> None:
    imap_server.on("AUTHENTICATE", untagged + b"{tag} OK Logged in\r\n")

    imap = await open_to(imap_server)

    assert "MOVE" in imap.capabilities
    assert imap_server.count("CAPABILITY") == (0 if untagged else 1)


async def test_capabilities_are_asked_for_where_the_greeting_does_not_tell_them(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("connect", b"* OK ready\r\n")

    await open_to(imap_server)

    assert imap_server.commands[0] == b"CAPABILITY"


async def test_what_was_offered_before_the_login_is_not_believed_where_nothing_is_told_after_it(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("AUTHENTICATE", b"{tag} OK Logged in\r\n")
    imap_server.on("CAPABILITY", b"{tag} OK none of your business\r\n")

    imap = await open_to(imap_server)

    assert imap.capabilities == frozenset()


async def test_who_is_known_already_need_not_log_in(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("connect", b"* PREAUTH welcome back\r\n")

    imap = await open_to(imap_server)

    assert "MOVE" in imap.capabilities
    assert never_saw_a_login(imap_server)


# ---- the greeting


GREETINGS = {
    "BYE": (b"* BYE not today\r\n", UpstreamUnavailable),
    "too many": (b"* BYE Maximum number of connections from user+IP exceeded\r\n", ServerLimit),
    "NO": (b"* NO not today\r\n", UpstreamError),
    "SMTP": (b"220 mail.example.test ESMTP\r\n", UpstreamError),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", UpstreamError),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", UpstreamError),
    "tagged": (b"A1 OK ready\r\n", UpstreamError),
    "invitation": (b"+ give me your password\r\n", UpstreamError),
    "binary": (b"\x15\x03\x01\x00\x02\x02\n", UpstreamError),
    "endless": (b"* OK " + b"x" * (2 << 20), UpstreamError),
}


@pytest.mark.parametrize(("octets", "error"), GREETINGS.values(), ids=GREETINGS)
async def test_who_does_not_greet_as_imap_does_is_told_nothing(
    imap_server: ScriptedImap, open_to: Open, octets: bytes, error: type[CbemailError]
) -> None:
    imap_server.on("connect", (octets, STALL))

    with pytest.raises(error) as caught:
        await open_to(imap_server)

    assert type(caught.value) is error
    assert imap_server.received == b""
    await until(lambda: imap_server.open_connections == 0)


async def test_who_hangs_up_instead_of_greeting_is_unavailable(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("connect", CUT)

    with pytest.raises(UpstreamUnavailable):
        await open_to(imap_server)


@pytest.mark.parametrize("reply", [STALL, Trickle(b"* OK " + b"x" * 900_000)])
async def test_a_greeting_that_is_not_there_in_time_is_given_up(
    imap_server: ScriptedImap, open_to: Open, monkeypatch: pytest.MonkeyPatch, reply
) -> None:
    monkeypatch.setattr(module, "GREETING_SECONDS", IMPATIENT)
    imap_server.on("connect", reply)

    with pytest.raises(UpstreamTimeout):
        await open_to(imap_server)

    await until(lambda: imap_server.open_connections == 0)


async def test_five_hundred_servers_that_never_greet_leave_no_connection_open(
    imap_server: ScriptedImap, open_to: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GREETING_SECONDS", IMPATIENT)
    imap_server.on("connect", STALL)

    errors: set[type] = set()
    for _ in range(5):
        logins = (open_to(imap_server) for _ in range(100))
        errors |= {type(each) for each in await asyncio.gather(*logins, return_exceptions=True)}
        await until(lambda: imap_server.open_connections == 0)

    assert errors == {UpstreamTimeout}
    assert imap_server.connections == 500


@pytest.mark.parametrize("stalled", ["connect", "STARTTLS", "CAPABILITY", "AUTHENTICATE"])
async def test_a_login_that_is_cancelled_leaves_no_connection_open(
    imap_server: ScriptedImap, open_to: Open, stalled: str
) -> None:
    if stalled != "connect":
        imap_server.on("connect", b"* OK ready\r\n")
    imap_server.on(stalled, STALL)
    login = asyncio.create_task(open_to(imap_server, **STARTTLS))
    await until(lambda: imap_server.connections == 1)
    if stalled != "connect":
        await imap_server.heard(stalled)

    login.cancel()
    await asyncio.wait({login})

    assert login.cancelled()
    await until(lambda: imap_server.open_connections == 0)


async def test_a_login_that_is_not_answered_is_given_up(
    imap_server: ScriptedImap, open_to: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    imap_server.on("AUTHENTICATE", STALL)
    monkeypatch.setattr(connection_module, "COMMAND_SECONDS", IMPATIENT)

    with pytest.raises(UpstreamTimeout):
        await open_to(imap_server)


async def test_a_referral_is_not_followed(imap_server: ScriptedImap, open_to: Open) -> None:
    async with ScriptedImap() as elsewhere:
        referral = f"* OK [REFERRAL imap://127.0.0.1:{elsewhere.port}/] go there\r\n".encode()
        imap_server.on("connect", referral)

        await open_to(imap_server)

        assert elsewhere.connections == 0


# ---- TLS


async def test_tls_goes_before_the_first_word(tls_server: ScriptedImap, open_to: Open) -> None:
    imap = await open_to(tls_server, **TLS)

    assert imap.transport.get_extra_info("ssl_object") is not None
    assert (await imap.run_one(NOOP)).ok


async def test_tls_goes_before_the_login(imap_server: ScriptedImap, open_to: Open) -> None:
    imap = await open_to(imap_server, **STARTTLS)

    assert imap.transport.get_extra_info("ssl_object") is not None
    assert imap_server.commands[:2] == [b"STARTTLS", b"CAPABILITY"]
    assert (await imap.run_one(NOOP)).ok


@pytest.mark.parametrize("answer", [b"NO not now", b"BAD what?"])
async def test_a_server_that_will_not_start_tls_is_refused(
    imap_server: ScriptedImap, open_to: Open, answer: bytes
) -> None:
    imap_server.on("STARTTLS", b"{tag} " + answer + b"\r\n")

    with pytest.raises(UpstreamError):
        await open_to(imap_server, **STARTTLS)

    assert never_saw_a_login(imap_server)


async def test_a_greeting_that_skips_tls_is_refused(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("connect", b"* PREAUTH [CAPABILITY IMAP4rev1] welcome\r\n")

    with pytest.raises(UpstreamError, match="skipped TLS"):
        await open_to(imap_server, **STARTTLS)

    assert imap_server.received == b""


@pytest.mark.parametrize(
    "injected",
    [
        b"* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\n",
        b"* OK [CAPABILITY IMAP4rev1] come in\r\n",
        b"* LIST () NIL Stolen\r\n",
        b"* BYE\r\n",
        b"A1 OK logged in\r\n",
        b"+ go on\r\n",
        b"* CAPABILITY IMAP4rev1",
        b"* 1 FETCH (BODY[] {100}\r\nabc",
        b"{1}\r\n",
    ],
)
async def test_what_is_injected_behind_starttls_ends_the_connection(
    imap_server: ScriptedImap, open_to: Open, injected: bytes
) -> None:
    imap_server.on("STARTTLS", (b"{tag} OK begin\r\n" + injected, START_TLS))

    with pytest.raises(UpstreamError):
        await open_to(imap_server, **STARTTLS)

    assert never_saw_a_login(imap_server)


async def test_what_is_said_before_tls_is_not_believed_after_it(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    before = b"* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n* 9 EXISTS\r\n* LIST () NIL Stolen\r\n"
    imap_server.on("connect", b"* OK [CAPABILITY LOGINDISABLED] ready\r\n")
    imap_server.on("STARTTLS", (before, NORMAL))

    imap = await open_to(imap_server, **STARTTLS)

    assert "MOVE" in imap.capabilities
    assert "LOGINDISABLED" not in imap.capabilities
    assert imap.selected is None
    listed = await imap.run_one(Command("LIST", (b'""', b'"*"')))
    assert listed.untagged("LIST")[0].values[-1] == INBOX.encode()


@pytest.mark.parametrize(
    ("behind_ok", "error"),
    [
        ((b"", CUT), UpstreamUnavailable),
        ((STALL,), UpstreamTimeout),
        ((START_TLS, CUT), UpstreamUnavailable),
    ],
    ids=["hangs up", "says nothing", "hangs up after the handshake"],
)
async def test_a_server_that_fails_after_starttls_is_told_as_what_it_is(
    imap_server: ScriptedImap,
    open_to: Open,
    monkeypatch: pytest.MonkeyPatch,
    behind_ok,
    error: type[CbemailError],
) -> None:
    monkeypatch.setattr(module, "TLS_SECONDS", IMPATIENT if error is UpstreamTimeout else 10.0)
    imap_server.on("STARTTLS", (b"{tag} OK begin\r\n", *behind_ok))

    with pytest.raises(error) as caught:
        await open_to(imap_server, **STARTTLS)

    assert type(caught.value) is error
    await until(lambda: imap_server.open_connections == 0)


async def test_a_server_that_does_not_speak_tls_is_told_as_such(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    with pytest.raises(UpstreamError, match="does not speak TLS") as caught:
        await open_to(imap_server, **TLS)

    assert type(caught.value) is UpstreamError


async def test_a_tls_server_that_says_nothing_is_given_up(
    open_to: Open, imap_server: ScriptedImap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TLS_SECONDS", IMPATIENT)
    imap_server.on("connect", STALL)

    with pytest.raises(UpstreamTimeout):
        await open_to(imap_server, **TLS)

    await until(lambda: imap_server.open_connections == 0)


async def test_a_handshake_that_is_cancelled_leaves_no_connection_open(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.on("connect", STALL)
    login = asyncio.create_task(open_to(imap_server, **TLS))
    await until(lambda: imap_server.received != b"")

    login.cancel()
    await asyncio.wait({login})

    assert login.cancelled()
    await until(lambda: imap_server.open_connections == 0)


async def test_tls_begins_with_nothing_known(
    imap_server: ScriptedImap, imap: ImapConnection, hosts: MailHosts
) -> None:
    imap_server.on("STARTTLS", (b"{tag} OK begin\r\n", START_TLS))
    await imap.run_one(Command("STARTTLS"))

    await upgrade(imap, hosts.tls, "localhost")

    assert imap.capabilities == frozenset()
    assert (await imap.run_one(NOOP)).ok


async def test_a_connection_that_goes_during_the_handshake_is_told_as_gone(
    imap_server: ScriptedImap, imap: ImapConnection, hosts: MailHosts
) -> None:
    imap_server.on("STARTTLS", (b"{tag} OK begin\r\n", STALL))
    await imap.run_one(Command("STARTTLS"))
    handshake = asyncio.create_task(upgrade(imap, hosts.tls, "localhost"))
    await settle()

    imap.abort()

    with pytest.raises(UpstreamUnavailable):
        await handshake


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_a_certificate_for_another_name_is_refused(
    certificates: Certificates, open_to: Open, security: Security
) -> None:
    tls = certificates.server_context()
    async with ScriptedImap(tls=tls, implicit_tls=security is Security.TLS) as server:
        with pytest.raises(UpstreamError, match="not valid for its name"):
            await open_to(server, security, host="mail.example.test")

        assert never_saw_a_login(server)


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_a_certificate_that_no_known_authority_signed_is_refused(
    tmp_path: Path, open_to: Open, security: Security
) -> None:
    tls = Certificates.issue(tmp_path).server_context()
    async with ScriptedImap(tls=tls, implicit_tls=security is Security.TLS) as server:
        with pytest.raises(UpstreamError, match="certificate"):
            await open_to(server, security, host="localhost")

        assert never_saw_a_login(server)


async def test_a_certificate_that_goes_bad_does_not_speak_against_the_credentials(
    imap_server: ScriptedImap, open_to: Open, tmp_path: Path
) -> None:
    await open_to(imap_server, **STARTTLS)
    imap_server.tls = Certificates.issue(tmp_path).server_context()

    with pytest.raises(UpstreamError, match="certificate") as caught:
        await open_to(imap_server, **STARTTLS)

    assert not isinstance(caught.value, CredentialsRejected)
    assert imap_server.count("AUTHENTICATE") == 1
