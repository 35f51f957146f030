"""Which parts of a message are its text, which its HTML, and which are attachments (RFC 8621 section 4.1.4)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from cbemail.imap.protocol import Part
from cbemail.mime.headers import decode_parameter

MAX_PARAMETERS = 4  # of a Content-Type that are handed on; a sender may have made thousands
MAX_BODY_PARTS = 32  # text parts shown as one body; a message of more is no letter, and they are attachments then


class Layout(Struct, frozen=True):
    """The parts of a message by what they are for. A part that is shown in both bodies is in both."""

    text: tuple[Part, ...]
    html: tuple[Part, ...]
    attachments: tuple[Part, ...]
    inline: frozenset[str]  # ids of those attachments that are shown within the body


def lay_out(root: Part) -> Layout:
    """Sort the leaves of ``root``, by the algorithm of JMAP, which is the one mail clients agree on."""
    text: list[Part] = []
    html: list[Part] = []
    attachments: list[Part] = []
    _sort([root], "mixed", _Bodies(text, html), attachments, in_alternative=False)
    as_text = tuple(part for part in text if part.type == "text")[:MAX_BODY_PARTS]
    as_html = tuple(part for part in html if part.type == "text")[:MAX_BODY_PARTS]
    inline = {part.id for part in (*text, *html) if part.type != "text"}
    inline |= {
        p.id for p in attachments if p.content_id is not None and p.disposition != "attachment"
    }
    shown = {part.id for part in (*as_text, *as_html)}
    listed = {part.id: part for part in (*attachments, *text, *html) if part.id not in shown}
    return Layout(
        text=as_text,
        html=as_html,
        attachments=tuple(sorted(listed.values(), key=_section_order)),
        inline=frozenset(inline),
    )


def _section_order(part: Part) -> list[int]:
    return [int(number) for number in part.id.split(".") if number.isdigit()]


class _Bodies(NamedTuple):
    """The two bodies as they grow. One that is None is closed to what follows: within an alternative, what comes
    after plain text is not of the HTML body."""

    text: list[Part] | None
    html: list[Part] | None

    def lengths(self) -> tuple[int, int]:
        return (
            len(self.text) if self.text is not None else -1,
            len(self.html) if self.html is not None else -1,
        )


def _sort(
    parts: Sequence[Part],
    multipart: str,
    bodies: _Bodies,
    attachments: list[Part],
    *,
    in_alternative: bool,
) -> None:
    """RFC 8621's parseStructure. Its depth is bounded by that of the tree (`imap/bodystructure`)."""
    before = bodies.lengths()
    within = bodies
    for position, part in enumerate(parts):
        if part.is_multipart:
            in_branch = in_alternative or part.subtype == "alternative"
            _sort(part.children, part.subtype, within, attachments, in_alternative=in_branch)
        elif not _is_inline(part, position, multipart):
            attachments.append(part)
        elif multipart == "alternative":
            _choose(part, within, attachments)
        else:
            if in_alternative and part.type == "text":
                plain = part.subtype == "plain"
                within = _Bodies(within.text, None) if plain else _Bodies(None, within.html)
            _add(part, within, attachments)
    if multipart == "alternative":
        _share(bodies, before)


def _choose(part: Part, bodies: _Bodies, attachments: list[Part]) -> None:
    """A direct child of multipart/alternative belongs to one body, by its kind."""
    by_subtype = {"plain": bodies.text, "html": bodies.html}
    body = by_subtype.get(part.subtype) if part.type == "text" else None
    (attachments if body is None else body).append(part)


def _add(part: Part, bodies: _Bodies, attachments: list[Part]) -> None:
    """A part shown in place is of both bodies; media that one of them cannot show is an attachment too, and so is text
    that neither can take, which the RFC would lose."""
    for body in bodies:
        if body is not None:
            body.append(part)
    if None in bodies and (part.type != "text" or bodies == (None, None)):
        attachments.append(part)


def _share(bodies: _Bodies, before: tuple[int, int]) -> None:
    """An alternative that offered only one kind of body offered it for the other too."""
    text, html = bodies
    if text is None or html is None:
        return
    text_found, html_found = text[before[0] :], html[before[1] :]
    if not text_found:
        text.extend(html_found)
    elif not html_found:
        html.extend(text_found)


def _is_inline(part: Part, position: int, multipart: str) -> bool:
    """Shown within the body: text or media, not said to be an attachment, and the first, or one without a name."""
    media = part.type in {"image", "audio", "video"}
    if part.disposition == "attachment" or not (media or _is_body_text(part)):
        return False
    return position == 0 or (multipart != "related" and (media or not has_filename(part)))


def _is_body_text(part: Part) -> bool:
    return part.type == "text" and part.subtype in {"plain", "html"}


def has_filename(part: Part) -> bool:
    return part_filename(part) is not None


def part_filename(part: Part) -> str | None:
    """The file name a part gives itself, decoded, as it stands: not yet safe to save under."""
    return decode_parameter(part.disposition_parameters, "filename") or decode_parameter(
        part.parameters, "name"
    )


_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,127}")  # RFC 2045 section 5.1


def part_media_type(part: Part) -> str:
    """``type/subtype``. A sender may have written anything there, and it goes into a header of ours: what is no pair
    of tokens is just octets."""
    if _TOKEN.fullmatch(part.type) and _TOKEN.fullmatch(part.subtype):
        return f"{part.type}/{part.subtype}"
    return "application/octet-stream"


def part_content_type(part: Part) -> str:
    """The media type with its parameters (the ``charset`` of a text, the ``method`` of an invitation), but for the file
    name, which has its own place, and what is no token."""
    parameters = [
        f"; {name}={value}"
        for name, octets in part.parameters.items()
        if not name.startswith("name")
        and _TOKEN.fullmatch(name)
        and _TOKEN.fullmatch(value := octets.decode("ascii", "replace"))
    ]
    return part_media_type(part) + "".join(parameters[:MAX_PARAMETERS])
