"""The table of what providers allow."""

import pytest
from msgspec import structs

from cbemail.hosts import MailServer, Security
from cbemail.outbox.limits import (
    _LIMITS,
    _WORKSPACE,
    UNKNOWN,
    ProviderLimits,
    limits_of,
    limits_of_session,
)
from cbemail.sessions.provider_table import PROVIDERS
from tests.contract.test_repository import session


def test_every_row_is_of_a_provider_we_know() -> None:
    assert set(_LIMITS) <= {provider.name for provider in PROVIDERS} | {_WORKSPACE}


def test_a_host_nobody_knows_has_ten_connections_and_no_rate() -> None:
    assert limits_of("mail.example.org") == ProviderLimits(10, None, None)
    assert limits_of("127.0.0.1") == UNKNOWN, "Proton's Bridge, or anybody's server"


def test_a_provider_without_a_figure_is_as_good_as_unknown() -> None:
    assert limits_of("smtp.aol.com", "joe@aol.com") == UNKNOWN


@pytest.mark.parametrize("host", ["smtp.office365.com", "SMTP.Office365.com."])
def test_microsoft_365_allows_three_connections_and_thirty_messages_a_minute(host: str) -> None:
    assert limits_of(host, "joe@example.org") == ProviderLimits(3, 30, 10_000)


@pytest.mark.parametrize(
    ("host", "address", "per_day"),
    [
        ("smtp.gmail.com", "joe@gmail.com", 500),
        ("smtp.googlemail.com", "joe@googlemail.com", 500),
        ("smtp.gmail.com", "joe@example.org", 2_000),
        ("smtp.gmail.com", "joe", 500),
        ("smtp.gmail.com", "", 500),
        ("smtp-mail.outlook.com", "joe@outlook.com", 300),
        ("smtp.office365.com", "joe@hotmail.com", 300),
        ("smtp.office365.com", "", 10_000),
    ],
)
def test_where_one_server_has_two_services_the_address_tells_them_apart(
    host: str, address: str, per_day: int
) -> None:
    assert limits_of(host, address).per_day == per_day


@pytest.mark.parametrize(
    ("username", "per_day"), [("joe@gmail.com", 500), ("joe@example.org", 2_000), ("joe", 500)]
)
def test_of_a_session_it_is_the_login_that_tells_and_the_address_where_that_is_none(
    username: str, per_day: int
) -> None:
    """A client may call itself what it likes: the login is proven."""
    address = "joe@gmail.com" if "@" not in username else "somebody@else.example"
    smtp = MailServer("smtp.gmail.com", 465, Security.TLS, username)

    known = structs.replace(session(), email=address, smtp=smtp)

    assert limits_of_session(known).per_day == per_day


@pytest.mark.parametrize("limits", [*_LIMITS.values(), UNKNOWN])
def test_every_limit_lets_something_through(limits: ProviderLimits) -> None:
    assert limits.connections >= 1
    assert limits.per_minute is None or limits.per_minute >= 1
    assert limits.per_day is None or limits.per_day >= 1
