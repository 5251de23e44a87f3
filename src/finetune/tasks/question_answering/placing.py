"""Find where an answer stands in its context, whatever its offset says: at an equal text, or nowhere."""

import re
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from finetune.data.values import Unusable

REPAIR_DISTANCE = 50  # characters around a wrong offset in which the answer is looked for first
GONE = "the answer is not in the context"
TRIMMED = "white space or invisible characters around an answer; taken off"
# What stands around a text unseen: white space, and the zero-width space, word joiner and byte order mark.
_AROUND = "".join(chr(i) for i in range(0x3001) if chr(i).isspace()) + "\u200b\u2060\ufeff"
_JOINERS = "\u200c\u200d"  # inside Persian words, and between the parts of an emoji
# Scripts that write no space between words: Thai, Lao, Myanmar, Khmer, kana, Chinese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007"
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def bare(text: str) -> str:
    """Return the text without the white space and zero-width characters around it."""
    return text.strip(_AROUND)


def placed(context: str, text: str, start: int | None, repairs: list[str]) -> tuple[str, int]:
    """Return the answer as it is written in the context, without white space around it, and where it stands there.

    A start of None means that no offset is given. What was mended is appended to `repairs`. Raises: Unusable where the
    answer isn't found, or could be meant in several places.
    """
    trimmed = bare(text)
    if trimmed != text:
        repairs.append(TRIMMED)
    if start is not None and start >= 0:
        moved = start + text.index(trimmed)
        if context.startswith(trimmed, moved):
            return trimmed, moved
        if _initial(trimmed, 0) in (_initial(context, start), _initial(context, moved)):
            for begin, stop in _folded(context).places(trimmed):
                if begin in (start, moved):
                    return _as_written(context[begin:stop], trimmed, repairs), begin
        if (counted := _counted(context, trimmed, start, repairs)) is not None:
            return trimmed, counted
    begin, stop = _elsewhere(context, trimmed, start, repairs)
    return _as_written(context[begin:stop], trimmed, repairs), begin


def _counted(context: str, text: str, start: int, repairs: list[str]) -> int | None:
    """Return where the answer stands if its offset counts other units than characters."""
    for unit, encoding, width in (("UTF-16 units", "utf-16-le", 2), ("bytes", "utf-8", 1)):
        counted = len(context.encode(encoding)[: start * width].decode(encoding, "ignore"))
        if counted != start and context.startswith(text, counted):
            repairs.append(f"answer_start counted {unit}")
            return counted
    return None


def _elsewhere(context: str, text: str, start: int | None, repairs: list[str]) -> tuple[int, int]:
    """Return start and end of the whole words that are meant: the nearest near by, or the only ones. Raises: Unusable.

    An offset of 0 that doesn't hold is what files write that know none, as are negative ones: they are near to nothing.
    """
    off = _named(start, len(context))
    given = start or 0
    for places in _readings(context, text) if given > 0 else ():
        near = sorted((abs(begin - given), begin, stop) for begin, stop in places if _is_whole(context, begin, stop))
        near = [place for place in near if place[0] <= REPAIR_DISTANCE]
        if len(near) > 1 and near[0][0] == near[1][0]:
            raise Unusable(f"{off}, and the answer stands at two places equally near")
        if near:
            repairs.append(f"{off}; the answer stands near by")
            return near[0][1:]
    is_there = False
    for places in _readings(context, text):
        whole = [place for place in places if _is_whole(context, *place)]
        if len(whole) > 1:
            raise Unusable(f"{off}, and the answer stands at several places")
        if whole:
            repairs.append(f"{off}; the answer stands at one place")
            return whole[0]
        is_there = is_there or bool(places)
    raise Unusable("the answer stands inside other words alone" if is_there else GONE)


def _readings(context: str, text: str) -> Iterator[list[tuple[int, int]]]:
    """Yield the places (start, end) where the answer stands as it is, then those where it stands read loosely."""
    yield [(i, i + len(text)) for i in _occurrences(context, text)]
    yield _folded(context).places(text)


def _named(start: int | None, length: int) -> str:
    """Return what is wrong with the offset."""
    if start is None:
        return "no answer_start"
    if start < 0:
        return "answer_start is negative"
    if start == 0:
        return "answer_start is 0"
    return "answer_start is beyond the context" if start >= length else "answer_start was off"


def _is_whole(text: str, start: int, stop: int) -> bool:
    return not (_is_cut(text, start) or _is_cut(text, stop))


def _is_cut(text: str, i: int) -> bool:
    """Return whether an edge before character i goes through a word, a number or a character with its marks."""
    if not 0 < i < len(text):
        return False
    before, after = text[i - 1], text[i]
    if before in _JOINERS or after in _JOINERS or unicodedata.category(after).startswith("M"):
        return True
    if before.isdigit() and after in ".,":
        return text[i + 1 : i + 2].isdigit()
    if before in ".," and after.isdigit():
        return i > 1 and text[i - 2].isdigit()
    return _is_spaced(before) and _is_spaced(after)


def _is_spaced(character: str) -> bool:
    """Return whether it is part of a word in a script that writes spaces between words; a digit always is."""
    if character.isdigit():
        return True
    is_word = character.isalnum() or unicodedata.category(character).startswith("M")
    return is_word and not _UNSPACED.match(character)


def _occurrences(text: str, wanted: str) -> Iterator[int]:
    i = text.find(wanted)
    while i >= 0:
        yield i
        i = text.find(wanted, i + 1)


class _Folded(NamedTuple):
    """A text in which case, Unicode form and the kind and length of white space make no difference."""

    text: str
    edges: "array[int]"  # where the characters of the original begin in `text`, each with its marks; and where all ends
    origins: "array[int]"  # where that is in the original

    def places(self, wanted: str) -> list[tuple[int, int]]:
        """Return start and end, in the original, of each occurrence that begins and ends between characters."""
        folded = _folded(wanted).text
        found = []
        for i in _occurrences(self.text, folded):
            begin, stop = bisect_left(self.edges, i), bisect_left(self.edges, i + len(folded))
            if self.edges[begin] == i and self.edges[stop] == i + len(folded):
                found.append((self.origins[begin], self.origins[stop]))
        return found


@lru_cache(maxsize=8)  # the questions of a paragraph stand together
def _folded(text: str) -> _Folded:
    starts = [i for i in range(len(text)) if i == 0 or not _continues(text[i - 1], text[i])]
    parts = [_caseless(text[i:j]) for i, j in pairwise([*starts, len(text)])]
    return _Folded("".join(parts), array("q", accumulate(map(len, parts), initial=0)), array("q", [*starts, len(text)]))


def _continues(before: str, character: str) -> bool:
    """Return whether a character is a mark on the one before, or the same white space."""
    return unicodedata.combining(character) > 0 or (character.isspace() and before.isspace())


@lru_cache(maxsize=4096)
def _caseless(text: str) -> str:
    return " " if text.isspace() else _decomposed(_decomposed(text).casefold())


def _initial(text: str, i: int) -> str:
    """Return the first character of what character i is folded to; "" behind the end."""
    return _caseless(text[i])[0] if i < len(text) else ""


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


# What an answer may differ in from the context, and what takes that difference away.
_FORMS: dict[str, Callable[[str], str]] = {
    "Unicode form": _decomposed,
    "white space": lambda text: " ".join(text.split()),
    "case": str.casefold,
}


def _as_written(found: str, text: str, repairs: list[str]) -> str:
    """Return what was found in the context, and say in what the answer differs from it."""
    if found != text:
        kinds = [kind for kind in _FORMS if _without_others(found, kind) != _without_others(text, kind)]
        differing = " and ".join(kinds or ["Unicode form"])
        repairs.append(f"an answer differs from the context in {differing}; the context's characters instead")
    return found


def _without_others(text: str, kind: str) -> str:
    """Return the text in a form that differs from another's only if they differ in this kind."""
    for other, form in _FORMS.items():
        text = text if other == kind else form(text)
    return text
