"""Rows that lie on the disk are those that were given, whatever they hold, and cost eight bytes of memory each."""

import datetime
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from finetune.data.table import StoredRows, Table
from finetune.data.values import repeated

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ROWS = st.lists(st.dictionaries(st.text(), VALUES | st.lists(VALUES)))


@given(ROWS)
def test_rows_are_those_that_were_given(rows: list[dict[str, object]]) -> None:
    stored = StoredRows.of(iter(rows))
    assert list(stored) == [stored[i] for i in range(len(stored))] == stored[:] == rows
    assert stored[1::2] == rows[1::2]


@given(ROWS, st.data())
def test_chosen_rows_outlive_those_they_were_chosen_of(rows: list[dict[str, object]], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    chosen = StoredRows.of(rows).chosen(places)
    assert list(chosen) == [rows[i] for i in places]


def test_long_rows_and_values_that_json_lacks() -> None:
    rows = [{"text": "é" * size, "day": datetime.date(2024, 2, 29)} for size in (0, 1, 2000, 4080, 4096, 100_000)]
    assert list(StoredRows.of(rows)) == rows
    assert StoredRows.of(rows)[-1] == rows[-1]


def test_each_iteration_goes_its_own_way() -> None:
    stored = StoredRows.of({"i": i} for i in range(3))
    assert [(a["i"], b["i"]) for a in stored for b in stored] == [(a, b) for a in range(3) for b in range(3)]


def test_a_table_has_the_columns_of_all_rows() -> None:
    table = Table.read("a file", iter([(3, {"a": 1}), (7, {"b": 2, "a": 3})]))
    assert (table.columns, list(table.numbers), list(table.rows)) == (("a", "b"), [3, 7], [{"a": 1}, {"b": 2, "a": 3}])


@given(st.lists(st.sampled_from(["a", "b", "c", ("a", "b")])))
def test_repeated(keys: list[object]) -> None:
    assert repeated(keys) == [i for i, key in enumerate(keys) if key in keys[:i]]


def test_memory_does_not_grow_with_rows() -> None:
    """Of 300,000 rows with 200 characters each, for which lists of Python would take 150 MB."""
    code = """
import resource
from finetune.data.table import StoredRows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = StoredRows.of({"id": str(i), "row": i, "text": f"{i:0200d}"} for i in range(300_000))
assert sum(row["row"] for row in rows) == 300_000 * 299_999 // 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    kilobytes = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 30_000
