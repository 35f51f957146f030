"""What clients carry and what is kept for them: it comes back as it was, for those it was for, and is small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.imap.protocol import Flag, Uid
from cbemail.mailbox.folder_state import pack, unpack

uids = st.integers(1, 2**32 - 1).map(Uid)
flags = st.none() | st.lists(st.sampled_from(["\\Seen", "$Label1", "é"]).map(Flag)).map(tuple)


@given(st.dictionaries(uids, flags))
def test_what_is_packed_comes_back_as_it_was(known: dict[Uid, tuple[Flag, ...] | None]) -> None:
    assert unpack(pack(known)) == known


@pytest.mark.parametrize("flags", [None, (Flag("\\Seen"),)])
def test_a_large_folder_takes_little_room(flags: tuple[Flag, ...] | None) -> None:
    every_third_is_gone = {Uid(uid): flags for uid in range(1, 100_000) if uid % 3}

    assert len(pack(every_third_is_gone)) < 1_000
