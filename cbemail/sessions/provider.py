"""What is known of the mail servers of a domain: the nouns of the table of providers, and of discovery."""

import re
from enum import StrEnum

from msgspec import Struct

from cbemail.hosts import MailServer, Security

# What autoconfiguration documents write for the parts of an address; all that a login name is made of.
ADDRESS = "%EMAILADDRESS%"
LOCAL_PART = "%EMAILLOCALPART%"
DOMAIN = "%EMAILDOMAIN%"

_PLACEHOLDER = re.compile("|".join((ADDRESS, LOCAL_PART, DOMAIN)))


class Endpoint(Struct, frozen=True):
    """One server, the same for every mailbox. ``username`` is the login name there, with placeholders."""

    host: str
    port: int
    security: Security = Security.TLS
    username: str = ADDRESS

    def server_for(self, email: str) -> MailServer:
        """The same, for one mailbox.

        >>> Endpoint("imap.example.org", 993, username="%EMAILLOCALPART%").server_for("joe@example.org").username
        'joe'
        """
        local_part, _, domain = email.rpartition("@")
        values = {ADDRESS: email, LOCAL_PART: local_part, DOMAIN: domain}
        # In one pass: a placeholder that somebody has in the address is none.
        username = _PLACEHOLDER.sub(lambda found: values[found[0]], self.username)
        return MailServer(self.host, self.port, self.security, username)


class Provider(Struct, frozen=True):
    """A mail provider. One without ``domains`` hosts other people's, and is found by its hosts or mail exchangers.

    ``files_own_sent`` providers put a copy of what is submitted over SMTP into the Sent folder themselves, so that a
    second one, appended over IMAP, would show every message twice. Where the provider leaves it to the user, or is
    not known to do it, it is False: a message twice in Sent is better than none.
    """

    name: str
    imap: Endpoint
    smtp: Endpoint
    domains: tuple[str, ...] = ()
    other_hosts: tuple[str, ...] = ()  # more names of the same servers
    exchangers: tuple[str, ...] = ()  # what the names of its MX hosts end in
    files_own_sent: bool = False
    notes: tuple[str, ...] = ()


class Source(StrEnum):
    """Who says where a domain's mail servers are."""

    BUILTIN = "builtin"
    MX = "mx"
    AUTOCONFIG = "autoconfig"
    SRV = "srv"
    GUESS = "guess"


class Setup(Struct, frozen=True):
    """How the mailboxes of a domain are reached. ``notes`` say what a person must do first; ``ttl`` in seconds."""

    imap: Endpoint
    smtp: Endpoint
    source: Source
    provider: str | None = None
    notes: tuple[str, ...] = ()
    ttl: int = 3600

    @classmethod
    def of(cls, provider: Provider, source: Source, ttl: int = 3600) -> "Setup":
        """As the table has it."""
        return cls(provider.imap, provider.smtp, source, provider.name, provider.notes, ttl)
