"""Every file format gives the same rows; every broken file gives an error that names its place."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from finetune.core.errors import DataError
from finetune.data.arrow import read_hub
from finetune.data.mltable import read_mltable
from finetune.data.readers import read_table
from finetune.data.table import Audit, Table

ROWS = [
    {"question": "Who, or what?", "context": 'Tab\there, "quotes", comma'},
    {"question": "¿Dónde está 東京? 🙂", "context": "one\nline\u2028separator\u2029paragraph\x85next"},
    {"question": "a", "context": " spaces around "},
]


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_json(rows: list[dict[str, str]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_json_data(rows: list[dict[str, str]]) -> bytes:
    return json.dumps({"version": "1.1", "data": rows}).encode()


def as_delimited(rows: list[dict[str, str]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_csv(rows: list[dict[str, str]]) -> bytes:
    return as_delimited(rows, ",")


def as_tsv(rows: list[dict[str, str]]) -> bytes:
    return as_delimited(rows, "\t")


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


FORMATS = {
    "rows.jsonl": as_jsonl,
    "rows.json": as_json,
    "data.json": as_json_data,
    "rows.csv": as_csv,
    "rows.tsv": as_tsv,
    "rows.parquet": as_parquet,
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return path


def fails(path: Path, *parts: str) -> None:
    """Reading the file is a DataError that names the file and holds the parts."""
    with pytest.raises(DataError) as caught:
        read_table(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.csv.gz"])
def test_utf_16_with_its_mark(name: str, encoding: str, tmp_path: Path) -> None:
    text = FORMATS[name.removesuffix(".gz")](ROWS).decode()
    mark = "\ufeff" if encoding.endswith("be") else ""
    assert read_table(write(tmp_path / name, (mark + text).encode(encoding))).rows == ROWS


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.json", as_jsonl(ROWS)))
    assert (table.rows, list(table.numbers)) == (ROWS, [1, 2, 3])
    one = read_table(write(tmp_path / "b.json", b'{"data": [{"a": 1}]}\n'))
    assert one.rows == [{"a": 1}]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('"Yes" he said\tb', ['"Yes" he said', "b"]),
        ('"never closed\tb', ['"never closed', "b"]),
        ('a 5" disk\tb', ['a 5" disk', "b"]),
        ('"quoted ""well"""\tb', ['quoted "well"', "b"]),
        ('"a\tb"', ['"a', 'b"']),
    ],
)
def test_loose_quotes_in_tsv(line: str, fields: list[str], tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.tsv", f"q\tc\r\nfirst\tx\r\n\r\n{line}\r\nlast\ty\r\n".encode()))
    assert [list(row.values()) for row in table.rows] == [["first", "x"], fields, ["last", "y"]]
    assert list(table.numbers) == [2, 4, 5]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_read_equal(name: str, ending: str, tmp_path: Path) -> None:
    table = read_table(write(tmp_path / (name + ending), FORMATS[name](ROWS)))
    assert table.rows == ROWS
    assert table.columns == ("question", "context")
    assert len(table.numbers) == len(ROWS)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_byte_order_mark_and_windows_line_ends(name: str, tmp_path: Path) -> None:
    simple = [{"question": "q1", "context": "c1"}, {"question": "q2", "context": "c2"}]
    content = FORMATS[name](simple).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert read_table(write(tmp_path / name, b"\xef\xbb\xbf" + content)).rows == simple


def test_json_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.jsonl", b'{"a": 1}\n\n  \n{"b": 2}\r\n{"a": 3}'))
    assert table.rows == [{"a": 1}, {"b": 2}, {"a": 3}]
    assert list(table.numbers) == [1, 4, 5]
    assert table.columns == ("a", "b")


def test_csv_line_numbers(tmp_path: Path) -> None:
    """A row stands where its record begins: after the header, blank lines and the lines of quoted values."""
    table = read_table(write(tmp_path / "a.csv", b'q,c\n1,one\n\n2,"two\nlines"\n3,three\n'))
    assert [row["q"] for row in table.rows] == ["1", "2", "3"]
    assert list(table.numbers) == [2, 4, 6]


def test_json_list_and_parquet_count_records(tmp_path: Path) -> None:
    assert list(read_table(write(tmp_path / "a.json", as_json(ROWS))).numbers) == [1, 2, 3]
    assert list(read_table(write(tmp_path / "a.parquet", as_parquet(ROWS))).numbers) == [1, 2, 3]


def test_upper_case_ending(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "A.CSV", as_csv(ROWS))).rows == ROWS


def test_very_long_csv_field(tmp_path: Path) -> None:
    rows = [{"question": "q", "context": "x" * 200_000}]
    assert read_table(write(tmp_path / "a.csv", as_csv(rows))).rows == rows


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', ("line 3", "not valid JSON", '{"a":')),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', ("row 2", "list")),
        ("a.jsonl", b"", ("no rows",)),
        ("a.jsonl", b"\n  \n", ("no rows",)),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', ("line 2", "not valid JSON")),
        ("a.json", b'[{"a": 1}, "b"]', ("row 2", "str")),
        ("a.json", b'{"rows": []}', ("no list of rows", "orient='records'")),
        ("a.json", b'{"a": 1}\n{"a": \n', ("line 2", "not valid JSON")),
        ("a.json", b"[]", ("no rows",)),
        ("a.json", b"", ("line 1", "not valid JSON")),
        ("a.csv", b"", ("no rows",)),
        ("a.csv", b"q,c\n", ("no rows",)),
        ("a.tsv", b"q\tc\n", ("no rows",)),
        ("a.csv", b"q,c\n1,2\n3,4,5\n", ("line 3", "3 fields", "the header 2")),
        ("a.csv", b'q,c\n1,2\n1,"2" x\n', ("broken quotes", "line 3")),
        ("a.csv", b"q,c,q\n1,2,3\n", ("two columns are named 'q'",)),
        ("a.csv", b'q,c\n1,"never closed\n', ("broken quotes", "line 2")),
        ("a.xlsx", b"q\n", ("unknown format", ".jsonl", ".parquet")),
        ("a.gz", b"q\n", ("unknown format",)),
        ("a.jsonl", '{"a": "é"}\n'.encode("cp1252"), ("not UTF-8", "iconv")),
        ("a.csv", "q\né\n".encode("utf-16-le"), ("not a text file", "UTF-16")),
        ("a.jsonl", bytes(range(256)) * 9, ("not a text file", "binary")),
        ("a.jsonl", b"[" * 100_000, ("not usable JSON", "line 1")),
        ("a.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}", ("not usable JSON", "line 2")),
        ("a.txt", b"a O\nb O\n\nc O O\n", ("line 4", "3 columns", "most lines have 2")),
        (
            "a.txt",
            b"Once upon a time.\n\nThere was a king.\n\nHe died.\n",
            ("line 5", "2 columns", "most lines have 4"),
        ),
        ("a.txt", "10\u00a0000 O\nb O O\n".encode(), ("line 2", "3 columns", "most lines have 2")),
        ("a.conllu", b"1\ta\tO\n", ("line 1", "3 columns", "CoNLL-U has 10")),
        ("a.txt", b"\n \n", ("no rows",)),
        ("a.conllu", b"1-2\tdon't" + b"\t_" * 8 + b"\n", ("no rows",)),
        ("a.parquet", b"PAR1 but not really PAR1", ("not a Parquet file",)),
        ("a.parquet", b"", ("not a Parquet file",)),
    ],
)
def test_broken_file(name: str, content: bytes, parts: tuple[str, ...], tmp_path: Path) -> None:
    fails(write(tmp_path / name, content), *parts)


def test_no_file(tmp_path: Path) -> None:
    fails(tmp_path, "a folder")
    fails(tmp_path / "none.jsonl", "missing")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet.gz"])
@pytest.mark.parametrize(
    "corrupt",
    [
        lambda good: b"no gzip at all",
        lambda good: good[: len(good) // 2],
        lambda good: good[:10] + bytes([good[10] ^ 255]) + good[11:],
        lambda good: good[:-8] + bytes(8),
    ],
    ids=["no gzip", "cut off", "wrong data", "wrong checksum"],
)
def test_corrupt_gzip(name: str, corrupt: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(corrupt(gzip.compress(as_jsonl(ROWS * 100))))
    fails(path)


# --- MLTable ---


def mltable(folder: Path, text: str) -> Path:
    (folder / "MLTable").write_text(text, errors="surrogateescape")
    return folder


@pytest.mark.parametrize(
    ("name", "content", "step"),
    [
        ("part.jsonl", as_jsonl, "read_json_lines"),
        ("part.csv", as_csv, "read_delimited"),
        ("part.tsv", as_tsv, 'read_delimited: {delimiter: "\\t", header: all_files_same_headers}'),
        ("part.parquet", as_parquet, "read_parquet"),
    ],
)
def test_mltable(name: str, content: Callable[[list[dict[str, str]]], bytes], step: str, tmp_path: Path) -> None:
    write(tmp_path / name, content(ROWS))
    table = read_mltable(mltable(tmp_path, f"paths:\n  - file: ./{name}\ntransformations:\n  - {step}\n"))
    assert table.rows == ROWS
    assert table.columns == ("question", "context")


def test_mltable_pattern_and_several_paths(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for i, row in enumerate(ROWS):
        write(tmp_path / ("c.jsonl" if i == 2 else f"parts/{i}.jsonl"), as_jsonl([row]))
    text = "paths:\n  - pattern: ./parts/*.jsonl\n  - file: c.jsonl\ntransformations:\n  - read_json_lines\n"
    assert read_mltable(mltable(tmp_path, text)).rows == ROWS


ENTRIES = {
    "a.jsonl": "it.paths[0] is 'a.jsonl', not an object",
    "{}": "a path of nothing",
    "[a.jsonl]": "it.paths[0] is a list, not an object",
    "file:": "it.paths[0].file is null, not text",
    "file: 3": "it.paths[0].file is 3, not text",
    "file: [a.jsonl]": "it.paths[0].file is a list, not text",
    "{file: a.jsonl, pattern: b}": "one of file or pattern",
    'file: "a\\0b"': "can't be read: embedded null byte",
    "pattern: '**a/*.jsonl'": "is not a pattern",
    "pattern: /etc/*": "is not a pattern",
    "pattern: ''": "is not a pattern",
    "pattern: '.'": "is not a pattern",
}
STEPS = {
    " read_json_lines": "it.transformations is 'read_json_lines', not a list",
    "\n  - 3": "it.transformations[0] is 3, not text",
    "\n  -": "it.transformations[0] is null, not text",
    "\n  - read_delimited: ','": "read_delimited is ',', not an object",
    "\n  - 3: 4": "the key 3 is not text",
    **{
        f"\n  - read_delimited: {{delimiter: {given}}}": "can't stand between columns"
        for given in ("ab", "3", "[a]", '"\\n"')
    },
}
VALUES = {
    "2024-99-99": "a value in it is none: month must be in 1..12",
    "!!timestamp x": "a value in it is none",
    "!!bool x": "a value in it is none",
    "9" * 5000: "a value in it is none: Exceeds the limit",
    "[" * 3000: "nested too deeply",
    "&a [*a]": "an anchor holds its own alias",
    "[]\npaths: []": "line 1: the key 'paths' is there twice",
    "[]\n---\na: b": "expected a single document",
    "\n\t- file: a": "not valid YAML",
    "\udcff": "codec can't",
    "a" * 2**19: "it has 524,296 bytes, and may have 262,144",
    "&a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"{c}: &{c} [{', '.join(9 * [f'*{b}'])}]" for b, c in pairwise("abcdefgh")): "aliases make more than",
}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("paths:\n  - file: a.jsonl\ntransformations:\n  - read_json_lines\n  - take: 5\n", "take"),
        ("paths:\n  - file: a.jsonl\ntransformations:\n  - read_json_line\n", "read_json_line"),
        ("paths:\n  - file: a.jsonl\n", "no transformation that reads files"),
        ("paths:\n  - file: azureml://x/a.jsonl\ntransformations:\n  - read_json_lines\n", "not a local path"),
        ("paths:\n  - pattern: ./*.none\ntransformations:\n  - read_json_lines\n", "matches no file"),
        ("paths:\n  - file: none.jsonl\ntransformations:\n  - read_json_lines\n", "is missing"),
        ("paths:\n  - folder: .\ntransformations:\n  - read_json_lines\n", "one of file or pattern"),
        ("paths:\n  - file: ../.\ntransformations:\n  - read_json_lines\n", "is a folder"),
        *((f"paths:\n  - {entry}\ntransformations:\n  - read_json_lines\n", said) for entry, said in ENTRIES.items()),
        *((f"paths:\n  - file: a.jsonl\ntransformations:{steps}\n", said) for steps, said in STEPS.items()),
        *((f"paths: {value}\n", said) for value, said in VALUES.items()),
        ("transformations:\n  - read_json_lines\n", "paths"),
        ("paths: [\n", "MLTable"),
        ("", "MLTable"),
    ],
)
def test_broken_mltable(text: str, part: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", as_jsonl(ROWS))
    with pytest.raises(DataError) as caught:
        read_mltable(mltable(tmp_path, text))
    assert part in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_folder_without_mltable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file named MLTable"):
        read_mltable(tmp_path)


# --- Table and Audit ---


def test_missing_columns_are_all_named() -> None:
    table = Table("f.csv", ("questions", "text"), [{"questions": "q", "text": "c"}], [1])
    with pytest.raises(DataError) as caught:
        table.require({"question_key": "question", "context_key": "context"})
    first, second = caught.value.faults
    assert first.what == "no column 'question'; did you mean questions?"
    assert first.fix == "--question_key with one of: questions, text"
    assert first.where == "f.csv"
    assert second.what.startswith("no column 'context'")


def test_audit_counts_all_and_shows_the_first_rows() -> None:
    audit = Audit()
    for number in range(1, 8):
        audit.add("dropped", "no question", number)
    audit.add("repaired", "offset", 9)
    assert audit.dropped == 7
    assert audit.lines() == ["dropped 7: no question (rows 1, 2, 3, 4, 5, …)", "repaired 1: offset (rows 9)"]


# --- words and tags, a line each ---

TWO = {"tokens": ["a", "b"], "ner_tags": ["B-X", "O"]}


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.txt", "a B-X\nb O\n", [TWO]),
        ("a.bio", "a\tB-X\r\nb\tO\r\n", [TWO]),
        ("a.iob", "\ufeffa B-X \nb   O\t\n", [TWO]),
        ("A.CONLL", "-DOCSTART- O\n\na B-X\nb O\n \t\na B-X\nb O", [TWO, TWO]),
        ("a.txt", "# O\nb O\n", [{"tokens": ["#", "b"], "ner_tags": ["O", "O"]}]),
        ("a.txt", "# id 8 domain=en\na B-X\nb O\n\n# id 9\tx\ty\na B-X\nb O\n", [TWO, TWO]),
        ("a.txt", "New York\tO\n\tO\n", [{"tokens": ["New York", ""], "ner_tags": ["O", "O"]}]),
        ("a.txt", "10\u00a0000 O\nx\u2028y O\n", [{"tokens": ["10\u00a0000", "x\u2028y"], "ner_tags": ["O", "O"]}]),
        ("a.txt", "a\nb\n", [{"tokens": ["a", "b"]}]),
        ("a.txt", "a N B-X\nb V O\n", [{**TWO, "column_2": ["N", "V"]}]),
        ("a.txt", "a N B-NP B-X\nb V O O\n", [{**TWO, "pos_tags": ["N", "V"], "chunk_tags": ["B-NP", "O"]}]),
    ],
)
def test_columns_of_words(name: str, text: str, rows: list[dict[str, list[str]]], tmp_path: Path) -> None:
    assert read_table(write(tmp_path / name, text.encode())).rows == rows


def test_sentences_are_numbered_by_their_first_line(tmp_path: Path) -> None:
    assert list(read_table(write(tmp_path / "a.txt", b"\na O\nb O\n\n\nc O\n")).numbers) == [2, 6]


def test_universal_dependencies(tmp_path: Path) -> None:
    lines = ["# text = don't", "1-2\tdon't" + "\t_" * 8, "1\tdo\tdo\tAUX" + "\t_" * 6, "1.1\tx" + "\t_" * 8]
    lines += ["2\tn't\tnot\tPART" + "\t_" * 6, "", "1-2\tdon't" + "\t_" * 8, ""]
    (row,) = read_table(write(tmp_path / "A.CONLLU", "\n".join(lines).encode())).rows
    assert (row["tokens"], row["upos"], row["lemmas"]) == (["do", "n't"], ["AUX", "PART"], ["do", "not"])


# --- classes that `datasets` keeps as numbers ---


def numbered(tmp_path: Path) -> Path:
    kinds = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
    columns = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [-1]]}
    (tmp_path / "data").mkdir()
    Dataset.from_dict(columns, features=kinds).to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data" / "train.parquet"


def test_classes_get_their_names(tmp_path: Path) -> None:
    file = numbered(tmp_path)
    expected = [["O", "B-X"], [None]]
    assert [row["ner_tags"] for row in read_table(file).rows] == expected
    assert [row["ner_tags"] for row in read_hub(str(file.parent), None)["train"].rows] == expected


def test_columns_that_were_written_anew_after_they_were_described(tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(numbered(tmp_path))
    pyarrow.parquet.write_table(table.select(["tokens"]), tmp_path / "fewer.parquet")
    assert read_table(tmp_path / "fewer.parquet").rows == [{"tokens": ["a", "b"]}, {"tokens": ["c"]}]
    named = table.set_column(1, "ner_tags", pyarrow.array([["O", "B-X"], ["O"]]))
    pyarrow.parquet.write_table(named, tmp_path / "named.parquet")
    assert [row["ner_tags"] for row in read_table(tmp_path / "named.parquet").rows] == [["O", "B-X"], ["O"]]
