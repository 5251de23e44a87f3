"""Read what a cell of a table means: text, numbers and lists, however a file spelt them."""

import ast
import json
import re
from collections.abc import Callable
from math import isnan
from typing import Any

from finetune.data.table import Audit, Row, Table

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Unusable(Exception):
    """The reason why a row has to be dropped."""


def audited(table: Table, make: Callable[[Row, list[str]], Row], audit: Audit) -> list[Row]:
    """Return {id, row, and what `make(row, repairs)` gives} of each row; Unusable ones are dropped and counted.

    What was mended is appended to `repairs` by `make`.
    """
    rows: list[Row] = []
    ids: set[str] = set()
    for number, row in zip(table.numbers, table.rows, strict=True):
        repairs: list[str] = []
        try:
            made = make(row, repairs)
        except Unusable as reason:
            audit.add("dropped", str(reason), number)
            continue
        for repair in dict.fromkeys(repairs):
            audit.add("repaired", repair, number)
        own = without_surrogates(str(number if missing(row.get("id")) else row["id"]))
        if own in ids:
            audit.add("kept", "its id has occurred before; `row` tells them apart", number)
        ids.add(own)
        rows.append({"id": own, "row": number, **made})
    return rows


def missing(value: object) -> bool:
    """Return whether the value is None, blank text or NaN, as formats without null write it."""
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and isnan(value))
    )


def without_surrogates(text: str) -> str:
    """Return text of the same length, so that offsets hold, without half surrogate pairs, which no tokenizer takes."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def clean(text: str, repairs: list[str]) -> str:
    """Return the text `without_surrogates`, and append to `repairs` if it had any."""
    cleaned = without_surrogates(text)
    if cleaned != text:
        repairs.append("half a surrogate pair is not a character; U+FFFD instead")
    return cleaned


def parsed(text: str, what: str) -> Any:
    """Return the value of JSON, or of the repr that pandas writes into a CSV: {'text': array(['a'], dtype=object), …}.

    Raises: Unusable if it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_WithoutArrays().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable(f"{what} are neither JSON nor a Python literal") from None


class _WithoutArrays(ast.NodeTransformer):
    """A reader of array([...], dtype=...) as [...]; any other call is left for literal_eval to refuse."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return self.visit(node.args[0]) if is_array else node
