"""The mail providers known by heart: which servers an address has, and what is peculiar about them.

From the providers' own set-up pages. Submission is over TLS on port 465 where they offer it (RFC 8314 3.3).
"""

from msgspec import structs

from cbemail.hosts import Security
from cbemail.sessions.provider import ADDRESS, LOCAL_PART, Endpoint, Provider


def _imap(host: str, *, username: str = ADDRESS) -> Endpoint:
    return Endpoint(host, 993, Security.TLS, username)


def _smtp(host: str, *, username: str = ADDRESS) -> Endpoint:
    return Endpoint(host, 465, Security.TLS, username)


def _submission(host: str) -> Endpoint:
    return Endpoint(host, 587, Security.STARTTLS)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _app_password(provider: str, page: str) -> str:
    return (
        f"{provider} needs an app password, made in the account's security settings ({page}): "
        "the account's own password is refused."
    )


def _switch(provider: str, page: str = "") -> str:
    where = f" ({page})" if page else ""
    return f"Access over IMAP is off until it is switched on in the settings of {provider}{where}."


_GMAIL = (
    "Gmail needs an app password (with 2-Step Verification on, https://support.google.com/accounts/answer/185833) or "
    "an OAuth2 access token: the account's own password is refused."
)
_PROTON = (
    "Proton Mail is reached through Proton Mail Bridge (https://proton.me/mail/bridge), on the machine this service "
    "runs on: log in with the password Bridge shows, allow 127.0.0.1 in ALLOW_MAIL_NETWORKS and name Bridge's "
    "certificate in MAIL_CA_FILE."
)
_MICROSOFT_OAUTH2 = (
    "Microsoft accepts OAuth2 access tokens only: passwords, app passwords too, are refused "
    "(https://learn.microsoft.com/exchange/clients-and-mobile-in-exchange-online/"
    "deprecation-of-basic-authentication-exchange-online)."
)
_ZOHO = (
    _switch("Zoho Mail", "https://www.zoho.com/mail/help/imap-access.html"),
    "With two-factor sign-in, Zoho needs an app password (https://www.zoho.com/mail/help/imap-access.html).",
)
_YANDEX = "https://yandex.com/support/mail/mail-clients/others.html"


def _authorisation_code(page: str) -> str:
    return f"Log in with the authorisation code made in the web settings ({page}), not with the account's password."


def _zoho(name: str, top_level: str) -> tuple[Provider, Provider]:
    """Its own addresses, and those of organisations, which have servers to themselves."""
    own, other = (
        Provider(
            name=name,
            imap=_imap(f"imap{servers}.zoho.{top_level}"),
            smtp=_smtp(f"smtp{servers}.zoho.{top_level}"),
            files_own_sent=True,
            notes=_ZOHO,
        )
        for servers in ("", "pro")
    )
    return (
        structs.replace(own, domains=(f"zoho.{top_level}", f"zohomail.{top_level}")),
        structs.replace(other, exchangers=(f"zoho.{top_level}",)),
    )


PROVIDERS = (
    Provider(
        name="Gmail",
        imap=_imap("imap.gmail.com"),
        smtp=_smtp("smtp.gmail.com"),
        domains=("gmail.com", "googlemail.com"),
        other_hosts=("imap.googlemail.com", "smtp.googlemail.com"),
        exchangers=("google.com", "googlemail.com"),
        files_own_sent=True,
        notes=(_GMAIL,),
    ),
    Provider(
        name="Microsoft 365",
        imap=_imap("outlook.office365.com"),
        smtp=_submission("smtp.office365.com"),
        other_hosts=("imap.office365.com", "outlook.office.com"),
        exchangers=("mail.protection.outlook.com", "mx.microsoft"),
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
        exchangers=("olc.protection.outlook.com",),
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
        notes=(_app_password("Yahoo", "https://help.yahoo.com/kb/SLN15241.html"),),
    ),
    Provider(
        name="AOL",
        imap=_imap("imap.aol.com"),
        smtp=_smtp("smtp.aol.com"),
        domains=_listed("""
            aol.com aim.com aol.de aol.es aol.fr aol.it aol.co.uk netscape.net compuserve.com
        """),
        notes=(
            _app_password("AOL", "https://help.aol.com/articles/Create-and-manage-app-password"),
        ),
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
            (
                "AT&T needs a secure mail key in place of the password; it is made in the account's profile "
                "(https://www.att.com/support/article/email-support/KM1010523/)."
            ),
        ),
    ),
    Provider(
        name="iCloud",
        imap=_imap("imap.mail.me.com", username=LOCAL_PART),
        smtp=_submission("smtp.mail.me.com"),
        domains=("icloud.com", "me.com", "mac.com"),
        exchangers=("mail.icloud.com",),
        notes=(
            _app_password("iCloud", "https://support.apple.com/102654"),
            "With a domain of your own, give the name of the iCloud address as username.",
        ),
    ),
    Provider(
        name="Fastmail",
        imap=_imap("imap.fastmail.com"),
        smtp=_smtp("smtp.fastmail.com"),
        domains=("fastmail.com", "fastmail.fm"),
        other_hosts=("mail.messagingengine.com",),
        exchangers=("messagingengine.com",),
        notes=(
            _app_password("Fastmail", "https://www.fastmail.com/help/clients/apppassword.html"),
        ),
    ),
    *_zoho("Zoho Mail", "com"),
    *_zoho("Zoho Mail (EU)", "eu"),
    *_zoho("Zoho Mail (India)", "in"),
    Provider(
        name="Proton Mail",
        imap=Endpoint("127.0.0.1", 1143, Security.STARTTLS),
        smtp=Endpoint("127.0.0.1", 1025, Security.STARTTLS),
        domains=("proton.me", "protonmail.com", "protonmail.ch", "pm.me"),
        exchangers=("protonmail.ch",),
        files_own_sent=True,
        notes=(_PROTON,),
    ),
    Provider(
        name="GMX",
        imap=_imap("imap.gmx.net"),
        smtp=_smtp("mail.gmx.net"),
        domains=("gmx.net", "gmx.de", "gmx.at", "gmx.ch", "gmx.eu", "gmx.org"),
        notes=(_switch("GMX", "https://hilfe.gmx.net/pop-imap/einschalten.html"),),
    ),
    Provider(
        name="GMX (international)",
        imap=_imap("imap.gmx.com"),
        smtp=_smtp("mail.gmx.com"),
        domains=("gmx.com", "gmx.us", "gmx.co.uk", "gmx.es", "gmx.fr", "gmx.it"),
        notes=(_switch("GMX", "https://support.gmx.com/pop-imap/toggle.html"),),
    ),
    Provider(
        name="WEB.DE",
        imap=_imap("imap.web.de", username=LOCAL_PART),
        smtp=_smtp("smtp.web.de", username=LOCAL_PART),
        domains=("web.de",),
        notes=(_switch("WEB.DE", "https://hilfe.web.de/pop-imap/einschalten.html"),),
    ),
    Provider(
        name="mail.com",
        imap=_imap("imap.mail.com"),
        smtp=_smtp("smtp.mail.com"),
        domains=("mail.com", "email.com", "post.com", "usa.com", "europe.com"),
        notes=(_switch("mail.com", "https://support.mail.com"),),
    ),
    Provider(
        name="T-Online",
        imap=_imap("secureimap.t-online.de"),
        smtp=_smtp("securesmtp.t-online.de"),
        domains=("t-online.de", "magenta.de"),
        notes=(
            (
                "T-Online needs the e-mail password, set in the customer centre "
                "(https://www.telekom.de/hilfe/apps-dienste/e-mail/programme/passwort-verwalten): "
                "the login password is refused."
            ),
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
        exchangers=("mailbox.org",),
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
        exchangers=("runbox.com",),
    ),
    Provider(
        name="Yandex",
        imap=_imap("imap.yandex.com"),
        smtp=_smtp("smtp.yandex.com"),
        domains=_listed("""
            yandex.com yandex.ru ya.ru yandex.by yandex.kz yandex.ua narod.ru
        """),
        other_hosts=("imap.yandex.ru", "smtp.yandex.ru"),
        exchangers=("yandex.net", "yandex.ru"),
        notes=(_switch("Yandex Mail", _YANDEX), _app_password("Yandex", _YANDEX)),
    ),
    Provider(
        name="Mail.ru",
        imap=_imap("imap.mail.ru"),
        smtp=_smtp("smtp.mail.ru"),
        domains=("mail.ru", "bk.ru", "inbox.ru", "list.ru", "internet.ru"),
        exchangers=("mail.ru",),
        notes=(_app_password("Mail.ru", "https://help.mail.ru/mail/security/protection/external"),),
    ),
    Provider(
        name="Orange",
        imap=_imap("imap.orange.fr"),
        smtp=_smtp("smtp.orange.fr"),
        domains=("orange.fr", "wanadoo.fr"),
    ),
    Provider(
        name="Free",
        imap=_imap("imap.free.fr", username=LOCAL_PART),
        smtp=_smtp("smtp.free.fr", username=LOCAL_PART),
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
        notes=(
            _switch(
                "Naver Mail",
                "https://help.naver.com/service/30029/contents/21342?osType=PC&lang=ko",
            ),
        ),
    ),
    Provider(
        name="QQ Mail",
        imap=_imap("imap.qq.com"),
        smtp=_smtp("smtp.qq.com"),
        domains=("qq.com", "foxmail.com"),
        notes=(_authorisation_code("https://service.mail.qq.com"),),
    ),
    Provider(
        name="NetEase 163",
        imap=_imap("imap.163.com"),
        smtp=_smtp("smtp.163.com"),
        domains=("163.com",),
        notes=(_authorisation_code("https://help.mail.163.com"),),
    ),
    Provider(
        name="NetEase 126",
        imap=_imap("imap.126.com"),
        smtp=_smtp("smtp.126.com"),
        domains=("126.com",),
        notes=(_authorisation_code("https://help.mail.163.com"),),
    ),
    # Hosts of other people's domains.
    Provider(
        name="Migadu",
        imap=_imap("imap.migadu.com"),
        smtp=_smtp("smtp.migadu.com"),
        exchangers=("migadu.com",),
    ),
    Provider(
        name="IONOS",
        imap=_imap("imap.ionos.com"),
        smtp=_smtp("smtp.ionos.com"),
        exchangers=("ionos.com", "1and1.com", "perfora.net"),
    ),
    Provider(
        name="IONOS (Germany)",
        imap=_imap("imap.ionos.de"),
        smtp=_smtp("smtp.ionos.de"),
        exchangers=("ionos.de", "kundenserver.de", "schlund.de"),
    ),
    Provider(
        name="OVHcloud",
        imap=_imap("ssl0.ovh.net"),
        smtp=_smtp("ssl0.ovh.net"),
        exchangers=("mail.ovh.net",),
    ),
    Provider(
        name="Gandi",
        imap=_imap("mail.gandi.net"),
        smtp=_smtp("mail.gandi.net"),
        exchangers=("mail.gandi.net",),
    ),
    Provider(
        name="Rackspace",
        imap=_imap("secure.emailsrvr.com"),
        smtp=_smtp("secure.emailsrvr.com"),
        exchangers=("emailsrvr.com",),
    ),
    Provider(
        name="DreamHost",
        imap=_imap("imap.dreamhost.com"),
        smtp=_smtp("smtp.dreamhost.com"),
        exchangers=("dreamhost.com",),
    ),
    Provider(
        name="one.com",
        imap=_imap("imap.one.com"),
        smtp=_smtp("send.one.com"),
        exchangers=("one.com",),
    ),
    Provider(
        name="STRATO",
        imap=_imap("imap.strato.de"),
        smtp=_smtp("smtp.strato.de"),
        exchangers=("rzone.de",),
    ),
    Provider(
        name="Infomaniak",
        imap=_imap("mail.infomaniak.com"),
        smtp=_smtp("mail.infomaniak.com"),
        exchangers=("infomaniak.ch",),
    ),
)
