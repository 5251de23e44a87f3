"""The script that a text is written in."""

import unicodedata
from collections import Counter
from functools import lru_cache

LETTERS = 200  # of a text that are looked at
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}  # Japanese has all three in a sentence


def main_script(text: str) -> str:
    """Return the script of most letters at the beginning of the text, as Unicode names it; "" without letters."""
    letters = [_script(sign) for sign in text[: 4 * LETTERS] if sign.isalpha()][:LETTERS]
    return Counter(letters).most_common(1)[0][0] if letters else ""


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _TOGETHER.get(name, name)
