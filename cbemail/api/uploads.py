"""A batch as a form: its part `batch` is held, its part `recipients` goes to a file as it comes, whatever its size."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import anyio.to_thread
from msgspec import Struct
from starlette.requests import Request

from cbemail.api.bodies import LARGE
from cbemail.api.forms import Form, Part
from cbemail.api.operation import Upload
from cbemail.errors import InvalidRequest, Overloaded, PayloadTooLarge, UnsupportedMediaType
from cbemail.ids import SessionId
from cbemail.store.spool import SpoolFormat

WRITTEN_AT_ONCE = 1 << 20  # octets, by a thread: a full disk cache would hold up the event loop
FILES_AT_ONCE = 16  # that are being received or read in; each may be MAX_BATCH_MB large
FILES_OF_A_SESSION = 4

_FORMATS = {
    "text/csv": SpoolFormat.CSV,
    "application/csv": SpoolFormat.CSV,
    "application/x-ndjson": SpoolFormat.NDJSON,
    "application/ndjson": SpoolFormat.NDJSON,
    "application/jsonl": SpoolFormat.NDJSON,
    "application/vnd.apache.parquet": SpoolFormat.PARQUET,
    "application/x-parquet": SpoolFormat.PARQUET,
}
_EXTENSIONS = {
    ".csv": SpoolFormat.CSV,
    ".ndjson": SpoolFormat.NDJSON,
    ".jsonl": SpoolFormat.NDJSON,
    ".parquet": SpoolFormat.PARQUET,
}


class SpooledFile:
    """A file of the spool folder, which nobody else reads. Who has it removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sha256 = sha256()
        self._file: int | None = None

    @property
    def digest(self) -> bytes:
        """The SHA-256 of what is written."""
        return self._sha256.digest()

    def open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, data: bytes | bytearray) -> None:
        assert self._file is not None  # noqa: S101 - it is open until it is closed
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._sha256.update(data)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


class UploadedBatch(Struct, frozen=True):
    """The two parts of the form."""

    batch: bytearray
    file: SpooledFile
    format: SpoolFormat


def format_of(part: Part) -> SpoolFormat:
    """What the part is written in, by its media type, else by its file name, else CSV.

    Programs that do not know a file call it application/octet-stream, or what their system does: so a media type that
    is none of these says nothing where the name says something.
    """
    known = _FORMATS.get(part.content_type)
    if known is None:
        known = _EXTENSIONS.get(PurePosixPath(part.filename).suffix.lower())
    if known is None and part.content_type:
        raise UnsupportedMediaType(
            "The part recipients is text/csv, application/x-ndjson or application/vnd.apache.parquet."
        )
    return known or SpoolFormat.CSV


async def receive_form(
    request: Request[Any],
    upload: Upload,
    spool: Path,
    session_id: SessionId,
    *,
    most: int,
    batch: int,
) -> UploadedBatch:
    """Read a form of at most ``most`` octets, whose part `batch` has at most ``batch``.

    Whatever goes wrong, the client's hanging up too, no file is left behind.

    Raises:
        InvalidRequest, UnsupportedMediaType, PayloadTooLarge: it is no such form.
        Overloaded: there is no room for it at present.
    """
    receiver = _Receiver(upload, spool, session_id, batch)
    form = Form(request.headers.get("content-type", ""))
    try:
        async with aclosing(upload.chunks(most)) as chunks:
            await _read(form, chunks, receiver)
        return await receiver.finish()
    except OSError as exc:
        receiver.discard()
        raise Overloaded("There is no room to take the file just now.", retry_after=60) from exc
    except BaseException:
        receiver.discard()
        raise


async def _read(form: Form, chunks: AsyncIterator[bytes], receiver: "_Receiver") -> None:
    async for chunk in chunks:
        for piece in form.feed(chunk):
            if isinstance(piece, Part):
                await receiver.begin(piece)
            else:
                await receiver.take(piece)
    if not form.complete:
        raise InvalidRequest("The form breaks off before its end.")


class _Receiver:
    """Where the parts go."""

    def __init__(self, upload: Upload, spool: Path, session_id: SessionId, most: int) -> None:
        self._upload = upload
        self._spool = spool
        self._session_id = session_id
        self._most = most
        self._batch: bytearray | None = None
        self._file: SpooledFile | None = None
        self._format = SpoolFormat.CSV
        self._pending = bytearray()
        self._in_file = False

    async def begin(self, part: Part) -> None:
        self._in_file = part.name == "recipients"
        if part.name not in {"batch", "recipients"}:
            raise InvalidRequest.at(
                "#", "The form has two parts, named batch and recipients, and no other."
            )
        if (self._file if self._in_file else self._batch) is not None:
            raise InvalidRequest.at(f"#/{part.name}", f"The form has two parts named {part.name}.")
        if not self._in_file:
            self._batch = bytearray()
            return
        self._format = format_of(part)
        prefix = f"upload-{self._session_id}-"
        await anyio.to_thread.run_sync(_require_room, self._spool, prefix)
        # Ours before it is there: a client that hangs up now leaves nothing behind either.
        self._file = SpooledFile(self._spool / f"{prefix}{secrets.token_hex(8)}")
        await anyio.to_thread.run_sync(self._file.open)

    async def take(self, data: bytes) -> None:
        if self._in_file:
            self._pending += data
            if len(self._pending) >= WRITTEN_AT_ONCE:
                await self._write()
        elif self._batch is not None:
            if len(self._batch) + len(data) > LARGE:
                await self._upload.hold(self._most)
            self._batch += data
            if len(self._batch) > self._most:
                raise PayloadTooLarge(f"The part batch may have at most {self._most} octets.")

    async def finish(self) -> UploadedBatch:
        if self._batch is None or self._file is None:
            missing = "recipients" if self._file is None else "batch"
            raise InvalidRequest.at(f"#/{missing}", f"The form has no part named {missing}.")
        await self._write()
        self._file.close()
        return UploadedBatch(self._batch, self._file, self._format)

    async def _write(self) -> None:
        if self._file is not None:
            pending, self._pending = self._pending, bytearray()
            await anyio.to_thread.run_sync(self._file.write, pending)

    def discard(self) -> None:
        if self._file is not None:
            self._file.remove()


def _require_room(spool: Path, prefix: str) -> None:
    """Room for one more file: each may be large, and takes as long as its client likes."""
    names = [path.name for path in spool.iterdir() if path.name.startswith("upload-")]
    of_session = sum(name.startswith(prefix) for name in names)
    if len(names) >= FILES_AT_ONCE or of_session >= FILES_OF_A_SESSION:
        raise Overloaded("Too many files are being received at once.", retry_after=10)
