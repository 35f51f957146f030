"""`GET …/{id}/messages`: what became of each message of a batch, a page of it as JSON, or all of it as a file."""

import csv
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
from anyio import CancelScope, CapacityLimiter
from msgspec import Meta, Struct, structs
from starlette.responses import Response

from cbemail.api.codec import decode_cursor, encode_cursor, json_response
from cbemail.api.operation import Call
from cbemail.api.preferences import preferred
from cbemail.api.streaming import Streamed
from cbemail.errors import Overloaded
from cbemail.outbox.batch import MessageView
from cbemail.store.records import SendState
from cbemail.store.spool import ColumnType, SpoolError, write_parquet
from cbemail.turns import Turn

PIECE = 500  # messages: to read and write them takes some milliseconds
JSON = "application/json"
CSV = "text/csv"
NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
REPORTS = {CSV: "csv", NDJSON: "ndjson", PARQUET: "parquet"}  # and the extension of a file of it
ALSO_CALLED = {
    "application/ndjson": NDJSON,
    "application/jsonl": NDJSON,
    "application/x-parquet": PARQUET,
}

_Position = Annotated[int, Meta(ge=0, lt=2**53)]
_Pieces = AsyncGenerator[Sequence[MessageView], None]


class ListBatchMessages(Struct, frozen=True, forbid_unknown_fields=True):
    """``state`` goes for reports too; they have no pages."""

    state: SendState | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: str | None = None


class BatchMessagePage(Struct, frozen=True):
    messages: list[MessageView]
    next_cursor: str | None


async def list_batch_messages(call: Call[ListBatchMessages, None]) -> Response:
    """The messages of a batch, one a recipient, in the order in which they were given.

    With an ``Accept`` for CSV, NDJSON or Parquet the answer is all of them, streamed. In the CSV a text that a
    spreadsheet would take for a formula has an apostrophe before it.
    """
    asked = preferred(call.request, (JSON, *REPORTS, *ALSO_CALLED))
    asked = ALSO_CALLED.get(asked, asked)
    if asked == JSON:
        return await _page(call)
    batch = await call.services.batches.find(call.session.id, call.path("id"))
    headers = {"Content-Disposition": f'attachment; filename="{batch.id}.{REPORTS[asked]}"'}
    if call.request.method == "HEAD":
        return Streamed(_nothing(), asked, headers)
    pieces = _pieces(call)
    match asked:
        case "text/csv":
            stream = csv_report(pieces)
        case "application/x-ndjson":
            stream = ndjson_report(pieces)
        case _:
            stream = parquet_report(pieces, call.services.spool, call.services.tables)
    return Streamed(stream, asked, headers)


async def _nothing() -> AsyncGenerator[bytes, None]:
    """The body of an answer to HEAD, for which no report is made."""
    return
    yield b""  # what makes it a generator


async def _page(call: Call[ListBatchMessages, None]) -> Response:
    query = call.query
    after = None if query.cursor is None else decode_cursor(query.cursor, _Position)
    found = await call.services.batches.messages(
        call.session.id, call.path("id"), state=query.state, after=after, limit=query.limit + 1
    )
    page = found[: query.limit]
    next_cursor = encode_cursor(page[-1][0]) if len(found) > len(page) else None
    return json_response(BatchMessagePage([message for _, message in page], next_cursor))


async def _pieces(call: Call[ListBatchMessages, None]) -> _Pieces:
    """All messages of the state that is asked for, some at a time: no batch is ever in memory."""
    turn = Turn()
    after: int | None = None
    while True:
        found = await call.services.batches.messages(
            call.session.id, call.path("id"), state=call.query.state, after=after, limit=PIECE
        )
        yield [message for _, message in found]
        if len(found) < PIECE:
            return
        after = found[-1][0]
        await turn.share()


# ---- lines of text


async def ndjson_report(pieces: _Pieces) -> AsyncGenerator[bytes, None]:
    """A message a line, as the page has it."""
    encode = msgspec.json.Encoder().encode_lines
    async with aclosing(pieces):
        async for piece in pieces:
            yield encode(piece)


async def csv_report(pieces: _Pieces) -> AsyncGenerator[bytes, None]:
    """RFC 4180, with a header line."""
    names = MessageView.__struct_fields__
    head = ",".join(names) + "\r\n"
    async with aclosing(pieces):
        async for piece in pieces:
            lines = StringIO(head, newline="")
            lines.seek(0, 2)
            writer = csv.writer(lines)  # ends lines with CRLF, and quotes what needs it
            for message in msgspec.to_builtins(piece):
                writer.writerow([safe_cell(message[name]) for name in names])
            yield lines.getvalue().encode()
            head = ""


# What spreadsheets take for the beginning of a formula (OWASP ASVS 1.2.10), also as wide characters; and what they
# skip before they look.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", *"\uff1d\uff0b\uff0d\uff20")


def safe_cell(value: object) -> object:
    """``value`` as it can be opened in a spreadsheet.

    >>> safe_cell("=HYPERLINK(\\"http://example.org\\")")
    '\\'=HYPERLINK("http://example.org")'
    """
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


# ---- Parquet

_FILE_PIECE = 256 * 1024
_TYPES = {
    "index": ColumnType.INTEGER,
    "attempts": ColumnType.INTEGER,
    "status": ColumnType.INTEGER,
    "next_attempt_at": ColumnType.TIMESTAMP,
    "finished_at": ColumnType.TIMESTAMP,
}
COLUMNS = [(name, _TYPES.get(name, ColumnType.VARCHAR)) for name in MessageView.__struct_fields__]


async def parquet_report(
    pieces: _Pieces, spool: Path, limiter: CapacityLimiter
) -> AsyncGenerator[bytes, None]:
    """A Parquet file, which is written whole before its first octet is sent: what is in it stands at its end.

    ``limiter`` bounds how many are written at once, each with memory of its own.
    """
    async with aclosing(pieces):
        path = await _written(pieces, spool, limiter)
        try:
            async with await anyio.open_file(path, "rb") as file:
                while chunk := await file.read(_FILE_PIECE):
                    yield chunk
        finally:
            with CancelScope(shield=True):
                await anyio.to_thread.run_sync(path.unlink)


async def _written(pieces: _Pieces, spool: Path, limiter: CapacityLimiter) -> Path:
    try:
        return await anyio.to_thread.run_sync(
            write_parquet, spool, COLUMNS, _pulled(pieces), limiter=limiter
        )
    except SpoolError as exc:
        raise Overloaded("There is no room to write the report just now.", retry_after=60) from exc


def _pulled(pieces: _Pieces) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The pieces, as the thread that writes them takes them."""
    while piece := anyio.from_thread.run(anext, pieces, None):
        yield [structs.astuple(message) for message in piece]
