"""Whatever a file holds -> rows."""

from typing import Any

import pytest

from finetune.core.errors import DataError
from finetune.data.table import Row
from finetune.tasks.question_answering import rows as qa_rows
from tests.tasks.question_answering.conftest import validated


def asked(answers: Any) -> Row:
    return {"id": "x", "question": "Who?", "context": "It was Ada Lovelace in 1843.", "answers": answers}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Ada Lovelace"], "answer_start": [7]},
        {"text": "Ada Lovelace", "answer_start": 7},
        {"text": ["Ada Lovelace"], "answer_start": ["7"]},
        {"text": ["Ada Lovelace", None], "answer_start": [7, None]},
        '{"text": ["Ada Lovelace"], "answer_start": [7]}',
        '{"text": "Ada Lovelace", "answer_start": "7"}',
        {"text": ["Ada Lovelace"], "answer_start": [7.0]},
        {"text": ["Ada Lovelace", float("nan"), " "], "answer_start": [7, float("nan"), 0]},
        [{"text": "Ada Lovelace", "answer_start": 7}],
        '[{"text": "Ada Lovelace", "answer_start": 7}]',
        "{'text': ['Ada Lovelace'], 'answer_start': [7]}",
        "{'text': array(['Ada Lovelace'], dtype=object), 'answer_start': array([7], dtype=int32)}",
    ],
)
def test_answers_are_read(answers: Any) -> None:
    (made,), audit = validated(asked(answers))
    assert made == {**asked({"text": ["Ada Lovelace"], "answer_start": [7]}), "row": 11}
    assert audit.problems == {}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": [], "answer_start": []},
        {"text": None, "answer_start": None},
        '{"text":[],"answer_start":[]}',
        [],
        "[]",
        {"text": [""], "answer_start": [0]},
        {"text": [""], "answer_start": [None]},
        "{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}",
    ],
)
def test_empty_lists_mean_no_answer(answers: Any) -> None:
    (made,), _ = validated(asked(answers))
    assert made["answers"] == {"text": [], "answer_start": []}
    assert qa_rows.has_gold(made)


@pytest.mark.parametrize("answers", [None, "", "  ", float("nan")])
def test_no_answers_mean_not_annotated(answers: Any) -> None:
    (made,), _ = validated(asked(answers))
    assert made["answers"] is None
    assert not qa_rows.has_gold(made)


def test_file_without_answers_column() -> None:
    (made,), _ = validated({"question": "q", "context": "c"})
    assert made == {"id": "11", "row": 11, "question": "q", "context": "c", "answers": None}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"answers": {"text": ["Ada"], "answer_start": []}}, "another number of texts"),
        ({"answers": {"text": ["Ada"], "answer_start": [None]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["first"]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["--7"]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["²"]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": [True]}}, "offset is not a number"),
        ({"answers": {"text": [7], "answer_start": [7]}}, "not a string"),
        ({"answers": {"text": ["Ada"]}}, "not an object with 'text' and 'answer_start'"),
        ({"answers": ["Ada"]}, "not an object"),
        ({"answers": "Ada"}, "neither JSON nor"),
        ({"answers": "{'text': exit(), 'answer_start': [7]}"}, "neither JSON nor"),
        ({"answers": [{"text": "Ada", "answer_start": 7}, {"text": "Ada"}]}, "not an object with"),
        ({"answers": {"text": ["Ada"], "answer_start": [7.5]}}, "offset is not a number"),
        ({"answers": {"text": ["Grace"], "answer_start": [7]}}, "not in the context"),
        ({"answers": {"text": ["Ada"], "answer_start": [-400]}}, "not in the context"),
        ({"answers": {"text": ["Ada"], "answer_start": [400]}}, "not in the context"),
        ({"question": "  "}, "no question"),
        ({"question": None}, "no question"),
        ({"context": 5}, "no context"),
    ],
)
def test_wrong_rows_are_dropped_and_counted(wrong: Row, reason: str) -> None:
    good = asked({"text": ["Ada"], "answer_start": [7]})
    rows, audit = validated({**good, **wrong}, good, {**good, **wrong})
    assert [r["row"] for r in rows] == [12]
    ((found, entry),) = audit.problems.items()
    assert reason in found
    assert entry == {"action": "dropped", "count": 2, "rows": [11, 13]}


def test_wrong_offsets_near_by_are_repaired() -> None:
    """Within 50 characters; a row whose answer is farther away is dropped."""
    context = "Ada " + "x" * 60 + " Ada " + "y" * 60
    answers = [{"text": ["Ada"], "answer_start": [start]} for start in (3, 60, 65, 116, 1)]
    rows, audit = validated(*({"question": "q", "context": context, "answers": a} for a in answers))
    assert [r["answers"]["answer_start"] for r in rows] == [[0], [65], [65], [0]]
    assert audit.problems["answer_start was off; the answer stands near by"] == {
        "action": "repaired", "count": 3, "rows": [11, 12, 15],
    }  # fmt: skip
    assert audit.problems["the answer is not in the context"]["rows"] == [14]


def test_the_nearer_of_two_occurrences() -> None:
    answers = [{"text": ["Ada"], "answer_start": [start]} for start in (1, 19)]
    rows, _ = validated(*({"question": "q", "context": "Ada met another Ada.", "answers": a} for a in answers))
    assert [r["answers"]["answer_start"] for r in rows] == [[0], [16]]


def test_any_column_names() -> None:
    columns = {
        "question_key": "ask", "context_key": "passage", "answers_key": "gold", "answer_text_key": "spans",
        "answer_start_key": "at",
    }  # fmt: skip
    (made,), _ = validated({"ask": "Q", "passage": "a b", "gold": {"spans": ["b"], "at": [2]}}, **columns)
    assert made["answers"] == {"text": ["b"], "answer_start": [2]}
    assert (made["question"], made["context"]) == ("Q", "a b")


def test_missing_columns_are_an_error() -> None:
    with pytest.raises(DataError, match="did you mean context"):
        validated(asked(None), context_key="contexts")
