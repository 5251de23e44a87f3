"""Files of rows -> rows, and the account of what was wrong with them, row by row."""

import codecs
import csv
import gzip
import io
import json
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.core.errors import DataError, Fault
from finetune.params.schema import did_you_mean

Row = dict[str, Any]
FIRST_ROWS_SHOWN = 5
_MARKS = (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")


@dataclass(frozen=True)
class Table:
    """The rows of one file. `numbers[i]` is where row i stands: the line of a text file, the record of another."""

    name: str
    columns: tuple[str, ...]
    rows: list[Row]
    numbers: list[int]

    def require(self, columns: dict[str, str]) -> None:
        """Raises: DataError if a column is missing. `columns` maps parameter names to column names."""
        faults = []
        for parameter, column in columns.items():
            if column not in self.columns:
                what = f"no column {column!r}{did_you_mean(column, self.columns)}"
                fix = f"--{parameter} with one of: {', '.join(self.columns)}"
                faults.append(Fault(what, where=self.name, fix=fix))
        if faults:
            raise DataError(*faults)


@dataclass
class Audit:
    """What was dropped, repaired or kept with a remark: reason -> action and row numbers."""

    problems: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, action: str, reason: str, number: int) -> None:
        entry = self.problems.setdefault(reason, {"action": action, "count": 0, "rows": []})
        entry["count"] += 1
        if len(entry["rows"]) < FIRST_ROWS_SHOWN:
            entry["rows"].append(number)

    @property
    def dropped(self) -> int:
        return sum(p["count"] for p in self.problems.values() if p["action"] == "dropped")

    def lines(self) -> list[str]:
        """One line for each reason, for the log."""
        return [
            f"{p['action']} {p['count']}: {reason} (rows {', '.join(map(str, p['rows']))}"
            f"{', …' if p['count'] > len(p['rows']) else ''})"
            for reason, p in self.problems.items()
        ]


def read_table(path: Path) -> Table:
    """Read jsonl, json, csv, tsv, parquet or CoNLL's columns, each also as .gz, by the ending of its name.

    Raises: DataError with the file, and the line where there is one.
    """
    if not path.is_file():
        raise DataError(Fault(f"{path} is {'a folder' if path.is_dir() else 'missing'}", fix="give the path of a file"))
    ending = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if ending not in READERS:
        why = f"its ending is none of {', '.join(READERS)} (each also with .gz)"
        raise DataError(Fault(f"{path} is of an unknown format", why=why, fix="convert or rename the file"))
    rows, numbers = [], []
    for number, row in READERS[ending](path):
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise DataError(Fault(f"{path} has no rows", fix="give a file with at least one row"))
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(str(path), columns, rows, numbers)


def _text(path: Path, newline: str = "") -> io.TextIOWrapper:
    """An open text file; newline "" leaves line ends to the csv reader, "\n" splits JSON lines at \n alone."""
    raw = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    begin = raw.peek(1024)
    encoding = next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in begin:
        why = "it holds zero bytes: a binary file, or UTF-16 without its byte order mark"
        raise DataError(Fault(f"{path} is not a text file", why=why, fix=f"file {path}; iconv -f utf-16le -t utf-8"))
    return io.TextIOWrapper(raw, encoding=encoding, newline=newline)


def _checked(reader: Callable[[Path], Iterator[tuple[int, Row]]]) -> Callable[[Path], Iterator[tuple[int, Row]]]:
    """Turn what a reader may raise into a DataError that names the file."""

    def read(path: Path) -> Iterator[tuple[int, Row]]:
        try:
            yield from reader(path)
        except UnicodeDecodeError as error:
            fix = f"iconv -f cp1252 -t utf-8 {path}"
            raise DataError(Fault(f"{path} is not UTF-8", why=str(error), fix=fix)) from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(Fault(f"{path} can't be read", why=str(error))) from None

    return read


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with _text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if text := line.strip("\r\n\t "):
                yield number, _object(_json(text, path, number), path, number)


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        shown = text.split("\n")[error.lineno - 1][:80]
        where = f"{path}, line {line + error.lineno - 1}: {shown!r}"
        raise DataError(Fault("not valid JSON", where=where, why=f"{error.msg} at column {error.colno}")) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise DataError(Fault("not usable JSON", where=f"{path}, line {line}", why=str(error))) from None


def _object(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        why = f"a row is a JSON object, this is {type(value).__name__}"
        raise DataError(Fault("not a row", where=f"{path}, row {number}: {str(value)[:80]!r}", why=why))
    return value


def _json_list(path: Path) -> Iterator[tuple[int, Row]]:
    with _text(path) as file:
        text = file.read()
    if _is_json_lines(text):
        yield from _json_lines(path)
        return
    value = _json(text, path, 1)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        fix = "write a list of objects, as pandas does with orient='records'"
        raise DataError(Fault(f"{path} holds no list of rows", fix=fix))
    for number, row in enumerate(value, start=1):
        yield number, _object(row, path, number)


def _is_json_lines(text: str) -> bool:
    """Whether the first line is an object by itself and more follows, as in files that only lack the l of .jsonl."""
    first, _, rest = text.strip().partition("\n")
    if not (first.startswith("{") and rest.strip()):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _delimited(delimiter: str) -> Callable[[Path], Iterator[tuple[int, Row]]]:
    def read(path: Path) -> Iterator[tuple[int, Row]]:
        with _text(path) as file:
            records = _loosely_quoted(file.read(), delimiter) if delimiter == "\t" else None
            if records is None:
                file.seek(0)
                records = _quoted(file, path, delimiter)
            yield from _rows(records, path)

    return read


def _rows(records: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, Row]]:
    _, header = next(records, (0, []))
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(Fault(f"two columns are named {twice[0]!r}", where=str(path), fix="rename one of them"))
    for number, fields in records:
        if len(fields) != len(header):
            why = f"it has {len(fields)} fields, the header {len(header)}"
            fix = "quote fields that hold the delimiter"
            raise DataError(Fault("wrong number of fields", where=f"{path}, line {number}", why=why, fix=fix))
        yield number, dict(zip(header, fields, strict=True))


def _quoted(file: io.TextIOWrapper, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, fields) of each record, quoted as RFC 4180 has it."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        fix = 'put a field that holds quotes into quotes and double them: "He said ""yes"""'
        raise DataError(Fault("broken quotes", where=f"{path}, line {number}", why=str(error), fix=fix)) from None


def _loosely_quoted(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]] | None:
    """The same, line by line, for files whose quotes may mean nothing; None where a line alone isn't a record."""
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1) if line]
    width = lines[0][1].count(delimiter) if lines else 0
    if any(line.count(delimiter) != width for _, line in lines):
        return None
    return ((number, _fields(line, delimiter)) for number, line in lines)


def _fields(line: str, delimiter: str) -> list[str]:
    plain = line.split(delimiter)
    try:
        fields = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return plain
    return fields if len(fields) == len(plain) else plain


def _columns(path: Path) -> Iterator[tuple[int, Row]]:
    """A line for each word, its columns with tabs or spaces between, and a blank line after each sentence.

    The columns are lists named tokens and, last, ner_tags; those of CoNLL-2003 and CoNLL-U by their own names.
    """
    universal = ".conllu" in path.name.lower()
    with _text(path, newline="\n") as file:
        for number, found in _sentences(file, path, _CONLLU if universal else ()):
            # In CoNLL-U 1-2 is the surface of two words, and 1.1 a word that isn't there.
            words = [word for word in found if word[0].isdecimal()] if universal else found
            if words and words[0][0] != "-DOCSTART-":
                names = _CONLLU if universal else _names(len(words[0]))
                columns = zip(*words, strict=True)
                yield number, {name: list(values) for name, values in zip(names, columns, strict=True)}


_CONLL_2003 = ("tokens", "pos_tags", "chunk_tags", "ner_tags")
_CONLLU = ("index", "tokens", "lemmas", "upos", "xpos", "features", "head", "relation", "dependencies", "misc")


def _names(count: int) -> tuple[str, ...]:
    if count == len(_CONLL_2003):
        return _CONLL_2003
    return ("tokens", *(f"column_{i}" for i in range(2, count)), "ner_tags")[:count]


def _sentences(file: io.TextIOWrapper, path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, list[list[str]]]]:
    """(line where it begins, columns of each word) of every sentence.

    All lines have as many columns: those of `names`, if given, else those of the first. A line that begins with # and
    has not, or any such line if there are `names`, is a comment.
    """
    lines = [(number, line.rstrip()) for number, line in enumerate(file, start=1)]
    width = len(names) or next((len(_split(text)) for _, text in lines if text and not text.startswith("#")), 0)
    begin = 1
    words: list[list[str]] = []
    for number, text in [*lines, (len(lines) + 1, "")]:
        word = _split(text)
        if not text:
            if words:
                yield begin, words
            words = []
        elif text.startswith("#") and (names or len(word) != width):
            continue
        elif len(word) != width:
            why = f"it has {len(word)} columns, {'CoNLL-U' if names else 'the first line'} {width}"
            fix = "write one word and its tags on each line, and a blank line between sentences"
            raise DataError(Fault("wrong number of columns", where=f"{path}, line {number}", why=why, fix=fix))
        else:
            begin = begin if words else number
            words.append(word)


def _split(text: str) -> list[str]:
    return text.split("\t") if "\t" in text else re.split(" +", text.strip(" "))


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        raw = gzip.open(path, "rb").read() if path.suffix == ".gz" else path.read_bytes()
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(raw))
    except (pyarrow.ArrowException, pyarrow.ArrowInvalid) as error:
        raise DataError(Fault(f"{path} is not a Parquet file", why=str(error).splitlines()[0])) from None
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = _class_names(described.get("info", {}).get("features", {}))
    for number, row in enumerate(table.to_pylist(), start=1):
        yield number, _with_names(row, names)


def _class_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """Column -> names of its classes, of those that the datasets library keeps as numbers."""
    inner = {column: kind.get("feature", kind) for column, kind in features.items() if isinstance(kind, dict)}
    return {column: kind["names"] for column, kind in inner.items() if kind.get("_type") == "ClassLabel"}


def _with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """Classes by name; -1 is datasets' word for none."""

    def named(value: Any, of: list[str]) -> Any:
        if isinstance(value, list):
            return [named(one, of) for one in value]
        if not isinstance(value, int):
            return value  # the file was written anew after it was described
        return of[value] if 0 <= value < len(of) else None

    return {**row, **{column: named(row[column], of) for column, of in names.items() if column in row}}


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _checked(_json_lines),
    ".json": _checked(_json_list),
    ".csv": _checked(_delimited(",")),
    ".tsv": _checked(_delimited("\t")),
    ".parquet": _checked(_parquet),
    **dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".txt"), _checked(_columns)),
}
_MLTABLE_ENDINGS = {"read_json_lines": ".jsonl", "read_delimited": ".csv", "read_parquet": ".parquet"}


def read_mltable(folder: Path) -> Table:
    """Read the simple MLTable: `paths` of files or patterns, and one read_* transformation.

    The mltable package conflicts with current pandas and azure-identity, so the YAML is read directly.
    Raises: DataError.
    """
    import yaml

    source = folder / "MLTable"
    if not source.is_file():
        raise DataError(Fault(f"{folder} has no file named MLTable", fix="give the folder that holds it"))
    try:
        spec = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(Fault(f"{source} is not valid YAML", why=str(error))) from None
    if not isinstance(spec, dict) or not isinstance(spec.get("paths"), list):
        raise DataError(
            Fault(f"{source} has no list of paths", fix="write `paths:` and, below it, `- file: ./rows.jsonl`")
        )
    steps = {name: (options or {}) for step in spec.get("transformations", []) for name, options in _step(step)}
    kind = next((name for name in _MLTABLE_ENDINGS if name in steps), None)
    unknown = [name for name in steps if name != kind]
    if kind is None or unknown:
        why = f"it asks for {', '.join(unknown)}" if unknown else "it has no transformation that reads files"
        raise DataError(Fault(f"{source} can't be read", why=why, fix=f"use one of {', '.join(_MLTABLE_ENDINGS)}"))
    reader = READERS[_MLTABLE_ENDINGS[kind]]
    if kind == "read_delimited":
        reader = _checked(_delimited(steps[kind].get("delimiter", ",")))
    files = [path for entry in spec["paths"] for path in _mltable_files(folder, entry)]
    found = [(number, row) for path in files for number, row in reader(path)]
    if not found:
        raise DataError(Fault(f"{source} names no rows", why=f"its paths match {len(files)} files"))
    columns = tuple(dict.fromkeys(name for _, row in found for name in row))
    return Table(str(source), columns, [row for _, row in found], [number for number, _ in found])


def _step(step: Any) -> list[tuple[str, Any]]:
    return [(step, {})] if isinstance(step, str) else list(step.items())


def _mltable_files(folder: Path, entry: dict[str, str]) -> list[Path]:
    (kind, value), *_ = entry.items()
    if "://" in value and not value.startswith("file://"):
        fix = "use paths beside the MLTable file"
        raise DataError(Fault(f"{value} is not a local path", where=str(folder / "MLTable"), fix=fix))
    value = value.removeprefix("file://").removeprefix("./")
    return sorted(folder.glob(value)) if kind == "pattern" else [folder / value]


def read_hub(name: str, config: str | None) -> dict[str, Table]:
    """The splits of a Hugging Face data set, or of a local folder that `datasets` can load.

    Raises: DataError.
    """
    import datasets

    with tempfile.TemporaryDirectory() as fresh:
        # The shared cache knows a folder whose README names configurations by its last name alone: it would give the
        # rows of another folder, or those that the files held before.
        cache = fresh if Path(name).is_dir() else None
        try:
            splits = datasets.load_dataset(name, config, cache_dir=cache)
        except Exception as error:  # datasets raises errors of a dozen unrelated classes here
            fix = "check --dataset_name and the network, or give --train_file_path"
            raise DataError(
                Fault(f"data set {name} can't be loaded", why=f"{type(error).__name__}: {error}", fix=fix)
            ) from None
        tables = {}
        for split, rows in splits.items():
            names = _class_names(rows.features.to_dict())
            made = [_with_names(row, names) for row in rows]
            numbers = list(range(1, len(made) + 1))
            tables[str(split)] = Table(f"{name} ({split})", tuple(rows.column_names), made, numbers)
    return tables
