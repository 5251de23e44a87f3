"""Make rows of a question, a context and answers in any words: they need not stand in the context."""

from collections.abc import Sequence
from functools import partial
from typing import TypedDict

from finetune.core.reading import misfit
from finetune.data.table import Audit, Row, StoredRows, Table
from finetune.data.values import audited
from finetune.params.datapreprocess import QuestionAnsweringColumns
from finetune.tasks.question_answering.placing import bare
from finetune.tasks.question_answering.rows import asked, flattened


def validate(table: Table, columns: QuestionAnsweringColumns, audit: Audit) -> StoredRows:
    """Return rows of {id, row, question, context, answers: {text} | None}; None means not annotated.

    Files are those of extractive question answering, whose offsets are passed over. Raises: DataError.
    """
    return audited(flattened(table, columns, audit), partial(_row, columns=columns), audit)


def _row(row: Row, repairs: list[str], columns: QuestionAnsweringColumns) -> Row:
    question, context, answers = asked(row, repairs, columns, offsets=False)
    given = None if answers is None else {"text": [bare(text) for text, _ in answers]}
    return {"question": question, "context": context, "answers": given}


class _Answers(TypedDict):
    text: list[str]


class _Row(TypedDict):
    """A row as `validate` makes it."""

    id: str
    row: int
    question: str
    context: str
    answers: _Answers | None


def damage(row: Row) -> str:
    """Return what is wrong with a row that was read from rows.jsonl; "" if nothing is."""
    return misfit(row, _Row, "the row")


def first_answers(rows: Sequence[Row]) -> list[str | None]:
    """Return what is learnt of each row: its first answer, "" where there is none; None where it isn't annotated."""
    return [None if row["answers"] is None else next(iter(row["answers"]["text"]), "") for row in rows]
