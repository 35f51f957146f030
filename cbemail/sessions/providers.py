"""The mail providers known by heart: which servers an address has, and what is peculiar about them.

From the providers' own set-up pages. Submission is over TLS on port 465 where they offer it (RFC 8314 3.3).
"""

from enum import StrEnum

from msgspec import Struct

from cbemail.hosts import MailServer, Security


class Username(StrEnum):
    """What a server takes for the login name of ``joe@example.org``."""

    ADDRESS = "address"  # joe@example.org
    LOCAL_PART = "local_part"  # joe


class Endpoint(Struct, frozen=True):
    """One server of a provider."""

    host: str
    port: int
    security: Security = Security.TLS
    username: Username = Username.ADDRESS

    def server_for(self, email: str) -> MailServer:
        """The same, for one mailbox."""
        local_part = email.rpartition("@")[0]
        username = local_part if self.username is Username.LOCAL_PART else email
        return MailServer(self.host, self.port, self.security, username)


class Provider(Struct, frozen=True):
    """A mail provider. One without ``domains`` hosts other people's, and is found by its hosts only.

    ``files_own_sent`` providers put a copy of what is submitted over SMTP into the Sent folder themselves, so that a
    second one, appended over IMAP, would show every message twice. Where the provider leaves it to the user, or is
    not known to do it, it is False: a message twice in Sent is better than none.
    """

    name: str
    imap: Endpoint
    smtp: Endpoint
    domains: tuple[str, ...] = ()
    other_hosts: tuple[str, ...] = ()  # more names of the same servers
    files_own_sent: bool = False
    notes: tuple[str, ...] = ()


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


# ---- the table


def _imap(host: str, *, username: Username = Username.ADDRESS) -> Endpoint:
    return Endpoint(host, 993, Security.TLS, username)


def _smtp(host: str, *, username: Username = Username.ADDRESS) -> Endpoint:
    return Endpoint(host, 465, Security.TLS, username)


def _submission(host: str) -> Endpoint:
    return Endpoint(host, 587, Security.STARTTLS)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _app_password(provider: str) -> str:
    return (
        f"{provider} needs an app password, made in the account's security settings: "
        "the account's own password is refused."
    )


def _switch(provider: str) -> str:
    return f"Access over IMAP is off until it is switched on in the settings of {provider}."


_GMAIL = (
    "Gmail needs an app password (with 2-Step Verification on) or an OAuth2 access token: "
    "the account's own password is refused."
)
_PROTON = (
    "Proton Mail is reached through Proton Mail Bridge, on the machine this service runs on: log in with the password "
    "Bridge shows, allow 127.0.0.1 in ALLOW_MAIL_NETWORKS and name Bridge's certificate in MAIL_CA_FILE."
)
_MICROSOFT_OAUTH2 = (
    "Microsoft accepts OAuth2 access tokens only: passwords, app passwords too, are refused."
)
_ZOHO = (_switch("Zoho Mail"), "With two-factor sign-in, Zoho needs an app password.")
_AUTHORISATION_CODE = (
    "Log in with the authorisation code made in the web settings, not with the account's password."
)

PROVIDERS = (
    Provider(
        name="Gmail",
        imap=_imap("imap.gmail.com"),
        smtp=_smtp("smtp.gmail.com"),
        domains=("gmail.com", "googlemail.com"),
        other_hosts=("imap.googlemail.com", "smtp.googlemail.com"),
        files_own_sent=True,
        notes=(_GMAIL,),
    ),
    Provider(
        name="Microsoft 365",
        imap=_imap("outlook.office365.com"),
        smtp=_submission("smtp.office365.com"),
        other_hosts=("imap.office365.com", "outlook.office.com"),
        files_own_sent=True,
        notes=(_MICROSOFT_OAUTH2,),
    ),
    Provider(
        name="Outlook.com",
        imap=_imap("outlook.office365.com"),
        smtp=_submission("smtp-mail.outlook.com"),
        domains=_listed("""
            outlook.com hotmail.com live.com msn.com windowslive.com outlook.at outlook.be
            outlook.cl outlook.cz outlook.de outlook.dk outlook.es outlook.fr outlook.hu outlook.ie
            outlook.in outlook.it outlook.jp outlook.kr outlook.ph outlook.pt outlook.sg outlook.sk
            outlook.co.id outlook.co.il outlook.co.th outlook.com.ar outlook.com.au outlook.com.br
            outlook.com.gr outlook.com.tr hotmail.be hotmail.ca hotmail.ch hotmail.cl hotmail.de
            hotmail.dk hotmail.es hotmail.fi hotmail.fr hotmail.gr hotmail.it hotmail.nl hotmail.no
            hotmail.se hotmail.co.il hotmail.co.jp hotmail.co.uk hotmail.co.za hotmail.com.ar
            hotmail.com.au hotmail.com.br live.at live.be live.ca live.cl live.cn live.de live.dk
            live.fi live.fr live.ie live.it live.jp live.nl live.no live.se live.co.uk live.co.za
            live.com.ar live.com.au live.com.mx live.com.pt live.com.sg
        """),
        other_hosts=("imap-mail.outlook.com",),
        files_own_sent=True,
        notes=(_MICROSOFT_OAUTH2,),
    ),
    Provider(
        name="Yahoo",
        imap=_imap("imap.mail.yahoo.com"),
        smtp=_smtp("smtp.mail.yahoo.com"),
        domains=_listed("""
            yahoo.com ymail.com rocketmail.com myyahoo.com yahoo.ca yahoo.de yahoo.dk yahoo.es
            yahoo.fr yahoo.gr yahoo.ie yahoo.in yahoo.it yahoo.no yahoo.pl yahoo.ro yahoo.se
            yahoo.co.id yahoo.co.in yahoo.co.nz yahoo.co.uk yahoo.com.ar yahoo.com.au yahoo.com.br
            yahoo.com.hk yahoo.com.mx yahoo.com.ph yahoo.com.sg yahoo.com.tr yahoo.com.vn cox.net
        """),
        notes=(_app_password("Yahoo"),),
    ),
    Provider(
        name="AOL",
        imap=_imap("imap.aol.com"),
        smtp=_smtp("smtp.aol.com"),
        domains=_listed("""
            aol.com aim.com aol.de aol.es aol.fr aol.it aol.co.uk netscape.net compuserve.com
        """),
        notes=(_app_password("AOL"),),
    ),
    Provider(
        name="AT&T",
        imap=_imap("imap.mail.att.net"),
        smtp=_smtp("smtp.mail.att.net"),
        domains=_listed("""
            att.net ameritech.net bellsouth.net currently.com flash.net nvbell.net pacbell.net
            prodigy.net sbcglobal.net snet.net swbell.net wans.net
        """),
        notes=(
            "AT&T needs a secure mail key in place of the password; it is made in the account's profile.",
        ),
    ),
    Provider(
        name="iCloud",
        imap=_imap("imap.mail.me.com", username=Username.LOCAL_PART),
        smtp=_submission("smtp.mail.me.com"),
        domains=("icloud.com", "me.com", "mac.com"),
        notes=(_app_password("iCloud"),),
    ),
    Provider(
        name="Fastmail",
        imap=_imap("imap.fastmail.com"),
        smtp=_smtp("smtp.fastmail.com"),
        domains=("fastmail.com", "fastmail.fm"),
        other_hosts=("mail.messagingengine.com",),
        notes=(_app_password("Fastmail"),),
    ),
    Provider(
        name="Zoho Mail",
        imap=_imap("imap.zoho.com"),
        smtp=_smtp("smtp.zoho.com"),
        domains=("zoho.com", "zohomail.com"),
        other_hosts=("imappro.zoho.com", "smtppro.zoho.com"),
        files_own_sent=True,
        notes=_ZOHO,
    ),
    Provider(
        name="Zoho Mail (EU)",
        imap=_imap("imap.zoho.eu"),
        smtp=_smtp("smtp.zoho.eu"),
        domains=("zoho.eu", "zohomail.eu"),
        other_hosts=("imappro.zoho.eu", "smtppro.zoho.eu"),
        files_own_sent=True,
        notes=_ZOHO,
    ),
    Provider(
        name="Zoho Mail (India)",
        imap=_imap("imap.zoho.in"),
        smtp=_smtp("smtp.zoho.in"),
        domains=("zoho.in", "zohomail.in"),
        other_hosts=("imappro.zoho.in", "smtppro.zoho.in"),
        files_own_sent=True,
        notes=_ZOHO,
    ),
    Provider(
        name="Proton Mail",
        imap=Endpoint("127.0.0.1", 1143, Security.STARTTLS),
        smtp=Endpoint("127.0.0.1", 1025, Security.STARTTLS),
        domains=("proton.me", "protonmail.com", "protonmail.ch", "pm.me"),
        files_own_sent=True,
        notes=(_PROTON,),
    ),
    Provider(
        name="GMX",
        imap=_imap("imap.gmx.net"),
        smtp=_smtp("mail.gmx.net"),
        domains=("gmx.net", "gmx.de", "gmx.at", "gmx.ch", "gmx.eu", "gmx.org"),
        notes=(_switch("GMX"),),
    ),
    Provider(
        name="GMX (international)",
        imap=_imap("imap.gmx.com"),
        smtp=_smtp("mail.gmx.com"),
        domains=("gmx.com", "gmx.us", "gmx.co.uk", "gmx.es", "gmx.fr", "gmx.it"),
        notes=(_switch("GMX"),),
    ),
    Provider(
        name="WEB.DE",
        imap=_imap("imap.web.de", username=Username.LOCAL_PART),
        smtp=_smtp("smtp.web.de", username=Username.LOCAL_PART),
        domains=("web.de",),
        notes=(_switch("WEB.DE"),),
    ),
    Provider(
        name="mail.com",
        imap=_imap("imap.mail.com"),
        smtp=_smtp("smtp.mail.com"),
        domains=("mail.com", "email.com", "post.com", "usa.com", "europe.com"),
        notes=(_switch("mail.com"),),
    ),
    Provider(
        name="T-Online",
        imap=_imap("secureimap.t-online.de"),
        smtp=_smtp("securesmtp.t-online.de"),
        domains=("t-online.de", "magenta.de"),
        notes=(
            "T-Online needs the e-mail password, set in the customer centre: the login password is refused.",
        ),
    ),
    Provider(
        name="freenet",
        imap=_imap("mx.freenet.de"),
        smtp=_smtp("mx.freenet.de"),
        domains=("freenet.de",),
        notes=(_switch("freenet"),),
    ),
    Provider(
        name="mailbox.org",
        imap=_imap("imap.mailbox.org"),
        smtp=_smtp("smtp.mailbox.org"),
        domains=("mailbox.org",),
    ),
    Provider(
        name="Posteo",
        imap=_imap("posteo.de"),
        smtp=_smtp("posteo.de"),
        domains=_listed("""
            posteo.de posteo.at posteo.ch posteo.com posteo.es posteo.eu posteo.it posteo.net
            posteo.nl posteo.org posteo.uk posteo.us
        """),
    ),
    Provider(
        name="Runbox",
        imap=_imap("mail.runbox.com"),
        smtp=_smtp("mail.runbox.com"),
        domains=("runbox.com",),
    ),
    Provider(
        name="Yandex",
        imap=_imap("imap.yandex.com"),
        smtp=_smtp("smtp.yandex.com"),
        domains=_listed("""
            yandex.com yandex.ru ya.ru yandex.by yandex.kz yandex.ua narod.ru
        """),
        other_hosts=("imap.yandex.ru", "smtp.yandex.ru"),
        notes=(_switch("Yandex Mail"), _app_password("Yandex")),
    ),
    Provider(
        name="Mail.ru",
        imap=_imap("imap.mail.ru"),
        smtp=_smtp("smtp.mail.ru"),
        domains=("mail.ru", "bk.ru", "inbox.ru", "list.ru", "internet.ru"),
        notes=(_app_password("Mail.ru"),),
    ),
    Provider(
        name="Orange",
        imap=_imap("imap.orange.fr"),
        smtp=_smtp("smtp.orange.fr"),
        domains=("orange.fr", "wanadoo.fr"),
    ),
    Provider(
        name="Free",
        imap=_imap("imap.free.fr", username=Username.LOCAL_PART),
        smtp=_smtp("smtp.free.fr", username=Username.LOCAL_PART),
        domains=("free.fr",),
    ),
    Provider(
        name="La Poste",
        imap=_imap("imap.laposte.net"),
        smtp=_smtp("smtp.laposte.net"),
        domains=("laposte.net",),
    ),
    Provider(
        name="Libero",
        imap=_imap("imapmail.libero.it"),
        smtp=_smtp("smtp.libero.it"),
        domains=("libero.it", "iol.it", "blu.it", "inwind.it", "giallo.it"),
    ),
    Provider(
        name="Seznam",
        imap=_imap("imap.seznam.cz"),
        smtp=_smtp("smtp.seznam.cz"),
        domains=("seznam.cz", "email.cz", "post.cz", "spoluzaci.cz"),
    ),
    Provider(
        name="Naver",
        imap=_imap("imap.naver.com"),
        smtp=_smtp("smtp.naver.com"),
        domains=("naver.com",),
        notes=(_switch("Naver Mail"),),
    ),
    Provider(
        name="QQ Mail",
        imap=_imap("imap.qq.com"),
        smtp=_smtp("smtp.qq.com"),
        domains=("qq.com", "foxmail.com"),
        notes=(_AUTHORISATION_CODE,),
    ),
    Provider(
        name="NetEase 163",
        imap=_imap("imap.163.com"),
        smtp=_smtp("smtp.163.com"),
        domains=("163.com",),
        notes=(_AUTHORISATION_CODE,),
    ),
    Provider(
        name="NetEase 126",
        imap=_imap("imap.126.com"),
        smtp=_smtp("smtp.126.com"),
        domains=("126.com",),
        notes=(_AUTHORISATION_CODE,),
    ),
    # Hosts of other people's domains.
    Provider(name="Migadu", imap=_imap("imap.migadu.com"), smtp=_smtp("smtp.migadu.com")),
    Provider(name="IONOS", imap=_imap("imap.ionos.com"), smtp=_smtp("smtp.ionos.com")),
    Provider(name="IONOS (Germany)", imap=_imap("imap.ionos.de"), smtp=_smtp("smtp.ionos.de")),
    Provider(name="OVHcloud", imap=_imap("ssl0.ovh.net"), smtp=_smtp("ssl0.ovh.net")),
    Provider(name="Gandi", imap=_imap("mail.gandi.net"), smtp=_smtp("mail.gandi.net")),
    Provider(
        name="Rackspace", imap=_imap("secure.emailsrvr.com"), smtp=_smtp("secure.emailsrvr.com")
    ),
    Provider(name="DreamHost", imap=_imap("imap.dreamhost.com"), smtp=_smtp("smtp.dreamhost.com")),
    Provider(name="one.com", imap=_imap("imap.one.com"), smtp=_smtp("send.one.com")),
    Provider(name="STRATO", imap=_imap("imap.strato.de"), smtp=_smtp("smtp.strato.de")),
    Provider(
        name="Infomaniak", imap=_imap("mail.infomaniak.com"), smtp=_smtp("mail.infomaniak.com")
    ),
)


def _hosts(provider: Provider) -> set[str]:
    """Its hosts, but for Bridge's loopback address: what listens there is anybody's."""
    return {provider.imap.host, provider.smtp.host, *provider.other_hosts} - {"127.0.0.1"}


_BY_DOMAIN = {domain: provider for provider in PROVIDERS for domain in provider.domains}
# Reversed, so that the first in the table wins: a company's domain on Microsoft's servers is no Outlook.com.
_BY_HOST = {host: provider for provider in reversed(PROVIDERS) for host in _hosts(provider)}
