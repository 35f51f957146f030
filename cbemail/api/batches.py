"""`/api/send/batch`: messages by the thousand, accepted once they are all on disk, sent from there, and accounted for."""

from collections.abc import Callable
from hashlib import sha256
from typing import Annotated

import anyio.to_thread
import msgspec
from anyio import CancelScope
from msgspec import Meta, Struct
from starlette.responses import Response

from cbemail.api.batch_input import (
    OnInvalid,
    Written,
    canonical,
    decode_batch,
    digest_of_lists,
    name_of,
    options_of,
    require_messages_or_recipients,
    require_template_only,
    template_of,
)
from cbemail.api.batch_messages import check_messages, message_entries
from cbemail.api.codec import decode_cursor, encode_cursor, json_response, media_type
from cbemail.api.idempotency import key_of, replayed, stored
from cbemail.api.inputs import due_at
from cbemail.api.links import batch_url
from cbemail.api.operation import Call, Upload
from cbemail.api.outgoing import max_send_body
from cbemail.api.preferences import preferences
from cbemail.api.uploads import receive_form
from cbemail.errors import UnsupportedMediaType
from cbemail.outbox.accept import PREVIEWS, DryRun, NewBatch
from cbemail.outbox.batch import BatchPage, BatchView
from cbemail.outbox.idempotency import IdempotencyKey
from cbemail.outbox.recipients import Entries, from_file, from_json
from cbemail.store.batch_records import BatchKind
from cbemail.store.records import StoredResponse
from cbemail.turns import off_the_loop

MAX_JSON_MB = 128  # of a batch in JSON, which is held in memory; a file is not

_MEGABYTE = 1024 * 1024

Accepted = BatchView | DryRun | StoredResponse


# ---- accepting


async def send_batch(call: Call[object, Upload]) -> Response:
    """Send many messages: a template and its recipients, or messages one by one.

    Answered with 202 once all of it is on disk; it is sent from there, whatever happens to the connection or to the
    service. As ``multipart/form-data`` it takes a file of recipients. With ``dry_run`` nothing is queued: the answer
    has the counts, every rejection, and the first five messages as they would be.
    """
    given = media_type(call.request)
    if given == "multipart/form-data":
        return await _answer(call, await _take_form(call))
    if given == "application/json":
        return await _answer(call, await _take_json(call))
    raise UnsupportedMediaType("This call takes application/json or multipart/form-data.")


async def _take_json(call: Call[object, Upload]) -> Accepted:
    most = min(call.services.settings.max_batch_mb, MAX_JSON_MB) * _MEGABYTE
    data = await call.body.octets(most)
    written = await off_the_loop(len(data), lambda: decode_batch(data))
    require_messages_or_recipients(written)
    if written.messages is not None:
        await check_messages(written.messages)
        previews = PREVIEWS if written.dry_run else 0
        entries = message_entries(call, written.messages, written.send_at, previews=previews)
    else:
        entries = from_json(written.recipients or [])
    key = await _key(call, len(data), lambda: canonical(written) + digest_of_lists(written))
    return await _accept(call, written, entries, key)


async def _take_form(call: Call[object, Upload]) -> Accepted:
    services = call.services
    form = await receive_form(
        call.request,
        call.body,
        services.spool,
        call.session.id,
        most=services.settings.max_batch_mb * _MEGABYTE,
        batch=max_send_body(services),
    )
    try:
        written = await off_the_loop(len(form.batch), lambda: decode_batch(form.batch))
        require_template_only(written)
        entries = from_file(form.file.path, form.format)
        key = await _key(
            call,
            len(form.batch),
            lambda: canonical(written) + form.format.encode() + form.file.digest,
        )
        return await _accept(call, written, entries, key)
    finally:
        with CancelScope(shield=True):  # by a thread: a large file takes its time to go
            await anyio.to_thread.run_sync(form.file.remove)


async def _key(
    call: Call[object, Upload], octets: int, meaning: Callable[[], bytes]
) -> IdempotencyKey | None:
    """The request's key. What it stands for is compared by meaning, as far as it is JSON, and else octet by octet."""
    key = key_of(call.request)
    if key is None:
        return None
    fingerprint = await off_the_loop(octets, lambda: sha256(meaning()).digest())
    return IdempotencyKey("POST /api/send/batch", key, fingerprint)


async def _accept(
    call: Call[object, Upload], written: Written, entries: Entries, key: IdempotencyKey | None
) -> Accepted:
    services, session = call.services, call.session
    if key is not None and not written.dry_run:
        replay = await services.acceptance.replay(session.id, key)
        if replay is not None:
            return replay
    batch = NewBatch(
        session_id=session.id,
        kind=BatchKind.BATCH,
        name=name_of(written),
        options=options_of(written, session),
        send_at=due_at(written.send_at, services.clock()),
        template=await template_of(written, session, most=services.settings.max_message_mb),
        entries=entries,
        reject_invalid=written.on_invalid is OnInvalid.REJECT,
        dedupe=written.dedupe,
    )
    if written.dry_run:
        return await services.acceptance.dry_run(batch)
    return await services.acceptance.accept(batch, key, _render)


def _render(batch: BatchView) -> StoredResponse:
    return StoredResponse(202, {"Location": batch_url(batch.id)}, msgspec.json.encode(batch))


async def _answer(call: Call[object, Upload], accepted: Accepted) -> Response:
    """The answer, at once or when the client would rather have it: with `Prefer: wait=30`, when the batch has ended,
    or thirty seconds have passed."""
    if isinstance(accepted, StoredResponse):
        return replayed(accepted)
    if isinstance(accepted, DryRun):
        return json_response(accepted)
    seconds = preferences(call.request).wait
    if not seconds:
        return stored(_render(accepted))
    watching = call.services.watching
    progress = await watching.ended(call.session.id, accepted.id, seconds=seconds)
    headers = {"Location": batch_url(accepted.id), "Preference-Applied": f"wait={seconds}"}
    return json_response(progress.batch, 200 if progress.over else 202, headers)


# ---- looking after it


class ListBatches(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: str | None = None


_Number = Annotated[int, Meta(ge=0, lt=2**53)]


async def list_batches(call: Call[ListBatches, None]) -> Response:
    """The session's batches, the newest first."""
    query = call.query
    before = None if query.cursor is None else decode_cursor(query.cursor, _Number)
    found = await call.services.batches.page(call.session.id, before=before, limit=query.limit + 1)
    page = found[: query.limit]
    next_cursor = encode_cursor(page[-1][0]) if len(found) > len(page) else None
    return json_response(BatchPage([batch for _, batch in page], next_cursor))


async def get_batch(call: Call[object, None]) -> Response:
    """A batch, and how far it is."""
    return json_response(await call.services.batches.find(call.session.id, call.path("id")))


async def pause_batch(call: Call[object, None]) -> Response:
    """Pause a batch: what is on its way to the mail server goes on, and nothing else."""
    return json_response(await call.services.steering.pause(call.session.id, call.path("id")))


async def resume_batch(call: Call[object, None]) -> Response:
    """Go on with a batch that is paused, whoever paused it."""
    return json_response(await call.services.steering.resume(call.session.id, call.path("id")))


async def cancel_batch(call: Call[object, None]) -> Response:
    """Cancel what is still queued or deferred of a batch, for good."""
    return json_response(await call.services.steering.cancel(call.session.id, call.path("id")))


async def retry_batch(call: Call[object, None]) -> Response:
    """Send the failed and the uncertain messages of a batch again.

    An uncertain message may have been delivered: it then comes twice, with the same Message-ID.
    """
    return json_response(await call.services.steering.retry(call.session.id, call.path("id")))
