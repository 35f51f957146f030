"""What a reply says itself: samples of what mail clients write, and of what only looks like it."""

# ruff: noqa: RUF001 - letters of other alphabets look like ours

import pytest

from cbemail.mime.address import Address
from cbemail.mime.headers import SummaryHeaders
from cbemail.mime.html import html_to_text
from cbemail.mime.quoted import without_history
from cbemail.mime.reply import quote_text

ATTRIBUTIONS = [
    "On Mon, 5 Jan 2026 at 10:00, Ann Example <ann@example.org> wrote:",
    "On Mon, Jan 05, 2026 at 10:00:00AM +0100, Ann Example wrote:",
    "On 1/5/26 10:00, Ann wrote:",
    "On Mon, 5 Jan 2026 at 10:00, Ann Example <ann.with.a.long.name@example.org>\nwrote:",
    "On Monday, January 5, 2026\nat 10:00 AM, Ann Example\n<ann@example.org> wrote:",
    "Ann Example <ann@example.org> writes:",
    "Am 05.01.26 um 10:00 schrieb Ann Example:",
    "Am Mo., 5. Jan. 2026 um 10:00 Uhr schrieb Ann <ann@example.org>:",
    "Le lun. 5 janv. 2026 à 10:00, Ann <ann@example.org> a écrit :",
    "El lun, 5 ene 2026 a las 10:00, Ann (<ann@example.org>) escribió:",
    "Il giorno lun 5 gen 2026 alle ore 10:00 Ann <ann@example.org> ha scritto:",
    "Em seg., 5 de jan. de 2026 às 10:00, Ann <ann@example.org> escreveu:",
    "Op ma 5 jan 2026 om 10:00 schreef Ann <ann@example.org>:",
    "Den mån 5 jan. 2026 kl 10:00 skrev Ann <ann@example.org>:",
    "ma 5. tammik. 2026 klo 10.00 Ann (ann@example.org) kirjoitti:",
    "pon., 5 sty 2026 o 10:00 Ann <ann@example.org> napisał(a):",
    "po 5. 1. 2026 v 10:00 odesílatel Ann <ann@example.org> napsal:",
    "пн, 5 янв. 2026 г. в 10:00, Ann <ann@example.org>:\nпишет:",
    "5 Oca 2026 Pzt 10:00 tarihinde Ann <ann@example.org> şunu yazdı:",
    "Ann <ann@example.org> 于2026年1月5日周一 10:00写道：",
    "2026年1月5日(月) 10:00 Ann <ann@example.org>:",
    "2026년 1월 5일 (월) 오전 10:00, Ann <ann@example.org>님이 작성:",
]

HEADERS = [
    "From: Ann <ann@example.org>\nSent: Monday, January 5, 2026 10:00 AM\nTo: Joe <joe@example.org>\nSubject: Lunch",
    "*From:* Ann <ann@example.org>\n*Sent:* Monday, January 5, 2026\n*To:* Joe\n*Subject:* Lunch",
    "Von: Ann <ann@example.org>\nGesendet: Montag, 5. Januar 2026 10:00\nAn: Joe\nBetreff: Mittag",
    "De : Ann <ann@example.org>\nEnvoyé : lundi 5 janvier 2026 10:00\nÀ : Joe\nObjet : Midi",
    "De: Ann\nEnviado el: lunes, 5 de enero de 2026\nPara: Joe\nAsunto: Almuerzo",
    "Da: Ann\nInviato: lunedì 5 gennaio 2026\nA: Joe\nOggetto: Pranzo",
    "De: Ann\nEnviada em: segunda-feira\nPara: Joe\nAssunto: Almoço",
    "Van: Ann\nVerzonden: maandag\nAan: Joe\nOnderwerp: Lunch",
    "Från: Ann\nSkickat: måndag\nTill: Joe\nÄmne: Lunch",
    "Lähettäjä: Ann\nLähetetty: maanantai\nVastaanottaja: Joe\nAihe: Lounas",
    "Od: Ann\nWysłano: poniedziałek\nDo: Joe\nTemat: Obiad",
    "От: Ann\nОтправлено: 5 января\nКому: Joe\nТема: Обед",
    "发件人: Ann\n发送时间: 2026年1月5日\n收件人: Joe\n主题: 午餐",
    "差出人: Ann\n送信日時: 2026年1月5日\n宛先: Joe\n件名: 昼食",
    "From: Ann\nDate: Monday\nTo: A very long list of people,\n several lines of them,\n indeed\nSubject: Lunch",
]

ORIGINALS = [
    "-----Original Message-----",
    "-------- Original Message --------",
    "-----Ursprüngliche Nachricht-----",
    "-----Message d'origine-----",
    "-----Mensaje original-----",
    "-----Messaggio originale-----",
    "-----Mensagem original-----",
    "-----Oorspronkelijk bericht-----",
    "-----Исходное сообщение-----",
    "-----原始邮件-----",
]


def first_line(text: str) -> str:
    return text.split("\n", 1)[0]


@pytest.mark.parametrize("attribution", ATTRIBUTIONS, ids=first_line)
def test_an_answer_above_a_quotation_is_all_that_is_left(attribution: str):
    text = f"Yes, gladly.\n\n-- \nJoe\n\n{attribution}\n\n> Shall we?\n>\n> Ann\n"

    assert without_history(text) == "Yes, gladly.\n\n-- \nJoe"


@pytest.mark.parametrize("attribution", ATTRIBUTIONS, ids=first_line)
def test_an_answer_below_a_quotation_is_all_that_is_left(attribution: str):
    text = f"{attribution}\n> Shall we?\n\nYes, gladly.\n"

    assert without_history(text) == "Yes, gladly."


@pytest.mark.parametrize("rule", ["", "_" * 32 + "\n", "-" * 20 + "\n\n"], ids=["no", "_", "-"])
@pytest.mark.parametrize("header", HEADERS, ids=first_line)
def test_what_outlook_puts_a_header_above_is_history(header: str, rule: str):
    text = f"Yes, gladly.\n\n{rule}{header}\n\nShall we?\n\nAnn\n"

    assert without_history(text) == "Yes, gladly."


@pytest.mark.parametrize("mark", ORIGINALS)
def test_what_stands_below_an_original_message_mark_is_history(mark: str):
    text = f"Yes, gladly.\n\n{mark}\nFrom: Ann\n\nShall we?\n"

    assert without_history(text) == "Yes, gladly."


def test_answers_between_quotations_stay():
    text = "\n".join([
        "Hello Ann,", "",
        "On Mon, 5 Jan 2026, Ann wrote:",
        "> Shall we have lunch?", "", "Yes.", "",
        "> Where?", "> And when?", "", "At the station, at one.", "", "Joe",
    ])  # fmt: skip

    assert without_history(text) == "Hello Ann,\n\nYes.\n\nAt the station, at one.\n\nJoe"


def test_a_sentence_right_above_an_attribution_stays():
    text = "On Sunday I met 5 people.\nAnn <ann@example.org> wrote:\n> Whom?"

    assert without_history(text) == "On Sunday I met 5 people."


def test_an_attribution_that_no_mark_follows_begins_history():
    attribution = "On Mon, Jan 5, 2026 at 10:00 AM, Ann Example\n<ann@example.org> wrote:"

    assert without_history(f"Yes.\n\n{attribution}\n\nShall we?\n\nAnn") == "Yes."


def test_what_was_forwarded_stays():
    forwarded = "---------- Forwarded message ---------\nFrom: Ann\nDate: Monday\nTo: Joe\nSubject: x\n\n> Hello"

    assert without_history(f"See below.\n\n{forwarded}") == f"See below.\n\n{forwarded}"
    assert without_history(forwarded) == forwarded


def test_a_message_that_is_all_history_is_given_as_it_is():
    text = "On Mon, 5 Jan 2026, Ann wrote:\n> Shall we?\n"

    assert without_history(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Just words.\n\nIn two paragraphs.",
        "At 5 I met Bob, who wrote:\n\nNothing more.",
        "On 5 January 2026 he wrote:\n\nI disagree, and so should you.",
        "Please note the following from my notes of 2026:\nthe roof leaks.",
        "From: the station\nto the hotel it takes an hour.",
        "From: Paris\nTo: London\nby train, please.",
        "Total\n-----\n12",
        "I agree.\n>From the start I thought so.",
        "I said: I wrote to ann@example.org in 2026, see:\nhttps://example.org",
        "-----\nJoe",
        "",
    ],
)
def test_words_that_only_look_like_history_stay(text: str):
    assert without_history(text) == text


@pytest.mark.parametrize(
    "line", ["I told Bob 5 times, and he wrote:", "These were the words:", "Ann wrote:"]
)
def test_a_sentence_above_a_quotation_that_may_be_the_authors_stays(line: str):
    assert without_history(f"Hi.\n\n{line}\n> no\n\nBye.") == f"Hi.\n\n{line}\n\nBye."


def test_what_cbemail_quotes_in_a_reply_is_found_again():
    original = SummaryHeaders(from_=Address("Ann", "ann@example.org"))

    assert without_history("Yes.\n\n" + quote_text("Shall we?\n\nAnn", original)) == "Yes."


def test_history_in_html_is_found_in_its_text():
    html = (
        '<div>Yes, gladly.</div><br><div class="gmail_quote"><div>On Mon, 5 Jan 2026 at 10:00, Ann &lt;<a'
        ' href="mailto:ann@example.org">ann@example.org</a>&gt; wrote:<br></div><blockquote>Shall we?</blockquote></div>'
    )

    assert without_history(html_to_text(html)) == "Yes, gladly."


@pytest.mark.parametrize(
    "text",
    [
        "> \n" * 50_000,
        "\n" * 200_000 + "> x",
        "on 1 <a@b> " * 50_000 + ":",
        ("on " + "1" * 200 + " <a@b>" * 40 + " wrote :\n") * 500,
        ("On 5 a@b\n" * 3 + "wrote:\n> x\n") * 5_000,
        "From: x\n" * 20_000,
        "-" * 1_000_000,
    ],
    ids=lambda text: text[:12],
)
def test_text_that_is_made_to_take_long_does_not(text: str):
    """What grows with the square of the text would not end today."""
    assert len(without_history(text)) <= len(text)
