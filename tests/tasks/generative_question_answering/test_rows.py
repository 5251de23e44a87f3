"""Answers in any words, however a file holds them."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.core.errors import DataError
from finetune.data.readers import read_table
from finetune.data.table import Audit
from finetune.params.datapreprocess import QuestionAnsweringColumns
from finetune.tasks.generative_question_answering import rows
from tests.conftest import write_jsonl

ASKED = {"question": "Who?", "context": "It was Ada."}


def validated(folder: Path, *given: dict[str, Any], **columns: str) -> tuple[list[Any], Audit]:
    audit = Audit()
    table = read_table(write_jsonl(folder / "rows.jsonl", list(given)))
    found = rows.validate(table, QuestionAnsweringColumns(**columns), audit)
    return [row["answers"] and row["answers"]["text"] for row in found], audit


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ({"text": ["Lovelace"], "answer_start": [99]}, ["Lovelace"]),
        ({"text": ["Lovelace", " Ada "]}, ["Lovelace", "Ada"]),
        ({"text": "Lovelace"}, ["Lovelace"]),
        ([{"text": "Lovelace"}, {"text": "Ada"}], ["Lovelace", "Ada"]),
        (json.dumps({"text": ["Lovelace"]}), ["Lovelace"]),
        ("Lovelace", ["Lovelace"]),
        (["Lovelace", "Ada"], ["Lovelace", "Ada"]),
        ({"text": [], "answer_start": []}, []),
        (None, None),
    ],
)
def test_forms_of_answers(tmp_path: Path, cell: object, texts: list[str] | None) -> None:
    """In words that the context doesn't have, and without offsets."""
    found, audit = validated(tmp_path, {**ASKED, "answers": cell})
    assert found == [texts] and not audit.dropped


def test_a_flag_says_that_there_is_no_answer(tmp_path: Path) -> None:
    found, _ = validated(tmp_path, {**ASKED, "answers": {"text": ["Ada"]}, "is_impossible": True})
    assert found == [[]]


def test_objects_without_text(tmp_path: Path) -> None:
    _, audit = validated(tmp_path, {**ASKED, "answers": {"texts": ["Ada"]}})
    assert audit.lines() == ["dropped 1: answers are not an object with 'text' (rows 1)"]


def test_a_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="context"):
        validated(tmp_path, {"question": "Who?", "answers": "Ada"})


def test_squad_files_are_read(tmp_path: Path) -> None:
    """As extractive question answering reads them."""
    asked = {"id": "a", "question": "Who?", "answers": [{"text": "Lovelace", "answer_start": 3}]}
    data = {"data": [{"paragraphs": [{"context": "It was Ada.", "qas": [asked]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(data))
    audit = Audit()
    found = rows.validate(read_table(tmp_path / "squad.json"), QuestionAnsweringColumns(), audit)
    assert found == [{"id": "a", "row": 1, **ASKED, "answers": {"text": ["Lovelace"]}}]
    assert rows.damage(found[0]) == "" and rows.damage({**found[0], "answers": ["x"]}) != ""
