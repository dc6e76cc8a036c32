"""From bytes to text: strict, and with a guess when the named encoding is wrong."""

import codecs
import unicodedata
from pathlib import Path

from alloytune.errors import InputError

WESTERN = ("cp1252", "mac_roman", "latin-1")
PUNCTUATION = frozenset("’‘“”–—…•€£°´«»¿¡·§©®™")


def decode_file(path: Path, content: bytes, encoding: str, option: str) -> str:
    """Decode a whole file; raise an InputError naming line, byte and a likely encoding.

    `option` stands before an encoding where a user names one, such as `--encoding `.
    """
    try:
        # utf-8-sig drops the mark that spreadsheets put first, which would become part of a column's name.
        return content.decode("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
    except LookupError:
        raise InputError(
            str(path), f'there is no encoding "{encoding}"', "name one such as utf-8, cp1252 or gb18030"
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"line {line} is not {encoding} (byte 0x{content[error.start]:02x}, {error.start} from the start)"
        raise InputError(str(path), what, _remedy(content, encoding, option)) from None


def guess_encoding(content: bytes) -> str | None:
    """Return the encoding that makes the most plausible text of `content`, None if none does."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if _decodes(content, "utf-8"):
        return "utf-8"
    if content.count(0) > len(content) // 5:
        return "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    chinese = _decodes(content, "gb18030")
    if chinese is not None and _share_common_chinese(chinese) > 0.9:
        return "gb18030"
    decoded = {name: text for name in WESTERN if (text := _decodes(content, name))}
    # max keeps the first of equals, so the order of WESTERN decides ties.
    return max(decoded, key=lambda name: _plausibility(decoded[name])) if decoded else None


def _remedy(content: bytes, encoding: str, option: str) -> str:
    guess = guess_encoding(content)
    if guess is None or guess == encoding:
        return f"name the file's encoding with {option}NAME, or save it as utf-8"
    return f"give {option}{guess}, or save the file as utf-8"


def _decodes(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _share_common_chinese(text: str) -> float:
    """Share of the non-ASCII characters in GB 2312; western bytes misread as gb18030 give rare ones."""
    foreign = "".join(character for character in text if ord(character) > 127)
    return len(foreign.encode("gb2312", "ignore")) / 2 / max(len(foreign), 1)


def _plausibility(text: str) -> float:
    """Share of non-ASCII characters that are usual in text: small letters and typographic punctuation."""
    foreign = [character for character in text if ord(character) > 127]
    usual = sum(unicodedata.category(c) == "Ll" or c in PUNCTUATION for c in foreign)
    controls = sum(unicodedata.category(c) == "Cc" for c in foreign)
    return (usual - 2 * controls) / max(len(foreign), 1)
