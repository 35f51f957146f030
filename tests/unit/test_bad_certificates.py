"""A server whose certificate is not good learns no password, over IMAP or SMTP, with TLS at once or after STARTTLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cbemail.errors import UpstreamError
from cbemail.hosts import MailHosts, MailServer, Password, Security
from cbemail.imap.connection import ImapConnection
from cbemail.imap.login import open_imap
from cbemail.smtp.connection import SubmissionConnection, open_submission
from tests.fakes.script import ScriptedServer
from tests.fakes.scripted_imap import PASSWORD, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
LOCALHOST = x509.DNSName("localhost")
# Two object identifiers of one length (RFC 8017 appendix C), in DER.
RSA_WITH_SHA256 = bytes.fromhex("06092a864886f70d01010b")
RSA_WITH_SHA1 = bytes.fromhex("06092a864886f70d010105")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    def context(self, directory: Path) -> ssl.SSLContext:
        """A server that shows it, whatever it is worth."""
        file = directory / "server.pem"
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(self.certificate.public_bytes(Encoding.PEM) + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.load_cert_chain(file)
        return context


def pair(
    issuer: Pair | None = None,
    *,
    common_name: str = "a mail server",
    names: Sequence[x509.GeneralName] = (LOCALHOST,),
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
) -> Pair:
    """A server's certificate, by ``issuer`` or by itself. As it stands, everything is right."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    issuer_name = issuer.certificate.subject if issuer else name
    builder = (
        x509.CertificateBuilder(issuer_name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def new_authority() -> Pair:
    key = rsa.generate_private_key(65_537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def signed_with_sha1(authority: Pair) -> Pair:
    """By hand: nothing on this machine makes such a certificate any more."""
    good = pair(authority)
    assert isinstance(authority.key, rsa.RSAPrivateKey)
    to_sign = good.certificate.tbs_certificate_bytes.replace(RSA_WITH_SHA256, RSA_WITH_SHA1)
    signature = authority.key.sign(to_sign, PKCS1v15(), hashes.SHA1())
    whole = good.certificate.public_bytes(Encoding.DER).replace(RSA_WITH_SHA256, RSA_WITH_SHA1)
    forged = whole.replace(good.certificate.signature, signature)
    return Pair(x509.load_der_x509_certificate(forged), good.key)


BAD: dict[str, Callable[[Pair], Pair]] = {
    "expired": partial(pair, begins=NOW - 3 * DAY, ends=NOW - DAY),
    "not yet valid": partial(pair, begins=NOW + DAY, ends=NOW + 3 * DAY),
    "of another name": partial(pair, names=[x509.DNSName("mail.example")]),
    "of names below the name": partial(pair, names=[x509.DNSName("*.localhost")]),
    "with the name as its common name only": partial(pair, common_name="localhost", names=[]),
    "of an authority nobody knows": lambda _: pair(new_authority()),
    "signed by itself": lambda _: pair(),
    "signed with SHA-1": signed_with_sha1,
}

Connection = ImapConnection | SubmissionConnection
Connect = Callable[[MailServer, Password, MailHosts], Coroutine[Any, Any, Connection]]
PROTOCOLS: dict[str, tuple[type[ScriptedServer], Connect]] = {
    "imap": (ScriptedImap, open_imap),
    "smtp": (ScriptedSmtp, open_submission),
}
protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
securities = pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])


@pytest.fixture(scope="module")
def authority() -> Pair:
    return new_authority()


@pytest.fixture
def hosts(authority: Pair, tmp_path: Path) -> MailHosts:
    """Trusts the authority, and takes any name for this machine's."""
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    return MailHosts(allow_networks=[ip_network("127.0.0.0/8")], allow_ports=(), ca_file=file)


@pytest.mark.parametrize("fault", BAD)
@protocols
@securities
async def test_a_server_with_a_bad_certificate_learns_no_password(
    hosts: MailHosts, authority: Pair, tmp_path: Path, protocol: str, security: Security, fault: str
) -> None:
    kind, connect = PROTOCOLS[protocol]
    tls = BAD[fault](authority).context(tmp_path)
    async with kind(tls=tls, implicit_tls=security is Security.TLS) as server:
        address = MailServer("localhost", server.port, security, "joe@example.org")

        with pytest.raises(UpstreamError, match="certificate"):
            await connect(address, Password(PASSWORD), hosts)

        assert server.count("AUTH") == server.count("AUTHENTICATE") == server.count("LOGIN") == 0
        assert PASSWORD.encode() not in server.received


@protocols
@securities
async def test_a_server_with_a_good_certificate_is_logged_in_to(
    hosts: MailHosts, authority: Pair, tmp_path: Path, protocol: str, security: Security
) -> None:
    """Or the test above would pass with any fault in common to all."""
    kind, connect = PROTOCOLS[protocol]
    tls = pair(authority).context(tmp_path)
    async with kind(tls=tls, implicit_tls=security is Security.TLS) as server:
        address = MailServer("localhost", server.port, security, "joe@example.org")

        connection = await connect(address, Password(PASSWORD), hosts)
        connection.abort()

        assert server.count("AUTH") + server.count("AUTHENTICATE") == 1
