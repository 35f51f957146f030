"""The first words of a message, as a list shows them beside its subject."""

import re

from cbemail.mime.quoted import without_history

SNIPPET = 200  # characters, which is what servers give as a preview (RFC 8970 4)

_SIGNATURE = re.compile(r"^-- ?$.*", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\s*\(https?://[^\s()]*+\)?")  # as `html_to_text` writes one behind its text
_RULE = re.compile(r"[-=_*~#•·─]{4,}")
# Newsletters fill the space behind their first words with these, so that no others show. One alone has its use: it
# joins an emoji, or divides a Persian word.
_INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2060-\u2064\ufeff"
_SPACE = re.compile(rf"\s[\s{_INVISIBLE}]*+|[{_INVISIBLE}][\s{_INVISIBLE}]++")


def make_snippet(text: str) -> str:
    """The author's first words in ``text``, on one line: no quotation, no signature, no addresses of links."""
    return shorten(_LINK.sub("", _SIGNATURE.sub("", without_history(text))))


def shorten(text: str) -> str:
    """The first words of ``text``, on one line, with one space between any two."""
    return _SPACE.sub(" ", _RULE.sub(" ", text)).strip()[:SNIPPET].rstrip()
