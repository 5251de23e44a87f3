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
from finetune.core.reading import no_file
from finetune.data.table import Row

Reader = Callable[[Path, list[str]], Iterator[tuple[int, Row]]]
"""Given a file and a list, yield the place and the columns of each row; append what was read one way of several."""

COPY_AGAIN = "copy or download the file again, or remove its last row"
# Of equally likely ones the first is taken.
_ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("big5", "gb18030", "euc_jp", "cp949", "cp932", "koi8_r", "cp437", "cp850"),
)
# Text is seldom packed to less than a twentieth; the same line again and again is, to a thousandth.
MOST_TIMES, ALWAYS = 200, 2**26
BLOCK = 2**17  # bytes that are unpacked at a time
_GUESSED = 2**20  # bytes that the encoding of a file is guessed by
_MARKS = (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")


def open_text(path: Path, newline: str | None = "") -> io.TextIOWrapper:
    """Return an open text file; newline "" leaves line ends as they are, None makes each \\n, as `open` has it."""
    raw = opened(path)
    begin = raw.peek(1024)
    encoding = next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in begin:
        why = "it holds zero bytes: a binary file, or UTF-16 without its byte order mark"
        raise DataError(Fault(f"{path} is not a text file", why=why, fix=f"file {path}; iconv -f utf-16le -t utf-8"))
    return io.TextIOWrapper(raw, encoding=encoding, newline=newline)


def refuse_no_file(path: Path) -> None:
    """Raise DataError if the path is not that of a file."""
    if why := no_file(path):
        raise DataError(Fault(f"{path} {why}", fix="give the path of a file"))


class _Unpacked(io.RawIOBase):
    """The content of a .gz file, as far as its size lets one expect: a few kilobytes may hold gigabytes of nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.packed = path, gzip.open(path, "rb")
        self.left = allowed(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.packed.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise DataError(too_large(self.path))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.packed.close()
        super().close()


def allowed(path: Path) -> int:
    """Return the bytes that a compressed file may unpack to: MOST_TIMES its own, or ALWAYS if that is more."""
    return max(ALWAYS, MOST_TIMES * path.stat().st_size)


def too_large(path: Path) -> Fault:
    """Return what to say of a file with more content."""
    why = f"its {path.stat().st_size:,} bytes make more than {allowed(path):,}; {MOST_TIMES} times as many are allowed"
    unpacked = f"gunzip -c {path} > {path.stem}" if path.suffix == ".gz" else "write it as JSON lines"
    return Fault(f"{path} unpacks to too much", why=why, fix=f"if its content is what you mean: {unpacked}")


def opened(path: Path) -> io.BufferedReader:
    """Return the open file, unpacked where its name ends with .gz. It raises DataError where that is too much."""
    return io.BufferedReader(_Unpacked(path), BLOCK) if path.suffix == ".gz" else path.open("rb")


def checked(reader: Reader) -> Reader:
    """Turn what a reader may raise into a DataError that names the file."""

    def read(path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
        refuse_no_file(path)
        try:
            yield from reader(path, notes)
        except UnicodeDecodeError as error:
            raise DataError(_wrongly_encoded(path, error)) from None
        except EOFError as error:
            why = f"the file was cut off ({error})"
            raise DataError(Fault(f"{path} can't be read", why=why, fix=COPY_AGAIN)) from None
        except (OSError, zlib.error) as error:
            raise DataError(Fault(f"{path} can't be read", why=str(error))) from None

    return read


def _wrongly_encoded(path: Path, error: UnicodeDecodeError) -> Fault:
    """Return what to say of a file that is not UTF-8: it was cut off, or it has the encoding that its bytes suggest."""
    if error.reason == "unexpected end of data":
        return Fault(f"{path} was cut off", why="it ends within a character", fix=COPY_AGAIN)
    with opened(path) as file:
        guessed = _encoding(file.read(_GUESSED))
    fix = f"iconv -f {guessed} -t utf-8 {path}" if guessed else f"file {path}; iconv -f ENCODING -t utf-8 {path}"
    return Fault(f"{path} is not UTF-8", why=f"{error}; by its bytes it is {guessed or 'no known text'}", fix=fix)


def _encoding(content: bytes) -> str:
    """Return the likely encoding of text that is not UTF-8, by a name that iconv knows; "" if there is none."""
    import charset_normalizer

    found = list(charset_normalizer.from_bytes(content, cp_isolation=list(_ENCODINGS)))
    if not found:
        return ""
    best = min((match.chaos, -match.coherence) for match in found)
    likely = {
        name for match in found if (match.chaos, -match.coherence) == best for name in match.could_be_from_charset
    }
    return next((name.replace("_", "-") for name in _ENCODINGS if name in likely), "")


def json_lines(path: Path, _notes: list[str]) -> Iterator[tuple[int, Row]]:
    with open_text(path, newline=None) as file:  # no line end stands inside a value: JSON escapes it
        for number, line in enumerate(file, start=1):
            if text := line.strip("\r\n\t "):
                row = _object(_json(text, path, number), path, number)
                yield from ((number, part) for part in _articles(row) or [row])


def _articles(row: Row) -> list[Row]:
    """Return the articles of a SQuAD file that stands in one line; none where a row is something else."""
    articles = row.get("data")
    found = isinstance(articles, list) and all(isinstance(a, dict) and "paragraphs" in a for a in articles)
    return articles if found and isinstance(articles, list) else []


def _json(text: str, path: Path, line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        shown = text.split("\n")[error.lineno - 1][:80]
        where = f"{path}, line {line + error.lineno - 1}: {shown!r}"
        why, fix = f"{error.msg} at column {error.colno}", ""
        if error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()):
            why, fix = f"the file was cut off, or the row goes on in the next line: {why}", COPY_AGAIN
        raise DataError(Fault("not valid JSON", where=where, why=why, fix=fix)) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise DataError(Fault("not usable JSON", where=f"{path}, line {line}", why=str(error))) from None


def _object(value: object, path: Path, number: int) -> Row:
    """Return a row; a list of a text and an object, as in spaCy's TRAIN_DATA, is one too. Raises: DataError."""
    if isinstance(value, list) and [type(part) for part in value] == [str, dict]:
        return {"text": value[0], **value[1]}
    if not isinstance(value, dict):
        why = f"a row is a JSON object, this is {type(value).__name__}"
        raise DataError(Fault("not a row", where=f"{path}, row {number}: {str(value)[:80]!r}", why=why))
    return value


def json_list(path: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
    with open_text(path) as file:
        text = file.read()
    if _is_json_lines(text):
        yield from json_lines(path, notes)
        return
    value = _json(text, path, 1)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    elif isinstance(value, dict) and ("paragraphs" in value or "qas" in value):
        value = [value]  # one article of SQuAD, or one paragraph
    elif isinstance(value, dict) and isinstance(value.get("annotations"), list):
        value = value["annotations"]  # spaCy's TRAIN_DATA beside the classes, as annotators' tools export it
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
