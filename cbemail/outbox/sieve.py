"""Which recipients of a batch can be sent to, and what is stored of them."""

from collections.abc import AsyncGenerator, Sequence
from hashlib import blake2b

from msgspec import Struct, structs

from cbemail.errors import FieldError, InvalidRequest
from cbemail.mime.address import envelope_address
from cbemail.outbox.batch import REJECTIONS_SHOWN, Rejection
from cbemail.outbox.content import Recipient, encode_recipient
from cbemail.outbox.merge import Merge, MergeError
from cbemail.outbox.recipients import Entries, Entry, Unfit
from cbemail.outbox.sealing import SEAL_OCTETS
from cbemail.store.batch_records import LARGEST_VALUE, MAX_RECIPIENTS
from cbemail.turns import Turn

MAX_RECIPIENT = LARGEST_VALUE - SEAL_OCTETS  # octets of what is stored of one
_WRITTEN = 320  # characters that are shown of what was written for an address, and of what is wrong with it


class Fit(Struct, frozen=True):
    """An entry that can be sent to, the mailboxes its message goes to, and the first one's `Recipient`, encoded."""

    entry: Entry
    mailboxes: list[str]
    recipient: bytes


class Sieve:
    """One reading of a batch's entries; it counts what it has seen.

    ``rejections`` holds the first of them; ``merge`` is None where the entries are messages.
    """

    def __init__(
        self,
        entries: Entries,
        merge: Merge | None,
        *,
        dedupe: bool,
        keep: int = REJECTIONS_SHOWN,
    ) -> None:
        self.fit = 0
        self.unfit = 0
        self.rejections: list[Rejection] = []
        self._entries = entries
        self._merge = merge
        # In parts, since a set of half a million takes a tenth of a second each time it outgrows its room.
        self._seen = [set[bytes]() for _ in range(256)] if dedupe else None
        self._keep = keep
        self._list = "messages" if merge is None else "recipients"

    async def pieces(self) -> AsyncGenerator[Sequence[Fit | Unfit], None]:
        """Every entry, in pieces. Raises InvalidRequest for what is wrong with the list as such."""
        turn = Turn()
        reading = self._entries()
        try:
            async for piece in reading:
                sifted = []
                for entry in piece:
                    await turn.share()
                    sifted.append(self._sift(entry))
                yield sifted
        finally:
            if isinstance(reading, AsyncGenerator):
                await reading.aclose()
        if not self.fit + self.unfit:
            raise InvalidRequest.at(f"#/{self._list}", "There is nobody to send to.")

    def require_some(self) -> None:
        """Raises InvalidRequest where nobody can be sent to."""
        if not self.fit:
            raise self._refusal("None of the recipients can be sent to.")

    def require_all(self) -> None:
        """Raises InvalidRequest where somebody cannot be sent to."""
        if self.unfit:
            sentence = f"Nothing was accepted: {self.unfit} of the recipients cannot be sent to."
            raise self._refusal(sentence)

    def _refusal(self, sentence: str) -> InvalidRequest:
        errors = [
            FieldError(f"#/{self._list}/{each.index}", each.detail)
            for each in self.rejections[:REJECTIONS_SHOWN]
        ]
        return InvalidRequest(sentence, errors)

    def _sift(self, entry: Entry | Unfit) -> Fit | Unfit:
        sifted = self._rule(entry) if isinstance(entry, Entry) else _shown(entry)
        if isinstance(sifted, Fit):
            self.fit += len(sifted.mailboxes)
        else:
            self.unfit += 1
            if len(self.rejections) < self._keep:
                self.rejections.append(
                    Rejection(sifted.position, sifted.to, sifted.code, sifted.detail)
                )
        if self.fit + self.unfit > MAX_RECIPIENTS:
            raise InvalidRequest.at(
                f"#/{self._list}", f"A batch takes at most {MAX_RECIPIENTS:,} recipients."
            )
        return sifted

    def _rule(self, entry: Entry) -> Fit | Unfit:
        mailboxes = _mailboxes(entry)
        if not mailboxes:
            return _unfit(entry, "invalid-recipient", "Name at least one address in to, cc or bcc.")
        digest = b""
        if self._seen is not None:
            digest = _digest(entry, mailboxes)
            if digest in self._seen[digest[0]]:
                return _unfit(entry, "duplicate", "This address stands in the list before.")
        try:
            recipient = self._recipient(entry, mailboxes[0])
        except MergeError as exc:
            return _unfit(entry, exc.code, exc.detail)
        except (OverflowError, UnicodeError, RecursionError):
            return _unfit(entry, "invalid-recipient", "A variable holds what cannot be stored.")
        if recipient is None:
            detail = f"All that is known of a recipient has at most {MAX_RECIPIENT:,} octets."
            return _unfit(entry, "too-large", detail)
        if self._seen is not None:
            # Only now: the address of one that is refused may come again.
            self._seen[digest[0]].add(digest)
        return Fit(entry, mailboxes, recipient)

    def _recipient(self, entry: Entry, mailbox: str) -> bytes | None:
        """What is stored for the first mailbox; None where that is too much."""
        recipient = recipient_of(entry, mailbox)
        encoded = encode_recipient(recipient)
        if len(encoded) > MAX_RECIPIENT:
            return None
        if self._merge is not None:
            self._merge.check(recipient)
        return encoded


def recipient_of(entry: Entry, mailbox: str) -> Recipient:
    """What is known of one mailbox of an entry. A message that is composed has its header in it."""
    if entry.message is not None:
        return Recipient(mailbox, entry.key)
    return Recipient(mailbox, entry.key, entry.to, entry.cc, entry.variables)


def _mailboxes(entry: Entry) -> list[str]:
    """Where the message goes, as the envelope names it, each mailbox once."""
    if len(entry.to) == 1 and not entry.cc and not entry.bcc:
        return [envelope_address(entry.to[0].address)]
    addresses = [envelope_address(a.address) for a in (*entry.to, *entry.cc, *entry.bcc)]
    return list({address.lower(): address for address in addresses}.values())


def _digest(entry: Entry, mailboxes: Sequence[str]) -> bytes:
    """What two entries to the same people have in common: half a million addresses as text are too much to remember.

    Lower case, not folded: ß and ss are two mailboxes.
    """
    if len(entry.to) > 1:
        mailboxes = sorted({envelope_address(to.address).lower() for to in entry.to})
    elif entry.to:
        mailboxes = mailboxes[:1]
    return blake2b("\n".join(mailboxes).lower().encode(), digest_size=16).digest()


def _unfit(entry: Entry, code: str, detail: str) -> Unfit:
    to = ", ".join(address.address for address in entry.to[:10])
    return _shown(Unfit(entry.position, to, code, detail, entry.key))


def _shown(unfit: Unfit) -> Unfit:
    """Fit to be shown and kept: what was written may be long, and hold anything, and a sentence may name it."""
    to, detail = _printable(unfit.to, _WRITTEN), _printable(unfit.detail, _WRITTEN)
    return structs.replace(unfit, to=to, detail=detail)


def _printable(text: str, length: int) -> str:
    return "".join(c for c in text[: 2 * length] if c.isprintable())[:length]
