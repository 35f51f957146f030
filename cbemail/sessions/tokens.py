"""Who is asking: access tokens of a session's client, refresh tokens, and the API keys of trusted services."""

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from hmac import compare_digest
from typing import Annotated, Any

import jwt
import msgspec
from msgspec import Meta, Struct

from cbemail.clock import Clock, now
from cbemail.errors import TokenExpired, Unauthenticated
from cbemail.ids import SessionId
from cbemail.sessions.keys import KeyRing
from cbemail.store.records import RefreshTokenRecord

# ---- access tokens


class IssuedToken(Struct, frozen=True):
    """An access token, and for how long it is good (seconds). Its repr does not show it."""

    token: str
    expires_in: int
    expires_at: datetime

    def __repr__(self) -> str:
        return f"IssuedToken(…, expires_at={self.expires_at.isoformat()})"


class Claims(Struct, frozen=True):
    """What a valid access token says. Whether the session still exists, the store knows."""

    session_id: SessionId
    expires_at: datetime
    token_id: str


_Seconds = Annotated[int, Meta(ge=0, le=253_402_300_799)]  # to the end of year 9999


class _Payload(Struct, frozen=True):
    """The claims of RFC 7519 4.1 as we write them; of the right type or the token is refused."""

    session_id: Annotated[str, Meta(min_length=1)]
    jti: Annotated[str, Meta(min_length=1)]
    exp: _Seconds
    iat: _Seconds
    nbf: _Seconds = 0


_ALGORITHM = "HS256"
_TYPE = "at+jwt"  # RFC 9068 2.1: no other kind of token, of ours or of anybody's, passes for an access token
_ISSUER = "cbemail"
_AUDIENCE = "cbemail/api"
_REQUIRED = ["exp", "iat", "jti", "iss", "aud", "session_id"]
_MAX_TOKEN = 4096
_LEEWAY = timedelta(seconds=60)  # the clocks of replicas differ

# Three canonical base64url segments (RFC 7515 2: no padding, no line breaks), the last of 32 octets: its final
# character carries two unused bits, which must be zero, so that a token has one spelling only.
_SHAPE = re.compile(r"([\w-]+)\.[\w-]+\.[\w-]{42}[AEIMQUYcgkosw048]", re.ASCII)


class Tokens:
    """Issues and checks tokens. Keys come from the ring; an older key still verifies, the newest signs."""

    def __init__(
        self, keyring: KeyRing, *, expire_minutes: int, refresh_days: int, clock: Clock = now
    ) -> None:
        self._keys = keyring.keys("access-token")
        self._lifetime = timedelta(minutes=expire_minutes)
        self._refresh_lifetime = timedelta(days=refresh_days)
        self._clock = clock
        self._header = self._sign({}).partition(".")[0]
        self._verified = _ClaimsCache(10_000)

    def issue(self, session_id: SessionId) -> IssuedToken:
        issued_at = self._clock()
        expires_at = issued_at + self._lifetime
        token = self._sign(
            {
                "iss": _ISSUER,
                "aud": _AUDIENCE,
                "session_id": session_id,
                "jti": secrets.token_hex(16),
                "iat": int(issued_at.timestamp()),
                "exp": int(expires_at.timestamp()),
            }
        )
        return IssuedToken(token, int(self._lifetime.total_seconds()), expires_at)

    def verify(self, token: str) -> Claims:
        """What the token says, if it is one of ours and still good.

        A token that verified once is remembered by its hash: checking a signature costs 100 µs, finding it again
        two. Its expiry is looked at every time.

        Raises:
            Unauthenticated: it is no access token of ours.
            TokenExpired: it was.
        """
        shape = _SHAPE.fullmatch(token) if len(token) <= _MAX_TOKEN else None
        # Our header has one spelling. Comparing it leaves no `alg`, `kid`, `jku` or `crit` of somebody else's to
        # interpret, and no JSON of a stranger's to parse.
        if shape is None or shape[1] != self._header:
            raise Unauthenticated(_NOT_OURS)
        digest = sha256(token.encode("ascii")).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._check(token)
            self._verified.put(digest, claims)
        if claims.expires_at <= self._clock():
            raise TokenExpired("The token has expired: ask for a new one.")
        return claims

    def _check(self, token: str) -> Claims:
        payload = self._signed_payload(token)
        latest = (self._clock() + _LEEWAY).timestamp()
        if payload.iat > latest or payload.nbf > latest:
            raise Unauthenticated(_NOT_OURS)
        expires_at = datetime.fromtimestamp(payload.exp, UTC)
        return Claims(SessionId(payload.session_id), expires_at, payload.jti)

    def _signed_payload(self, token: str) -> _Payload:
        for key in self._keys:
            try:
                payload = jwt.decode(
                    token,
                    key,
                    algorithms=[_ALGORITHM],
                    issuer=_ISSUER,
                    audience=_AUDIENCE,
                    # Times are judged by our clock, which tests hold still.
                    options={
                        "require": _REQUIRED,
                        "strict_aud": True,
                        "verify_exp": False,
                        "verify_iat": False,
                        "verify_nbf": False,
                    },
                )
                return msgspec.convert(payload, _Payload)
            except jwt.InvalidSignatureError:
                continue  # perhaps signed with an older key
            except (jwt.InvalidTokenError, msgspec.ValidationError) as exc:
                raise Unauthenticated(_NOT_OURS) from exc
        raise Unauthenticated(_NOT_OURS)

    def _sign(self, payload: dict[str, Any]) -> str:
        return jwt.encode(payload, self._keys[0], algorithm=_ALGORITHM, headers={"typ": _TYPE})

    def new_refresh_token(self, session_id: SessionId) -> tuple[str, RefreshTokenRecord]:
        """A refresh token to give away, and the record to keep: from the store nobody can make the token."""
        token = _REFRESH_PREFIX + secrets.token_urlsafe(32)
        expires_at = self._clock() + self._refresh_lifetime
        return token, RefreshTokenRecord(hash_refresh_token(token), session_id, expires_at)


_NOT_OURS = "The token is not valid."  # always the same: what was wrong with it helps a forger only


class _ClaimsCache:
    """The claims of the tokens seen last, by the hash of the token. Keeps no token, and never more than ``size``."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._claims: OrderedDict[bytes, Claims] = OrderedDict()

    def get(self, digest: bytes) -> Claims | None:
        claims = self._claims.get(digest)
        if claims is not None:
            self._claims.move_to_end(digest)
        return claims

    def put(self, digest: bytes, claims: Claims) -> None:
        self._claims[digest] = claims
        if len(self._claims) > self._size:
            self._claims.popitem(last=False)


# ---- refresh tokens

_REFRESH_PREFIX = "cbr_"  # `logs` knows it too: such a token in a log line is blanked


def hash_refresh_token(text: str) -> bytes:
    """The name under which a refresh token is kept. It has 256 random bits, so a plain hash gives nothing away."""
    return sha256(_octets(text)).digest()


# ---- API keys

_MAX_API_KEY = 4096


class ApiKeys:
    """The keys of trusted services, kept as hashes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [sha256(_octets(key)).digest() for key in keys]

    @property
    def is_set(self) -> bool:
        return bool(self._hashes)

    def accepts(self, candidate: str) -> bool:
        """Whether it is one of the keys, in a time that says nothing about them.

        Hashes of equal length are compared, each in constant time, and always with all of the keys.
        """
        if len(candidate) > _MAX_API_KEY:
            return False
        digest = sha256(_octets(candidate)).digest()
        return any([compare_digest(digest, known) for known in self._hashes])  # noqa: C419 - no short cut


def _octets(text: str) -> bytes:
    """Total: a lone surrogate, which UTF-8 cannot spell, is no reason to fail."""
    return text.encode("utf-8", "backslashreplace")
