"""Whatever is filtered by, the list is what a model of the mailbox says: each message that fits, once, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.header import Header
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import environment
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import PLAINTEXT, Box, open_box

EXAMPLES = 200
LETTERS = 60
DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
WORDS = ["invoice", "Report", "naïve", "Über", "q3 plan", 'say "no"', "会议", "back\\slash"]
NAMES = ["ann", "bob", "cid"]
FLAGS = {"read": "\\Seen", "flagged": "\\Flagged", "answered": "\\Answered"}


@dataclass(frozen=True, repr=False)
class Letter:
    """A message as the model knows it."""

    folder: str
    sender: str
    to: str
    cc: str
    subject: str
    body: str
    list_id: str | None
    flags: frozenset[str]
    days: int
    attached: bool

    @classmethod
    def random(cls, random: Random) -> Letter:
        flags = [*FLAGS.values(), "$Work"]
        return cls(
            folder=random.choice(["INBOX", "Archive"]),
            sender=f"{random.choice(NAMES)}@example.org",
            to=f"{random.choice(NAMES)}@example.net",
            cc=f"{random.choice(NAMES)}@example.com",
            subject=" ".join(random.sample(WORDS, 2)),
            body=" ".join(random.sample(WORDS, 2)) + " x" * random.choice([0, 500]),
            list_id=random.choice([None, "<news.example.org>", "<team.example.org>"]),
            flags=frozenset(random.sample(flags, random.randrange(4))),
            days=random.randrange(10),
            attached=random.random() < 0.3,
        )

    @property
    def raw(self) -> bytes:
        text = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        text += self.body
        if self.attached:
            file = (
                "Content-Type: application/octet-stream\r\nContent-Disposition: attachment\r\n\r\n"
            )
            text = f'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n{text}\r\n--b\r\n{file}\r\n--b--'
        fields = {
            "From": self.sender,
            "To": self.to,
            "Cc": self.cc,
            "Subject": Header(self.subject, "utf-8", maxlinelen=1_000).encode(),
        }
        if self.list_id is not None:
            fields["List-Id"] = self.list_id
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{head}MIME-Version: 1.0\r\n{text}\r\n".encode()

    def says(self, text: str, *fields: str) -> bool:
        return any(text.casefold() in getattr(self, name).casefold() for name in fields)


Fits = Callable[[Letter], bool]


@dataclass(frozen=True)
class Condition:
    """One thing to filter by: as a parameter, or as a term of a query."""

    parameter: tuple[str, str] | None
    term: str | None
    fits: Fits


def quoted(text: str) -> str | None:
    return None if '"' in text else f'"{text}"'


def of_text(name: str, *fields: str) -> st.SearchStrategy[Condition]:
    def condition(text: str) -> Condition:
        term = quoted(text)
        operator = "" if name == "text" else f"{name}:"
        return Condition(
            (name, text), term and operator + term, lambda letter: letter.says(text, *fields)
        )

    named = name in {"from", "to", "cc"}
    return st.sampled_from(NAMES if named else WORDS).map(condition)


def of_state(name: str) -> st.SearchStrategy[Condition]:
    def condition(wanted: bool) -> Condition:  # noqa: FBT001
        state = f"is:{name}" if wanted else f"is:un{name}"
        return Condition(
            (name, str(wanted).lower()),
            state,
            lambda letter: (FLAGS[name] in letter.flags) is wanted,
        )

    return st.booleans().map(condition)


def of_day(name: str) -> st.SearchStrategy[Condition]:
    def condition(days: int) -> Condition:
        day = f"{DAY + timedelta(days=days):%Y-%m-%d}"
        is_since = name == "since"
        return Condition(
            (name, day), f"{name}:{day}", lambda letter: (letter.days >= days) is is_since
        )

    return st.integers(0, 10).map(condition)


def of_size(name: str) -> st.SearchStrategy[Condition]:
    def condition(size: int) -> Condition:
        def fits(letter: Letter) -> bool:
            return len(letter.raw) > size if name == "larger" else len(letter.raw) < size

        return Condition((name, str(size)), f"{name}:{size}", fits)

    return st.sampled_from([0, 400, 1_000, 5_000]).map(condition)


def of_attachments(wanted: bool) -> Condition:  # noqa: FBT001
    term = "has:attachment" if wanted else "-has:attachment"
    parameter = ("has_attachments", str(wanted).lower())
    return Condition(parameter, term, lambda letter: letter.attached is wanted)


def of_list(name: str) -> Condition:
    return Condition(
        ("header", f"List-Id: {name}"),
        None,
        lambda letter: letter.list_id is not None and name in letter.list_id,
    )


CONDITIONS = st.one_of(
    of_text("from", "sender"),
    of_text("to", "to"),
    of_text("cc", "cc"),
    of_text("subject", "subject"),
    of_text("body", "body"),
    of_text("text", "subject", "body"),
    *map(of_state, FLAGS),
    of_day("since"),
    of_day("before"),
    of_size("larger"),
    of_size("smaller"),
    st.booleans().map(of_attachments),
    st.sampled_from(["news", "team", ""]).map(of_list),
    st.just(Condition(None, "keyword:$Work", lambda letter: "$Work" in letter.flags)),
)


@st.composite
def filters(draw: st.DrawFn) -> tuple[dict[str, str], Fits]:
    """Up to four conditions, as the parameters of one call; and whether a letter fits them all."""
    parameters: dict[str, str] = {}
    terms: list[str] = []
    fitting: list[Fits] = []
    for condition in draw(st.lists(CONDITIONS, max_size=4)):
        name, value = condition.parameter or ("", "")
        if name == "has_attachments" and (name in parameters or "has:" in "".join(terms)):
            continue  # to ask for the opposite, too, is a mistake
        if condition.term is not None and (not name or name in parameters or draw(st.booleans())):
            negated = "has:" not in condition.term and draw(st.booleans())
            terms.append("-" * negated + condition.term)
            fitting.append(_opposite(condition.fits) if negated else condition.fits)
        elif name and name not in parameters:
            parameters[name] = value
            fitting.append(condition.fits)
    if terms:
        parameters["q"] = " ".join(terms)
    return parameters, lambda letter: all(fits(letter) for fits in fitting)


def _opposite(fits: Fits) -> Fits:
    return lambda letter: not fits(letter)


@pytest.fixture
def environ(tmp_path: Path, dovecot: Dovecot) -> dict[str, str]:
    return environment(tmp_path, dovecot.ca_file, **PLAINTEXT)


@pytest.fixture
async def box(dovecot: Dovecot, base_url: str, smtp_server: ScriptedSmtp) -> AsyncIterator[Box]:
    async with open_box(dovecot, base_url, smtp_server) as box:
        yield box


Place = tuple[str, int]  # folder and UID


@pytest.fixture
def letters(box: Box) -> dict[Place, Letter]:
    """What is in the mailbox."""
    random = Random(7)
    kept = {}
    for _ in range(LETTERS):
        letter = Letter.random(random)
        moment = DAY + timedelta(days=letter.days)
        (uid,) = box.server.append(
            box.user, letter.raw, folder=letter.folder, flags=sorted(letter.flags), date=moment
        )
        kept[letter.folder, uid] = letter
    return kept


async def read_to_the_end(box: Box, **params: Any) -> tuple[list[Place], set[int]]:
    """Where the messages of a list are, page after page, and what the pages say they are in total."""
    places: list[Place] = []
    totals: set[int] = set()
    cursor: dict[str, str] = {}
    while True:
        page = await box.page(**params, **cursor)
        places += [(row["folder"], row["uid"]) for row in page["messages"]]
        totals.add(page["total"])
        if page["next_cursor"] is None:
            return places, totals
        cursor = {"cursor": page["next_cursor"]}


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    filtered=filters(), folder=st.sampled_from(["INBOX", "Archive", "*"]), limit=st.integers(5, 60)
)
async def test_a_list_is_what_the_model_says(
    box: Box,
    letters: dict[Place, Letter],
    filtered: tuple[dict[str, str], Fits],
    folder: str,
    limit: int,
) -> None:
    parameters, fits = filtered

    places, totals = await read_to_the_end(box, folder=folder, limit=limit, **parameters)

    expected = [
        (letter.days if folder == "*" else 0, place)
        for place, letter in letters.items()
        if folder in {"*", place[0]} and fits(letter)
    ]
    expected.sort(key=lambda known: (-known[0], known[1][0], -known[1][1]))
    assert places == [place for _, place in expected]
    assert totals == {len(expected)}
