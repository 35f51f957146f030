"""Whether DuckDB's write-ahead log is whole, as far as a crash leaves one whole.

A crash cuts the log short, and DuckDB rightly drops the record that was cut. But it takes a damaged header, or a
record whose length was overwritten, for the same thing: it drops all that follows, opens without a word, and
removes the log. Such a log is recognised here, before it is opened. A wrong checksum DuckDB refuses itself.

A log is a header and then records, ``<length: u64> <checksum: u64> <payload>``, little-endian.
"""

import re
import struct

_MARK = (
    b"\x64\x00\x62\x65\x00"  # field 100, the kind of entry: 98, a header; field 101, the version
)
_VERSION = b"\x02"  # the layout known here; another one is DuckDB's to judge
_HEADER = re.compile(
    re.escape(_MARK + _VERSION)
    + rb"\x66\x00\x10(?:[\x00-\x7f]|[\x80-\xff]\x01){16}"  # the database it belongs to: 16 numbers
    rb"\x67\x00[\x80-\xff]*[\x00-\x7f]"  # the checkpoint it follows
    rb"\xff\xff"
)
_HEADER_LIMIT = 64  # octets; a shorter log may have been cut in its header
_FRAME = struct.Struct("<QQ")
_RECORD_END = b"\xff\xff"
_NEXT_RECORD = re.compile(rb"\xff\xff(?=(.{4}\0{4}).{8}\x64\x00)", re.DOTALL)


def is_damaged(log: bytes) -> bool:
    """Whether something else than a crash has happened to ``log``."""
    if not log.startswith(_MARK[: len(log)]):
        return True
    if log[len(_MARK) : len(_MARK) + 1] != _VERSION:
        return False
    header = _HEADER.match(log)
    if header is None:
        return len(log) >= _HEADER_LIMIT
    position = header.end()
    while position + _FRAME.size <= len(log):
        length, _checksum = _FRAME.unpack_from(log, position)
        if position + _FRAME.size + length > len(log):
            return _holds_record(log, position + _FRAME.size)
        position += _FRAME.size + length
    return False


def _holds_record(log: bytes, start: int) -> bool:
    """Whether a whole record follows where the log should have been cut: then a length lied."""
    for match in _NEXT_RECORD.finditer(log, start):
        end = match.end() + _FRAME.size + int.from_bytes(match[1], "little")
        if end <= len(log) and log[end - 2 : end] == _RECORD_END:
            return True
    return False
