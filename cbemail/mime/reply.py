"""What a reply or a forward takes from the message it answers: subject, thread, recipients, quotation."""

import re
from collections.abc import Collection, Iterable
from html import escape
from typing import Literal

from cbemail.mime import limits
from cbemail.mime.address import Address, check_address
from cbemail.mime.fields import is_message_id
from cbemail.mime.headers import SummaryHeaders
from cbemail.mime.html import text_to_html

ReplyMode = Literal["reply", "reply_all", "forward"]

_REPLY_PREFIX = re.compile(r"re(?:\[\d+\])?\s*:", re.IGNORECASE)
_FORWARD_PREFIX = re.compile(r"(?:fwd?|wg)\s*:", re.IGNORECASE)
_FORWARDED = "---------- Forwarded message ----------"
_BLOCKQUOTE = '<blockquote style="margin:0 0 0 0.8ex;border-left:1px solid #ccc;padding-left:1ex">{}</blockquote>'


def reply_subject(subject: str | None, mode: ReplyMode) -> str:
    """The subject with ``Re: `` or ``Fwd: `` before it, once (RFC 5322 3.6.5)."""
    subject = subject or ""
    mark, already = ("Fwd: ", _FORWARD_PREFIX) if mode == "forward" else ("Re: ", _REPLY_PREFIX)
    return subject if already.match(subject) else (mark + subject).rstrip()


def threading_of(original: SummaryHeaders) -> tuple[str | None, list[str]]:
    """In-Reply-To and References of a reply to ``original`` (RFC 5322 3.6.4).

    Ids that cannot be written are left out; of a long thread the root and the latest are kept.
    """
    if original.message_id is None or not is_message_id(original.message_id):
        return None, []
    earlier = original.references
    if not earlier and original.in_reply_to is not None:
        earlier = [original.in_reply_to]
    chain = [each for each in earlier if is_message_id(each) and each != original.message_id]
    references = [*dict.fromkeys(chain), original.message_id]
    if len(references) > limits.REFERENCES:
        references = [references[0], *references[1 - limits.REFERENCES :]]
    return original.message_id, references


def reply_recipients(
    original: SummaryHeaders, own: Collection[str], mode: ReplyMode
) -> tuple[list[Address], list[Address]]:
    """To and Cc of a reply: who asked for replies, and for ``reply_all`` everybody else who got the original.

    ``own`` are the replier's addresses. They are left out, unless nobody else is left; a reply to one's own message
    goes to whom that went to. An address that cannot be sent to is left out. A forward has no recipients yet.
    """
    if mode == "forward":
        return [], []
    mine = {address.casefold() for address in own}
    authors = original.reply_to or ([original.from_] if original.from_ is not None else [])
    if original.from_ is not None and original.from_.address.casefold() in mine and original.to:
        authors = original.to
    seen = set(mine)
    to = _unseen(authors, seen) or _unseen(authors, set())
    if mode == "reply":
        return to, []
    return to, _unseen([*original.to, *original.cc], seen)


def quote_text(text: str, original: SummaryHeaders) -> str:
    """``text`` as the quoted part of a plain text reply, under a line that says who wrote it when."""
    quoted = "\n".join(_quote_line(line) for line in text.rstrip("\n").split("\n"))
    return f"{_attribution(original)}\n{quoted}\n"


def quote_html(html: str, original: SummaryHeaders) -> str:
    """``html``, which must be sanitised, as the quoted part of an HTML reply."""
    return f"<div>{escape(_attribution(original), quote=False)}</div>\n{_BLOCKQUOTE.format(html)}"


def forward_text(text: str, original: SummaryHeaders) -> str:
    """``text`` under the header lines of the message that is forwarded."""
    return f"{_forward_header(original)}\n\n{text}"


def forward_html(html: str, original: SummaryHeaders) -> str:
    """``html``, which must be sanitised, under the header lines of the message that is forwarded."""
    return f"{text_to_html(_forward_header(original))}\n<br>\n{html}"


def _unseen(addresses: Iterable[Address], seen: set[str]) -> list[Address]:
    """The addresses that can be sent to and are not in ``seen``, which learns them."""
    found = []
    for address in addresses:
        key = address.address.casefold()
        if key not in seen and (usable := _usable(address)) is not None:
            seen.add(key)
            found.append(usable)
    return found


def _usable(address: Address) -> Address | None:
    """A received address as one that may be sent to, its name cut to what may be written; None if it cannot."""
    name = address.name and address.name[: limits.DISPLAY_NAME]
    try:
        return check_address(Address(name, address.address))
    except ValueError:
        return None


def _quote_line(line: str) -> str:
    if line.startswith(">"):
        return f">{line}"
    return f"> {line}" if line else ">"


def _attribution(original: SummaryHeaders) -> str:
    author = _shown(original.from_) if original.from_ is not None else "somebody"
    if original.date is None:
        return f"{author} wrote:"
    return f"On {original.date:%Y-%m-%d at %H:%M} UTC, {author} wrote:"


def _forward_header(original: SummaryHeaders) -> str:
    lines = [_FORWARDED]
    if original.from_ is not None:
        lines.append(f"From: {_shown(original.from_)}")
    if original.date is not None:
        lines.append(f"Date: {original.date:%Y-%m-%d %H:%M} UTC")
    lines.append(f"Subject: {original.subject or ''}".rstrip())
    for name, addresses in (("To", original.to), ("Cc", original.cc)):
        if addresses:
            lines.append(f"{name}: {', '.join(map(_shown, addresses))}")
    return "\n".join(lines)


def _shown(address: Address) -> str:
    return f"{address.name} <{address.address}>" if address.name else address.address
