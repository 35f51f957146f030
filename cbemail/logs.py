"""Log records: one line each, text or JSON, without secrets, written by a thread of its own.

A module logs as ever, `logging.getLogger(__name__)`; what a machine should find again goes beside the sentence:
``log.warning("connection broken", extra={"fields": {"session_id": …}})``.
"""

import atexit
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from logging.handlers import QueueHandler
from queue import SimpleQueue
from threading import Thread
from typing import Any, TextIO

import msgspec

# Libraries that put credentials or whole conversations into their DEBUG lines: never let below WARNING.
_TALKATIVE = ("aioimaplib", "aiosmtplib", "httpx", "httpcore", "asyncio")


@contextmanager
def logging_to(stream: TextIO, *, level: str, style: str) -> Iterator[None]:
    """Send every record of ``level`` and above to ``stream``, in ``style`` ("text" or "json"), while the block runs.

    The caller of a logger pays for rendering the line, a few microseconds; writing happens in another thread, so that
    a slow terminal or disk holds up no request.
    """
    handler = _Enqueue(SimpleQueue())
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    writer = _Writer(handler.queue, stream)
    levels = {"": level} | dict.fromkeys(_TALKATIVE, "WARNING")
    before = {name: logging.getLogger(name).level for name in levels}
    _set_levels(levels)
    logging.getLogger().addHandler(handler)
    _access_logs.append(handler)
    writer.start()
    try:
        yield
    finally:
        _access_logs.remove(handler)
        logging.getLogger().removeHandler(handler)
        _set_levels(before)
        writer.stop()  # writes what is still queued


def _set_levels(levels: Mapping[str, str | int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def configure_logging(level: str, style: str) -> None:
    """Log to standard output for the rest of the process, where some other program's `main` runs us."""
    until_exit = ExitStack()
    until_exit.enter_context(logging_to(sys.stdout, level=level, style=style))
    atexit.register(until_exit.close)


_access = logging.getLogger("cbemail.access")
_access_logs: list["_Enqueue"] = []


def log_request(
    *,
    request_id: str,
    session_id: str | None,
    method: str,
    path: str,
    status: int,
    seconds: float,
    account: Mapping[str, float],
    code: str | None = None,
) -> None:
    """The one record of a request.

    ``path`` is the route's template, never the caller's text; ``account`` is that of `timing`, seconds by phase;
    ``code`` is the problem's, where the answer was one.
    """
    if not _access.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {
        "request_id": request_id,
        "session_id": session_id,
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
    }
    for phase, spent in account.items():
        fields[f"{phase}_ms"] = round(spent * 1000, 1)
    if code is not None:
        fields["code"] = code
    for log in _access_logs:
        log.enqueue_access(fields)


# ---- into the queue

_MAX_QUEUED = 10_000


class _Enqueue(QueueHandler):
    """Queues lines. While nobody reads our output the newest are dropped: memory is worth more.

    They are rendered here and not by the writer: Python runs one thread at a time, and two that take turns at every
    line cost more than the line.
    """

    queue: "SimpleQueue[str | None]"
    _dropped = 0

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record)

    def enqueue_access(self, fields: Mapping[str, object]) -> None:
        """The line of a request. No record is made of it, and nothing looked for in it: this is written for every
        request, and all that stands in it is ours."""
        self.enqueue(self.formatter.access_line(fields))  # type: ignore[union-attr]  # one of the two below

    def enqueue(self, line: str) -> None:  # type: ignore[override]  # what `prepare` has made of the record
        if self.queue.qsize() >= _MAX_QUEUED:
            self._dropped += 1
            return
        if self._dropped:
            lost = f"{self._dropped} log records were dropped: nobody read them"
            warning = logging.LogRecord(__name__, logging.WARNING, "", 0, lost, None, None)
            self.queue.put(self.format(warning))
            self._dropped = 0
        self.queue.put(line)


# ---- out of it

_GATHER_SECONDS = (
    0.01  # for which a first line waits for more, so that a busy service writes a hundred at a time
)


class _Writer(Thread):
    """Writes what is queued, until `stop`."""

    def __init__(self, queue: "SimpleQueue[str | None]", stream: TextIO) -> None:
        super().__init__(name="cbemail-log", daemon=True)
        self._queue = queue
        self._stream = stream

    def stop(self) -> None:
        """Write the rest, and end."""
        self._queue.put(None)
        self.join()

    def run(self) -> None:
        lines: list[str | None] = []
        while None not in lines:
            lines = [self._queue.get()]
            time.sleep(_GATHER_SECONDS)
            while not self._queue.empty():
                lines.append(self._queue.get())
            # A full disk, a pipe without a reader, a character the terminal lacks: there is nobody left to tell.
            with suppress(OSError, ValueError):
                self._stream.write("".join(f"{line}\n" for line in lines if line is not None))
                self._stream.flush()


# ---- on a line


class TextFormatter(logging.Formatter):
    """For people: ``2026-01-02T03:04:05.678Z INFO cbemail.access request status=200 …``."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname, record.name, record.getMessage()]
        words += [f"{name}={value}" for name, value in _fields(record).items()]
        if record.exc_info:
            words.append("| " + self.formatException(record.exc_info))
        return one_line(redact(" ".join(words)))

    def access_line(self, fields: Mapping[str, object]) -> str:
        words = [f"{name}={value}" for name, value in fields.items()]
        return f"{_stamp(time.time())} INFO cbemail.access request {' '.join(words)}"


class JsonFormatter(logging.Formatter):
    """For machines: one JSON object a line."""

    def access_line(self, fields: Mapping[str, object]) -> str:
        head: dict[str, object] = {
            "time": _stamp(time.time()),
            "level": "info",
            "logger": "cbemail.access",
            "message": "request",
        }
        return msgspec.json.encode(head | dict(fields)).decode()

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in _fields(record).items():
            members[name] = redact(value) if isinstance(value, str) else value
        if record.exc_info:
            members["exception"] = redact(self.formatException(record.exc_info))
        # JSON escapes the control characters below 0x20 itself; the others stand within strings only.
        return one_line(msgspec.json.encode(_encodable(members), enc_hook=str).decode())


def _time(record: logging.LogRecord) -> str:
    return _stamp(record.created)


def _stamp(moment: float) -> str:
    return f"{_second(int(moment))}.{int(moment % 1 * 1000):03d}Z"


@lru_cache(maxsize=2)  # a busy service writes thousands of lines in each
def _second(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _encodable(members: dict[str, Any]) -> dict[str, Any]:
    """A lone surrogate, as in the name of a file that is not UTF-8, has no JSON spelling."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode()
        if isinstance(value, str)
        else value
        for name, value in members.items()
    }


# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional overrides, surrogates: all that
# would end a line, colour or rewrite a terminal, or show text in another order than it has.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    r"""The text with everything that is not plain text written as an escape.

    >>> one_line("a\nlevel=ERROR \x1b[31m")
    'a\\nlevel=ERROR \\u001b[31m'
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return "\\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}"


# ---- without secrets

# A last net: nothing should put a secret into a log record, and when something does, it is one of these shapes.
# Every repetition has an end, so that no text takes long to search.
_SECRETS = re.compile(
    r"""
      (?P<keep> \b(?:bearer|basic|auth(?:enticate)?\s(?:plain|xoauth2))\s{1,9} )  [\w.~+/=-]{8,4096}
    | eyJ[\w-]{8,2048}\.[\w-]{1,2048}\.[\w-]{0,128}                              # a JWT
    | gAAAA[\w-]{20,8192}=*                                                       # a Fernet token
    | \bcbr_[\w-]{20,64}                                                         # a refresh token (sessions/tokens)
    | (?P<url> \b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,256}: )  [^\s/@]{1,256} (?=@) # https://user:password@host
    | (?P<name> \b\w{0,40}(?:password|passwd|secret|api[_-]?key|_token|authorization)\w{0,40}
                \\?["']? \s{0,9}[:=]\s{0,9} \\?["']? )
      (?!(?:bearer|basic)\s) [^\s"',;&}\\]{1,4096}                               # password=…, "secret_key": "…"
    """,
    re.IGNORECASE | re.VERBOSE,
)
# A secret needs one of these beside it; looking for them costs a twentieth of the search, and few records have one.
_HINTS = (
    "bearer",
    "basic",
    "plain",
    "xoauth2",
    "authorization",
    "eyj",
    "gaaaa",
    "cbr_",
    "://",
    "passw",
    "secret",
    "key",
    "_token",
)
_MAX_TEXT = 32_768


def redact(text: str) -> str:
    """The text with what looks like a credential blanked, and cut where it is longer than a log line should be.

    >>> redact("Authorization: Bearer abcdefghijkl, password=hunter2")
    'Authorization: Bearer [redacted], password=[redacted]'
    """
    text = text[:_MAX_TEXT]
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS):
        return text
    return _SECRETS.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    return (match["keep"] or match["url"] or match["name"] or "") + "[redacted]"
