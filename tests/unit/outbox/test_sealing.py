"""What a batch holds about people opens with its own key, in its own place, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.outbox.sealing import BatchKey, SealError

KEY = BatchKey(bytes(range(32)))


@given(st.text(), st.binary(max_size=2000))
def test_what_was_sealed_opens_in_its_place(place: str, content: bytes) -> None:
    place = place.encode("utf-8", "replace").decode()

    assert KEY.open(place, KEY.seal(place, content)) == content


@given(st.binary(max_size=200), st.data())
def test_no_octet_of_a_sealed_value_can_be_changed_unnoticed(
    content: bytes, data: st.DataObject
) -> None:
    sealed = bytearray(KEY.seal("row/7", content))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(SealError):
        KEY.open("row/7", bytes(sealed))


@pytest.mark.parametrize("length", range(40))
def test_a_sealed_value_that_was_cut_does_not_open(length: int) -> None:
    sealed = KEY.seal("row/7", b"a recipient!")

    with pytest.raises(SealError):
        KEY.open("row/7", sealed[:length])


def test_one_recipients_row_does_not_open_as_anothers() -> None:
    sealed = KEY.seal("row/7", b"ann")

    with pytest.raises(SealError):
        KEY.open("row/8", sealed)


def test_another_batchs_key_does_not_open_it() -> None:
    sealed = KEY.seal("row/7", b"ann")

    with pytest.raises(SealError):
        BatchKey.new().open("row/7", sealed)


def test_a_key_that_was_kept_opens_what_it_sealed() -> None:
    key = BatchKey.new()

    assert BatchKey(key.secret).open("row/7", key.seal("row/7", b"ann")) == b"ann"


def test_equal_contents_are_not_seen_to_be_equal() -> None:
    sealed = {KEY.seal("row/7", b"the same") for _ in range(50)}

    assert len(sealed) == 50
    assert not any(b"the same" in each for each in sealed)


def test_the_error_says_nothing_of_the_content() -> None:
    with pytest.raises(SealError) as failure:
        KEY.open("row/7", KEY.seal("row/8", b"ann@example.org"))

    assert str(failure.value) == "the sealed value does not open"
