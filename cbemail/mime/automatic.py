"""Whether a message was written by a person, or is what a machine answers in a person's place (RFC 3834)."""

import re
from collections.abc import Mapping

from cbemail.mime.phrases import COLONS, LANGUAGES, any_of

# Each is fetched with every row of a list, so they are few: the RFC's, and the convention from before it. What systems
# write beside them (X-Autoreply) tells no more. X-Auto-Response-Suppress asks others for silence, and stands in many a
# letter that a person wrote.
AUTOMATIC_FIELDS = (b"auto-submitted", b"precedence")

_ANNOUNCED = re.compile(
    any_of(w for each in LANGUAGES for w in each.automatic_reply) + rf"\s*[{COLONS}]", re.IGNORECASE
)


def is_automatic_reply(fields: Mapping[bytes, bytes], subject: str) -> bool:
    """Whether ``fields``, those of `AUTOMATIC_FIELDS` that there are, tell of a vacation notice or the like.

    What a program sends of its own accord (``auto-generated``: receipts, alerts, calendars) answers nobody, and is no
    reply; but Exchange says that of its absence notices too, and only their subject gives them away.
    """
    submitted = _keyword(fields.get(b"auto-submitted", b""))
    if submitted == b"auto-replied":
        return True
    if submitted == b"auto-generated" and _ANNOUNCED.match(subject):
        return True
    return _keyword(fields.get(b"precedence", b"")) == b"auto_reply"


def _keyword(value: bytes) -> bytes:
    """The value without its comment and parameters."""
    return value.partition(b";")[0].partition(b"(")[0].strip().lower()
