"""The log as a file: whatever a crash leaves of it is read up to where it was cut, and whatever else is refused."""

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbemail.store.database import Entry, StoreUnusable
from cbemail.store.log_file import LogFile, LogFull, end_of, refuse_strange

NAME = "0123456789abcdef" * 2
HEADER = 47
MARK = b"\xf7cbe"

payloads = st.lists(st.binary(max_size=40) | st.just(MARK * 9), max_size=6)
on_one_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.duckdb.events"


def entries_of(payloads: Sequence[bytes], *, first: int = 1) -> list[Entry]:
    return [Entry(number, payload) for number, payload in enumerate(payloads, first)]


def write(path: Path, entries: Sequence[Entry]) -> None:
    """A new log with these entries, as a kill would leave it."""
    with opened(LogFile.create(path, NAME)) as log:
        for entry in entries:
            log.append(entry)


@contextmanager
def opened(log: LogFile) -> Iterator[LogFile]:
    try:
        yield log
    finally:
        log.close()


def reopened(path: Path, *, folded: int = 0) -> LogFile:
    return LogFile.open(path, end_of(path, NAME, folded=folded))


def read(path: Path, *, folded: int = 0) -> list[Entry]:
    """What the next process finds, of which the store has all up to ``folded``."""
    with opened(reopened(path, folded=folded)) as log:
        return log.entries(folded)


def ends(entries: Sequence[Entry]) -> list[int]:
    """Where each entry ends in the file."""
    found = [HEADER]
    for entry in entries:
        found.append(found[-1] + 20 + len(entry.payload))
    return found[1:]


@contextmanager
def no_room_past(octets: int) -> Iterator[None]:
    """What is written beyond is cut off there, and what begins beyond is refused."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---- what a crash leaves


@on_one_disk
@given(payloads)
def test_whatever_was_appended_is_read_back_in_its_order(path: Path, data: list[bytes]) -> None:
    entries = entries_of(data)

    write(path, entries)

    assert read(path) == entries


@on_one_disk
@given(payloads, st.data())
def test_a_log_that_was_cut_anywhere_holds_the_entries_before_and_takes_new_ones(
    path: Path, data: list[bytes], draw: st.DataObject
) -> None:
    entries = entries_of(data)
    write(path, entries)
    cut = draw.draw(st.integers(HEADER, ends(entries)[-1] if entries else HEADER))
    whole = [entry for entry, end in zip(entries, ends(entries), strict=True) if end <= cut]
    new = Entry(100, b"new")

    path.write_bytes(path.read_bytes()[:cut])
    with opened(reopened(path)) as log:
        log.append(new)

    assert read(path) == [*whole, new]


@on_one_disk
@given(payloads, st.binary(max_size=60), st.data())
def test_of_an_entry_that_was_written_in_part_nothing_is_read(
    path: Path, data: list[bytes], last: bytes, draw: st.DataObject
) -> None:
    """A power cut leaves any pages of what was not synced, in any order; here pages of eight octets, over zeros."""
    entries = entries_of(data)
    write(path, [*entries, Entry(100, last)])
    start, end = (
        ends([*entries, Entry(100, last)])[-2:] if entries else (HEADER, HEADER + 20 + len(last))
    )
    lost = draw.draw(st.sets(st.sampled_from(range(start, end, 8)), min_size=1))
    whole = path.read_bytes()
    torn = bytearray(whole)
    for page in lost:
        torn[page : page + 8] = bytes(8)

    path.write_bytes(torn)

    assert read(path) == entries or torn == whole  # of zeros nothing is lost


# ---- entries that were let go of


@on_one_disk
@given(payloads, payloads, st.data())
def test_what_was_let_go_of_never_comes_back_whatever_was_written_over_it(
    path: Path, old: list[bytes], new: list[bytes], draw: st.DataObject
) -> None:
    earlier = entries_of(old)
    later = entries_of(new, first=len(old) + 1)
    with opened(LogFile.create(path, NAME)) as log:
        for entry in earlier:
            log.append(entry)
        behind = path.read_bytes()
        log.clear()
        for entry in later:
            log.append(entry)
    cut = draw.draw(st.integers(HEADER, ends(later)[-1] if later else HEADER))
    whole = [entry for entry, end in zip(later, ends(later), strict=True) if end <= cut]

    path.write_bytes(path.read_bytes()[:cut] + behind[cut:])

    found = read(path, folded=len(old))

    assert found[: len(whole)] == whole
    assert found == later[: len(found)]  # one more, where the old octets are those of the new entry


def test_an_older_entry_behind_a_newer_one_is_never_read(path: Path) -> None:
    """The store may have forgotten that it has it: it was restored from a backup."""
    write(path, [Entry(5, b"new"), Entry(3, b"old")])

    assert read(path) == [Entry(5, b"new")]


def test_a_crash_before_anything_is_written_over_them_does_not_bring_back_what_is_folded(
    path: Path,
) -> None:
    write(path, entries_of([b"a", b"b", b"c"]))

    with opened(reopened(path, folded=3)) as log:
        octets = log.octets

        log.append(Entry(4, b"d"))

        assert octets == 0
        assert log.entries(3) == [Entry(4, b"d")]
    assert read(path, folded=3) == [Entry(4, b"d")]


def test_what_is_folded_in_part_is_read_from_there_on(path: Path) -> None:
    entries = entries_of([b"a", b"b", b"c"])
    write(path, entries)

    assert read(path, folded=2) == entries[2:]


def test_once_synced_there_are_no_entries_for_anybody(path: Path) -> None:
    with opened(LogFile.create(path, NAME)) as log:
        log.append(Entry(1, b"a"))
        log.clear()

        log.sync()

    assert path.stat().st_size == HEADER
    refuse_strange(path)


def test_a_log_that_was_long_is_short_once_it_is_emptied(path: Path) -> None:
    with opened(LogFile.create(path, NAME)) as log:
        for entry in entries_of([bytes(300_000)] * 5):
            log.append(entry)
        longest = path.stat().st_size

        log.clear()

        assert longest > 1_500_000
        assert path.stat().st_size == HEADER
        log.append(Entry(6, b"new"))
    assert read(path, folded=5) == [Entry(6, b"new")]


# ---- a full disk


@on_one_disk
@given(st.binary(min_size=1, max_size=300), st.integers(0, 319))
def test_an_entry_without_room_is_not_there_and_a_shorter_one_may_be(
    path: Path, data: bytes, room: int
) -> None:
    """The disk takes the beginning of it, as long as there is room."""
    first, large, small = Entry(1, b"first"), Entry(2, data), Entry(3, b"")
    write(path, [first])
    end = ends([first])[-1]

    with opened(reopened(path)) as log:
        with no_room_past(end + min(room, 19 + len(data))), pytest.raises(LogFull):
            log.append(large)
        between = log.entries(0)
        with no_room_past(end + 20):
            log.append(small)

    assert between == [first]
    assert read(path) == [first, small]


def test_an_entry_fits_where_the_zeros_behind_it_do_not(path: Path) -> None:
    entries = entries_of([b"a" * 100, b"b" * 100])

    with opened(LogFile.create(path, NAME)) as log, no_room_past(ends(entries)[-1]):
        for entry in entries:
            log.append(entry)
        with pytest.raises(LogFull):
            log.append(Entry(3, b""))

    assert read(path) == entries


# ---- refused


@on_one_disk
@given(st.lists(st.binary(max_size=40), min_size=2, max_size=6), st.data())
def test_an_octet_that_is_another_before_the_last_entry_is_refused(
    path: Path, data: list[bytes], draw: st.DataObject
) -> None:
    """In the last entry it cannot be told from a write that a crash cut short."""
    entries = entries_of(data)
    write(path, entries)
    octets = bytearray(path.read_bytes())
    position = draw.draw(st.integers(0, ends(entries)[-2] - 1))
    octets[position] ^= draw.draw(st.integers(1, 255))
    path.write_bytes(octets)

    with pytest.raises(StoreUnusable, match=r"is damaged|is not the one of this store"):
        end_of(path, NAME, folded=0)

    assert path.read_bytes() == octets


def test_damage_to_what_is_folded_is_nobodys_loss(path: Path) -> None:
    write(path, entries_of([b"a", b"b", b"c"]))
    octets = bytearray(path.read_bytes())
    octets[HEADER + 20] ^= 1
    path.write_bytes(octets)

    assert read(path, folded=3) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"cbemail log 1 " + b"f" * 32 + b"\n", "is not the one of this store"),
        (b"cbemail log 1 0123", "is not the one of this store"),
        (b"2026-03-01 started\n", "is not the one of this store"),
    ],
)
def test_a_log_of_another_store_is_refused(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)

    with pytest.raises(StoreUnusable, match=why):
        end_of(path, NAME, folded=0)


@pytest.mark.parametrize("content", [b"2026-03-01 started\n", bytes(100), b"cbemail log 1 0123"])
def test_a_file_that_is_no_log_is_not_taken_for_the_beginning_of_one(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)

    with pytest.raises(StoreUnusable, match="is not a log of this store"):
        refuse_strange(path)


def test_the_beginning_of_a_log_is_in_nobodys_way(path: Path) -> None:
    refuse_strange(path)
    for entries in ([], [Entry(1, b"a")]):
        write(path, entries)
        path.write_bytes(path.read_bytes()[: HEADER + 5])

        refuse_strange(path)


def test_entries_that_the_store_knows_nothing_of_are_refused(path: Path) -> None:
    write(path, [Entry(1, b"")])

    with pytest.raises(StoreUnusable, match="is not a log of this store"):
        refuse_strange(path)


def test_a_log_that_cannot_be_made_leaves_what_was_there(path: Path) -> None:
    path.write_bytes(b"")

    with no_room_past(10), suppress(OSError):
        LogFile.create(path, NAME)

    assert path.read_bytes() == b""
