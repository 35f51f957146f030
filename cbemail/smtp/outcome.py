"""What became of one envelope. Each of these is expected, so each is a value; a `match` over them must be complete."""

from enum import StrEnum

from msgspec import Struct

from cbemail.smtp.replies import Phase, Reply, Verdict, classify, explain


class Interruption(StrEnum):
    """Why a conversation ended before its time."""

    LOST = "connection-lost"
    TIMEOUT = "timeout"
    GARBLED = "protocol-error"  # no SMTP reply, or one that answers nothing we asked
    ABANDONED = "abandoned"  # by us: cancelled


class RefusedRecipient(Struct, frozen=True):
    """A recipient that does not get the message, and the reply that says so. ``detail`` is a sentence of ours."""

    address: str
    reply: Reply
    verdict: Verdict
    detail: str


class Accepted(Struct, frozen=True):
    """The server has taken the message for ``recipients``, and for none of ``refused``."""

    recipients: tuple[str, ...]
    refused: tuple[RefusedRecipient, ...]
    reply: Reply


class Refused(Struct, frozen=True):
    """A reply was read, and nobody gets the message. ``reply`` decided it; each recipient has the one that hit it.

    Where this service refused, rather than bother the server, the reply is one without text.
    """

    recipients: tuple[RefusedRecipient, ...]
    phase: Phase
    reply: Reply

    @property
    def verdict(self) -> Verdict:
        return classify(self.reply, self.phase)

    @property
    def detail(self) -> str:
        return explain(self.reply, self.phase)


class NotSent(Struct, frozen=True):
    """The conversation broke off before the final dot: nobody gets the message (RFC 5321 4.1.1.4), retrying is safe."""

    reason: Interruption
    phase: Phase


class Uncertain(Struct, frozen=True):
    """It broke off after the final dot: ``recipients`` may or may not get the message, ``refused`` do not.

    Sending it again may deliver it twice.
    """

    recipients: tuple[str, ...]
    refused: tuple[RefusedRecipient, ...]
    reason: Interruption


Outcome = Accepted | Refused | NotSent | Uncertain
