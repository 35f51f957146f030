"""Reports as files: every message in them, and nothing in them that a program would run."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anyio import CancelScope, CapacityLimiter
from hypothesis import given
from hypothesis import strategies as st

from cbemail.api.report import csv_report, ndjson_report, parquet_report, safe_cell
from cbemail.errors import Overloaded
from cbemail.outbox.batch import MessageView
from cbemail.store.records import SendState
from cbemail.store.spool import SpoolFormat, open_table


def message(index: int, **changes: Any) -> MessageView:
    usual: dict[str, Any] = {
        "id": f"msg_{index}",
        "index": index,
        "key": None,
        "to": "ann@example.org",
        "state": SendState.SENT,
        "attempts": 1,
        "message_id": "<a@example.org>",
        "status": 250,
        "enhanced": "2.0.0",
        "detail": None,
        "next_attempt_at": None,
        "finished_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return MessageView(**(usual | changes))


async def pieces(*given: Sequence[MessageView]) -> AsyncGenerator[Sequence[MessageView], None]:
    for piece in given:
        yield piece


async def lines(*given: Sequence[MessageView]) -> str:
    return b"".join([piece async for piece in csv_report(pieces(*given))]).decode()


async def test_a_csv_has_one_header_line_and_a_line_for_each_message() -> None:
    report = await lines([message(0), message(1)], [message(2, state=SendState.FAILED)])

    assert report.splitlines(keepends=True) == [
        "id,index,key,to,state,attempts,message_id,status,enhanced,detail,next_attempt_at,finished_at\r\n",
        "msg_0,0,,ann@example.org,sent,1,<a@example.org>,250,2.0.0,,,2026-01-02T03:04:05Z\r\n",
        "msg_1,1,,ann@example.org,sent,1,<a@example.org>,250,2.0.0,,,2026-01-02T03:04:05Z\r\n",
        "msg_2,2,,ann@example.org,failed,1,<a@example.org>,250,2.0.0,,,2026-01-02T03:04:05Z\r\n",
    ]


async def test_a_csv_of_nothing_has_its_header_line() -> None:
    assert (await lines([])).startswith("id,index,key,to,")


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
async def test_a_csv_is_read_as_it_was_written(texts: list[tuple[str, str]]) -> None:
    report = await lines([message(i, key=key, detail=text) for i, (key, text) in enumerate(texts)])

    read = list(csv.DictReader(StringIO(report, newline=""), strict=True))

    written = [(safe_cell(key), safe_cell(text)) for key, text in texts]
    assert [(row["key"], row["detail"]) for row in read] == written


@pytest.mark.parametrize(
    "text",
    ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\0=1", "\uff1d1", "\uff201"],
    ids=repr,
)
def test_a_text_that_a_spreadsheet_would_run_is_shown_instead(text: str) -> None:
    assert safe_cell(text) == "'" + text


@pytest.mark.parametrize("value", ["", "a=1", "<-@->", " x", "'", 0, -1, None])
def test_what_is_no_formula_stays_as_it_is(value: object) -> None:
    assert safe_cell(value) == value


async def test_a_line_of_ndjson_is_a_message_as_the_page_has_it() -> None:
    messages = [message(0), message(1, detail="a\nb\u2028")]

    report = b"".join([piece async for piece in ndjson_report(pieces(messages, []))])

    read = [msgspec.json.decode(line, type=MessageView) for line in report.split(b"\n")[:-1]]
    assert read == messages
    assert report.endswith(b"\n")


# ---- Parquet


async def parquet(spool: Path, *given: Sequence[MessageView]) -> Path:
    """The report, as a client has it."""
    report = spool / "downloaded.parquet"
    stream = parquet_report(pieces(*given), spool, CapacityLimiter(1))
    report.write_bytes(b"".join([piece async for piece in stream]))
    return report


async def test_a_parquet_file_has_every_message_and_leaves_none_of_itself(tmp_path: Path) -> None:
    report = await parquet(
        tmp_path, [message(0, key="=k"), message(1, status=None)], [message(2)], []
    )

    with open_table(report, SpoolFormat.PARQUET) as table:
        rows = [dict(zip(table.columns, row, strict=True)) for row in chain(*table.chunks())]
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert [row["key"] for row in rows] == ["=k", None, None]
    assert [row["status"] for row in rows] == ["250", None, "250"]
    assert rows[0]["to"] == "ann@example.org"
    assert rows[0]["state"] == "sent"
    assert rows[0]["finished_at"] == "2026-01-02 03:04:05"
    assert list(rows[0]) == list(MessageView.__struct_fields__)
    assert files_in(tmp_path) == ["downloaded.parquet"]


async def test_a_client_that_leaves_ends_the_writing_of_its_report(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def endless() -> AsyncGenerator[Sequence[MessageView], None]:
        yield [message(0)]
        asked.set()
        await asyncio.Event().wait()

    async def leave(hang_up: CancelScope) -> None:
        await asked.wait()
        hang_up.cancel()

    rows = endless()
    with CancelScope() as hang_up:
        leaving = asyncio.create_task(leave(hang_up))
        async for _ in parquet_report(rows, tmp_path, CapacityLimiter(1)):
            pytest.fail("the report came to its end")
    await leaving

    assert hang_up.cancelled_caught
    assert files_in(tmp_path) == []
    assert await anext(rows, None) is None


async def test_a_disk_that_is_full_is_our_matter_and_passes(tmp_path: Path) -> None:
    with pytest.raises(Overloaded) as full:
        await anext(parquet_report(pieces([]), tmp_path / "gone", CapacityLimiter(1)))

    assert full.value.retry_after == 60


def files_in(spool: Path) -> list[str]:
    return [path.name for path in spool.iterdir()]
