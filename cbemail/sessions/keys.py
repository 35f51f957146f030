"""Keys for every purpose, derived from SECRET_KEY, which itself is never used to encrypt or sign anything."""

from collections.abc import Sequence

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_SALT = b"cbemail"  # RFC 5869 3.1: need not be secret; sets our keys apart from another program's


class KeyRing:
    """For each purpose one 256-bit key a secret, newest first (RFC 5869, HKDF-SHA256).

    What is made under one purpose means nothing under another: a token signed with the cursor key is no access
    token. The first key seals and signs; the others still open and verify, so that a secret can be replaced
    without a moment at which nothing works.
    """

    def __init__(self, secret_keys: Sequence[str]) -> None:
        if not secret_keys:
            raise ValueError("a key ring needs a secret")
        self._secrets = [secret.encode() for secret in secret_keys]
        self._derived: dict[str, tuple[bytes, ...]] = {}

    def keys(self, purpose: str) -> tuple[bytes, ...]:
        """The keys for ``purpose``, newest first. The purpose is part of a format: renaming it changes the keys."""
        if purpose not in self._derived:
            info = f"cbemail/v1/{purpose}".encode()
            self._derived[purpose] = tuple(_derive(secret, info) for secret in self._secrets)
        return self._derived[purpose]


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=info).derive(secret)
