"""Reading what THREAD answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.imap.protocol import Uid
from cbemail.imap.threads import thread_members


@pytest.mark.parametrize(
    ("answer", "uid", "members"),
    [
        (b" (2)(3 6 (4 23)(44 7 96))", 2, [2]),
        (b" (2)(3 6 (4 23)(44 7 96))", 44, [3, 4, 6, 7, 23, 44, 96]),
        (b" ((3)(5))(7)", 5, [3, 5]),
        (b" (166)(6)", 6, [6]),
        (b" (166)(616)", 6, []),
        (b"", 6, []),
        (b" (1 6", 6, []),
        (b" )(6)", 6, [6]),
        (b" (6 0 99999999999)", 6, [6]),
    ],
)
def test_a_thread_is_all_that_stands_within_its_outermost_parentheses(
    answer: bytes, uid: int, members: list[int]
):
    assert thread_members(answer, Uid(uid)) == members


@given(st.lists(st.integers(1, 5), max_size=8))
def test_each_uid_is_found_in_its_own_thread(sizes: list[int]):
    """Chains and branches by turns; no UID stands in two threads."""
    threads: list[list[int]] = []
    for size in sizes:
        start = sum(map(len, threads)) + 1
        threads.append(list(range(start, start + size)))
    answer = b"".join(
        b"(%s)" % b" ".join(b"%d" % each for each in thread)
        if number % 2
        else b"(%s)" % b"".join(b"(%d)" % each for each in thread)
        for number, thread in enumerate(threads)
    )

    for thread in threads:
        for uid in thread:
            assert thread_members(answer, Uid(uid)) == thread
