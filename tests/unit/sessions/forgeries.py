"""Access tokens that are not ours, or not any more: each differs from a good one in one respect (RFC 8725).

A generator gives pairs: what is wrong with the token, and the token.
"""

import base64
import hmac
import json
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jwt

from cbemail.ids import SessionId
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.tokens import Tokens

SECRET = "kR7x_Qm2vT9-bW4zLp8sYd3nFg6hJc1aUe5iXo0"
OLD = "pL0w_Zk8cB3-rN6yHq1fVt5mSj9gDx2eAu7iKo4"
KEY = KeyRing([SECRET]).keys("access-token")[0]
SESSION = SessionId("ses_alice")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW = int(START.timestamp())


def encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def token_of(
    header: object,
    payload: object,
    *,
    key: bytes = KEY,
    digest: str = "sha256",
    end: str | None = None,
) -> str:
    """A token made by hand: whatever its header claims, signed with ``key``."""
    signed = f"{part(header)}.{part(payload)}"
    signature = encoded(hmac.digest(key, signed.encode(), digest)) if end is None else end
    return f"{signed}.{signature}"


def part(content: object) -> str:
    octets = (
        content
        if isinstance(content, bytes)
        else json.dumps(content, separators=(",", ":")).encode()
    )
    return encoded(octets)


HEADER = {"alg": "HS256", "typ": "at+jwt"}
CLAIMS: dict[str, Any] = {
    "iss": "cbemail",
    "aud": "cbemail/api",
    "session_id": SESSION,
    "jti": "0123456789abcdef",
    "iat": NOW,
    "exp": NOW + 600,
}


def signed(payload: object) -> str:
    """With the right header, spelt as ours is, and the right key: only the claims are wrong."""
    return jwt.api_jws.encode(
        payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
        KEY,
        algorithm="HS256",
        headers={"typ": "at+jwt"},
    )


def without(name: str) -> dict[str, Any]:
    return {claim: value for claim, value in CLAIMS.items() if claim != name}


def headers() -> Iterator[tuple[str, str]]:
    """Headers that ask for another algorithm, or for somebody else's key."""
    for alg in (
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        None,
        "hs256",
        "HS384",
        "HS512",
        "RS256",
        "ES256",
    ):
        yield f"alg {alg!r}, our key", token_of(HEADER | {"alg": alg}, CLAIMS)
        yield f"alg {alg!r}, no signature", token_of(HEADER | {"alg": alg}, CLAIMS, end="")
    yield "HS384", token_of(HEADER | {"alg": "HS384"}, CLAIMS, digest="sha384")
    yield "HS512", token_of(HEADER | {"alg": "HS512"}, CLAIMS, digest="sha512")
    for name, value in {
        "kid": "../../dev/null",
        "kid ": "' UNION SELECT 'x",
        "jku": "https://evil.example/jwks",
        "x5u": "https://evil.example/x5u",
        "x5c": ["MIIB"],
        "jwk": {"kty": "oct", "k": encoded(b"k" * 32)},
        "crit": ["exp"],
        "b64": False,
        "zip": "DEF",
        "cty": "JWT",
    }.items():
        yield f"header {name}", token_of(HEADER | {name.strip(): value}, CLAIMS)
    yield "b64 false, crit", token_of(HEADER | {"b64": False, "crit": ["b64"]}, CLAIMS)
    for typ in ("JWT", "at+JWT ", "refresh", "gate", None):
        yield f"typ {typ!r}", token_of(HEADER | {"typ": typ}, CLAIMS)
    yield "no typ", token_of({"alg": "HS256"}, CLAIMS)
    for content in (b"", b"null", b"[]", b"[" * 3000, b'"HS256"', b"{", b"\xff\xfe", b"1" * 3000):
        yield f"header {content[:8]!r}", token_of(content, CLAIMS)


def keys() -> Iterator[tuple[str, str]]:
    """The right words under a wrong key."""
    header = good_token().partition(".")[0]
    claims = part(CLAIMS)
    for name, key in {
        "empty": b"",
        "the secret itself": SECRET.encode(),
        "another purpose": KeyRing([SECRET]).keys("cursor")[0],
        "another secret": KeyRing([OLD]).keys("access-token")[0],
        "the public header": header.encode(),
    }.items():
        signature = encoded(hmac.digest(key, f"{header}.{claims}".encode(), "sha256"))
        yield f"key: {name}", f"{header}.{claims}.{signature}"


def good_token() -> str:
    tokens = Tokens(KeyRing([SECRET]), expire_minutes=30, refresh_days=30, clock=lambda: START)
    return tokens.issue(SESSION).token


def spellings() -> Iterator[tuple[str, str]]:
    """A good token, spelt otherwise or put together from two."""
    good = good_token()
    header, payload, signature = good.split(".")
    other = good_token().split(".")
    yield "empty", ""
    yield "no signature", f"{header}.{payload}."
    yield "two parts", f"{header}.{payload}"
    yield "four parts", f"{good}.{signature}"
    yield "five parts, as JWE has", f"{good}.{payload}.{signature}"
    yield "dots", "..."
    yield "the payload of another", f"{header}.{other[1]}.{signature}"
    yield "the signature of another", f"{header}.{payload}.{other[2]}"
    for name, space in {
        "space": " ",
        "newline": "\n",
        "CRLF": "\r\n",
        "tab": "\t",
        "NUL": "\0",
    }.items():
        yield f"{name} after", good + space
        yield f"{name} before", space + good
        yield f"{name} within", f"{header}.{payload}{space}.{signature}"
    yield "padding", good + "="
    yield "padding within", f"{header}=.{payload}.{signature}"
    yield "half a signature", good[:-20]
    yield "another alphabet", good.replace("_", "/").replace("-", "+") + "/"
    yield "unused bits set", good[:-1] + next_character(good[-1])
    yield "Bearer Bearer", f"Bearer {good}"
    yield "lower case", good.lower()
    yield "non-ASCII", good + "é"
    yield "fullwidth", good.replace(".", "\uff0e")
    yield "a surrogate", good + "\ud800"
    yield "a megabyte", "a" * 1_000_000
    yield "a megabyte of a token", f"{header}.{'A' * 1_000_000}.{signature}"
    yield "a megabyte of dots", "." * 1_000_000


def next_character(character: str) -> str:
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    return alphabet[
        alphabet.index(character) + 1
    ]  # the four characters from a canonical one decode alike


def claims() -> Iterator[tuple[str, str]]:
    """Signed by us, as a bug or an older version might have; still refused."""
    for name, value in CLAIMS.items():
        yield f"no {name}", signed(without(name))
        yield f"null {name}", signed(CLAIMS | {name: None})
        yield f"list {name}", signed(CLAIMS | {name: [value]})
    never: list[object] = [
        *("1", str(NOW + 600), 1e400, float("nan"), -1, NOW + 600.5, True, 10**30),
        {},
    ]
    for exp in never:
        yield f"exp {exp!r}", signed(CLAIMS | {"exp": exp})
    for iat in ("1", float("nan"), -1, NOW + 3600):
        yield f"iat {iat!r}", signed(CLAIMS | {"iat": iat})
    yield "nbf in the future", signed(CLAIMS | {"nbf": NOW + 3600})
    yield "nbf text", signed(CLAIMS | {"nbf": "now"})
    yield "longer than any of ours", signed(CLAIMS | {"scope": "a" * 4096})
    yield "another issuer", signed(CLAIMS | {"iss": "evil"})
    yield "another audience", signed(CLAIMS | {"aud": "cbemail/gate"})
    yield "several audiences", signed(CLAIMS | {"aud": ["cbemail/api", "x"]})
    yield "empty session", signed(CLAIMS | {"session_id": ""})
    yield "a number for a session", signed(CLAIMS | {"session_id": 7})
    for content in (b"", b"null", b"[]", b"{", b"\xff", b'{"exp":' + b"9" * 3000 + b"}"):
        yield f"payload {content[:8]!r}", signed(content)
