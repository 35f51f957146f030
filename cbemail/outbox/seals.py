"""Opens what batches keep sealed: each with a key of its own, which the vault keeps under SECRET_KEY."""

from collections.abc import Sequence

from cbemail.errors import CredentialsStale
from cbemail.outbox.batch import REJECTIONS_SHOWN, Rejection
from cbemail.outbox.sealing import BatchKey, SealError
from cbemail.outbox.workshop import open_recipient
from cbemail.sessions.vault import Vault, VaultError
from cbemail.store.batch_records import BatchRecord, MessageRow
from cbemail.store.batches import BatchRepository


class Seals:
    """Of all batches. Where a SECRET_KEY is gone, so are the recipients and texts of the batches under it."""

    def __init__(self, repository: BatchRepository, vault: Vault) -> None:
        self._repository = repository
        self._vault = vault

    def key_of(self, record: BatchRecord) -> BatchKey:
        """Raises CredentialsStale: the service has another SECRET_KEY now, and not this batch's behind it."""
        try:
            return BatchKey(self._vault.open(record.session_id, "batch", record.sealed_key))
        except VaultError as exc:
            raise CredentialsStale(
                "The batch cannot be opened any more: SECRET_KEY has been replaced."
            ) from exc

    def opens(self, record: BatchRecord) -> bool:
        try:
            self.key_of(record)
        except CredentialsStale:
            return False
        return True

    async def rejections(self, records: Sequence[BatchRecord]) -> dict[int, list[Rejection]]:
        """Of each batch, by its number, the first rows that were never queued; without their addresses, where those
        cannot be opened any more."""
        numbers = [record.number for record in records]
        rejected = await self._repository.rejected(numbers, limit=REJECTIONS_SHOWN)
        return {
            record.number: self._rejections(record, rejected[record.number]) for record in records
        }

    def _rejections(self, record: BatchRecord, rows: Sequence[MessageRow]) -> list[Rejection]:
        try:
            key = self.key_of(record)
            addresses = [open_recipient(key, row).address for row in rows]
        except (CredentialsStale, SealError):
            addresses = [""] * len(rows)
        return [
            Rejection(row.position, address, row.code or "", row.detail or "")
            for row, address in zip(rows, addresses, strict=True)
        ]
