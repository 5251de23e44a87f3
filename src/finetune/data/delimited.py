"""Read CSV and TSV files."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.core.errors import DataError, Fault
from finetune.data.table import Row
from finetune.data.text import open_text


def delimited(delimiter: str) -> Callable[[Path], Iterator[tuple[int, Row]]]:
    def read(path: Path) -> Iterator[tuple[int, Row]]:
        with open_text(path) as file:
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
    """Yield the line where a record begins and its fields, quoted as RFC 4180 has it."""
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
    """Return the same line by line, for files whose quotes may mean nothing; None where a line alone isn't a record."""
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
