"""Finding a known mail provider: by the domain of an address, by a server's name, by a domain's mail exchanger."""

from cbemail.sessions.provider import Provider
from cbemail.sessions.provider_table import PROVIDERS


def find_provider(email: str) -> Provider | None:
    """The provider of an address, by its domain.

    >>> find_provider("joe@GoogleMail.com").name
    'Gmail'
    """
    return _BY_DOMAIN.get(email.rpartition("@")[2].lower())


def find_provider_by_host(host: str) -> Provider | None:
    """The provider that runs an IMAP or SMTP host, whatever the domain of the address.

    >>> find_provider_by_host("smtp.gmail.com").files_own_sent
    True
    """
    return _BY_HOST.get(host.lower().removesuffix("."))


def find_provider_by_exchanger(host: str) -> Provider | None:
    """The provider that a domain's MX record leads to: whoever takes its mail in keeps its mailboxes, too.

    >>> find_provider_by_exchanger("ASPMX.L.Google.com.").name
    'Gmail'
    >>> find_provider_by_exchanger("example-org.olc.protection.outlook.com").name
    'Outlook.com'
    """
    labels = host.lower().removesuffix(".").split(".")
    names = (".".join(labels[start:]) for start in range(len(labels)))  # the longest first
    return next((_BY_EXCHANGER[name] for name in names if name in _BY_EXCHANGER), None)


def _hosts(provider: Provider) -> set[str]:
    """Its hosts, but for Bridge's loopback address: what listens there is anybody's."""
    return {provider.imap.host, provider.smtp.host, *provider.other_hosts} - {"127.0.0.1"}


_BY_DOMAIN = {domain: provider for provider in PROVIDERS for domain in provider.domains}
# Reversed, so that the first in the table wins: a company's domain on Microsoft's servers is no Outlook.com.
_BY_HOST = {host: provider for provider in reversed(PROVIDERS) for host in _hosts(provider)}
_BY_EXCHANGER = {name: provider for provider in PROVIDERS for name in provider.exchangers}
