"""Read CSV and TSV files."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetune.core.errors import DataError, Fault
from finetune.data.conll import ENTITY_TAG
from finetune.data.table import Row
from finetune.data.text import COPY_AGAIN, Reader, open_text

OTHER_DELIMITERS = (",", ";", "\t", "|")
_SEEN = 50  # records that a delimiter is found by
_EXCEL = re.compile("sep=(.)(?:\r\n|\n|\r)")
_BLANK_LINE = re.compile("(?:\r\n|\r(?!\n)|\n)[ \t]*[\r\n]")
_SENTENCE = re.compile(r"\S+\s.{40,}|.*\s.*[.?!]", re.DOTALL)

Record = tuple[int, list[str]]


def delimited(first: str, *others: str) -> Reader:
    """Return a reader of files with this delimiter, or with one of others if the file as a whole has that."""

    def read(path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
        with open_text(path) as file:
            text = file.read()
        csv.field_size_limit(2**31 - 1)
        skipped, delimiter = 0, first
        if others and (said := _EXCEL.match(text)):
            delimiter, skipped, text = said[1], 1, text[said.end() :]
        elif others:
            delimiter = next((one for one in (first, *others) if _divides(text, one)), first)
        if delimiter != first:
            notes.append(f"{delimiter!r} stands between the columns, not {first!r}")
        records = _loosely_quoted(text, delimiter) if delimiter == "\t" else None
        records = _quoted(text, path, delimiter) if records is None else records
        found = [(number + skipped, fields) for number, fields in records]
        _refuse_words(found, text, path, delimiter)
        yield from _rows(found, path, notes)

    return read


def _divides(text: str, delimiter: str) -> bool:
    """Return whether the first records have the same number of columns, two or more, with this delimiter."""
    try:
        widths = {
            len(fields) for fields in islice(csv.reader(io.StringIO(text, ""), delimiter=delimiter), _SEEN) if fields
        }
    except csv.Error:
        return False
    return len(widths) == 1 and widths != {1}


def _rows(records: list[Record], path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
    header = records[0][1] if records else []
    if data := [name for name in header if _is_data(name)]:
        notes.append(f"the first line is taken for the names of columns, but {data[0][:40]!r} looks like data")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        what, fix = f"two columns are named {twice[0][:80]!r}", "rename one of them, or write a line of names first"
        raise DataError(Fault(what, where=str(path), why="; ".join(notes), fix=fix))
    for number, fields in records[1:]:
        if len(fields) != len(header):
            why = f"it has {len(fields)} fields, the header {len(header)}"
            fix = "quote fields that hold the delimiter"
            if number == records[-1][0] and len(fields) < len(header):
                why, fix = f"{why}; the file may have been cut off here", COPY_AGAIN
            raise DataError(Fault("wrong number of fields", where=f"{path}, line {number}", why=why, fix=fix))
        yield number, dict(zip(header, fields, strict=True))


def _is_data(name: str) -> bool:
    """Return whether the name of a column looks like a value: a tag, a number, a list, an object, a sentence."""
    tag = name != "O" and ENTITY_TAG.fullmatch(name)
    return bool(tag or name.isdecimal() or name.startswith(("[", "{")) or _SENTENCE.fullmatch(name[:200]))


def _refuse_words(records: list[Record], text: str, path: Path, delimiter: str) -> None:
    """Raise DataError for a word and its tags on each line, with blank lines between sentences."""
    words = sum(not any(" " in field for field in fields) for _, fields in records)
    tags = [fields[-1] for _, fields in records[1:]]
    tagged = 3 * len(set(tags)) <= len(tags) or all(ENTITY_TAG.fullmatch(tag) for tag in tags)
    if len(records) > 1 and 20 * words >= 19 * len(records) and tagged and _BLANK_LINE.search(text.rstrip()):
        target = path.with_name(f"{path.name.removesuffix('.gz').rpartition('.')[0]}.conll")
        command = f"{'z' if path.suffix == '.gz' else ''}cat {path}"
        if delimiter != "\t":
            command += f" | sed 's/{delimiter}/\\t/g'"
        what = f"{path} is not a table: it has a word on each line, and blank lines between sentences"
        raise DataError(Fault(what, fix=f"{command} > {target}, and give that file"))


def _quoted(text: str, path: Path, delimiter: str) -> Iterator[Record]:
    """Yield the line where a record begins and its fields, quoted as RFC 4180 has it."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        why, fix = str(error), 'put a field that holds quotes into quotes and double them: "He said ""yes"""'
        if why == "unexpected end of data":
            why, fix = "the quotes that are opened there are never closed: the file may have been cut off", COPY_AGAIN
        raise DataError(Fault("broken quotes", where=f"{path}, line {number}", why=why, fix=fix)) from None


def _loosely_quoted(text: str, delimiter: str) -> Iterator[Record] | None:
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
