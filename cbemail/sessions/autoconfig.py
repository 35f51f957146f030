"""Reading autoconfiguration documents, Thunderbird's format for the mail servers of a domain (pure).

They come from whoever holds a domain, so nothing of them is believed but what is asked for: no DTD, no text of theirs
in an answer but a short name and addresses of help pages, no server without TLS.
"""

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError, XMLParser  # nosec B405 - see _parse

from cbemail.hosts import Security
from cbemail.sessions.provider import ADDRESS, DOMAIN, LOCAL_PART, Endpoint, Setup, Source

LARGEST = 64 * 1024  # octets of a document

_SECURITIES = {"SSL": Security.TLS, "STARTTLS": Security.STARTTLS}
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_LONGEST_NAME = 80
_PAGE = re.compile(r"https://[!-~]{1,300}", re.ASCII)
_LOGIN_NAME = re.compile(r"[!-~]{1,200}", re.ASCII)
_PLACEHOLDER = re.compile(r"%[A-Z]+%", re.ASCII)
_KNOWN = {ADDRESS, LOCAL_PART, DOMAIN}


def read_autoconfig(document: bytes, domain: str) -> Setup | None:
    """The servers that a document names for ``domain``: None where it names none that can be used, or is none.

    Servers with TLS from the first octet are preferred, then the order of the document. The hosts are as written
    there, and yet to be vetted.
    """
    root = _parse(document)
    provider = root.find("emailProvider") if root is not None else None
    if provider is None:
        return None
    imap = _best(provider.iterfind("incomingServer[@type='imap']"), domain)
    smtp = _best(provider.iterfind("outgoingServer[@type='smtp']"), domain)
    if imap is None or smtp is None:
        return None
    name = _text(provider, "displayName")
    return Setup(
        imap=imap,
        smtp=smtp,
        source=Source.AUTOCONFIG,
        provider=name if name.isprintable() and 0 < len(name) <= _LONGEST_NAME else None,
        notes=tuple(_notes(provider)),
    )


def _parse(document: bytes) -> Element | None:
    """The root. Without a DTD no entity can be declared, so there is nothing to expand, and nothing to fetch.

    The parser gets text, not octets: in no encoding of the document's choice can a DTD look like something else.
    """
    text = document.decode("utf-8-sig", "replace")
    if len(document) > LARGEST or "<!DOCTYPE" in text:
        return None
    parser = XMLParser()  # noqa: S314 # nosec B314 - there is no DTD in it
    try:
        parser.feed(text)
        root: Element = parser.close()
    except ParseError:
        return None
    return root if root.tag == "clientConfig" else None


def _best(servers: Iterator[Element], domain: str) -> Endpoint | None:
    usable = [endpoint for server in servers if (endpoint := _endpoint(server, domain)) is not None]
    return min(usable, key=lambda endpoint: endpoint.security is not Security.TLS, default=None)


def _endpoint(server: Element, domain: str) -> Endpoint | None:
    host = _text(server, "hostname").replace(DOMAIN, domain)
    port = _text(server, "port")
    security = _SECURITIES.get(_text(server, "socketType"))
    if not host or security is None or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        return None
    return Endpoint(host, int(port), security, _login_name(_text(server, "username")))


def _login_name(template: str) -> str:
    """One without a placeholder would be the same for everybody, and one with others cannot be filled in: the address
    is what most servers take."""
    placeholders = set(_PLACEHOLDER.findall(template))
    if _LOGIN_NAME.fullmatch(template) and placeholders and placeholders <= _KNOWN:
        return template
    return ADDRESS


def _notes(provider: Element) -> Iterator[str]:
    ways = {(way.text or "").strip() for way in provider.iterfind("incomingServer/authentication")}
    if ways == {"OAuth2"}:
        yield "This provider accepts OAuth2 access tokens only: passwords are refused."
    enabling = _page(provider, "enable", "visiturl")
    if enabling is not None:
        yield f"Access for mail programs may have to be switched on first ({enabling})."
    help_page = _page(provider, "documentation", "url")
    if help_page is not None:
        yield f"The provider explains how mail programs are set up ({help_page})."


def _page(provider: Element, tag: str, attribute: str) -> str | None:
    pages = (element.get(attribute, "") for element in provider.iterfind(tag))
    return next((page for page in pages if _PAGE.fullmatch(page)), None)


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()
