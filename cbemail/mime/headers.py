"""Header fields as received: from raw octets to text, dates, ids and the headers a summary shows. Total and bounded."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote_to_bytes

from msgspec import Struct, field

from cbemail.mime import limits
from cbemail.mime.address import Address, read_addresses
from cbemail.mime.automatic import AUTOMATIC_FIELDS, is_automatic_reply
from cbemail.mime.charset import decode_octets
from cbemail.mime.words import decode_text, one_line


class HeaderField(NamedTuple):
    """One field of a header: its name as written, its value unfolded (RFC 5322 2.2.3) and otherwise raw."""

    name: str
    value: bytes


_FIELD = re.compile(rb"^([!-9;-~]{1,998}+)[ \t]*+:((?:[^\n]++|\n[ \t])*+)", re.MULTILINE)
_END = re.compile(rb"\n\r?\n")


def read_header_block(block: bytes) -> list[HeaderField]:
    """The fields of a header, in order, up to the first empty line. What is no field is skipped."""
    return [
        HeaderField(field[1].decode("ascii"), _unfold(field[2])) for field in _find_fields(block)
    ]


def _find_fields(block: bytes) -> Iterator[re.Match[bytes]]:
    block = block[: limits.HEADER_BLOCK]
    if b"\n" not in block:  # a sender whose line ends are bare CRs
        block = block.replace(b"\r", b"\n")
    end = _END.search(block)
    fields = _FIELD.finditer(block, 0, end.start() if end else len(block))
    return islice(fields, limits.HEADER_FIELDS)


def _unfold(value: bytes) -> bytes:
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    return value.strip()[: limits.FIELD]


# ---- summaries


class SummaryHeaders(Struct, frozen=True):
    """The header fields a summary shows, decoded."""

    message_id: str | None = None
    in_reply_to: str | None = None
    references: list[str] = []
    subject: str | None = None
    from_: Address | None = field(default=None, name="from")
    to: list[Address] = []
    cc: list[Address] = []
    bcc: list[Address] = []
    reply_to: list[Address] = []
    date: datetime | None = None
    is_automatic_reply: bool = False
    failed_recipients: list[Address] = []  # as Exim and Gmail name them in a bounce


def read_summary_headers(block: bytes) -> SummaryHeaders:
    """The summary of a header block, whole or as `HEADER.FIELDS` gives it.

    Of a field that may stand once only, the first counts; address fields that stand twice are read as one
    (RFC 5322 4.5.3).
    """
    values: dict[bytes, bytes] = {}
    for match in _find_fields(block):
        name = match[1].lower()
        if name not in _SUMMARY_FIELDS:
            continue
        if name not in values:
            values[name] = _unfold(match[2])
        elif name in (b"to", b"cc", b"bcc") and len(values[name]) < limits.FIELD:
            values[name] += b", " + _unfold(match[2])
    addresses = {name: read_addresses(values[name]) for name in _ADDRESS_FIELDS if name in values}
    subject = decode_text(values[b"subject"]) if b"subject" in values else None
    message_ids = read_message_ids(values.get(b"message-id", b""))
    in_reply_to = read_message_ids(values.get(b"in-reply-to", b""))
    authors = addresses.get(b"from") or addresses.get(b"sender")
    return SummaryHeaders(
        message_id=message_ids[0] if message_ids else None,
        in_reply_to=in_reply_to[0] if in_reply_to else None,
        references=read_message_ids(values.get(b"references", b"")),
        subject=subject,
        from_=authors[0] if authors else None,
        to=addresses.get(b"to", []),
        cc=addresses.get(b"cc", []),
        bcc=addresses.get(b"bcc", []),
        reply_to=addresses.get(b"reply-to", []),
        date=read_date(values.get(b"date", b"")),
        is_automatic_reply=not _AUTOMATIC_FIELDS.isdisjoint(values)
        and is_automatic_reply(values, subject or ""),
        failed_recipients=addresses.get(b"x-failed-recipients", []),
    )


_ADDRESS_FIELDS = (b"from", b"sender", b"to", b"cc", b"bcc", b"reply-to", b"x-failed-recipients")
_AUTOMATIC_FIELDS = frozenset(AUTOMATIC_FIELDS)
_SUMMARY_FIELDS = _AUTOMATIC_FIELDS.union(
    (*_ADDRESS_FIELDS, b"message-id", b"in-reply-to", b"references", b"subject", b"date")
)


_MESSAGE_ID = re.compile(r"<([^<>]{1,998})>")


def read_message_ids(raw: bytes) -> list[str]:
    """The message ids of a Message-ID, In-Reply-To or References field, each with its angle brackets.

    Of too many, the first (the thread's root) and the latest are kept.
    """
    text = one_line(decode_octets(raw[: limits.FIELD], None))
    found = _MESSAGE_ID.findall(text)
    if not found:  # some senders leave the brackets out
        words = text.replace("<", " ").replace(">", " ").split()
        found = words if all("@" in word for word in words) else []
    if len(found) > limits.MESSAGE_IDS:
        found = [found[0], *found[1 - limits.MESSAGE_IDS :]]
    # White space inside an id is the trace of a fold in the middle of it.
    ids = ("".join(each.split()) for each in found)
    return [f"<{each}>" for each in ids if each]


# ---- dates


_DATE = re.compile(
    rb"(?P<day>\d{1,2})[ \t-]+(?P<month>[A-Za-z]{3})[a-z]*[ \t,-]+(?P<year>\d{2,4})[ \t,]+"
    rb"(?P<hour>\d{1,2})[:.](?P<minute>\d{2})(?:[:.](?P<second>\d{2}))?(?:\.\d{1,9})?[ \t]*"
    rb"(?P<zone>[+-]\d{1,2}:?\d{2}|[A-Za-z]{1,5})?"
)
_ASCTIME = re.compile(
    rb"(?P<month>[A-Za-z]{3})[ \t]+(?P<day>\d{1,2})[ \t]+"
    rb"(?P<hour>\d{1,2}):(?P<minute>\d{2}):(?P<second>\d{2})[ \t]+"
    rb"(?P<zone>[A-Za-z]{1,5}[ \t]+)?(?P<year>\d{4})"
)
_ISO = re.compile(
    rb"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})[T ]"
    rb"(?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?(?:\.\d{1,9})?[ \t]*"
    rb"(?P<zone>[+-]\d{2}:?\d{2}|Z)?"
)
_MONTHS = dict(
    zip(b"jan feb mar apr may jun jul aug sep oct nov dec".split(), range(1, 13), strict=True)
)
# RFC 5322 4.3; every other name means "unknown", that is UTC
_ZONES = {
    b"est": -5,
    b"edt": -4,
    b"cst": -6,
    b"cdt": -5,
    b"mst": -7,
    b"mdt": -6,
    b"pst": -8,
    b"pdt": -7,
}
_LONGEST_DATE = 128  # with a day name, a comment and generous spacing
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_date(raw: bytes) -> datetime | None:
    """A Date field (RFC 5322 3.3, 4.3; asctime and ISO 8601 too) in UTC, None when it tells no time after 1970."""
    raw = raw[:_LONGEST_DATE]
    match = _DATE.search(raw) or _ASCTIME.search(raw) or _ISO.search(raw)
    if match is None:
        return None
    day, month, year, hour, minute, second, zone = match.group(
        "day", "month", "year", "hour", "minute", "second", "zone"
    )
    number = _MONTHS.get(month.lower()) or (int(month) if month.isdigit() else 0)
    try:
        local = datetime(
            _full_year(year),
            number,
            int(day),
            int(hour),
            int(minute),
            min(int(second or 0), 59),
            tzinfo=UTC,
        )
        moment = local - _offset(zone or b"")
    except (ValueError, OverflowError):
        return None
    return moment if moment >= _EPOCH else None


def _full_year(year: bytes) -> int:
    number = int(year)
    if len(year) == 2:  # RFC 5322 4.3
        return number + (2000 if number < 50 else 1900)
    return number + 1900 if len(year) == 3 else number


def _offset(zone: bytes) -> timedelta:
    sign, digits = zone[:1], zone[1:].replace(b":", b"")
    if not digits.isdigit():
        return timedelta(hours=_ZONES.get(zone.strip().lower(), 0))
    offset = timedelta(hours=int(digits[:-2]), minutes=int(digits[-2:]))
    return -offset if sign == b"-" else offset


# ---- parameters and file names


def decode_parameter(parameters: Mapping[str, bytes], name: str) -> str | None:
    """The value of a MIME parameter, whichever way it was encoded; ``parameters`` have lower-case names.

    RFC 2231 first (``filename*``, ``filename*0*`` …), then the plain parameter with RFC 2047 words, which do not
    belong there and are what most senders write.
    """
    extended = parameters.get(f"{name}*")
    if extended is not None:
        return _decode_extended([(extended, True)])
    segments: list[tuple[bytes, bool]] = []
    for index in range(limits.PARAMETER_SEGMENTS):
        if (segment := parameters.get(f"{name}*{index}*")) is not None:
            segments.append((segment, True))
        elif (segment := parameters.get(f"{name}*{index}")) is not None:
            segments.append((segment, False))
        else:
            break
    if any(is_extended for _, is_extended in segments):
        return _decode_extended(segments)
    plain = b"".join(segment for segment, _ in segments) or parameters.get(name)
    return None if plain is None else decode_text(plain)


def _decode_extended(segments: list[tuple[bytes, bool]]) -> str:
    """RFC 2231 4: ``charset'language'text`` in the first segment, percent-encoding in the extended ones."""
    charset = None
    (first, is_extended), *rest = segments
    if is_extended and first.count(b"'") >= 2:
        claim, _, first = first.split(b"'", 2)
        charset = claim.decode("ascii", "replace")
    octets = b"".join(
        unquote_to_bytes(text) if encoded else text
        for text, encoded in [(first, is_extended), *rest]
    )
    return one_line(decode_octets(octets[: limits.FIELD], charset))


_FORBIDDEN = re.compile(r'[<>:"|?*]')
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\.|\Z)", re.IGNORECASE)
_LONGEST_EXTENSION = 16  # octets; longer is no extension but a dot in a title


def safe_filename(name: str | None, *, fallback: str) -> str:
    """A file name that every system can store and none takes for a path, or ``fallback`` when nothing is left.

    The last step of a path; no control or format characters, which hide an extension by writing direction (U+202E);
    no characters or device names Windows keeps to itself; at most 255 octets, the extension kept.
    """
    text = normalize("NFC", name or "").replace("\\", "/").rpartition("/")[2]
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    text = _FORBIDDEN.sub("_", text).strip().rstrip(". ")
    if not text:
        return fallback
    if _DEVICES.match(text):
        text = "_" + text
    return _shorten(text)


def _shorten(text: str) -> str:
    if len(text.encode()) <= limits.FILENAME:
        return text
    stem, dot, extension = text.rpartition(".")
    suffix = f"{dot}{extension}"
    if not stem or len(suffix.encode()) > _LONGEST_EXTENSION:
        stem, suffix = text, ""
    room = limits.FILENAME - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip(". ") + suffix
