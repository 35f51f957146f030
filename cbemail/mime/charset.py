"""Octets in whatever charset a sender claims -> text. Total: any octets and any claim give clean Unicode."""

import re
from collections.abc import Mapping
from encodings.aliases import aliases

# Senders name the smaller charset and use the larger one, as the WHATWG Encoding Standard found for the web.
_SUPERSETS = {
    "ascii": "utf_8",
    "latin_1": "cp1252",
    "iso8859_9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
    "tis_620": "cp874",
}
_WITHOUT_ALIAS = ("koi8_u", "koi8_t", "cp720", "cp737", "cp856", "cp874", "cp1125", "utf_8_sig")
_NAMES_SEEN_IN_MAIL = {
    "iso_8859_8_i": "iso8859_8",
    "iso_8859_8_e": "iso8859_8",
    "windows_874": "cp874",
    "x_sjis": "cp932",
    "x_gbk": "gb18030",
    "x_euc_jp": "euc_jp",
    "x_mac_roman": "mac_roman",
    "utf8mb4": "utf_8",
}
# Transforms and codecs of the platform are no charsets; UTF-7 hides markup from whoever does not expect it.
_TRANSFORMS = (
    "base64_codec",
    "bz2_codec",
    "hex_codec",
    "quopri_codec",
    "rot_13",
    "uu_codec",
    "zlib_codec",
)
_NEVER = frozenset((*_TRANSFORMS, "mbcs", "oem", "utf_7"))


def _usable_codecs() -> Mapping[str, str]:
    names = {alias: codec for alias, codec in aliases.items() if codec not in _NEVER}
    names |= {codec: codec for codec in [*names.values(), *_WITHOUT_ALIAS]}
    names |= _NAMES_SEEN_IN_MAIL
    return {name: _SUPERSETS.get(codec, codec) for name, codec in names.items()}


# A closed table rather than `codecs.lookup`, which imports by name and remembers every name it did not find.
_CODECS = _usable_codecs()
_LONGEST_NAME = max(map(len, _CODECS))
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf_8_sig"),
    (b"\xff\xfe", "utf_16"),
    (b"\xfe\xff", "utf_16"),
)
_UNFIT = re.compile("[\0\ud800-\udfff]")  # JSON cannot carry lone surrogates, PostgreSQL no NUL
_LINE_ENDS = re.compile(r"\r\n?")


def decode_charset(data: bytes, charset: str | None) -> str:
    """A body's octets as text with ``\\n`` line ends: as declared, else UTF-8, else Windows-1252.

    Never fails and never guesses by statistics: detectors take Latin-1 for Central European and Cyrillic for Thai.
    """
    text = decode_octets(data, charset)
    if "\r" in text:
        text = _LINE_ENDS.sub("\n", text)
    return _UNFIT.sub("\ufffd", text)


def decode_octets(data: bytes, charset: str | None) -> str:
    """The choice of charset alone; the text may hold any character, NUL and surrogates included."""
    if charset is None and data.isascii():
        return data.decode("ascii")
    codec = _codec_of(charset)
    for mark, marked in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            codec = marked
    for candidate in (codec, "utf_8"):
        if candidate is not None:
            try:
                return data.decode(candidate)
            except UnicodeDecodeError:
                continue
    if codec is None or codec.startswith("utf_8"):
        return _decode_damaged(data)
    return data.decode(codec, "replace")


def _codec_of(charset: str | None) -> str | None:
    if charset is None or len(charset) > _LONGEST_NAME:
        return None
    return _CODECS.get(_SEPARATORS.sub("_", charset.lower()).strip("_"))


def _decode_damaged(data: bytes) -> str:
    """What is no valid UTF-8: cut or damaged UTF-8 if most sequences are whole, else Windows-1252."""
    text = data.decode("utf_8", "replace")
    damaged = text.count("\ufffd")
    whole = len(text) - len(text.encode("ascii", "ignore")) - damaged
    return text if whole > damaged else data.decode("cp1252", "replace")
