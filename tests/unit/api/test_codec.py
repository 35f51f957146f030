"""Requests into structs: whatever the octets, the answer is a struct or an error of the caller's."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from starlette.datastructures import QueryParams
from starlette.requests import Request

from cbemail.api.codec import (
    decode_cursor,
    decode_json,
    decode_query,
    encode_cursor,
    read_chunks,
    require_json,
    tagged_response,
)
from cbemail.errors import InvalidRequest, MalformedJson, PayloadTooLarge, UnsupportedMediaType


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    amount: int = 0
    parts: list[int] = []
    labels: dict[str, int] = {}
    anything: Any = None


_items = msgspec.json.Decoder(Item)


def request(body: list[bytes], **headers: str) -> Request:
    """A request of these headers, whose body comes in these pieces."""
    pieces = iter(body)

    async def receive() -> dict[str, object]:
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    names = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": names}, receive)


async def read(given: Request, limit: int) -> bytes:
    return b"".join([chunk async for chunk in read_chunks(given, limit)])


# ---- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"anything": ' + b"[" * 100_000,
        b'{"anything": ' + b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"amount": NaN}',
        b"{'name': 1}",
        b"{} {}",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        decode_json(body, _items)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"[]", "#"),
        (b'{"nmae": "x"}', "#/nmae"),
        (b'{"amount": 1e400}', "#/amount"),
        (b'{"amount": ' + b"9" * 5000 + b"}", "#/amount"),
        (b'{"parts": [1, "2"]}', "#/parts/1"),
        (b'{"labels": {"a": "b"}}', "#/labels/*"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_wrong_value_is_pointed_at(body: bytes, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        decode_json(body, _items)

    assert [error.pointer for error in wrong.value.errors] == [pointer]
    assert wrong.value.detail.endswith(".")
    assert "`" not in wrong.value.detail


def test_of_a_field_given_twice_the_last_counts() -> None:
    assert decode_json(b'{"name": "a", "name": "b"}', _items).name == "b"


@given(st.binary())
def test_decoding_is_total(body: bytes) -> None:
    with suppress(MalformedJson, InvalidRequest):
        assert isinstance(decode_json(body, _items), Item)


async def test_a_body_is_put_together_from_its_pieces() -> None:
    assert await read(request([b"ab", b"", b"c"]), 3) == b"abc"


async def test_a_body_is_given_up_once_it_is_too_large_whatever_was_announced() -> None:
    with pytest.raises(PayloadTooLarge, match="at most 3 octets"):
        await read(request([b"abcd"], content_length="1"), 3)


@pytest.mark.parametrize("announced", ["4", "00004", "9" * 19])
async def test_a_body_announced_too_large_is_not_even_read(announced: str) -> None:
    with pytest.raises(PayloadTooLarge):
        await read(request([], content_length=announced), 3)


@pytest.mark.parametrize("announced", ["", "x", "-4", "9" * 5000, "²"])
async def test_a_length_that_is_none_is_not_believed(announced: str) -> None:
    assert await read(request([b"abc"], content_length=announced), 3) == b"abc"


@pytest.mark.parametrize(
    "given",
    ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"],
)
def test_json_goes_by_several_names(given: str) -> None:
    require_json(request([], content_type=given))


@pytest.mark.parametrize(
    "given",
    ["", "text/plain", "application/x-www-form-urlencoded", "text/json", "+json", ";"],
)
def test_another_media_type_is_refused(given: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        require_json(request([], content_type=given))


# ---- queries


@pytest.mark.parametrize(
    ("query", "pointer"),
    [("amount=x", "#/amount"), ("amount=" + "9" * 5000, "#/amount"), ("nmae=x", "#/nmae")],
    ids=lambda value: value[:16],
)
def test_a_wrong_query_is_pointed_at(query: str, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        decode_query(QueryParams(query), Item)

    assert [error.pointer for error in wrong.value.errors] == [pointer]


class Filter(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    flagged: bool | None = None
    from_: str | None = None


@pytest.mark.parametrize("word", ["null", "NULL", "Null"])
def test_a_filter_of_null_is_refused_rather_than_left_out(word: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        decode_query(QueryParams({"flagged": word, "from": "joe"}), Filter)

    assert [error.pointer for error in wrong.value.errors] == ["#/flagged"]


def test_null_is_a_word_like_any_other_where_there_is_text() -> None:
    assert decode_query(QueryParams("from=null"), Filter) == Filter(from_="null")


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than once"):
        decode_query(QueryParams("name=a&name=a"), Item)


# ---- cursors and entity tags


@given(st.builds(Item, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**63)))
def test_a_cursor_gives_back_what_was_put_in(item: Item) -> None:
    cursor = encode_cursor(item)

    assert decode_cursor(cursor, Item) == item
    assert cursor.isascii()
    assert "=" not in cursor


FORGED = st.binary(max_size=60) | st.sampled_from(
    [b"[" * 100_000, b'{"amount": "x"}', b'{"amount": 1e999}', b'{"name": "\\ud800"}', b"null"]
)


@given(st.text() | FORGED.map(urlsafe_b64encode).map(bytes.decode))
def test_whatever_a_client_sends_for_a_cursor_is_its_own_mistake_at_most(cursor: str) -> None:
    with suppress(InvalidRequest):
        assert isinstance(decode_cursor(cursor, Item), Item)


@pytest.mark.parametrize("known", ['"{tag}"', 'W/"{tag}"', '"other", "{tag}"', "*", " * "])
def test_what_the_client_has_is_not_sent_again(known: str) -> None:
    tag = tagged_response(request([]), Item("a")).headers["etag"].strip('"')

    response = tagged_response(request([], if_none_match=known.format(tag=tag)), Item("a"))

    assert (response.status_code, response.body) == (304, b"")
    assert response.headers["etag"] == f'"{tag}"'


@pytest.mark.parametrize("known", ["", '"other"', '"', "**"])
def test_what_the_client_has_not_is_sent(known: str) -> None:
    response = tagged_response(request([], if_none_match=known), Item("a"))

    assert response.status_code == 200
