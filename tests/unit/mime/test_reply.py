from datetime import UTC, datetime

import pytest

from cbemail.mime import limits
from cbemail.mime.address import Address
from cbemail.mime.headers import SummaryHeaders
from cbemail.mime.reply import (
    ReplyMode,
    forward_html,
    forward_text,
    quote_html,
    quote_text,
    reply_recipients,
    reply_subject,
    threading_of,
)

ANN, BOB, CAT, DAN, ME = (
    Address(None, f"{name}@example.com") for name in ("ann", "bob", "cat", "dan", "me")
)
OWN = {"Me@Example.com"}
ORIGINAL = SummaryHeaders(
    message_id="<2@x>",
    references=["<0@x>", "<1@x>"],
    subject="Lunch",
    from_=Address("Ann", "ann@example.com"),
    to=[BOB],
    cc=[CAT],
    date=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("subject", "mode", "expected"),
    [
        ("Lunch", "reply", "Re: Lunch"),
        ("RE: Lunch", "reply", "RE: Lunch"),
        ("Re[2]: Lunch", "reply_all", "Re[2]: Lunch"),
        ("Recipe", "reply", "Re: Recipe"),
        ("Lunch", "forward", "Fwd: Lunch"),
        ("FW: Lunch", "forward", "FW: Lunch"),
        ("Re: Lunch", "forward", "Fwd: Re: Lunch"),
        (None, "reply", "Re:"),
    ],
)
def test_a_subject_is_marked_once(subject: str | None, mode: ReplyMode, expected: str):
    assert reply_subject(subject, mode) == expected


def test_a_reply_continues_the_thread():
    assert threading_of(ORIGINAL) == ("<2@x>", ["<0@x>", "<1@x>", "<2@x>"])


def test_without_references_in_reply_to_is_the_parent():
    original = SummaryHeaders(message_id="<2@x>", in_reply_to="<1@x>")

    assert threading_of(original) == ("<2@x>", ["<1@x>", "<2@x>"])


def test_ids_that_cannot_be_written_are_left_out():
    assert threading_of(SummaryHeaders(message_id="<ü@x>", references=["<0@x>"])) == (None, [])
    assert threading_of(SummaryHeaders(message_id="<2@x>", references=["<ü@x>", "<1@x>"])) == (
        "<2@x>",
        ["<1@x>", "<2@x>"],
    )
    assert threading_of(SummaryHeaders()) == (None, [])


def test_a_long_thread_keeps_its_root_and_its_end():
    original = SummaryHeaders(message_id="<new@x>", references=[f"<{n}@x>" for n in range(100)])

    _, references = threading_of(original)

    assert len(references) == limits.REFERENCES
    assert (references[0], references[-2], references[-1]) == ("<0@x>", "<99@x>", "<new@x>")


@pytest.mark.parametrize(
    ("original", "mode", "to", "cc"),
    [
        (SummaryHeaders(from_=ANN, to=[ME, BOB], cc=[CAT]), "reply", [ANN], []),
        (SummaryHeaders(from_=ANN, to=[ME, BOB], cc=[CAT, ANN]), "reply_all", [ANN], [BOB, CAT]),
        (SummaryHeaders(from_=ANN, reply_to=[DAN], to=[BOB]), "reply", [DAN], []),
        (SummaryHeaders(from_=ANN, reply_to=[DAN], to=[ME], cc=[DAN]), "reply_all", [DAN], []),
        (SummaryHeaders(from_=ME, to=[BOB], cc=[CAT]), "reply", [BOB], []),
        (SummaryHeaders(from_=ME, to=[BOB], cc=[CAT]), "reply_all", [BOB], [CAT]),
        (SummaryHeaders(from_=ME, to=[ME]), "reply", [ME], []),
        (
            SummaryHeaders(from_=ANN, to=[BOB, Address("B", "BOB@example.com")]),
            "reply_all",
            [ANN],
            [BOB],
        ),
        (SummaryHeaders(from_=ANN, to=[BOB]), "forward", [], []),
        (SummaryHeaders(from_=Address("Ann", "")), "reply", [], []),
        (SummaryHeaders(), "reply_all", [], []),
    ],
)
def test_a_reply_goes_to_whom_it_should(
    original: SummaryHeaders, mode: ReplyMode, to: list[Address], cc: list[Address]
):
    assert reply_recipients(original, OWN, mode) == (to, cc)


def test_a_plain_quotation_says_who_and_when():
    assert quote_text("one\n\n> two\n", ORIGINAL) == (
        "On 2026-01-02 at 03:04 UTC, Ann <ann@example.com> wrote:\n> one\n>\n>> two\n"
    )
    assert quote_text("x", SummaryHeaders()) == "somebody wrote:\n> x\n"


def test_an_html_quotation_escapes_the_name_it_did_not_choose():
    original = SummaryHeaders(from_=Address("<script>", "a@b.c"))

    html = quote_html("<p>x</p>", original)

    assert html.startswith("<div>&lt;script&gt; &lt;a@b.c&gt; wrote:</div>\n<blockquote")
    assert html.endswith("><p>x</p></blockquote>")


def test_a_forward_shows_the_header_of_the_original():
    assert forward_text("body", ORIGINAL) == (
        "---------- Forwarded message ----------\nFrom: Ann <ann@example.com>\nDate: 2026-01-02 03:04 UTC\n"
        "Subject: Lunch\nTo: bob@example.com\nCc: cat@example.com\n\nbody"
    )
    assert "From: Ann &lt;ann@example.com&gt;<br>" in forward_html("<p>x</p>", ORIGINAL)
