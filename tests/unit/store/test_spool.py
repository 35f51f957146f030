"""Tables from files: read as they were meant, or refused with the place; never a door to another file."""

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from cbemail.store.spool import (
    MAX_FOOTER,
    ColumnType,
    SpoolError,
    SpoolFormat,
    SpoolLimits,
    SpoolRow,
    open_table,
    write_parquet,
)

CSV, NDJSON, PARQUET = SpoolFormat.CSV, SpoolFormat.NDJSON, SpoolFormat.PARQUET
LIMITS = SpoolLimits(rows=1000)
MEGABYTE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "upload-1"


def read(
    path: Path, kind: SpoolFormat, limits: SpoolLimits = LIMITS
) -> tuple[list[str], list[SpoolRow]]:
    with open_table(path, kind, limits) as table:
        return table.columns, [row for chunk in table.chunks() for row in chunk]


def rows(path: Path, content: bytes, kind: SpoolFormat = CSV) -> list[SpoolRow]:
    path.write_bytes(content)
    return read(path, kind)[1]


def refusal(
    path: Path,
    content: bytes | None,
    kind: SpoolFormat = CSV,
    limits: SpoolLimits = LIMITS,
) -> SpoolError:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpoolError) as refused:
        read(path, kind, limits)
    assert refused.value.detail[0].isupper()
    assert refused.value.detail[-1] in ".?"
    assert str(path.parent) not in refused.value.detail
    return refused.value


def make_parquet(path: Path, query: str, options: str = "") -> None:
    with duckdb.connect() as connection:
        connection.execute(f"copy ({query}) to '{path}' (format parquet{options})")


# ---- CSV


def test_a_csv_file_is_columns_and_rows(path: Path) -> None:
    path.write_text("to,name\na@example.org,Ann\nb@example.org,Bö\n")

    assert read(path, CSV) == (
        ["to", "name"],
        [("a@example.org", "Ann"), ("b@example.org", "Bö")],
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_line_ends_are_recognised(path: Path, delimiter: str, end: str) -> None:
    text = f'"to, or; not{delimiter}"{delimiter}b{end}1{delimiter}2{end}3{delimiter}4'

    assert rows(path, text.encode()) == [("1", "2"), ("3", "4")]


def test_a_quoted_cell_holds_delimiters_quotes_and_lines(path: Path) -> None:
    content = b'a,b\n"1,""2""","x\r\ny"\n\\,"\\"\n'

    assert rows(path, content) == [('1,"2"', "x\r\ny"), ("\\", "\\")]


def test_everything_in_a_csv_file_is_text(path: Path) -> None:
    content = b'a,b,c\n007,NULL,2026-01-01\n,"", x \n#1,=1+1,\'\n'

    assert rows(path, content) == [
        ("007", "NULL", "2026-01-01"),
        ("", "", " x "),
        ("#1", "=1+1", "'"),
    ]


def test_a_byte_order_mark_and_empty_lines_are_passed_over(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf\n to , name\n\n1,2\n\n\n3,4\n\n")

    assert read(path, CSV) == (["to", "name"], [("1", "2"), ("3", "4")])


def test_a_header_alone_has_no_rows(path: Path) -> None:
    path.write_bytes(b"a,b")

    assert read(path, CSV) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("content", "row", "detail"),
    [
        (b"", None, "The file is empty."),
        (b"\n\r\n", None, "The file is empty."),
        (b"a,b, a\n1,2,3\n", 1, "Two columns have the same name."),
        (b'a,b\n1,2\n3,"4\n5,6\n', 3, "A quote is opened here that is never closed."),
        (b'"a,b\n1,2\n', 1, "A quote is opened here that is never closed."),
        (b'a,b\n1,"2\n3"x\n', 2, "A quote is not closed, or is followed by more than a delimiter."),
        (b'a,b\n"x\ny",2\n3\n', 4, "The row has 1 cells, where the header has 2."),
        (b"a,b\n1,2,\n", 2, "The row has 3 cells, where the header has 2."),
        (b"a,b\n1,\xe9\n", 2, "The text is not UTF-8."),
        (b"a,b\n1,\xed\xa0\x80\n", 2, "The text is not UTF-8."),
        (b"a,b\n1,2\n1,\0\n", 3, "The file holds U+0000: it must be text in UTF-8."),
        ("a,b\n1,2\n".encode("utf-16"), None, "The file is UTF-16: it must be UTF-8."),
        ("a,b\n1,2\n".encode("utf-16-le"), 1, "The file holds U+0000: it must be text in UTF-8."),
        (b"a,b\n1," + b"x" * 200_000, 2, "A cell is longer than 131,072 characters."),
        (b"x" * MEGABYTE + b"x", 1, "The row is longer than 1,048,576 characters."),
        (b"a\n1\n" + b"x\n" * 99 + b"," * 2 * MEGABYTE, 102,
         "The row is longer than 1,048,576 characters."),
        (b'a\n"' + b"y\n" * MEGABYTE, 2, "A cell is longer than 131,072 characters."),
        (b"\n" * 3000, None, "The file has too many empty lines."),
    ],
)  # fmt: skip
def test_a_csv_file_that_is_not_certain_is_refused_with_the_line(
    path: Path, content: bytes, row: int | None, detail: str
) -> None:
    refused = refusal(path, content)

    assert (refused.row, refused.detail) == (row, detail)


def test_the_rows_before_a_broken_one_are_read(path: Path) -> None:
    path.write_bytes(b"a,b\n" + b"1,2\n" * 700 + b"3\n")

    with open_table(path, CSV, LIMITS) as table:
        chunks = table.chunks(size=500)
        first = next(chunks)
        with pytest.raises(SpoolError) as refused:
            next(chunks)

    assert len(first) == 500
    assert refused.value.row == 702


# ---- NDJSON


def test_ndjson_is_lines_as_they_were_written(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"to": "a"}\r\n\n  \n [not json, \r yet]\n"\xc3\xbc"')

    assert read(path, NDJSON) == (
        ["json"],
        [('{"to": "a"}',), ("[not json, \r yet]",), ('"ü"',)],
    )


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (b"1\n\xff", 2),
        (b"1\n\n2\0\n", 3),
        (b"1\n" + b"x" * MEGABYTE + b"\n", 2),
        ("1\n".encode("utf-16"), None),
        (b" \n" * 3000, None),
    ],
)
def test_an_ndjson_file_that_is_no_text_is_refused_with_the_line(
    path: Path, content: bytes, row: int | None
) -> None:
    assert refusal(path, content, NDJSON).row == row


# ---- Parquet


def test_a_parquet_file_is_text_with_nested_values_as_json(path: Path) -> None:
    make_parquet(
        path,
        "select 'a' as \"to\", null::varchar as none, 7 as seven, 1.50::decimal(5, 2) as price,"
        " timestamp '2026-01-01 10:00:00' as at, true as yes, [1, 2] as list,"
        " {'x': 'y', 'n': null} as struct, map {'k': 1} as map, [{'x': [1]}] as deep",
    )

    columns, [row] = read(path, PARQUET)

    assert columns[:2] == ["to", "none"]
    assert row == (
        "a", None, "7", "1.50", "2026-01-01 10:00:00", "true", "[1,2]",
        '{"x":"y","n":null}', '{"k":1}', '[{"x":[1]}]',
    )  # fmt: skip


def test_the_name_of_a_parquet_column_is_a_name_and_no_sql(path: Path) -> None:
    name = "a\"; drop table x; --' $path"
    make_parquet(path, f'select 1 as "{name.replace(chr(34), chr(34) * 2)}", 2 as "#1"')

    assert read(path, PARQUET) == ([name, "#1"], [("1", "2")])


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1PAR1", b"to\na@b\n", b"PAR1" + bytes(4) + b"PAR1", b"PARE" * 40],
)
def test_what_is_no_parquet_file_is_refused(path: Path, content: bytes) -> None:
    assert refusal(path, content, PARQUET).detail.startswith("The file is not a Parquet file")


def test_a_damaged_parquet_file_is_refused_or_read_and_nothing_else(path: Path) -> None:
    make_parquet(path, "select i as n, 'x' || i as name, [i] as list from range(300) t(i)")
    whole = path.read_bytes()

    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(SpoolError):
            read(path, PARQUET)


def test_a_parquet_text_that_is_not_utf8_is_refused(path: Path) -> None:
    make_parquet(path, r"select '\xFF'::blob as name")

    refusal(path, None, PARQUET)


def test_a_parquet_row_that_is_too_long_is_refused_with_its_number(path: Path) -> None:
    make_parquet(path, "select repeat('x', 700000 * (i // 2)::int) a, 'y' b from range(6) t(i)")

    refused = refusal(path, None, PARQUET)

    assert (refused.row, refused.detail) == (5, "The row is longer than 1,048,576 characters.")


# ---- limits and bombs


@pytest.mark.parametrize("kind", list(SpoolFormat))
def test_one_row_more_than_the_limit_is_read_and_no_more(path: Path, kind: SpoolFormat) -> None:
    if kind is PARQUET:
        make_parquet(path, "select 1 as a from range(5000)")
    else:
        path.write_bytes(b"1\n" * 5000)

    with open_table(path, kind, SpoolLimits(rows=1200)) as table:
        sizes = [len(chunk) for chunk in table.chunks(size=500)]

    assert sizes == [500, 500, 201]


@pytest.mark.parametrize("kind", [CSV, PARQUET])
def test_too_many_columns_are_refused(path: Path, kind: SpoolFormat) -> None:
    names = [f"c{index}" for index in range(501)]
    if kind is PARQUET:
        make_parquet(path, "select " + ", ".join(f"1 as {name}" for name in names))
    else:
        path.write_text(",".join(names))

    assert refusal(path, None, kind).detail == "There are more than 500 columns."


def test_long_rows_are_handed_on_before_the_chunk_is_full(path: Path) -> None:
    path.write_bytes(b"a\n" + (b"x" * 130_000 + b"\n") * 100)

    with open_table(path, CSV, LIMITS) as table:
        sizes = [len(chunk) for chunk in table.chunks(size=500)]

    assert max(sizes) < 35
    assert sum(sizes) == 100


def footer(schema: bytes, elements: int, rest: bytes = b"\x16\0\x19\x0c\0") -> bytes:
    """A Parquet file that is all footer."""
    count = bytes([0xFC, elements & 0x7F | 0x80, elements >> 7 & 0x7F | 0x80, elements >> 14])
    metadata = b"\x15\x02\x19" + count + schema + rest
    return b"PAR1" + metadata + struct.pack("<I", len(metadata)) + b"PAR1"


LEAF = b"\x15\x02\x25\x02\x18\x01a\0"  # an optional integer named a
GROUP = b"\x35\x02\x18\x01a\x15\x02\0"  # an optional group named a, of one child


def test_a_footer_of_a_great_many_columns_is_refused_before_the_engine_reads_it(
    path: Path,
) -> None:
    root = b"\x35\0\x18\x01r\x15\xc0\xa9\x07\0"

    path.write_bytes(footer(root + LEAF * 60_000, 60_001))

    outcome, added = explode(path, PARQUET)

    assert outcome == "There are more than 500 columns."
    assert added < 20


def test_a_deeply_nested_footer_is_refused(path: Path) -> None:
    refusal(path, footer(GROUP * 1900 + LEAF, 1901), PARQUET)


def test_a_footer_that_is_too_large_is_refused(path: Path) -> None:
    content = footer(GROUP + LEAF, 2, rest=bytes(MAX_FOOTER))

    assert refusal(path, content, PARQUET).detail.startswith("The file describes too many")


BOMBS = """
import resource, sys
from pathlib import Path
from cbemail.store.spool import SpoolError, SpoolFormat, open_table
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
kind, path = SpoolFormat(sys.argv[1]), Path(sys.argv[2])
before, rows = peak(), 0
try:
    with open_table(path, kind) as table:
        for chunk in table.chunks():
            rows += len(chunk)
except SpoolError as refused:
    rows = refused.detail
print(rows, peak() - before, sep="|")
"""


def explode(path: Path, kind: SpoolFormat) -> tuple[str, int]:
    """What became of reading the file in a process of its own, and the memory it took, in MB."""
    said = subprocess.run(
        [sys.executable, "-c", BOMBS, kind, path],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    outcome, added = said.split("|")
    return outcome, int(added)


def test_many_constant_rows_in_a_small_parquet_file_cost_little(path: Path) -> None:
    make_parquet(
        path,
        "select 'a@example.org' as email from range(20_000_000)",
        ", compression zstd, row_group_size 5_000_000",
    )
    assert path.stat().st_size < 200_000

    outcome, added = explode(path, PARQUET)

    assert outcome == "500001"
    assert added < 150


def test_a_long_text_repeated_in_a_small_parquet_file_is_refused_in_bounded_memory(
    path: Path,
) -> None:
    make_parquet(
        path,
        "select repeat('x', 500_000) as text from range(2000)",
        ", compression zstd, row_group_size 2048",
    )
    assert path.stat().st_size < 10_000

    outcome, added = explode(path, PARQUET)

    assert outcome == "The rows of the file are too long to be read."
    assert added < 250


def test_a_csv_file_is_read_in_the_memory_of_a_few_rows(path: Path) -> None:
    line = '{0}@example.org,"Name, {0}",0123456789abcdef0123456789abcdef\n'
    path.write_text("to,name,token\n" + "".join(line.format(number) for number in range(100_000)))

    outcome, added = explode(path, CSV)

    assert outcome == "100000"
    assert added < 20


@pytest.mark.parametrize("kind", list(SpoolFormat))
def test_a_reading_stops_when_it_is_interrupted(path: Path, kind: SpoolFormat) -> None:
    if kind is PARQUET:
        make_parquet(path, "select 1 as a from range(100_000)")
    else:
        path.write_bytes(b"1\n" * 100_000)

    with open_table(path, kind) as table:
        chunks = table.chunks()
        next(chunks)
        other = threading.Thread(target=table.interrupt)
        other.start()
        other.join()
        with pytest.raises(SpoolError) as refused:
            list(chunks)
    table.interrupt()  # too late, and no harm

    assert refused.value.detail == "The reading was stopped."


@pytest.mark.parametrize("kind", list(SpoolFormat))
def test_a_reading_that_is_interrupted_before_it_begins_does_not_begin(
    path: Path, kind: SpoolFormat
) -> None:
    if kind is PARQUET:
        make_parquet(path, "select 1 as a")
    else:
        path.write_bytes(b"1\n1\n")

    with open_table(path, kind) as table:
        table.interrupt()
        with pytest.raises(SpoolError) as refused:
            next(table.chunks())

    assert refused.value.detail == "The reading was stopped."


def test_a_table_may_be_read_by_one_thread_after_another(path: Path) -> None:
    make_parquet(path, "select 1 as a from range(1000)")
    sizes: list[int] = []
    opening = open_table(path, PARQUET)
    table = opening.__enter__()
    chunks = table.chunks(size=300)

    def step() -> None:
        sizes.append(len(next(chunks)))

    for _ in range(4):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    opening.__exit__(None, None, None)

    assert sizes == [300, 300, 300, 100]


# ---- one door


SECRET = b"to,name\nsecret@example.org,x\n"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("kind", list(SpoolFormat))
def test_a_link_out_of_the_folder_is_refused(path: Path, outside: Path, kind: SpoolFormat) -> None:
    if kind is PARQUET:
        make_parquet(outside, "select 'secret' as a")
    path.symlink_to(outside)

    assert refusal(path, None, kind).detail == "The file cannot be opened."


@pytest.mark.parametrize("kind", list(SpoolFormat))
def test_what_is_not_a_file_is_refused(path: Path, kind: SpoolFormat) -> None:
    assert refusal(path, None, kind).detail == "The file cannot be opened."
    path.mkdir()
    assert refusal(path, None, kind).detail == "The file cannot be opened."
    path.rmdir()
    os.mkfifo(path)
    assert refusal(path, None, kind).detail == "The file cannot be opened."


@pytest.fixture
def engine(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The engine as it is while a Parquet file is read."""
    make_parquet(path, "select 1 as a")
    with open_table(path, PARQUET) as table:
        yield table._source._connection  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "statement",
    [
        "from read_csv('/etc/passwd')",
        "from '/etc/passwd'",
        "from read_text('/etc/passwd')",
        "from read_csv('{outside}')",
        "from read_csv('{folder}/../outside')",
        "from read_text('{folder}/link')",
        "from read_csv('{folder}x/y')",
        "from read_parquet(['{folder}/upload-1', '{outside}'])",
        "from glob('/etc/*')",
        "attach '{outside}.db'",
        "copy (select 1) to '{outside}.csv'",
        "copy (select 1) to '{folder}/link'",
        "export database '{outside}.folder'",
        "install httpfs",
        "load httpfs",
        "from read_csv('https://127.0.0.1:9/x')",
        "set enable_external_access = true",
        "set allowed_directories = ['/']",
        "set lock_configuration = false",
        "set memory_limit = '10GB'",
        "set temp_directory = '/tmp'",
    ],
)
def test_the_engine_opens_nothing_but_its_folder(
    engine: duckdb.DuckDBPyConnection, folder: Path, outside: Path, statement: str
) -> None:
    (folder / "link").symlink_to(outside)

    with pytest.raises(duckdb.Error) as refused:
        engine.execute(statement.format(folder=folder, outside=outside)).fetchall()

    assert isinstance(
        refused.value,
        duckdb.PermissionException | duckdb.InvalidInputException | duckdb.CatalogException
        | duckdb.HTTPException | duckdb.IOException,
    )  # fmt: skip
    assert outside.read_bytes() == SECRET


def test_the_engine_opens_its_folder(engine: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Or the test above would say nothing."""
    assert engine.execute(f"from read_parquet('{path}')").fetchall() == [(1,)]
    assert engine.execute("select current_setting('threads')").fetchall() == [(1,)]


def test_a_file_whose_name_would_match_others_is_a_mistake(folder: Path) -> None:
    make_parquet(folder / "a1", "select 'secret' as a")
    make_parquet(folder / "a*", "select 'mine' as a")

    with pytest.raises(ValueError, match="wildcards"):
        read(folder / "a*", PARQUET)


# ---- written


COLUMNS = [
    ("email", ColumnType.VARCHAR),
    ("attempts", ColumnType.INTEGER),
    ("finished_at", ColumnType.TIMESTAMP),
]


def test_a_written_table_can_be_read_by_everybody(folder: Path) -> None:
    at = datetime.fromisoformat("2026-03-01T13:00:00+01:00")
    chunks: list[list[tuple[object, ...]]] = [
        [("a@example.org", 1, at), ("ü", None, None)],
        [],
        [(None, 2, at)],
    ]

    path = write_parquet(folder, COLUMNS, chunks)

    naive = at.astimezone(UTC).replace(tzinfo=None)
    with duckdb.connect() as connection:
        assert connection.execute(f"from '{path}'").fetchall() == [
            ("a@example.org", 1, naive),
            ("ü", None, None),
            (None, 2, naive),
        ]
    assert list(folder.iterdir()) == [path]


def test_a_table_without_rows_has_its_columns(folder: Path) -> None:
    path = write_parquet(folder, COLUMNS, [])

    assert read(path, PARQUET) == (["email", "attempts", "finished_at"], [])


def test_a_table_larger_than_memory_waits_in_the_folder(folder: Path) -> None:
    rows = [(os.urandom(500).hex(), 1, None) for _ in range(1000)]

    path = write_parquet(folder, COLUMNS, [rows] * 150)  # 150 MB; the engine may use 96

    with open_table(path, PARQUET) as table:
        assert sum(len(chunk) for chunk in table.chunks()) == 150_000
    assert list(folder.iterdir()) == [path]


def test_a_writing_that_breaks_off_leaves_no_file(folder: Path) -> None:
    def chunks() -> Iterator[list[tuple[object, ...]]]:
        yield [("a", 1, None)]
        raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_parquet(folder, COLUMNS, chunks())

    assert list(folder.iterdir()) == []


def test_a_table_that_cannot_be_written_is_told_in_a_sentence(folder: Path) -> None:
    folder.rmdir()

    with pytest.raises(SpoolError, match="could not be written"):
        write_parquet(folder, COLUMNS, [[("a", 1, None)]])


def test_a_column_of_a_written_table_has_a_plain_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="small letters"):
        write_parquet(folder, [("a; drop table report", ColumnType.VARCHAR)], [])
