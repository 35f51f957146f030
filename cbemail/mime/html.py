"""HTML of received mail, made safe to show and turned into text; and text turned into HTML."""

import re
from collections.abc import Mapping
from html import escape, unescape
from urllib.parse import unquote

import nh3

from cbemail.mime import limits
from cbemail.mime.markup import BLOCKS, TAGS, Tag, balance, read_attributes, read_markup

# ---- for display


_ATTRIBUTES = {
    "*": {"style", "dir", "lang", "title", "align", "valign", "bgcolor", "width", "height"},
    "a": {"href"},
    "img": {"src", "alt", "border", "hspace", "vspace"},
    "table": {"border", "cellpadding", "cellspacing"},
    "td": {"colspan", "rowspan", "nowrap"},
    "th": {"colspan", "rowspan", "nowrap"},
    "col": {"span"},
    "colgroup": {"span"},
    "font": {"color", "face", "size"},
    "hr": {"size", "color", "noshade"},
    "ol": {"start", "type"},
    "ul": {"type"},
    "li": {"value", "type"},
}
# Nothing that puts an element over the page around it, and nothing that is there to load a file.
_STYLE_NAMES = """
    background background-color border border-collapse border-color border-radius border-spacing border-style
    border-width box-sizing caption-side clear color direction display empty-cells float font font-family font-size
    font-style font-variant font-weight height letter-spacing line-height list-style-position list-style-type margin
    max-height max-width min-height min-width overflow-wrap padding table-layout text-align text-decoration
    text-indent text-transform unicode-bidi vertical-align white-space width word-break word-spacing word-wrap"""
_SIDED_NAMES = (
    "border-{}",
    "border-{}-color",
    "border-{}-style",
    "border-{}-width",
    "margin-{}",
    "padding-{}",
)
_STYLES = frozenset(_STYLE_NAMES.split()).union(
    name.format(side) for name in _SIDED_NAMES for side in ("top", "right", "bottom", "left")
)
_FUNCTION = re.compile(r"([a-z-]*)\(", re.IGNORECASE)
_SAFE_FUNCTIONS = frozenset(("rgb", "rgba", "hsl", "hsla", "calc"))
_LINK_TAG = '<a target="_blank" rel="noopener noreferrer nofollow" '
_LINK = re.compile(r"https?://|mailto:", re.IGNORECASE)
_DATA_IMAGE = re.compile(
    r"data:image/(?:png|gif|jpe?g|webp);base64,[A-Za-z0-9+/=]*+", re.IGNORECASE
)
_IGNORED_IN_URLS = str.maketrans("", "", "\t\n\r")
_CONTROLS_AND_SPACE = "".join(map(chr, range(33)))


def sanitise(html: str, *, cid_urls: Mapping[str, str]) -> str:
    """``html`` as it may be shown inside another page: no script, and nothing that loads without a click.

    Links keep http, https and mailto and open elsewhere. Images are the message's own: ``cid:`` is replaced by what
    ``cid_urls`` has for the Content-ID (without angle brackets), small ``data:`` images stay, remote ones lose their
    address. What is larger than `limits.HTML` is shown as its text. Idempotent.
    """
    if len(html) > limits.HTML:
        return text_to_html(html_to_text(html))
    own_urls = frozenset(cid_urls.values())

    def keep(_tag: str, attribute: str, value: str) -> str | None:
        if attribute == "style":
            return _safe_style(value)
        if attribute == "href":
            return _safe_link(value)
        if attribute == "src":
            return value if value in own_urls else _safe_image(value, cid_urls)
        return value

    clean = nh3.clean(
        balance(html),
        tags=set(TAGS),
        attributes=_ATTRIBUTES,
        attribute_filter=keep,
        filter_style_properties=set(_STYLES),
        link_rel=None,
        url_schemes={"http", "https", "mailto", "cid", "data"},
    )
    # nh3 could add these, in an order that depends on what stood there. In its output `<a ` is a tag and no text.
    return clean.replace("<a ", _LINK_TAG)


def _safe_link(url: str) -> str | None:
    url = url.strip(_CONTROLS_AND_SPACE).translate(_IGNORED_IN_URLS)
    return url if _LINK.match(url) else None


def _safe_image(url: str, cid_urls: Mapping[str, str]) -> str | None:
    url = url.strip(_CONTROLS_AND_SPACE)
    if url[:4].lower() == "cid:":
        content_id = url[4:]
        return cid_urls.get(content_id) or cid_urls.get(unquote(content_id))
    if len(url) <= limits.DATA_IMAGE:
        url = "".join(url.split())
        return url if _DATA_IMAGE.fullmatch(url) else None
    return None


def _safe_style(style: str) -> str | None:
    """The declarations that call no function but for colours and sums: `url()` has many spellings, all of them calls
    whose name, escaped as it may be, does not end in one of those.

    nh3 then drops the properties that are not listed, and what does not parse.
    """
    safe = [each for each in style.split(";") if _is_safe_declaration(each)]
    return ";".join(safe) if safe or not style else None


def _is_safe_declaration(declaration: str) -> bool:
    name, _, value = declaration.partition(":")
    functions = _FUNCTION.findall(value)
    return name.strip().lower() in _STYLES and _SAFE_FUNCTIONS.issuperset(map(str.lower, functions))


# ---- to and from text


_PARAGRAPH_NAMES = "p h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre figure section"
_PARAGRAPHS = frozenset(_PARAGRAPH_NAMES.split())
_LINES = BLOCKS | {"tr", "caption"}
_SPACES = re.compile(r"[ \t\n\r\f]+")
_ENDLESS_REFERENCE = re.compile(r"&#[0-9]{9,}+;?")  # no character, and too long a number for int()
_RULE = "-" * 20


def text_to_html(text: str) -> str:
    """``text`` as HTML that shows it line by line."""
    lines = escape(text, quote=False).replace("  ", "&nbsp; ").split("\n")
    return "<div>" + "<br>\n".join(lines) + "</div>"


def html_to_text(html: str) -> str:
    """The text of ``html``, for a reader: paragraphs, lists and quotes laid out, links followed by their address.

    Needs no tree, so it takes linear time whatever the nesting. What lies beyond `limits.TEXT` is left out.
    """
    writer = _TextWriter()
    for token in read_markup(html[: limits.TEXT]):
        if isinstance(token, str):
            writer.text(_unescape(token))
        elif token.closes:
            writer.close(token.name)
        else:
            writer.open(token)
    return writer.finish()


def _unescape(text: str) -> str:
    return unescape(_ENDLESS_REFERENCE.sub("\ufffd", text)) if "&" in text else text


class _TextWriter:
    """Collects a line at a time; a blank line is owed between paragraphs, and paid when text follows."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._quote = ""  # what marks the last line as quoted
        self._lead = ""  # the bullet or number of a list item
        self._blank = False
        self._preformatted = 0
        self._quotes = 0
        self._lists: list[int | None] = []  # the next number of an ol, None for an ul
        self._link: tuple[str, list[str]] | None = None  # its address, and its text so far

    def text(self, text: str) -> None:
        if self._link is not None:
            self._link[1].append(text)
        if not self._preformatted:
            self._line.append(text)
            return
        first, *rest = text.split("\n")
        self._line.append(first)
        for line in rest:
            self._new_line()
            self._line.append(line)

    def open(self, tag: Tag) -> None:
        name = tag.name
        if name in _LINES:
            self._break(blank=name in _PARAGRAPHS and not self._lists)
        if name == "br":
            self._new_line()
        elif name in ("td", "th") and not self._preformatted:
            self._line.append(" ")
        elif name == "a":
            self._end_link()
            self._link = (_unescape(read_attributes(tag.attributes).get("href", "")).strip(), [])
        elif name == "img":
            self.text(_unescape(read_attributes(tag.attributes).get("alt", "")))
        elif name == "hr":
            self._line.append(_RULE)
            self._break()
        else:
            self._enter(name)

    def close(self, name: str) -> None:
        if name == "a":
            self._end_link()
        elif name in _LINES:
            self._leave(name)
            self._break(blank=name in _PARAGRAPHS and not self._lists)

    def finish(self) -> str:
        self._end_link()
        self._break()
        return "\n".join(self._lines)

    def _enter(self, name: str) -> None:
        if name in ("ul", "ol"):
            self._lists.append(1 if name == "ol" else None)
        elif name == "blockquote":
            self._quotes += 1
        elif name == "pre":
            self._preformatted += 1
        elif name == "li":
            self._lead = self._bullet()

    def _leave(self, name: str) -> None:
        if name in ("ul", "ol") and self._lists:
            self._break()
            self._lists.pop()
        elif name == "blockquote" and self._quotes:
            self._break()
            self._quotes -= 1
        elif name == "pre" and self._preformatted:
            self._break()
            self._preformatted -= 1

    def _bullet(self) -> str:
        number = self._lists[-1] if self._lists else None
        if number is not None:
            self._lists[-1] = number + 1
        indent = "  " * (min(len(self._lists), limits.QUOTE_DEPTH) - 1)
        return f"{indent}- " if number is None else f"{indent}{number}. "

    def _end_link(self) -> None:
        if self._link is None:
            return
        address, texts = self._link
        self._link = None
        text = "".join(texts).strip()
        shown = address.partition(":")[2].lstrip("/") if _LINK.match(address) else ""
        if text and shown.rstrip("/") and shown.rstrip("/") not in text:
            self._line.append(f" ({address if address[:1] in 'hH' else shown})")

    def _new_line(self) -> None:
        self._break(blank=not "".join(self._line).strip())

    def _break(self, *, blank: bool = False) -> None:
        """End the line, if there is anything on it; ``blank``: a blank line is owed before the next."""
        written = "".join(self._line)
        line = written if self._preformatted else _SPACES.sub(" ", written).strip(" ")
        line = line.replace("\xa0", " ").rstrip()
        if line:
            quote = "> " * min(self._quotes, limits.QUOTE_DEPTH)
            if self._blank and self._lines:
                self._lines.append(min(quote, self._quote, key=len).rstrip())
            self._quote = quote
            self._lines.append(quote + self._lead + line)
            self._lead = ""
            self._blank = False
        elif "\xa0" in written:  # a no-break space alone on a line is there to keep it
            blank = True
        self._blank = self._blank or blank
        self._line = []
