"""The arguments of an IMAP command, taken apart by rules of this server's own, not by the product's."""

from __future__ import annotations

import re


class NotUnderstood(Exception):
    """The command is wrong, or beyond this server: answered BAD, so that no test passes by accident."""


_TOKEN = re.compile(
    rb'\s*(?:\{(\d+)\+?\}\r\n|"((?:[^"\\]|\\.)*)"|(\()|(\))|((?:[^\s()"\[]|\[[^\]]*\])+))',
    re.DOTALL,
)

Argument = (
    str | bytes | list["Argument"]
)  # an atom or quoted string, a literal, a parenthesised list


def parse_arguments(text: bytes) -> list[Argument]:
    """The arguments of a command, literals in place. A literal stays ``bytes``, the rest is text."""
    stack: list[list[Argument]] = [[]]
    position = 0
    while text[position:].strip():
        token = _TOKEN.match(text, position)
        if token is None:
            raise NotUnderstood(text[position:].decode("ascii", "replace"))
        literal, quoted, opening, closing, atom = token.groups()
        position = token.end()
        if literal is not None:
            stack[-1].append(text[position : position + int(literal)])
            position += int(literal)
        elif opening:
            stack.append([])
        elif closing and len(stack) > 1:
            finished = stack.pop()
            stack[-1].append(finished)
        elif closing:
            raise NotUnderstood("a parenthesis too many")
        elif quoted is not None:
            stack[-1].append(re.sub(r"\\(.)", r"\1", quoted.decode()))
        else:
            stack[-1].append(atom.decode())
    if len(stack) > 1:
        raise NotUnderstood("a parenthesis too few")
    return stack[0]


def text_of(argument: Argument) -> str:
    """An astring (RFC 9051 section 9), however it was sent."""
    if isinstance(argument, list):
        raise NotUnderstood("a list, where a string belongs")
    return argument.decode() if isinstance(argument, bytes) else argument


def list_of(argument: Argument) -> list[Argument]:
    return argument if isinstance(argument, list) else [argument]


def uids(uid_set: str, *, highest: int) -> set[int]:
    """The members of a sequence-set (RFC 9051 section 9); ``*`` is ``highest``."""
    members: set[int] = set()
    for piece in uid_set.split(","):
        if not re.fullmatch(r"(\d+|\*)(:(\d+|\*))?", piece):
            raise NotUnderstood(uid_set)
        first, _, last = piece.replace("*", str(highest)).partition(":")
        low, high = sorted((int(first), int(last or first)))
        members.update(range(low, min(high, max(highest, low)) + 1))
    return members
