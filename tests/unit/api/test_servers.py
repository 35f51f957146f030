"""The servers of a login: what is said goes before what is known, and a refusal says what the provider wants."""

from __future__ import annotations

import pytest

from cbemail.api.servers import ServerInput, advising, complete_server
from cbemail.errors import CbemailError, CredentialsRejected, InvalidRequest, UpstreamError
from cbemail.hosts import AccessToken, MailServer, Password, Secret, Security
from cbemail.sessions.discovery import known_by_heart
from cbemail.sessions.login import Login
from cbemail.sessions.provider import Endpoint, Setup, Source

EMAIL = "joe@acme.org"
KNOWN = MailServer("imap.acme.org", 1993, Security.TLS, "joe")


def complete(given: ServerInput, known: MailServer | None = KNOWN) -> MailServer:
    return complete_server("imap", given, known, EMAIL, None)


def test_what_is_left_out_comes_from_what_is_known() -> None:
    assert complete(ServerInput()) == KNOWN
    assert complete(ServerInput(username="ann")).username == "ann"
    assert complete(ServerInput(port=143)).security is Security.STARTTLS


def test_of_another_server_nothing_is_known() -> None:
    other = complete(ServerInput(host="mail.other.org"))

    assert other == MailServer("mail.other.org", 993, Security.TLS, EMAIL)


def test_a_server_that_nobody_knows_has_to_be_named() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        complete(ServerInput(port=993), None)

    assert refusal.value.errors[0].pointer == "#/imap/host"
    assert "acme.org" in refusal.value.detail


# ---- a refused login


def login(host: str, secret: Secret) -> Login:
    imap = MailServer(host, 993, Security.TLS, EMAIL)
    return Login(imap, secret, imap, secret)


def refused(
    host: str,
    secret: Secret,
    setup: Setup | None = None,
    error: CbemailError | None = None,
) -> str:
    """What the caller is told."""
    with pytest.raises(CbemailError) as told, advising(login(host, secret), setup):
        raise error or CredentialsRejected("The IMAP server refused the user name or password.")
    return told.value.detail


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("imap.gmail.com", "app password"),
        ("outlook.office365.com", "OAuth2 access tokens only"),
        ("imap.mail.me.com", "https://support.apple.com/102654"),
        ("imap.gmx.net", "switched on"),
    ],
)
def test_a_refused_password_is_told_with_what_the_provider_wants(host: str, wanted: str) -> None:
    detail = refused(host, Password("secret"))

    assert detail.startswith("The IMAP server refused the user name or password. ")
    assert wanted in detail
    assert detail.endswith(".")


def test_a_refused_password_is_told_with_what_was_found_out_of_its_server() -> None:
    endpoint = Endpoint("imap.acme.org", 993)
    setup = Setup(endpoint, endpoint, Source.AUTOCONFIG, notes=("Switch it on first.",))

    assert refused("imap.acme.org", Password("x"), setup).endswith(". Switch it on first.")
    assert refused("imap.other.org", Password("x"), setup).endswith("or password.")


def test_app_passwords_are_no_advice_for_a_token_or_another_failure() -> None:
    lost = UpstreamError("The IMAP server hung up.")

    assert refused("imap.gmail.com", AccessToken("t")).endswith("or password.")
    assert refused("imap.gmail.com", Password("x"), error=lost) == lost.detail


def test_what_is_known_by_heart_is_advice_by_its_own_notes() -> None:
    setup = known_by_heart("joe@aol.com")

    assert "AOL needs an app password" in refused("imap.aol.com", Password("x"), setup)
