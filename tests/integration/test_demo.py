"""`cbemail demo`, as a newcomer uses it: started from a shell, its lines pasted into another."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.servers import free_port

LINE = re.compile(r"^(?:export |curl |BATCH=).*$", re.MULTILINE)


@dataclass(frozen=True)
class Demo:
    """A demo that runs, and all it has printed."""

    process: subprocess.Popen[str]
    page: str

    @property
    def url(self) -> str:
        [url] = re.findall(r"Start page +(\S+)/\n", self.page)
        return str(url)

    @property
    def lines(self) -> list[str]:
        return LINE.findall(self.page)

    @property
    def token(self) -> str:
        return self.lines[0].rpartition("TOKEN=")[2]

    def get(self, path: str, **params: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        response = httpx.get(self.url + path, params=params, headers=headers, trust_env=False)
        assert response.status_code == 200, response.text
        return response.json()

    def subjects(self, folder: str = "INBOX") -> list[str]:
        page = self.get("/api/mailbox/messages", folder=folder, limit=50)
        return [message["subject"] for message in page["messages"]]

    def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C. Gives the status, and what was said since."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


Start = Callable[..., Demo]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, temporary: Path) -> Iterator[Start]:
    """Start a demo; gives it once it has said all it has to say. A configuration lies about that would be wrong."""
    (tmp_path / ".env").write_text("SECRET_KEY=short\nHOST=0.0.0.0\n")
    environ = os.environ | {
        "TMPDIR": str(temporary),
        "PORT": "none",
        "CERT_FILE": "/none",
        "GATE_PIN": "804172",
    }
    started = []

    def run(*arguments: object) -> Demo:
        command = [sys.executable, "-m", "cbemail", "demo", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        page = ""
        while "Ctrl-C ends" not in page:
            line = process.stdout.readline()
            assert line, process.communicate()
            page += line
        return Demo(process, page)

    yield run
    for process in started:
        process.kill()
        process.communicate()


def paste(lines: list[str]) -> list[str]:
    """What each line prints, in one shell."""
    script = "\n".join(f"{line}\nprintf '\\0'" for line in lines)
    shell = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (shell.returncode, shell.stderr) == (0, ""), shell
    return shell.stdout.split("\0")[:-1]


def test_every_line_it_prints_works_as_it_stands(start: Start) -> None:
    demo = start("--port", free_port())

    printed = paste(demo.lines)

    _, listed, read, found, sent, _, progress, report, deleted = printed
    newest = json.loads(listed)["messages"]
    assert len(newest) == 5
    assert (json.loads(read)["uid"], json.loads(read)["truncated"]) == (newest[0]["uid"], False)
    assert "<h1>Storms, seals and a new ferry</h1>" in json.loads(read)["html"]
    assert [message["subject"] for message in json.loads(found)["messages"]] == ["Visitor numbers"]
    assert json.loads(sent)["accepted"] == ["mina@lighthouse.example"]
    *_, done = re.findall(r"^data: (.*)$", progress, re.MULTILINE)
    assert json.loads(done)["state"] == "completed"
    states = {row["to"]: row["state"] for row in csv.DictReader(report.splitlines())}
    assert list(states.values()) == ["sent", "sent", "sent", "failed"]
    assert states["nobody@visitors.example"] == "failed"
    assert json.loads(deleted) == {"deleted": "trashed", "folder": "Trash", "uid": 101}


def test_what_is_sent_to_anybody_arrives_in_the_demos_own_inbox_and_in_sent(start: Start) -> None:
    demo = start("--port", free_port())

    paste(demo.lines)

    assert set(demo.subjects()) > {
        "Hello",
        "Ann, your ticket",
        "Ben, your ticket",
        "Cleo, your ticket",
    }
    assert "Dan, your ticket" not in demo.subjects()
    assert "Hello" in demo.subjects("Sent")


def test_the_mailbox_has_mail_of_every_kind(start: Start) -> None:
    demo = start("--port", free_port())

    page = demo.get("/api/mailbox/messages", limit=50)
    folders = demo.get("/api/mailbox/folders")["folders"]

    attachments = [part for message in page["messages"] for part in message["attachments"]]
    assert {(part["content_type"], part["filename"], part["inline"]) for part in attachments} == {
        ("image/png", "sunset.png", True),
        ("text/csv", "visitors.csv", False),
        ("text/calendar", None, False),
        ("message/delivery-status", None, False),
    }
    assert "灯台見学のお問い合わせ" in demo.subjects()
    assert demo.subjects().count("Re: Opening weekend in May") == 2
    roles = {"inbox", "archive", "drafts", "junk", "sent", "trash"}
    assert {folder["role"] for folder in folders} >= roles


def test_ctrl_c_ends_it_quietly_and_leaves_nothing(start: Start, temporary: Path) -> None:
    demo = start("--port", free_port())
    assert list(temporary.iterdir())

    ended = demo.interrupt()

    assert ended == (0, "", "")
    assert list(temporary.iterdir()) == []


def test_a_port_that_is_taken_is_told_and_another_one_used(start: Start) -> None:
    first = start("--port", free_port())
    port = first.url.rpartition(":")[2]

    second = start("--port", port)

    assert second.page.startswith(f"Port {port} is taken: this demo has ")
    assert second.url != first.url
    assert second.subjects() == first.subjects()


def test_only_this_machine_can_reach_it(start: Start) -> None:
    demo = start("--port", free_port())

    listening = listening_addresses(demo.process.pid)

    assert len(listening) == 3  # HTTP, IMAP, SMTP
    assert set(listening) == {"0100007F"}  # 127.0.0.1, as the kernel writes it


def listening_addresses(pid: int) -> list[str]:
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [
        row.split()
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [
        row[1].partition(":")[0]
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in sockets
    ]


def test_what_is_kept_is_there_the_next_time_and_the_session_goes_on(
    start: Start, tmp_path: Path
) -> None:
    port = free_port()
    first = start("--port", port, "--keep", tmp_path / "kept")
    paste(first.lines)
    before = first.subjects(), first.subjects("Trash"), first.get("/api/send/batch")
    assert first.interrupt() == (0, "", "")

    second = start("--port", port, "--keep", tmp_path / "kept")

    assert (second.subjects(), second.subjects("Trash")) == before[:2]
    of_the_first_session = Demo(second.process, first.page)
    assert of_the_first_session.get("/api/send/batch") == before[2]
    assert of_the_first_session.subjects() == before[0]
    assert [
        path.stat().st_mode & 0o077 for path in (tmp_path / "kept").iterdir() if path.is_file()
    ] == [0]


@pytest.mark.parametrize("missing", ["pymap", "aiosmtpd"])
def test_where_the_extra_is_missing_it_says_how_to_get_it(missing: str, tmp_path: Path) -> None:
    hidden = f"raise ModuleNotFoundError('none', name={missing!r})"
    (tmp_path / f"{missing}.py").write_text(hidden)

    ended = subprocess.run(
        [sys.executable, "-m", "cbemail", "demo"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"cbemail: the demo needs {missing}, which comes with its extra: pip install 'cbemail[demo]', or make install "
        "in a checkout\n"
    )


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cbemail", "demo", "--port", port],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert ended.returncode == 2
    assert f"a port is a number from 1 to 65535, not '{port}'" in ended.stderr
