"""Forms with a file: it ends up in the spool folder, octet for octet; and whatever goes wrong, it does not stay there."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from cbemail.api import uploads
from cbemail.api.bodies import LARGE, Bodies
from cbemail.api.forms import Part
from cbemail.api.operation import Upload
from cbemail.api.uploads import UploadedBatch, format_of, receive_form
from cbemail.errors import InvalidRequest, Overloaded, PayloadTooLarge, UnsupportedMediaType
from cbemail.ids import SessionId
from cbemail.store.spool import SpoolFormat

SESSION = SessionId("ses_1")
BATCH = b'--x\r\nContent-Disposition: form-data; name="batch"\r\n\r\n{}\r\n'
END = b"--x--\r\n"


def recipients(content: bytes, *more: str) -> bytes:
    head = ['Content-Disposition: form-data; name="recipients"; filename="a.csv"', *more]
    return b"--x\r\n" + "\r\n".join(head).encode() + b"\r\n\r\n" + content + b"\r\n"


def request(*pieces: bytes, stays: bool = True, length: int | None = None) -> Request:
    """A request whose body comes in these pieces; then the client leaves, unless it stays to the end."""
    left = list(pieces)

    async def receive() -> Message:
        if left:
            piece = left.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(left) or not stays}
        return {"type": "http.disconnect"}

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def received(
    spool: Path, given: Request, *, most: int = 10_000_000, batch: int = 1000
) -> UploadedBatch:
    return await receive_form(
        given, Upload(given, Bodies()), spool, SESSION, most=most, batch=batch
    )


def octets_in(spool: Path) -> int:
    return sum(path.stat().st_size for path in spool.iterdir())


def left_in(spool: Path) -> int:
    return len(list(spool.iterdir()))


@pytest.mark.parametrize("parts", [(BATCH, recipients(b"to\r\n")), (recipients(b"to\r\n"), BATCH)])
async def test_the_parts_may_come_in_either_order(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    form = await received(tmp_path, request(b"".join(parts) + END))

    assert form.batch == b"{}"
    assert form.file.path.read_bytes() == b"to\r\n"
    assert form.format is SpoolFormat.CSV


async def test_a_large_file_is_on_disk_octet_for_octet_for_its_owner_alone(tmp_path: Path) -> None:
    content = b"ann@example.org,1\n" * 200_000
    body = BATCH + recipients(content) + END
    pieces = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]

    form = await received(tmp_path, request(*pieces))

    assert form.file.path.read_bytes() == content
    assert form.file.digest == sha256(content).digest()
    assert form.file.path.stat().st_mode & 0o777 == 0o600
    form.file.remove()
    assert left_in(tmp_path) == 0


async def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    """What is held back while it arrives is less than two writes."""
    sizes: list[int] = []
    body = BATCH + recipients(b"x" * 8_000_000) + END
    pieces = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]

    async def receive() -> Message:
        sizes.append(octets_in(tmp_path))
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    await received(tmp_path, Request(request().scope, receive))

    held = [index * 65_536 - size for index, size in enumerate(sizes)]
    assert max(held) < 2 * uploads.WRITTEN_AT_ONCE


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (BATCH + END, "#/recipients"),
        (recipients(b"to") + END, "#/batch"),
        (BATCH + BATCH + recipients(b"to") + END, "#/batch"),
        (BATCH + recipients(b"to") + recipients(b"to") + END, "#/recipients"),
        (BATCH + recipients(b"to").replace(b"recipients", b"file") + END, "#"),
    ],
)
async def test_a_form_has_each_of_its_two_parts_once(
    tmp_path: Path, body: bytes, pointer: str
) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        await received(tmp_path, request(body))

    assert [error.pointer for error in wrong.value.errors] == [pointer]
    assert left_in(tmp_path) == 0


LONG = BATCH + recipients(b"to\r\n" + b"x" * 3_000_000)


async def test_a_client_that_hangs_up_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ClientDisconnect):
        await received(tmp_path, request(LONG, stays=False))

    assert left_in(tmp_path) == 0


@pytest.mark.parametrize(
    ("given", "most"),
    [
        (request(LONG + END), 1_000_000),
        (request(LONG, b"y" * 5_000_000), 5_000_000),
        (request(LONG + END, length=10**9), 5_000_000),
    ],
    ids=["at once", "in the middle", "announced"],
)
async def test_a_form_that_is_too_large_leaves_no_file(
    tmp_path: Path, given: Request, most: int
) -> None:
    with pytest.raises(PayloadTooLarge):
        await received(tmp_path, given, most=most)

    assert left_in(tmp_path) == 0


async def test_the_batch_itself_is_bounded_too(tmp_path: Path) -> None:
    body = recipients(b"to") + BATCH.replace(b"{}", b" " * 2000) + END

    with pytest.raises(PayloadTooLarge, match="part batch"):
        await received(tmp_path, request(body))

    assert left_in(tmp_path) == 0


@pytest.mark.parametrize("body", [LONG, LONG + b"--x", LONG + b"--x\r\n\r\n", LONG + b"--x\r\n:"])
async def test_a_form_that_breaks_off_leaves_no_file(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await received(tmp_path, request(body))

    assert left_in(tmp_path) == 0


async def test_a_disk_that_takes_no_file_is_our_matter_and_passes(tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    with pytest.raises(Overloaded) as full:
        await received(gone, request(BATCH + recipients(b"to") + END))

    assert full.value.retry_after == 60


async def test_one_session_cannot_fill_the_disk(tmp_path: Path) -> None:
    for _ in range(uploads.FILES_OF_A_SESSION):
        await received(tmp_path, request(BATCH + recipients(b"to") + END))

    with pytest.raises(Overloaded, match="at once"):
        await received(tmp_path, request(BATCH + recipients(b"to") + END))

    assert left_in(tmp_path) == uploads.FILES_OF_A_SESSION


# ---- what the file is


@pytest.mark.parametrize(
    ("content_type", "filename", "format"),
    [
        ("", "", SpoolFormat.CSV),
        ("text/csv", "", SpoolFormat.CSV),
        ("text/csv", "a.parquet", SpoolFormat.CSV),
        ("", "a.NDJSON", SpoolFormat.NDJSON),
        ("application/octet-stream", "people.csv", SpoolFormat.CSV),
        ("application/octet-stream", "people.jsonl", SpoolFormat.NDJSON),
        ("application/octet-stream", "../../people.parquet", SpoolFormat.PARQUET),
        ("application/vnd.ms-excel", "people.csv", SpoolFormat.CSV),
        ("application/x-ndjson", "", SpoolFormat.NDJSON),
        ("application/jsonl", "", SpoolFormat.NDJSON),
        ("application/vnd.apache.parquet", "", SpoolFormat.PARQUET),
        ("application/x-parquet", "", SpoolFormat.PARQUET),
    ],
)
def test_a_file_is_what_it_is_called(
    content_type: str,
    filename: str,
    format: SpoolFormat,  # noqa: A002 - clients' word
) -> None:
    assert format_of(Part("recipients", filename, content_type)) is format


@pytest.mark.parametrize(
    ("content_type", "filename"),
    [("application/json", ""), ("application/octet-stream", "a.xlsx"), ("text/plain", "a")],
)
def test_another_kind_of_file_is_refused(content_type: str, filename: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        format_of(Part("recipients", filename, content_type))


async def test_a_large_part_that_is_held_takes_room_in_memory_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    bodies = Bodies(2 * LARGE, patience=0)
    await bodies.take(LARGE)
    head, end = BATCH.split(b"{}")
    given = request(recipients(b"to\r\n"), head, b" " * (LARGE + 1), end, END)

    with pytest.raises(Overloaded):
        await receive_form(
            given, Upload(given, bodies), tmp_path, SESSION, most=10 * LARGE, batch=2 * LARGE
        )

    assert left_in(tmp_path) == 0
