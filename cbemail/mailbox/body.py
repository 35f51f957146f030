"""The text and the HTML of a message, from the octets of its parts. Pure, so that it can run in a thread."""

from collections.abc import Mapping

from msgspec import Struct

from cbemail.imap.protocol import Part
from cbemail.mailbox.structure import Layout
from cbemail.mime.html import html_to_text, sanitise, text_to_html
from cbemail.mime.parse import read_text

# Octets of one text part that are read. Newsletters reach 200 KB; a body of more is a file, and can be had as one.
# HTML made to hurt costs a second of a thread's time a megabyte.
BODY_OCTETS = 1024 * 1024


class Body(Struct, frozen=True):
    """``text`` is made from the HTML where there is nothing else; ``html`` is None where there is none."""

    text: str | None
    html: str | None


def read_body(
    layout: Layout, sections: Mapping[str, bytes], cid_urls: Mapping[str, str], *, raw_html: bool
) -> Body:
    """Decode the parts that ``layout`` names and join them, in their order."""
    decoded = {
        part.id: decode_part(part, sections.get(part.id, b""))
        for part in (*layout.text, *layout.html)
    }
    text = "\n".join(
        html_to_text(decoded[part.id]) if part.subtype == "html" else decoded[part.id]
        for part in layout.text
    )
    if not any(part.subtype == "html" for part in layout.html):
        return Body(text if layout.text else None, None)
    html = "\n".join(
        decoded[part.id] if part.subtype == "html" else text_to_html(decoded[part.id])
        for part in layout.html
    )
    return Body(
        text=text if layout.text else html_to_text(html),
        html=html if raw_html else sanitise(html, cid_urls=cid_urls),
    )


def decode_part(part: Part, data: bytes) -> str:
    """The text of ``part``, of which ``data`` are the first octets, or all."""
    charset = part.parameters.get("charset")
    return read_text(
        data,
        encoding=part.encoding,
        charset=charset.decode("ascii", "replace") if charset else None,
        flowed=part.parameters.get("format", b"").lower() == b"flowed",
        delsp=part.parameters.get("delsp", b"").lower() == b"yes",
        whole=len(data) >= part.size,
    )
