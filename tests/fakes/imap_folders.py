"""What a scripted IMAP server keeps: folders of canned messages, and their FETCH and SEARCH data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message as Entity

from tests.fakes.imap_arguments import Argument, NotUnderstood, text_of, uids

_BODY = re.compile(r"BODY(?:\.PEEK)?\[(.*?)\](?:<(\d+)\.(\d+)>)?$", re.DOTALL)
_FLAG_KEYS = {
    "SEEN": "\\Seen",
    "ANSWERED": "\\Answered",
    "FLAGGED": "\\Flagged",
    "DELETED": "\\Deleted",
    "DRAFT": "\\Draft",
}


@dataclass
class CannedMessage:
    """``items`` overrides what the server would say of a FETCH item, or adds to it: ``{"ENVELOPE": b"(…)"}``."""

    uid: int
    raw: bytes
    flags: set[str] = field(default_factory=set)
    date: str = "17-Jul-2026 02:44:25 +0000"
    items: dict[str, bytes] = field(default_factory=dict)

    def fetch(self, item: str) -> bytes:
        """``item`` and its value, as they stand in a FETCH response."""
        if item in self.items:
            return item.encode() + b" " + self.items[item]
        body = _BODY.match(item)
        if body:
            return self._fetch_body(body[1], body[2], body[3])
        simple = {
            "UID": str(self.uid),
            "FLAGS": f"({' '.join(sorted(self.flags))})",
            "INTERNALDATE": f'"{self.date}"',
            "RFC822.SIZE": str(len(self.raw)),
        }
        if item == "BODYSTRUCTURE":
            return b"BODYSTRUCTURE " + body_structure(message_from_bytes(self.raw))
        if item not in simple:
            raise NotUnderstood(item)
        return f"{item} {simple[item]}".encode()

    def _fetch_body(self, section: str, start: str | None, size: str | None) -> bytes:
        octets = self.section(section)
        label = f"BODY[{section}]"
        if start is not None and size is not None:
            octets = octets[int(start) : int(start) + int(size)]
            label += f"<{start}>"
        return b"%b {%d}\r\n%b" % (label.encode(), len(octets), octets)

    def section(self, section: str) -> bytes:
        header, blank, text = self.raw.partition(b"\r\n\r\n")
        named = re.fullmatch(r"HEADER\.FIELDS \((.*)\)", section)
        if named:
            return _header_fields(header, named[1].upper().split())
        if section in ("", "HEADER", "TEXT"):
            return {"": self.raw, "HEADER": header + blank, "TEXT": text}[section]
        path, _, mime = section.partition(".MIME") if ".MIME" in section else (section, "", None)
        return _part(message_from_bytes(self.raw), path, mime_header=mime is not None)

    def matches(self, keys: list[Argument], highest: int) -> bool:
        """Whether the message meets all of the SEARCH ``keys``; ``highest`` is the folder's last UID."""
        rest = list(keys)
        verdict = True
        while rest:
            verdict &= self._matches_next(rest, highest)
        return verdict

    def _matches_next(self, rest: list[Argument], highest: int) -> bool:
        key = rest.pop(0)
        if isinstance(key, list):
            return self.matches(key, highest)
        name = text_of(key).upper()
        if name == "NOT":
            return not self._matches_next(rest, highest)
        if name == "UID":
            return self.uid in uids(text_of(rest.pop(0)), highest=highest)
        if name == "HEADER":
            wanted, value = text_of(rest.pop(0)), text_of(rest.pop(0))
            found = message_from_bytes(self.raw).get_all(wanted, [])
            return any(value.casefold() in str(text).casefold() for text in found)
        if name == "ALL":
            return True
        if name in _FLAG_KEYS:
            return _FLAG_KEYS[name] in self.flags
        if name.startswith("UN") and name[2:] in _FLAG_KEYS:
            return _FLAG_KEYS[name[2:]] not in self.flags
        raise NotUnderstood(name)


@dataclass
class CannedFolder:
    """Messages in UID order. ``attributes`` are LIST's: ``\\Sent``, ``\\Noselect``."""

    attributes: tuple[str, ...] = ()
    uid_validity: int = 1
    kept_flags: str = ""  # for good; empty: all of them
    uid_next: int = 1
    messages: list[CannedMessage] = field(default_factory=list)

    def add(
        self, raw: bytes, flags: Iterable[str] = (), uid: int | None = None, **items: bytes
    ) -> CannedMessage:
        """Keep ``raw`` under ``uid``, by default the next. Keywords are FETCH items: ``ENVELOPE=b"(…)"``."""
        message = CannedMessage(uid or self.uid_next, raw, set(flags), items=items)
        self.uid_next = max(self.uid_next, message.uid + 1)
        self.messages.append(message)
        return message

    def take(self, message: CannedMessage) -> CannedMessage:
        """Keep a copy of ``message``, under a UID of this folder."""
        copy = self.add(message.raw, message.flags)
        copy.date, copy.items = message.date, dict(message.items)
        return copy

    @property
    def highest_uid(self) -> int:
        return self.messages[-1].uid if self.messages else 0

    def found(self, keys: list[Argument]) -> list[CannedMessage]:
        """The messages that meet all of the SEARCH ``keys``."""
        CannedMessage(0, b"").matches(
            keys, 0
        )  # not understood is not understood, with no messages too
        highest = self.highest_uid
        return [message for message in self.messages if message.matches(keys, highest)]

    def chosen(self, uid_set: str) -> list[CannedMessage]:
        wanted = uids(uid_set, highest=self.highest_uid)
        return [message for message in self.messages if message.uid in wanted]


def _header_fields(header: bytes, names: list[str]) -> bytes:
    fields = re.findall(rb"(?m)^([^:\s]+)(:(?:.*\n?)(?:[ \t].*\n?)*)", header + b"\r\n")
    kept = [name + rest for name, rest in fields if name.decode().upper() in names]
    return b"".join(kept) + b"\r\n"


def _part(root: Entity, path: str, *, mime_header: bool) -> bytes:
    part = root
    for number in path.split("."):
        if not number.isdigit():
            raise NotUnderstood(path)
        if part.is_multipart():
            part = part.get_payload(int(number) - 1)  # type: ignore[assignment] # a part, by is_multipart
    if mime_header:
        return b"".join(f"{name}: {value}\r\n".encode() for name, value in part.items()) + b"\r\n"
    return _octets(part)


def _octets(part: Entity) -> bytes:
    payload = part.get_payload()
    return payload.encode("ascii", "surrogateescape") if isinstance(payload, str) else b""


def body_structure(part: Entity) -> bytes:
    """BODYSTRUCTURE (RFC 9051 section 7.5.2) with its extension data, for a well-formed message."""
    if part.get_content_maintype() == "message":
        raise NotUnderstood("the BODYSTRUCTURE of a message in a message: give it in `items`")
    parameters = _parameters(part.get_params(failobj=[])[1:])
    disposition = b"NIL"
    if kind := part.get_content_disposition():
        named = part.get_params(failobj=[], header="content-disposition")[1:]
        disposition = b'("%b" %b)' % (kind.encode(), _parameters(named))
    if part.is_multipart():
        children = b"".join(body_structure(child) for child in part.get_payload())  # type: ignore[arg-type]
        subtype = part.get_content_subtype().encode()
        return b'(%b "%b" %b %b NIL NIL)' % (children, subtype, parameters, disposition)
    octets = _octets(part)
    fields = [
        b'"%b"' % part.get_content_maintype().encode(),
        b'"%b"' % part.get_content_subtype().encode(),
        parameters,
        _quoted(part.get("Content-ID")),
        b"NIL",
        _quoted(part.get("Content-Transfer-Encoding", "7bit")),
        b"%d" % len(octets),
    ]
    if part.get_content_maintype() == "text":
        fields.append(b"%d" % octets.count(b"\n"))
    return b"(%b NIL %b NIL NIL)" % (b" ".join(fields), disposition)


def _parameters(pairs: list[tuple[str, str]]) -> bytes:
    if not pairs:
        return b"NIL"
    return b"(%b)" % b" ".join(_quoted(text) for pair in pairs for text in pair)


def _quoted(text: str | None) -> bytes:
    if text is None:
        return b"NIL"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return b'"%b"' % escaped.encode("ascii", "surrogateescape")
