"""What a batch holds about people, sealed with a key of its own: deleting that one key shreds all of it.

A key a batch rather than a ciphertext a row under the vault: rotating SECRET_KEY rewrites one small value, and sealing
costs two microseconds a row rather than forty. AES-256-GCM (NIST SP 800-38D) with random nonces: far fewer than 2^32
values are sealed under one key.
"""

import os
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_OCTETS = 12
SEAL_OCTETS = _NONCE_OCTETS + 16  # that a value grows by, with GCM's tag


class SealError(Exception):
    """The value does not open: another key, another place, or damage."""


class BatchKey:
    """Seals the parts of one batch. Each opens only where it was sealed for: ``place`` names it, as ``row/7``."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._cipher = AESGCM(secret)

    @classmethod
    def new(cls) -> Self:
        return cls(AESGCM.generate_key(bit_length=256))

    def seal(self, place: str, content: bytes) -> bytes:
        nonce = os.urandom(_NONCE_OCTETS)
        return nonce + self._cipher.encrypt(nonce, content, place.encode())

    def open(self, place: str, sealed: bytes) -> bytes:
        """Raises SealError."""
        try:
            return self._cipher.decrypt(
                sealed[:_NONCE_OCTETS], sealed[_NONCE_OCTETS:], place.encode()
            )
        except (InvalidTag, ValueError) as exc:
            raise SealError("the sealed value does not open") from exc
