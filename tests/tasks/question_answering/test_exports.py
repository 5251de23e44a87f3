"""The forms in which tools and data sets write questions -> a row for each question."""

from typing import Any

import pytest

from finetune.core.errors import DataError
from finetune.data.table import Row
from tests.tasks.question_answering.conftest import validated

CONTEXT = "The well was dug by Bo in 1712, and [sic] closed by Kit [2]."
BO = {"text": "Bo", "answer_start": 20}
KIT = {"text": "Kit", "answer_start": 52}
NONE: Row = {"text": [], "answer_start": []}


def paragraph(*questions: Any, **more: Any) -> Row:
    return {"context": CONTEXT, "qas": list(questions), **more}


def question(name: str, answers: Any = (BO,)) -> Row:
    return {"id": name, "question": "Who?", "answers": list(answers)}


def flat(answer: Any, start: Any = None, **more: Any) -> Row:
    row = {"question": "Who?", "context": CONTEXT, "answer": answer, **more}
    return row if start is None else {**row, "answer_start": start}


def texts(rows: list[Row]) -> list[list[str] | None]:
    return [row["answers"] and row["answers"]["text"] for row in rows]


# --- nested ---


def test_what_holds_no_questions_is_passed_over_and_named() -> None:
    """The numbers are those of articles and of paragraphs in the file; rows are numbered by question."""
    empty = [paragraph(qas=None), {"context": CONTEXT}, paragraph(), None]
    articles = [
        {
            "context": "In short",
            "paragraphs": [paragraph(question("a"), question("b")), *empty, paragraph(question("c"))],
        },
        {"title": "two"},
        {"title": "three", "paragraphs": None},
        {"title": "four", "paragraphs": []},
        {"title": "five", "paragraphs": [paragraph(question("d"), qas=None), paragraph(question("e"), None)]},
    ]
    rows, audit = validated(*articles)
    assert [(row["id"], row["row"]) for row in rows] == [("a", 1), ("b", 2), ("c", 3), ("e", 4)]
    assert audit.problems == {
        "paragraphs without questions": {"action": "passed over", "count": 5, "rows": [2, 3, 4, 5, 7]},
        "articles without paragraphs": {"action": "passed over", "count": 3, "rows": [2, 3, 4]},
        "no question": {"action": "dropped", "count": 1, "rows": [5]},
    }
    assert audit.dropped == 1
    assert "passed over 3: articles without paragraphs (2, 3, 4)" in audit.lines()


def test_paragraphs_without_articles() -> None:
    rows, audit = validated(
        paragraph(question("a")), paragraph(qas=None), {"context": CONTEXT}, paragraph(question("b"))
    )
    assert [(row["id"], row["row"]) for row in rows] == [("a", 1), ("b", 2)]
    assert audit.lines() == ["passed over 2: paragraphs without questions (2, 3)"]


def test_other_keys_of_nested_files() -> None:
    asked = {"qid": "a", "ask": "Who?", "gold": [BO]}
    names = {"question_key": "ask", "context_key": "passage", "answers_key": "gold"}
    (made,), _ = validated({"paragraphs": [{"passage": CONTEXT, "qas": [asked], "document_id": 3}]}, **names)
    assert (made["id"], made["context"], made["answers"]["text"]) == ("a", CONTEXT, ["Bo"])


def test_rows_that_have_a_question_are_not_nested() -> None:
    (made,), _ = validated({**flat("Bo"), "paragraphs": ["The well"], "qas": "none"})
    assert made["answers"]["text"] == ["Bo"]


def test_lost_contexts_of_nested_questions_are_counted() -> None:
    rows, audit = validated({"paragraphs": [paragraph(question("a")), paragraph(question("b"), context=None)]})
    assert [row["id"] for row in rows] == ["a"]
    assert audit.lines() == ["dropped 1: no context (rows 2)"]


@pytest.mark.parametrize(
    ("article", "parts"),
    [
        ({"paragraphs": {"context": CONTEXT}}, ("article 2", "paragraphs is a list, this is dict")),
        ({"paragraphs": [paragraph(question("b")), 7]}, ("article 2", "number 2 of this one is int")),
        ({"paragraphs": [paragraph(question("b")), {"qas": "Who?"}]}, ("article 2, paragraph 3", "this is str")),
        ({"paragraphs": [paragraph("Who?")]}, ("article 2, paragraph 2", "number 1 of this one is str")),
    ],
)
def test_broken_nesting(article: Row, parts: tuple[str, str]) -> None:
    with pytest.raises(DataError) as error:
        validated({"paragraphs": [paragraph(question("a"))]}, article)
    assert [part for part in parts if part not in str(error.value)] == []


def test_nested_without_any_question() -> None:
    with pytest.raises(DataError, match="none of its 2 paragraphs has questions"):
        validated({"paragraphs": [paragraph(), {"context": CONTEXT}]})


# --- Label Studio ---


def span(text: str, *labels: str, start: int | None = None) -> Row:
    start = CONTEXT.index(text) if start is None else start
    return {"start": start, "end": start + len(text), "text": text, "labels": list(labels)}


def task(number: int, *annotations: Any, **data: Any) -> Row:
    results = [{"result": [{"value": value} for value in values], "was_cancelled": False} for values in annotations]
    return {"id": number, "data": {"question": "Who?", "text": CONTEXT, **data}, "annotations": results}


def test_label_studio() -> None:
    """Nobody looked, somebody found nothing, two found the same and another thing; what was cancelled is none."""
    cancelled = task(5, [span("Kit", "Answer")])
    cancelled["annotations"][0]["was_cancelled"] = True
    related = task(6, [span("Bo", "Answer"), {"choices": ["sure"]}])
    related["annotations"][0]["result"].append({"type": "relation", "from_id": "a", "to_id": "b"})
    two = task(3, [span("Bo", "Answer")], [span("Bo", "Answer"), span("Kit", "Answer")])
    rows, audit = validated(task(1), task(2, []), two, task(4, [span("1712", "Answer")]), cancelled, related)
    assert texts(rows) == [None, [], ["Bo", "Bo", "Kit"], ["1712"], None, ["Bo"]]
    assert [(row["id"], row["row"]) for row in rows] == [(str(i), 10 + i) for i in range(1, 7)]
    assert audit.problems == {}
    assert audit.notes == [
        "the answers are the spans with the label 'Answer' in 'answer', as Label Studio writes them; "
        "the contexts are in 'text'"
    ]


@pytest.mark.parametrize("column", ["answer", "label", "answers"])
@pytest.mark.parametrize("form", [lambda spans: spans, str], ids=["JSON_MIN", "CSV"])
def test_label_studio_flat(column: str, form: Any) -> None:
    """Where an annotator marked nothing, the column is missing or empty."""
    row = {"id": 4, "question": "Who?", "context": CONTEXT, "annotator": 1}
    rows, _ = validated(
        {**row, column: form([span("Kit", "Name")])}, row, {**row, column: ""}, {**row, "annotator": None}
    )
    assert texts(rows) == [["Kit"], [], [], None]


def test_what_is_no_span_is_dropped() -> None:
    row = {"question": "Who?", "text": CONTEXT}
    odd: list[Any] = ["Bo", [7], [{"start": 3}], {"choices": ["Bo"]}]
    rows, audit = validated({**row, "label": [span("Bo", "Answer")]}, *({**row, "label": cell} for cell in odd))
    assert (texts(rows), audit.dropped) == ([["Bo"]], 4)


def test_label_studio_with_several_labels() -> None:
    rows, _ = validated(
        task(1, [span("Bo", "answer"), span("well", "Question word")]), task(2, [span("well", "Place")])
    )
    assert texts(rows) == [["Bo"], []]
    with pytest.raises(DataError, match="any of these labels may mark the answers: Person, Place"):
        validated(task(1, [span("Bo", "Person"), span("well", "Place")]))


@pytest.mark.parametrize("broken", [{"data": 3}, {"annotations": [7]}, {"annotations": [{"result": None}]}])
def test_broken_label_studio(broken: Row) -> None:
    with pytest.raises(DataError, match=r"task 2"):
        validated(task(1, []), {**task(2, []), **broken})


def test_spans_without_text_are_not_taken_for_no_answer() -> None:
    with pytest.raises(DataError, match="whose spans have a text"):
        validated(task(1, [{"start": 1, "end": 3, "labels": ["Answer"]}]))


# --- columns ---


def test_columns_of_text() -> None:
    """Text is no JSON, whatever it looks like; offsets may be numbers or text."""
    rows, audit = validated(
        flat("Bo", 20), flat("1712", "26"), flat("[sic] closed", 36.0), flat("[2]", 56), flat("", 0), flat("", -1)
    )
    assert texts(rows) == [["Bo"], ["1712"], ["[sic] closed"], ["[2]"], None, []]
    assert audit.problems == {}
    assert audit.notes == [
        "the answers are the text of column 'answer', since there is no column 'answers'; "
        "their offsets are in 'answer_start'"
    ]


def test_text_without_offsets() -> None:
    rows, audit = validated(flat("Kit"), flat("well"), flat("d"), flat(None))
    assert [row["answers"] for row in rows] == [
        {"text": ["Kit"], "answer_start": [52]}, {"text": ["well"], "answer_start": [4]}, None,
    ]  # fmt: skip
    assert audit.problems == {
        "no answer_start; the answer stands at one place": {"action": "repaired", "count": 2, "rows": [11, 12]},
        "the answer stands inside other words alone": {"action": "dropped", "count": 1, "rows": [13]},
    }
    assert "each is placed where it stands once" in audit.notes[0]


@pytest.mark.parametrize("form", [lambda value: value, str], ids=["lists", "text of lists"])
def test_columns_of_lists(form: Any) -> None:
    """Without answers, an offset of -1 is none either."""
    rows, audit = validated(
        flat(form(["Bo", "Kit"]), form([20, 52])),
        flat(form([]), form([])),
        flat(form(["Bo"]), "20"),
        flat(form([]), -1),
    )
    assert texts(rows) == [["Bo", "Kit"], [], ["Bo"], []]
    assert audit.problems == {}


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ({"answer_text": "Kit", "answer": "2"}, "answer_text"),
        ({"answer": "Kit", "text": "Bo", "answer_start": 52}, "answer"),
        ({"text": "Kit", "answer_start": 52}, "text"),
        ({"answers": "Kit", "answer": "Bo"}, "answers"),
        ({"answers": ["Kit"], "answer_start": [52]}, "answers"),
        ({"answer": [KIT]}, "answer"),
        ({"answer": {"text": ["Kit"], "answer_start": [52]}}, "answer"),
    ],
)
def test_the_column_that_is_taken_is_named(columns: Row, taken: str) -> None:
    (made,), audit = validated({"question": "Who?", "context": CONTEXT, **columns})
    assert made["answers"] == {"text": ["Kit"], "answer_start": [52]}
    assert f"column {taken!r}" in audit.notes[0]


def test_a_column_of_text_by_name() -> None:
    row = {"q": "Who?", "text": CONTEXT, "reply": "Kit", "at": 52}
    names = {"question_key": "q", "context_key": "text", "answers_key": "reply", "answer_start_key": "at"}
    (made,), audit = validated(row, **names)
    assert made["answers"] == {"text": ["Kit"], "answer_start": [52]}
    assert audit.notes == ["the answers are the text of column 'reply'; their offsets are in 'at'"]


@pytest.mark.parametrize("more", [{"label": "Kit"}, {"text": "Kit"}, {"plausible_answers": [KIT]}, {"title": "Kit"}])
def test_columns_that_hold_no_answers(more: Row) -> None:
    (made,), audit = validated({"question": "Who?", "context": CONTEXT, **more})
    assert made["answers"] is None
    assert audit.notes == []


def test_broken_objects_are_not_text() -> None:
    """Beside objects, and where nothing in the column can only be text."""
    row = {"question": "Who?", "context": CONTEXT}
    whole = str({"text": ["Kit"], "answer_start": [52]})
    for cells, kept in (([whole, whole[:-5], "Kit"], [11]), ([whole[:-5], "[Kit"], [])):
        rows, audit = validated(*({**row, "answers": cell} for cell in cells))
        assert [made["row"] for made in rows] == kept
        assert audit.problems["answers are neither JSON nor a Python literal"]["count"] == 2


def test_a_flag_beside_text() -> None:
    rows, audit = validated(flat("Bo", 20, is_impossible="True"), flat("", "", is_impossible="True"), flat("Bo", 20))
    assert texts(rows) == [[], [], ["Bo"]]
    assert [problem["rows"] for problem in audit.problems.values()] == [[11]]
