"""`Idempotency-Key`: what was answered to a key is answered again, and nothing is done twice.

A call is known by its session, its operation and its key. What is kept of it is the answer, which names recipients:
it is sealed, for this one call.
"""

from datetime import datetime

from msgspec import Struct, structs

from cbemail.errors import CredentialsStale, IdempotencyConflict, IdempotencyMismatch
from cbemail.ids import OutboxId, SessionId
from cbemail.sessions.vault import Vault, VaultError
from cbemail.store.records import IdempotencyRecord, StoredResponse


class IdempotencyKey(Struct, frozen=True):
    """The client's key for one call, and the SHA-256 of what it asks."""

    operation: str
    key: str
    fingerprint: bytes

    def claim(
        self, session_id: SessionId, created_at: datetime, outbox_id: OutboxId | None = None
    ) -> IdempotencyRecord:
        """The key in use, without an answer yet."""
        return IdempotencyRecord(
            session_id=session_id,
            operation=self.operation,
            key=self.key,
            fingerprint=self.fingerprint,
            outbox_id=outbox_id,
            created_at=created_at,
        )


class SealedAnswers:
    """Answers on their way to the store, and back."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def seal(
        self, session_id: SessionId, key: IdempotencyKey, answer: StoredResponse
    ) -> StoredResponse:
        """The answer, as it may be kept."""
        sealed = self._vault.seal(session_id, _field(key.operation, key.key), answer.body)
        return structs.replace(answer, body=sealed)

    def again(self, known: IdempotencyRecord, key: IdempotencyKey) -> StoredResponse | None:
        """What was answered to the call that has the key; None where it has not been answered.

        Raises:
            IdempotencyMismatch: that call asked for something else.
            CredentialsStale: SECRET_KEY is another one now.
        """
        if known.fingerprint != key.fingerprint:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used for another request: use a new one."
            )
        if known.response is None:
            return None
        field = _field(known.operation, known.key)
        try:
            body = self._vault.open(known.session_id, field, known.response.body)
        except VaultError as exc:
            raise CredentialsStale(
                "The answer to this Idempotency-Key cannot be opened any more: SECRET_KEY has been replaced."
            ) from exc
        return structs.replace(known.response, body=body)


def still_running() -> IdempotencyConflict:
    """For whoever comes with a key whose first request has no answer yet."""
    return IdempotencyConflict(
        "The first request with this Idempotency-Key is still running.", retry_after=1
    )


def _field(operation: str, key: str) -> str:
    return f"answer {operation} {key}"
