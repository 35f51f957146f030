"""Autoconfiguration documents: what is taken from one, and that nothing else of it is believed."""

from __future__ import annotations

import pytest

from cbemail.hosts import Security
from cbemail.sessions.autoconfig import LARGEST, read_autoconfig
from cbemail.sessions.provider import ADDRESS, Endpoint, Setup, Source

PASSWORD = "<authentication>password-cleartext</authentication>"


def server(
    kind: str,
    host: str = "mail.acme.org",
    port: object = 993,
    socket: str = "SSL",
    username: str = ADDRESS,
    authentication: str = PASSWORD,
) -> str:
    tag = "outgoingServer" if kind == "smtp" else "incomingServer"
    return (
        f'<{tag} type="{kind}"><hostname>{host}</hostname><port>{port}</port>'
        f"<socketType>{socket}</socketType><username>{username}</username>{authentication}</{tag}>"
    )


def document(*parts: str) -> bytes:
    body = "".join(parts)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<clientConfig version="1.1">'
        f'<emailProvider id="acme.org"><domain>acme.org</domain>{body}</emailProvider></clientConfig>'
    ).encode()


IMAP, SMTP = server("imap"), server("smtp", port=465)


def read(*parts: str) -> Setup:
    setup = read_autoconfig(document(*parts), "acme.org")
    assert setup is not None
    return setup


def test_a_document_names_both_servers_and_the_provider() -> None:
    setup = read(
        "<displayName>Acme Mail</displayName>",
        server("pop3", "pop.acme.org", 995),
        server("imap", "imap.acme.org"),
        server("smtp", "smtp.acme.org", 587, "STARTTLS", "%EMAILLOCALPART%"),
    )

    assert setup == Setup(
        imap=Endpoint("imap.acme.org", 993, Security.TLS, "%EMAILADDRESS%"),
        smtp=Endpoint("smtp.acme.org", 587, Security.STARTTLS, "%EMAILLOCALPART%"),
        source=Source.AUTOCONFIG,
        provider="Acme Mail",
    )


def test_of_several_servers_the_first_with_tls_from_the_beginning_is_taken() -> None:
    setup = read(
        server("imap", "a.acme.org", 143, "STARTTLS"),
        server("imap", "b.acme.org"),
        server("imap", "c.acme.org"),
        server("smtp", "d.acme.org", 587, "STARTTLS"),
        server("smtp", "e.acme.org", 2525, "STARTTLS"),
    )

    assert (setup.imap.host, setup.smtp.host) == ("b.acme.org", "d.acme.org")


def test_a_placeholder_is_filled_in_for_each_mailbox() -> None:
    setup = read(
        server("imap", "imap.%EMAILDOMAIN%", username="%EMAILLOCALPART%+%EMAILDOMAIN%"), SMTP
    )

    assert setup.imap.host == "imap.acme.org"
    assert setup.imap.server_for("joe@acme.org").username == "joe+acme.org"
    assert setup.imap.server_for('"%EMAILDOMAIN%"@acme.org').username == '"%EMAILDOMAIN%"+acme.org'


@pytest.mark.parametrize(
    "username", ["", "webmaster", "%REALNAME%", "%EMAILADDRESS%%SECRET%", "%EMAILADDRESS% x\ny"]
)
def test_a_login_name_that_cannot_be_made_is_the_address(username: str) -> None:
    assert read(server("imap", username=username), SMTP).imap.username == ADDRESS


@pytest.mark.parametrize(
    "unusable",
    [
        server("imap", socket="plain", port=143),
        server("imap", socket="ssl"),
        server("imap", socket=""),
        server("imap", host=""),
        server("imap", port=""),
        server("imap", port=0),
        server("imap", port=65536),
        server("imap", port="993 or so"),
        server("imap", port="\u0669\u0669\u0663"),
        server("pop3"),
        "",
    ],
)
def test_a_server_that_cannot_be_used_is_none(unusable: str) -> None:
    assert read_autoconfig(document(unusable, SMTP), "acme.org") is None


def test_both_servers_are_needed() -> None:
    assert read_autoconfig(document(IMAP), "acme.org") is None
    assert read_autoconfig(document(SMTP), "acme.org") is None


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"<html><emailProvider/></html>",
        b"<clientConfig/>",
        b"not XML at all",
        b"\xff\xfe\x00",
        document(IMAP, SMTP)[:-40],
        document(IMAP, SMTP).decode().encode("utf-16"),
        b"<clientConfig>" + b"<a>" * 20_000,
    ],
    ids=["empty", "html", "xhtml", "bare", "text", "octets", "truncated", "utf-16", "deep"],
)
def test_what_is_no_document_names_nothing(other: bytes) -> None:
    assert read_autoconfig(other, "acme.org") is None


def test_a_document_type_is_refused_and_so_is_every_entity() -> None:
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    doctype = f'<!DOCTYPE clientConfig [<!ENTITY l0 "lol">{laughs}]>'
    entity = document(server("imap", host="&l9;"), SMTP).replace(b"?>\n", b"?>" + doctype.encode())
    external = document(IMAP, SMTP).replace(
        b"?>\n", b'?><!DOCTYPE clientConfig SYSTEM "https://acme.org/x.dtd">'
    )

    assert read_autoconfig(entity, "acme.org") is None
    assert read_autoconfig(external, "acme.org") is None
    assert read_autoconfig(document(server("imap", host="&l9;"), SMTP), "acme.org") is None


def test_a_document_of_more_than_64_kb_is_not_read() -> None:
    padded = document(IMAP, SMTP, f"<!--{'x' * LARGEST}-->")

    assert read_autoconfig(padded, "acme.org") is None


def test_a_character_of_another_encoding_spoils_no_document() -> None:
    latin = document("<displayName>Post \xf6</displayName>", IMAP, SMTP).replace(
        b"\xc3\xb6", b"\xf6"
    )

    setup = read_autoconfig(latin, "acme.org")

    assert setup is not None
    assert setup.imap.host == "mail.acme.org"


@pytest.mark.parametrize("name", ["", "x" * 81, "Acme\x85Mail", "Acme&#10;Mail", "Acme\u202eliaM"])
def test_an_odd_name_is_not_shown(name: str) -> None:
    assert read(f"<displayName>{name}</displayName>", IMAP, SMTP).provider is None


# ---- notes


def test_a_provider_that_takes_no_passwords_is_told() -> None:
    oauth2 = "<authentication>OAuth2</authentication>"

    only = read(server("imap", authentication=oauth2), SMTP)
    either = read(server("imap", authentication=oauth2 + PASSWORD), SMTP)

    assert only.notes == (
        "This provider accepts OAuth2 access tokens only: passwords are refused.",
    )
    assert either.notes == ()


def test_notes_name_the_providers_own_pages_and_quote_nothing_else_of_it() -> None:
    setup = read(
        IMAP,
        SMTP,
        '<enable visiturl="https://acme.org/imap"><instruction>Send us money.</instruction></enable>',
        '<documentation url="http://acme.org/plain"/>',
        '<documentation url="https://acme.org/help"><descr>Send more.</descr></documentation>',
    )

    assert setup.notes == (
        "Access for mail programs may have to be switched on first (https://acme.org/imap).",
        "The provider explains how mail programs are set up (https://acme.org/help).",
    )


@pytest.mark.parametrize(
    "page", ["http://acme.org/", "javascript:alert(1)", "https://acme.org/a b", "https://"]
)
def test_a_page_that_is_no_https_address_is_not_named(page: str) -> None:
    assert read(IMAP, SMTP, f'<enable visiturl="{page}"/>').notes == ()
