"""Which part of a message is its text, which its HTML, which an attachment: by the shapes mail really has."""

from __future__ import annotations

import pytest

from cbemail.imap.protocol import Part
from cbemail.mailbox.structure import MAX_BODY_PARTS, Layout, lay_out


def part(part_id: str, kind: str, *, name: str = "", cid: str = "", disposition: str = "") -> Part:
    """A leaf."""
    main, _, subtype = kind.partition("/")
    return Part(
        id=part_id,
        type=main,
        subtype=subtype,
        parameters={"name": name.encode()} if name else {},
        content_id=f"<{cid}>".encode() if cid else None,
        disposition=disposition or None,
    )


def multipart(subtype: str, *children: Part, part_id: str = "") -> Part:
    return Part(part_id, "multipart", subtype, children=children)


def ids(parts: tuple[Part, ...]) -> list[str]:
    return [part.id for part in parts]


def sorted_out(layout: Layout) -> tuple[list[str], list[str], list[str]]:
    return ids(layout.text), ids(layout.html), ids(layout.attachments)


@pytest.mark.parametrize("kind", ["text/plain", "text/html"])
def test_a_single_text_part_is_both_bodies(kind: str) -> None:
    assert sorted_out(lay_out(part("1", kind))) == (["1"], ["1"], [])


def test_of_an_alternative_the_plain_part_is_the_text_and_the_html_part_the_html() -> None:
    root = multipart("alternative", part("1", "text/plain"), part("2", "text/html"))

    assert sorted_out(lay_out(root)) == (["1"], ["2"], [])


@pytest.mark.parametrize("kind", ["text/plain", "text/html"])
def test_an_alternative_of_one_kind_is_both_bodies(kind: str) -> None:
    assert sorted_out(lay_out(multipart("alternative", part("1", kind)))) == (["1"], ["1"], [])


def test_an_alternative_that_is_neither_text_nor_html_is_an_attachment() -> None:
    root = multipart(
        "alternative",
        part("1", "text/plain"),
        part("2", "text/html"),
        part("3", "text/calendar"),
        part("4", "image/png"),
    )

    assert sorted_out(lay_out(root)) == (["1"], ["2"], ["3", "4"])


def test_files_beside_the_text_are_attachments() -> None:
    root = multipart(
        "mixed",
        part("1", "text/plain"),
        part("2", "application/pdf", name="a.pdf", disposition="attachment"),
        part("3", "image/png", disposition="attachment"),
    )

    layout = lay_out(root)

    assert sorted_out(layout) == (["1"], ["1"], ["2", "3"])
    assert layout.inline == frozenset()


def test_text_without_a_name_is_body_and_with_one_is_a_file() -> None:
    root = multipart(
        "mixed",
        part("1", "text/plain"),
        part("2", "text/plain", name="notes.txt"),
        part("3", "text/plain"),
        part("4", "text/csv"),
    )

    assert sorted_out(lay_out(root)) == (["1", "3"], ["1", "3"], ["2", "4"])


def test_the_first_text_is_body_even_with_a_name() -> None:
    root = multipart("mixed", part("1", "text/plain", name="mail.txt"))

    assert sorted_out(lay_out(root)) == (["1"], ["1"], [])


def test_text_that_says_it_is_an_attachment_is_one_even_alone() -> None:
    layout = lay_out(part("1", "text/html", disposition="attachment"))

    assert sorted_out(layout) == ([], [], ["1"])


def test_a_picture_between_texts_is_listed_as_shown_inline() -> None:
    root = multipart(
        "mixed", part("1", "text/plain"), part("2", "image/png"), part("3", "text/plain")
    )

    layout = lay_out(root)

    assert sorted_out(layout) == (["1", "3"], ["1", "3"], ["2"])
    assert layout.inline == {"2"}


def test_pictures_related_to_the_html_are_inline_and_its_other_files_are_not() -> None:
    root = multipart(
        "related",
        part("1", "text/html"),
        part("2", "image/png", cid="logo@x"),
        part("3", "image/png", cid="sent@x", disposition="attachment"),
        part("4", "application/pdf"),
    )

    layout = lay_out(root)

    assert sorted_out(layout) == (["1"], ["1"], ["2", "3", "4"])
    assert layout.inline == {"2"}


def test_a_newsletter_with_pictures_keeps_its_text_alternative() -> None:
    """alternative { plain, related { html, image } }: the picture is of the HTML body alone."""
    root = multipart(
        "alternative",
        part("1", "text/plain"),
        multipart(
            "related", part("2.1", "text/html"), part("2.2", "image/gif", cid="a@x"), part_id="2"
        ),
    )

    layout = lay_out(root)

    assert sorted_out(layout) == (["1"], ["2.1"], ["2.2"])
    assert layout.inline == {"2.2"}


def test_a_letter_of_several_pieces_within_an_alternative_stays_in_order() -> None:
    """alternative { plain, mixed { html, pdf, html } }, as Apple Mail writes it."""
    root = multipart(
        "alternative",
        part("1", "text/plain"),
        multipart(
            "mixed",
            part("2.1", "text/html"),
            part("2.2", "application/pdf", name="a.pdf", disposition="inline"),
            part("2.3", "text/html"),
            part_id="2",
        ),
    )

    assert sorted_out(lay_out(root)) == (["1"], ["2.1", "2.3"], ["2.2"])


def test_the_example_of_rfc_8621_is_sorted_as_it_says() -> None:
    root = multipart(
        "mixed",
        part("A", "text/plain", disposition="inline"),
        multipart(
            "mixed",
            multipart(
                "alternative",
                multipart(
                    "mixed",
                    part("B", "text/plain", disposition="inline"),
                    part("C", "image/jpeg", disposition="inline"),
                    part("D", "text/plain", disposition="inline"),
                ),
                multipart(
                    "related",
                    part("E", "text/html"),
                    part("F", "image/jpeg"),
                ),
            ),
            part("G", "image/jpeg", disposition="attachment"),
            part("H", "application/x-excel"),
            part("J", "message/rfc822"),
        ),
        part("K", "text/plain", disposition="inline"),
    )

    layout = lay_out(root)

    assert ids(layout.text) == ["A", "B", "D", "K"]  # and C, which is no text
    assert ids(layout.html) == ["A", "E", "K"]
    assert sorted(ids(layout.attachments)) == ["C", "F", "G", "H", "J"]
    assert layout.inline == {"C"}


def test_an_attached_message_is_one_file_whatever_is_in_it() -> None:
    inner = multipart("mixed", part("2.1", "text/plain"), part("2.2", "application/pdf"))
    root = multipart(
        "mixed",
        part("1", "text/plain"),
        Part("2", "message", "rfc822", children=(inner,)),
    )

    assert sorted_out(lay_out(root)) == (["1"], ["1"], ["2"])


def test_a_message_that_is_nothing_but_a_file_has_no_body() -> None:
    assert sorted_out(lay_out(part("1", "application/pdf"))) == ([], [], ["1"])


def test_a_message_that_is_nothing_but_a_picture_shows_it() -> None:
    layout = lay_out(part("1", "image/png"))

    assert sorted_out(layout) == ([], [], ["1"])
    assert layout.inline == {"1"}


def test_an_empty_multipart_has_nothing() -> None:
    assert sorted_out(lay_out(multipart("mixed"))) == ([], [], [])


def test_text_that_fits_neither_body_is_not_lost() -> None:
    """alternative { mixed { plain, html } }: after each has closed the other's body, the algorithm has no place left."""
    inner = multipart(
        "mixed",
        part("1.1", "text/plain"),
        part("1.2", "text/html"),
        part("1.3", "text/plain"),
        part_id="1",
    )

    text, html, attachments = sorted_out(lay_out(multipart("alternative", inner)))

    assert {*text, *html, *attachments} == {"1.1", "1.2", "1.3"}


def test_texts_beyond_what_a_letter_has_are_attachments() -> None:
    parts = [part(str(number), "text/plain") for number in range(1, MAX_BODY_PARTS + 3)]

    text, html, attachments = sorted_out(lay_out(multipart("mixed", *parts)))

    assert len(text) == len(html) == MAX_BODY_PARTS
    assert attachments == [str(MAX_BODY_PARTS + 1), str(MAX_BODY_PARTS + 2)]


def test_attachments_are_listed_in_the_order_of_the_message() -> None:
    pictures = [part(f"{number}", "image/png") for number in range(2, 12)]
    root = multipart(
        "mixed", part("1", "text/plain"), *pictures, part("12", "application/pdf", name="z")
    )

    assert ids(lay_out(root).attachments) == [str(number) for number in range(2, 13)]
