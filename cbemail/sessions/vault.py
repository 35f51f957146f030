"""Secrets at rest: sealed so that they open only for the session and the field they were sealed for."""

from base64 import urlsafe_b64encode

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from msgspec import Struct

from cbemail.hosts import AccessToken, Password, Secret
from cbemail.ids import SessionId
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.oauth2 import Grant


class VaultError(Exception):
    """The sealed value cannot be opened: another key, another session or field, or not one of ours."""


class _Sealed(Struct, frozen=True, array_like=True):
    """What is encrypted. Fernet authenticates no context, so the context is inside and compared on opening."""

    version: int
    session_id: str
    field: str
    secret: bytes


class _Credentials(Struct, frozen=True, array_like=True):
    """The two secrets of a session, each with its kind, and what access tokens are renewed with."""

    imap: tuple[str, str]
    smtp: tuple[str, str]
    grant: Grant | None = None


_VERSION = 1
_CREDENTIALS = "credentials"
_encoder = msgspec.msgpack.Encoder()
_sealed = msgspec.msgpack.Decoder(_Sealed)
_credentials = msgspec.msgpack.Decoder(_Credentials)


class Vault:
    """Seals with the newest key and opens with any (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, keyring: KeyRing) -> None:
        fernets = [Fernet(urlsafe_b64encode(key)) for key in keyring.keys("vault")]
        self._newest = fernets[0]
        self._all = MultiFernet(fernets)

    def seal(self, session_id: SessionId, field: str, secret: bytes) -> bytes:
        return self._newest.encrypt(_encoder.encode(_Sealed(_VERSION, session_id, field, secret)))

    def open(self, session_id: SessionId, field: str, sealed: bytes) -> bytes:
        """What was sealed for this session and this field.

        A value copied from another row, by somebody who can write to the store but has no key, decrypts well;
        it is refused because it names the row it belongs to.

        Raises:
            VaultError: it does not decrypt, or was sealed for something else.
        """
        try:
            content = _sealed.decode(self._all.decrypt(sealed))
        except (InvalidToken, msgspec.DecodeError) as exc:
            raise VaultError("the sealed value does not open") from exc
        if (content.version, content.session_id, content.field) != (_VERSION, session_id, field):
            raise VaultError("the value was sealed for another session or field")
        return content.secret

    def seal_secrets(
        self, session_id: SessionId, imap: Secret, smtp: Secret, grant: Grant | None = None
    ) -> bytes:
        """The secrets of a session, as one value for `SessionRecord.sealed_credentials`. No two are the same."""
        content = _encoder.encode(_Credentials(_kept(imap), _kept(smtp), grant))
        return self.seal(session_id, _CREDENTIALS, content)

    def open_secrets(
        self, session_id: SessionId, sealed: bytes
    ) -> tuple[Secret, Secret, Grant | None]:
        """The IMAP and the SMTP secret of a session, and what they are renewed with.

        Raises:
            VaultError: they cannot be opened; the session needs its credentials again.
        """
        try:
            content = _credentials.decode(self.open(session_id, _CREDENTIALS, sealed))
        except msgspec.DecodeError as exc:
            raise VaultError("the sealed value holds no credentials") from exc
        return _restored(*content.imap), _restored(*content.smtp), content.grant

    def needs_rotation(self, sealed: bytes) -> bool:
        """Whether it was sealed with another key than the newest."""
        try:
            self._newest.decrypt(sealed)
        except InvalidToken:
            return True
        return False

    def rotate(self, sealed: bytes) -> bytes:
        """The same content under the newest key.

        Raises:
            VaultError: no key opens it.
        """
        try:
            return self._all.rotate(sealed)
        except InvalidToken as exc:
            raise VaultError("the sealed value does not open") from exc


def _kept(secret: Secret) -> tuple[str, str]:
    match secret:
        case Password(value):
            return "password", value
        case AccessToken(value):
            return "access_token", value


def _restored(kind: str, value: str) -> Secret:
    match kind:
        case "password":
            return Password(value)
        case "access_token":
            return AccessToken(value)
        case _:
            raise VaultError(f"unknown kind of secret {kind!r}")
