"""Logging in to a submission server: one attempt, by what both sides know, and nothing told that was a secret."""

import base64
import traceback

import pytest

from cbemail.errors import CbemailError, CredentialsRejected, UpstreamError, UpstreamUnavailable
from cbemail.hosts import AccessToken, Password, Security
from cbemail.smtp.outcome import Accepted
from tests.fakes.scripted_smtp import TOKEN, ScriptedSmtp
from tests.unit.smtp.conftest import ENVELOPE, USER, Open, never_saw_a_login, until


@pytest.mark.parametrize("mechanisms", [("PLAIN", "LOGIN"), ("LOGIN",), ("CRAM-MD5", "PLAIN")])
async def test_a_password_goes_by_what_the_server_offers(
    smtp_server: ScriptedSmtp, open_to: Open, mechanisms: tuple[str, ...]
) -> None:
    smtp_server.mechanisms = mechanisms

    connection = await open_to(smtp_server)
    await connection.submit(ENVELOPE)

    assert smtp_server.count("AUTH") == 1
    assert smtp_server.messages[0].user == USER


async def test_an_access_token_goes_by_xoauth2(smtp_server: ScriptedSmtp, open_to: Open) -> None:
    connection = await open_to(smtp_server, secret=AccessToken(TOKEN))
    await connection.submit(ENVELOPE)

    assert smtp_server.count("AUTH XOAUTH2") == 1
    assert smtp_server.messages[0].user == USER


async def test_an_access_token_goes_by_the_standard_where_that_is_offered(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.mechanisms = ("PLAIN", "OAUTHBEARER")

    connection = await open_to(smtp_server, secret=AccessToken(TOKEN))
    await connection.submit(ENVELOPE)

    assert smtp_server.count("AUTH OAUTHBEARER") == 1
    assert smtp_server.messages[0].user == USER


async def test_where_both_are_offered_an_access_token_goes_by_xoauth2(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.mechanisms = ("OAUTHBEARER", "XOAUTH2")

    await open_to(smtp_server, secret=AccessToken(TOKEN))

    assert smtp_server.count("AUTH XOAUTH2") == 1


@pytest.mark.parametrize(
    ("mechanism", "last_words"), [("XOAUTH2", b""), ("OAUTHBEARER", base64.b64encode(b"\x01"))]
)
async def test_a_refused_access_token_is_a_refused_login_once_its_reasons_are_answered(
    smtp_server: ScriptedSmtp, open_to: Open, mechanism: str, last_words: bytes
) -> None:
    smtp_server.mechanisms = (mechanism,)

    with pytest.raises(CredentialsRejected):
        await open_to(smtp_server, secret=AccessToken("old"))

    assert smtp_server.commands[-1] == last_words


async def test_a_login_beyond_ascii_arrives_as_utf_8(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.on("AUTH PLAIN", b"235 2.7.0 ok\r\n")

    await open_to(smtp_server, username="jörg", secret=Password("pässwörd"))

    [line] = [each for each in smtp_server.commands if each.startswith(b"AUTH")]
    assert base64.b64decode(line.split()[2]).decode() == "\0jörg\0pässwörd"


@pytest.mark.parametrize("character", ["\0", "\x01", "\r", "\n"])
async def test_a_login_that_could_forge_a_field_is_not_sent(
    smtp_server: ScriptedSmtp, open_to: Open, character: str
) -> None:
    with pytest.raises(CredentialsRejected):
        await open_to(smtp_server, username=f"joe{character}ann")

    assert never_saw_a_login(smtp_server)


async def test_a_refused_password_is_not_tried_in_other_clothes(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    with pytest.raises(CredentialsRejected, match=r"SMTP: The login was not accepted\."):
        await open_to(smtp_server, secret=Password("wrong"))

    assert smtp_server.count("AUTH") == 1


async def test_a_refused_login_hangs_up(smtp_server: ScriptedSmtp, open_to: Open) -> None:
    with pytest.raises(CredentialsRejected):
        await open_to(smtp_server, secret=Password("wrong"))

    await until(lambda: not smtp_server.open_connections)


async def test_a_mechanism_that_was_offered_in_error_is_passed_over(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.on("AUTH PLAIN", b"504 5.7.4 not really\r\n")

    connection = await open_to(smtp_server)

    assert connection.is_usable()
    assert smtp_server.count("AUTH LOGIN") == 1


async def test_a_welcome_need_not_be_235(smtp_server: ScriptedSmtp, open_to: Open) -> None:
    smtp_server.on("AUTH", b"250 2.0.0 Ok\r\n")  # smtp-sink says so, and Postfix would accept it

    connection = await open_to(smtp_server)

    assert connection.is_usable()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"535 5.7.8 no\r\n", CredentialsRejected),
        (b"534 5.7.9 app password\r\n", CredentialsRejected),
        (b"530 5.7.0 no\r\n", CredentialsRejected),
        (b"538 5.7.11 encrypt\r\n", CredentialsRejected),
        (b"525 5.7.13 disabled\r\n", CredentialsRejected),
        (b"454 4.7.0 later\r\n", UpstreamUnavailable),
        (b"421 4.7.0 busy\r\n", UpstreamUnavailable),
        (b"501 5.5.2 what?\r\n", UpstreamError),
        (b"334 go on\r\n", UpstreamError),
    ],
)
async def test_each_answer_to_a_login_has_its_error(
    smtp_server: ScriptedSmtp, open_to: Open, said: bytes, error: type[CbemailError]
) -> None:
    smtp_server.on("AUTH", said)

    with pytest.raises(CbemailError) as caught:
        await open_to(smtp_server)

    assert caught.type is error


async def test_a_server_that_offers_no_fitting_mechanism_is_an_upstream_error(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.mechanisms = ("PLAIN",)

    with pytest.raises(UpstreamError, match="none of the ways") as caught:
        await open_to(smtp_server, secret=AccessToken(TOKEN))

    assert caught.type is UpstreamError


async def test_without_auth_a_plain_server_is_used_as_it_is(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    smtp_server.mechanisms = ()

    connection = await open_to(smtp_server)

    assert isinstance(await connection.submit(ENVELOPE), Accepted)


async def test_without_auth_a_tls_server_is_refused(
    tls_server: ScriptedSmtp, open_to: Open
) -> None:
    tls_server.mechanisms = ()

    with pytest.raises(UpstreamError, match="none of the ways"):
        await open_to(tls_server, Security.TLS)


async def test_a_server_that_echoes_the_password_does_not_get_it_into_a_traceback(
    smtp_server: ScriptedSmtp, open_to: Open
) -> None:
    password = "".join(["hunter", "2"])  # not to stand in a traceback as a line of this file
    smtp_server.on("AUTH", f"535 5.7.8 bad password {password}\r\n".encode())

    with pytest.raises(CredentialsRejected) as caught:
        await open_to(smtp_server, secret=Password(password))

    assert password not in "".join(traceback.format_exception(caught.value))
