"""How cached values are sealed: what opens, and where, and which versions of cbemail understand each other."""

from __future__ import annotations

import pytest
from msgspec import Struct

from cbemail.mailbox import cache_key
from cbemail.mailbox.cache_key import CacheKey, CacheKeyError, Shape


class Letter(Struct, frozen=True):
    subject: str


class LongerLetter(Struct, frozen=True):
    subject: str
    body: str = ""


LETTERS = Shape("letter", Letter)
NAME = ("INBOX", 1, 7)


def test_a_value_is_read_as_it_was_written() -> None:
    assert LETTERS.unpack(LETTERS.pack(Letter("grüße"))) == Letter("grüße")


def test_a_value_opens_in_the_place_it_was_sealed_for() -> None:
    key = CacheKey.new()
    place = key.place(LETTERS, NAME)

    assert CacheKey(key.secret).open(place, key.seal(place, b"packed")) == b"packed"


def test_a_value_that_repeats_itself_is_sealed_in_few_octets() -> None:
    key = CacheKey.new()
    place = key.place(LETTERS, NAME)

    assert len(key.seal(place, b"again and " * 1_000)) < 200


def test_a_value_opens_nowhere_else_with_no_other_key_and_not_when_changed() -> None:
    key, other = CacheKey.new(), CacheKey.new()
    place, elsewhere = key.place(LETTERS, NAME), key.place(LETTERS, ("INBOX", 1, 8))
    sealed = key.seal(place, b"packed")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])

    attempts = [(key, elsewhere, sealed), (other, place, sealed), (key, place, changed)]
    attempts += [(key, place, sealed[:length]) for length in (0, 5, 12, 27)]

    for opener, where, octets in attempts:
        with pytest.raises(CacheKeyError):
            opener.open(where, octets)


def test_each_name_session_and_shape_has_a_place_of_its_own() -> None:
    key = CacheKey.new()
    names = [NAME, ("INBOX", 1, 8), ("INBOX", 2, 7), ("Sent", 1, 7), ("INBOX", 17), ("\ud800", 1)]

    places = {key.place(LETTERS, name) for name in names}
    places |= {key.place(Shape("note", Letter), NAME), CacheKey.new().place(LETTERS, NAME)}

    assert len(places) == 8
    assert key.place(Shape("letter", Letter), NAME) in places


@pytest.mark.parametrize("packed", [b"", b"no value", LETTERS.pack(Letter("x"))[:-3]])
def test_what_was_not_packed_cannot_be_read(packed: bytes) -> None:
    with pytest.raises(CacheKeyError):
        LETTERS.unpack(packed)


def test_a_value_of_another_type_cannot_be_read() -> None:
    with pytest.raises(CacheKeyError):
        LETTERS.unpack(Shape("number", int).pack(7))


def test_what_a_type_was_before_it_changed_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another field, another meaning or another release: each is another format, and so another place."""
    formats = [LETTERS.format, Shape("letter", LongerLetter).format]

    monkeypatch.setattr(cache_key, "_MEANING", 999)
    formats.append(Shape("letter", Letter).format)
    monkeypatch.setattr(cache_key, "version", lambda _: "999.0")
    formats.append(Shape("letter", Letter).format)

    assert len(set(formats)) == len(formats)
