"""BODYSTRUCTURE -> part tree (RFC 9051 7.5.2), and the many ways in which servers get it wrong.

The shape of a message is its sender's choice: the tree is cut at a depth and a number of parts, never refused for
them.
"""

from __future__ import annotations

from msgspec import Struct

from cbemail.imap.protocol import ImapSyntaxError, Part, Value

MAX_PARTS = (
    1_000  # of one message: servers cap near it (Dovecot: 10,000), no honest mail comes close
)
MAX_DEPTH = 100  # of parts in parts

# A part whose type the server could not read: RFC 2045 5.2 makes it plain text.
_DEFAULT_TYPE = "text"
_DEFAULT_SUBTYPES = {"text": "plain", "multipart": "mixed", "message": "rfc822"}


def read_body_structure(value: Value) -> Part:
    """Read a BODYSTRUCTURE (or BODY) value into a tree.

    Tolerates missing and misplaced fields: what cannot be read of a part is absent from it. Beyond ``MAX_PARTS``
    and ``MAX_DEPTH`` the tree is cut.

    Raises:
        ImapSyntaxError: it is no list, or an empty one.
    """
    if not isinstance(value, list) or not value:
        raise ImapSyntaxError("a body structure is no list")
    return _TreeReader().message_body(value, "", 0)


class _Disposition(Struct, frozen=True):
    name: str | None = None
    parameters: dict[str, bytes] = {}


class _TreeReader:
    """Reads one tree. It recurses, but no deeper than ``MAX_DEPTH``; it counts its parts as it goes."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_PARTS

    def message_body(self, fields: list[Value], message_id: str, depth: int) -> Part:
        """The body of the message that is part ``message_id``; of the outermost message with ``""``.

        RFC 9051 6.4.5: a multipart body has no number of its own, so its parts count from 1 right below the
        message; any other body is itself number 1.
        """
        if _is_multipart(fields):
            return self._multipart(fields, "", message_id, depth)
        return self._part(fields, _below(message_id, 1), depth)

    def _part(self, fields: list[Value], part_id: str, depth: int) -> Part:
        self._left -= 1
        if _is_multipart(fields):
            return self._multipart(fields, part_id, part_id, depth)
        return self._leaf(fields, part_id, depth)

    def _multipart(self, fields: list[Value], part_id: str, prefix: str, depth: int) -> Part:
        bodies = 0
        while bodies < len(fields) and isinstance(fields[bodies], list):
            bodies += 1
        children = []
        if depth < MAX_DEPTH:
            for number, body in enumerate(fields[:bodies], 1):
                if self._left <= 0:
                    break
                children.append(self._part(body, _below(prefix, number), depth + 1))
        rest = fields[bodies:]
        if _word(_at(rest, 0)) == "multipart":  # an empty one, written as a leaf
            del rest[0]
        disposition = _disposition(_at(rest, 2))
        return Part(
            id=part_id,
            type="multipart",
            subtype=_word(_at(rest, 0)) or _DEFAULT_SUBTYPES["multipart"],
            parameters=_parameters(_at(rest, 1)),
            disposition=disposition.name,
            disposition_parameters=disposition.parameters,
            children=tuple(children),
        )

    def _leaf(self, fields: list[Value], part_id: str, depth: int) -> Part:
        subtype = _word(_at(fields, 1))
        kind = _word(_at(fields, 0)) or ("application" if subtype else _DEFAULT_TYPE)
        body = _at(fields, 8)
        # Without an envelope and a body it is a message only by name, as some servers send it.
        holds_message = kind == "message" and isinstance(_at(fields, 7), list)
        children: tuple[Part, ...] = ()
        if holds_message and isinstance(body, list) and body and depth < MAX_DEPTH and self._left:
            children = (self.message_body(body, part_id, depth + 1),)
        disposition = _leaf_disposition(fields, 11 if holds_message else 9 if kind == "text" else 8)
        content_id = _at(fields, 3)
        return Part(
            id=part_id,
            type=kind,
            subtype=subtype or _DEFAULT_SUBTYPES.get(kind, "octet-stream"),
            parameters=_parameters(_at(fields, 2)),
            content_id=content_id if isinstance(content_id, bytes) else None,
            encoding=_word(_at(fields, 5)) or "7bit",
            size=_size(_at(fields, 6)),
            disposition=disposition.name,
            disposition_parameters=disposition.parameters,
            children=children,
        )


def _is_multipart(fields: list[Value]) -> bool:
    """Told by its bodies; where it has none, by its name or a parameter list where a leaf has its subtype."""
    first = _at(fields, 0)
    return isinstance(first, list) or (
        isinstance(first, bytes)
        and (isinstance(_at(fields, 1), list) or _word(first) == "multipart")
    )


def _below(part_id: str, number: int) -> str:
    return f"{part_id}.{number}" if part_id else str(number)


def _at(fields: list[Value], index: int) -> Value:
    return fields[index] if index < len(fields) else None


def _word(value: Value) -> str:
    """A case-insensitive name; empty where there is none."""
    return value.decode("latin-1").strip().lower() if isinstance(value, bytes) else ""


def _size(value: Value) -> int:
    return int(value) if isinstance(value, bytes) and value.isdigit() and len(value) < 19 else 0


def _parameters(value: Value) -> dict[str, bytes]:
    """Names and values in turn; the first of two that share a name, as it is the one other clients show."""
    parameters: dict[str, bytes] = {}
    if isinstance(value, list):
        for name, text in zip(value[::2], value[1::2], strict=False):
            if isinstance(name, bytes) and isinstance(text, bytes):
                parameters.setdefault(_word(name), text)
    return parameters


def _leaf_disposition(fields: list[Value], index: int) -> _Disposition:
    """The disposition at ``index``, or wherever a server that left fields out has moved it to."""
    disposition = _disposition(_at(fields, index))
    if disposition.name is not None:
        return disposition
    for value in fields[7:]:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list | None):
            disposition = _disposition(value)
            if disposition.name in {"attachment", "inline"}:
                return disposition
    return _Disposition()


def _disposition(value: Value) -> _Disposition:
    if isinstance(value, bytes):  # `"inline"` for `("inline" NIL)`
        name = _word(value)
        return _Disposition(name) if name in {"attachment", "inline"} else _Disposition()
    if not isinstance(value, list):
        return _Disposition()
    return _Disposition(_word(_at(value, 0)) or None, _parameters(_at(value, 1)))
