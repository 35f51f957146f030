"""What the mail providers let one account send, as far as they say so.

A figure that no provider's page states is None, and then the server's own replies are the guide (`outbox/pacing`).
The lowest that holds for an account in good standing is kept: to exceed it locks the account out for a day, its
owner's own mail included.
"""

from msgspec import Struct

from cbemail.sessions.providers import find_provider, find_provider_by_host
from cbemail.store.records import SessionRecord


class ProviderLimits(Struct, frozen=True):
    """Of one account: connections at once, and recipients a minute and in any 24 hours."""

    connections: int = 10
    per_minute: int | None = None
    per_day: int | None = None


UNKNOWN = ProviderLimits()

_WORKSPACE = "Google Workspace"  # has Gmail's servers, and addresses of its customers' domains


def limits_of(smtp_host: str, address: str = "") -> ProviderLimits:
    """The limits of an account at a host. Google and Microsoft run two services each on the same servers: there
    ``address`` tells which it is. Without one, `smtp.gmail.com` is Gmail, and `smtp.office365.com` Microsoft 365.

    >>> limits_of("smtp.gmail.com").per_day, limits_of("smtp.gmail.com", "joe@example.org").per_day
    (500, 2000)
    """
    provider = find_provider_by_host(smtp_host)
    if provider is None:
        return UNKNOWN
    at_home = find_provider(address)
    name = provider.name
    if name == "Gmail" and "@" in address and at_home is None:
        name = _WORKSPACE
    elif name == "Microsoft 365" and at_home is not None and at_home.name == "Outlook.com":
        name = at_home.name
    return _LIMITS.get(name, UNKNOWN)


def limits_of_session(session: SessionRecord) -> ProviderLimits:
    """By the address that logs in, where it is one: the other is what the client calls itself."""
    username = session.smtp.username
    return limits_of(session.smtp.host, username if "@" in username else session.email)


_LIMITS = {
    # support.google.com/mail/answer/22839: 500 a day.
    "Gmail": ProviderLimits(per_day=500),
    # support.google.com/a/answer/166852: 2,000 messages a day (500 in a trial), over any 24 hours.
    _WORKSPACE: ProviderLimits(per_day=2_000),
    # learn.microsoft.com/exchange/troubleshoot/send-emails/smtp-submission-improvements: all three figures.
    "Microsoft 365": ProviderLimits(connections=3, per_minute=30, per_day=10_000),
    # support.microsoft.com, "Sending limits in Outlook.com": 5,000 for Microsoft 365 subscribers, 1,000 of whom may be
    # strangers, and fewer for others, without a figure: 300 is what those report. The servers are Microsoft 365's.
    "Outlook.com": ProviderLimits(connections=3, per_day=300),
    # help.yahoo.com SLN17518: 500 a day by SMTP, said of its business mail; no more can hold for the free one.
    "Yahoo": ProviderLimits(per_day=500),
    # support.apple.com/102198: 1,000 messages and 1,000 recipients a day.
    "iCloud": ProviderLimits(per_day=1_000),
    # zoho.com/mail/help/adminconsole/rates-and-limits.html: 50 to 500 an hour, by reputation.
    "Zoho Mail": ProviderLimits(per_minute=8),
    "Zoho Mail (EU)": ProviderLimits(per_minute=8),
    "Zoho Mail (India)": ProviderLimits(per_minute=8),
    # yandex.com/support/mail/web/letter/create/send-many-letters.html: 500 in 24 hours, by each recipient.
    "Yandex": ProviderLimits(per_day=500),
    # ionos.com and ionos.de, "mass mailing limits": 500 an hour, and 5,000 in Germany, once a contract is a month old.
    "IONOS": ProviderLimits(per_minute=8),
    "IONOS (Germany)": ProviderLimits(per_minute=83),
    # support.rackspace.com/how-to/rackspace-hosted-email-system-daily-sending-limit: 10,000 recipients a day.
    "Rackspace": ProviderLimits(per_day=10_000),
    # help.dreamhost.com 215730437: 100 recipients an hour, by SMTP: 1.67 a minute.
    "DreamHost": ProviderLimits(per_minute=1),
    # infomaniak.com/en/support/faq/2065: 1,440 in 24 hours; 500 for free and starter accounts.
    "Infomaniak": ProviderLimits(per_day=500),
    # For AOL, Fastmail, GMX, WEB.DE, mail.com, mailbox.org and the rest no figure of their own was found.
}
