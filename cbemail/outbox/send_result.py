"""What a client is told of a message it sent: the outcome of its transaction as a result, or as an error (pure)."""

from msgspec import Struct

from cbemail.errors import (
    CbemailError,
    CredentialsStale,
    PayloadTooLarge,
    RecipientsRejected,
    Refusal,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from cbemail.ids import OutboxId
from cbemail.outbox.sent import Saved
from cbemail.smtp.outcome import (
    Accepted,
    Interruption,
    NotSent,
    Outcome,
    Refused,
    RefusedRecipient,
    Uncertain,
)
from cbemail.smtp.replies import Phase, Reply, Verdict
from cbemail.store.records import SendState

RESPONSE_CHARACTERS = 500  # of the server's final reply, which holds its queue id


class Rejected(Struct, frozen=True):
    """A recipient that does not get the message. ``status`` is None where no server's reply decided that."""

    address: str
    status: int | None
    enhanced: str | None
    detail: str


class SendResult(Struct, frozen=True):
    """A message sent, or being sent. ``response`` is the server's final reply; ``saved`` where the copy in Sent is."""

    id: OutboxId
    state: SendState
    message_id: str
    accepted: list[str] = []
    rejected: list[Rejected] = []
    response: str | None = None
    saved: Saved | None = None


def result_of(outbox_id: OutboxId, message_id: str, outcome: Outcome) -> SendResult:
    """The outcome as a result, or as the error it is when nobody gets the message."""
    match outcome:
        case Accepted(recipients, refused, reply):
            return SendResult(
                id=outbox_id,
                state=SendState.SENT,
                message_id=message_id,
                accepted=list(recipients),
                rejected=[Rejected(*_refusal(r)) for r in refused],
                response=_shown(reply),
            )
        case Uncertain(_, refused, _):
            return SendResult(
                id=outbox_id,
                state=SendState.UNCERTAIN,
                message_id=message_id,
                rejected=[Rejected(*_refusal(r)) for r in refused],
            )
        case NotSent(reason, phase):
            raise _not_sent(reason, phase)
        case Refused():
            raise _refused(outcome)


def _refusal(refused: RefusedRecipient) -> Refusal:
    reply = refused.reply
    return Refusal(refused.address, reply.code, reply.enhanced, refused.detail)


def _shown(reply: Reply) -> str:
    """The final reply on one line, without what no text should hold."""
    line = f"{reply.code} {' '.join(reply.text.split())}"
    return "".join(c for c in line if c.isprintable())[:RESPONSE_CHARACTERS]


def _not_sent(reason: Interruption, phase: Phase) -> CbemailError:
    if reason is Interruption.TIMEOUT:
        return UpstreamTimeout(
            "The SMTP server did not answer in time; the message was not sent.",
            protocol="smtp",
            command=phase,
            retry_after=30,
        )
    return UpstreamUnavailable(
        "The SMTP server broke off; the message was not sent.",
        protocol="smtp",
        command=phase,
        retry_after=10,
    )


def _refused(outcome: Refused) -> CbemailError:
    """A reply refused the message for everybody: what that is to the caller."""
    sentence = f"The message was not sent. {outcome.detail}"
    match outcome.verdict:
        case Verdict.CREDENTIALS:
            return CredentialsStale(
                "The SMTP server no longer accepts this session's login.", protocol="smtp"
            )
        case Verdict.MESSAGE_TOO_BIG:
            return PayloadTooLarge(sentence)
        case Verdict.ACCOUNT | Verdict.THROTTLED:
            return UpstreamUnavailable(sentence, protocol="smtp", retry_after=60)
        case Verdict.DEFERRED if outcome.phase is not Phase.RCPT:
            return UpstreamUnavailable(sentence, protocol="smtp", retry_after=60)
    refusals = [_refusal(refused) for refused in outcome.recipients]
    return RecipientsRejected("The mail server refused every recipient.", refusals)
