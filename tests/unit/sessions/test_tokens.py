"""Tokens and keys: what we issued is accepted while it is good, and nothing else ever is."""

import base64
import hashlib
from datetime import datetime, timedelta

import pytest

from cbemail.errors import TokenExpired, Unauthenticated
from cbemail.sessions import tokens as tokens_module
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.tokens import ApiKeys, Tokens, hash_refresh_token
from tests.unit.sessions import forgeries
from tests.unit.sessions.forgeries import (
    CLAIMS,
    HEADER,
    NOW,
    OLD,
    SECRET,
    SESSION,
    START,
    signed,
    token_of,
)


class HeldClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def advance(self, **span: float) -> None:
        self.time += timedelta(**span)


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def tokens(clock: HeldClock) -> Tokens:
    return made(clock, SECRET)


def made(clock: HeldClock, *secret_keys: str) -> Tokens:
    return Tokens(KeyRing(secret_keys), expire_minutes=30, refresh_days=30, clock=clock)


# ---- the life of a token


def test_an_issued_token_names_its_session_until_it_expires(tokens: Tokens):
    issued = tokens.issue(SESSION)

    claims = tokens.verify(issued.token)

    assert claims.session_id == SESSION
    assert claims.expires_at == issued.expires_at == START + timedelta(minutes=30)
    assert issued.expires_in == 1800


def test_two_tokens_of_a_session_are_different(tokens: Tokens):
    first, second = tokens.issue(SESSION), tokens.issue(SESSION)

    assert first.token != second.token
    assert tokens.verify(first.token).token_id != tokens.verify(second.token).token_id


def test_a_token_expires_on_time(tokens: Tokens, clock: HeldClock):
    token = tokens.issue(SESSION).token

    clock.advance(minutes=30, seconds=-1)
    assert tokens.verify(token).session_id == SESSION

    clock.advance(seconds=1)
    with pytest.raises(TokenExpired):
        tokens.verify(token)


def test_a_token_seen_for_the_first_time_may_be_expired(clock: HeldClock):
    token = made(clock, SECRET).issue(SESSION).token
    clock.advance(days=1)

    with pytest.raises(TokenExpired):
        made(clock, SECRET).verify(token)


def test_a_token_outlives_a_restart(clock: HeldClock):
    token = made(clock, SECRET).issue(SESSION).token

    assert made(clock, SECRET).verify(token).session_id == SESSION


def test_a_token_of_a_replica_whose_clock_is_a_little_ahead_is_good(clock: HeldClock):
    ahead = HeldClock()
    ahead.advance(seconds=59)

    token = made(ahead, SECRET).issue(SESSION).token

    assert made(clock, SECRET).verify(token).session_id == SESSION


def test_a_token_signed_with_the_older_key_is_good_while_the_key_is_known(clock: HeldClock):
    token = made(clock, OLD).issue(SESSION).token

    assert made(clock, SECRET, OLD).verify(token).session_id == SESSION
    with pytest.raises(Unauthenticated):
        made(clock, SECRET).verify(token)


def test_the_newest_key_signs(clock: HeldClock):
    token = made(clock, SECRET, OLD).issue(SESSION).token

    assert made(clock, SECRET).verify(token).session_id == SESSION


def test_an_issued_token_does_not_show_itself(tokens: Tokens):
    issued = tokens.issue(SESSION)

    assert issued.token not in repr(issued)


def test_no_more_verified_tokens_are_remembered_than_room_was_made_for():
    cache = tokens_module._ClaimsCache(2)
    claims = tokens_module.Claims(SESSION, START, "jti")
    for digest in (b"1", b"2"):
        cache.put(digest, claims)
    cache.get(b"1")

    cache.put(b"3", claims)

    assert [cache.get(digest) is not None for digest in (b"1", b"2", b"3")] == [True, False, True]


# ---- forgeries (RFC 8725)

FORGERIES = [
    *forgeries.headers(),
    *forgeries.keys(),
    *forgeries.spellings(),
    *forgeries.claims(),
]


def test_there_are_enough_forgeries_to_speak_of():
    assert len({token for _, token in FORGERIES}) >= 60


@pytest.mark.parametrize(
    "token", [token for _, token in FORGERIES], ids=[name for name, _ in FORGERIES]
)
def test_a_forged_token_is_refused(tokens: Tokens, token: str):
    with pytest.raises(Unauthenticated):
        tokens.verify(token)


@pytest.mark.parametrize("exp", [0, 1, NOW - 1, NOW])
def test_a_token_of_the_past_has_expired(tokens: Tokens, exp: int):
    with pytest.raises(TokenExpired):
        tokens.verify(signed(CLAIMS | {"exp": exp}))


def test_the_forgeries_are_forged_in_one_respect_only(tokens: Tokens):
    assert tokens.verify(signed(CLAIMS)).session_id == SESSION
    assert tokens.verify(token_of(HEADER, CLAIMS)).session_id == SESSION


def test_a_refused_token_is_not_remembered_as_a_good_one(tokens: Tokens):
    forged = token_of(HEADER, CLAIMS, key=b"x" * 32)

    for _ in range(2):
        with pytest.raises(Unauthenticated):
            tokens.verify(forged)


def test_every_refusal_says_the_same(tokens: Tokens):
    details = set()
    for _, token in FORGERIES:
        with pytest.raises(Unauthenticated) as refusal:
            tokens.verify(token)
        details.add(refusal.value.detail)

    assert len(details) == 1


# ---- refresh tokens


def test_a_refresh_token_is_kept_as_its_hash(tokens: Tokens):
    token, record = tokens.new_refresh_token(SESSION)

    assert record.session_id == SESSION
    assert record.token_hash == hash_refresh_token(token) == hashlib.sha256(token.encode()).digest()
    assert record.expires_at == START + timedelta(days=30)
    assert record.used_at is None


def test_refresh_tokens_are_unguessable(tokens: Tokens):
    texts = {tokens.new_refresh_token(SESSION)[0] for _ in range(100)}

    assert len(texts) == 100
    assert all(
        len(base64.urlsafe_b64decode(text.removeprefix("cbr_") + "=")) == 32 for text in texts
    )


def test_a_refresh_token_is_no_access_token(tokens: Tokens):
    with pytest.raises(Unauthenticated):
        tokens.verify(tokens.new_refresh_token(SESSION)[0])


def test_whatever_is_sent_for_a_refresh_token_has_a_hash():
    assert len(hash_refresh_token("\ud800é" * 1000)) == 32


# ---- API keys


def test_each_of_the_keys_is_accepted():
    keys = ApiKeys(["first-key", "second-key"])

    assert keys.accepts("first-key")
    assert keys.accepts("second-key")


@pytest.mark.parametrize(
    "candidate",
    [
        *(
            "",
            "first-ke",
            "first-kez",
            "xirst-key",
            "first-key ",
            "FIRST-KEY",
            "first-key,second-key",
        ),
        *("first-kéy", "\ud800", "\0", "first-key\0", "x" * 10_000_000),
    ],
)
def test_anything_else_is_not(candidate: str):
    assert not ApiKeys(["first-key", "second-key"]).accepts(candidate)


def test_without_keys_nothing_is_accepted():
    assert not ApiKeys([]).accepts("")


def test_api_keys_are_not_kept():
    assert "first-key" not in str(vars(ApiKeys(["first-key"])))
