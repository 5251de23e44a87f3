"""Read CSV and TSV files."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from finetune.core.errors import DataError, Fault
from finetune.data.conll import ENTITY_TAG
from finetune.data.table import Row
from finetune.data.text import BLOCK, COPY_AGAIN, Reader, open_text, opened

OTHER_DELIMITERS = (",", ";", "\t", "|")
_SEEN = 50  # records that a delimiter is found by
_JUDGED = 10_000  # records that words and tags are known by
_EXCEL = re.compile("sep=(.)(?:\r\n|\n|\r)")
_LONGEST_SAID = 8  # characters of such a line, at most
_SENTENCE = re.compile(r"\S+\s.{40,}|.*\s.*[.?!]", re.DOTALL)

Record = tuple[int, list[str]]


def delimited(first: str, *others: str) -> Reader:
    """Return a reader of files with this delimiter, or with one of others if the file as a whole has that."""

    def read(path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
        csv.field_size_limit(2**31 - 1)
        with opened(path) as file:  # what unpacks to too much is refused before any of it is parsed
            while path.suffix == ".gz" and file.read(BLOCK):
                pass
        skipped, delimiter = 0, first
        with open_text(path) as file:
            said = _EXCEL.fullmatch(file.readline(_LONGEST_SAID)) if others else None
        if said:
            delimiter, skipped = said[1], 1
        elif others:
            delimiter = next((one for one in (first, *others) if _divides(path, one)), first)
        if delimiter != first:
            notes.append(f"{delimiter!r} stands between the columns, not {first!r}")
        loosely = delimiter == "\t" and _has_a_record_on_each_line(path, skipped, delimiter)
        records = (_loosely_quoted if loosely else _quoted)(path, skipped, delimiter)
        begin = list(islice(records, _JUDGED))
        _refuse_words(begin, path, delimiter)
        yield from _rows(begin[0][1] if begin else [], chain(begin[1:], records), path, notes)

    return read


def _divides(path: Path, delimiter: str) -> bool:
    """Return whether the first records have the same number of columns, two or more, with this delimiter."""
    try:
        with open_text(path) as file:
            first = islice(csv.reader(file, delimiter=delimiter), _SEEN)
            widths = {len(fields) for fields in first if fields}
    except csv.Error:
        return False
    return len(widths) == 1 and widths != {1}


def _rows(header: list[str], records: Iterator[Record], path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
    if data := [name for name in header if _is_data(name)]:
        notes.append(f"the first line is taken for the names of columns, but {data[0][:40]!r} looks like data")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        what, fix = f"two columns are named {twice[0][:80]!r}", "rename one of them, or write a line of names first"
        raise DataError(Fault(what, where=str(path), why="; ".join(notes), fix=fix))
    for number, fields in records:
        if len(fields) != len(header):
            why = f"it has {len(fields)} fields, the header {len(header)}"
            fix = "quote fields that hold the delimiter"
            if len(fields) < len(header) and next(records, None) is None:
                why, fix = f"{why}; the file may have been cut off here", COPY_AGAIN
            raise DataError(Fault("wrong number of fields", where=f"{path}, line {number}", why=why, fix=fix))
        yield number, dict(zip(header, fields, strict=True))


def _is_data(name: str) -> bool:
    """Return whether the name of a column looks like a value: a tag, a number, a list, an object, a sentence."""
    tag = name != "O" and ENTITY_TAG.fullmatch(name)
    return bool(tag or name.isdecimal() or name.startswith(("[", "{")) or _SENTENCE.fullmatch(name[:200]))


def _refuse_words(records: list[Record], path: Path, delimiter: str) -> None:
    """Raise DataError for a word and its tags on each line, with blank lines between sentences, by the first records
    of a file."""
    words = sum(not any(" " in field for field in fields) for _, fields in records)
    tags = [fields[-1] for _, fields in records[1:]]
    tagged = 3 * len(set(tags)) <= len(tags) or all(ENTITY_TAG.fullmatch(tag) for tag in tags)
    if len(records) > 1 and 20 * words >= 19 * len(records) and tagged and _has_blank_lines(path, records[-1][0]):
        target = path.with_name(f"{path.name.removesuffix('.gz').rpartition('.')[0]}.conll")
        command = f"{'z' if path.suffix == '.gz' else ''}cat {path}"
        if delimiter != "\t":
            command += f" | sed 's/{delimiter}/\\t/g'"
        what = f"{path} is not a table: it has a word on each line, and blank lines between sentences"
        raise DataError(Fault(what, fix=f"{command} > {target}, and give that file"))


def _has_blank_lines(path: Path, last: int) -> bool:
    """Return whether a blank line stands before the line `last`."""
    with open_text(path) as file:
        return any(not line.strip() for line in islice(file, last))


def _quoted(path: Path, skipped: int, delimiter: str) -> Iterator[Record]:
    """Yield the line where a record begins and its fields, quoted as RFC 4180 has it, after the skipped lines."""
    number = skipped + 1
    try:
        with open_text(path) as file:
            reader = csv.reader(islice(file, skipped, None), delimiter=delimiter, strict=True)
            for fields in reader:
                if fields:
                    yield number, fields
                number = skipped + reader.line_num + 1
    except csv.Error as error:
        why, fix = str(error), 'put a field that holds quotes into quotes and double them: "He said ""yes"""'
        if why == "unexpected end of data":
            why, fix = "the quotes that are opened there are never closed: the file may have been cut off", COPY_AGAIN
        raise DataError(Fault("broken quotes", where=f"{path}, line {number}", why=why, fix=fix)) from None


def _has_a_record_on_each_line(path: Path, skipped: int, delimiter: str) -> bool:
    return len({line.count(delimiter) for _, line in _lines(path, skipped)}) <= 1


def _loosely_quoted(path: Path, skipped: int, delimiter: str) -> Iterator[Record]:
    """Yield the same line by line, for files whose quotes may mean nothing."""
    return ((number, _fields(line, delimiter)) for number, line in _lines(path, skipped))


def _lines(path: Path, skipped: int) -> Iterator[tuple[int, str]]:
    """Yield the lines that aren't empty, and the number of each."""
    with open_text(path, newline=None) as file:
        for number, line in islice(enumerate(file, start=1), skipped, None):
            if text := line.removesuffix("\n"):
                yield number, text


def _fields(line: str, delimiter: str) -> list[str]:
    plain = line.split(delimiter)
    try:
        fields = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return plain
    return fields if len(fields) == len(plain) else plain
