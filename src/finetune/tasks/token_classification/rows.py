"""Make rows of words and their tags of whatever a file holds."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from finetune.data.table import Audit, Row, Table
from finetune.data.values import Unusable, audited, clean, missing, parsed, without_surrogates
from finetune.params.datapreprocess import TokenClassificationColumns

# Text is cut into words at white space, before and after the signs that written language puts around words, and
# between characters of scripts without spaces.
_EDGE = re.escape(".,;:!?()[]{}<>\"'`´«»“”„‘’‚…¿¡%$€£。、，；：！？（）「」『』《》〈〉")
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_INNER = rf"[^\s{_EDGE}{_ALONE}]"
WORD = re.compile(rf"{_INNER}(?:[^\s{_ALONE}]*{_INNER})?|\S")
# What NumPy prints has no commas, which Python would take for one long string: ['EU' 'rejects' 'it']
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_NUMPY = re.compile(rf"""\s*\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))*\s*\]\s*""")


def validate(table: Table, columns: TokenClassificationColumns, audit: Audit) -> list[Row]:
    """Return rows of {id, row, text, tokens, tags}; `tags` is None where the row isn't annotated.

    `text` is None unless it is more than the words with a space between. A file without any column of tags is for
    prediction only. Raises: DataError if another column is missing.
    """
    needed = {"token_key": columns.token_key}
    if columns.tag_key != TokenClassificationColumns.tag_key:
        needed["tag_key"] = columns.tag_key  # asked for by name, so a slip of the pen is not "no tags"
    table.require(needed)
    return audited(table, partial(_row, columns=columns), audit)


def _row(row: Row, repairs: list[str], columns: TokenClassificationColumns) -> Row:
    tokens = _listed(row.get(columns.token_key), "the tokens", repairs)
    if not tokens:
        raise Unusable("no tokens")
    tags = _listed(row.get(columns.tag_key), "the tags", repairs)
    if tags is not None and len(tags) != len(tokens):
        raise Unusable("another number of tags than of tokens")
    return {
        "text": None,
        "tokens": [_token(token, repairs) for token in tokens],
        "tags": None if tags is None else [_tag(tag, repairs) for tag in tags],
    }


def _listed(value: Any, what: str, repairs: list[str]) -> list[Any] | None:
    """Return a list, given as such, as JSON or Python text, or as words with spaces; None where there is nothing."""
    if missing(value):
        return None
    if isinstance(value, str) and value.lstrip().startswith(("[", "array(")):
        value = [word[1:-1] for word in _QUOTED.findall(value)] if _NUMPY.fullmatch(value) else parsed(value, what)
    elif isinstance(value, str):
        repairs.append(f"{what} are text, not a list; split at white space")
        value = value.split()
    if not isinstance(value, list | tuple):
        raise Unusable(f"{what} are not a list")
    return list(value)


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
    if isinstance(value, str) and tag != value:
        repairs.append("white space around a tag")
    return tag


def has_gold(row: Row) -> bool:
    return row["tags"] is not None


def kinds(row: Row) -> set[str]:
    """Return the tags of the row: it is a row of each."""
    return set(row["tags"] or ())


def serve(records: Sequence[Row]) -> list[Row]:
    """Return the records as rows without tags, of text that is split into words, or of words."""
    rows = []
    for i, record in enumerate(records):
        given = record["input_string"]
        text = without_surrogates(given) if isinstance(given, str) else None
        tokens = WORD.findall(text) if text is not None else [without_surrogates(word) for word in given]
        rows.append({"id": str(i), "row": i, "text": text, "tokens": tokens, "tags": None})
    return rows


def accepts(value: object) -> bool:
    """Return whether the value is text or words."""
    if isinstance(value, list | tuple | np.ndarray):
        return all(isinstance(word, str) for word in value)
    return isinstance(value, str)


def text_of(row: Row) -> str:
    """Return the text that character spans refer to."""
    return " ".join(row["tokens"]) if row["text"] is None else row["text"]


def spans(row: Row) -> list[tuple[int, int]]:
    """Return the start and end of each word in `text_of(row)`."""
    text, found, end = text_of(row), [], 0
    for i, token in enumerate(row["tokens"]):
        # Between words there is one space, or what the text has there.
        start = text.index(token, end) if row["text"] is not None else end + (i > 0)
        end = start + len(token)
        found.append((start, end))
    return found
