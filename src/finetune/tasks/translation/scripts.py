"""The script that a text is written in."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

LETTERS = 200  # of a text that are looked at
_LATIN = re.compile("[A-Za-z]")
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}  # Japanese has all three in a sentence


# ISO 639 codes of two and three letters of languages that have one script, and not the Latin one.
_WRITTEN_IN = {
    "ARABIC": "ar ara arb fa fas pes ur urd ps pus",
    "BENGALI": "bn ben",
    "CJK": "zh zho ja jpn",
    "CYRILLIC": "ru rus uk ukr bg bul be bel mk mkd",
    "DEVANAGARI": "hi hin mr mar ne nep npi",
    "GREEK": "el ell",
    "HANGUL": "ko kor",
    "HEBREW": "he heb",
    "TAMIL": "ta tam",
    "THAI": "th tha",
}
_SCRIPTS = {code: script for script, codes in _WRITTEN_IN.items() for code in codes.split()}


def script_of(language: str) -> str:
    """Return the script of a language by its code (ru, ru_RU, rus_Cyrl); "" of one that may be in Latin letters."""
    return _SCRIPTS.get(re.split("[-_]", language)[0], "")


def main_script(text: str) -> str:
    """Return the script of most letters at the beginning of the text, as Unicode names it; "" without letters."""
    begin = text[: 4 * LETTERS]
    if begin.isascii():
        return "LATIN" if _LATIN.search(begin) else ""
    letters = [_script(sign) for sign in begin if sign.isalpha()][:LETTERS]
    return Counter(letters).most_common(1)[0][0] if letters else ""


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _TOGETHER.get(name, name)
