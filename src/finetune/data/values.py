"""Read what a cell of a table means: text, numbers and lists, however a file spelt them."""

import ast
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from math import isnan
from typing import TYPE_CHECKING

from finetune.core.console import progress
from finetune.core.reading import WHOLE
from finetune.data.table import Audit, Row, StoredRows, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_OTHER_IDS = "uid", "_id", "qid", "question_id", "guid"  # columns that name a row where there is no id


# The text of a long array has ... in its middle, which is no value of it.
CUT_SHORT = (
    "NumPy cut a list short when the file was written, with ... for what is missing; write JSON lines or Parquet, or "
    "call numpy.set_printoptions(threshold=sys.maxsize) before"
)


class Unusable(Exception):
    """The reason why a row has to be dropped."""


class Kept(str):
    """A remark on a row that is kept as it is."""

    __slots__ = ()


def audited(table: Table, make: Callable[[Row, list[str]], Row], audit: Audit) -> StoredRows:
    """Return {id, row, and what `make(row, repairs)` gives} of each row; Unusable ones are dropped and counted.

    What was mended is appended to `repairs` by `make`, and remarks of the class Kept. The table's notes are taken over.
    """
    audit.notes += table.notes
    rows = StoredRows.of(_made(table, make, audit))
    for place in repeated(row["id"] for row in rows):
        audit.add("kept", "its id has occurred before; `row` tells them apart", rows[place]["row"])
    return rows


def hashes(keys: Iterable[Hashable]) -> "NDArray[np.int64]":
    """Return a number for each key: two of ten million keys have the same by chance once in 300,000 times."""
    import numpy as np

    return np.fromiter(map(hash, keys), dtype=np.int64)


def repeated(keys: Iterable[Hashable]) -> list[int]:
    """Return the places of keys that have occurred before."""
    import numpy as np

    found = hashes(keys)
    order = found.argsort(kind="stable")
    again = order[1:][found[order][1:] == found[order][:-1]]
    return np.sort(again).tolist()  # type: ignore[no-any-return]


def _made(table: Table, make: Callable[[Row, list[str]], Row], audit: Audit) -> Iterator[Row]:
    with progress(len(table.rows), "validate", inside=True) as bar:
        for number, row in zip(table.numbers, table.rows, strict=True):
            bar.update()
            repairs: list[str] = []
            try:
                made = make(row, repairs)
            except Unusable as reason:
                audit.add("dropped", str(reason), number)
                continue
            for repair in dict.fromkeys(repairs):
                audit.add("kept" if isinstance(repair, Kept) else "repaired", repair, number)
            given = row.get("id")
            if missing(given):
                given = next((row[key] for key in _OTHER_IDS if not missing(row.get(key))), number)
            yield {"id": without_surrogates(str(given)), "row": number, **made}


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


def parsed(text: str, what: str) -> object:
    """Return the value of JSON, or of the repr that pandas writes into a CSV: {'text': array(['a'], dtype=object), …}.

    Raises: Unusable if it is neither, or has an ellipsis for what was left out.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if _is_cut_short(text.strip().replace("\N{HORIZONTAL ELLIPSIS}", "...")):
        raise Unusable(CUT_SHORT)
    try:
        return ast.literal_eval(_WithoutArrays().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable(f"{what} are neither JSON nor a Python literal") from None


def _is_cut_short(text: str) -> bool:
    """Return whether an ellipsis stands in the text as a value or at its end."""
    if "..." not in text:
        return False
    try:
        nodes = ast.walk(ast.parse(text, mode="eval"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text.endswith("...")
    return any(isinstance(node, ast.Constant) and node.value is ... for node in nodes)


class _WithoutArrays(ast.NodeTransformer):
    """A reader of array([...], dtype=...), or tensor, as [...]; any other call is left for literal_eval to refuse."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, int) and node.value >= WHOLE:
            raise ValueError("more digits than Python writes as text")  # hexadecimal ones it reads all the same
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id in ("array", "tensor") and len(node.args) == 1
        return self.visit(node.args[0]) if is_array else node
