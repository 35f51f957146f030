"""Opening the store: made private, brought up to date whole, or refused in one sentence."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from cbemail.store import files
from cbemail.store.database import StoreUnusable
from cbemail.store.duckdb_database import DuckDbDatabase
from cbemail.store.migrations import Migration
from tests.unit.store.steps import FIRST

NEXT = Migration(
    2, "colours", "create table colour (name varchar); insert into colour values ('red')"
)
BROKEN = Migration(2, "broken", "create table half (done varchar); select * from nowhere")


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """For the few tests that look at a store while it is open."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db" / "store.duckdb"


def make(path: Path, migrations: list[Migration] | None = None) -> None:
    """Open the store, as a start does, and close it again."""

    async def open_and_close() -> None:
        await (await DuckDbDatabase.open(path, migrations=migrations or FIRST)).close()

    asyncio.run(open_and_close())


def make_and_crash(path: Path, *, number: int) -> None:
    """Leave a store whose row ``number`` is in the write-ahead log only, as a kill would."""
    script = (
        "import asyncio, os, sys, pathlib\n"
        "from cbemail.store.duckdb_database import DuckDbDatabase\n"
        "from tests.unit.store.steps import FIRST\n"
        "async def main():\n"
        "    database = await DuckDbDatabase.open(pathlib.Path(sys.argv[1]), migrations=FIRST)\n"
        "    await database.execute('add_schema_version', version=int(sys.argv[2]), name='')\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    run(script, path, str(number))


def make_and_crash_with(path: Path, *payloads: bytes, folded: int = 0) -> None:
    """Leave a store whose log has these entries, as a kill would, and which has all up to ``folded``."""
    script = (
        "import asyncio, os, sys, pathlib\n"
        "from cbemail.store.database import Entry\n"
        "from cbemail.store.duckdb_database import DuckDbDatabase\n"
        "from tests.unit.store.steps import FIRST\n"
        "async def main():\n"
        "    database = await DuckDbDatabase.open(pathlib.Path(sys.argv[1]), migrations=FIRST)\n"
        "    for number, payload in enumerate(sys.argv[3:], 1):\n"
        "        await database.log.append(Entry(number, os.fsencode(payload)))\n"
        "    await database.execute('note_folded', sequence=int(sys.argv[2]))\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    run(script, path, str(folded), *payloads)


def run(script: str, *arguments: str | bytes | Path) -> None:
    command = [sys.executable, "-c", script, *arguments]
    subprocess.run(command, check=True, timeout=30, cwd=Path(__file__).parents[3])


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(path) as connection:
        return connection.execute(sql).fetchall()


def wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def log(path: Path) -> Path:
    return path.with_name(path.name + ".events")


def entries(path: Path) -> list[bytes]:
    """What a start finds in the log."""

    async def found() -> list[bytes]:
        database = await DuckDbDatabase.open(path, migrations=FIRST)
        read = await database.log.entries(0)
        await database.close()
        return [entry.payload for entry in read]

    return asyncio.run(found())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(path: Path) -> dict[str, bytes]:
    """The store and what belongs to it, without the lock, which names whoever tried last."""
    found = path.parent.glob(path.name + "*")
    return {f.name: f.read_bytes() for f in found if f.is_file() and f.suffix != ".lock"}


def refusal(path: Path, migrations: list[Migration] | None = None) -> str:
    """The one sentence with which ``path`` is refused; nothing in its folder may have changed by it."""
    before = contents(path)
    with pytest.raises(StoreUnusable) as refused:
        make(path, migrations)
    assert contents(path) == before, "a refused store was changed"
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- private


def test_a_new_store_is_readable_by_its_owner_alone(path: Path, runner: asyncio.Runner) -> None:
    database = runner.run(DuckDbDatabase.open(path, migrations=FIRST))

    runner.run(database.execute("add_schema_version", version=2, name=""))

    assert mode(path.parent) == 0o700
    assert {file.name: mode(file) for file in path.parent.iterdir()} == {
        "store.duckdb": 0o600,
        "store.duckdb.lock": 0o600,
        "store.duckdb.events": 0o600,
        "store.duckdb.wal": 0o600,
    }
    runner.run(database.close())


def test_a_store_that_others_could_read_is_made_private(path: Path) -> None:
    make_and_crash(path, number=0)
    path.chmod(0o644)
    wal(path).chmod(0o664)
    log(path).chmod(0o640)

    files.make_private(path)

    assert mode(path) == 0o600
    assert mode(wal(path)) == 0o600
    assert mode(log(path)) == 0o600


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    make(tmp_path / "store.duckdb")

    assert mode(tmp_path) == 0o755


def test_a_store_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    link = tmp_path / "link.duckdb"
    link.symlink_to(tmp_path / "real.duckdb")

    make(link)
    make(link, [*FIRST, NEXT])

    assert link.is_symlink()
    assert query(tmp_path / "real.duckdb", "select name from colour") == [("red",)]


# ---- up to date


def test_steps_are_applied_once(path: Path) -> None:
    steps = [*FIRST, NEXT]

    for _ in range(3):
        make(path, steps)

    assert query(path, "select version, name from schema_version order by 1") == [
        (1, steps[0].name),
        (2, "colours"),
    ]
    assert query(path, "select name from colour") == [("red",)]


def test_a_store_is_backed_up_before_a_new_step_with_what_its_log_held(path: Path) -> None:
    make_and_crash(path, number=0)

    make(path, [*FIRST, NEXT])

    backup = path.with_name("store.duckdb.schema-1.backup")
    assert mode(backup) == 0o600
    assert query(backup, "select version from schema_version order by 1") == [(0,), (1,)]
    assert query(path, "select version from schema_version order by 1") == [(0,), (1,), (2,)]


def test_the_backup_has_the_log_that_a_crash_has_left(path: Path) -> None:
    make_and_crash_with(path, b"a")
    before = log(path).read_bytes()

    make(path, [*FIRST, NEXT])

    backup = path.with_name("store.duckdb.schema-1.backup")
    assert log(backup).read_bytes() == before
    assert entries(backup) == [b"a"]


def test_without_a_new_step_there_is_no_backup(path: Path) -> None:
    make(path)
    make(path)

    assert not list(path.parent.glob("*.backup"))


def test_a_step_that_fails_leaves_the_store_as_it_was(path: Path) -> None:
    make(path)
    before = path.read_bytes()

    with pytest.raises(StoreUnusable):
        make(path, [*FIRST, BROKEN])

    assert path.read_bytes() == before
    make(path)


def test_what_a_killed_start_left_behind_is_swept_away(path: Path) -> None:
    make(path)
    new = path.with_name("store.duckdb.new")
    new.write_bytes(b"half a database")
    wal(new).write_bytes(b"half a log")

    make(path, [*FIRST, NEXT])

    assert query(path, "select name from colour") == [("red",)]
    assert not new.exists()
    assert not wal(new).exists()


# ---- refused


def test_a_store_in_use_is_refused_and_goes_on(path: Path, runner: asyncio.Runner) -> None:
    database = runner.run(DuckDbDatabase.open(path, migrations=FIRST))

    in_this_process = refusal(path)
    command = (
        "import asyncio, sys, pathlib; from cbemail.store.duckdb_database import DuckDbDatabase; "
        "asyncio.run(DuckDbDatabase.open(pathlib.Path(sys.argv[1])))"
    )
    in_another = subprocess.run(
        [sys.executable, "-c", command, path],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert f"Another instance (process {os.getpid()})" in in_this_process
    assert in_another.returncode != 0
    assert in_this_process in in_another.stderr
    assert runner.run(database.execute("add_schema_version", version=2, name="")) == []
    runner.run(database.close())


def test_a_store_that_another_program_has_open_is_refused(path: Path) -> None:
    make(path)
    script = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()

        said = refusal(path)

        other.communicate(b"\n")
    assert f"is open in another program (process {other.pid})" in said


@pytest.mark.parametrize("content", [b"hello\n" * 5000, bytes(300_000), b"\0"])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)

    assert "is damaged, or was not made by cbemail" in refusal(path)


def test_an_empty_file_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.touch()

    assert "is empty" in refusal(path)


def test_a_folder_in_the_place_of_the_store_is_refused(path: Path) -> None:
    path.mkdir(parents=True)

    assert "is not a file" in refusal(path)


def test_a_cut_or_overwritten_store_is_refused(path: Path) -> None:
    make(path)
    whole = path.read_bytes()

    for content in (whole[:5000], whole[:20_000], whole[:4096] + os.urandom(len(whole) - 4096)):
        path.write_bytes(content)
        assert "is damaged" in refusal(path)


def test_a_read_only_store_is_refused(path: Path) -> None:
    make(path)
    path.chmod(0o444)

    assert "is read-only" in refusal(path)
    assert mode(path) == 0o444


def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    make(path, [*FIRST, NEXT])

    assert "newer cbemail (its schema is 2, this version knows 1)" in refusal(path)


def test_a_database_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    query(path, "create table theirs (a integer)")

    assert "not a store of cbemail" in refusal(path)
    assert query(path, "show tables") == [("theirs",)]


def test_a_log_without_its_store_is_refused(path: Path) -> None:
    make_and_crash(path, number=0)
    path.unlink()

    assert "is missing, but its write-ahead log is there" in refusal(path)
    wal(path).unlink()
    assert "is missing, but its log is there" in refusal(path)
    log(path).unlink()
    make(path)


def test_a_damaged_write_ahead_log_is_refused_and_kept(path: Path) -> None:
    make_and_crash(path, number=0)
    whole = wal(path).read_bytes()
    middle = len(whole) // 2

    for damaged in (
        b"\xff" * 80 + whole[80:],
        whole[:middle] + os.urandom(8) + whole[middle + 8 :],
    ):
        wal(path).write_bytes(damaged)
        assert "damaged" in refusal(path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StoreUnusable, match="cannot be opened: File exists"):
        make(tmp_path / "file" / "store.duckdb")


def test_a_refused_store_opens_once_it_is_mended(path: Path) -> None:
    make(path)
    shutil.copy(path, path.with_name("copy"))
    path.write_bytes(b"damage")
    refusal(path)

    shutil.copy(path.with_name("copy"), path)

    make(path)


# ---- the log


@pytest.fixture
def crashed(path: Path) -> Path:
    """A store that was killed with two entries in its log, and nothing in its write-ahead log any more."""
    make_and_crash_with(path, b"first", b"second")
    query(path, "checkpoint")
    return path


def test_a_store_that_is_closed_is_one_file(path: Path) -> None:
    for _ in range(2):
        make(path)

        assert list(contents(path)) == ["store.duckdb"]


def test_what_a_crash_has_left_in_the_log_is_found_by_every_start_until_it_is_folded(
    crashed: Path,
) -> None:
    assert entries(crashed) == [b"first", b"second"]
    assert entries(crashed) == [b"first", b"second"]

    query(crashed, "update event_log set folded = 2")

    assert entries(crashed) == []
    assert list(contents(crashed)) == ["store.duckdb"]


def test_a_store_that_crashed_with_all_of_its_log_folded_is_one_file_again(path: Path) -> None:
    make_and_crash_with(path, b"first", b"second", folded=2)

    make(path)

    assert list(contents(path)) == ["store.duckdb"]


def test_a_store_without_its_log_is_refused_until_it_is_back(crashed: Path) -> None:
    log(crashed).rename(crashed.with_name("elsewhere"))

    said = refusal(crashed)

    assert "which says what became of the latest messages, is missing: restore it" in said
    crashed.with_name("elsewhere").rename(log(crashed))
    assert entries(crashed) == [b"first", b"second"]


def test_the_log_of_another_store_is_refused(crashed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.duckdb"
    make_and_crash_with(other, b"theirs")
    shutil.copy(log(other), log(crashed))

    assert "is not the one of this store" in refusal(crashed)


def test_a_log_that_is_damaged_is_refused(crashed: Path) -> None:
    log(crashed).write_bytes(log(crashed).read_bytes().replace(b"first", b"fiRst"))

    assert "is damaged" in refusal(crashed)


def test_an_empty_file_in_the_place_of_the_log_is_the_word_to_go_on_without(crashed: Path) -> None:
    lost = log(crashed).read_bytes()
    log(crashed).write_bytes(b"")

    assert entries(crashed) == []
    assert list(contents(crashed)) == ["store.duckdb"]
    log(crashed).write_bytes(lost)
    assert "is not a log of this store" in refusal(crashed)


def test_a_log_that_was_given_up_is_not_taken_for_the_one_that_came_after_it(path: Path) -> None:
    make_and_crash_with(path, b"lost", b"lost, too")
    lost = log(path).read_bytes()
    log(path).write_bytes(b"")
    make_and_crash_with(path, b"new")
    query(path, "checkpoint")

    log(path).write_bytes(lost)

    assert "is not the one of this store" in refusal(path)


def test_a_store_that_was_closed_refuses_a_log_with_something_in_it(
    crashed: Path, tmp_path: Path
) -> None:
    """A backup was restored, say, and what the store that it replaces has left is still there."""
    backup = tmp_path / "backup.duckdb"
    make(backup)
    shutil.copy(backup, crashed)

    assert "is not a log of this store: restore the store that it belongs to" in refusal(crashed)


def test_a_file_that_is_no_log_is_left_alone(path: Path) -> None:
    make(path)
    log(path).write_text("2026-03-01 started\n")

    assert "is not a log of this store" in refusal(path)


@pytest.mark.parametrize("octets", [0, 47, 60])
def test_a_log_that_was_just_begun_or_nearly_gone_is_in_nobodys_way(
    path: Path, crashed: Path, octets: int
) -> None:
    """A crash between the steps of a start, or of a stop: the store has a name for no log."""
    beginning = log(crashed).read_bytes()[:octets]
    log(crashed).unlink()
    query(path, "update event_log set name = null")
    log(path).write_bytes(beginning)

    make(path)

    assert list(contents(path)) == ["store.duckdb"]
