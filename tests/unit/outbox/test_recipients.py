import csv
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from cbemail.errors import InvalidRequest
from cbemail.mime.address import Address
from cbemail.outbox.recipients import (
    MAX_ADDRESSES,
    MAX_JSON,
    MAX_VARIABLES,
    Entries,
    Entry,
    Unfit,
    from_file,
    from_json,
)
from cbemail.store.spool import ColumnType, SpoolFormat, write_parquet

# threats.md T-22: what one reader takes for this mailbox, and another for that
TREACHEROUS = [
    "",
    "c@d.co\tx",
    "c@d.co,e@f.co",
    "c@d.co;e@f.co",
    "c@d.co> NOTIFY=NEVER",
    "<c@d.co>\r\nRCPT TO:<x@y.z>",
    '"a b"@x.y',
    "a@[127.0.0.1]",
    "@a,@b:c@d.e",
    "g: a@b.c, c@d.e;",
    "a" * 255 + "@b.c",
    "a@b.c\0",
    "a@b\u2024c",
]


async def read(entries: Entries) -> list[Entry | Unfit]:
    return [entry async for piece in entries() for entry in piece]


async def read_json(*recipients: object) -> list[Entry | Unfit]:
    return await read(from_json(raws(*recipients)))


def raws(*recipients: object) -> list[Raw]:
    return msgspec.json.decode(msgspec.json.encode(recipients), type=list[Raw])


async def read_one(recipient: object) -> Entry | Unfit:
    [entry] = await read_json(recipient)
    return entry


async def refused(recipient: object) -> Unfit:
    entry = await read_one(recipient)
    assert isinstance(entry, Unfit)
    return entry


# ---- JSON


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("a@b.c", [Address(None, "a@b.c")]),
        ("Ann <a@b.c>", [Address("Ann", "a@b.c")]),
        ({"address": "a@b.c"}, [Address(None, "a@b.c")]),
        ({"name": "Ann", "address": "a@b.c"}, [Address("Ann", "a@b.c")]),
        (["a@b.c", {"address": "d@e.f"}], [Address(None, "a@b.c"), Address(None, "d@e.f")]),
    ],
)
async def test_an_address_is_written_in_any_way_the_api_takes(to: object, expected: list[Address]):
    assert await read_one({"to": to}) == Entry(0, expected)


async def test_a_recipient_brings_copies_variables_and_a_key():
    variables = {"name": "Ann", "age": 7, "tags": ["a", {"b": None}], "ratio": 0.5, "vip": True}

    entry = await read_one(
        {"to": "a@b.c", "cc": "d@e.f", "bcc": ["g@h.i"], "variables": variables, "key": "row 1"}
    )

    assert entry == Entry(
        0,
        [Address(None, "a@b.c")],
        [Address(None, "d@e.f")],
        [Address(None, "g@h.i")],
        variables,
        "row 1",
    )


async def test_a_key_that_is_a_whole_number_is_taken_as_text():
    entry = await read_one({"to": "a@b.c", "key": 42})

    assert isinstance(entry, Entry)
    assert entry.key == "42"


@pytest.mark.parametrize(
    "key",
    [
        b"true",
        b"1.5",
        b'["a"]',
        b'"%s"' % (b"a" * 201),
        b'"a\\nb"',
        b"%d" % 2**64,
        b"1" + b"0" * 5000,
    ],
)
async def test_what_is_no_key_spoils_its_recipient(key: bytes):
    [entry] = await read(from_json([Raw(b'{"to":"a@b.c","key":%s}' % key)]))

    assert isinstance(entry, Unfit)
    assert (entry.code, entry.to) in {("invalid-recipient", "a@b.c"), ("invalid-recipient", "")}


async def test_positions_are_those_of_the_request_over_many_pieces():
    entries = await read_json(*({"to": f"a{i}@b.c"} for i in range(1001)))

    assert [entry.position for entry in entries] == list(range(1001))


async def test_recipients_can_be_read_twice():
    entries = from_json(raws({"to": "a@b.c"}, {"to": "?"}))

    assert await read(entries) == await read(entries)


@pytest.mark.parametrize("to", TREACHEROUS)
async def test_an_address_with_two_readings_is_refused(to: str):
    unfit = await refused({"to": to})

    assert (unfit.code, unfit.to) == ("invalid-address", to[:1000])
    assert unfit.detail.endswith(".")


async def test_a_copy_with_a_wrong_address_is_refused_and_said_to_be_one():
    unfit = await refused({"to": "a@b.c", "cc": ["d@e.f", "x y"]})

    assert unfit.code == "invalid-address"
    assert unfit.detail.startswith("In cc: ")


@pytest.mark.parametrize(
    ("recipient", "named"),
    [
        ({"to": "a@b.c", "variabels": {}}, "variabels"),
        ({"to": {"address": "a@b.c", "nmae": "A"}}, "nmae"),
        ({"to": "a@b.c", "variables": []}, "variables"),
        ({"to": 5}, "to"),
        ({}, "to"),
        ({"to": []}, "to"),
        ("a@b.c", "object"),
        (None, "object"),
    ],
)
async def test_a_wrong_field_spoils_its_recipient_only_and_is_named(recipient: object, named: str):
    wrong, right = await read_json(recipient, {"to": "d@e.f"})

    assert isinstance(wrong, Unfit)
    assert wrong.code == "invalid-recipient"
    assert named in wrong.detail
    assert right == Entry(1, [Address(None, "d@e.f")])


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ({"to": [f"a{i}@b.c" for i in range(MAX_ADDRESSES + 1)]}, "invalid-recipient"),
        ({"to": "a@b.c", "variables": dict.fromkeys(map(str, range(201)))}, "too-large"),
        ({"to": "a@b.c", "variables": {"x": "a" * MAX_JSON}}, "too-large"),
    ],
)
async def test_a_recipient_has_its_limits(recipient: object, code: str):
    assert (await refused(recipient)).code == code


@pytest.mark.parametrize("depth", [30, 900, 50_000])
async def test_variables_that_nest_without_end_are_refused(depth: int):
    nested = b"[" * depth + b"]" * depth

    [entry] = await read(from_json([Raw(b'{"to":"a@b.c","variables":{"x":%s}}' % nested)]))

    assert isinstance(entry, Unfit)
    assert entry.code == "invalid-recipient"


# ---- files


def spooled(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


async def read_csv(tmp_path: Path, content: str | bytes) -> list[Entry | Unfit]:
    return await read(from_file(spooled(tmp_path, content), SpoolFormat.CSV))


def table(columns: Sequence[str], *rows: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


@pytest.mark.parametrize("column", ["to", "email", "To", " E-Mail ".replace("-", ""), "EMAIL"])
async def test_a_table_needs_one_column_of_addresses(tmp_path: Path, column: str):
    entries = await read_csv(tmp_path, f"{column},name\na@b.c,Ann\nd@e.f,Dan\n")

    assert entries == [
        Entry(position, [Address(None, address)], variables={column.strip(): address, "name": name})
        for position, (address, name) in enumerate([("a@b.c", "Ann"), ("d@e.f", "Dan")])
    ]


async def test_columns_for_copies_and_key_are_no_variables(tmp_path: Path):
    cc = '"Lee, Ann" <x@y.z>; p@q.r,'

    [entry] = await read_csv(
        tmp_path,
        table(["email", "CC", "bcc", "Key", "name"], ["a@b.c", cc, "s@t.u", " 7 ", "Ann"]),
    )

    assert entry == Entry(
        0,
        [Address(None, "a@b.c")],
        [Address("Lee, Ann", "x@y.z"), Address(None, "p@q.r")],
        [Address(None, "s@t.u")],
        {"email": "a@b.c", "name": "Ann"},
        "7",
    )


async def test_a_stray_quote_hides_no_address_of_a_list(tmp_path: Path):
    [entry] = await read_csv(tmp_path, table(["to", "cc"], ["a@b.c", 'x"y@z.w,q@r.s']))

    assert isinstance(entry, Unfit)
    assert entry.code == "invalid-address"


@pytest.mark.parametrize("to", TREACHEROUS[1:-2])
async def test_a_cell_names_one_mailbox_or_none(tmp_path: Path, to: str):
    [entry] = await read_csv(tmp_path, table(["to", "name"], [to, "Ann"]))

    assert isinstance(entry, Unfit)
    assert entry.code == "invalid-address"


async def test_what_is_written_in_cells_stays_what_it_is(tmp_path: Path):
    cells = ["007", "1,5", "2026-01-02", "true", "'; DROP TABLE batch; --", "=1+1", "{{ x }}", "é"]
    names = [f"v{i}" for i in range(len(cells))]

    [entry] = await read_csv(tmp_path, table(["to", *names], ["a@b.c", *cells]))

    assert isinstance(entry, Entry)
    assert entry.variables == {"to": "a@b.c", **dict(zip(names, cells, strict=True))}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("to,email,name\na@b.c,d@e.f,Ann\n", "Both to and email"),
        ("name,age\nAnn,7\n", "needs a column to or email"),
        ("to,name, name\na@b.c,x,y\n", "Two columns"),
        ("to,cc,name,CC\na@b.c,,x,y\n", "two columns cc"),
        ("to,name\n", "no recipients"),
        ("to," + ",".join(f"v{i}" for i in range(MAX_VARIABLES)) + "\n", "at most"),
        ('to,name\na@b.c,"never closed\n', "."),
        ("to,name\na@b.c,x\nd@e.f,x,y,z\n", "."),
        (b"to,name\na@b.c,\xff\xfe\n", "."),
        (b"\xff\xfet\0o\0\n\0a\0", "."),
    ],
)
async def test_a_table_that_is_wrong_as_such_is_refused_as_a_whole(
    tmp_path: Path, content: str | bytes, says: str
):
    with pytest.raises(InvalidRequest, match=says) as refusal:
        await read_csv(tmp_path, content)

    assert [error.pointer for error in refusal.value.errors] == ["#/recipients"]
    assert refusal.value.detail.endswith(".")


async def test_a_null_of_parquet_is_a_variable_without_a_value(tmp_path: Path):
    columns = [(name, ColumnType.VARCHAR) for name in ("email", "name", "cc", "key")]
    rows = [("a@b.c", None, None, None), (None, "Ann", "", "k")]
    path = write_parquet(tmp_path, columns, [rows])

    entries = await read(from_file(path, SpoolFormat.PARQUET))

    assert entries == [
        Entry(0, [Address(None, "a@b.c")], variables={"email": "a@b.c", "name": None}),
        Unfit(1, "", "invalid-recipient", "Name at least one address in to."),
    ]


async def test_a_line_of_ndjson_is_what_an_item_of_json_is(tmp_path: Path):
    lines = [
        '{"to": "a@b.c", "variables": {"age": 7}, "key": "k"}',
        '{"to": "a@b.c", "nmae": 1}',
        "no json",
        "{",
        '{"to": ["d@e.f"]}',
    ]
    path = spooled(tmp_path, "\n".join(lines) + "\n")

    entries = await read(from_file(path, SpoolFormat.NDJSON))

    assert entries[0] == Entry(0, [Address(None, "a@b.c")], variables={"age": 7}, key="k")
    assert [type(entry) for entry in entries] == [Entry, Unfit, Unfit, Unfit, Entry]
    assert [entry.position for entry in entries] == [0, 1, 2, 3, 4]
