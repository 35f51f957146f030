"""What a client writes into a message: addresses, texts, files and times, and where one of them is wrong."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from msgspec import Meta, Struct

from cbemail.errors import FieldError, InvalidRequest
from cbemail.mime.address import Address, check_address, parse_address
from cbemail.mime.draft import Attachment
from cbemail.store.records import SessionRecord
from cbemail.turns import off_the_loop

MAX_RECIPIENTS = (
    1000  # of one message; more are a batch, where each has a copy, and a state, of its own
)
LONGEST_DELAY = timedelta(days=366)  # how far ahead a message may be scheduled


class AddressInput(Struct, frozen=True, forbid_unknown_fields=True):
    """An address in its parts."""

    address: str
    name: str | None = None


SendAt = Annotated[
    datetime,
    Meta(
        tz=True,
        description="When to send it; a time that has passed means now, a year ahead at most.",
    ),
]
OneAddress = str | AddressInput
Addresses = str | AddressInput | list[str | AddressInput] | None


class AttachmentInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A file: ``content`` in base64. With a ``content_id`` it is shown where the HTML says ``cid:`` and that id."""

    filename: str
    content: str
    content_type: str = ""
    content_id: str | None = None


# ---- their values


@contextmanager
def within(pointer: str) -> Iterator[None]:
    """What is wrong in the block is wrong below ``pointer``: `#/to/0` becomes `#/messages/3/to/0`."""
    try:
        yield
    except InvalidRequest as exc:
        errors = [FieldError(pointer + e.pointer.removeprefix("#"), e.detail) for e in exc.errors]
        raise InvalidRequest(exc.detail, errors or [FieldError(pointer, exc.detail)]) from exc


def due_at(send_at: datetime | None, now: datetime) -> datetime | None:
    """When to send what is to be sent at ``send_at``; None for at once, which is also when that has passed."""
    if send_at is None or send_at <= now:
        return None
    if send_at > now + LONGEST_DELAY:
        raise InvalidRequest.at("#/send_at", "A message can be scheduled for a year ahead at most.")
    # To the second, and never before the time that was asked for.
    return (send_at.astimezone(UTC) + timedelta(microseconds=999_999)).replace(microsecond=0)


def sender_of(given: OneAddress | None, session: SessionRecord) -> Address:
    """The session's own address. Another would be a forgery, or at best refused by the server."""
    if given is None:
        return Address(session.name, session.email)
    sender = _address(given, "#/from")
    if sender.address.casefold() != session.email.casefold():
        raise InvalidRequest.at("#/from", f"This session sends as {session.email} only.")
    return Address(sender.name or session.name, session.email)


def _address(value: OneAddress, pointer: str) -> Address:
    try:
        if isinstance(value, str):
            return parse_address(value)
        return check_address(Address(value.name, value.address))
    except ValueError as exc:
        raise InvalidRequest.at(pointer, str(exc)) from exc


def addresses_of(value: Addresses, name: str) -> list[Address]:
    """The addresses of the field ``name``, one or a list."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [_address(value, f"#/{name}")]
    if len(value) > MAX_RECIPIENTS:
        raise InvalidRequest.at(
            f"#/{name}", f"One message takes at most {MAX_RECIPIENTS} recipients."
        )
    return [_address(one, f"#/{name}/{index}") for index, one in enumerate(value)]


def text_of(body: str | None, text: str | None) -> str | None:
    if body is not None and text is not None:
        raise InvalidRequest.at(
            "#/text", "The field text is another name for body: give one of them."
        )
    return body if body is not None else text


async def attachments_of(given: Sequence[AttachmentInput]) -> list[Attachment]:
    attachments = []
    for index, item in enumerate(given):
        try:
            content = await off_the_loop(len(item.content), partial(_decoded, item.content))
        except (Base64Error, ValueError) as exc:
            raise InvalidRequest.at(
                f"#/attachments/{index}/content", "This is not valid base64."
            ) from exc
        attachments.append(Attachment(item.filename, content, item.content_type, item.content_id))
    return attachments


def _decoded(content: str) -> bytes:
    return b64decode("".join(content.split()), validate=True)
