"""Make rows of a question, a context and answers of whatever a file holds."""

import re
from collections.abc import Sequence
from functools import partial
from typing import TypedDict

from finetune.core.reading import misfit
from finetune.data.table import Audit, Row, StoredRows, Table
from finetune.data.values import Kept, Unusable, audited, clean, missing, parsed, without_surrogates
from finetune.params.datapreprocess import QuestionAnsweringColumns
from finetune.tasks.question_answering.exports import flat
from finetune.tasks.question_answering.placing import bare, placed

Answers = list[tuple[str, int | None]]  # texts and offsets; None where no offset is given

IMPOSSIBLE = "is_impossible"
NO_ANSWER = "CANNOTANSWER"  # QuAC and CoQA write it behind each context
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_OFFSET = re.compile(r"\s*([+-]?[0-9]{1,99})(\.0+)?\s*")


def validate(table: Table, columns: QuestionAnsweringColumns, audit: Audit) -> StoredRows:
    """Return rows of {id, row, question, context, answers: {text, answer_start} | None}; None means not annotated.

    A file without any answers column is for prediction only. Raises: DataError if another column is missing, or the
    file is a broken export.
    """
    return audited(flattened(table, columns, audit), partial(_row, columns=columns), audit)


def flattened(table: Table, columns: QuestionAnsweringColumns, audit: Audit) -> Table:
    """Return the table with one row for each question. Raises: DataError if a column is missing, or the export is
    broken."""
    table = flat(table, columns, audit)
    needed = {"question_key": columns.question_key, "context_key": columns.context_key}
    if columns.answers_key != QuestionAnsweringColumns.answers_key:
        needed["answers_key"] = columns.answers_key  # asked for by name, so a slip of the pen is not "no answers"
    table.require(needed)
    return table


def _row(row: Row, repairs: list[str], columns: QuestionAnsweringColumns) -> Row:
    question, context, answers = asked(row, repairs, columns)
    found = [placed(context, text, start, repairs) for text, start in answers or []]
    return {
        "question": question,
        "context": context,
        "answers": None
        if answers is None
        else {"text": [text for text, _ in found], "answer_start": [start for _, start in found]},
    }


def asked(
    row: Row, repairs: list[str], columns: QuestionAnsweringColumns, offsets: bool = True
) -> tuple[str, str, Answers | None]:
    """Return question, context and answers of a row of `flattened`; None where it isn't annotated.

    Objects of answers need no offsets where `offsets` is false. Raises: Unusable.
    """
    question = _text(row.get(columns.question_key), "no question", repairs)
    context = _text(row.get(columns.context_key), "no context", repairs)
    given = _answers(row.get(columns.answers_key), columns, offsets)
    return question, context, _unflagged(row, given, context, repairs)


def _unflagged(row: Row, answers: Answers | None, context: str, repairs: list[str]) -> Answers | None:
    """Return the answers without those that the row's flag, or the mark of QuAC and CoQA, says are none."""
    impossible = _is_impossible(row, repairs)
    if impossible:
        if answers:
            repairs.append(f"{IMPOSSIBLE} is true beside an answer; read as unanswerable")
        return []
    if impossible is False and answers == []:
        repairs.append(Kept(f"{IMPOSSIBLE} is false, but there is no answer; read as unanswerable"))
    if not answers or not context.rstrip().endswith(NO_ANSWER):
        return answers
    found = [answer for answer in answers if answer[0].strip() != NO_ANSWER]
    if len(found) < len(answers):
        repairs.append(f"{NO_ANSWER} at the end of the context means that there is no answer; no answer instead")
    return found


def _is_impossible(row: Row, repairs: list[str]) -> bool | None:
    """Return the flag of SQuAD v2, which tables and JSON write in several ways; None where it isn't given."""
    if IMPOSSIBLE not in row or missing(value := row[IMPOSSIBLE]):
        return None
    if (text := str(value).strip().lower()) in _FLAGS:
        return _FLAGS[text]
    repairs.append(Kept(f"{IMPOSSIBLE} is neither true nor false; not heeded"))
    return None


def _text(value: object, reason: str, repairs: list[str]) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Unusable(reason)
    return clean(value, repairs)


def _answers(value: object, columns: QuestionAnsweringColumns, offsets: bool) -> Answers | None:
    """Return (text, offset) of each answer of {"text": …, "answer_start": …}, a list of such, or text of either."""
    if missing(value):
        return None
    if isinstance(value, str):
        value = parsed(value, "answers")
    keys = columns.answer_text_key, columns.answer_start_key
    found: list[tuple[object, object]] = []
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict) or keys[0] not in part or (offsets and keys[1] not in part):
            raise Unusable(f"answers are not an object with {keys[0]!r}" + (f" and {keys[1]!r}" if offsets else ""))
        texts, starts = (_listed(part.get(key)) for key in keys)
        if not offsets or part[keys[1]] is None:
            starts = [None] * len(texts)
        if len(texts) != len(starts):
            raise Unusable("answers have another number of texts than of offsets")
        found += zip(texts, starts, strict=True)
    return [_answer(text, start) for text, start in found if not _is_empty(text)]


def _answer(text: object, start: object) -> tuple[str, int | None]:
    offset = None if isinstance(start, bool) else _OFFSET.fullmatch(str(start))
    if not isinstance(text, str) or (offset is None and not missing(start)):
        raise Unusable("an answer's text is not a string, or its offset is not a number")
    return without_surrogates(text), int(offset[1]) if offset else None


def _is_empty(text: object) -> bool:
    return not bare(text) if isinstance(text, str) else missing(text)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


class _Answers(TypedDict):
    text: list[str]
    answer_start: list[int]


class _Row(TypedDict):
    """A row as `validate` makes it."""

    id: str
    row: int
    question: str
    context: str
    answers: _Answers | None


def damage(row: Row) -> str:
    """Return what is wrong with a row that was read from rows.jsonl; "" if nothing is."""
    why = misfit(row, _Row, "the row")
    if why or row["answers"] is None:
        return why
    texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
    if len(texts) != len(starts):
        return "it has another number of texts than of offsets"
    places = zip(texts, starts, strict=True)
    stands = all(start >= 0 and row["context"].startswith(text, start) for text, start in places)
    return "" if stands else "an answer doesn't stand at its offset"


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
