"""Mail merge: one template and many recipients, each with a message of their own.

What all messages share is encoded once: sender, constant fields and bodies, the contents of attachments. What a
recipient adds goes the way of every single message (`mime/compose`), so no value can add a line or a field to it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from cbemail.errors import FieldError, InvalidRequest
from cbemail.mime.address import Address, needs_smtputf8
from cbemail.mime.compose import Composed, Header, Leaf, Part, assemble, is_shown, text_leaf, tree
from cbemail.mime.draft import Draft, check_draft, check_message_id, pointer_to_header
from cbemail.mime.fields import encode_addresses
from cbemail.mime.html import html_to_text
from cbemail.outbox.content import MessageTemplate, Recipient
from cbemail.outbox.expressions import HALF_CHARACTER, MissingVariable, TemplateError, TooMuch
from cbemail.outbox.merge_parts import Body, File, Line, compile_at, in_template
from cbemail.outbox.template import LONGEST, MARK, Template

_CODES = {MissingVariable: "missing-variable", TooMuch: "too-large"}
_SCALARS = frozenset((str, int, float, bool, type(None)))
_GROWTH = 6  # `'` is six characters in HTML
_AROUND = 500  # octets of a usual header, or of what stands around a part
_SAMPLE_ID = f"<{'0' * 32}@example.com>"
_SAMPLE_DATE = datetime(2000, 1, 1, tzinfo=UTC)


class MergeError(Exception):
    """No message can be made for this recipient. ``detail`` is a sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code  # missing-variable, invalid-variables or too-large
        self.detail = detail


class RenderedMessage(Struct, frozen=True):
    """A message as a dry run shows it. ``attachments`` are file names; ``size`` is in octets."""

    index: int
    to: list[Address]
    cc: list[Address]
    bcc: list[Address]
    subject: str
    text: str | None
    html: str | None
    attachments: list[str]
    size: int


class Merge:
    """The messages of one template. ``static_octets`` is about the size of one, before it is made.

    Raises:
        InvalidRequest: the template is wrong; the pointer is that of `POST /api/send/batch`.
    """

    def __init__(self, template: MessageTemplate) -> None:
        self._subject = Line("subject", "Subject", template.subject, "#/subject")
        headers = [
            Line(f"header {name}", name, value, pointer_to_header(name))
            for name, value in template.headers.items()
        ]
        self._files = [File(index, each) for index, each in enumerate(template.attachments)]
        html = None if template.html is None else compile_at("#/html", template.html, html=True)
        text = None if template.text is None else compile_at("#/body", template.text)
        _check_constants(template, self._subject, headers, self._files)

        self._sender = encode_addresses("From", [template.sender])
        self._reply_to = (
            encode_addresses("Reply-To", template.reply_to) if template.reply_to else b""
        )
        self._smtputf8 = _need_smtputf8([template.sender, *template.reply_to])
        self._headers = headers
        self._html = None if html is None else Body("html", html)
        if text is None:
            text = Template.compile("", html=False) if html is None else html.converted(_to_text)
        self._text = Body("plain", text)
        own: list[Line | File] = [self._subject, *headers, *self._files]
        self._lines = [line for line in own if not line.template.is_constant]
        self._bodies = [each for each in (text, html) if each is not None and not each.is_constant]
        self._learn_names()
        self.static_octets = _estimate(template)

    def _learn_names(self) -> None:
        """What `check` looks for, so that it need not render."""
        templates = [*(line.template for line in self._lines), *self._bodies]
        slots = [slot for template in templates for slot in template.slots]
        self._required = list(dict.fromkeys(slot.name for slot in slots if slot.default is None))
        self._used = list(
            dict.fromkeys(slot.name for template in self._bodies for slot in template.slots)
        )
        self._growth = _GROWTH * max((len(template.slots) for template in self._bodies), default=0)
        self._liquid = [template for template in self._bodies if template.is_liquid]

    def check(self, recipient: Recipient) -> None:
        """Find out, as cheaply as it can be, whether `render` would make a message. Raises MergeError."""
        variables = recipient.variables
        try:
            missing = [name for name in self._required if name not in variables]
            if missing:
                raise MissingVariable(*missing)
            for line in self._lines:
                line.text(variables)
            for template in self._liquid if self._is_usual(variables) else self._bodies:
                template.render(variables)
        except (TemplateError, UnicodeEncodeError) as exc:
            raise _merge_error(exc) from exc

    def _is_usual(self, variables: Mapping[str, Any]) -> bool:
        """Whether the values cannot but make bodies, where these are made of nothing else."""
        size = 0
        for name in self._used:
            value = variables.get(name)
            if type(value) is str:
                size += len(value)
                if not value.isascii():
                    value.encode()
            elif type(value) not in _SCALARS:
                return False
        return size * self._growth <= LONGEST

    def render(self, recipient: Recipient, *, message_id: str, date: datetime) -> Composed:
        """The recipient's message, as `compose` would make it.

        Raises:
            MergeError: the variables do not make one.
            InvalidRequest: ``message_id`` is none.
        """
        check_message_id(message_id)
        variables = recipient.variables
        try:
            header = Header(
                sender=self._sender,
                to=recipient.to,
                cc=recipient.cc,
                reply_to=self._reply_to,
                subject=self._subject.encoded(variables),
                date=date,
                message_id=message_id,
                more=b"".join(each.encoded(variables) for each in self._headers),
            ).write()
            content = assemble(header, self._parts(variables), message_id)
        except (TemplateError, UnicodeEncodeError) as exc:
            raise _merge_error(exc) from exc
        except ValueError as exc:
            raise MergeError("invalid-address", str(exc)) from exc
        smtputf8 = self._smtputf8 or _need_smtputf8(recipient.to) or _need_smtputf8(recipient.cc)
        return Composed(content, message_id, smtputf8)

    def preview(
        self, recipient: Recipient, *, index: int = 0, bcc: Sequence[Address] = ()
    ) -> RenderedMessage:
        """The recipient's message as people read it. Raises MergeError."""
        composed = self.render(recipient, message_id=_SAMPLE_ID, date=_SAMPLE_DATE)
        variables = recipient.variables
        html = None if self._html is None else self._html.render(variables, None)
        return RenderedMessage(
            index=index,
            to=recipient.to,
            cc=recipient.cc,
            bcc=list(bcc),
            subject=self._subject.text(variables),
            text=self._text.render(variables, html),
            html=html,
            attachments=[file.text(variables) for file in self._files],
            size=len(composed.content),
        )

    def _parts(self, variables: Mapping[str, Any]) -> Part:
        html = html_leaf = None
        if self._html is not None:
            html = self._html.render(variables, None)
            html_leaf = self._html.leaf(html)
        text = self._text.leaf(self._text.render(variables, html))
        inline: list[Leaf] = []
        files: list[Leaf] = []
        for file in self._files:
            shown = is_shown(file.attachment, html)
            (inline if shown else files).append(file.leaf(variables, inline=shown))
        return tree(text, html_leaf, inline, files)


# ---- what is said about a template, and to a recipient's variables


def _merge_error(error: TemplateError | UnicodeEncodeError) -> MergeError:
    if isinstance(error, TemplateError):
        return MergeError(_CODES.get(type(error), "invalid-variables"), error.detail)
    return MergeError("invalid-variables", HALF_CHARACTER)


def _check_constants(
    template: MessageTemplate, subject: Line, headers: Sequence[Line], files: Sequence[File]
) -> None:
    """All the rules a single message is held to, as far as they can be told without a recipient."""
    draft = Draft(
        sender=template.sender,
        message_id=_SAMPLE_ID,
        date=_SAMPLE_DATE,
        reply_to=template.reply_to,
        subject=subject.template.literal,
        text=template.text,
        html=template.html,
        attachments=[file.sample() for file in files],
        headers={line.name: line.template.literal for line in headers},
    )
    try:
        check_draft(draft)
    except InvalidRequest as exc:
        errors = [FieldError(in_template(pointer), detail) for pointer, detail in exc.errors]
        raise InvalidRequest(exc.detail, errors) from exc


def _need_smtputf8(addresses: Iterable[Address]) -> bool:
    return any(needs_smtputf8(address.address) for address in addresses)


# An address that begins with a value is taken for a link, which is told by its scheme. Nobody writes it so.
_ASSUMED = "hTTps://"
_LINK_OF_VALUE = re.compile(rf"""(\bhref\s*=\s*["']?\s*)(?={MARK})""", re.IGNORECASE)


def _to_text(marked: str) -> str:
    """The text of an HTML template in which `MARK`s stand for values."""
    return html_to_text(_LINK_OF_VALUE.sub(rf"\1{_ASSUMED}", marked)).replace(_ASSUMED, "")


def _estimate(template: MessageTemplate) -> int:
    html, text = template.html or "", template.text
    bodies = [html, html if text is None else text]
    octets = sum(len(text_leaf("plain", body).body) for body in bodies)
    files = sum(len(file.content) * 7 // 5 + _AROUND for file in template.attachments)
    return _AROUND + octets + files
