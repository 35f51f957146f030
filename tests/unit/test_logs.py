"""One record, one line, no secrets; and the writer keeps out of the way."""

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from cbemail import logs
from cbemail.logs import log_request, logging_to, one_line, redact

log = logging.getLogger("cbemail.somewhere")


def written(style: str, act: Callable[[], object], *, level: str = "INFO") -> list[str]:
    """The lines that come out when ``act`` logs."""
    stream = io.StringIO()
    with logging_to(stream, level=level, style=style):
        act()
    return stream.getvalue().splitlines()


def fail(text: str = 'first line\nsecond line {"level": "info"}') -> None:
    try:
        stumble(text)
    except RuntimeError:
        log.exception("it failed")


def stumble(text: str) -> None:
    raise RuntimeError(text)


HOSTILE = 'a\nb\r\nc {"level":"error"}\x1b[31m\x00\x7f\x9b\u2028\u202e\ud800'


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    "act",
    [
        lambda: log.warning("%s", HOSTILE),
        lambda: log.warning("a folder", extra={"fields": {"folder": HOSTILE}}),
        fail,
    ],
)
def test_a_record_is_one_printable_line_whatever_it_holds(style: str, act: Callable[[], None]):
    stream = io.StringIO()

    with logging_to(stream, level="INFO", style=style):
        act()

    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isprintable()


def test_a_json_line_holds_what_was_logged():
    (line,) = written("json", lambda: log.warning("so %s", "it", extra={"fields": {"count": 3}}))

    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "warning",
        "logger": "cbemail.somewhere",
        "message": "so it",
        "count": 3,
    }


def test_a_json_line_of_hostile_text_gives_it_back():
    (line,) = written("json", lambda: log.warning("%s", HOSTILE))

    assert json.loads(line)["message"] == HOSTILE.replace("\ud800", "\\ud800")


def test_a_field_json_does_not_know_is_written_as_text():
    (line,) = written("json", lambda: log.warning("x", extra={"fields": {"error": OSError("no")}}))

    assert json.loads(line)["error"] == "no"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_failure_is_logged_with_its_traceback(style: str):
    (line,) = written(style, fail)

    assert "Traceback" in line
    assert "RuntimeError: first line" in line


def test_a_text_line_is_for_people():
    (line,) = written("text", lambda: log.info("so %s", "it", extra={"fields": {"count": 3}}))

    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == "INFO cbemail.somewhere so it count=3"


def test_records_below_the_level_are_not_written():
    assert written("text", lambda: log.info("quiet"), level="WARNING") == []


def test_arguments_are_rendered_when_they_are_logged():
    folders = ["INBOX"]

    def act() -> None:
        log.warning("folders: %s", folders)
        folders.append("Sent")

    (line,) = written("text", act)

    assert line.endswith("folders: ['INBOX']")


# ---- requests


def request(*, status: int = 200, code: str | None = None) -> None:
    log_request(
        request_id="req_1",
        session_id="ses_1",
        method="GET",
        path="/api/mailbox/messages/{uid}",
        status=status,
        seconds=0.01234,
        account={"wait": 0.001, "imap": 0.0105},
        code=code,
    )


def test_a_request_is_logged_with_where_its_time_went():
    (line,) = written("json", request)

    record = json.loads(line)
    record.pop("time")
    assert record == {
        "level": "info",
        "logger": "cbemail.access",
        "message": "request",
        "request_id": "req_1",
        "session_id": "ses_1",
        "method": "GET",
        "path": "/api/mailbox/messages/{uid}",
        "status": 200,
        "duration_ms": 12.3,
        "wait_ms": 1.0,
        "imap_ms": 10.5,
    }


def test_a_request_that_failed_is_logged_with_the_code_of_its_problem():
    (line,) = written("json", lambda: request(status=404, code="message-not-found"))

    assert json.loads(line)["code"] == "message-not-found"


def test_requests_are_not_logged_above_info():
    assert written("json", request, level="WARNING") == []


# ---- secrets

TOKEN = "eyJhbGciOiJIUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzZXNzaW9uX2lkIjoic2VzXzEifQ.c2lnbmF0dXJl"
SECRETS = [
    f"Authorization: Bearer {TOKEN}",
    f"token {TOKEN} refused",
    "Authorization: Basic CANARYjpwYXNz",
    '{"authorization": "CANARY-value"}',
    "a2 AUTHENTICATE PLAIN CANARYxyzxyz=",
    "AUTH XOAUTH2 CANARYdXNlcj1qb2U=",
    "sealed gAAAAABmCANARYCANARYCANARYCANARY==",
    "cbr_CANARYCANARYCANARYCANARYCANARY",
    "postgresql://cbemail:CANARY@db/cbemail",
    "imaps://:CANARY@host",
    "password=CANARY host=x",
    '{"password": "CANARY"}',
    "{'smtp_password': 'CANARY'}",
    "SECRET_KEY=CANARY",
    "X-API-Key: CANARY",
    "api_key = CANARY",
    'body: {\\"refresh_token\\": \\"CANARY\\"}',
    "client_secret: CANARY,",
]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_secret_is_blanked_wherever_it_stands(text: str, style: str):
    def act() -> None:
        log.warning("%s", text)
        log.warning("fields", extra={"fields": {"detail": text}})
        fail(text)

    lines = written(style, act)

    assert len(lines) == 3
    for line in lines:
        assert "CANARY" not in line
        assert "c2lnbmF0dXJl" not in line
        assert "[redacted]" in line


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/sessions/ses_1/token 200",
        "the password of the session was refused",
        "https://example.org:8080/path?x=1",
        "joe@example.org",
        "keyword $Forwarded set",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str):
    assert redact(text) == text


def test_a_long_text_is_cut():
    assert len(redact("x" * 1_000_000)) == 32_768


@pytest.mark.parametrize(
    "name", ["aioimaplib.aioimaplib", "aiosmtplib", "httpx", "httpcore.http11"]
)
def test_libraries_that_log_conversations_are_kept_quiet_at_debug(name: str):
    def act() -> None:
        logging.getLogger(name).debug("LOGIN joe CANARY")
        logging.getLogger(name).warning("something is wrong")

    lines = written("text", act, level="DEBUG")

    assert [line.split(" ", 3)[3] for line in lines] == ["something is wrong"]


# ---- the writer


class Stuck(io.StringIO):
    """A stream that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def write(self, text: str, /) -> int:
        self.entered.set()
        self.let_go.wait()
        return super().write(text)


def test_a_stuck_output_holds_up_nobody_and_what_was_lost_is_counted(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(logs, "_MAX_QUEUED", 3)
    stream = Stuck()

    with logging_to(stream, level="INFO", style="text"):
        log.info("first")
        stream.entered.wait()
        for number in range(10):
            log.info("number %d", number)
        monkeypatch.setattr(logs, "_MAX_QUEUED", 100)
        log.info("last")
        stream.let_go.set()

    messages = [line.split(" ", 3)[3] for line in stream.getvalue().splitlines()]
    assert messages == [
        *("first", "number 0", "number 1", "number 2"),
        "7 log records were dropped: nobody read them",
        "last",
    ]


def test_logging_is_as_it_was_before_once_the_block_is_left():
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    written("json", request, level="DEBUG")

    assert (list(root.handlers), root.level) == before
    assert logging.getLogger("httpx").level == logging.NOTSET


def test_a_process_that_ends_has_written_every_record():
    program = (
        "import logging; from cbemail.logs import configure_logging;"
        "configure_logging('INFO', 'text');"
        "[logging.info('number %d', number) for number in range(1000)]"
    )

    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout

    assert len(out.splitlines()) == 1000


def test_plain_text_is_left_alone():
    assert one_line("Entwürfe & 会议") == "Entwürfe & 会议"
