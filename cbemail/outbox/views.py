"""What is on disk of a batch, as clients see it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from cbemail.ids import OutboxId
from cbemail.outbox.batch import WAITING, Counts, MessageView, state_in
from cbemail.outbox.sealing import BatchKey
from cbemail.outbox.send_result import Rejected, SendResult
from cbemail.outbox.workshop import open_recipient
from cbemail.store.batch_records import BatchRecord, MessageRow
from cbemail.store.records import SendState


def counts_of(messages: Mapping[SendState, int]) -> Counts:
    """Only the states that occur need be given."""
    named = {state.value: messages.get(state, 0) for state in SendState}
    return Counts(total=sum(named.values()), **named)


def message_view(record: BatchRecord, row: MessageRow, key: BatchKey) -> MessageView:
    """One row of the report."""
    recipient = open_recipient(key, row)
    state = state_in(record.state, row.state)
    return MessageView(
        id=_message_id(record, row),
        index=row.position,
        key=recipient.key,
        to=recipient.address,
        state=state,
        attempts=row.attempts,
        message_id=row.message_id,
        status=row.status,
        enhanced=row.enhanced,
        detail=row.detail,
        next_attempt_at=row.next_attempt_at if state in WAITING else None,
        finished_at=row.finished_at,
    )


def _message_id(record: BatchRecord, row: MessageRow) -> OutboxId:
    """The public id of a row: unguessable, since the batch's token is."""
    return OutboxId(f"msg_{record.token}{row.row:08x}")


_ORDER = (  # the first that any recipient is in is what the whole is in
    SendState.SENDING,
    SendState.QUEUED,
    SendState.DEFERRED,
    SendState.UNCERTAIN,
    SendState.SENT,
    SendState.CANCELLED,
    SendState.FAILED,
)


def send_result(
    record: BatchRecord, rows: Sequence[MessageRow], key_of: Callable[[BatchRecord], BatchKey]
) -> SendResult:
    """A single message that was queued, of as many rows as it has recipients. While there is none to name, it is told
    without its key, which may be lost."""
    key = cache(partial(key_of, record))

    def address(row: MessageRow) -> str:
        return open_recipient(key(), row).address

    states = {state_in(record.state, row.state) for row in rows}
    sent = [row for row in rows if row.state is SendState.SENT]
    refused = [row for row in rows if row.state is SendState.FAILED]
    return SendResult(
        id=OutboxId(record.id),
        state=next((state for state in _ORDER if state in states), SendState.FAILED),
        message_id=rows[0].message_id if rows else "",
        accepted=[address(row) for row in sent],
        rejected=[
            Rejected(address(row), row.status, row.enhanced, row.detail or "") for row in refused
        ],
        response=sent[0].detail if sent else None,
    )
