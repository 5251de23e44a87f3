"""Read texts with spans, as annotators' tools and spaCy write them.

doccano, Prodigy, spaCy, Label Studio and Dataturks differ in where text and spans stand and in how a span is written.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from finetune.core.errors import DataError, Fault
from finetune.core.types import Json
from finetune.data.table import Row, Table
from finetune.data.values import Kept, Unusable, clean, missing, parsed
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.tasks.token_classification.spans import PLAIN, Cut, Raw, Span, placed, reading_of

_SPANS = ("label", "labels", "entities", "spans", "ents", "annotations", "annotation", "completions")
_TOKENS, _TEXT = TokenClassificationColumns.token_key, TokenClassificationColumns.text_key
_TEXTS = ("data", "content")  # in place of "text": older doccano; Dataturks
_STARTS, _ENDS = ("start", "start_offset", "start_char"), ("end", "end_offset", "end_char")
_LABELS = ("label", "labels", "type", "entity", "entity_type", "entity_group", "tag")
_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(\.0+)?\s*")
_SHAPE = "a span is neither [start, end, label] nor an object with start, end and label"


class Source(NamedTuple):
    """The place of texts and spans in a table."""

    text: str  # column
    key: str  # key of the text, where the column holds objects
    spans: str  # column
    reading: str  # what offsets count, a key of READINGS
    note: str


def find(table: Table, columns: TokenClassificationColumns, cut: Cut) -> Source | None:
    """Return where the table has texts and spans; None where it has words, or no spans.

    Raises: DataError if there are spans but no text, or spans in two columns.
    """
    if columns.spans_key:
        table.require({"spans_key": columns.spans_key})
    elif _has_words(table, columns.token_key) or columns.token_key not in (_TOKENS, *table.columns):
        return None
    spans = columns.spans_key or _spans_column(table)
    if not spans:
        return None
    source = Source(_text_column(table, columns.text_key), columns.text_key, spans, PLAIN, "")
    reading, why = reading_of(_unplaced(table, source), cut)
    note = f"texts in {source.text!r}, spans in {spans!r}; words are cut as in text that is served{why}"
    return source._replace(reading=reading, note=note)


def _has_words(table: Table, key: str) -> bool:
    """Return whether the column is there, and doesn't hold lists of objects, as Prodigy and spaCy write tokens."""
    first = next((row[key] for row in table.rows if row.get(key)), None)
    return key in table.columns and not (isinstance(first, list) and isinstance(first[0], dict))


def _spans_column(table: Table) -> str | None:
    """Return the column that holds spans; else one that holds empty lists alone. Raises: DataError if there are two."""
    there = [name for name in _SPANS if name in table.columns]
    found = [name for name in there if any(_has_spans(row.get(name), row) for row in table.rows)]
    if len(found) > 1:
        what = f"spans stand in two columns: {', '.join(found)}"
        raise DataError(Fault(what, where=table.name, fix=f"--spans_key {found[0]}"))
    empty = [name for name in there if any(_has_spans(row.get(name), row) is False for row in table.rows)]
    return next(iter(found or empty), None)


def _has_spans(value: object, row: Row) -> bool | None:
    """Return whether a cell holds a list of spans that isn't empty; None if it is something else."""
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return None
    try:
        listed = _listed(value, _is_task(row), [])
        spans = [raw for item in listed or () for raw in _raw(item, [])]
    except Unusable:
        return None
    return bool(spans) if listed is not None or value == [] else None


def _text_column(table: Table, wanted: str) -> str:
    """Return the column of the texts, or of objects that have them under `wanted`. Raises: DataError."""
    tasks = [row["data"] for row in table.rows if _is_task(row)]
    if tasks and wanted not in table.columns:
        keys = tuple(dict.fromkeys(str(key) for data in tasks for key in data))
        Table(f"{table.name}, data", keys, [], []).require({"text_key": wanted})
        return "data"
    if wanted == _TEXT:
        wanted = next((name for name in (wanted, *_TEXTS) if name in table.columns), wanted)
    table.require({"text_key": wanted})
    return wanted


def _is_task(row: Row) -> bool:
    """Return whether the row is a task of Label Studio, whose texts stand in an object named data."""
    return isinstance(row.get("data"), dict)


def read(row: Row, source: Source, repairs: list[str]) -> tuple[str, list[Span] | None]:
    """Return the text of a row and its spans; None where it isn't annotated. Raises: Unusable."""
    answer = row.get("answer")  # of Prodigy
    if answer in ("reject", "ignore"):
        raise Unusable(f"its answer is {answer}, not accept")
    text = _text(row, source, repairs)
    listed = _listed(row.get(source.spans), _is_task(row), repairs)
    if listed is None:
        return text, [] if answer == "accept" else None
    spans = (placed(text, raw, source.reading, repairs) for item in listed for raw in _raw(item, repairs))
    return text, [span for span in spans if span.start < span.end]


def _text(row: Row, source: Source, repairs: list[str]) -> str:
    text = row.get(source.text)
    text = text.get(source.key) if isinstance(text, dict) else text
    if not isinstance(text, str):
        raise Unusable("no text")
    return clean(text, repairs)


def _listed(value: object, is_task: bool, repairs: list[str]) -> list[object] | None:
    """Return the spans of a cell as they were written; None where nobody looked. Raises: Unusable."""
    value = parsed(value, "the spans") if isinstance(value, str) and not missing(value) else value
    if isinstance(value, dict):
        value = value["entities"] if "entities" in value else _from_columns(value)
    if missing(value):
        return None
    if not isinstance(value, list | tuple):
        raise Unusable("the spans are not a list")
    of_tasks = value and all(isinstance(item, dict) and "result" in item for item in value)
    return _of_one_annotator(value, repairs) if is_task or of_tasks else list(value)


def _from_columns(value: Json) -> object:
    """Return {start: […], end: […], label: […]}, as datasets writes a list of objects, as that list."""
    columns = list(value.values())
    if not columns or not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return value
    return [dict(zip(value, parts, strict=True)) for parts in zip(*columns, strict=True)]


def _of_one_annotator(annotations: Sequence[object], repairs: list[str]) -> list[object] | None:
    """Return the spans of the first annotation of a task of Label Studio that isn't cancelled; None where all are."""
    done = [a for a in annotations if isinstance(a, dict) and not (a.get("was_cancelled") or a.get("skipped"))]
    if not done:
        return None
    if len(done) > 1:
        repairs.append(Kept("annotated more than once; the first annotation is taken"))
    result = done[0].get("result")
    if result is None:
        return None
    if not isinstance(result, list | tuple):
        raise Unusable("the spans are not a list")
    regions = [region for region in result if isinstance(region, dict)]
    kinds = {str(region.get("type")) for region in regions}
    for kind in sorted(kinds - {"labels"}):
        if kind.endswith("labels"):  # of pictures, of HTML; others, such as choices, are no spans at all
            raise Unusable(f"its {kind} are not spans of characters")
    return [region.get("value") for region in regions if region.get("type") == "labels"]


def _raw(item: object, repairs: list[str]) -> Iterator[Raw]:
    """Yield the spans that an item of a list means; it is more than one in Dataturks alone. Raises: Unusable."""
    if isinstance(item, list | tuple) and len(item) >= 3:
        yield Raw(_whole(item[0]), _whole(item[1]), item[2], None)
        return
    if not isinstance(item, dict):
        raise Unusable(_SHAPE)
    label = _any_of(item, _LABELS)
    points = item.get("points")
    for point in points if isinstance(points, list) else [item]:
        if not isinstance(point, dict):
            raise Unusable(_SHAPE)
        text = point.get("text")
        end = _whole(_any_of(point, _ENDS)) + isinstance(points, list)  # Dataturks counts the last character in
        yield Raw(_whole(_any_of(point, _STARTS)), end, label, text if isinstance(text, str) and text.strip() else None)


def _any_of(item: Json, keys: Sequence[str]) -> object:
    return next((item[key] for key in keys if key in item), None)


def _whole(value: object) -> int:
    found = None if isinstance(value, bool) else _WHOLE.fullmatch(str(value))
    if value is None or found is None or len(found[1]) > 18:  # more digits than any text has characters
        raise Unusable(_SHAPE if value is None else "an offset of a span is not a whole number")
    return int(found[1])


def _unplaced(table: Table, source: Source) -> Iterator[tuple[str, list[Raw]]]:
    """Yield the texts of a table, each with its spans that have no text of their own."""
    for row in table.rows:
        with contextlib.suppress(Unusable):
            listed = _listed(row.get(source.spans), _is_task(row), []) or ()
            yield _text(row, source, []), [raw for item in listed for raw in _raw(item, []) if raw.text is None]
