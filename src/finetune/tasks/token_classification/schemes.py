"""The schemes by which tags mark entities: which one a data set uses, and the entities that tags mean.

Ramshaw and Marcus 1995 (IOB1), Tjong Kim Sang and Veenstra 1999 (IOB2, IOE2), Ratinov and Roth 2009 (BILOU), Xue 2003
(BMES).
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

OUTSIDE = "O"
# scheme -> the letter of an entity of one word, and of the first, inner and last word of a longer one. In IOB1 the
# first is B where the word before belongs to another entity of the same type.
LETTERS = {
    "IOB2": ("B", "B", "I", "I"),
    "IOE2": ("E", "I", "I", "E"),
    "IOBES": ("S", "B", "I", "E"),
    "BILOU": ("U", "B", "I", "L"),
    "BMES": ("S", "B", "M", "E"),
    "BMEWO": ("W", "B", "M", "E"),
    "IOB1": ("I", "I", "I", "I"),
}
# A scheme holds though some tags mean nothing in it: of the words with a tag other than O at most this share, or of the
# class names of a model, some of which have [CLS] and [SEP] among theirs.
STRANGE_WORDS, STRANGE_NAMES = 0.1, 0.25
# The digit, the small letter, and the capitals of Cyrillic, Greek and full width.
LOOK_LIKE_O = ("0", "o", "\N{CYRILLIC CAPITAL LETTER O}", "\N{GREEK CAPITAL LETTER OMICRON}", "\uff2f")
_TAG = re.compile(r"[BIESLUMW](-.+)?", re.DOTALL)
_AS_IOBES = str.maketrans("LUMW", "ESIS")


class Entity(NamedTuple):
    """An entity of one type: its words first to last."""

    type: str
    first: int
    last: int


class Detected(NamedTuple):
    """The scheme that a data set uses."""

    name: str  # a key of LETTERS; "" where the tags mark no entities
    strangers: list[str]  # tags that mean nothing in it, or keep the others from marking entities
    broken: int  # rows that don't follow the scheme to the letter


def type_of(tag: str, scheme: str) -> str:
    """Return the tag without its letter; the tag itself where there is no scheme, or where it means nothing."""
    return tag[2:] or "_" if scheme and _TAG.fullmatch(tag) else tag


def as_iobes(tags: Sequence[str], scheme: str) -> list[str]:
    """Return the tags in the letters of IOBES, which mean the same; O for one that marks nothing in any scheme.

    Without a scheme they stay as they are.
    """
    return [_in_iobes(tag) for tag in tags] if scheme else list(tags)


@cache
def _in_iobes(tag: str) -> str:
    return tag[0].translate(_AS_IOBES) + tag[1:] if _TAG.fullmatch(tag) else OUTSIDE


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Return what the tags mark, however they break their scheme, as conlleval.pl and seqeval's default mode do.

    Without a scheme there are no entities.
    """
    if not scheme:
        return []
    found: list[Entity] = []
    start, before, kind = 0, OUTSIDE, "_"  # of the word before: its letter and type
    for i, tag in enumerate([*as_iobes(tags, scheme), OUTSIDE]):
        letter, new = tag[0], tag[2:] or "_"
        if before != OUTSIDE and (before in "ES" or letter in "BSO" or new != kind):
            found.append(Entity(kind, start, i - 1))
            begins = letter != OUTSIDE
        else:
            begins = before == OUTSIDE and letter != OUTSIDE
        if begins:
            start = i
        before, kind = letter, new
    return found


def mark(found: Iterable[Entity], length: int, scheme: str) -> list[str]:
    """Return the tags of `length` words that mark these entities to the letter of the scheme."""
    single, first, inner, last = LETTERS[scheme]
    tags = [OUTSIDE] * length
    before = Entity("", -1, -1)
    for entity in found:
        letters = [first, *inner * (entity.last - entity.first - 1), last] if entity.last > entity.first else [single]
        if scheme == "IOB1" and (before.type, before.last) == (entity.type, entity.first - 1):
            letters[0] = "B"
        suffix = "" if entity.type == "_" else f"-{entity.type}"
        tags[entity.first : entity.last + 1] = [letter + suffix for letter in letters]
        before = entity
    return tags


def strangers(tags: Iterable[str], scheme: str) -> list[str]:
    """Return the tags that mean nothing in the scheme; every tag means something where there is none."""
    return sorted({tag for tag in tags if scheme and not (_means(tag, scheme, True) or _means(tag, scheme, False))})


def _means(tag: str, scheme: str, typed: bool) -> bool:
    """Return whether the tag means something in the scheme, of letters with types (B-PER) or of bare letters (B)."""
    letters = "BI" if scheme == "IOB1" else LETTERS[scheme]
    return tag == OUTSIDE or bool(_TAG.fullmatch(tag) and tag[0] in letters and (len(tag) > 1) == typed)


def possible(names: Iterable[str]) -> list[str]:
    """Return the schemes in which the fewest of a model's class names mean nothing; none if those are too many.

    Bare letters are one where there are several and nothing else: one may be a part of speech.
    """
    marking = set(names) - {OUTSIDE}
    unknown = {scheme: sum(not _means(name, scheme, True) for name in marking) for scheme in LETTERS}
    fewest = min(unknown.values())
    if marking and fewest <= STRANGE_NAMES * len(marking):
        return [scheme for scheme in LETTERS if unknown[scheme] == fewest]
    bare = len(marking) > 1
    return [scheme for scheme in LETTERS if bare and all(_means(name, scheme, False) for name in marking)]


class _Reading(NamedTuple):
    """The tags of a data set read by one scheme."""

    detected: Detected
    misfits: int  # distinct rows with strangers, or that don't follow the scheme to the letter
    cost: tuple[int, int, int]  # these, the same as often as they occur, the words of strangers


def detect(rows: Iterable[Sequence[str | None]]) -> Detected:
    """Return the scheme that most distinct rows follow to the letter; the first of LETTERS among equals.

    A few tags may mean nothing in it (STRANGE_WORDS). Bare letters are a scheme only where there are several and nearly
    all rows follow it: they may be parts of speech. None stands for a word that isn't annotated.
    """
    distinct = Counter(tuple(tag for tag in tags if tag is not None) for tags in rows)
    words = _marking(distinct)
    best: _Reading | None = None
    for typed, scheme in itertools.product((True, False), LETTERS):
        unknown = [tag for tag in words if not _means(tag, scheme, typed)]
        if len(unknown) == len(words) or sum(words[tag] for tag in unknown) > STRANGE_WORDS * words.total():
            continue
        if not typed and len(words) - len(unknown) < 2:
            continue
        most = best.misfits if best else len(distinct) * (1 if typed else STRANGE_WORDS)
        found = _read(distinct, words, scheme, sorted(unknown), most)
        if found and (best is None or found.cost < best.cost):
            best = found
            if not found.misfits:
                break
    if best:
        return best.detected
    unknown = min(
        ([tag for tag in words if not _means(tag, scheme, True)] for scheme in LETTERS),
        key=lambda tags: sum(words[tag] for tag in tags),
    )
    return Detected("", sorted(unknown) if len(unknown) < len(words) else [], 0)


def _marking(rows: Mapping[tuple[str, ...], int]) -> Counter[str]:
    """Return how many words have each tag but O, given how often each row occurs."""
    words: Counter[str] = Counter()
    for tags, times in rows.items():
        for tag in tags:
            words[tag] += times
    del words[OUTSIDE]
    return words


def _read(
    rows: Mapping[tuple[str, ...], int], words: Counter[str], scheme: str, unknown: list[str], most: float
) -> _Reading | None:
    """Return the reading by a scheme in which tags are `unknown`; None if more than `most` rows don't fit."""
    broken = misfits = times = 0
    for row, count in rows.items():
        known = [tag for tag in row if tag not in unknown]
        breaks = mark(entities(known, scheme), len(known), scheme) != known
        misfit = breaks or len(known) < len(row)
        broken, misfits, times = broken + breaks, misfits + misfit, times + count * misfit
        if misfits > most:
            return None
    return _Reading(Detected(scheme, unknown, broken), misfits, (misfits, times, sum(words[tag] for tag in unknown)))


def meant_as_outside(rows: Sequence[Sequence[str | None]]) -> list[str]:
    """Return the tags that stand where O is meant, if all others mark entities.

    They look like O, or are the most frequent of those that mark none, where no word has an O.
    """
    known = [[tag for tag in tags if tag is not None] for tags in rows]
    words = Counter(itertools.chain.from_iterable(known))
    suspects = [tag for tag in LOOK_LIKE_O if tag in words]
    if not suspects and OUTSIDE not in words and not detect(known).name:
        suspects = [tag for tag, _ in words.most_common() if not _TAG.fullmatch(tag)][:1]
    if not suspects or not detect([OUTSIDE if tag in suspects else tag for tag in tags] for tags in known).name:
        return []
    return suspects
