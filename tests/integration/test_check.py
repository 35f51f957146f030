"""`cbemail check`, as an operator sees it: one line a finding, and a status that says how bad the worst is."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cbemail.__main__ import main
from cbemail.settings import Settings
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.files import log_of
from tests.integration.servers import free_port
from tests.integration.service import ServiceProcess
from tests.unit.store.test_opening import contents, make_and_crash

KEY = "kR7x_Qm2vT9-bW4zLp8sYd3nFg6hJc1aUe5iXo0"
OLD = "zP3m-Lq8wN1_vB6yKd9tRs4cGf7jHx2eUa5oWi0"
CAREFUL = {
    "SECRET_KEY": KEY,
    "HOST": "127.0.0.1",
    "DB_PATH": "db/store.duckdb",
    "IMAP_CONNECTIONS_TOTAL": "100",
    "MAX_BATCH_MB": "1",
}

Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, and an environment without any of our variables."""
    for name in Settings.variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """The status, and the lines that are not ``ok``, of a careful configuration with these changes."""

    def run(**changes: str) -> tuple[int, list[str]]:
        for name, value in ({"PORT": str(free_port())} | CAREFUL | changes).items():
            monkeypatch.setenv(name, value)
        status = main(["check"])
        said = capsys.readouterr()
        assert said.err == ""
        return status, [line for line in said.out.splitlines() if not line.startswith("ok ")]

    return run


@pytest.fixture
def store(here: Path) -> Path:
    """A store as a service has left it."""

    async def make() -> None:
        await (await DuckDbDatabase.open(here / "db" / "store.duckdb")).close()

    asyncio.run(make())
    return here / "db" / "store.duckdb"


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield str(server.getsockname()[1])


def test_where_all_is_well_every_check_says_so(
    checked: Check, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    assert checked() == (0, [])


def test_before_the_first_start_nothing_is_wrong_and_nothing_is_made(
    checked: Check, here: Path
) -> None:
    assert checked() == (0, [])
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"SECRET_KEY": ""}, "wrong   configuration: SECRET_KEY is not set"),
        ({"SECRET_KEY": "changeme"}, "wrong   configuration: SECRET_KEY takes keys of 32"),
        ({"PORT": "x"}, "wrong   configuration: PORT takes a whole number from 1 to 65535, not 'x'."),
        ({"MAIL_CA_FILE": "none.pem"}, "wrong   configuration: MAIL_CA_FILE takes a readable file"),
        ({"SECRET_KEY": "0123456789" * 4}, "warning SECRET_KEY: A key does not look random"),
        ({"SECRET_KEY": f"{KEY},{KEY}"}, "warning SECRET_KEY: A key is listed twice."),
        ({"API_KEYS": "short"}, "warning access: A key in API_KEYS has less than 24 characters."),
        ({"GATE_PIN": "2468"}, "warning access: GATE_PIN can be guessed"),
        ({"GATE_PIN": "123456"}, "warning access: GATE_PIN can be guessed"),
        ({"GATE_PIN": "777777"}, "warning access: GATE_PIN can be guessed"),
        ({"HOST": "0.0.0.0"}, "warning access: Whoever reaches the port may log in"),
        ({"ALLOW_PLAINTEXT_LOGIN": "true"}, "warning mail servers: ALLOW_PLAINTEXT_LOGIN lets"),
        ({"ALLOW_MAIL_NETWORKS": "::/0"}, "warning mail servers: ALLOW_MAIL_NETWORKS lets"),
        ({"ALLOW_MAIL_NETWORKS": "169.254.0.0/24"}, "warning mail servers: ALLOW_MAIL_NETWORKS ho"),
        ({"ALLOW_MAIL_PORTS": "993,22,6379"}, "warning mail servers: ALLOW_MAIL_PORTS holds"),
        ({"TRUSTED_PROXIES": "8.0.0.0/8"}, "warning TRUSTED_PROXIES: 8.0.0.0/8 are many"),
        ({"HOST": "192.0.2.1", "GATE_PIN": "804172"}, "wrong   port: 192.0.2.1 port"),
        ({"IMAP_CONNECTIONS_TOTAL": "100000"}, "warning open files: "),
    ],
)  # fmt: skip
def test_what_is_risky_or_wrong_is_one_line(
    checked: Check, changes: dict[str, str], line: str
) -> None:
    status, lines = checked(**changes)

    assert len(lines) == 1, lines
    assert lines[0].startswith(line)
    assert status == (2 if line.startswith("wrong") else 1)


def test_a_gate_or_required_keys_are_enough_for_a_port_that_all_can_reach(checked: Check) -> None:
    gate = checked(HOST="0.0.0.0", GATE_PIN="804172")
    keys = checked(HOST="0.0.0.0", GATE_PIN="", API_KEYS=KEY, REQUIRE_API_KEY="true")

    assert gate == keys == (0, [])


def test_a_misspelt_variable_in_the_file_is_told_with_the_one_that_is_meant(
    checked: Check, here: Path
) -> None:
    (here / ".env").write_text("SESION_TTL_DAYS=3\nNOTHING_LIKE_IT=1\nsecond_half_of_a_key\n")
    (here / ".env").chmod(0o640)

    _, lines = checked()

    assert lines == [
        f"warning configuration: {here}/.env can be read by other users, and may hold secrets: chmod 600 it.",
        "warning configuration: SESION_TTL_DAYS in .env is no variable of cbemail: is SESSION_TTL_DAYS meant?",
        "warning configuration: NOTHING_LIKE_IT in .env is no variable of cbemail.",
        "warning configuration: A line of .env is no variable with a value: is one broken in two?",
    ]


def test_no_secret_is_told_whatever_is_wrong_with_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / ".env").write_text("SECRET_KEY=first-half-of-a-secret\nsecond-half-of-a-secret\n")
    secrets = {"API_KEYS": "canary key", "GATE_PIN": "canary-pin", "SECRET_KEY": KEY[:20]}

    for name, value in secrets.items():
        with monkeypatch.context() as patch:
            for other, good in (CAREFUL | {name: value}).items():
                patch.setenv(other, good)
            assert main(["check"]) == 2
    with monkeypatch.context() as patch:
        for name, value in (CAREFUL | {"API_KEYS": "canary-key", "GATE_PIN": "1357"}).items():
            patch.setenv(name, value)
        assert main(["check"]) == 1

    said = capsys.readouterr().out
    told = [each for each in ("canary", "1357", "secret\n", "half", KEY[:20]) if each in said]
    assert told == []


def test_files_that_others_can_read_are_told(checked: Check, store: Path) -> None:
    store.chmod(0o644)
    store.parent.chmod(0o755)

    status, lines = checked()

    assert status == 1
    assert lines == [
        f"warning folder: {store.parent} can be entered by other users: chmod 700 it.",
        f"warning folder: {store} can be read by other users: chmod 600 it.",
    ]


def test_a_disk_without_room_for_a_batch_is_told(
    checked: Check, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, used, _ = shutil.disk_usage(store)
    nearly_full = type(shutil.disk_usage(store))(total, used, 300 * 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)

    with_small_batches = checked(MAX_BATCH_MB="10")
    status, lines = checked(MAX_BATCH_MB="512")

    assert with_small_batches == (0, [])
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("warning folder: 300 MB are free")


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give a file away")
def test_a_store_of_another_user_is_told(checked: Check, store: Path) -> None:
    os.chown(store, 65534, 65534)

    _, lines = checked()

    assert lines == [
        f"warning folder: {store} belongs to another user: run this, and the service, as its owner."
    ]


def test_a_store_that_is_none_is_wrong_and_stays_as_it_is(checked: Check, here: Path) -> None:
    (here / "db").mkdir(mode=0o700)
    file = here / "db" / "store.duckdb"
    file.write_text("this is no database\n" * 1000)
    file.chmod(0o600)

    status, lines = checked()

    assert status == 2
    assert lines == [
        "wrong   store: The store db/store.duckdb is damaged, or was not made by cbemail: restore a backup."
    ]
    assert file.read_text().startswith("this is no database")


def test_a_store_of_a_newer_version_is_wrong(checked: Check, store: Path) -> None:
    with duckdb.connect(store) as connection:
        connection.execute("insert into schema_version values (999, 'from the future')")

    status, lines = checked()

    assert status == 2
    assert lines[0].startswith("wrong   store: The store was last used by a newer cbemail")


def test_looking_at_a_store_that_was_killed_changes_nothing_in_it(
    checked: Check, here: Path
) -> None:
    store = here / "db" / "store.duckdb"
    make_and_crash(store, number=0)  # its last change is in the write-ahead log only
    before = contents(store)

    told = checked()

    assert told == (0, [])
    assert contents(store) == before
    assert len(before) == 3


def test_a_store_without_its_log_is_wrong_as_it_is_for_the_start(
    checked: Check, store: Path
) -> None:
    with duckdb.connect(store) as connection:
        connection.execute("update event_log set name = 'f00'")

    status, lines = checked()

    assert status == 2
    assert lines[0].startswith(f"wrong   store: The log {store.relative_to(Path.cwd())}.events, ")
    assert "is missing: restore it" in lines[0]


def test_a_log_without_its_store_is_wrong(checked: Check, store: Path) -> None:
    store.rename(store.with_name("store.duckdb.events"))

    status, lines = checked()

    assert status == 2
    assert "is missing, but its log is there" in lines[0]


def test_a_log_that_others_can_read_is_told(checked: Check, here: Path) -> None:
    store = here / "db" / "store.duckdb"
    make_and_crash(store, number=0)
    log_of(store).chmod(0o644)

    assert checked() == (
        1,
        [f"warning folder: {store}.events can be read by other users: chmod 600 it."],
    )


def test_a_running_service_is_told_and_is_not_wrong(
    here: Path, checked: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServiceProcess(here, CAREFUL) as service:
        told = checked(PORT=str(service.port))
        status = main(["check"])

        said = capsys.readouterr().out
    assert told == (0, [])
    assert status == 0
    assert f"db/store.duckdb is in use: the service runs as process {service.pid}." in said
    assert f"port: {service.port} is served by cbemail." in said


def test_a_port_that_another_program_has_is_wrong(checked: Check, taken_port: str) -> None:
    status, lines = checked(PORT=taken_port)

    assert status == 2
    assert lines == [
        f"wrong   port: {taken_port} is taken by another program: stop it, or set another PORT."
    ]


def test_a_clock_that_is_behind_the_store_is_wrong(checked: Check, store: Path) -> None:
    later = time.time() + 3600
    os.utime(store, (later, later))

    status, lines = checked()

    assert status == 2
    assert lines[0].startswith("wrong   clock: The clock is 3")


def test_a_certificate_that_has_expired_is_told(checked: Check, here: Path) -> None:
    file = here / "ca.pem"
    file.write_bytes(expired_certificate())

    status, lines = checked(MAIL_CA_FILE=str(file))

    assert status == 1
    assert lines == [f"warning MAIL_CA_FILE: 1 of 1 certificates in {file} have expired."]


def expired_certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a CA of last year")])
    end = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
