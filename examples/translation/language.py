"""Write the sample of this folder: sentences of English, and of Tavi, a small language that was made up for it.

    python examples/translation/language.py

Tavi has 74 words, in 540 forms. Its verb comes last, adjectives follow their noun and agree with it in class and
number, the object has a case of its own, and a preposition becomes a postposition. An adjective and a noun, or a verb
and its object, that stand together in validation or test never do in train: who translates those has learnt the words
and the grammar. In each sentence of validation and test there are two such words.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
SIZES = {"train": 4000, "validation": 150, "test": 250}
HELD_OUT = 8  # one in so many pairs of words


class Noun(NamedTuple):
    one: str
    many: str
    root: str
    kind: str  # the vowel of its class


NOUNS = [
    Noun("dog", "dogs", "bar", "o"), Noun("cat", "cats", "mir", "a"), Noun("horse", "horses", "kald", "o"),
    Noun("bird", "birds", "til", "a"), Noun("child", "children", "nev", "o"), Noun("woman", "women", "sel", "a"),
    Noun("man", "men", "gor", "o"), Noun("teacher", "teachers", "lund", "a"), Noun("farmer", "farmers", "prat", "o"),
    Noun("king", "kings", "rask", "o"), Noun("queen", "queens", "vish", "a"), Noun("sailor", "sailors", "dum", "o"),
    Noun("fox", "foxes", "zik", "a"), Noun("bear", "bears", "hrum", "o"), Noun("fish", "fishes", "plen", "a"),
    Noun("tree", "trees", "and", "e"), Noun("river", "rivers", "shal", "e"), Noun("house", "houses", "tok", "e"),
    Noun("boat", "boats", "fen", "e"), Noun("road", "roads", "gir", "e"), Noun("hill", "hills", "obr", "e"),
    Noun("book", "books", "lit", "e"), Noun("song", "songs", "uv", "e"), Noun("stone", "stones", "kram", "e"),
    Noun("letter", "letters", "pis", "e"), Noun("apple", "apples", "yab", "e"), Noun("lamp", "lamps", "svet", "e"),
    Noun("door", "doors", "nal", "e"), Noun("bell", "bells", "din", "e"), Noun("field", "fields", "mel", "e"),
]  # fmt: skip
ADJECTIVES = {
    "red": "rud", "old": "star", "small": "min", "big": "vel", "quiet": "tikh", "happy": "vas", "cold": "zim",
    "bright": "lum", "young": "nov", "tall": "visk", "green": "zel", "heavy": "tyag", "clever": "khit",
    "brave": "smel", "white": "bel", "strange": "ekz",
}  # fmt: skip
VERBS = {  # English: base, third person, past
    ("see", "sees", "saw"): "vid", ("find", "finds", "found"): "nakh", ("carry", "carries", "carried"): "nos",
    ("follow", "follows", "followed"): "sled", ("hear", "hears", "heard"): "slu", ("love", "loves", "loved"): "am",
    ("paint", "paints", "painted"): "kras", ("want", "wants", "wanted"): "khot", ("bring", "brings", "brought"): "priv",
    ("watch", "watches", "watched"): "glad", ("hide", "hides", "hid"): "kry", ("need", "needs", "needed"): "treb",
    ("wash", "washes", "washed"): "mol", ("draw", "draws", "drew"): "ris", ("forget", "forgets", "forgot"): "zab",
    ("choose", "chooses", "chose"): "izb",
}  # fmt: skip
PLACES = {"near": "pri", "under": "pod", "behind": "zad", "in": "ven", "on": "nas"}
TIMES = {"today": "denu", "often": "chas", "again": "opet", "soon": "skor"}
NUMBERS = {"two": "dva", "three": "tri", "many": "mno"}


class Phrase(NamedTuple):
    english: str
    root: str  # noun and adjectives, with their endings, without case
    rest: str
    many: bool
    noun: Noun
    adjective: str


def is_held_out(*words: str) -> bool:
    """Whether these words stand together in validation and test alone."""
    return hashlib.sha256(" ".join(words).encode()).digest()[0] % HELD_OUT == 0


def phrase(chance: random.Random) -> Phrase:
    """A noun with its number and maybe an adjective."""
    noun, adjective = chance.choice(NOUNS), chance.choice([*ADJECTIVES, "", ""])
    before = chance.choice(["the", "the", "a", *NUMBERS])
    many = before in NUMBERS or (before == "the" and chance.random() < 0.4)
    english = " ".join(word for word in (before, adjective, noun.many if many else noun.one) if word)
    if before == "a" and english[2] in "aeiou":
        english = f"an{english[1:]}"
    ending = noun.kind + ("s" if many else "")
    rest = [ADJECTIVES[adjective] + ending] if adjective else []
    rest += [NUMBERS[before]] if before in NUMBERS else []
    return Phrase(english, noun.root + ending + ("n" if before == "the" else ""), " ".join(rest), many, noun, adjective)


def tavi(part: Phrase, case: str = "") -> str:
    return f"{part.root}{case} {part.rest}".strip()


def sentence(chance: random.Random) -> tuple[str, str, bool]:
    """A sentence of both languages, and whether words stand together in it that are held out."""
    subject, thing = phrase(chance), phrase(chance)
    verb = chance.choice([*VERBS])
    tense, negated = chance.choice(["now", "past", "future"]), chance.random() < 0.25
    english = [subject.english, conjugated(verb, tense, negated, subject.many), thing.english]
    words = [tavi(subject), tavi(thing, case="u")]
    pairs = [(part.adjective, part.noun.one) for part in (subject, thing) if part.adjective]
    pairs.append((verb[0], thing.noun.one))
    if chance.random() < 0.4:
        place, where = phrase(chance), chance.choice([*PLACES])
        english.append(f"{where} {place.english}")
        words.append(f"{tavi(place)} {PLACES[where]}")
        pairs += [(place.adjective, place.noun.one)] if place.adjective else []
    if chance.random() < 0.3:
        when = chance.choice([*TIMES])
        english.append(when)
        words.insert(0, TIMES[when])
    ending = {"now": "e", "past": "la", "future": "ros"}[tense] + ("mi" if subject.many else "")
    words.append(f"{'ma' if negated else ''}{VERBS[verb]}{ending}")
    sides = (f"{text[0].upper()}{text[1:]}." for text in (" ".join(english), " ".join(words)))
    return *sides, any(is_held_out(*pair) for pair in pairs)


def conjugated(verb: tuple[str, str, str], tense: str, negated: bool, many: bool) -> str:
    base, third, past = verb
    if tense == "future":
        return f"will not {base}" if negated else f"will {base}"
    if negated:
        return f"{'did' if tense == 'past' else 'do' if many else 'does'} not {base}"
    return past if tense == "past" else base if many else third


def main() -> None:
    chance = random.Random(7)
    found: dict[str, dict[str, str]] = {split: {} for split in SIZES}
    while any(len(found[split]) < size for split, size in SIZES.items()):
        english, other, held_out = sentence(chance)
        split = chance.choice(["validation", "test"]) if held_out else "train"
        if len(found[split]) < SIZES[split]:
            found[split][english] = other
    for split, pairs in found.items():
        lines = [json.dumps({"en": one, "tav": other}) + "\n" for one, other in pairs.items()]
        (FOLDER / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
