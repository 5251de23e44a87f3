"""Words that stand one in each row are gathered into sentences; other tables are left alone."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.core.errors import DataError
from finetune.data.readers import read_table
from finetune.data.table import Audit, Row
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.tasks.token_classification import rows as tc_rows
from tests.tasks.token_classification.conftest import validated

WANTED = [
    ("1", 11, ["Ada", "met", "Eva"], ["B-PER", "O", "B-PER"]),
    ("2", 14, ["Go"], ["O"]),
    ("3", 15, ["To", "Oslo"], ["O", "B-LOC"]),
]


def words(sentence: str, word: str, tag: str | None, ids: Any = (1, 1, 1, 2, 3, 3), **more: Any) -> list[Row]:
    """A row for each word of WANTED."""
    tokens, tags = ([item for part in WANTED for item in part[i]] for i in (2, 3))
    rows = [{sentence: i, word: w, **more} for i, w in zip(ids, tokens, strict=True)]
    return [{**row, tag: t} for row, t in zip(rows, tags, strict=True)] if tag else rows


def shown(rows: list[Row]) -> list[tuple[str, int, list[str], list[str] | None]]:
    return [(r["id"], r["row"], r["tokens"], r["tags"]) for r in rows]


@pytest.mark.parametrize(
    ("sentence", "word", "tag"),
    [
        ("sentence_id", "words", "labels"),
        ("sent_id", "word", "label"),
        ("sentence", "token", "tag"),
        ("Sentence #", "Word", "Tag"),
        ("sentence_idx", "tokens", "ner_tags"),
        ("sentence_number", "tokens", "NER"),
        ("SentenceId", "Token", "tags"),
    ],
)
def test_one_word_in_each_row(sentence: str, word: str, tag: str) -> None:
    rows, audit = validated(*words(sentence, word, tag, POS="X", id=7))
    assert shown(rows) == WANTED
    assert all(r["text"] is None for r in rows)
    assert audit.problems == {}
    (note,) = audit.notes
    assert f"3 sentences by '{sentence}', words in '{word}', tags in '{tag}'" in note


@pytest.mark.parametrize("blank", ["", None, float("nan")])
def test_a_blank_id_means_the_one_above(blank: Any) -> None:
    ids = ("Sentence: 1", blank, blank, "Sentence: 2", "Sentence: 3", blank)
    rows, _ = validated(*words("Sentence #", "Word", "Tag", ids))
    assert shown(rows) == [(f"Sentence: {i}", *rest) for i, *rest in WANTED]


def test_as_a_csv_file(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("Sentence #,Word,POS,Tag\nS1,Ada,NNP,B-PER\n,met,VBD,O\n,,,\nS2,Oslo,NNP,B-LOC\n")
    rows = tc_rows.validate(read_table(file), TokenClassificationColumns(tag_key="POS"), Audit())
    assert shown(rows) == [("S1", 2, ["Ada", "met"], ["NNP", "VBD"]), ("S2", 5, ["Oslo"], ["NNP"])]


def test_named_columns_win() -> None:
    rows, _ = validated(*words("sent_id", "form", "ne", words="x", label="O"), token_key="form", tag_key="ne")
    assert shown(rows) == WANTED


def test_a_named_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no column 'wrd'"):
        validated(*words("sent_id", "word", "tag"), token_key="wrd")
    with pytest.raises(DataError, match="no column 'tg'"):
        validated(*words("sent_id", "word", "tag"), tag_key="tg")


def test_words_without_tags() -> None:
    rows, audit = validated(*words("sentence_id", "words", None))
    assert shown(rows) == [(*part[:3], None) for part in WANTED]
    assert "no tags" in audit.notes[0]


def test_sentences_numbered_in_each_document() -> None:
    first, second = (words("sent_id", "word", "tag", doc_id=name) for name in ("a", "b"))
    rows, audit = validated(*first, *second)
    assert [r["id"] for r in rows] == ["a 1", "a 2", "a 3", "b 1", "b 2", "b 3"]
    assert [r["tokens"] for r in rows] == [part[2] for part in WANTED] * 2
    assert "6 sentences by 'doc_id' and 'sent_id'" in audit.notes[0]


def test_missing_words_and_tags_are_told_as_in_lists() -> None:
    made = words("sentence_id", "words", "labels")
    made[1]["words"], made[3]["labels"] = None, ""
    rows, audit = validated(*made)
    assert [r["tokens"] for r in rows] == [["Ada", "", "Eva"], ["To", "Oslo"]]
    assert {reason: p["rows"] for reason, p in audit.problems.items()} == {
        "a token is null; empty instead": [11],
        "a tag is missing": [14],
    }


def test_a_sentence_in_two_places() -> None:
    with pytest.raises(DataError) as raised:
        validated(*words("sentence_id", "words", "labels", (1, 1, 2, 1, 3, 2)))
    (fault,) = raised.value.faults
    assert fault.what == "2 sentences go on after another one"
    assert fault.where == "file.csv, rows 11 and 14: sentence_id '1'"
    assert fault.fix == "sort the rows by 'sentence_id', or number the sentences on through the file"


@pytest.mark.parametrize(
    "row",
    [
        {"sentence_id": 1, "tokens": ["a", "b"], "ner_tags": ["O", "O"]},
        {"sentence_id": 1, "tokens": "['a', 'b']", "ner_tags": "['O', 'O']"},
        {"sentence_id": 1, "tokens": "['a' 'b']", "ner_tags": "['O' 'O']"},
        {"sentence_id": 1, "tokens": "a b", "ner_tags": "O O"},
    ],
)
def test_rows_of_lists_are_left_alone(row: Row) -> None:
    rows, audit = validated(row, row)
    assert [r["tags"] for r in rows] == [["O", "O"]] * 2
    assert audit.notes == []


def test_rows_whose_ids_differ_are_left_alone() -> None:
    rows, audit = validated(*({"sentence_id": i, "tokens": "Go home"} for i in range(3)))
    assert [r["tokens"] for r in rows] == [["Go", "home"]] * 3
    assert audit.notes == []


def test_a_column_of_numbers_is_taken_before_one_of_sentences() -> None:
    made = [{"sentence": "Ada met Eva.", **row} for row in words("sentence_id", "word", "tag")]
    rows, _ = validated(*made)
    assert shown(rows) == WANTED


SENTENCES = st.lists(st.lists(st.text("ab[]'\",.1 ", min_size=1, max_size=4), min_size=1, max_size=5), min_size=1)


@given(SENTENCES, st.booleans())
def test_no_word_is_lost_or_moved(sentences: list[list[str]], blank: bool) -> None:
    """However odd the words are, as long as most could be words."""
    sentences = [["Ada", "met", "Eva", "."] * 5, *[[word.strip() or "x" for word in part] for part in sentences]]
    made = [
        {"sent_id": i if j == 0 or not blank else None, "word": word, "tag": "O"}
        for i, part in enumerate(sentences)
        for j, word in enumerate(part)
    ]
    rows, audit = validated(*made)
    assert [r["tokens"] for r in rows] == sentences
    assert audit.problems == {}
