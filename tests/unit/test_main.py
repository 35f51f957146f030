"""The command, as an operator sees it: what it prints, what it leaves, how it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from cbemail.__main__ import main
from cbemail.settings import Settings, load_environ

KEY = "kR7x_Qm2vT9-bW4zLp8sYd3nFg6hJc1aUe5iXo0"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, and an environment without any of our variables."""
    for name in Settings.variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- keys


def test_a_new_key_is_one_the_service_takes(capsys: pytest.CaptureFixture[str]):
    assert main(["keys", "new"]) == 0

    key = capsys.readouterr().out.strip()
    assert Settings.from_environ({"SECRET_KEY": key}).secret_key == (key,)


def test_no_two_new_keys_are_the_same(capsys: pytest.CaptureFixture[str]):
    main(["keys", "new"])
    main(["keys", "new"])

    first, second = capsys.readouterr().out.split()
    assert first != second


def test_a_key_is_written_where_there_is_none_and_not_shown(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["keys", "init"]) == 0

    (key,) = Settings.from_environ(load_environ(here)).secret_key
    assert (here / ".env").stat().st_mode & 0o777 == 0o600
    assert key not in capsys.readouterr().out
    assert [file.name for file in here.iterdir()] == [".env"]


def test_what_else_the_file_says_stays(here: Path):
    (here / ".env").write_text("# ours\nPORT=8080\nSECRET_KEY=\nHOST=::1")

    main(["keys", "init"])

    lines = (here / ".env").read_text().splitlines()
    assert lines[:3] == ["# ours", "PORT=8080", "HOST=::1"]
    assert lines[3].startswith("SECRET_KEY=")
    assert len(lines) == 4


def test_a_key_that_is_there_is_not_replaced(here: Path):
    (here / ".env").write_text(f"SECRET_KEY={KEY}\n")

    main(["keys", "init"])

    assert (here / ".env").read_text() == f"SECRET_KEY={KEY}\n"


def test_a_key_in_the_environment_needs_no_file(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_KEY", KEY)

    main(["keys", "init"])

    assert list(here.iterdir()) == []


def test_a_file_that_cannot_be_written_is_said_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)

    assert main(["keys", "init"]) == 2

    assert capsys.readouterr().err == (
        f"cbemail: {here / '.env'} cannot be written: No space left on device\n"
    )


# ---- serve


def command(**environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cbemail", "serve"],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def serving(**environ: str) -> Iterator[subprocess.Popen[str]]:
    """The service, from the moment it accepts connections."""
    with command(**environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Uvicorn running" in line:
                break
        try:
            yield process
        finally:
            process.kill()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def configured(**environ: str) -> dict[str, str]:
    base = {
        "SECRET_KEY": KEY,
        "HOST": "127.0.0.1",
        "PORT": free_port(),
        "DB_PATH": "db/test.duckdb",
    }
    return base | environ


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({}, "SECRET_KEY is not set: `cbemail keys init` writes one into .env"),
        (
            {"SECRET_KEY": "changeme"},
            "SECRET_KEY takes keys of 32 characters at least; `cbemail keys new` prints one",
        ),
        ({"SECRET_KEY": KEY, "PORT": "x"}, "PORT takes a whole number from 1 to 65535, not 'x'"),
    ],
)
def test_a_wrong_configuration_ends_the_start_with_one_line(environ: dict[str, str], line: str):
    process = command(**environ)
    out, err = process.communicate(timeout=30)

    assert (process.returncode, out, err) == (2, "", f"cbemail: {line}\n")


def test_a_store_that_cannot_be_opened_ends_the_start_with_one_line(here: Path):
    (here / "notes.txt").write_text("this is no database\n" * 1000)

    process = command(**configured(DB_PATH="notes.txt"))
    out, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert err.startswith("cbemail: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out


def test_a_port_that_is_taken_ends_the_start():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = command(**configured(PORT=str(taken.getsockname()[1])))
        out, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "address already in use" in out
    assert "Traceback" not in out + err


def test_a_request_is_answered_without_naming_the_server_software():
    environ = configured()
    with serving(**environ):
        connection = HTTPConnection("127.0.0.1", int(environ["PORT"]))
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        connection.close()

    assert response.status == 200
    assert response.getheader("server") is None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_being_told_to_stop_is_no_failure_and_the_last_record_is_written(how: signal.Signals):
    with serving(**configured()) as process:
        process.send_signal(how)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (0, "")
    assert "Finished server process" in out.splitlines()[-1]


def test_what_the_service_writes_is_for_its_user_only(here: Path):
    with serving(**configured()) as process:
        process.terminate()
        process.communicate(timeout=30)

    assert [
        file for file in here.rglob("*") if file.is_file() and file.stat().st_mode & 0o077
    ] == []
