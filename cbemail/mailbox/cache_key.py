"""How cached values are written: packed, and sealed with the key of their session, so that deleting it shreds them all."""

import os
import zlib
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, Generic, Self, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

V = TypeVar("V")

# What a value is called within its session and shape, as a folder's path and a UID.
Name = tuple[str | int, ...]

_MEANING = 1  # counted up where a value is to be read otherwise, though its type stays the same
_NONCE_OCTETS = 12
_PLACE_OCTETS = 16


class CacheKeyError(Exception):
    """The value cannot be written; or does not open: another key, another place, or damage."""


class Shape(Generic[V]):
    """A type of values. What another version of it, or of cbemail, has written is not found: its ``format`` tells."""

    def __init__(self, name: str, kind: type[V]) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        schema = msgspec.json.encode(msgspec.json.schema(kind))
        written_by = f"{name} {_MEANING} {version('cbemail')} ".encode()
        self.format = blake2b(written_by + schema, digest_size=8).digest()

    def pack(self, value: V) -> bytes:
        """The value as octets. Raises CacheKeyError."""
        try:
            return msgspec.msgpack.encode(value)
        except (ValueError, OverflowError) as exc:  # half a character, or a number beyond 64 bits
            raise CacheKeyError("the value cannot be written") from exc

    def unpack(self, packed: bytes) -> V:
        """What `pack` was given. Raises CacheKeyError."""
        try:
            return self._decode(packed)
        except msgspec.DecodeError as exc:
            raise CacheKeyError("the value cannot be read") from exc


class CacheKey:
    """Seals the cached values of one session (AES-256-GCM). Each opens only in the place that it was sealed for.

    Places are digests under the key: the file tells neither folders nor UIDs.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._cipher = AESGCM(secret)
        self._places = blake2b(b"places", key=secret, digest_size=32).digest()

    @classmethod
    def new(cls) -> Self:
        return cls(AESGCM.generate_key(bit_length=256))

    def place(self, shape: Shape[Any], name: Name) -> bytes:
        """Where the value of this name is."""
        spelt = repr((shape.format, name))  # total: a client may name a folder by half a character
        return blake2b(spelt.encode(), key=self._places, digest_size=_PLACE_OCTETS).digest()

    def seal(self, place: bytes, packed: bytes) -> bytes:
        """``packed`` in few octets, for this place only."""
        nonce = os.urandom(_NONCE_OCTETS)
        return nonce + self._cipher.encrypt(nonce, zlib.compress(packed, 1), place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """What was sealed for this place. Raises CacheKeyError."""
        nonce, rest = sealed[:_NONCE_OCTETS], sealed[_NONCE_OCTETS:]
        try:
            return zlib.decompress(self._cipher.decrypt(nonce, rest, place))
        except (InvalidTag, ValueError, zlib.error) as exc:
            raise CacheKeyError("the sealed value does not open") from exc
