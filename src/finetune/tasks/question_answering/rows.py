"""Rows of a question, a context and answers, out of whatever a file holds."""

import json
import re
from collections.abc import Sequence
from typing import Any

from finetune.params import QuestionAnsweringColumns
from finetune.tables import Audit, Row, Table

REPAIR_DISTANCE = 50  # characters around a wrong offset in which the answer is looked for


def validate(table: Table, columns: QuestionAnsweringColumns, audit: Audit) -> list[Row]:
    """Rows of {id, row, question, context, answers: {text, answer_start} | None}. None means: not annotated.

    Raises: DataError for a missing column. A file without any answers column is for prediction only.
    """
    needed = {"question_key": columns.question_key, "context_key": columns.context_key}
    if columns.answers_key != QuestionAnsweringColumns.answers_key:
        needed["answers_key"] = columns.answers_key  # asked for by name, so a slip of the pen is not "no answers"
    table.require(needed)
    rows = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        made = _row(row, number, columns)
        if isinstance(made, str):
            audit.add("dropped", made, number)
        else:
            placed, repaired = _place_answers(made)
            if placed is None:
                audit.add("dropped", "the answer is not in the context", number)
            else:
                rows.append(placed)
                if repaired:
                    audit.add("repaired", "answer_start was off; the answer stands near by", number)
    return rows


def _row(row: Row, number: int, columns: QuestionAnsweringColumns) -> Row | str:
    question, context = row.get(columns.question_key), row.get(columns.context_key)
    if not isinstance(question, str) or not question.strip():
        return "no question"
    if not isinstance(context, str) or not context.strip():
        return "no context"
    answers = _answers(row.get(columns.answers_key), columns)
    if isinstance(answers, str):
        return answers
    return {
        "id": str(row.get("id", number)),
        "row": number,
        "question": question,
        "context": context,
        "answers": answers,
    }


def _answers(value: Any, columns: QuestionAnsweringColumns) -> dict[str, list[Any]] | str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return "answers are not valid JSON"
    if not isinstance(value, dict) or not {columns.answer_text_key, columns.answer_start_key} <= value.keys():
        return f"answers are no object with {columns.answer_text_key!r} and {columns.answer_start_key!r}"
    texts, starts = _listed(value[columns.answer_text_key]), _listed(value[columns.answer_start_key])
    if len(texts) != len(starts):
        return "answers have another number of texts than of offsets"
    kept = [(text, start) for text, start in zip(texts, starts, strict=True) if text]
    if not all(isinstance(text, str) and _is_offset(start) for text, start in kept):
        return "an answer text is no string or its offset no number"
    return {"text": [text for text, _ in kept], "answer_start": [int(start) for _, start in kept]}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _is_offset(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", str(value)) is not None


def _place_answers(row: Row) -> tuple[Row | None, bool]:
    """The row with every offset at its text, and whether one had to be moved; None where a text isn't in reach."""
    if row["answers"] is None:
        return row, False
    context, starts = row["context"], []
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        if start >= 0 and context.startswith(text, start):
            starts.append(start)
            continue
        low = max(0, start - REPAIR_DISTANCE)
        found = [i for i in range(low, start + REPAIR_DISTANCE + 1) if context.startswith(text, i)]
        if not found:
            return None, False
        starts.append(min(found, key=lambda i: abs(i - start)))
    moved = starts != row["answers"]["answer_start"]
    return {**row, "answers": {"text": row["answers"]["text"], "answer_start": starts}}, moved


def has_gold(row: Row) -> bool:
    return row["answers"] is not None


def serve(records: Sequence[Row]) -> list[Row]:
    """Rows without answers."""
    return [
        {"id": str(i), "row": i, "question": record["question"], "context": record["context"], "answers": None}
        for i, record in enumerate(records)
    ]
