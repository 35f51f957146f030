"""What is kept of sessions in memory: in so many octets, the used before the unused, and nothing of who is gone."""

from __future__ import annotations

from cbemail.ids import SessionId
from cbemail.memory import ENDED_KEPT, SessionMemory

JOE, ANN = SessionId("ses_joe"), SessionId("ses_ann")


def test_a_value_is_found_by_its_own_session_only() -> None:
    memory: SessionMemory[str, int] = SessionMemory(100)

    memory.put(JOE, "a", 1, 10)

    assert (memory.get(JOE, "a"), memory.get(ANN, "a"), memory.get(JOE, "b")) == (1, None, None)


def test_a_value_takes_the_place_of_the_one_before() -> None:
    memory: SessionMemory[str, int] = SessionMemory(100)
    memory.put(JOE, "a", 1, 60)

    memory.put(JOE, "a", 2, 70)

    assert (memory.get(JOE, "a"), memory.octets, len(memory)) == (2, 70, 1)


def test_the_value_used_longest_ago_gives_way() -> None:
    memory: SessionMemory[str, int] = SessionMemory(30)
    for number, key in enumerate("abc"):
        memory.put(JOE, key, number, 10)
    memory.get(JOE, "a")

    memory.put(ANN, "d", 3, 10)

    assert [memory.get(JOE, key) for key in "abc"] == [0, None, 2]
    assert memory.octets == 30


def test_a_value_larger_than_all_there_is_room_for_pushes_nobody_out() -> None:
    memory: SessionMemory[str, int] = SessionMemory(30)
    memory.put(JOE, "a", 1, 10)
    memory.put(JOE, "b", 1, 10)

    memory.put(JOE, "b", 2, 31)

    assert (memory.get(JOE, "a"), memory.get(JOE, "b"), memory.octets) == (1, None, 10)


def test_a_session_that_is_forgotten_leaves_nothing_and_others_everything() -> None:
    memory: SessionMemory[str, int] = SessionMemory(100)
    memory.put(JOE, "a", 1, 10)
    memory.put(ANN, "a", 2, 10)

    memory.forget(JOE)
    memory.forget(JOE)

    assert (memory.get(JOE, "a"), memory.get(ANN, "a"), memory.octets) == (None, 2, 10)


def test_of_a_session_that_has_ended_nothing_more_is_kept() -> None:
    memory: SessionMemory[str, int] = SessionMemory(100)
    memory.put(JOE, "a", 1, 10)

    memory.end(JOE)
    memory.put(JOE, "b", 2, 10)
    memory.put(ANN, "b", 3, 10)

    assert (memory.get(JOE, "a"), memory.get(JOE, "b"), memory.get(ANN, "b")) == (None, None, 3)


def test_only_so_many_ended_sessions_are_remembered() -> None:
    memory: SessionMemory[str, int] = SessionMemory(100)

    for number in range(ENDED_KEPT + 1):
        memory.end(SessionId(f"ses_{number}"))

    assert len(memory._ended) == ENDED_KEPT
