"""Read text files in any encoding that names itself, and rows of JSON."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune.core.errors import DataError, Fault
from finetune.data.table import Row

_MARKS = (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")


def open_text(path: Path, newline: str = "") -> io.TextIOWrapper:
    """Return an open text file; newline "" leaves line ends to the csv reader, "\n" splits JSON lines at \n alone."""
    raw = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    begin = raw.peek(1024)
    encoding = next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in begin:
        why = "it holds zero bytes: a binary file, or UTF-16 without its byte order mark"
        raise DataError(Fault(f"{path} is not a text file", why=why, fix=f"file {path}; iconv -f utf-16le -t utf-8"))
    return io.TextIOWrapper(raw, encoding=encoding, newline=newline)


def checked(reader: Callable[[Path], Iterator[tuple[int, Row]]]) -> Callable[[Path], Iterator[tuple[int, Row]]]:
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


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with open_text(path, newline="\n") as file:
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


def _object(value: object, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        why = f"a row is a JSON object, this is {type(value).__name__}"
        raise DataError(Fault("not a row", where=f"{path}, row {number}: {str(value)[:80]!r}", why=why))
    return value


def json_list(path: Path) -> Iterator[tuple[int, Row]]:
    with open_text(path) as file:
        text = file.read()
    if _is_json_lines(text):
        yield from json_lines(path)
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
    """Return whether the first line is an object by itself and more follows, as in JSON lines that are named .json."""
    first, _, rest = text.strip().partition("\n")
    if not (first.startswith("{") and rest.strip()):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False
