"""Make rows of words and their tags of whatever a file holds."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

import numpy as np

from finetune.core.console import some
from finetune.core.reading import misfit
from finetune.data.table import Audit, Row, StoredRows, Table
from finetune.data.values import CUT_SHORT, Unusable, audited, clean, missing, parsed, without_surrogates
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.tasks.token_classification import annotations, sentences
from finetune.tasks.token_classification.spans import tags_of

# Text is cut into words at white space, before and after the signs that written language puts around words, and
# between characters of scripts without spaces.
_EDGE = re.escape(".,;:!?()[]{}<>\"'`´«»“”„‘’‚…¿¡%$€£。、，；：！？（）「」『』《》〈〉")
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_INNER = rf"[^\s{_EDGE}{_ALONE}]"
WORD = re.compile(rf"{_INNER}(?:[^\s{_ALONE}]*{_INNER})?|\S")
# What NumPy prints has no commas, which Python would take for one long string: ['EU' 'rejects' 'it'], [1 0 0]
_ITEM = r"""'[^']*'|"[^"]*"|[^\s'",\[\]]+"""
_NUMPY = re.compile(rf"\s*\[\s*(?:{_ITEM})(?:\s+(?:{_ITEM}))*\s*\]\s*")
_NUMBER = r"-?\d{1,18}\.?"
_NAMED = {"none": None, "null": None, "nan": None, "true": True, "false": False}
_CONSTANT = re.compile(rf"""['"].*|{_NUMBER}|(?i:{"|".join(_NAMED)})""", re.DOTALL)
_ELLIPSES = ("...", "\N{HORIZONTAL ELLIPSIS}")
# As spaCy tags words that a span cuts through, and CoNLL-U what nobody has looked at. Where such a sign is the word
# itself, it may be its own part of speech.
NOT_ANNOTATED = ("-", "_")
_LEFT_OUT = "- and _ are read as not annotated; such words are left out of loss and metrics"
_LISTS = ("[", "array(", "tensor(")  # how the text of a list begins
_TEXTS = re.compile(r"\S[ \t\r\n]+\S")  # white space that is found between words; a number may hold a no-break space


def validate(table: Table, columns: TokenClassificationColumns, audit: Audit) -> StoredRows:
    """Return rows of {id, row, text, tokens, tags}; `tags` is None where the row isn't annotated, or for a word of it.

    `text` is None unless it is more than the words with a space between. A file without any column of tags is for
    prediction only. Raises: DataError if another column is missing.
    """
    source = annotations.find(table, columns, words_of)
    if source is not None:
        table = replace(table, notes=(*table.notes, source.note))
        rows = audited(table, partial(_of_text, source=source), audit)
        unknown = {word for row in rows for word, tag in zip(row["tokens"], row["tags"] or (), strict=False) if not tag}
        if unknown:
            audit.notes.append(f"words through which a span cuts, or of its span: {some(sorted(unknown))}")
        return rows
    if "paragraphs" in table.columns and columns.token_key not in table.columns:
        table, columns = sentences.from_spacy(table, columns)
    else:
        table, columns = sentences.gathered(table, columns)
    needed = {"token_key": columns.token_key}
    if columns.tag_key != TokenClassificationColumns.tag_key:
        needed["tag_key"] = columns.tag_key  # asked for by name, so a slip of the pen is not "no tags"
    table.require(needed)
    return audited(table, partial(_row, columns=columns), audit)


def _of_text(row: Row, repairs: list[str], source: annotations.Source) -> Row:
    text, found = annotations.read(row, source, repairs)
    words = words_of(text)
    if not words:
        raise Unusable("no tokens")
    tags = None if found is None else tags_of(found, words, repairs)
    known = tags is not None and any(tag is not None for tag in tags)
    return {"text": text, "tokens": [text[start:end] for start, end in words], "tags": tags if known else None}


def _row(row: Row, repairs: list[str], columns: TokenClassificationColumns) -> Row:
    tokens = _listed(row.get(columns.token_key), "the tokens", repairs)
    if not tokens:
        raise Unusable("no tokens")
    tags = _listed(row.get(columns.tag_key), "the tags", repairs)
    if tags is not None and len(tags) != len(tokens):
        raise Unusable("another number of tags than of tokens")
    words = [_token(token, repairs) for token in tokens]
    return {
        "text": None,
        "tokens": words,
        "tags": None if tags is None else _annotated(words, [_tag(tag, repairs) for tag in tags], repairs),
    }


def _annotated(words: list[str], tags: list[str], repairs: list[str]) -> list[str | None] | None:
    """Return the tags, None for each word that isn't annotated, or None if no word is."""
    found = [None if tag in NOT_ANNOTATED and tag != word else tag for word, tag in zip(words, tags, strict=True)]
    if all(tag is None for tag in found):
        return None
    if None in found:
        repairs.append(_LEFT_OUT)
    return found


def _listed(value: object, what: str, repairs: list[str]) -> list[object] | None:
    """Return a list, given as such, as JSON or Python text, or as words with spaces; None where there is nothing."""
    if missing(value):
        return None
    if isinstance(value, str) and value.lstrip().startswith(_LISTS):
        value = _of_numpy(value, what) if _NUMPY.fullmatch(value) else parsed(value, what)
    elif isinstance(value, str):
        repairs.append(f"{what} are text, not a list; split at white space")
        value = value.split()
    if not isinstance(value, list | tuple):
        raise Unusable(f"{what} are not a list")
    return list(value)


def _of_numpy(text: str, what: str) -> object:
    """Return the list that NumPy printed without commas: of quoted text, numbers, or tags without quotes."""
    items = re.findall(_ITEM, text)
    if any(item in _ELLIPSES for item in items):
        raise Unusable(CUT_SHORT)
    if what != "the tags" and not all(_CONSTANT.fullmatch(item) for item in items):
        return parsed(text, what)
    return [_printed(item) for item in items]


def _printed(item: str) -> str | int | bool | None:
    if item[0] in "'\"":
        return item[1:-1]
    if item.lower() in _NAMED:
        return _NAMED[item.lower()]
    return int(item.rstrip(".")) if re.fullmatch(_NUMBER, item) else item


def _token(value: object, repairs: list[str]) -> str:
    if isinstance(value, str):
        return clean(value, repairs)
    if missing(value):
        repairs.append("a token is null; empty instead")
        return ""
    if isinstance(value, list | tuple | dict):
        raise Unusable("a token is a list or an object")
    repairs.append("a token is not a string; its text instead")
    return str(value)


def _tag(value: object, repairs: list[str]) -> str:
    if missing(value):
        raise Unusable("a tag is missing")
    if isinstance(value, bool | list | tuple | dict):
        raise Unusable("a tag is neither text nor a number")
    if isinstance(value, float):
        if not value.is_integer():
            raise Unusable("a tag is neither text nor a number")
        value = int(value)
    if isinstance(value, int) and value < 0:
        raise Unusable("a tag is missing")  # prepared data say so by -1 and -100
    tag = clean(str(value), repairs).strip()
    if tag in _ELLIPSES:
        raise Unusable(CUT_SHORT)
    if isinstance(value, str) and tag != value:
        repairs.append("white space around a tag")
    return tag


def words_of(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each word of a text."""
    return [match.span() for match in WORD.finditer(text)]


class _Row(TypedDict):
    """A row as `validate` makes it."""

    id: str
    row: int
    text: str | None
    tokens: list[str]
    tags: list[str | None] | None


def damage(row: Row) -> str:
    """Return what is wrong with a row that was read from rows.jsonl; "" if nothing is."""
    if why := misfit(row, _Row, "the row"):
        return why
    if row["tags"] is not None and len(row["tags"]) != len(row["tokens"]):
        return "it has another number of tags than of words"
    try:
        places_of(row)
    except ValueError:
        return "its words don't stand in its text"
    return ""


def has_gold(row: Row) -> bool:
    return row["tags"] is not None


def kinds(row: Row) -> set[str]:
    """Return the tags of the row: it is a row of each."""
    return {tag for tag in row["tags"] or () if tag is not None}


def cell(name: str, text: str) -> object:
    """Return the words, in a list of their own, that the text of a column `tokens` lists; any other text as it is.

    Raises: Unusable if the list can't be read.
    """
    if name != "tokens" or not text.lstrip().startswith(_LISTS):
        return text
    return [[_token(token, []) for token in _listed(text, "the tokens", []) or ()]]


def serve(records: Sequence[Row]) -> list[Row]:
    """Return the records as rows without tags, of text that is split into words, or of words."""
    rows = []
    for i, record in enumerate(records):
        given = _words_alone(record["input_string"])
        text = without_surrogates(given) if isinstance(given, str) else None
        tokens = WORD.findall(text) if text is not None else [without_surrogates(word) for word in given]
        rows.append({"id": str(i), "row": i, "text": text, "tokens": tokens, "tags": None})
    return rows


def request(row: Row) -> Row:
    """Return the row as a record to serve: its text, if it has one, so that spans refer to that; else its words.

    The words are in a list of their own where one of them could be a text.
    """
    if row["text"] is not None:
        return {"input_string": row["text"]}
    words = row["tokens"]
    return {"input_string": [words] if any(map(_TEXTS.search, words)) else words}


def accepts(value: object) -> bool:
    """Return whether the value is text, or words that can't be taken for texts, or a list of words in a list."""
    if isinstance(value, list | tuple | np.ndarray):
        words = _words_alone(value)
        marked = words is not value
        return all(isinstance(word, str) and (marked or not _TEXTS.search(word)) for word in words)
    return isinstance(value, str)


def _words_alone(value: Any) -> Any:
    """Return the words of a list that holds nothing but a list of them; any other value as it is."""
    inner = value[0] if not isinstance(value, str) and len(value) == 1 else value
    return inner if isinstance(inner, list | tuple | np.ndarray) else value


def text_of(row: Row) -> str:
    """Return the text that character spans refer to."""
    return " ".join(row["tokens"]) if row["text"] is None else row["text"]


def places_of(row: Row) -> list[tuple[int, int]]:
    """Return the start and end of each word in `text_of(row)`."""
    text, found, end = text_of(row), [], 0
    for i, token in enumerate(row["tokens"]):
        # Between words there is one space, or what the text has there.
        start = text.index(token, end) if row["text"] is not None else end + (i > 0)
        end = start + len(token)
        found.append((start, end))
    return found
