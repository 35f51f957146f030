"""`multipart/form-data` (RFC 7578) as it comes: octets in, parts and pieces of them out. No I/O, and nothing is kept."""

from collections.abc import Iterator

from msgspec import Struct
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cbemail.errors import InvalidRequest

MAX_PARTS = 8
MAX_PART_HEADERS = 8
MAX_PART_HEADER = 4096  # octets of one; a file name has 255
MAX_BOUNDARY = 70  # RFC 2046 section 5.1.1


class Part(Struct, frozen=True):
    """The head of a part. ``content_type`` is without parameters, in lower case; empty where none is given."""

    name: str
    filename: str
    content_type: str


class Form:
    """Reads one form. What `feed` gives is a `Part` where one begins, and then its octets.

    >>> form = Form("multipart/form-data; boundary=x")
    >>> list(form.feed(b'--x\\r\\nContent-Disposition: form-data; name="a"\\r\\n\\r\\n1\\r\\n--x--'))
    [Part(name='a', filename='', content_type=''), b'1']
    >>> form.complete
    True
    """

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not 0 < len(boundary) <= MAX_BOUNDARY:
            raise InvalidRequest(
                f"A multipart/form-data body names its boundary, of {MAX_BOUNDARY} characters at most."
            )
        self.complete = False
        self._parts = 0
        self._field = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, str] = {}
        self._read: list[Part | bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_head,
                "on_part_data": lambda data, start, end: self._read.append(data[start:end]),
                "on_end": self._end,
            },
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER,
        )

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        """Read on. InvalidRequest where it is no form, or one of too many parts."""
        try:
            self._parser.write(data)
        except FormParserError as exc:
            raise InvalidRequest("The body is not valid multipart/form-data.") from exc
        read, self._read = self._read, []
        return iter(read)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form may have at most {MAX_PARTS} parts.")
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._field).lower()] = self._value.decode("latin-1")
        self._field.clear()
        self._value.clear()

    def _end_head(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequest("Each part of the form has a Content-Disposition with its name.")
        content_type, _ = parse_options_header(self._headers.get(b"content-type"))
        part = Part(
            name=_text(options[b"name"]),
            filename=_text(options.get(b"filename", b"")),
            content_type=_text(content_type),
        )
        self._read.append(part)

    def _end(self) -> None:
        self.complete = True


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "replace")
