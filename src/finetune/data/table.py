"""The rows of a file with the place where each stands, and the account of what was wrong with them."""

import contextlib
import operator
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

from finetune.core.console import progress, some
from finetune.core.errors import DataError, Fault
from finetune.core.types import Json
from finetune.params.schema import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = Json


FIRST_ROWS_SHOWN = 5
REASONS_SHOWN = 30
_SIZE = 4  # bytes before each stored row, which say how long it is
_PLACES = 2**14  # rows whose places are Python's numbers at a time
_AT_ONCE = 2**12  # bytes that are read of a row, and the rest of it where it is longer


class StoredRows(Sequence[Row]):
    """Rows in a temporary file, which goes when they go: memory holds eight bytes of each, whatever their number.

    A row is read anew each time that it is asked for, so that a change to it is lost.
    """

    def __init__(self, file: "_Unnamed", places: "NDArray[np.int64]") -> None:
        self._file, self._places = file, places

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "StoredRows":
        """Return the rows, which are taken one by one."""
        import numpy as np

        file, places, end = _Unnamed(), array("q"), 0
        for row in rows:
            content = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
            file.content.write(len(content).to_bytes(_SIZE, "little") + content)
            places.append(end)
            end += _SIZE + len(content)
        file.content.flush()
        return cls(file, np.array(places, dtype=np.int64))

    def chosen(self, places: "Sequence[int] | NDArray[np.int64]") -> "StoredRows":
        """Return the rows that have these places among them, in the order of the places."""
        import numpy as np

        return StoredRows(self._file, self._places[np.asarray(places, dtype=np.int64)])

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a sequence of equal rows."""
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self), _PLACES):
            yield from map(self._file.row, self._places[first : first + _PLACES].tolist())

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self._file.row(start) for start in self._places[place].tolist()]
        return self._file.row(int(self._places[place]))


class _Unnamed:
    """A file that no folder names: the system takes it away when the process ends, however it ends."""

    def __init__(self) -> None:
        self.content: BinaryIO = tempfile.TemporaryFile()

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full, which was said
            self.content.close()

    def row(self, start: int) -> Row:
        descriptor = self.content.fileno()
        found = os.pread(descriptor, _AT_ONCE, start)
        end = _SIZE + int.from_bytes(found[:_SIZE], "little")
        if end > len(found):
            found += os.pread(descriptor, end - len(found), start + len(found))
        return pickle.loads(memoryview(found)[_SIZE:end])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Table:
    """The rows of one file. `numbers[i]` is where row i stands: the line of a text file, the record of another.

    `notes` say how it was read where it allowed more than one reading, a line each.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    numbers: Sequence[int]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, numbered: Iterable[tuple[int, Row]], notes: Sequence[str] = ()) -> "Table":
        """Return the table of rows and where each stands, which are taken one by one, before the notes."""
        numbers, columns = array("q"), dict[str, None]()

        def rows() -> Iterator[Row]:
            with progress(None, f"read {Path(name).name}", inside=True) as bar:
                for number, row in numbered:
                    numbers.append(number)
                    columns.update(dict.fromkeys(row))
                    yield row
                    bar.update()

        stored = StoredRows.of(rows())
        return cls(name, tuple(columns), stored, numbers, tuple(notes))

    def require(self, columns: dict[str, str]) -> None:
        """Raise DataError if a column is missing; `columns` maps parameter names to column names."""
        faults = []
        for parameter, column in columns.items():
            if column not in self.columns:
                what = f"no column {column!r}{did_you_mean(column, self.columns)}"
                fix = f"--{parameter} with one of: {some(self.columns)}"
                faults.append(Fault(what, where=self.name, why="; ".join(self.notes), fix=fix))
        if faults:
            raise DataError(*faults)


@dataclass
class Audit:
    """The account of rows dropped, repaired or kept with a remark: for each reason the action and the row numbers.

    What is passed over holds no row; its numbers are those of what the reason names.
    """

    problems: dict[str, Json] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # how the file was read
    fixes: dict[str, str] = field(default_factory=dict)  # reason -> what to type, where a parameter mends it

    def add(self, action: str, reason: str, number: int, fix: str = "") -> None:
        if fix:
            self.fixes[reason] = fix
        entry = self.problems.setdefault(reason, {"action": action, "count": 0, "rows": []})
        entry["count"] += 1
        if len(entry["rows"]) < FIRST_ROWS_SHOWN:
            entry["rows"].append(number)

    @property
    def dropped(self) -> int:
        return sum(p["count"] for p in self.problems.values() if p["action"] == "dropped")

    def lines(self) -> list[str]:
        """Return one line for each reason, for the log; of very many reasons the first."""
        lines = [
            f"{p['action']} {p['count']}: {reason} ("
            f"{'' if p['action'] == 'passed over' else 'rows '}{', '.join(map(str, p['rows']))}"
            f"{', …' if p['count'] > len(p['rows']) else ''})"
            for reason, p in list(self.problems.items())[:REASONS_SHOWN]
        ]
        more = len(self.problems) - REASONS_SHOWN
        return lines if more <= 0 else [*lines, f"… {more:,} more reasons"]
