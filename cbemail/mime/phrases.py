"""What mail clients write around messages, language by language: nothing in a message marks it but its words."""

# ruff: noqa: RUF001 - letters of other alphabets look like ours

import re
from collections.abc import Iterable

from msgspec import Struct


class Phrases(Struct, frozen=True):
    """Of one language. ``opener`` and ``wrote`` begin and end "On …, Ann wrote:"; the last four name the header fields
    that Outlook puts above what it quotes."""

    opener: tuple[str, ...] = ()
    wrote: tuple[str, ...] = ()
    original: tuple[str, ...] = ()
    forwarded: tuple[str, ...] = ()
    automatic_reply: tuple[str, ...] = ()
    from_: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()


LANGUAGES = (
    Phrases(  # English
        opener=("on",),
        wrote=("wrote", "writes"),
        original=("original message", "original appointment"),
        forwarded=("forwarded message",),
        automatic_reply=("automatic reply", "out of office", "auto reply", "autoreply"),
        from_=("from",),
        sent=("sent", "date"),
        to=("to",),
        subject=("subject",),
    ),
    Phrases(  # German
        opener=("am",),
        wrote=("schrieb", "schreibt"),
        original=("ursprüngliche nachricht", "originalnachricht"),
        forwarded=("weitergeleitete nachricht",),
        automatic_reply=("automatische antwort", "abwesenheitsnotiz"),
        from_=("von",),
        sent=("gesendet", "datum"),
        to=("an",),
        subject=("betreff",),
    ),
    Phrases(  # French
        opener=("le",),
        wrote=("a écrit",),
        original=("message d'origine", "message original"),
        forwarded=("message transféré", "message transmis"),
        automatic_reply=("réponse automatique",),
        from_=("de",),
        sent=("envoyé", "date"),
        to=("à",),
        subject=("objet",),
    ),
    Phrases(  # Spanish
        opener=("el",),
        wrote=("escribió", "escribio"),
        original=("mensaje original",),
        forwarded=("mensaje reenviado",),
        automatic_reply=("respuesta automática",),
        from_=("de",),
        sent=("enviado", "enviado el", "fecha"),
        to=("para",),
        subject=("asunto",),
    ),
    Phrases(  # Italian
        opener=("il", "il giorno"),
        wrote=("ha scritto",),
        original=("messaggio originale",),
        forwarded=("messaggio inoltrato",),
        automatic_reply=("risposta automatica",),
        from_=("da",),
        sent=("inviato", "data"),
        to=("a",),
        subject=("oggetto",),
    ),
    Phrases(  # Portuguese
        opener=("em", "a", "no dia"),
        wrote=("escreveu",),
        original=("mensagem original",),
        forwarded=("mensagem encaminhada",),
        automatic_reply=("resposta automática",),
        from_=("de",),
        sent=("enviado", "enviada em", "data"),
        to=("para",),
        subject=("assunto",),
    ),
    Phrases(  # Dutch
        opener=("op",),
        wrote=("schreef", "geschreven"),
        original=("oorspronkelijk bericht",),
        forwarded=("doorgestuurd bericht",),
        automatic_reply=("automatisch antwoord",),
        from_=("van",),
        sent=("verzonden", "datum"),
        to=("aan",),
        subject=("onderwerp",),
    ),
    Phrases(  # Swedish, Danish, Norwegian
        opener=("den", "på"),
        wrote=("skrev",),
        original=("ursprungligt meddelande", "oprindelig meddelelse", "opprinnelig melding"),
        forwarded=("vidarebefordrat meddelande", "videresendt meddelelse", "videresendt melding"),
        automatic_reply=("automatiskt svar", "automatisk svar", "autosvar"),
        from_=("från", "fra"),
        sent=("skickat", "sendt", "datum", "dato"),
        to=("till", "til"),
        subject=("ämne", "emne"),
    ),
    Phrases(  # Finnish
        wrote=("kirjoitti",),
        original=("alkuperäinen viesti",),
        forwarded=("välitetty viesti",),
        automatic_reply=("automaattinen vastaus",),
        from_=("lähettäjä",),
        sent=("lähetetty", "päivämäärä"),
        to=("vastaanottaja",),
        subject=("aihe",),
    ),
    Phrases(  # Polish
        opener=("w dniu", "dnia"),
        wrote=("napisał", "napisała", "napisał(a)"),
        original=("wiadomość oryginalna",),
        forwarded=("wiadomość przekazana dalej",),
        automatic_reply=("automatyczna odpowiedź", "odpowiedź automatyczna"),
        from_=("od",),
        sent=("wysłano", "data"),
        to=("do",),
        subject=("temat",),
    ),
    Phrases(  # Czech, Slovak
        opener=("dne", "dňa"),
        wrote=("napsal", "napsala", "napsal(a)", "napísal", "napísal(a)"),
        original=("původní zpráva", "pôvodná správa"),
        forwarded=("přeposlaná zpráva", "preposlaná správa"),
        automatic_reply=("automatická odpověď", "automatická odpoveď"),
        from_=("od",),
        sent=("odesláno", "odoslané", "datum", "dátum"),
        to=("komu",),
        subject=("předmět", "predmet"),
    ),
    Phrases(  # Russian, Ukrainian
        wrote=("пишет", "пише", "написал", "написала", "написал(а)"),
        original=("исходное сообщение", "оригінальне повідомлення"),
        forwarded=(
            "пересылаемое сообщение",
            "переадресованное сообщение",
            "переслане повідомлення",
        ),
        automatic_reply=("автоматический ответ", "автоматична відповідь"),
        from_=("от", "від"),
        sent=("отправлено", "надіслано", "дата"),
        to=("кому",),
        subject=("тема",),
    ),
    Phrases(  # Turkish
        wrote=("şunları yazdı", "yazdı"),
        original=("orijinal mesaj",),
        forwarded=("iletilmiş mesaj",),
        automatic_reply=("otomatik yanıt",),
        from_=("kimden",),
        sent=("gönderme tarihi", "gönderildi", "tarih"),
        to=("kime",),
        subject=("konu",),
    ),
    Phrases(  # Chinese
        wrote=("写道", "寫道"),
        original=("原始邮件", "原始郵件"),
        forwarded=("转发的邮件", "轉寄的郵件"),
        automatic_reply=("自动答复", "自動回覆"),
        from_=("发件人", "寄件者"),
        sent=("发送时间", "日期", "寄件日期"),
        to=("收件人", "收件者"),
        subject=("主题", "主旨"),
    ),
    Phrases(  # Japanese
        original=("元のメッセージ",),
        forwarded=("転送メッセージ",),
        automatic_reply=("自動応答", "自動返信"),
        from_=("差出人", "from"),
        sent=("送信日時", "日付"),
        to=("宛先",),
        subject=("件名",),
    ),
    Phrases(  # Korean
        wrote=("작성", "님이 작성"),
        original=("원본 메시지",),
        forwarded=("전달된 메시지",),
        automatic_reply=("자동 회신",),
        from_=("보낸 사람",),
        sent=("보낸 날짜", "날짜"),
        to=("받는 사람",),
        subject=("제목",),
    ),
)

COLONS = ":："


def any_of(phrases: Iterable[str]) -> str:
    """A pattern for any of ``phrases``, the longest first, in lower case and with whatever space between words."""
    ordered = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
    return "(?:" + "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in ordered) + ")"
