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
    meant_as_outside,
    possible,
    strangers,
    type_of,
)
from tests.tasks.token_classification.conftest import TYPES

SEQEVAL = {"IOB1": IOB1, "IOB2": IOB2, "IOE2": IOE2, "IOBES": IOBES, "BILOU": BILOU}
IN_IOBES = ("BMES", "BMEWO")  # schemes that seqeval knows by those letters alone
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
    marked = mark(typed, length, scheme)
    read = as_iobes(marked, scheme) if scheme in IN_IOBES else marked
    strict = Entities([read], SEQEVAL.get(scheme, IOBES)).entities[0] if length else []
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
        (["B-A", "M-A", "E-A", "S-A"], ["BMES"]),
        (["B-A", "M-A", "E-A", "W-A", "O"], ["BMEWO"]),
        (["O", *(f"{letter}-{kind}" for letter in "BI" for kind in "ABC"), "[CLS]", "[SEP]"],
         ["IOB2", "IOBES", "BILOU", "IOB1"]),
        (["B", "M", "E", "S"], ["BMES"]),
        (["I", "O"], []),
        (["N", "V", "A", "S", "B", "E", "I"], []),
    ],
)  # fmt: skip
def test_possible_schemes_of_class_names(tags: list[str], scheme: list[str]) -> None:
    assert possible(tags) == scheme


IOB2_ROWS = [["B-A", "I-A", "O"], ["O", "B-A"], ["B-B", "O", "B-A", "I-A", "I-A"]]


@pytest.mark.parametrize("stranger", ["B_A", "E-A", "S-A", "M-A", "I", "b-A", "A", "I-", "PAD"])
def test_one_stranger_does_not_change_the_scheme(stranger: str) -> None:
    """One of 43 words with a tag other than O, also where its letter means something in another scheme."""
    assert detect([*IOB2_ROWS * 6, ["O", stranger]]) == ("IOB2", [stranger], 0)
    assert detect([["B-A", stranger, "O"]] * 2).name != "IOB2"


def test_a_tenth_of_the_words_may_be_strangers() -> None:
    assert detect([["B-A"] * 9 + ["O"] * 9 + ["X"]]) == ("IOB2", ["X"], 0)
    assert detect([["B-A"] * 8 + ["O"] * 9 + ["X"]]) == ("", ["X"], 0)
    assert detect([["B-A"] * 18 + ["X", "Y"]]) == ("IOB2", ["X", "Y"], 0)
    assert detect([["B-A"] * 18 + ["X", "Y", "Z"]]).name == ""


def test_rows_with_few_words_annotated() -> None:
    assert detect([["U-A", None, "B-A", "L-A"], [None, "O"]]) == ("BILOU", [], 0)
    assert detect([[None]]) == ("", [], 0)


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["BMES", "SBES", "BEBMME"], "BMES"),  # word segmentation marks every word
        (["BIOB", "OOBII"], "IOB2"),
        (["BEWO", "BMEO"], "BMEWO"),
        (["NVASBEI", "SNIVVAB", "EBN"], ""),  # parts of speech
        (["SBEIIEBS", "IESB", "EE", "BS"], ""),
        (["IOIIO", "OI"], ""),  # one letter is a class
        (["BBOB"], ""),
    ],
)
def test_bare_letters_are_a_scheme_if_rows_follow_it(rows: list[str], scheme: str) -> None:
    assert detect(map(list, rows)).name == scheme


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["B-A", "0", "0"], ["0"]], ["0"]),
        ([["B-A", "O", "0"]], ["0"]),  # beside O too
        ([["B-A", "o", None]], ["o"]),
        ([["B-A", "0", "o", "O"]], ["0", "o"]),
        ([["B-A", "\N{CYRILLIC CAPITAL LETTER O}", "O"]], ["\N{CYRILLIC CAPITAL LETTER O}"]),
        ([["B-A", "I-A", "OTHER", "OTHER"]], ["OTHER"]),
        (["BIooB", "ooB"], ["o"]),
        ([["0", "1", "2"]], []),  # classes by number
        ([["NOUN", "VERB", "o"]], []),
        ([["NOUN", "VERB"]], []),
        ([["B-A", "I-A", "O", "OTHER", "OTHER"]], []),
        ([["PER", "0", "LOC"]], []),
        ([], []),
    ],
)
def test_another_tag_for_O(rows: list[list[str | None]], expected: list[str]) -> None:
    assert meant_as_outside([list(tags) for tags in rows]) == expected


def test_strangers() -> None:
    tags = ["O", "B-A", "S-A", "PROPN", "1", "I-B"]
    assert strangers(tags, "IOB2") == ["1", "PROPN", "S-A"]
    assert strangers(tags, "IOB1") == ["1", "PROPN", "S-A"]
    assert strangers(tags, "IOE2") == ["1", "B-A", "PROPN", "S-A"]
    assert strangers(tags, "") == []


def test_bilou_reads_as_iobes() -> None:
    assert as_iobes(["U-A", "B-L", "L-L", "O", "U", "I-U"], "BILOU") == ["S-A", "B-L", "E-L", "O", "S", "I-U"]
    assert as_iobes(["NOUN", "UH"], "") == ["NOUN", "UH"]
    assert as_iobes(["B-A", "M-A", "E-A", "S-M"], "BMES") == ["B-A", "I-A", "E-A", "S-M"]
    assert as_iobes(["W-A", "B", "M", "E", "O"], "BMEWO") == ["S-A", "B", "I", "E", "O"]
    assert as_iobes(["[CLS]", "B_A", "LABEL_0"], "IOB2") == ["O", "O", "O"]
    assert entities(["U-A", "U-A"], "BILOU") == [("A", 0, 0), ("A", 1, 1)]


def test_no_scheme_no_entities() -> None:
    assert entities(["B-A", "I-A"], "") == []


def test_types() -> None:
    assert [type_of(tag, "IOB2") for tag in ("B-creative-work", "I", "O")] == ["creative-work", "_", "O"]
    assert type_of("B-A", "") == "B-A"
    assert [type_of(tag, "IOB2") for tag in ("[CLS]", "B_A")] == ["[CLS]", "B_A"]
