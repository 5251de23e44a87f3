"""Entities and schemes, against seqeval."""

import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, IOE2, Entities

from finetune.tasks.token_classification.schemes import (
    LETTERS,
    Entity,
    as_iobes,
    detect,
    entities,
    mark,
    possible,
    strangers,
    type_of,
)
from tests.tasks.token_classification.conftest import TYPES

SEQEVAL = {"IOB1": IOB1, "IOB2": IOB2, "IOE2": IOE2, "IOBES": IOBES, "BILOU": BILOU}
ANY_TAGS = st.lists(st.sampled_from(["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in TYPES[:2]), *"BIES"]))


@st.composite
def marked(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Entities one after another, and a number of words that holds them."""
    found, at = [], 0
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(TYPES)))):
        found.append(Entity(kind, at + gap, at + gap + length - 1))
        at += gap + length
    return found, at + draw(st.integers(0, 2))


@given(ANY_TAGS)
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [tuple(entity) for entity in get_entities(tags)]
    assert [tuple(entity) for entity in entities(tags, "IOB2")] == expected


@pytest.mark.parametrize("scheme", LETTERS)
@given(made=marked())
def test_what_is_marked_is_read_again(scheme: str, made: tuple[list[Entity], int]) -> None:
    found, length = made
    tags = mark(found, length, scheme)
    assert len(tags) == length
    assert entities(tags, scheme) == found


@pytest.mark.parametrize("scheme", LETTERS)
@given(made=marked())
def test_what_is_marked_follows_the_scheme_to_the_letter(scheme: str, made: tuple[list[Entity], int]) -> None:
    found, length = made
    typed = [entity._replace(type="PER" if entity.type == "_" else entity.type) for entity in found]
    strict = Entities([mark(typed, length, scheme)], SEQEVAL[scheme]).entities[0] if length else []
    assert [(e.tag, e.start, e.end - 1) for e in strict] == [tuple(entity) for entity in typed]


@pytest.mark.parametrize("scheme", LETTERS)
def test_each_scheme_is_detected(scheme: str) -> None:
    found = [Entity("PER", 0, 2), Entity("PER", 3, 3), Entity("LOC", 4, 5), Entity("LOC", 7, 9)]
    assert detect([mark(found, 11, scheme), ["O", "O"]]) == (scheme, [], 0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["B-A", "I-A", "O"], ["I-A", "O"]], ("IOB2", [], 1)),
        ([["I-A", "I-A", "O"], ["I-B", "I-A", "B-A"]], ("IOB1", [], 0)),
        ([["I-A", "O"]], ("IOB1", [], 0)),
        ([["B", "I", "O"]], ("IOB2", [], 0)),
        ([["B-A", "O"]], ("IOB2", [], 0)),
        ([["S-A", "O"]], ("IOBES", [], 0)),
        ([["U-A", "O"]], ("BILOU", [], 0)),
        ([["O", "O"]], ("", [], 0)),
        ([], ("", [], 0)),
        ([["NOUN", "VERB"]], ("", [], 0)),
        ([["B-A", "I-A", "X", "O"]], ("", ["X"], 0)),
        ([["0", "1", "2"]], ("", [], 0)),
        ([["B-A", "I-A", "O"], ["B-A", "E-A", "S-A"]], ("IOBES", [], 1)),  # not IOB2, which has no word for E and S
        ([["O", "I-A"]] * 3 + [["B-A", "I-A"], ["B-A"]], ("IOB2", [], 1)),  # like rows count once
        ([["B-a\nb", "O"]], ("IOB2", [], 0)),
        ([["B-", "O"]], ("", [], 0)),
        ([["B-A", "L-A", "S-A"]], ("", ["L-A"], 0)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_detect(rows: list[list[str]], expected: tuple[Any, ...]) -> None:
    assert tuple(detect(rows)) == expected


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["O", "B-A", "I-A"], ["IOB2", "IOBES", "BILOU", "IOB1"]),
        (["E-A", "I-A", "O"], ["IOE2", "IOBES"]),
        (["S-A", "B-A", "I-A", "E-A"], ["IOBES"]),
        (["U-A", "B-A"], ["BILOU"]),
        (["O"], []),
        (["NOUN", "B-A"], []),
        (["B-A", "L-A", "S-A"], []),
    ],
)
def test_possible_schemes_of_class_names(tags: list[str], scheme: list[str]) -> None:
    assert possible(tags) == scheme


def test_strangers() -> None:
    tags = ["O", "B-A", "S-A", "PROPN", "1", "I-B"]
    assert strangers(tags, "IOB2") == ["1", "PROPN", "S-A"]
    assert strangers(tags, "IOB1") == ["1", "PROPN", "S-A"]
    assert strangers(tags, "IOE2") == ["1", "B-A", "PROPN", "S-A"]
    assert strangers(tags, "") == []


def test_bilou_reads_as_iobes() -> None:
    assert as_iobes(["U-A", "B-L", "L-L", "O", "U", "I-U"], "BILOU") == ["S-A", "B-L", "E-L", "O", "S", "I-U"]
    assert as_iobes(["NOUN", "UH"], "") == ["NOUN", "UH"]
    assert entities(["U-A", "U-A"], "BILOU") == [("A", 0, 0), ("A", 1, 1)]


def test_no_scheme_no_entities() -> None:
    assert entities(["B-A", "I-A"], "") == []


def test_types() -> None:
    assert [type_of(tag, "IOB2") for tag in ("B-creative-work", "I", "O")] == ["creative-work", "_", "O"]
    assert type_of("B-A", "") == "B-A"
