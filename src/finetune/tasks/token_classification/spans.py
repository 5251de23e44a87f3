"""Place spans in a text, whatever their offsets count, and turn them into tags of words."""

import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from finetune.data.values import Kept, Unusable, clean, missing
from finetune.tasks.token_classification.schemes import Entity, mark

Place = tuple[int, int]  # first character, and the one behind the last
Cut = Callable[[str], list[Place]]  # a text -> its words

PLAIN = "characters"
# A reading takes the place of the plain one if it puts nearly all of the spans at word edges where the plain one puts
# few, of at least so many that the two place otherwise.
_ENOUGH, _NEARLY_ALL, _FEW = 3, 0.9, 0.5


class Raw(NamedTuple):
    """A span as it was written."""

    start: int
    end: int
    label: object
    text: str | None  # what the tool says stands there


class Span(NamedTuple):
    """A span of a text, without white space at its edges."""

    start: int
    end: int
    label: str


def placed(text: str, raw: Raw, reading: str, repairs: list[str]) -> Span:
    """Return the span where it stands; an empty one if it holds nothing but white space. Raises: Unusable."""
    start, end = READINGS[reading](text, raw.start, raw.end)
    if raw.text is not None and not _stands_at(text, (start, end), raw.text):
        for name, read in READINGS.items():
            if _stands_at(text, read(text, raw.start, raw.end), raw.text):
                repairs.append(f"the offsets of a span counted {name}")
                start, end = read(text, raw.start, raw.end)
                break
        else:
            if 0 <= start < end <= len(text):
                raise Unusable("a span's own text is not what stands at its offsets")
    if min(start, end) < 0 or max(start, end) > len(text):
        raise Unusable("a span lies outside its text")
    if start >= end:
        raise Unusable("a span ends where it begins, or before")
    label = _label(raw.label, repairs)
    place = _trimmed(text, start, end)
    if place[0] == place[1]:
        repairs.append("a span of white space alone is left out")
    elif place != (start, end):
        repairs.append("white space at the edges of a span")
    return Span(*place, label)


def _trimmed(text: str, start: int, end: int) -> Place:
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return start, start + len(text[start:end].rstrip())


def _stands_at(text: str, place: Place, own: str) -> bool:
    """Return whether this text stands there, however white space and accents are written."""
    return 0 <= place[0] < place[1] <= len(text) and _squeezed(text[slice(*place)]) == _squeezed(own)


def _squeezed(text: str) -> str:
    # Label Studio writes a line break in a span's text as a backslash and an n.
    return unicodedata.normalize("NFC", "".join(text.replace("\\n", "").split()))


def _units(encoding: str, width: int) -> Callable[[str, int, int], Place]:
    def read(text: str, start: int, end: int) -> Place:
        encoded = text.encode(encoding)
        return _characters(encoded, start), _characters(encoded, end)

    def _characters(encoded: bytes, count: int) -> int:
        """Return how many characters so many units are; -1 where they end within one or behind the text."""
        if not 0 <= count * width <= len(encoded):
            return -1
        try:
            return len(encoded[: count * width].decode(encoding))
        except UnicodeDecodeError:
            return -1

    return read


READINGS: dict[str, Callable[[str, int, int], Place]] = {
    PLAIN: lambda _text, start, end: (start, end),
    "characters, the last one included": lambda _text, start, end: (start, end + 1),
    "characters from 1": lambda _text, start, end: (start - 1, end - 1),
    "characters from 1, the last one included": lambda _text, start, end: (start - 1, end),
    "UTF-16 units": _units("utf-16-le", 2),
    "bytes": _units("utf-8", 1),
}
_UNITS = ("UTF-16 units", "bytes")  # they are characters where a text is ASCII


def reading_of(texts: Iterable[tuple[str, Sequence[Raw]]], cut: Cut) -> tuple[str, str]:
    """Return what the offsets of a file count, and why, by how many spans begin and end with words in each reading.

    `texts` are those of the file with their spans. Spans that bring their text along don't need it.
    """
    count: Counter[str] = Counter()  # spans that a reading places otherwise than the plain one
    fit: Counter[str] = Counter()  # those of them that fit by it
    plain: Counter[str] = Counter()  # those of them that fit by the plain one
    for text, raws in texts:
        words = cut(text) if raws else []
        edges = {start for start, _ in words}, {end for _, end in words}
        for raw in raws:
            plainly = _fits(text, (raw.start, raw.end), edges)
            for name, read in READINGS.items():
                place = read(text, raw.start, raw.end) if name not in _UNITS or not text.isascii() else None
                if place not in (None, (raw.start, raw.end)):
                    count[name] += 1
                    fit[name] += _fits(text, place, edges)
                    plain[name] += plainly
    for name, of in count.items():
        if of >= _ENOUGH and fit[name] >= _NEARLY_ALL * of and plain[name] < _FEW * of:
            why = f"; offsets count {name}: so {fit[name]} of {of} spans begin and end with words, else {plain[name]}"
            return name, why
    return PLAIN, ""


def _fits(text: str, place: Place, edges: tuple[set[int], set[int]]) -> bool:
    """Return whether the place, without white space at its ends, begins and ends where words do."""
    if not 0 <= place[0] < place[1] <= len(text):
        return False
    start, end = _trimmed(text, *place)
    return start in edges[0] and end in edges[1]


def _label(value: object, repairs: list[str]) -> str:
    if isinstance(value, list | tuple):
        if len(value) > 1:
            repairs.append(Kept("a span has several labels; the first is taken"))
        value = value[0] if value else None
    if missing(value) or not isinstance(value, str | int) or isinstance(value, bool):
        raise Unusable("a span has no label")
    return clean(str(value), repairs).strip()


def tags_of(spans: Sequence[Span], words: Sequence[Place], repairs: list[str]) -> list[str | None]:
    """Return the tag of each word in IOB2; None for the words of a span that cuts through one of them.

    Of spans that overlap the longest is kept, the first among equals.
    """
    begins, ends = [start for start, _ in words], [end for _, end in words]
    first_of, last_of = {start: i for i, start in enumerate(begins)}, {end: i for i, end in enumerate(ends)}
    found: list[Entity] = []
    unknown: list[int] = []
    for span in _without_overlaps(spans, repairs):
        if span.start in first_of and span.end in last_of:
            found.append(Entity(span.label, first_of[span.start], last_of[span.end]))
        else:
            repairs.append(Kept(f"a span of {span.label} cuts through a word; its words count as not annotated"))
            unknown += range(bisect_right(ends, span.start), bisect_left(begins, span.end))
    tags: list[str | None] = [*mark(found, len(words), "IOB2")]
    for i in unknown:
        tags[i] = None
    return tags


def _without_overlaps(spans: Sequence[Span], repairs: list[str]) -> list[Span]:
    taken = bytearray(max((span.end for span in spans), default=0))
    kept = []
    for span in sorted(dict.fromkeys(spans), key=lambda span: (span.start - span.end, span.start)):
        if any(taken[span.start : span.end]):
            repairs.append(Kept(f"a span of {span.label} overlaps a longer or an earlier one, which is kept"))
        else:
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            kept.append(span)
    return sorted(kept)
