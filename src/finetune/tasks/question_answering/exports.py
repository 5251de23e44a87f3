"""Read the forms in which tools and data sets write questions: nested paragraphs, annotations, columns of text."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeGuard

from finetune.core.errors import DataError, Fault
from finetune.data.table import Audit, Row, Table
from finetune.data.values import Unusable, missing, parsed
from finetune.params.datapreprocess import QuestionAnsweringColumns as Columns

_STRUCTURES = "{", "[", "array("  # the beginnings of objects and lists as text


def flat(table: Table, columns: Columns, audit: Audit) -> Table:
    """Return the table with one row for each question, and its answers as objects in the column that `columns` names.

    Raises: DataError if a form is broken.
    """
    if columns.question_key not in table.columns:
        if {"paragraphs", "qas"} & set(table.columns):
            table = _of_rows(table, _asked(table, columns, audit))
        elif "data" in table.columns and {"annotations", "completions"} & set(table.columns):
            table = _of_rows(table, (_annotated(table, i) for i in range(len(table.rows))), table.numbers)
    return _with_answers(table, columns)


def _of_rows(table: Table, rows: Iterable[Row], numbers: Iterable[int] | None = None) -> Table:
    numbered = enumerate(rows, start=1) if numbers is None else zip(numbers, rows, strict=True)
    return Table.read(table.name, numbered, table.notes)


# --- SQuAD: articles of paragraphs, or paragraphs alone, each a context and its questions ---


def _asked(table: Table, columns: Columns, audit: Audit) -> Iterator[Row]:
    """Yield the rows of all questions; paragraphs without any are counted by their numbers in the file."""
    number = questions = 0
    for place, article in enumerate(table.rows, start=1):
        where = f"{table.name}, article {place}"
        is_paragraph = "paragraphs" not in article and ("qas" in article or columns.context_key in article)
        paragraphs = [article] if is_paragraph else _parts(article, "paragraphs", where)
        if not paragraphs:
            audit.add("passed over", "articles without paragraphs", place)
        for paragraph in paragraphs:
            number += 1
            asked = _parts(paragraph, "qas", f"{where}, paragraph {number} of the file")
            if not asked:
                audit.add("passed over", "paragraphs without questions", number)
            for question in asked:
                questions += 1
                yield {**question, columns.context_key: paragraph.get(columns.context_key)}
    if not questions:
        why = f"none of its {number} paragraphs has questions in a list named qas"
        raise DataError(Fault(f"{table.name} holds no questions", why=why))


def _parts(whole: Row, key: str, where: str) -> list[Row]:
    """Return the objects of a list in another object; null is an empty list, or an object without anything."""
    parts = whole.get(key)
    if parts is not None and not isinstance(parts, list):
        raise _broken(where, f"{key} is a list, this is {type(parts).__name__}")
    for i, part in enumerate(parts or [], start=1):
        if part is not None and not isinstance(part, dict):
            raise _broken(where, f"{key} is a list of objects, number {i} of this one is {type(part).__name__}")
    return [part or {} for part in parts or []]


def _broken(where: str, why: str) -> DataError:
    return DataError(Fault("broken SQuAD file", where=where, why=why))


# --- Label Studio ---


def _annotated(table: Table, i: int) -> Row:
    """Return a task of Label Studio's JSON as the row that its JSON_MIN has for it.

    An annotation without any span says that there is no answer, no annotation at all says nothing.
    """
    task = table.rows[i]
    try:
        done = [
            annotation
            for annotation in task.get("annotations") or task.get("completions") or []
            if not (annotation.get("was_cancelled") or annotation.get("skipped"))
        ]
        values = [result.get("value") or {} for annotation in done for result in annotation["result"]]
        spans = [{"text": value["text"], **value} for value in values if {"start", "end"} <= value.keys()]
        return {"id": task.get("id"), **task["data"], "answer": spans if done else None}
    except (KeyError, TypeError, AttributeError) as error:
        why = f"a task has data and annotations, each with a list named result, whose spans have a text ({error})"
        raise DataError(Fault("broken Label Studio export", where=f"{table.name}, task {i + 1}", why=why)) from None


def _holds_spans(table: Table, column: str) -> bool:
    """Return whether the first cell that isn't empty is a list of spans."""
    return _is_spans(_value(next((row[column] for row in table.rows if row.get(column)), None)))


def _is_spans(value: object) -> TypeGuard[list[Row]]:
    of = value if isinstance(value, list) else []
    return bool(of) and all(isinstance(span, dict) and {"start", "end", "text"} <= span.keys() for span in of)


def _of_spans(table: Table, column: str, columns: Columns) -> Table:
    """Return the rows with the spans of a column as answers. Raises: DataError if any of several labels may be meant.

    JSON_MIN and CSV leave the column empty where an annotator marked nothing.
    """
    cells = [_value(row.get(column)) for row in table.rows]
    label = _label(table.name, [span for cell in cells if _is_spans(cell) for span in cell])

    def answers(cell: object, row: Row) -> object:
        if missing(cell):
            return None if missing(row.get("annotator")) else []
        if not _is_spans(cell):
            return cell
        chosen = [span for span in cell if label in _labels(span)]
        return [{columns.answer_text_key: span["text"], columns.answer_start_key: span["start"]} for span in chosen]

    rows = [
        {columns.context_key: row.get("text"), **row, columns.answers_key: answers(cell, row)}
        for row, cell in zip(table.rows, cells, strict=True)
    ]
    note = f"the answers are the spans with the label {label!r} in {column!r}, as Label Studio writes them"
    if columns.context_key not in table.columns:
        note += "; the contexts are in 'text'"
    return _noted(_of_rows(table, rows, table.numbers), note)


def _label(name: str, spans: list[Row]) -> str:
    """Return the label of answers: the only one, or Answer. Raises: DataError if there are others alone."""
    labels = sorted({label for span in spans for label in _labels(span)})
    for label in labels:
        if len(labels) == 1 or label.lower() == "answer":
            return label
    why = f"any of these labels may mark the answers: {', '.join(labels)}"
    fix = "leave the spans of one label, or give the answers the label Answer"
    raise DataError(Fault("spans of several labels", where=name, why=why, fix=fix))


def _labels(span: Row) -> list[str]:
    """Return the labels, whose key is named after the kind of text; "" where there is none."""
    lists = [value for key, value in span.items() if key.endswith("labels") and isinstance(value, list)]
    return [str(label) for labels in lists for label in labels] or [""]


# --- columns ---


def _with_answers(table: Table, columns: Columns) -> Table:
    """Return the rows with objects as answers, where those stand in another column, as plain text or as spans."""
    key, why = columns.answers_key, ""
    if key == Columns.answers_key and key not in table.columns:
        key = _other_column(table, columns) or key
        why = f", since there is no column {columns.answers_key!r}"
    if key not in table.columns:
        return table
    if _holds_spans(table, key):
        return _of_spans(table, key, columns)
    cells = [row[key] for row in table.rows if not missing(row.get(key))]
    if any(_is_object(cell) for cell in cells):
        if key == columns.answers_key:
            return table
        rows = ({**row, columns.answers_key: row.get(key)} for row in table.rows)
        return _noted(_of_rows(table, rows, table.numbers), f"the answers are in column {key!r}{why}")
    if key == columns.answers_key and not any(_is_plain(cell) for cell in cells):
        return table
    return _of_text(table, key, why, columns, as_lists=all(isinstance(_value(cell), list) for cell in cells))


def _other_column(table: Table, columns: Columns) -> str | None:
    """Return the column that holds the answers where the one of that name is missing; labels are most often others."""
    names = ["answer_text", "answer", *(["label"] if _holds_spans(table, "label") else [])]
    if columns.answer_start_key in table.columns and columns.answer_text_key != columns.context_key:
        names.append(columns.answer_text_key)
    return next((name for name in names if name in table.columns), None)


def _of_text(table: Table, column: str, why: str, columns: Columns, as_lists: bool) -> Table:
    """Return the rows with the text of a column as answers, and the offsets of another; empty text at -1 is none."""

    def answers(row: Row) -> object:
        text, start = row.get(column), _value(row.get(columns.answer_start_key))
        if missing(text):
            return [] if str(start) in ("-1", "-1.0") else None
        texts = _listed(_value(text) if as_lists else text)
        starts = _listed(start) if texts and not missing(start) else [None] * len(texts)
        return {columns.answer_text_key: texts, columns.answer_start_key: starts}

    rows = ({**row, columns.answers_key: answers(row)} for row in table.rows)
    offsets = (
        f"their offsets are in {columns.answer_start_key!r}"
        if columns.answer_start_key in table.columns
        else f"each is placed where it stands once, since there is no column {columns.answer_start_key!r}"
    )
    note = f"the answers are the text of column {column!r}{why}; {offsets}"
    return _noted(_of_rows(table, rows, table.numbers), note)


def _value(cell: object) -> object:
    """Return the object or list that a cell is, or is the text of; other cells as they are."""
    if not (isinstance(cell, str) and cell.lstrip().startswith(_STRUCTURES)):
        return list(cell) if isinstance(cell, tuple) else cell
    try:
        return parsed(cell, "answers")
    except Unusable:
        return cell


def _is_object(cell: object) -> bool:
    value = _value(cell)
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _is_plain(cell: object) -> bool:
    """Return whether a cell can't be anything but text, or is a list of texts."""
    value = _value(cell)
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and not text.lstrip().startswith(_STRUCTURES) for text in texts)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _noted(table: Table, note: str) -> Table:
    return replace(table, notes=(*table.notes, note))
