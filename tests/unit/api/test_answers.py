"""Who may have the answer to another's question, and for how long an answer is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from starlette.requests import Request
from starlette.responses import Response

from cbemail.api.answers import LARGEST_KEPT, Answers
from cbemail.errors import UpstreamUnavailable
from cbemail.ids import SessionId

JOE, ANN = SessionId("ses_joe"), SessionId("ses_ann")
LIST = "/api/mailbox/messages"

Asking = asyncio.Task[Response]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Mailbox:
    """Reads that end when the test lets them."""

    def __init__(self) -> None:
        self.reads = 0
        self.given_up = 0
        self.content = b"old"
        self.let_go = asyncio.Event()
        self.failure: Exception | None = None

    async def read(self) -> Response:
        self.reads += 1
        content = self.content
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.failure is not None:
            raise self.failure
        return Response(content)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(clock: Clock) -> Answers:
    return Answers(clock=clock)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


def question(query: str = "limit=20", **headers: str) -> Request[Any]:
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "path": LIST, "query_string": query.encode(), "headers": named}
    return Request(scope)


async def settle() -> None:
    for _ in range(10):
        await checkpoint()


@pytest.fixture
def ask(answers: Answers, mailbox: Mailbox) -> Callable[..., Coroutine[Any, Any, Asking]]:
    """Begins to ask, and goes as far as it can."""

    async def begun(session_id: SessionId = JOE, query: str = "limit=20") -> Asking:
        asking = asyncio.create_task(answers.shared(question(query), session_id, mailbox.read))
        await settle()
        return asking

    return begun


Ask = Callable[..., Coroutine[Any, Any, Asking]]


# ---- at once


async def test_the_same_question_asked_at_once_is_read_once(ask: Ask, mailbox: Mailbox) -> None:
    asking = [await ask() for _ in range(5)]

    mailbox.let_go.set()
    responses = await asyncio.gather(*asking)

    assert mailbox.reads == 1
    assert {response.body for response in responses} == {b"old"}


async def test_other_questions_and_other_sessions_have_reads_of_their_own(
    ask: Ask, mailbox: Mailbox
) -> None:
    asking = [await ask(), await ask(query="limit=21"), await ask(ANN)]

    mailbox.let_go.set()
    await asyncio.gather(*asking)

    assert mailbox.reads == 3


async def test_who_leaves_leaves_the_read_to_the_others(ask: Ask, mailbox: Mailbox) -> None:
    first, second = await ask(), await ask()

    first.cancel()
    await settle()
    mailbox.let_go.set()
    response = await second

    assert first.cancelled()
    assert (response.body, mailbox.reads, mailbox.given_up) == (b"old", 1, 0)


async def test_a_read_that_nobody_waits_for_is_given_up_and_never_joined(
    ask: Ask, mailbox: Mailbox
) -> None:
    for asking in [await ask(), await ask()]:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    late = await ask()
    mailbox.let_go.set()

    assert (await late).body == b"old"
    assert (mailbox.reads, mailbox.given_up) == (2, 1)


async def test_what_went_wrong_is_told_to_all_and_tried_again_by_the_next(
    ask: Ask, answers: Answers, mailbox: Mailbox
) -> None:
    mailbox.failure = UpstreamUnavailable("The mail server is gone.", protocol="imap")
    asking = [await ask() for _ in range(3)]
    mailbox.let_go.set()

    told = await asyncio.gather(*asking, return_exceptions=True)
    mailbox.failure = None
    after = await (await ask())

    assert [type(error) for error in told] == [UpstreamUnavailable] * 3
    assert (after.body, mailbox.reads) == (b"old", 2)


async def test_who_asks_after_a_change_is_not_told_how_it_was_before(
    ask: Ask, answers: Answers, mailbox: Mailbox
) -> None:
    before = await ask()
    mailbox.content = b"new"
    answers.forget(JOE)

    after = await ask()
    mailbox.let_go.set()

    assert [(await before).body, (await after).body] == [b"old", b"new"]
    kept = answers.kept(question(cache_control="max-age=60"), JOE)
    assert kept is not None
    assert kept.body == b"new"


async def test_what_was_read_before_a_change_is_not_kept(
    ask: Ask, answers: Answers, mailbox: Mailbox
) -> None:
    before = await ask()
    answers.forget(JOE)
    mailbox.let_go.set()

    await before

    assert answers.kept(question(cache_control="max-age=60"), JOE) is None


# ---- later


async def answered(ask: Ask, mailbox: Mailbox) -> Response:
    mailbox.let_go.set()
    return await (await ask())


@pytest.mark.parametrize(("age", "shown"), [(0.0, "0"), (29.9, "29"), (30.0, None)])
async def test_an_answer_is_given_again_to_who_allows_its_age(
    ask: Ask, answers: Answers, mailbox: Mailbox, clock: Clock, age: float, shown: str | None
) -> None:
    await answered(ask, mailbox)
    clock.now += age

    kept = answers.kept(question(cache_control="max-age=30"), JOE)

    assert (kept.body if kept else None, kept.headers["age"] if kept else None) == (
        b"old" if shown else None,
        shown,
    )


@pytest.mark.parametrize(
    "said",
    [
        "",
        "max-age=0",
        "no-cache",
        "no-cache, max-age=60",
        "max-age=60,No-Cache",
        "s-maxage=60",
        "x-max-age=60",
        "max-age=-1",
        "max-age=x",
    ],
)
async def test_who_allows_no_age_is_given_nothing_from_memory(
    ask: Ask, answers: Answers, mailbox: Mailbox, said: str
) -> None:
    await answered(ask, mailbox)

    assert answers.kept(question(cache_control=said), JOE) is None


@pytest.mark.parametrize("said", ["max-age=60", "no-transform, Max-Age=60", "max-age=9999999999"])
async def test_the_age_is_found_as_http_writes_it(
    ask: Ask, answers: Answers, mailbox: Mailbox, said: str
) -> None:
    await answered(ask, mailbox)

    assert answers.kept(question(cache_control=said), JOE) is not None


async def test_memory_answers_304_to_who_has_it_already(
    ask: Ask, answers: Answers, mailbox: Mailbox
) -> None:
    tag = (await answered(ask, mailbox)).headers["etag"]

    kept = answers.kept(question(cache_control="max-age=60", if_none_match=tag), JOE)

    assert kept is not None
    assert (kept.status_code, kept.body) == (304, b"")


async def test_an_answer_belongs_to_its_session_and_its_question(
    ask: Ask, answers: Answers, mailbox: Mailbox
) -> None:
    await answered(ask, mailbox)

    assert answers.kept(question(cache_control="max-age=60"), ANN) is None
    assert answers.kept(question("limit=21", cache_control="max-age=60"), JOE) is None


async def test_a_large_answer_is_given_and_not_kept(
    ask: Ask, answers: Answers, mailbox: Mailbox
) -> None:
    mailbox.content = b"x" * (LARGEST_KEPT + 1)

    response = await answered(ask, mailbox)

    assert len(response.body) == LARGEST_KEPT + 1
    assert answers.kept(question(cache_control="max-age=60"), JOE) is None
