"""Words and tags out of whatever a file holds, and text cut into words."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.core.errors import DataError
from finetune.data.values import CUT_SHORT, Unusable
from finetune.tasks.token_classification import rows as tc_rows
from tests.tasks.token_classification.conftest import SENTENCES, row, validated

EU, TAGS = ["EU", "rejects", "it"], ["B-ORG", "O", "O"]


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [
        (EU, TAGS),
        (tuple(EU), tuple(TAGS)),
        ('["EU", "rejects", "it"]', '["B-ORG", "O", "O"]'),
        ("['EU', 'rejects', 'it']", "['B-ORG', 'O', 'O']"),
        ("array(['EU', 'rejects', 'it'], dtype=object)", "array(['B-ORG', 'O', 'O'], dtype=object)"),
        ("['EU' 'rejects' 'it']", "['B-ORG' 'O'\n 'O']"),
        (' ["EU" \'rejects\' "it"] ', TAGS),
        (EU, "[B-ORG O\n O]"),
        (EU, "tensor(['B-ORG', 'O', 'O'])"),
    ],
    ids=["lists", "tuples", "JSON", "Python", "pandas", "NumPy", "NumPy quotes", "NumPy without quotes", "a tensor"],
)
def test_the_same_row(tokens: Any, tags: Any) -> None:
    rows, audit = validated({"tokens": tokens, "ner_tags": tags})
    assert rows == [{"id": "11", "row": 11, "text": None, "tokens": EU, "tags": TAGS}]
    assert audit.problems == {}


def problem(**given_row: Any) -> tuple[str, str, list[int]]:
    """(action, reason, rows) of the one thing wrong with a row between two good ones."""
    good = {"tokens": EU, "ner_tags": TAGS}
    rows, audit = validated(good, {**good, **given_row}, good)
    ((reason, found),) = audit.problems.items()
    assert len(rows) == (2 if found["action"] == "dropped" else 3)
    return found["action"], reason, found["rows"]


@pytest.mark.parametrize(
    ("given_row", "action", "reason"),
    [
        ({"ner_tags": TAGS[:2]}, "dropped", "another number of tags than of tokens"),
        ({"tokens": [*EU, "x"]}, "dropped", "another number of tags than of tokens"),
        ({"tokens": None}, "dropped", "no tokens"),
        ({"tokens": []}, "dropped", "no tokens"),
        ({"tokens": " "}, "dropped", "no tokens"),
        ({"tokens": float("nan")}, "dropped", "no tokens"),
        ({"tokens": 5}, "dropped", "the tokens are not a list"),
        ({"tokens": {"a": 1}}, "dropped", "the tokens are not a list"),
        ({"tokens": "[EU, rejects, it]"}, "dropped", "the tokens are neither JSON nor a Python literal"),
        ({"ner_tags": "['B-ORG', 'O'"}, "dropped", "the tags are neither JSON nor a Python literal"),
        ({"tokens": [["EU"], "b", "c"]}, "dropped", "a token is a list or an object"),
        ({"ner_tags": ["B-ORG", None, "O"]}, "dropped", "a tag is missing"),
        ({"ner_tags": ["B-ORG", "", "O"]}, "dropped", "a tag is missing"),
        ({"ner_tags": ["B-ORG", 0.5, "O"]}, "dropped", "a tag is neither text nor a number"),
        ({"ner_tags": ["B-ORG", True, "O"]}, "dropped", "a tag is neither text nor a number"),
        ({"ner_tags": ["B-ORG", float("inf"), "O"]}, "dropped", "a tag is neither text nor a number"),
        ({"ner_tags": ["B-ORG", -100, "O"]}, "dropped", "a tag is missing"),
        ({"ner_tags": []}, "dropped", "another number of tags than of tokens"),
        ({"tokens": "array(['EU'], ['x'])"}, "dropped", "the tokens are neither JSON nor a Python literal"),
        ({"tokens": "EU rejects it"}, "repaired", "the tokens are text, not a list; split at white space"),
        ({"ner_tags": "B-ORG O O"}, "repaired", "the tags are text, not a list; split at white space"),
        ({"tokens": ["EU", None, "it"]}, "repaired", "a token is null; empty instead"),
        ({"tokens": ["EU", 2019, "it"]}, "repaired", "a token is not a string; its text instead"),
        ({"tokens": ["EU", "\ud83d", "it"]}, "repaired", "half a surrogate pair is not a character; U+FFFD instead"),
        ({"ner_tags": ["B-ORG ", "O", "O"]}, "repaired", "white space around a tag"),
        ({"tokens": "['EU' None 'it']"}, "repaired", "a token is null; empty instead"),
        ({"ner_tags": "['B-ORG' nan 'O']"}, "dropped", "a tag is missing"),
        ({"tokens": "[EU rejects it]"}, "dropped", "the tokens are neither JSON nor a Python literal"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_messy_row(given_row: Any, action: str, reason: str) -> None:
    assert problem(**given_row) == (action, reason, [12])


def test_what_repairs_make() -> None:
    rows, _ = validated(
        {"tokens": ["EU", None, 2019], "ner_tags": ["B-ORG ", "O", "O"]},
        {"tokens": "EU rejects\tit ", "ner_tags": "B-ORG O O"},
        {"tokens": ["", "a"], "ner_tags": ["O", "O"]},
        {"tokens": EU, "ner_tags": [0, 1.0, 12]},
        {"tokens": EU, "ner_tags": ["B-\ud83d", "O", "O"], "id": "\ud83d"},
    )
    assert [r["tokens"] for r in rows] == [["EU", "", "2019"], EU, ["", "a"], EU, EU]
    assert [r["tags"] for r in rows] == [TAGS, TAGS, ["O", "O"], ["0", "1", "12"], ["B-\ufffd", "O", "O"]]
    assert rows[-1]["id"] == "\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        "['EU' 'it' ... 'a' 'b']",
        "['EU' 'it' … 'a' 'b']",
        "array(['EU', 'it', ..., 'b'], dtype=object)",
        "['EU', ..., 'b']",
        "['EU', …, 'b']",
        "[0 0 ... 1]",
        "[0, 0, ..., 1]",
        "tensor([0, 0,  ..., 1])",
        "[O, O, ..., O]",
        "[O O ... O]",
        "[0, 0, 1, ...",
    ],
)
def test_a_list_that_was_cut_short(text: str) -> None:
    """It has neither the words nor the classes that it seems to have."""
    for given_row in ({"tokens": text, "ner_tags": text}, {"tokens": EU, "ner_tags": text}, {"tokens": text}):
        rows, audit = validated({"tokens": EU, "ner_tags": TAGS}, given_row)
        assert len(rows) == 1
        assert audit.problems == {CUT_SHORT: {"action": "dropped", "count": 1, "rows": [12]}}


@pytest.mark.parametrize("sign", ["...", "…"])
def test_an_ellipsis_is_a_word_and_no_tag(sign: str) -> None:
    words = ["wait", sign, "what"]
    for tokens in (words, str(words), f"['wait' '{sign}' 'what']", json.dumps(words)):
        rows, _ = validated({"tokens": tokens, "ner_tags": ["O"] * 3})
        assert rows[0]["tokens"] == words
    for tags in (["O", sign, "O"], f"O {sign} O"):
        assert validated({"tokens": EU, "ner_tags": tags})[0] == []


def test_numbers_as_numpy_writes_them() -> None:
    rows, _ = validated(*({"tokens": EU, "ner_tags": text} for text in ("[ 0  1 10]", "[0. 1. 10.]", "[0, 1, 10]")))
    assert [r["tags"] for r in rows] == [["0", "1", "10"]] * 3
    assert validated({"tokens": EU, "ner_tags": "[0 -100 1]"}, {"tokens": ["a"], "ner_tags": "[True]"})[0] == []


def test_words_that_are_not_annotated() -> None:
    words = ["EU", "-", "_", "it", "a-b"]
    rows, audit = validated(
        {"tokens": words, "ner_tags": ["B-ORG", "O", "O", "-", "_"]},
        {"tokens": words, "ner_tags": ["X", "-", "_", "X", "X"]},  # a part of speech by itself
        {"tokens": EU, "ner_tags": ["-", "-", "_"]},
        {"tokens": EU, "ner_tags": "- - -"},
    )
    assert [r["tags"] for r in rows] == [["B-ORG", "O", "O", None, None], ["X", "-", "_", "X", "X"], None, None]
    assert [tc_rows.has_gold(r) for r in rows] == [True, True, False, False]
    assert [tc_rows.kinds(r) for r in rows] == [{"B-ORG", "O"}, {"X", "-", "_"}, set(), set()]
    reason = "- and _ are read as not annotated; such words are left out of loss and metrics"
    assert audit.problems[reason] == {"action": "repaired", "count": 1, "rows": [11]}


def test_not_annotated() -> None:
    rows, audit = validated({"tokens": EU}, {"tokens": EU, "ner_tags": None}, {"tokens": EU, "ner_tags": ""})
    assert [tc_rows.has_gold(r) for r in rows] == [False] * 3
    assert audit.problems == {}


def test_missing_columns() -> None:
    with pytest.raises(DataError, match="no column 'tokens'; did you mean token"):
        validated({"token": EU})
    with pytest.raises(DataError, match="no column 'pos'") as raised:
        validated({"tokens": EU, "ner_tags": TAGS}, tag_key="pos")
    assert raised.value.faults[0].fix == "--tag_key with one of: tokens, ner_tags"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('He said: "Don\'t (ever) visit."', ["He", "said", ":", '"', "Don't", "(", "ever", ")", "visit", ".", '"']),
        ("@user #tag e-mail http://a.b/c?d=1.", ["@user", "#tag", "e-mail", "http://a.b/c?d=1", "."]),
        ("$5.50, 3,000 and 5%", ["$", "5.50", ",", "3,000", "and", "5", "%"]),
        ("我住在柏林。", ["我", "住", "在", "柏", "林", "。"]),
        ("iPhoneを買う", ["iPhone", "を", "買", "う"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("  \n\t ", []),
        ("...", [".", ".", "."]),
    ],
)
def test_text_is_cut_into_words(text: str, words: list[str]) -> None:
    assert tc_rows.serve([{"input_string": text}])[0]["tokens"] == words


@given(st.text(max_size=60))
def test_words_are_all_of_the_text_in_order(text: str) -> None:
    (made,) = tc_rows.serve([{"input_string": text}])
    whole, end = tc_rows.text_of(made), 0
    for token, (start, stop) in zip(made["tokens"], tc_rows.places_of(made), strict=True):
        assert whole[start:stop] == token
        assert not whole[end:start].strip()
        end = stop
    assert not whole[end:].strip()


@given(st.lists(st.text(max_size=5), max_size=8))
def test_words_of_a_list_have_a_space_between(words: list[str]) -> None:
    (made,) = tc_rows.serve([{"input_string": words}])
    assert len(made["tokens"]) == len(words)
    assert [tc_rows.text_of(made)[a:b] for a, b in tc_rows.places_of(made)] == made["tokens"]
    assert len(tc_rows.text_of(made)) == len(" ".join(words))


def test_half_characters_are_served() -> None:
    made = tc_rows.serve([{"input_string": ["\ud83d"]}, {"input_string": "\ud83d a"}])
    assert [r["tokens"] for r in made] == [["\ufffd"], ["\ufffd", "a"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["Ada", "lives"]', ["Ada", "lives"]),
        ("['Ada', \"O'Neil\"]", ["Ada", "O'Neil"]),
        (" ['Ada' 'lives'\n 'in']", ["Ada", "lives", "in"]),
        ("array(['New York', 'is'], dtype=object)", ["New York", "is"]),
        ("['Ada', 3, None]", ["Ada", "3", ""]),
        ("[]", []),
    ],
)
def test_words_in_a_cell_of_a_csv(text: str, words: list[str]) -> None:
    """As pandas and NumPy write lists; a column of texts has no lists."""
    (row,) = tc_rows.serve([{"input_string": tc_rows.cell("tokens", text)}])
    assert row["tokens"] == words and tc_rows.accepts(tc_rows.cell("tokens", text))
    assert tc_rows.cell("input_string", text) == tc_rows.cell("text", text) == text
    assert tc_rows.cell("tokens", "Ada lives.") == "Ada lives."


def test_a_cell_that_is_no_list() -> None:
    for text, reason in (("['Ada', ", "neither JSON nor"), ("['Ada' ... 'in']", CUT_SHORT), ("[['Ada']]", "a token")):
        with pytest.raises(Unusable) as caught:
            tc_rows.cell("tokens", text)
        assert str(caught.value).removeprefix("the tokens are ").startswith(reason)


def test_what_may_be_served() -> None:
    assert [tc_rows.accepts(v) for v in ("a b", "", ["a", "b"], [], ("a",), np.array(["a", "b"]))] == [True] * 6
    assert [tc_rows.accepts(v) for v in (None, 3, ["a", 3], {"a": 1}, [["a"], "a"], [["a", 3]])] == [False] * 6
    for v in (["a b"], ["a", "b\tc"], ["A b.", "C d."], [["a"], ["b"]], [[["a"]]]):
        assert not tc_rows.accepts(v), v
    for v in ([" ", "\n", " a", "b "], ["10\u00a0000"], [["a"]], [["A b.", "c"]], np.array([["A b", "c"]]), [[]]):
        assert tc_rows.accepts(v), v


@given(SENTENCES)
def test_words_are_asked_as_they_are(words: list[str]) -> None:
    """Those of the proof, of which some may hold spaces."""
    record = tc_rows.request(row(*words))
    assert tc_rows.accepts(record["input_string"])
    assert tc_rows.serve([record])[0]["tokens"] == words


def test_spans_of_a_row_of_a_file() -> None:
    assert tc_rows.places_of(row("a", "", "bc")) == [(0, 1), (2, 2), (3, 5)]
