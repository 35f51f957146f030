"""Which messages are one conversation, by RFC 5256's REFERENCES: who answers whom, then who shares a subject.

An answer of IMAP is a tree; ours is its set of messages, so of the six steps those are left that decide what belongs
together. Pure; the time it takes grows with the messages, whatever their senders wrote.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from unicodedata import normalize

from msgspec import Struct

from cbemail.mime import limits

# ---- base subjects


_BLOB = r"\[[^\[\]]*+\]\s*+"
# With the spaces around it, so that one match is one turn of the RFC's steps 3 and 4.
_LEADER = re.compile(
    rf"\s*+(?:{_BLOB})*+(?:re|fwd?)\s*+(?:{_BLOB})?:\s*+", re.IGNORECASE | re.ASCII
)
_PREFIX = re.compile(rf"\s*+{_BLOB}(?=\S)")
_FORWARD_MARK = "(fwd)"
_FORWARD_OPENS, _FORWARD_ENDS = "[fwd:", "]"


def base_subject(subject: str) -> str:
    """``subject`` without what replies, forwards and mailing lists put around it (RFC 5256 2.1).

    >>> base_subject("Re: [team] FWD[2]: Lunch  on Friday (fwd)")
    'Lunch on Friday'
    """
    text = " ".join(subject[: limits.SUBJECT].split())
    while True:
        text = _without_leaders(_without_trailers(text))
        if not (text.lower().startswith(_FORWARD_OPENS) and text.endswith(_FORWARD_ENDS)):
            return text
        text = text[len(_FORWARD_OPENS) : -len(_FORWARD_ENDS)]


def _without_trailers(text: str) -> str:
    text = text.rstrip()
    while text[-len(_FORWARD_MARK) :].lower() == _FORWARD_MARK:
        text = text[: -len(_FORWARD_MARK)].rstrip()
    return text


def _without_leaders(text: str) -> str:
    start = 0
    while found := _LEADER.match(text, start) or _PREFIX.match(text, start):
        start = found.end()
    return text[start:].lstrip()


def _collated(text: str) -> str:
    """What servers compare by, i;unicode-casemap (RFC 5051), or near to it: casefold() would make one of "ß" and "ss"."""
    return normalize("NFKD", text).lower()


# ---- conversations


class ThreadHeaders(Struct, frozen=True):
    """What tells of one message whom it answers. ``date`` is that of sending, or of arrival where there is none."""

    uid: int
    message_id: str | None
    references: Sequence[str]
    in_reply_to: str | None
    subject: str
    date: datetime

    def parents(self) -> list[str]:
        """The ids of what came before it, the oldest first: In-Reply-To counts where there are no References."""
        ids = list(self.references)
        if not ids and self.in_reply_to is not None:
            ids = [self.in_reply_to]
        if len(ids) > limits.REFERENCES:
            ids = [ids[0], *ids[1 - limits.REFERENCES :]]
        return ids


class Conversation(Struct, frozen=True):
    """Messages that belong together. ``subject`` is the base subject of one that began it."""

    uids: frozenset[int]
    subject: str


def conversations(messages: Iterable[ThreadHeaders]) -> list[Conversation]:
    """The conversations among ``messages``, each message in one of them.

    Messages are taken in the order of their UIDs: of two that claim one Message-ID, the first has it.
    """
    found: list[tuple[set[int], str]] = []
    by_subject: dict[str, set[int]] = {}
    for top in _link(sorted(messages, key=lambda message: message.uid)):
        uids, subject = _describe(top)
        if subject and (others := by_subject.setdefault(_collated(subject), uids)) is not uids:
            others |= uids
        elif uids:  # else only ever mentioned
            found.append((uids, subject))
    return [Conversation(frozenset(uids), subject) for uids, subject in found]


class _Node:
    """A message, or one that is only mentioned, in its place among the others."""

    __slots__ = ("children", "message", "parent")

    def __init__(self, message: ThreadHeaders | None = None) -> None:
        self.message = message
        self.parent: _Node | None = None
        self.children: dict[_Node, None] = {}  # a set that keeps its order

    def attach(self, parent: "_Node") -> None:
        """Become a child of ``parent``, unless that closes a loop, or the chain is longer than any real one."""
        if self.children or self is parent:  # else nothing is below it, and nothing can come round
            above: _Node | None = parent
            for _ in range(limits.THREAD_DEPTH):
                if above is None or above is self:
                    break
                above = above.parent
            if above is not None:
                return
        self.detach()
        self.parent = parent
        parent.children[self] = None

    def detach(self) -> None:
        if self.parent is not None:
            del self.parent.children[self]
            self.parent = None


def _link(messages: Iterable[ThreadHeaders]) -> Iterator[_Node]:
    """Step 1: every message under the one it answers. Gives those, real or not, that answer none."""
    by_id: dict[str, _Node] = {}
    nodes: list[_Node] = []

    def mentioned(message_id: str) -> _Node:
        node = by_id.get(message_id)
        if node is None:
            node = by_id[message_id] = _Node()
            nodes.append(node)
        return node

    for message in messages:
        node = mentioned(message.message_id) if message.message_id is not None else None
        if node is None or node.message is not None:  # without an id of its own
            node = _Node()
            nodes.append(node)
        node.message = message
        before: _Node | None = None
        for parent_id in message.parents():
            ancestor = mentioned(parent_id)
            if before is not None and ancestor.parent is None:
                ancestor.attach(before)
            before = ancestor
        # What it says of itself counts more than what others' chains, which may be cut short, made of it.
        if before is None:
            node.detach()
        elif node.parent is not before:
            node.detach()
            node.attach(before)
    return (node for node in nodes if node.parent is None)


def _describe(top: _Node) -> tuple[set[int], str]:
    """The messages at and below ``top``, and the base subject they go by: that of the first real one (steps 3 to 5)."""
    uids: set[int] = set()
    highest: list[ThreadHeaders] = []
    stack = [(top, True)]
    while stack:
        node, above_is_unreal = stack.pop()
        if node.message is not None:
            uids.add(node.message.uid)
            if above_is_unreal:
                highest.append(node.message)
        unreal = above_is_unreal and node.message is None
        stack.extend((child, unreal) for child in node.children)
    if not highest:
        return uids, ""
    first = min(highest, key=lambda message: (message.date, message.uid))
    return uids, base_subject(first.subject)
