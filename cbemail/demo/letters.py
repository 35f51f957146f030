"""What lies in the demo's mailbox at first: the mail of Robin, who helps to run a small lighthouse museum."""

import struct
import zlib
from datetime import datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from cbemail.demo.mailhost import Letter

ROBIN = Address("Robin Hale", "robin", "demo.example")
FOLDERS = ("Archive", "Drafts", "Junk", "Sent", "Trash", "Lighthouse/Tickets")

_MINA = Address("Mina Okafor", "mina", "lighthouse.example")
_JONAS = Address("Jonas Weber", "jonas", "lighthouse.example")
_PAPER = Address("The Harbour Weekly", "news", "harbour-weekly.example")
_YUKI = Address("田中 由紀", "yuki.tanaka", "ryoko.example")
_SHOP = Address("Lamp & Lens Supplies", "orders", "lamp-and-lens.example")
_BANK = Address("Tidewater Bank", "no-reply", "tidewater.example")
_HOST = Address("Mail Delivery System", "mailer-daemon", "demo.example")
_PRIZE = Address("Prize Department", "winner", "prizes.example")

_OPENING = "Opening weekend in May"


def letters(now: datetime) -> list[Letter]:
    """The mail there is at ``now``, each folder's in the order in which it came."""
    return [
        _archived(now),
        *_thread(now),
        _junk(now),
        _order(now),
        _bounce(now),
        _japanese(now),
        _invitation(now),
        _with_attachment(now),
        _code(now),
        _newsletter(now),
        _draft(now),
    ]


def _message(
    name: str, sender: Address, to: Address, subject: str, text: str, *, charset: str = "utf-8"
) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = f"<{name}@{sender.domain}>"
    message.set_content(text, charset=charset)
    return message


def _letter(message: EmailMessage, at: datetime, *flags: str, folder: str = "INBOX") -> Letter:
    message["Date"] = format_datetime(at)
    return Letter(folder, message.as_bytes(), at, frozenset(flags))


# ---- a thread


def _thread(now: datetime) -> list[Letter]:
    first = _message(
        "opening-1", _MINA, ROBIN, _OPENING,
        "Hi Robin,\n\nthe council agreed: we open on the second weekend of May. Could you find out how many people "
        "may climb the tower at once?\n\nMina\n",
    )  # fmt: skip
    first["Cc"] = _JONAS
    second = _message(
        "opening-2", ROBIN, _MINA, f"Re: {_OPENING}",
        "Good news! The fire officer says fifteen at a time, with one of us on the gallery.\n\nRobin\n",
    )  # fmt: skip
    second["Cc"] = _JONAS
    third = _message(
        "opening-3", _JONAS, ROBIN, f"Re: {_OPENING}",
        "> fifteen at a time, with one of us on the gallery\n\nI can take the gallery on Saturday, and bring the "
        "brass lamp for the shop window.\n\nJonas\n",
    )  # fmt: skip
    fourth = _message(
        "opening-4", _MINA, ROBIN, f"Re: {_OPENING}",
        "Wonderful, both of you. Then tickets go on sale on Monday.\n\nMina\n",
    )  # fmt: skip
    chain = [first, second, third, fourth]
    for number, answer in enumerate(chain[1:], start=1):
        answer["In-Reply-To"] = str(chain[number - 1]["Message-ID"])
        answer["References"] = " ".join(str(before["Message-ID"]) for before in chain[:number])
    return [
        _letter(first, now - timedelta(days=6), r"\Seen", r"\Answered"),
        _letter(second, now - timedelta(days=5, hours=20), r"\Seen", folder="Sent"),
        _letter(third, now - timedelta(days=5, hours=2), r"\Seen"),
        _letter(fourth, now - timedelta(days=5), r"\Seen", r"\Flagged"),
    ]


# ---- one of each kind


def _order(now: datetime) -> Letter:
    message = _message(
        "order-20417", _SHOP, ROBIN, "Your order 20417 has been shipped",
        "Dear Robin Hale,\n\n  2 x wick, 40 mm            9.80\n  1 x brass polish, 500 ml   14.50\n\nYour parcel "
        "arrives within three days.\n\nLamp & Lens Supplies\n",
    )  # fmt: skip
    return _letter(message, now - timedelta(days=4), r"\Seen")


def _bounce(now: datetime) -> Letter:
    """A delivery status notification, RFC 3464."""
    message = _message(
        "bounce-1", _HOST, ROBIN, "Undelivered: Thank you for your gift",
        "Your message could not be delivered to one address:\n\n<a.lindqvist@old-mail.example>: there is no such "
        "mailbox (550 5.1.1)\n\nNobody will try again.\n",
    )  # fmt: skip
    message["Auto-Submitted"] = "auto-replied"
    host, recipient = EmailMessage(policy=SMTP), EmailMessage(policy=SMTP)
    host["Reporting-MTA"] = "dns; demo.example"
    recipient["Final-Recipient"] = "rfc822; a.lindqvist@old-mail.example"
    recipient["Action"] = "failed"
    recipient["Status"] = "5.1.1"
    recipient["Diagnostic-Code"] = "smtp; 550 5.1.1 There is no such mailbox"
    status = EmailMessage(policy=SMTP)
    status["Content-Type"] = "message/delivery-status"
    status.set_payload([host, recipient])
    message.make_mixed()
    message.attach(status)
    message.set_type("multipart/report")
    message.set_param("report-type", "delivery-status")
    return _letter(message, now - timedelta(days=3, hours=7), r"\Seen")


def _japanese(now: datetime) -> Letter:
    message = _message(
        "kengaku-1", _YUKI, ROBIN, "灯台見学のお問い合わせ",
        "ロビン様\n\nはじめまして、田中由紀と申します。五月に十二名で灯台を見学したいのですが、予約は必要でしょうか。\n"
        "どうぞよろしくお願いいたします。\n\n田中\n",
        charset="iso-2022-jp",
    )  # fmt: skip
    return _letter(message, now - timedelta(days=2, hours=9))


def _invitation(now: datetime) -> Letter:
    """RFC 6047: the event, as a text/calendar part that a calendar program answers."""
    message = _message(
        "invitation-1", _JONAS, ROBIN, "Invitation: volunteers' evening",
        "Volunteers' evening at the keeper's house. Soup and bread are there.\n",
    )  # fmt: skip
    start = (now + timedelta(days=9)).replace(hour=18, minute=0, second=0)
    event = [
        "BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//lighthouse.example//EN", "METHOD:REQUEST", "BEGIN:VEVENT",
        "UID:volunteers-evening@lighthouse.example", f"DTSTAMP:{now:%Y%m%dT%H%M%SZ}", f"DTSTART:{start:%Y%m%dT%H%M%SZ}",
        "DURATION:PT2H", "SUMMARY:Volunteers' evening", "LOCATION:Keeper's house",
        f"ORGANIZER:mailto:{_JONAS.addr_spec}", f"ATTENDEE;RSVP=TRUE:mailto:{ROBIN.addr_spec}",
        "END:VEVENT", "END:VCALENDAR", "",
    ]  # fmt: skip
    message.add_alternative("\r\n".join(event), subtype="calendar", params={"method": "REQUEST"})
    return _letter(message, now - timedelta(days=1, hours=5))


def _with_attachment(now: datetime) -> Letter:
    message = _message(
        "visitors-1", _MINA, ROBIN, "Visitor numbers",
        "The numbers of last year for the report are attached. August!\n\nMina\n",
    )  # fmt: skip
    months = zip(
        ("May", "June", "July", "August", "September"), (212, 340, 505, 731, 298), strict=True
    )
    rows = ["month,visitors", *(f"{month},{visitors}" for month, visitors in months), ""]
    message.add_attachment("\r\n".join(rows), subtype="csv", filename="visitors.csv")
    return _letter(message, now - timedelta(hours=20))


def _code(now: datetime) -> Letter:
    message = _message(
        "code-1", _BANK, ROBIN, "Your verification code: 481 516",
        "Your code is 481 516. It is good for ten minutes. We never ask for it on the telephone.\n",
    )  # fmt: skip
    return _letter(message, now - timedelta(hours=3))


def _newsletter(now: datetime) -> Letter:
    message = _message(
        "issue-112", _PAPER, ROBIN, "The Harbour Weekly: storms, seals and a new ferry ⛴",
        "Storms, seals and a new ferry\n\nThe seals are back on the north pier. The new ferry sails from June on.\n",
    )  # fmt: skip
    message["List-Unsubscribe"] = "<https://harbour-weekly.example/unsubscribe>"
    message.add_alternative(
        '<h1>Storms, seals and a new ferry</h1><p><img src="cid:sunset" width="240" height="80" alt="Sunset over the '
        'harbour"></p><p>The seals are back on the <b>north pier</b>. The new ferry sails from June on: '
        '<a href="https://harbour-weekly.example/ferry">timetable</a>.</p>',
        subtype="html",
    )
    [_, html] = message.iter_parts()
    if not isinstance(html, EmailMessage):
        raise TypeError("what was added is a message part")
    html.add_related(
        _sunset(), "image", "png", cid="<sunset>", filename="sunset.png", disposition="inline"
    )
    return _letter(message, now - timedelta(minutes=40))


def _sunset() -> bytes:
    """A PNG of 240 x 80 pixels, from orange to blue."""
    width, height = 240, 80
    rows = b"".join(
        b"\0" + bytes((255 - 2 * y, 140 - y // 2, 60 + 2 * y)) * width for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


# ---- in other folders


def _archived(now: datetime) -> Letter:
    message = _message(
        "welcome-1", _MINA, ROBIN, "Welcome to the keepers",
        "Dear Robin,\n\nyour key to the tower is with Jonas. We are glad to have you!\n\nMina\n",
    )  # fmt: skip
    return _letter(message, now - timedelta(days=210), r"\Seen", folder="Archive")


def _junk(now: datetime) -> Letter:
    message = _message(
        "prize-1", _PRIZE, ROBIN, "You have WON!!!",
        "Claim your prize today: we need only your password.\n",
    )  # fmt: skip
    return _letter(message, now - timedelta(days=4, hours=3), folder="Junk")


def _draft(now: datetime) -> Letter:
    message = _message(
        "draft-1", ROBIN, _YUKI, "Re: 灯台見学のお問い合わせ",
        "Dear Yuki Tanaka,\n\nthank you for your letter. A group of twelve is very welcome; \n",
    )  # fmt: skip
    return _letter(message, now - timedelta(minutes=12), r"\Draft", r"\Seen", folder="Drafts")
