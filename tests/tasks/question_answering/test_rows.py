"""Whatever a file holds -> rows."""

from typing import Any

import pytest

from finetune.core.errors import DataError
from finetune.data.table import Row
from finetune.tasks.question_answering import rows as qa_rows
from tests.tasks.question_answering.conftest import validated


def asked(answers: Any) -> Row:
    return {"id": "x", "question": "Who?", "context": "It was Ada Lovelace in 1843.", "answers": answers}


ADA = {"text": ["Ada"], "answer_start": [7]}


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
        ({"answers": {"text": ["Ada"], "answer_start": ["9" * 5000]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["first"]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["--7"]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["²"]}}, "offset is not a number"),
        ({"answers": {"text": ["Ada"], "answer_start": [True]}}, "offset is not a number"),
        ({"answers": {"text": [7], "answer_start": [7]}}, "not a string"),
        ({"answers": {"text": ["Ada"]}}, "not an object with 'text' and 'answer_start'"),
        ({"answers": ["Ada"]}, "not an object"),  # beside rows with objects
        ({"answers": "Ada"}, "neither JSON nor"),
        ({"answers": "{'text': exit(), 'answer_start': [7]}"}, "neither JSON nor"),
        ({"answers": [{"text": "Ada", "answer_start": 7}, {"text": "Ada"}]}, "not an object with"),
        ({"answers": {"text": ["Ada"], "answer_start": [7.5]}}, "offset is not a number"),
        ({"answers": {"text": ["Grace"], "answer_start": [7]}}, "not in the context"),
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


@pytest.mark.parametrize("start", [None, [None], [float("nan")], [""]])
def test_an_offset_that_is_null_is_not_given(start: Any) -> None:
    (made,), audit = validated(asked({"text": ["Ada"], "answer_start": start}))
    assert made["answers"] == ADA
    assert list(audit.problems) == ["no answer_start; the answer stands at one place"]


@pytest.mark.parametrize("flag", [True, 1, 1.0, "true", "TRUE", " True ", "1"])
@pytest.mark.parametrize(
    "answers", [None, [], {"text": ["Ada"], "answer_start": [7]}, {"text": "x", "answer_start": 0}]
)
def test_impossible_questions_have_no_answer(flag: object, answers: Any) -> None:
    """Whatever stands beside the flag; plausible answers are none."""
    plausible = {"plausible_answers": [{"text": "Ada", "answer_start": 7}]}
    (made,), audit = validated({**asked(answers), **plausible, "is_impossible": flag})
    assert made["answers"] == {"text": [], "answer_start": []}
    reason = "is_impossible is true beside an answer; read as unanswerable"
    assert audit.problems == ({reason: {"action": "repaired", "count": 1, "rows": [11]}} if answers else {})


@pytest.mark.parametrize("flag", [False, 0, 0.0, "false", "FALSE", "0"])
def test_contradicted_flags_are_counted(flag: object) -> None:
    empty = {"text": [], "answer_start": []}
    rows, audit = validated(*({**asked(answers), "is_impossible": flag} for answers in (ADA, empty, None)))
    assert [row["answers"] for row in rows] == [ADA, empty, None]
    reason = "is_impossible is false, but there is no answer; read as unanswerable"
    assert audit.problems["its id has occurred before; `row` tells them apart"]
    assert audit.problems[reason] == {"action": "kept", "count": 1, "rows": [12]}


@pytest.mark.parametrize("flag", [None, float("nan"), "", "maybe", 2])
def test_a_flag_that_says_nothing(flag: object) -> None:
    (made,), audit = validated({**asked(ADA), "is_impossible": flag})
    assert made["answers"] == ADA
    strange = {"is_impossible is neither true nor false; not heeded"} if flag in ("maybe", 2) else set()
    assert set(audit.problems) == strange


def test_cannotanswer() -> None:
    """QuAC and CoQA write it behind each context; several annotators may not agree. Elsewhere it is text like other."""
    context = "It was Ada Lovelace in 1843. CANNOTANSWER"
    mark = {"text": "CANNOTANSWER", "answer_start": 29}
    given = [([mark], context), ([mark, {"text": "Ada", "answer_start": 7}], context), ([mark], context + " was said")]
    rows, audit = validated(*({**asked(a), "id": i, "context": c} for i, (a, c) in enumerate(given)))
    assert [row["answers"]["text"] for row in rows] == [[], ["Ada"], ["CANNOTANSWER"]]
    ((_, entry),) = audit.problems.items()
    assert entry == {"action": "repaired", "count": 2, "rows": [11, 12]}


@pytest.mark.parametrize("key", ["id", "uid", "_id", "qid", "question_id", "guid"])
def test_ids_are_kept(key: str) -> None:
    row = {key: value for key, value in asked(ADA).items() if key != "id"}
    (made, unnamed), _ = validated({**row, key: "q7"}, {**row, key: None})
    assert (made["id"], unnamed["id"]) == ("q7", "12")


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
