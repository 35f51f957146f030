"""Forms, octet by octet: however they arrive they are the same form, and what is none is the client's mistake."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.api.forms import MAX_PARTS, Form, Part
from cbemail.errors import InvalidRequest

TYPE = "multipart/form-data; boundary=frontier"


def part(name: str, content: bytes, *more: str) -> bytes:
    head = [f'Content-Disposition: form-data; name="{name}"', *more]
    return b"--frontier\r\n" + "\r\n".join(head).encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--frontier--\r\n"
LETTER = (
    part("batch", b'{"a": 1}', "Content-Type: application/json; charset=utf-8")
    + b'--frontier\r\ncontent-type: Text/CSV\r\ncontent-disposition: form-data; name="recipients"; '
    b'filename="p\xc3\xa9ople; x.csv"\r\n\r\nto\r\n--frontie\r\n'
    + part("rest", b"\r\n--frontierx").replace(b"--frontier\r", b"--frontier \t\r")
    + END
)


def read(pieces: Iterable[bytes], content_type: str = TYPE) -> list[tuple[Part, bytes]]:
    """The parts of a form that arrives in these pieces, each with its content."""
    form = Form(content_type)
    parts: list[tuple[Part, bytes]] = []
    for piece in pieces:
        for read in form.feed(piece):
            if isinstance(read, Part):
                parts.append((read, b""))
            else:
                parts[-1] = (parts[-1][0], parts[-1][1] + read)
    assert form.complete
    return parts


WHOLE = [
    (Part("batch", "", "application/json"), b'{"a": 1}'),
    (Part("recipients", "péople; x.csv", "text/csv"), b"to\r\n--frontie"),
    (Part("rest", "", ""), b"\r\n--frontierx"),
]


@pytest.mark.parametrize("cut", range(len(LETTER)))
def test_where_a_form_is_cut_in_two_changes_nothing(cut: int) -> None:
    assert read([LETTER[:cut], LETTER[cut:]]) == WHOLE


def test_a_form_may_come_octet_by_octet() -> None:
    assert read(LETTER[i : i + 1] for i in range(len(LETTER))) == WHOLE


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=5))
def test_a_part_is_what_was_put_into_it(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--frontier" in b"\r\n" + content:
        return
    form = part("a", content) + END
    places = [0, *sorted(min(cut, len(form)) for cut in cuts), len(form)]

    parts = read(form[a:b] for a, b in pairwise(places))

    assert parts == [(Part("a", "", ""), content)]


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"--frontier", b"\r\n", b"--", END])))
def test_whatever_comes_is_a_form_or_the_clients_mistake(pieces: list[bytes]) -> None:
    form = Form(TYPE)
    with suppress(InvalidRequest):
        for piece in pieces:
            assert all(isinstance(read, Part | bytes) for read in form.feed(piece))


@pytest.mark.parametrize(
    "body", [b"", b"--frontier\r\n", part("a", b"x"), part("a", b"x") + END[:-4]]
)
def test_a_form_that_breaks_off_is_not_complete(body: bytes) -> None:
    form = Form(TYPE)

    list(form.feed(body))

    assert not form.complete


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; charset=utf-8",
    ],
)
def test_a_form_names_its_boundary(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="names its boundary"):
        Form(content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"hello, world",
        b"--other\r\n",
        b"--frontier\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        b'--frontier\r\nContent-Disposition: attachment; name="a"\r\n\r\nx\r\n' + END,
        b"--frontier\r\n\r\nx\r\n" + END,
        b"--frontier\r\nno header\r\n\r\nx\r\n" + END,
        b"--frontier\r\nX: " + b"x" * 5000 + b"\r\n\r\nx\r\n" + END,
        part("a", b"x", *[f"X-{i}: y" for i in range(9)]) + END,
        b"".join(part("a", b"x") for _ in range(MAX_PARTS + 1)) + END,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_form_of_ours_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        list(Form(TYPE).feed(body))
