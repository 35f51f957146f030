"""A message as it is, and its parts decoded, octet by octet as the server sends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec import Struct

from cbemail.errors import AttachmentNotFound, MessageNotFound, UpstreamError
from cbemail.ids import SessionId
from cbemail.imap.connection import ImapConnection
from cbemail.imap.directory import FolderDirectory
from cbemail.imap.flight import Completion
from cbemail.imap.messages import fetch, fetch_command
from cbemail.imap.parser import fetch_data
from cbemail.imap.pool import ImapPool
from cbemail.imap.protocol import FolderPath, Part, Uid, UidSet
from cbemail.imap.repeating import begin
from cbemail.mailbox.structure import part_content_type, part_filename
from cbemail.mime.headers import safe_filename
from cbemail.mime.parse import TransferDecoder
from cbemail.timing import spent_on


class PartStream(Struct, frozen=True):
    """Octets on their way. ``size`` is None where it is not known before the end."""

    filename: str
    content_type: str
    size: int | None
    chunks: AsyncIterator[bytes]


class PartReader:
    """Streams. Nothing here changes a message."""

    def __init__(self, pool: ImapPool, directory: FolderDirectory) -> None:
        self._pool = pool
        self._directory = directory

    @asynccontextmanager
    async def raw(
        self, session_id: SessionId, folder_name: str, uid: Uid
    ) -> AsyncIterator[PartStream]:
        """The message byte for byte, as it streams from the server, for as long as the block runs.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def start(imap: ImapConnection, stack: AsyncExitStack) -> PartStream:
            self._directory.require_shown(session_id, imap)
            if uid not in await fetch(imap, [uid], b"RFC822.SIZE"):  # while it is still early
                raise MessageNotFound(f"There is no message {uid} in {folder}.")
            size, octets = await _stream(imap, stack, folder, uid, "")
            return PartStream(f"{uid}.eml", "message/rfc822", size, octets)

        async with begin(self._pool, session_id, folder, start) as part:
            yield part

    @asynccontextmanager
    async def attachment(
        self, session_id: SessionId, folder_name: str, uid: Uid, part_id: str
    ) -> AsyncIterator[PartStream]:
        """One part, decoded as it streams from the server, for as long as the block runs.

        Raises:
            MessageNotFound: there is no message ``uid`` in the folder.
            AttachmentNotFound: it has no part ``part_id``, or that part only holds others.
        """
        folder = await self._directory.resolve(session_id, folder_name)

        async def start(imap: ImapConnection, stack: AsyncExitStack) -> PartStream:
            self._directory.require_shown(session_id, imap)
            part = await _find_part(imap, folder, uid, part_id)
            _, octets = await _stream(imap, stack, folder, uid, part.id)
            return PartStream(
                filename=safe_filename(part_filename(part), fallback=_fallback_name(part)),
                content_type=part_content_type(part),
                size=None,
                chunks=_decoded(octets, part.encoding),
            )

        async with begin(self._pool, session_id, folder, start) as part:
            yield part


async def _find_part(imap: ImapConnection, folder: FolderPath, uid: Uid, part_id: str) -> Part:
    row = (await fetch(imap, [uid], b"BODYSTRUCTURE")).get(uid)
    if row is None:
        raise MessageNotFound(f"There is no message {uid} in {folder}.")
    for part in row.body_structure.walk() if row.body_structure is not None else ():
        if part.id == part_id and not part.is_multipart:
            return part
    raise AttachmentNotFound(f"Message {uid} has no part {part_id[:32]}.")


async def _stream(
    imap: ImapConnection, stack: AsyncExitStack, folder: FolderPath, uid: Uid, section: str
) -> tuple[int, AsyncIterator[bytes]]:
    """The section's size and octets, which the server may send as a literal or in line."""
    command = fetch_command(UidSet([uid]), f"BODY.PEEK[{section}]".encode())
    stream = await stack.enter_async_context(imap.streaming(command))
    await stream.started()
    if stream.size is not None:
        return stream.size, aiter(stream)
    value = _section_of(await stream.completion(), uid, section)
    if value is None:
        raise MessageNotFound(f"There is no message {uid} in {folder}.")
    return len(value), _once(value)


def _section_of(completion: Completion, uid: Uid, section: str) -> bytes | None:
    """A section's value in a completion; an empty one where the server gave NIL."""
    for response in completion.untagged("FETCH"):
        row = fetch_data(response)
        if row.uid == uid and row.defect is not None:
            raise UpstreamError("The mail server's answer cannot be understood.", protocol="imap")
        if row.uid == uid and section in row.sections:
            return row.sections[section]
    return None


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _decoded(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    decoder = TransferDecoder(encoding)
    async for chunk in chunks:
        with spent_on("parse"):
            data = decoder.feed(chunk)
        if data:
            yield data
    data = decoder.finish()
    if data:
        yield data


def _fallback_name(part: Part) -> str:
    extension = {"message/rfc822": "eml", "text/plain": "txt", "text/html": "html"}
    kind = f"{part.type}/{part.subtype}"
    return f"part-{part.id}.{extension.get(kind, 'bin')}"
