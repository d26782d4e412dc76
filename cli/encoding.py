"""Output streams that lack a character, such as a Windows redirect in cp1252.

Then κ is written as `kappa` and → as `->`, instead of an error after the work is done.
"""

import codecs
import io
import sys
import unicodedata

HANDLER = "ela_probe.transliterate"
SPELLED = {
    "→": "->", "←": "<-", "–": "-", "—": "-", "−": "-", "•": "*", "·": "*", "×": "x", "±": "+/-",
    "≤": "<=", "≥": ">=", "≈": "~", "√": "sqrt", "∞": "inf", "…": "...", "’": "'", "‘": "'",
    "“": '"', "”": '"', "─": "-", "━": "-", "│": "|", "╸": "-", "╺": "-",
}  # fmt: skip


def transliterate(character: str) -> str:
    """An ASCII spelling of a character: `kappa` of κ, `e` of é, `?` where there is none.

    >>> "".join(map(transliterate, "κ → é"))
    'kappa -> e'
    """
    if character in SPELLED:
        return SPELLED[character]
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if plain:
        return plain
    name = unicodedata.name(character, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        letter = name.partition(" LETTER ")[2].partition(" ")[0].lower()
        return letter.capitalize() if " CAPITAL " in name else letter
    if name.startswith("BOX DRAWINGS"):
        return "+"
    return "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(map(transliterate, lost)), error.end


def tolerate_missing_characters() -> None:
    """Let stdout and stderr spell out what their encoding lacks."""
    codecs.register_error(HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
