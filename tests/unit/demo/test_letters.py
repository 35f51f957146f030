"""The mail of the demo: believable, and right by the RFCs it is there to show."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage

from cbemail.demo.letters import FOLDERS, letters

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def messages() -> list[EmailMessage]:
    return [message_from_bytes(each.content, policy=policy.default) for each in letters(NOW)]


def test_every_letter_is_well_formed() -> None:
    parts = [part for message in messages() for part in message.walk()]

    assert [part.defects for part in parts if part.defects] == []
    assert [field for part in parts for field in part.values() if field.defects] == []


def test_every_letter_has_a_message_id_of_its_own() -> None:
    ids = {message["Message-ID"] for message in messages()}

    assert len(ids) == len(letters(NOW)) >= 12


def test_every_letter_came_before_now_into_a_folder_there_is_in_the_order_of_arrival() -> None:
    for folder in ("INBOX", *FOLDERS):
        arrivals = [each.received_at for each in letters(NOW) if each.folder == folder]
        assert arrivals == sorted(arrivals)
        assert all(at < NOW for at in arrivals)

    assert {each.folder for each in letters(NOW)} < {"INBOX", *FOLDERS}


def test_the_answers_of_the_thread_refer_to_what_they_answer() -> None:
    thread = [message for message in messages() if "Opening weekend" in message["Subject"]]

    ids = [str(message["Message-ID"]) for message in thread]
    assert [message["In-Reply-To"] for message in thread] == [None, *ids[:3]]
    assert str(thread[3]["References"]).split() == ids[:3]


def test_the_newsletter_shows_an_image_that_it_brings() -> None:
    [newsletter] = [message for message in messages() if "Weekly" in message["Subject"]]

    html = newsletter.get_body(("related",))
    assert html is not None
    [image] = html.iter_attachments()
    assert image["Content-ID"] == "<sunset>"
    assert image.get_content().startswith(b"\x89PNG\r\n")
    text = newsletter.get_body(("html",))
    assert text is not None
    assert 'src="cid:sunset"' in text.get_content()
