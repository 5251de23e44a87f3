"""Make rows of a question, a context and answers of whatever a file holds."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from finetune.core.errors import DataError, Fault
from finetune.data.table import Audit, Row, Table
from finetune.data.values import Unusable, audited, clean, missing, parsed, without_surrogates
from finetune.params.datapreprocess import QuestionAnsweringColumns

REPAIR_DISTANCE = 50  # characters around a wrong offset in which the answer is looked for
_OFFSET = re.compile(r"\s*([+-]?[0-9]+)(\.0+)?\s*")


def validate(table: Table, columns: QuestionAnsweringColumns, audit: Audit) -> list[Row]:
    """Return rows of {id, row, question, context, answers: {text, answer_start} | None}; None means not annotated.

    A file without any answers column is for prediction only. Raises: DataError if another column is missing.
    """
    table = flatten(table)
    needed = {"question_key": columns.question_key, "context_key": columns.context_key}
    if columns.answers_key != QuestionAnsweringColumns.answers_key:
        needed["answers_key"] = columns.answers_key  # asked for by name, so a slip of the pen is not "no answers"
    table.require(needed)
    return audited(table, partial(_row, columns=columns), audit)


def flatten(table: Table) -> Table:
    """Return a SQuAD file as published, articles of paragraphs of questions, as one row for each question.

    Rows are then numbered by question. Raises: DataError if the nesting is broken.
    """
    if "paragraphs" not in table.columns:
        return table
    rows: list[Row] = []
    for number, article in enumerate(table.rows, start=1):
        try:
            for paragraph in article["paragraphs"]:
                rows += [{**asked, "context": paragraph["context"]} for asked in paragraph["qas"]]
        except (KeyError, TypeError) as error:
            why = f"an article is an object of paragraphs, each with context and qas ({error})"
            raise DataError(Fault("broken SQuAD file", where=f"{table.name}, article {number}", why=why)) from None
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(table.name, columns, rows, list(range(1, len(rows) + 1)))


def _row(row: Row, repairs: list[str], columns: QuestionAnsweringColumns) -> Row:
    question = _text(row.get(columns.question_key), "no question", repairs)
    context = _text(row.get(columns.context_key), "no context", repairs)
    answers = _answers(row.get(columns.answers_key), columns)
    if answers is not None:
        answers = [(text, _placed(context, text, start, repairs)) for text, start in answers]
    return {
        "question": question,
        "context": context,
        "answers": None
        if answers is None
        else {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
    }


def _text(value: object, reason: str, repairs: list[str]) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Unusable(reason)
    return clean(value, repairs)


def _answers(value: Any, columns: QuestionAnsweringColumns) -> list[tuple[str, int]] | None:
    """Return (text, offset) of each answer of {"text": …, "answer_start": …}, a list of such, or text of either."""
    if missing(value):
        return None
    if isinstance(value, str):
        value = parsed(value, "answers")
    keys = columns.answer_text_key, columns.answer_start_key
    found: list[tuple[Any, Any]] = []
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict) or keys[0] not in part or keys[1] not in part:
            raise Unusable(f"answers are not an object with {keys[0]!r} and {keys[1]!r}")
        texts, starts = (_listed(part[key]) for key in keys)
        if len(texts) != len(starts):
            raise Unusable("answers have another number of texts than of offsets")
        found += zip(texts, starts, strict=True)
    return [_answer(text, start) for text, start in found if not missing(text)]


def _answer(text: object, start: object) -> tuple[str, int]:
    offset = None if isinstance(start, bool) else _OFFSET.fullmatch(str(start))
    if not isinstance(text, str) or offset is None:
        raise Unusable("an answer's text is not a string, or its offset is not a number")
    return without_surrogates(text), int(offset[1])


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _placed(context: str, text: str, start: int, repairs: list[str]) -> int:
    """Return where the answer stands: at its offset, at the same offset counted otherwise, or near by."""
    if start >= 0 and context.startswith(text, start):
        return start
    for unit, encoding, width in (("UTF-16 units", "utf-16-le", 2), ("bytes", "utf-8", 1)):
        counted = len(context.encode(encoding)[: max(0, start) * width].decode(encoding, "ignore"))
        if counted != start and context.startswith(text, counted):
            repairs.append(f"answer_start counted {unit}")
            return counted
    low = max(0, start - REPAIR_DISTANCE)
    found = [i for i in range(low, start + REPAIR_DISTANCE + 1) if context.startswith(text, i)]
    if not found:
        raise Unusable("the answer is not in the context")
    repairs.append("answer_start was off; the answer stands near by")
    return min(found, key=lambda i: abs(i - start))


def has_gold(row: Row) -> bool:
    """Return whether it is known what the answer is, or that there is none."""
    return row["answers"] is not None


def kinds(row: Row) -> set[str]:
    """Return whether the row has an answer, as the kind of row that it is."""
    return {"answerable" if row["answers"] and row["answers"]["text"] else "unanswerable"}


def serve(records: Sequence[Row]) -> list[Row]:
    """Return the records as rows without answers."""
    return [
        {
            "id": str(i),
            "row": i,
            "question": without_surrogates(record["question"]),
            "context": without_surrogates(record["context"]),
            "answers": None,
        }
        for i, record in enumerate(records)
    ]
