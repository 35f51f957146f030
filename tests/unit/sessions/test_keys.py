"""Keys: one for each purpose, none of them the secret itself."""

import pytest

from cbemail.sessions.keys import KeyRing

SECRET = "kR7x_Qm2vT9-bW4zLp8sYd3nFg6hJc1aUe5iXo0"
OLD = "pL0w_Zk8cB3-rN6yHq1fVt5mSj9gDx2eAu7iKo4"
PURPOSES = ["access-token", "refresh", "vault", "gate", "cursor", "webhook"]


def test_every_purpose_has_a_key_of_its_own():
    ring = KeyRing([SECRET])

    keys = {ring.keys(purpose)[0] for purpose in PURPOSES}

    assert len(keys) == len(PURPOSES)
    assert all(len(key) == 32 for key in keys)
    assert SECRET.encode() not in keys


def test_keys_are_the_same_after_a_restart():
    assert KeyRing([SECRET]).keys("vault") == KeyRing([SECRET]).keys("vault")


def test_a_key_is_what_rfc_5869_makes_of_the_secret():
    """Pinned: another derivation would lock every session out of its own credentials."""
    (key,) = KeyRing([SECRET]).keys("vault")

    assert key.hex() == "b7cc42f4d2262c5088e3cce57df89402c696be781263ea46487b093ff72e3c32"


def test_the_newest_secret_comes_first_and_the_older_keep_their_keys():
    newest, old = KeyRing([SECRET, OLD]).keys("vault")

    assert (newest,) == KeyRing([SECRET]).keys("vault")
    assert (old,) == KeyRing([OLD]).keys("vault")


def test_a_ring_does_not_show_its_secrets():
    assert SECRET not in repr(KeyRing([SECRET]))


def test_a_ring_without_a_secret_cannot_be_made():
    with pytest.raises(ValueError, match="needs a secret"):
        KeyRing([])
