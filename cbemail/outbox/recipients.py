"""The recipients of a batch as they arrive, in JSON or in a file, read piece by piece: never all of them in memory.

What is wrong with one recipient is a value, `Unfit`, and no matter of the others. What is wrong with the whole list is
an `InvalidRequest`.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
from anyio import CancelScope
from msgspec import Raw, Struct

from cbemail.errors import InvalidRequest
from cbemail.mime.address import Address, check_address, parse_address
from cbemail.mime.words import is_one_line
from cbemail.outbox.content import StoredMessage
from cbemail.outbox.merge import RenderedMessage
from cbemail.store.spool import SpoolError, SpoolFormat, SpoolTable, open_table
from cbemail.turns import Turn

PIECE = 250  # recipients: a few milliseconds of work
CHUNK = 2_000  # rows of a file that are read at once
# Octets of one recipient: all escapes, it still has what may be stored of it at most.
MAX_JSON = 192 * 1024
MAX_VARIABLES = 200
MAX_NESTING = 20  # lists and objects in one another; a reader of what is stored has no deeper stack
MAX_ADDRESSES = 100  # of one recipient; each becomes a row, with all the variables
MAX_KEY = 200  # characters
_WRITTEN = 1_000  # characters that are kept of what was written for an address


class Entry(Struct, frozen=True):
    """One recipient that may be sent to, as far as it can be told alone. ``position`` is its index in the request.

    A mail merge has ``variables``. Else ``message`` is composed, ``message_id`` is the one in it, and the first few
    bring a ``preview`` for a dry run.
    """

    position: int
    to: list[Address]
    cc: list[Address] = []
    bcc: list[Address] = []
    variables: dict[str, Any] = {}
    key: str | None = None
    message: StoredMessage | None = None
    message_id: str | None = None
    preview: RenderedMessage | None = None


class Unfit(Struct, frozen=True):
    """A recipient that cannot be sent to. ``to`` is what was written there."""

    position: int
    to: str
    code: str
    detail: str
    key: str | None = None


Entries = Callable[[], AsyncIterator[Sequence[Entry | Unfit]]]  # called anew for each reading


def from_json(raws: Sequence[Raw]) -> Entries:
    """The recipients of a JSON body, still undecoded: `{"to", "cc"?, "bcc"?, "variables"?, "key"?}` each."""

    async def entries() -> AsyncIterator[Sequence[Entry | Unfit]]:
        turn = Turn()
        for start in range(0, len(raws), PIECE):
            yield await _read(_read_json, start, raws[start : start + PIECE], turn)

    return entries


def from_file(path: Path, format: SpoolFormat) -> Entries:  # noqa: A002 - the word everybody uses for it
    """The recipients of a file. In a table the column `to` or `email` is the address; `cc` and `bcc` hold addresses
    with commas between them; `key` is the caller's own; every other column is a variable. A line of NDJSON is what an
    item of a JSON body is.

    Reading raises InvalidRequest where the file is damaged, has no such column, or no rows.
    """

    async def entries() -> AsyncIterator[Sequence[Entry | Unfit]]:
        try:
            async with aclosing(_pieces(path, format)) as pieces:
                async for piece in pieces:
                    yield piece
        except SpoolError as exc:
            unit = "Row" if format is SpoolFormat.PARQUET else "Line"
            where = "" if exc.row is None else f"{unit} {exc.row}: "
            raise InvalidRequest.at("#/recipients", where + exc.detail) from exc

    return entries


async def _pieces(
    path: Path,
    format: SpoolFormat,  # noqa: A002 - as above
) -> AsyncGenerator[Sequence[Entry | Unfit], None]:
    turn = Turn()
    position = 0
    async with _opened(path, format) as table:
        read = _read_line if format is SpoolFormat.NDJSON else _Columns(table.columns).read
        chunks = table.chunks(CHUNK)
        while chunk := await anyio.to_thread.run_sync(next, chunks, None):
            for start in range(0, len(chunk), PIECE):
                rows = chunk[start : start + PIECE]
                yield await _read(read, position + start, rows, turn)
            position += len(chunk)
    if position == 0:
        raise InvalidRequest.at("#/recipients", "There are no recipients in the file.")


@asynccontextmanager
async def _opened(path: Path, format: SpoolFormat) -> AsyncIterator[SpoolTable]:  # noqa: A002 - as above
    opening = open_table(path, format)
    table = await anyio.to_thread.run_sync(opening.__enter__)
    try:
        yield table
    finally:
        with CancelScope(shield=True):  # what is open in a thread is closed in one
            await anyio.to_thread.run_sync(opening.__exit__, None, None, None)


async def _read(
    read: Callable[[int, Any], Entry | Unfit], start: int, rows: Sequence[Any], turn: Turn
) -> list[Entry | Unfit]:
    """A piece, recipient by recipient: a large one takes as long as a thousand of the usual."""
    piece = []
    for position, row in enumerate(rows, start):
        await turn.share()
        piece.append(read(position, row))
    return piece


# ---- JSON


class _Mailbox(Struct, frozen=True, forbid_unknown_fields=True):
    address: str
    name: str | None = None


_OneAddress = str | _Mailbox
_Addresses = _OneAddress | list[_OneAddress] | None


class _Written(Struct, frozen=True, forbid_unknown_fields=True):
    to: _Addresses = None
    cc: _Addresses = None
    bcc: _Addresses = None
    variables: dict[str, Any] | None = None
    key: str | int | None = None


class _Refused(Exception):
    """What makes a recipient unfit: its code and a sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


_decode = msgspec.json.Decoder(_Written).decode
_AT = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*?)`( - at |$)", re.DOTALL)


def _read_line(position: int, row: tuple[str | None, ...]) -> Entry | Unfit:
    return _read_json(position, row[0] or "")


def _read_json(position: int, raw: Raw | str) -> Entry | Unfit:
    if _size(raw) > MAX_JSON:
        detail = f"A recipient has at most {MAX_JSON} octets of JSON."
        return Unfit(position, "", "too-large", detail)
    try:
        written = _decode(raw)
        to, cc, bcc = _listed(written.to), _listed(written.cc), _listed(written.bcc)
        variables = written.variables or {}
        _check_nesting(variables)
        return _entry(position, (to, cc, bcc), variables, _key(written.key))
    except msgspec.ValidationError as exc:
        return Unfit(position, _written_to(raw), "invalid-recipient", _sentence(str(exc)))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Unfit(position, "", "invalid-recipient", "This is no valid JSON object.")
    except _Refused as exc:
        return Unfit(position, _written_to(raw), exc.code, exc.detail)


def _size(raw: Raw | str) -> int:
    return len(raw) if isinstance(raw, str) else memoryview(raw).nbytes


def _listed(value: _Addresses) -> list[_OneAddress]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _key(value: str | int | None) -> str | None:
    """The caller's own name for a recipient. Whole numbers are what databases count in, so they are taken as text."""
    if isinstance(value, int):
        if abs(value) >= 2**64:  # and a number of five thousand digits cannot be written at all
            raise _Refused("invalid-recipient", "A key that is a number has at most 64 bits.")
        return str(value)
    return value


def _check_nesting(value: object, depth: int = 0) -> None:
    if not isinstance(value, dict | list):
        return
    if depth > MAX_NESTING:
        raise _Refused("invalid-recipient", f"Variables nest at most {MAX_NESTING} deep.")
    for item in value.values() if isinstance(value, dict) else value:
        _check_nesting(item, depth + 1)


def _sentence(message: str) -> str:
    """msgspec's message as ours.

    >>> _sentence("Object contains unknown field `nam` - at `$.to`")
    'A recipient has no field nam.'
    >>> _sentence("Expected `str`, got `bool` - at `$.key`")
    'In key: expected str, got bool.'
    """
    unknown = _UNKNOWN.match(message)
    if unknown is not None:
        return f"A recipient has no field {_printable(unknown['name'])[:100]}."
    at = _AT.match(message)
    what, path = (at["what"], at["path"]) if at is not None else (message, "")
    what = what.replace("`", "").rstrip(".")
    return f"In {path}: {what[:1].lower()}{what[1:]}." if path else f"{what}."


def _written_to(raw: Raw | str) -> str:
    """What stands for the address in a recipient that is wrong somewhere, for its owner to find it by."""
    try:
        written = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
    to = written.get("to") if isinstance(written, dict) else None
    return ", ".join(_shown(one) for one in (to if isinstance(to, list) else [to])[:10])[:_WRITTEN]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("address")
    return value[:_WRITTEN] if isinstance(value, str) else ""


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


# ---- tables


_ADDRESS_COLUMNS = ("to", "email")
_SPECIAL_COLUMNS = ("cc", "bcc", "key")
# An address list is split at commas and semicolons that are in no quoted name; a stray quote ends up in an address.
_BETWEEN = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|[^,;])++', re.DOTALL)


class _Columns:
    """What each column of a table is for."""

    def __init__(self, names: Sequence[str]) -> None:
        names = [name.strip() for name in names]
        folded = [name.casefold() for name in names]
        addresses = [index for index, name in enumerate(folded) if name in _ADDRESS_COLUMNS]
        if len(addresses) != 1:
            raise InvalidRequest.at("#/recipients", _which_address(len(addresses)))
        if len(names) > MAX_VARIABLES:
            detail = f"A recipient has at most {MAX_VARIABLES} variables: the file has {len(names)} columns."
            raise InvalidRequest.at("#/recipients", detail)
        special = {name: folded.index(name) for name in _SPECIAL_COLUMNS if name in folded}
        kept = [index for index in range(len(names)) if index not in special.values()]
        _require_distinct(
            [folded[i] if folded[i] in special else names[i] for i in range(len(names))]
        )
        self._to = addresses[0]
        self._cc, self._bcc, self._key = (special.get(name) for name in _SPECIAL_COLUMNS)
        self._names = [names[index] for index in kept]
        # The usual table has nothing but variables beside the address, and needs no picking.
        self._kept = kept if special else None

    def read(self, position: int, row: tuple[str | None, ...]) -> Entry | Unfit:
        to = (row[self._to] or "").strip()
        try:
            cc = [] if self._cc is None else _split(row[self._cc] or "")
            bcc = [] if self._bcc is None else _split(row[self._bcc] or "")
            key = None if self._key is None else (row[self._key] or "").strip() or None
            cells = row if self._kept is None else [row[index] for index in self._kept]
            variables = dict(zip(self._names, cells, strict=True))
            return _entry(position, ([to] if to else [], cc, bcc), variables, key)
        except _Refused as exc:
            return Unfit(position, to[:_WRITTEN], exc.code, exc.detail)


def _which_address(columns: int) -> str:
    if columns:
        return "Both to and email are columns of the file: call one of them something else."
    return (
        "The file needs a column to or email, named in its first row, with an address in each row."
    )


def _require_distinct(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        detail = f"The file has two columns {_printable(twice)[:100]}."
        raise InvalidRequest.at("#/recipients", detail)


def _split(text: str) -> list[_OneAddress]:
    return [one.strip() for one in _BETWEEN.findall(text) if one.strip()]


# ---- both


def _entry(
    position: int,
    lists: tuple[list[_OneAddress], list[_OneAddress], list[_OneAddress]],
    variables: dict[str, Any],
    key: str | None,
) -> Entry:
    """Raises _Refused."""
    to, cc, bcc = lists
    if not to:
        raise _Refused("invalid-recipient", "Name at least one address in to.")
    if len(to) + len(cc) + len(bcc) > MAX_ADDRESSES:
        detail = f"A recipient has at most {MAX_ADDRESSES} addresses in to, cc and bcc."
        raise _Refused("invalid-recipient", detail)
    if len(variables) > MAX_VARIABLES:
        raise _Refused("too-large", f"A recipient has at most {MAX_VARIABLES} variables.")
    if key is not None and (len(key) > MAX_KEY or not is_one_line(key)):
        detail = f"A key has at most {MAX_KEY} characters, and no control characters."
        raise _Refused("invalid-recipient", detail)
    return Entry(
        position,
        [_address(one, "to") for one in to],
        [_address(one, "cc") for one in cc] if cc else [],
        [_address(one, "bcc") for one in bcc] if bcc else [],
        variables,
        key,
    )


def _address(value: _OneAddress, field: str) -> Address:
    try:
        if isinstance(value, str):
            return parse_address(value)
        return check_address(Address(value.name, value.address))
    except ValueError as exc:
        detail = str(exc) if field == "to" else f"In {field}: {exc}"
        raise _Refused("invalid-address", detail) from exc
