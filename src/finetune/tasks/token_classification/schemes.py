"""The schemes by which tags mark entities: which one a data set uses, and the entities that tags mean.

Ramshaw and Marcus 1995 (IOB1), Tjong Kim Sang and Veenstra 1999 (IOB2, IOE2), Ratinov and Roth 2009 (BILOU).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
# scheme -> the letter of an entity of one word, and of the first, inner and last word of a longer one. In IOB1 the
# first is B where the word before belongs to another entity of the same type.
LETTERS = {
    "IOB2": ("B", "B", "I", "I"),
    "IOE2": ("E", "I", "I", "E"),
    "IOBES": ("S", "B", "I", "E"),
    "BILOU": ("U", "B", "I", "L"),
    "IOB1": ("I", "I", "I", "I"),
}
_TAG = re.compile(r"[BIESLU](-.+)?", re.DOTALL)
_AS_IOBES = str.maketrans("LU", "ES")


class Entity(NamedTuple):
    """An entity of one type: its words first to last."""

    type: str
    first: int
    last: int


class Detected(NamedTuple):
    """The scheme that a data set uses."""

    name: str  # a key of LETTERS; "" where the tags mark no entities
    strangers: list[str]  # tags that keep others from marking entities
    broken: int  # rows that don't follow the scheme to the letter


def type_of(tag: str, scheme: str) -> str:
    """Return the tag without its letter; the tag itself where there is no scheme."""
    return tag if not scheme or tag == OUTSIDE else tag[2:] or "_"


def as_iobes(tags: Sequence[str], scheme: str) -> list[str]:
    """Return BILOU in the letters of IOBES, which mean the same; other schemes as they are."""
    return [tag[0].translate(_AS_IOBES) + tag[1:] for tag in tags] if scheme == "BILOU" else list(tags)


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
    letters = {*LETTERS[scheme], "B"} if scheme == "IOB1" else set(LETTERS.get(scheme, ()))
    return sorted(
        {tag for tag in tags if scheme and tag != OUTSIDE and not (_TAG.fullmatch(tag) and tag[0] in letters)}
    )


def possible(tags: Iterable[str]) -> list[str]:
    """Return the schemes in which all these tags mean something; none where all are O."""
    marking = set(tags) - {OUTSIDE}
    return [scheme for scheme in LETTERS if marking and not strangers(marking, scheme)]


def detect(rows: Iterable[Sequence[str]]) -> Detected:
    """Return the scheme that most rows follow to the letter; the first of LETTERS among equals."""
    distinct = {tuple(tags) for tags in rows}
    tags = {tag for row in distinct for tag in row} - {OUTSIDE}
    if not possible(tags):
        fewest = min((strangers(tags, scheme) for scheme in LETTERS), key=len)
        return Detected("", fewest if len(fewest) < len(tags) else [], 0)
    broken: dict[str, int] = {}
    for scheme in possible(tags):
        broken[scheme] = sum(mark(entities(row, scheme), len(row), scheme) != list(row) for row in distinct)
        if not broken[scheme]:
            break
    best = min(broken, key=lambda scheme: broken[scheme])
    return Detected(best, [], broken[best])
