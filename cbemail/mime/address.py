"""E-mail addresses: strict where the API takes them, tolerant where a stranger wrote them (RFC 5322 3.4)."""

import re
from typing import NamedTuple

import idna
from msgspec import Struct

from cbemail.mime import limits
from cbemail.mime.charset import decode_octets
from cbemail.mime.words import decode_text, is_one_line, one_line


class Address(Struct, frozen=True):
    """A mailbox of RFC 5322 3.4: an addr-spec, and the display name that may stand before it.

    The domain is kept in Unicode, as people read it. A received address is as the sender wrote it, and may be empty
    where the sender gave a name only.
    """

    name: str | None
    address: str


# ---- strict


_SHAPE = re.compile(
    r"""(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<plain>[^"<>()\[\]\\,;:@]*+))\s*<(?P<address>[^<>]*+)>"""
)
_ATEXT = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
# What nearly all addresses are: good as they stand. No more than what the rules below accept, and in a third of the time.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
_ORDINARY = re.compile(
    rf"(?!.{{255}})(?![^@]{{65}}){_ATOM}(?:\.{_ATOM})*+@"
    rf"(?:{_LABEL.pattern}\.)*(?:[A-Za-z](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?)"
)


def parse_address(text: str) -> Address:
    """``a@b.c``, ``Name <a@b.c>`` or ``"Name" <a@b.c>``, and nothing else.

    Comments, groups, routes, lists, quoted local parts and domain literals are refused rather than interpreted: two
    readers of such a string may disagree on the mailbox it names.

    Raises:
        ValueError: with a sentence for the caller.
    """
    text = text.strip(" ")
    if not text.endswith(">"):
        return check_address(Address(None, text))
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        raise ValueError(
            "Write one address as a@b.c or Name <a@b.c>, with a name that holds punctuation in quotes."
        )
    quoted, plain, address = shape.groups()
    name = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return check_address(Address(name, address))


def check_address(address: Address) -> Address:
    """``address`` in its canonical form: no empty name, the domain as it will be looked up.

    Raises:
        ValueError: with a sentence for the caller.
    """
    name = check_display_name(address.name) if address.name else ""
    if "--" not in address.address and _ORDINARY.fullmatch(address.address):
        return Address(name or None, address.address)
    local, domain = _split(address.address)
    _check_local_part(local)
    canonical = f"{local}@{_check_domain(domain)}"
    if len(envelope_address(canonical).encode()) > limits.ADDRESS:
        raise ValueError(f"An address has at most {limits.ADDRESS} octets.")
    return Address(name or None, canonical)


def check_display_name(name: str) -> str:
    """``name``, stripped. Raises ValueError with a sentence."""
    if len(name) > limits.DISPLAY_NAME:
        raise ValueError(f"A display name has at most {limits.DISPLAY_NAME} characters.")
    if not is_one_line(name):
        raise ValueError("A display name must not hold line breaks or control characters.")
    return name.strip()


def envelope_address(address: str) -> str:
    """``address`` as MAIL FROM and RCPT TO name it: the domain in A-labels (RFC 5891), the local part untouched.

    Raises:
        ValueError: the domain has no such form.
    """
    local, _, domain = address.rpartition("@")
    if domain.isascii():
        return address
    try:
        return f"{local}@{idna.encode(domain, uts46=True, std3_rules=True).decode('ascii')}"
    except idna.IDNAError as exc:
        raise ValueError("The domain is not a valid internationalised name.") from exc


def needs_smtputf8(address: str) -> bool:
    """Whether only a server with SMTPUTF8 (RFC 6531) can be told this address."""
    return not address.rpartition("@")[0].isascii()


def _split(address: str) -> tuple[str, str]:
    if not address or any(c.isspace() or not c.isprintable() for c in address):
        raise ValueError("An address must not be empty, nor hold spaces or control characters.")
    local, at, domain = address.partition("@")
    if not at or "@" in domain:
        raise ValueError("An address has exactly one @.")
    return local, domain


def _check_local_part(local: str) -> None:
    if not all(_ATEXT.fullmatch(atom) for atom in local.split(".")):
        raise ValueError(
            "Before the @ stand letters, digits, signs such as + - _, and single dots."
        )
    if len(local.encode()) > limits.LOCAL_PART:
        raise ValueError(f"Before the @ stand at most {limits.LOCAL_PART} octets.")


def _check_domain(domain: str) -> str:
    """``domain``, mapped as UTS 46 maps it when it is international; a host name, no address literal."""
    try:
        if not domain.isascii():
            domain = idna.uts46_remap(domain, std3_rules=True)
        ascii_form = domain
        if not domain.isascii() or "xn--" in domain.lower():
            ascii_form = idna.encode(domain, uts46=True, std3_rules=True).decode("ascii")
    except idna.IDNAError as exc:
        raise ValueError("After the @ stands no valid internationalised domain.") from exc
    labels = ascii_form.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError("After the @ stands a domain such as example.com.")
    if len(ascii_form) > limits.DOMAIN:
        raise ValueError(f"A domain has at most {limits.DOMAIN} octets.")
    return domain


# ---- tolerant


# The usual mailbox in one step: an address, or <address> behind one quoted string or a phrase without specials.
_ADDRESS = rb"""[^"(),:;<>@\\\[\s]++@[^"(),:;<>@\\\[\s]++"""
_USUAL = re.compile(
    rb"""\s*+(?:(?:"(?P<quoted>[^"\\]*+)"\s*+|(?P<phrase>[^"(),:;<>@\\\[]*+))<(?P<angle>%b)>|(?P<bare>%b))"""
    rb"""\s*+(?:,|\Z)""" % (_ADDRESS, _ADDRESS)
)
# One token of a header field; a quoted string that never ends has an empty `end`.
_TOKEN = re.compile(
    rb"""(?P<text>(?:[^"(),:;<>\\\[]++|\[[^"(),;<>\\\[\]]*+\]?|\\.?)++)"""
    rb"""|"(?P<quoted>(?:[^"\\]++|\\.)*+)(?P<end>"?)"""
    rb"""|(?P<special>[(),:;<>])""",
    re.DOTALL,
)
_PARENTHESIS = re.compile(rb"\\.|[()]", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def read_addresses(raw: bytes) -> list[Address]:
    """The addresses of a received From, To, Cc, … field, in order, as far as they can be made out.

    Groups are flattened, comments serve as names where there is none, encoded words are decoded in names only. What
    has no ``@`` is an address when it is one word (``root``), else a name. Takes time linear in its input, where the
    standard library takes quadratic time or recurses.
    """
    return _Reader(raw[: limits.FIELD]).read()


class _Word(NamedTuple):
    text: bytes
    quoted: bool = False


class _Reader:
    """One pass over a field; `_words`, `_angle` and `_comments` are what was read of the mailbox in hand."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0
        self._addresses: list[Address] = []
        self._start()

    def _start(self) -> None:
        self._words: list[_Word] = []
        self._comments: list[bytes] = []
        self._angle: list[bytes] | None = None
        self._in_angle = False

    def read(self) -> list[Address]:
        for _ in range(limits.ADDRESS_TOKENS):
            if len(self._addresses) >= limits.ADDRESSES:
                return self._addresses
            if self._usual():
                continue
            token = _TOKEN.match(self._raw, self._at)
            if token is None:
                break
            if token.lastgroup == "special":
                self._at += 1
                self._special(token["special"])
            elif token.lastgroup == "end" and not token["end"]:
                # Closed nowhere, so a stray sign; and as no quote follows but escaped ones, tried only once.
                self._at += 1
            else:
                self._at = token.end()
                self._word(token["text"], token["quoted"])
        self._finish()
        return self._addresses

    def _usual(self) -> bool:
        if self._words or self._comments or self._angle is not None:
            return False
        mailbox = _USUAL.match(self._raw, self._at)
        if mailbox is None:
            return False
        self._at = mailbox.end()
        quoted, phrase, angle, bare = mailbox.groups()
        self._add(quoted or phrase or b"", angle or bare)
        return True

    def _word(self, text: bytes | None, quoted: bytes | None) -> None:
        if self._in_angle and self._angle is not None:
            self._angle.append(b'"%s"' % quoted if text is None else b"".join(text.split()))
        elif text is not None:
            self._words.append(_Word(_ESCAPED.sub(rb"\1", text)))
        elif quoted is not None:
            self._words.append(_Word(_ESCAPED.sub(rb"\1", quoted), quoted=True))

    def _special(self, special: bytes) -> None:
        route = self._in_angle and (self._angle or [b""])[0].startswith(b"@")
        if special == b"(":
            self._comment()
        elif special == b"<":
            self._open_angle()
        elif special == b">":
            self._in_angle = False
        elif special == b":":
            if route:  # <@relay:a@b.c>: the route is over (RFC 5322 4.4)
                self._angle = []
            elif not self._in_angle:  # a group's name ends here
                self._start()
        elif special in b",;" and not route:
            self._finish()

    def _open_angle(self) -> None:
        if self._angle and not self._in_angle:  # `<a> <b@c.d>`: the first was part of the name
            self._words.append(_Word(b" ".join(self._angle)))
        self._angle = []
        self._in_angle = True

    def _comment(self) -> None:
        depth = 1
        for mark in _PARENTHESIS.finditer(self._raw, self._at):
            depth += {b"(": 1, b")": -1}.get(mark[0], 0)
            if depth == 0:
                self._comments.append(_ESCAPED.sub(rb"\1", self._raw[self._at : mark.start()]))
                self._at = mark.end()
                return
        # Closed nowhere, so a stray sign, and more may follow: taken out once, not tried one by one.
        self._raw = self._raw[: self._at] + self._raw[self._at :].translate(None, b"()")

    def _finish(self) -> None:
        words, angle = self._words, self._angle
        if words or angle:
            if angle or (angle is not None and not any(b"@" in word.text for word in words)):
                self._add_mailbox(b"".join(word.text for word in words), b"".join(angle))
            else:
                self._add_mailbox(*_split_bare(words))
        self._start()

    def _add_mailbox(self, phrase: bytes, address: bytes) -> None:
        self._add(phrase.strip() or b" ".join(self._comments), address)

    def _add(self, phrase: bytes, address: bytes) -> None:
        name = decode_text(phrase) if phrase else None
        if name or address:
            self._addresses.append(Address(name or None, one_line(decode_octets(address, None))))


def _split_bare(words: list[_Word]) -> tuple[bytes, bytes]:
    """Name and address of a mailbox without angle brackets: the last word with an ``@`` is the address."""
    if len(words) > 1 and words[-2].quoted and words[-1].text.startswith(b"@"):
        name = b"".join(word.text for word in words[:-2])
        return name, b'"%s"%s' % (words[-2].text, words[-1].text.strip())
    before, last = words[:-1], words[-1] if words else _Word(b"")
    pieces = b"@".join(part.strip() for part in last.text.split(b"@")).split()
    if last.quoted or not pieces or (b"@" not in last.text and (before or len(pieces) > 1)):
        return b"".join(word.text for word in words), b""
    at = max((index for index, piece in enumerate(pieces) if b"@" in piece), default=0)
    address = pieces.pop(at)
    return b" ".join([*(word.text for word in before), *pieces]), address
