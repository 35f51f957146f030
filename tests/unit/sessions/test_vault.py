"""Secrets at rest: they open for whom they were sealed, under any key of the ring, and for nobody else."""

from datetime import UTC, datetime

import msgspec
import pytest
from cryptography.fernet import Fernet

from cbemail.hosts import AccessToken, Password, Secret
from cbemail.ids import SessionId
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.oauth2 import Grant
from cbemail.sessions.vault import Vault, VaultError

NEW = "kR7x_Qm2vT9-bW4zLp8sYd3nFg6hJc1aUe5iXo0"
OLD = "pL0w_Zk8cB3-rN6yHq1fVt5mSj9gDx2eAu7iKo4"
ALICE = SessionId("ses_alice")
BOB = SessionId("ses_bob")


@pytest.fixture
def vault() -> Vault:
    return Vault(KeyRing([NEW]))


def test_what_was_sealed_opens(vault: Vault):
    sealed = vault.seal(ALICE, "note", b"\x00 secret \xff")

    assert vault.open(ALICE, "note", sealed) == b"\x00 secret \xff"
    assert b"secret" not in sealed


def test_a_value_copied_into_another_session_does_not_open(vault: Vault):
    sealed = vault.seal(ALICE, "note", b"secret")

    with pytest.raises(VaultError):
        vault.open(BOB, "note", sealed)


def test_a_value_copied_into_another_field_does_not_open(vault: Vault):
    sealed = vault.seal(ALICE, "note", b"secret")

    with pytest.raises(VaultError):
        vault.open(ALICE, "credentials", sealed)


def test_a_session_and_field_that_run_together_are_not_confused(vault: Vault):
    sealed = vault.seal(SessionId("ses_a"), "bc", b"secret")

    with pytest.raises(VaultError):
        vault.open(SessionId("ses_ab"), "c", sealed)


@pytest.mark.parametrize(
    "sealed", [b"", b"gAAAA", b"\xff" * 100, Fernet(Fernet.generate_key()).encrypt(b"x")]
)
def test_what_is_not_ours_does_not_open(vault: Vault, sealed: bytes):
    with pytest.raises(VaultError):
        vault.open(ALICE, "note", sealed)


def test_a_value_with_one_octet_changed_does_not_open(vault: Vault):
    sealed = vault.seal(ALICE, "note", b"secret")

    for position in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(VaultError):
            vault.open(ALICE, "note", bytes(changed))


# ---- the credentials of a session


@pytest.mark.parametrize(
    ("imap", "smtp"),
    [
        (Password("pässword 会议"), Password("another")),
        (AccessToken("ya29.x"), AccessToken("ya29.x")),
        (Password("p"), AccessToken("t")),
    ],
)
def test_both_secrets_of_a_session_come_back_as_they_were(vault: Vault, imap: Secret, smtp: Secret):
    sealed = vault.seal_secrets(ALICE, imap, smtp)

    assert vault.open_secrets(ALICE, sealed) == (imap, smtp, None)


def test_what_tokens_are_renewed_with_is_sealed_with_them(vault: Vault):
    moment = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    grant = Grant("https://a.example/t", "client", "refresh", "secret", "mail", moment, moment)
    token = AccessToken("ya29.x")

    sealed = vault.seal_secrets(ALICE, token, token, grant)

    assert vault.open_secrets(ALICE, sealed) == (token, token, grant)


def test_credentials_from_before_there_were_grants_open(vault: Vault):
    former = msgspec.msgpack.encode((("access_token", "ya29.x"), ("access_token", "ya29.x")))

    opened = vault.open_secrets(ALICE, vault.seal(ALICE, "credentials", former))

    assert opened == (AccessToken("ya29.x"), AccessToken("ya29.x"), None)


def test_credentials_of_another_session_do_not_open(vault: Vault):
    sealed = vault.seal_secrets(ALICE, Password("hunter2"), Password("hunter2"))

    with pytest.raises(VaultError) as failure:
        vault.open_secrets(BOB, sealed)

    assert "hunter2" not in str(failure.value)


def test_credentials_under_a_key_that_is_gone_do_not_open(vault: Vault):
    sealed = Vault(KeyRing([OLD])).seal_secrets(ALICE, Password("p"), Password("p"))

    with pytest.raises(VaultError):
        vault.open_secrets(ALICE, sealed)


def test_credentials_of_a_kind_nobody_knows_do_not_open(vault: Vault):
    sealed = vault.seal(ALICE, "credentials", b"\x92\x92\xa3key\xa1x\x92\xa3key\xa1x")

    with pytest.raises(VaultError):
        vault.open_secrets(ALICE, sealed)


def test_what_holds_no_credentials_does_not_open_as_such(vault: Vault):
    with pytest.raises(VaultError):
        vault.open_secrets(ALICE, vault.seal(ALICE, "credentials", b"not msgpack"))


# ---- rotation


def test_during_a_rotation_old_values_open_and_new_ones_need_the_new_key():
    before = Vault(KeyRing([OLD])).seal(ALICE, "note", b"secret")
    both = Vault(KeyRing([NEW, OLD]))

    sealed = both.seal(ALICE, "note", b"secret")

    assert both.open(ALICE, "note", before) == b"secret"
    assert Vault(KeyRing([NEW])).open(ALICE, "note", sealed) == b"secret"


def test_a_rotated_value_no_longer_needs_the_old_key():
    both = Vault(KeyRing([NEW, OLD]))
    before = Vault(KeyRing([OLD])).seal(ALICE, "note", b"secret")

    rotated = both.rotate(before)

    assert both.needs_rotation(before)
    assert not both.needs_rotation(rotated)
    assert Vault(KeyRing([NEW])).open(ALICE, "note", rotated) == b"secret"
    with pytest.raises(VaultError):
        Vault(KeyRing([OLD])).open(ALICE, "note", rotated)


def test_what_no_key_opens_cannot_be_rotated(vault: Vault):
    with pytest.raises(VaultError):
        vault.rotate(Vault(KeyRing([OLD])).seal(ALICE, "note", b"secret"))
