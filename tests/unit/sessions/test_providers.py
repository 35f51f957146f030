"""The table of providers: every entry whole, every domain and host found once."""

import re
from collections import Counter

import pytest

from cbemail.hosts import MailServer, Security, normalise_host
from cbemail.sessions.provider import Provider
from cbemail.sessions.provider_table import PROVIDERS
from cbemail.sessions.providers import (
    find_provider,
    find_provider_by_exchanger,
    find_provider_by_host,
)


@pytest.mark.parametrize(
    ("email", "name"),
    [
        ("joe@gmail.com", "Gmail"),
        ("Joe@GoogleMail.COM", "Gmail"),
        ("joe@hotmail.co.uk", "Outlook.com"),
        ("joe@yahoo.co.uk", "Yahoo"),
        ("joe@me.com", "iCloud"),
        ("joe@gmx.at", "GMX"),
        ("joe@gmx.com", "GMX (international)"),
        ("joe@zoho.eu", "Zoho Mail (EU)"),
        ("joe@bk.ru", "Mail.ru"),
        ("joe@pm.me", "Proton Mail"),
        ('"odd@local"@web.de', "WEB.DE"),
    ],
)
def test_an_address_is_known_by_its_domain(email: str, name: str):
    provider = find_provider(email)

    assert provider is not None
    assert provider.name == name


@pytest.mark.parametrize("email", ["joe@example.org", "joe@notgmail.com", "joe", "", "joe@"])
def test_an_address_elsewhere_is_unknown(email: str):
    assert find_provider(email) is None


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("imap.gmail.com", "Gmail"),
        ("SMTP.Gmail.com.", "Gmail"),
        ("outlook.office365.com", "Microsoft 365"),
        ("smtp.office365.com", "Microsoft 365"),
        ("smtp-mail.outlook.com", "Outlook.com"),
        ("smtppro.zoho.eu", "Zoho Mail (EU)"),
        ("imap.migadu.com", "Migadu"),
    ],
)
def test_a_company_on_a_providers_servers_is_known_by_the_host(host: str, name: str):
    provider = find_provider_by_host(host)

    assert provider is not None
    assert provider.name == name


@pytest.mark.parametrize("host", ["mail.example.org", "127.0.0.1", ""])
def test_a_host_of_ones_own_is_no_provider(host: str):
    assert find_provider_by_host(host) is None


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("aspmx.l.google.com", "Gmail"),
        ("SMTP.Google.com.", "Gmail"),
        ("acme-org.mail.protection.outlook.com", "Microsoft 365"),
        ("acme-org.k-v1.mx.microsoft", "Microsoft 365"),
        ("hotmail-com.olc.protection.outlook.com", "Outlook.com"),
        ("in1-smtp.messagingengine.com", "Fastmail"),
        ("mx01.mail.icloud.com", "iCloud"),
        ("mx00.kundenserver.de", "IONOS (Germany)"),
    ],
)
def test_a_company_on_a_providers_servers_is_known_by_its_mail_exchanger(host: str, name: str):
    provider = find_provider_by_exchanger(host)

    assert provider is not None
    assert provider.name == name


@pytest.mark.parametrize("host", ["mx.acme.org", "notgoogle.com", "google.com.acme.org", "com", ""])
def test_an_exchanger_of_ones_own_is_no_providers(host: str):
    assert find_provider_by_exchanger(host) is None


def test_an_organisation_at_zoho_has_other_servers_than_zohos_own_addresses():
    own, organisation = find_provider("joe@zoho.eu"), find_provider_by_exchanger("mx.zoho.eu")

    assert own is not None
    assert organisation is not None
    assert own.name == organisation.name
    assert (own.imap.host, organisation.imap.host) == ("imap.zoho.eu", "imappro.zoho.eu")


def test_a_server_is_written_out_for_one_mailbox():
    provider = find_provider("joe@icloud.com")

    assert provider is not None
    assert provider.imap.server_for("joe@icloud.com") == MailServer(
        "imap.mail.me.com", 993, Security.TLS, "joe"
    )
    assert provider.smtp.server_for("joe@icloud.com") == MailServer(
        "smtp.mail.me.com", 587, Security.STARTTLS, "joe@icloud.com"
    )


@pytest.mark.parametrize("name", ["Gmail", "Microsoft 365", "Outlook.com", "Zoho Mail"])
def test_these_file_what_is_sent_themselves(name: str):
    assert named(name).files_own_sent


def test_a_domain_belongs_to_one_provider():
    domains = Counter(domain for provider in PROVIDERS for domain in provider.domains)

    assert {domain for domain, count in domains.items() if count > 1} == set()


def test_an_exchanger_belongs_to_one_provider():
    exchangers = Counter(name for provider in PROVIDERS for name in provider.exchangers)

    assert {name for name, count in exchangers.items() if count > 1} == set()


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_an_entry_is_well_formed(provider: Provider):
    for endpoint in (provider.imap, provider.smtp):
        assert normalise_host(endpoint.host) == endpoint.host
        expected = Security.TLS if endpoint.port in (993, 465) else Security.STARTTLS
        assert endpoint.security is expected
    for name in (*provider.domains, *provider.other_hosts, *provider.exchangers):
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", name)
    for note in provider.notes:
        assert note.endswith(".")


def named(name: str) -> Provider:
    return next(provider for provider in PROVIDERS if provider.name == name)
