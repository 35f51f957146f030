"""The parts of a message template. What is the same for everybody is encoded once, when it is first asked for."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from msgspec import structs

from cbemail.errors import InvalidRequest
from cbemail.mime.compose import EncodedFile, Leaf, encode_file, text_leaf
from cbemail.mime.draft import Attachment, check_filename, content_type_of
from cbemail.mime.fields import check_field_value, encode_field
from cbemail.mime.html import html_to_text
from cbemail.outbox.expressions import InvalidVariable
from cbemail.outbox.template import LONGEST, Template

LONGEST_LINE = 32 * 1024  # characters of a header field; servers take about 100 KB for all

_ANY_TYPE = "application/octet-stream"


class Line:
    """A header field."""

    def __init__(self, place: str, name: str, source: str, pointer: str) -> None:
        self.name = name
        self.template = compile_at(pointer, source, longest=LONGEST_LINE)
        self._place = place
        self._field: bytes | None = None

    def text(self, variables: Mapping[str, Any]) -> str:
        """Raises TemplateError."""
        try:
            return check_field_value(self.template.render(variables))
        except ValueError as exc:
            raise _unfit(self._place, exc) from exc

    def encoded(self, variables: Mapping[str, Any]) -> bytes:
        """The field. Raises TemplateError."""
        if self._field is not None:
            return self._field
        try:
            field = encode_field(self.name, self.template.render(variables))
        except ValueError as exc:
            raise _unfit(self._place, exc) from exc
        if self.template.is_constant:
            self._field = field
        return field


class Body:
    """The text or the HTML. Without a template it is the text of the recipient's own HTML."""

    def __init__(self, subtype: str, template: Template | None) -> None:
        self._subtype = subtype
        self._template = template
        self._leaf: Leaf | None = None

    def render(self, variables: Mapping[str, Any], html: str | None) -> str:
        """Raises TemplateError."""
        return (
            html_to_text(html or "") if self._template is None else self._template.render(variables)
        )

    def leaf(self, text: str) -> Leaf:
        if self._leaf is not None:
            return self._leaf
        leaf = text_leaf(self._subtype, text)
        if self._template is not None and self._template.is_constant:
            self._leaf = leaf
        return leaf


class File:
    """An attachment: its content encoded once, under a name that may be each recipient's own."""

    def __init__(self, index: int, attachment: Attachment) -> None:
        self.attachment = attachment
        pointer = f"#/attachments/{index}/filename"
        self.template = compile_at(pointer, attachment.filename, longest=LONGEST_LINE)
        self._place = f"name of attachment {index + 1}"
        self._leaves: dict[bool, Leaf] = {}

    def sample(self) -> Attachment:
        """The attachment under what is known of its name."""
        value = "" if self.template.is_constant else "x"
        return structs.replace(self.attachment, filename=self.template.literal + value)

    def text(self, variables: Mapping[str, Any]) -> str:
        """The file name. Raises TemplateError."""
        name = self.template.render(variables)
        try:
            check_filename(name)
        except ValueError as exc:
            raise _unfit(self._place, exc) from exc
        return name

    def leaf(self, variables: Mapping[str, Any], *, inline: bool) -> Leaf:
        """Raises TemplateError."""
        if inline in self._leaves:
            return self._leaves[inline]
        if self.template.is_constant:
            leaf = self._leaves[inline] = self._encoded.leaf(self.attachment, inline=inline)
            return leaf
        named = structs.replace(self.attachment, filename=self.text(variables))
        encoded = self._encoded
        if not named.content_type:
            content_type = content_type_of(named)
            if content_type == "message/rfc822":  # is encoded in its own way
                encoded = encode_file(named)
            else:
                encoded = encoded._replace(content_type=content_type)
        return encoded.leaf(named, inline=inline)

    @cached_property
    def _encoded(self) -> EncodedFile:
        if self.attachment.content_type or self.template.is_constant:
            return encode_file(self.attachment)
        return encode_file(structs.replace(self.attachment, content_type=_ANY_TYPE))


def _unfit(place: str, error: ValueError) -> InvalidVariable:
    return InvalidVariable(f"The {place} cannot be made of these variables. {error}")


def compile_at(
    pointer: str, source: str, *, html: bool = False, longest: int = LONGEST
) -> Template:
    try:
        return Template.compile(source, html=html, longest=longest)
    except ValueError as exc:
        raise InvalidRequest.at(in_template(pointer), str(exc)) from exc


def in_template(pointer: str) -> str:
    return f"#/template{pointer[1:]}"
