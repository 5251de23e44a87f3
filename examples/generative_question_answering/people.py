"""Write the sample of this folder: what is told of a person, or now and then of several, and questions about it.

    python examples/generative_question_answering/people.py

Most answers stand in the text; others have to be written: yes and no, numbers as words, where somebody of a profession
works. A fifth of the questions has no answer. What is asked of a person in validation or test (that Anna lives in Oslo)
is told of her in no training row: who answers that has learnt to read, and knows nothing by heart.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
SIZES = {"train": 8000, "validation": 200, "test": 300}
HELD_OUT = 8  # one in so many pairs of a person and what is told
NO_ANSWER = 0.2  # share of questions
LONG, MANY = 0.03, 6  # share of texts about many people, which take several windows, and how many
WOMEN = ["Anna", "Clara", "Greta", "Julia", "Maria", "Nora"]
MEN = ["Boris", "David", "Felix", "Hugo", "Ivan", "Tom"]
CITIES = ["Athens", "Berlin", "Cairo", "Dublin", "Lima", "Madrid", "Oslo", "Paris", "Rome", "Vienna"]
YEARS = [str(year) for year in range(1961, 1973)]
WORKPLACES = {
    "baker": "in a bakery", "cook": "in a kitchen", "doctor": "in a hospital", "farmer": "on a farm",
    "gardener": "in a garden", "pilot": "on a plane", "sailor": "on a ship", "teacher": "in a school",
}  # fmt: skip
THINGS = ["bells", "boats", "books", "chairs", "hats", "kites", "lamps", "maps"]
COLOURS = ["black", "blue", "green", "red", "white"]
NUMBERS = dict(zip("234567", ["two", "three", "four", "five", "six", "seven"], strict=True))


class Fact(NamedTuple):
    """What a sentence tells of a person."""

    name: str
    kind: str  # of KINDS
    value: str  # what is held out of training for some persons
    number: str = ""
    colour: str = ""


KINDS = {"home": CITIES, "work": [*WORKPLACES], "birth": YEARS, "goods": THINGS}
TOLD = {
    "home": ("{name} lives in {value}.", "{name} has a house in {value}."),
    "work": ("{name} works as a {value}.", "{name} is a {value}."),
    "birth": ("{name} was born in {value}.", "{name} is from the year {value}."),
    "goods": ("{name} bought {number} {colour} {value}.", "{name} found {number} {colour} {value}."),
}
OPEN = {  # questions and their answers
    "home": (("Where does {name} live?", "{value}"), ("In which city is the house of {name}?", "{value}")),
    "work": (("What does {name} do?", "a {value}"), ("Where does {name} work?", "{place}")),
    "birth": (("When was {name} born?", "{value}"), ("In which year was {name} born?", "in {value}")),
    "goods": (
        ("What does {name} have?", "{words} {colour} {value}"),
        ("How many {value} does {name} have?", "{words}"),
        ("What colour are the {value} of {name}?", "{colour}"),
    ),
}
WHO = {
    "home": "Who lives in {value}?", "work": "Who is a {value}?",
    "birth": "Who was born in {value}?", "goods": "Who has {value}?",
}  # fmt: skip
WHETHER = {
    "home": "Does {name} live in {value}?", "work": "Is {name} a {value}?",
    "birth": "Was {name} born in {value}?", "goods": "Does {name} have {value}?",
}  # fmt: skip


WHOLE = {  # the answer to who somebody is, in this order
    "work": "a {value}", "home": "from {value}", "birth": "born in {value}", "goods": "with {words} {colour} {value}",
}  # fmt: skip


def is_held_out(fact: Fact) -> bool:
    """Whether this is told of this person in validation and test alone."""
    return hashlib.sha256(f"{fact.name} {fact.value}".encode()).digest()[0] % HELD_OUT == 0


def people(chance: random.Random) -> list[Fact]:
    """What is told of some people, person by person: of no two the same."""
    long = chance.random() < LONG
    names = chance.sample([*WOMEN, *MEN], MANY if long else 1)
    values = {kind: chance.sample(known, len(names)) for kind, known in KINDS.items()}
    facts = []
    for i, name in enumerate(names):
        kinds = chance.sample([*KINDS], chance.choice([2, 3, 3]))
        for kind in kinds:
            number, colour = chance.choice([*NUMBERS]), chance.choice(COLOURS)
            facts.append(Fact(name, kind, values[kind][i], number, colour))
    return facts


def told(facts: list[Fact], chance: random.Random) -> str:
    """The text; a person is named first, and then she or he."""
    sentences = []
    for before, fact in zip([None, *facts], facts, strict=False):
        named = before is None or before.name != fact.name or chance.random() < 0.6
        subject = fact.name if named else "She" if fact.name in WOMEN else "He"
        sentences.append(chance.choice(TOLD[fact.kind]).format(**fact._replace(name=subject)._asdict()))
    return " ".join(sentences)


def words(fact: Fact) -> dict[str, str]:
    """What a question or an answer is made of."""
    return {**fact._asdict(), "words": NUMBERS[fact.number], "place": WORKPLACES.get(fact.value, "")}


def asked(fact: Fact, facts: list[Fact], chance: random.Random) -> tuple[str, str]:
    """A question that the fact answers, and the answer."""
    known = words(fact)
    long = len({other.name for other in facts}) == MANY
    form = chance.choice(["open", "open", "open", "open", "who", "who", "whether", "whole", "whole"])
    if form == "whole" and not long:
        own = {other.kind: other for other in facts if other.name == fact.name}
        parts = [WHOLE[kind].format(**words(own[kind])) for kind in WHOLE if kind in own]
        return f"Who is {fact.name}?", " ".join(parts if "work" in own else ["somebody", *parts])
    if form == "who" or (long and fact.kind == "goods"):  # of a long text, what stands in one of its windows
        return WHO[fact.kind].format(**known), fact.name
    if form == "open" or long:
        question, answer = OPEN[fact.kind][0] if long else chance.choice(OPEN[fact.kind])
        return question.format(**known), answer.format(**known)
    if chance.random() < 0.5:
        return WHETHER[fact.kind].format(**known), "yes"
    others = [other.value for other in facts if other.kind == fact.kind and other != fact] or KINDS[fact.kind]
    wrong = chance.choice([value for value in others if value != fact.value])
    return WHETHER[fact.kind].format(**known | {"value": wrong}), "no"


def asked_in_vain(facts: list[Fact], chance: random.Random) -> str:
    """A question about something that isn't told."""
    there = {(fact.name, fact.kind) for fact in facts}
    taken = {fact.value for fact in facts}
    names = [name for name in [*WOMEN, *MEN] if chance.random() < 0.02 or name in {fact.name for fact in facts}]
    name, kind = chance.choice([(name, kind) for name in names for kind in KINDS if (name, kind) not in there])
    value = chance.choice([value for value in KINDS[kind] if value not in taken])
    questions = [*(question for question, _ in OPEN[kind]), WHO[kind], WHETHER[kind]]
    return chance.choice(questions).format(name=name, value=value)


def main() -> None:
    chance = random.Random(7)
    made: dict[str, dict[tuple[str, str], list[str]]] = {split: {} for split in SIZES}
    while any(len(made[split]) < size for split, size in SIZES.items()):
        facts = people(chance)
        held_out = [fact for fact in facts if is_held_out(fact)]
        split = chance.choice(["validation", "test"]) if held_out else "train"
        text = told(facts, chance)
        for _ in range(2):
            if chance.random() < NO_ANSWER:
                question, answers = asked_in_vain(facts, chance), []
            else:
                question, answer = asked(chance.choice(held_out or facts), facts, chance)
                answers = [answer]
            if len(made[split]) < SIZES[split]:
                made[split][question, text] = answers
    for split, rows in made.items():
        lines = [
            json.dumps({"question": question, "context": text, "answers": {"text": answers}}) + "\n"
            for (question, text), answers in rows.items()
        ]
        (FOLDER / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
