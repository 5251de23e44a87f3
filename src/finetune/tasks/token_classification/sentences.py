"""Gather words that stand one by one, in a row or an object each, into rows of sentences."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from finetune.core.errors import DataError, Fault
from finetune.data.table import Row, Table
from finetune.data.values import missing
from finetune.params.datapreprocess import TokenClassificationColumns

UNKNOWN = "-"  # spaCy's tag of a word of which it isn't known whether it belongs to an entity

_DEFAULTS = TokenClassificationColumns()
_NUMBER = r"[ _.-]*(#|id|idx|index|number|num|no|nr)?"
_SENTENCE = re.compile(rf"sent(?:ence)?{_NUMBER}", re.IGNORECASE)
_DOCUMENT = re.compile(rf"doc(?:ument)?{_NUMBER}", re.IGNORECASE)
_WORDS = ("words", "word", "token", "tokens")
_TAGS = ("labels", "label", "tag", "tags", "ner", "ner_tags")


def gathered(table: Table, columns: TokenClassificationColumns) -> tuple[Table, TokenClassificationColumns]:
    """Return the table with a row for each sentence, and its columns, where it has a row for each word.

    The columns become lists. Other tables are returned as they are. Raises: DataError if a sentence is in two places.
    """
    word = _named(table, columns.token_key, _WORDS if columns.token_key == _DEFAULTS.token_key else ())
    tag = _named(table, columns.tag_key, _TAGS if columns.tag_key == _DEFAULTS.tag_key else ())
    ids = [name for pattern in (_DOCUMENT, _SENTENCE) if (name := _numbered(table, pattern))]
    if not ids or not _SENTENCE.fullmatch(ids[-1]) or word is None or not _one_by_one(table, ids[-1], word, tag):
        return table, columns
    rows, numbers = _grouped(table, ids, tuple(name for name in (word, tag) if name))
    shown = f"tags in {tag!r}" if tag else "no tags"
    note = f"one word in each row; {len(rows)} sentences by {' and '.join(map(repr, ids))}, "
    note += f"words in {word!r}, {shown}"
    grouped = replace(table, rows=rows, numbers=numbers, notes=(*table.notes, note))
    return grouped, replace(columns, token_key=word, tag_key=tag or columns.tag_key)


def _named(table: Table, wanted: str, others: Sequence[str]) -> str | None:
    """Return the wanted column, else the first of the others that is there, in capitals or not."""
    if wanted in table.columns:
        return wanted
    there = {name.lower(): name for name in reversed(table.columns)}
    return next((there[name] for name in others if name in there), None)


def _numbered(table: Table, pattern: re.Pattern[str]) -> str | None:
    """Return the column named so, rather one that says that it holds numbers."""
    found = [match for name in table.columns if (match := pattern.fullmatch(name))]
    return max(found, key=lambda match: match[1] is not None)[0] if found else None


def _one_by_one(table: Table, sentence: str, word: str, tag: str | None) -> bool:
    """Return whether most rows hold one word and one tag, and sentences go on in the next row."""
    ids = [row.get(sentence) for row in table.rows]
    goes_on = any(missing(after) or after == before for before, after in pairwise(ids))
    if not goes_on or any(isinstance(value, list | tuple | dict) for value in ids):
        return False
    return _mostly_single(table, word) and (tag is None or _mostly_single(table, tag, spaces=False))


def _mostly_single(table: Table, column: str, spaces: bool = True) -> bool:
    cells = [value for row in table.rows if not missing(value := row.get(column))]
    several = [
        isinstance(value, list | tuple | dict)
        or (isinstance(value, str) and bool(_is_list(value) or (not spaces and len(value.split()) > 1)))
        for value in cells
    ]
    return 2 * sum(several) < len(several)


def _is_list(text: str) -> bool:
    """Return whether the text is that of a list of texts, or of an array."""
    text = text.strip()
    return (text.startswith("[") and text.endswith("]") and ("'" in text or '"' in text)) or (
        text.startswith("array(") and text.endswith(")")
    )


def _grouped(table: Table, ids: Sequence[str], read: Sequence[str]) -> tuple[list[Row], list[int]]:
    """Return the rows of sentences and where each begins; a blank id means the one above, a blank row nothing.

    Raises: DataError if a sentence goes on after another.
    """
    parts: list[list[Row]] = []
    begun: dict[tuple[str, ...], int] = {}  # sentence -> where it begins, in the order of `parts`
    again: list[tuple[str, int, int]] = []
    key: tuple[str, ...] = ("",) * len(ids)
    for number, row in zip(table.numbers, table.rows, strict=True):
        if all(missing(row.get(name)) for name in (*ids, *read)):
            continue
        before = key
        key = tuple(old if missing(row.get(name)) else str(row[name]) for name, old in zip(ids, key, strict=True))
        if not parts or key != before:
            if key in begun:
                again.append((" ".join(key), begun[key], number))
            begun[key] = number
            parts.append([])
        parts[-1].append(row)
    if again:
        name, first, second = again[0]
        what = (
            f"{len(again)} sentences go on after another one"
            if len(again) > 1
            else "a sentence goes on after another one"
        )
        where = f"{table.name}, rows {first} and {second}: {ids[-1]} {name!r}"
        fix = f"sort the rows by {ids[-1]!r}, or number the sentences on through the file"
        raise DataError(Fault(what, where=where, why="the words of a sentence stand together", fix=fix))
    columns = [{name: [row.get(name) for row in part] for name in table.columns} for part in parts]
    rows = [{**lists, "id": " ".join(key)} for key, lists in zip(begun, columns, strict=True)]
    return rows, list(begun.values())


def from_spacy(table: Table, columns: TokenClassificationColumns) -> tuple[Table, TokenClassificationColumns]:
    """Return training data of spaCy 2, documents of paragraphs of sentences, as a table of sentences, and its columns.

    Rows are numbered by sentence. Raises: DataError if the nesting is broken.
    """
    rows: list[Row] = []
    for number, document in zip(table.numbers, table.rows, strict=True):
        try:
            for paragraph in document["paragraphs"] or ():
                rows += [_as_columns(sentence["tokens"] or ()) for sentence in paragraph["sentences"] or ()]
        except (KeyError, TypeError, AttributeError) as error:
            why = f"a document is an object of paragraphs, each with sentences of tokens ({error})"
            raise DataError(Fault("broken spaCy file", where=f"{table.name}, row {number}", why=why)) from None
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    note = f"{len(rows)} sentences of spaCy's training JSON, numbered in their order"
    nested = Table(table.name, names, rows, list(range(1, len(rows) + 1)), (*table.notes, note))
    word = columns.token_key if columns.token_key in names else "orth"
    tag = "ner" if columns.tag_key == _DEFAULTS.tag_key else columns.tag_key
    return nested, replace(columns, token_key=word, tag_key=tag)


def _as_columns(tokens: Sequence[Row]) -> Row:
    names = dict.fromkeys(name for token in tokens for name in token if name != "id")  # that of a token, not of a row
    columns: Row = {name: [token.get(name) for token in tokens] for name in names}
    tags = columns.get("ner", [])
    return {**columns, "ner": _known(tags)} if tags else columns


def _known(tags: Sequence[str | None]) -> list[str] | None:
    """Return the tags with UNKNOWN for missing ones; None where nothing is known."""
    made = [UNKNOWN if tag is None else tag for tag in tags]
    return None if set(made) == {UNKNOWN} else made
