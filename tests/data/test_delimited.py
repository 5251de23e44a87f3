"""The delimiter of a table is that of the whole file; what is no table is said to be none."""

import gzip
from pathlib import Path

import pytest

from finetune.core.errors import DataError
from finetune.data.readers import read_table
from finetune.data.table import Audit, Table
from finetune.params.datapreprocess import TokenClassificationColumns
from finetune.tasks.token_classification.rows import validate

ROWS = [
    {"question": "Who, and when?", "context": "Ada; in 1843, or 1844."},
    {"question": "Where|why?", "context": "two\nlines"},
]


def read(folder: Path, name: str, text: str) -> Table:
    (folder / name).write_bytes(text.encode())
    return read_table(folder / name)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("begin", ["", "sep={}\r\n"])
def test_every_delimiter(begin: str, delimiter: str, ending: str, tmp_path: Path) -> None:
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    text = "\r\n".join(delimiter.join(f'"{field}"' for field in line) for line in lines)
    table = read(tmp_path, f"a.{ending}", begin.format(delimiter) + text)
    assert table.rows == ROWS
    assert list(table.numbers) == [2 + bool(begin), 3 + bool(begin)]
    usual = {"csv": ",", "tsv": "\t"}[ending]
    assert table.notes == (() if delimiter == usual else (f"{delimiter!r} stands between the columns, not {usual!r}",))


def test_the_usual_delimiter_wins_where_both_would_do(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "a;x,b;y\n1;2,3;4\n").columns == ("a;x", "b;y")


def test_a_broken_row_is_told_by_the_usual_delimiter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3"):
        read(tmp_path, "a.csv", "a,b\n1,2\n1,2,3\n1,2\n")


WORDS = "Ada{0}B-PER\nleft{0}O\n.{0}O\n\nBob{0}B-PER\ncame{0}O\n"
HEADED = WORDS.format(",").replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("a.tsv", WORDS.format("\t"), "cat {0}/a.tsv > {0}/a.conll"),
        (
            "a.csv",
            "word,tag\r\n" + WORDS.format(",").replace("\n", "\r\n"),
            "cat {0}/a.csv | sed 's/,/\\t/g' > {0}/a.conll",
        ),
        ("a.csv", WORDS.format(";"), "cat {0}/a.csv | sed 's/;/\\t/g' > {0}/a.conll"),
        ("a.tsv.gz", WORDS.format("\t"), "zcat {0}/a.tsv.gz > {0}/a.conll"),
    ],
)
def test_a_word_on_each_line_is_no_table(name: str, text: str, command: str, tmp_path: Path) -> None:
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert "it has a word on each line" in str(caught.value)
    assert command.format(tmp_path) in str(caught.value)


def test_a_header_that_is_data(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        validate(read(tmp_path, "a.csv", "Ada,B-PER\nleft,O\n"), TokenClassificationColumns(), Audit())
    assert "no column 'tokens'" in str(caught.value)
    assert "'B-PER' looks like data" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.csv", 'a,b\n1,2\n3,"cut', ("line 3", "never closed", "cut off")),
        ("a.csv", "a,b\n1,2\n3", ("line 3", "1 fields", "cut off")),
        ("a.tsv", "a\tb\n1\t2\n3", ("line 3", "1 fields", "cut off")),
    ],
)
def test_a_file_that_was_cut_off(name: str, text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, text)
    assert [part for part in parts if part not in str(caught.value)] == []
