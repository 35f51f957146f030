"""Group commit by itself: who shares a transaction, who learns what, and what cancellation does."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cbemail.errors import Overloaded
from cbemail.store import group_commit
from cbemail.store.group_commit import GROUP_LIMIT, GroupCommit


class Journal:
    """Stands for the disk: notes each group, and keeps the first one waiting until it is let go."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.groups: list[list[str]] = []
        self.busy = asyncio.Event()
        self.let_go = threading.Event()
        self._loop = loop

    def transact(self, group: Sequence[str]) -> list[str | Exception]:
        if "bug" in group:
            raise AssertionError("a mistake of ours")
        self.groups.append(list(group))
        self._loop.call_soon_threadsafe(self.busy.set)
        assert self.let_go.wait(timeout=10)
        return [OSError(work) if work == "bad" else work.upper() for work in group]


@pytest.fixture
async def journal() -> Journal:
    return Journal(asyncio.get_running_loop())


@pytest.fixture
async def commits(journal: Journal) -> AsyncIterator[GroupCommit[str, str]]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as writer:
        yield GroupCommit(journal.transact, writer=writer, loop=loop)
        journal.let_go.set()


def submit_all(commits: GroupCommit[str, str], works: Sequence[str]) -> list["asyncio.Future[str]"]:
    return [commits.submit(work) for work in works]


async def test_callers_of_one_turn_share_a_transaction_and_each_gets_its_own_result(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    journal.let_go.set()

    results = await asyncio.gather(*(commits.submit(work) for work in "abc"))

    assert results == ["A", "B", "C"]
    assert journal.groups == [["a", "b", "c"]]


async def test_what_comes_while_a_group_is_on_its_way_makes_up_the_next_one(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    first = submit_all(commits, ["a"])
    await journal.busy.wait()

    later = submit_all(commits, ["b", "c"])
    journal.let_go.set()

    assert await asyncio.gather(*first, *later) == ["A", "B", "C"]
    assert journal.groups == [["a"], ["b", "c"]]


async def test_nobody_is_told_before_the_transaction_is_done(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    [caller] = submit_all(commits, ["a"])

    await journal.busy.wait()

    assert not caller.done()
    journal.let_go.set()
    assert await caller == "A"


async def test_a_failure_is_its_own_callers_alone(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    journal.let_go.set()

    good, bad, better = await asyncio.gather(
        *(commits.submit(work) for work in ["good", "bad", "better"]), return_exceptions=True
    )

    assert (good, better) == ("GOOD", "BETTER")
    assert isinstance(bad, OSError)


async def test_a_group_is_bounded(journal: Journal, commits: GroupCommit[str, str]) -> None:
    journal.let_go.set()

    await asyncio.gather(*(commits.submit("x") for _ in range(2 * GROUP_LIMIT + 1)))

    assert [len(group) for group in journal.groups] == [GROUP_LIMIT, GROUP_LIMIT, 1]


async def test_work_of_a_cancelled_caller_is_done_once_and_disturbs_nobody(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    [on_its_way] = submit_all(commits, ["a"])
    await journal.busy.wait()
    waiting, patient = submit_all(commits, ["b", "c"])

    on_its_way.cancel()
    waiting.cancel()
    journal.let_go.set()

    assert await patient == "C"
    assert journal.groups == [["a"], ["b", "c"]]
    assert on_its_way.cancelled()
    assert waiting.cancelled()


async def test_a_mistake_in_the_writer_reaches_the_callers_and_the_next_group_runs(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    journal.let_go.set()

    with pytest.raises(AssertionError, match="a mistake of ours"):
        await commits.submit("bug")

    assert await commits.submit("a") == "A"


async def test_more_than_the_disk_will_ever_take_is_refused(
    journal: Journal, commits: GroupCommit[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAITING_LIMIT", 2)
    first = submit_all(commits, ["a"])
    await journal.busy.wait()
    waiting = submit_all(commits, ["b", "c"])

    with pytest.raises(Overloaded):
        await commits.submit("d")

    journal.let_go.set()
    assert await asyncio.gather(*first, *waiting) == ["A", "B", "C"]
    assert journal.groups == [["a"], ["b", "c"]]


async def test_drained_waits_for_all_that_was_submitted(
    journal: Journal, commits: GroupCommit[str, str]
) -> None:
    submit_all(commits, ["a"])
    await journal.busy.wait()
    callers = submit_all(commits, ["b"])
    journal.let_go.set()

    await commits.drained()

    assert journal.groups == [["a"], ["b"]]
    await asyncio.gather(*callers)
