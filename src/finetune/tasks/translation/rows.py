"""Make rows of a source and a target text of whatever a file holds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypedDict

from finetune.core.errors import Fault, ParameterError
from finetune.core.reading import misfit
from finetune.data.table import Audit, Row, StoredRows, Table
from finetune.data.values import Unusable, audited, clean, missing, parsed
from finetune.params.datapreprocess import TranslationColumns
from finetune.params.evaluation import TranslationEvaluationParams
from finetune.tasks.translation.swapped import note_swapped

PAIRS = "translation"  # column of {"en": …, "de": …} in data sets of the hub
SHORT = 10  # words


def validate(table: Table, columns: TranslationColumns | TranslationEvaluationParams, audit: Audit) -> StoredRows:
    """Return rows of {id, row, source, target}; a target of None means that there is none to compare with.

    Where evaluation reads a file, one without the column of targets is for prediction only. Raises: DataError if a
    column is missing, ParameterError if it isn't said which.
    """
    source, target = keys(columns)
    table = flat(table, source)
    needed = {"source_key" if columns.source_key else "source_lang": source}
    if not isinstance(columns, TranslationEvaluationParams) or columns.target_key or target in table.columns:
        needed["target_key" if columns.target_key else "target_lang"] = target
    table.require(needed)
    rows = audited(table, partial(_made, source=source, target=target), audit)
    note_swapped(rows, audit, (columns.source_lang or "", columns.target_lang or ""), (source, target))
    return rows


def keys(columns: TranslationColumns | TranslationEvaluationParams) -> tuple[str, str]:
    """Return the columns of sources and of targets. Raises: ParameterError if they aren't given."""
    found = (columns.source_key or columns.source_lang, columns.target_key or columns.target_lang)
    faults = [
        Fault(f"--{name} is missing", why="a file is read by its columns", fix=f"--{name} CODE")
        for name, key in zip(("source_lang", "target_lang"), found, strict=True)
        if not key
    ]
    if faults:
        raise ParameterError(*faults)
    return str(found[0]), str(found[1])


def flat(table: Table, source: str) -> Table:
    """Return the table with the texts of each language as a column, where they stand in one column of objects."""
    if source in table.columns or PAIRS not in table.columns:
        return table
    rows = ({**row, **_pair(row.get(PAIRS))} for row in table.rows)
    return Table.read(table.name, zip(table.numbers, rows, strict=True), table.notes)


def _pair(value: object) -> Mapping[str, object]:
    """Return the texts by language; none where the cell holds no object."""
    if isinstance(value, str):
        try:
            value = parsed(value, "translations")
        except Unusable:
            return {}
    return value if isinstance(value, dict) else {}


def _made(row: Row, repairs: list[str], source: str, target: str) -> Row:
    return {"source": _text(row.get(source), "source", repairs), "target": _target(row.get(target), repairs)}


def _text(value: object, what: str, repairs: list[str]) -> str:
    if missing(value):
        raise Unusable(f"no {what} text")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a sentence that is a number
    if not isinstance(value, str):
        raise Unusable(f"the {what} is not text")
    return clean(value, repairs).strip()


def _target(value: object, repairs: list[str]) -> str | None:
    return None if missing(value) else _text(value, "target", repairs)


def has_gold(row: Row) -> bool:
    return row["target"] is not None


def serve(records: Sequence[Row]) -> list[Row]:
    """Return rows of what is asked of the served model."""
    return [
        {"id": str(i), "row": i, "source": clean(record["input_string"], []).strip(), "target": None}
        for i, record in enumerate(records)
    ]


class _Row(TypedDict):
    """A row as `validate` makes it."""

    id: str
    row: int
    source: str
    target: str | None


def damage(row: Row) -> str:
    """Return what is wrong with a row that was read from rows.jsonl; "" if nothing is."""
    return misfit(row, _Row, "the row")


def kinds(row: Row) -> set[str]:
    return {"short" if len(row["source"].split()) <= SHORT else "long"}
