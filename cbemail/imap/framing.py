"""Octets from the socket -> responses, split at their line ends and literals (RFC 9051 2.2.2 and 4.3). No I/O.

Every octet is looked at once, however the network cut the stream.
"""

from __future__ import annotations

import re
from typing import Protocol, TypeAlias

from cbemail.imap.protocol import ImapSyntaxError

# What one response may cost us. A breach is a broken or hostile server: the connection goes.
MAX_LINE = 1 << 20  # octets: the longest honest line is an ENVELOPE or ESEARCH, some ten thousand
MAX_SEARCH_LINE = 1 << 22  # octets: SEARCH names each UID, VANISHED may; here half a million
MAX_LITERAL = 1 << 26  # octets held in memory: above any message a provider accepts (Gmail: 50 MB)
MAX_LITERALS = 4_096  # in one response: some four for each part of a message of 1,000 parts
MAX_RESPONSE = MAX_LITERAL + (1 << 23)  # octets: one great literal, and all that stands around it
MAX_STREAMED = (1 << 32) - 1  # octets of a literal that goes to a sink and is never held
SINK_THRESHOLD = 1 << 14  # octets: smaller literals are cheaper to hold than to hand over in pieces

# Line, literal, line, literal, …, line: the text at even indexes, without line ends and ``{n}``.
Frame: TypeAlias = list[bytes]

# Human text may well end in "{5}"; no status response holds a literal.
_STATUS = re.compile(rb"\+|[^ ]++ ++(?:OK|NO|BAD|BYE|PREAUTH)(?: |$)", re.IGNORECASE)
_FETCH = re.compile(rb"\* ++\d++ ++FETCH\b", re.IGNORECASE)
_SIZE = re.compile(rb"(-?\d++)\+?")
_UID_LISTS = (b"* SEARCH ", b"* VANISHED ")


class LiteralSink(Protocol):
    """Takes a great literal as it arrives, so that an attachment of any size costs one chunk of memory."""

    def begin(self, size: int) -> None: ...

    def feed(self, chunk: bytes) -> None: ...


class Framer:
    """Collects what the server sends until a whole response is there.

    While ``sink`` is set, a literal of a FETCH response above ``SINK_THRESHOLD`` is handed to it piece by piece
    and stands as ``b""`` in the frame.

    >>> framer = Framer()
    >>> framer.feed(b"* 1 FETCH (BODY[] {3}\\r\\nab")
    []
    >>> framer.feed(b"c)\\r\\nA1 OK\\r\\n")
    [[b'* 1 FETCH (BODY[] ', b'abc', b')'], [b'A1 OK']]
    """

    __slots__ = (
        "_buffer",
        "_frame",
        "_literal",
        "_missing",
        "_receiver",
        "_searched",
        "_size",
        "sink",
    )

    def __init__(self) -> None:
        self.sink: LiteralSink | None = None
        self._buffer = bytearray()  # what has arrived and is in no frame yet
        self._searched = 0  # its leading octets that are known to hold no line end
        self._frame: Frame = []  # the response under way
        self._size = 0  # octets in it
        self._missing = 0  # octets of its last literal still to come
        self._literal = bytearray()
        self._receiver: LiteralSink | None = None  # who gets that literal, when not the frame

    @property
    def empty(self) -> bool:
        """Nothing waits for its end: where this is False before a TLS handshake, somebody injects."""
        return not (self._buffer or self._frame)

    def feed(self, data: bytes) -> list[Frame]:
        """Take what has arrived, and give the responses that it completes.

        Raises:
            ImapSyntaxError: a limit is broken or a literal has no size; the framer is of no further use.
        """
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while True:
            if self._missing:
                start = self._take_literal(start)
                if self._missing:
                    break
            end = self._buffer.find(b"\n", max(start, self._searched))
            self._check_line(start, len(self._buffer) if end < 0 else end)
            if end < 0:
                break
            # A bare LF ends a line too, as it does for other clients: some servers and proxies write it.
            self._take_line(bytes(self._buffer[start:end]).removesuffix(b"\r"))
            start = end + 1
            if len(self._frame) % 2 and not self._missing:
                frames.append(self._frame)
                self._frame, self._size = [], 0
        del self._buffer[:start]  # once a chunk, not once a line: what stays is moved only once
        self._searched = len(self._buffer)
        return frames

    def _check_line(self, start: int, end: int) -> None:
        size = end - start
        if size <= MAX_LINE:
            return
        names_uids = self._buffer[start : start + 11].upper().startswith(_UID_LISTS)
        if size > (MAX_SEARCH_LINE if names_uids else MAX_LINE):
            raise ImapSyntaxError("a line is too long")

    def _take_line(self, line: bytes) -> None:
        if not line and not self._frame:
            return  # an empty line is no response, only a server that miscounted a literal
        self._grow(len(line))
        if line.endswith(b"}") and (self._frame or not _STATUS.match(line)):
            marker = line.rfind(b"{")
            size = _SIZE.fullmatch(line, marker + 1, len(line) - 1)
            if marker >= 0 and size is not None:
                self._frame.append(line[:marker].removesuffix(b"~"))
                self._begin_literal(size[1])
                return
        self._frame.append(line)

    def _begin_literal(self, digits: bytes) -> None:
        # Not int() first: it refuses, in its own words, a number of 5,000 digits.
        size = int(digits) if len(digits) <= len(str(MAX_STREAMED)) else MAX_STREAMED + 1
        if len(self._frame) > 2 * MAX_LITERALS:
            raise ImapSyntaxError("a response holds too many literals")
        is_streamed = (
            self.sink is not None and size > SINK_THRESHOLD and _FETCH.match(self._frame[0])
        )
        if not 0 <= size <= (MAX_STREAMED if is_streamed else MAX_LITERAL):
            raise ImapSyntaxError("a literal is too large")
        self._missing = size
        if is_streamed and self.sink is not None:
            self._receiver = self.sink
            self._receiver.begin(size)
        else:
            self._grow(size)
        if not size or self._receiver is not None:
            self._frame.append(b"")

    def _take_literal(self, start: int) -> int:
        """Move what is there of the literal to where it belongs, and tell where the buffer goes on."""
        chunk = self._buffer[start : start + self._missing]
        self._missing -= len(chunk)
        if self._receiver is not None:
            if chunk:
                self._receiver.feed(bytes(chunk))
            if not self._missing:
                self._receiver = None
        else:
            self._literal += chunk
            if not self._missing:
                self._frame.append(bytes(self._literal))
                self._literal = bytearray()
        return start + len(chunk)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MAX_RESPONSE:
            raise ImapSyntaxError("a response is too large")
