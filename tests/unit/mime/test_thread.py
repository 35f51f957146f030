"""RFC 5256: base subjects, and which messages REFERENCES makes one conversation of."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.mime import limits
from cbemail.mime.thread import ThreadHeaders, base_subject, conversations

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def message(
    uid: int,
    message_id: str | None = None,
    *references: str,
    subject: str = "",
    in_reply_to: str | None = None,
    minute: int = 0,
) -> ThreadHeaders:
    date = MONDAY + timedelta(minutes=minute)
    return ThreadHeaders(uid, message_id, references, in_reply_to, subject, date)


def grouped(*messages: ThreadHeaders) -> set[frozenset[int]]:
    return {each.uids for each in conversations(messages)}


def sets(*groups: set[int]) -> set[frozenset[int]]:
    return set(map(frozenset, groups))


@pytest.mark.parametrize(
    ("subject", "base"),
    [
        ("Lunch", "Lunch"),
        ("Re: Lunch", "Lunch"),
        ("RE : fw: Lunch", "Lunch"),
        ("Fwd[3]: Lunch", "Lunch"),
        ("[team] Re: Lunch", "Lunch"),
        ("Re: [team] Re: Lunch", "Lunch"),
        ("[team] [urgent] Lunch", "Lunch"),
        ("[team]", "[team]"),
        ("[a][b]", "[b]"),
        ("Lunch (fwd) (FWD)", "Lunch"),
        ("[fwd: Re: Lunch]", "Lunch"),
        ("[Fwd: [fwd: Lunch (fwd)]]", "Lunch"),
        ("[fwd: Lunch", "[fwd: Lunch"),
        ("  Lunch \t on\r\n Friday ", "Lunch on Friday"),
        ("AW: Lunch", "AW: Lunch"),
        ("Regarding: Lunch", "Regarding: Lunch"),
        ("Re:", ""),
        ("", ""),
    ],
)
def test_a_base_subject_is_what_the_letter_began_with(subject: str, base: str):
    assert base_subject(subject) == base


@given(st.lists(st.sampled_from(["re", "Fwd", "[", "]", ":", " ", "(fwd)", "x"])).map("".join))
def test_a_base_subject_is_its_own_base_subject(subject: str):
    assert base_subject(base_subject(subject)) == base_subject(subject)


def test_answers_belong_to_what_they_answer():
    thread = (
        message(1, "<a>"),
        message(2, "<b>", "<a>"),
        message(3, "<c>", "<a>", "<b>"),
        message(4, "<d>", in_reply_to="<c>"),
    )

    assert grouped(*thread, message(5, "<e>")) == sets({1, 2, 3, 4}, {5})


def test_references_count_before_in_reply_to():
    thread = (message(1, "<a>"), message(2, "<b>"), message(3, "<c>", "<a>", in_reply_to="<b>"))

    assert grouped(*thread) == sets({1, 3}, {2})


def test_two_that_answer_a_missing_message_belong_together():
    assert grouped(message(1, "<a>", "<gone>"), message(2, "<b>", "<gone>")) == sets({1, 2})


def test_what_a_message_says_of_itself_counts_more_than_what_others_say_of_it():
    """The third takes the second for an answer to the first, which it says it is not (step 1 B)."""
    third = message(3, "<c>", "<a>", "<b>")

    assert grouped(message(1, "<a>"), third, message(4, "<b>", "<z>")) == sets({1}, {3, 4})


def test_of_two_messages_with_one_id_the_first_has_the_answers():
    thread = (message(1, "<a>"), message(2, "<a>"), message(3, "<c>", "<a>"))

    assert grouped(*thread) == sets({1, 3}, {2})


def test_loops_are_left_open():
    circle = (message(1, "<a>", "<c>"), message(2, "<b>", "<a>"), message(3, "<c>", "<b>"))

    assert grouped(*circle) == sets({1, 2, 3})
    assert grouped(message(1, "<a>", "<a>")) == sets({1})


def test_threads_of_one_base_subject_are_one():
    found = conversations([
        message(1, "<a>", subject="Lunch"),
        message(2, "<b>", subject="Re: LUNCH"),
        message(3, "<c>", "<gone>", subject="[team] lunch"),
        message(4, "<d>", subject="Dinner"),
    ])  # fmt: skip

    assert [(set(each.uids), each.subject) for each in found] == [
        ({1, 2, 3}, "Lunch"),
        ({4}, "Dinner"),
    ]


def test_only_the_subject_a_thread_began_with_counts():
    thread = (
        message(1, "<a>", subject="Lunch"),
        message(2, "<b>", "<a>", subject="Dinner"),
        message(3, "<c>", subject="Dinner"),
    )

    assert grouped(*thread) == sets({1, 2}, {3})


@pytest.mark.parametrize(("first", "second"), [("Lunch", "Dinner"), ("Dinner", "Lunch")])
def test_a_thread_whose_beginning_is_missing_goes_by_its_earliest_message(first: str, second: str):
    thread = (
        message(1, "<b>", "<gone>", subject=first, minute=5 if first == "Dinner" else 1),
        message(2, "<c>", "<gone>", subject=second, minute=5 if second == "Dinner" else 1),
        message(3, "<d>", subject="Re: Lunch"),
    )

    assert grouped(*thread) == sets({1, 2, 3})


def test_messages_without_a_subject_have_none_in_common():
    assert grouped(message(1, "<a>"), message(2, "<b>", subject="Re:")) == sets({1}, {2})


def test_letters_of_one_word_are_compared_as_servers_do():
    assert grouped(message(1, subject="Grüße"), message(2, subject="GRU\u0308ßE")) == sets({1, 2})
    assert grouped(message(1, subject="Maße"), message(2, subject="Masse")) == sets({1}, {2})


def test_of_many_references_the_first_and_the_latest_count():
    many = [f"<{number}>" for number in range(10_000)]
    thread = (message(1, "<0>"), message(2, "<9999>"), message(3, "<5>"), message(4, "<x>", *many))

    assert grouped(*thread) == sets({1, 2, 4}, {3})
    assert len(thread[3].parents()) == limits.REFERENCES


@pytest.mark.parametrize(
    "messages",
    [
        [message(n, f"<{n}>", f"<{n - 1}>") for n in range(1, 5_000)],
        [message(n, f"<{n}>", f"<{n + 1}>") for n in range(1, 5_000)],
        [message(n, "<a>", *(f"<{n + k}>" for k in range(50))) for n in range(1, 1_000)],
        [message(n, None, *(f"<{50 * n + 50 - k}>" for k in range(51))) for n in range(1, 1_000)],
    ],
    ids=["down", "up", "one", "joined"],
)
def test_every_message_is_of_one_conversation_however_they_refer(messages: list[ThreadHeaders]):
    found = conversations(messages)

    assert sorted(uid for each in found for uid in each.uids) == [each.uid for each in messages]


ids = st.sampled_from(["<a>", "<b>", "<c>", "<d>", "<e>"])


@given(
    st.lists(
        st.tuples(
            st.none() | ids,
            st.lists(ids, max_size=4),
            st.none() | ids,
            st.sampled_from(["", "Lunch", "Re: Lunch", "Dinner"]),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_conversations_share_no_message_and_leave_none_out(
    rows: list[tuple[str | None, list[str], str | None, str, int]],
):
    messages = [
        message(uid, own, *references, in_reply_to=parent, subject=subject, minute=minute)
        for uid, (own, references, parent, subject, minute) in enumerate(rows, 1)
    ]

    found = conversations(reversed(messages))

    assert sorted(uid for each in found for uid in each.uids) == list(range(1, len(rows) + 1))
